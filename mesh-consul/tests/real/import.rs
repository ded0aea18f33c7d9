//! What the bridge knows while Consul is asked, changed, rebuilt and silenced.

use std::time::Duration;

use mesh_consul::watch::{Pace, Why};
use serde_json::json;

use crate::{
    Bridge, client,
    consul::{Consul, access_control},
    quick, rule, run, write_token,
};

const WEB_1: &str = "dc1/real/web-1 127.0.0.9:8001 Passing 7";

#[test]
fn instances_come_change_and_go() {
    run(async {
        let consul = Consul::start(json!({})).await;
        let client = client(&consul.address(), None, true);
        assert_eq!(client.agent().await.unwrap().config.datacenter, "dc1");
        let mut bridge = Bridge::start(client.clone(), vec![rule(&["web*"])], quick());
        let none = bridge.until("complete", |import| import.complete).await;
        assert!(none.services.is_empty() && none.stale.is_empty());

        consul.register("web", "web-1", 8001).await;
        consul.register("db", "db-1", 5432).await;
        bridge.shows("web.consul", WEB_1).await;
        consul.register("web", "web-2", 8002).await;
        let two = format!("{WEB_1}, dc1/real/web-2 127.0.0.9:8002 Passing 7");
        bridge.shows("web.consul", &two).await;
        for (how, expected) in
            [("warn", "Warning 3"), ("fail", "Critical 7"), ("pass", "Passing 7")]
        {
            consul.check("web-1", how).await;
            bridge.shows("web.consul", &two.replacen("Passing 7", expected, 1)).await;
        }
        client.maintenance("web-2", true, "a test").await.unwrap();
        let drained = two.replace("8002 Passing", "8002 Maintenance");
        bridge.shows("web.consul", &drained).await;
        client.maintenance("web-2", false, "").await.unwrap();
        bridge.shows("web.consul", &two).await;

        let first = bridge.told.borrow().services["web.consul"].instances[0].clone();
        assert_eq!((first.tags.as_slice(), first.node.as_str()), (&["v1".to_owned()][..], "real"));
        assert_eq!(first.meta["version"], "2");
        assert!(!bridge.told.borrow().services.contains_key("db.consul"));

        consul.deregister("web-2").await;
        bridge.shows("web.consul", WEB_1).await;
        consul.deregister("web-1").await;
        bridge.shows("web.consul", "-").await;
        // It is watched anew.
        consul.register("web", "web-1", 8001).await;
        bridge.shows("web.consul", WEB_1).await;
    });
}

/// Servers that have lost everything, with a lower index, and while they have no
/// leader.
#[test]
fn a_rebuilt_consul_takes_nothing_away_before_it_is_told() {
    run(async {
        let mut consul = Consul::start(json!({})).await;
        for i in 0..300 {
            consul.call("PUT", &format!("/v1/kv/raise-the-index/{i}"), &json!(i)).await;
        }
        consul.register("web", "web-1", 8001).await;
        let start = |stale| {
            let client = client(&consul.address(), None, stale);
            Bridge::start(client, vec![rule(&["web"])], quick())
        };
        let mut bridges = [start(true), start(false)];
        for bridge in &mut bridges {
            bridge.shows("web.consul", WEB_1).await;
        }
        consul.kill();
        let kept = format!("~ {WEB_1}");
        for bridge in &mut bridges {
            bridge.shows("web.consul", &kept).await;
        }
        consul.forget_everything();
        consul.run(2);
        for bridge in &mut bridges {
            bridge.keeps("web.consul", &kept).await;
        }
        let why = |bridge: &Bridge| {
            let import = bridge.told.borrow();
            import.services["web.consul"].stale.as_ref().map(|stale| stale.why.clone())
        };
        bridges[0].until("without leader", |_| true).await;
        let expected = |why: &Option<Why>| matches!(why, Some(Why::NoLeader | Why::Failed(_)));
        assert!(bridges.iter().all(|bridge| expected(&why(bridge))));

        consul.kill();
        consul.forget_everything();
        consul.run(1);
        consul.has_leader().await;
        for bridge in &mut bridges {
            bridge
                .until("emptied", |import| {
                    let stale = import.services["web.consul"].stale.as_ref();
                    stale.is_some_and(|stale| stale.why == Why::Emptied)
                })
                .await;
            bridge.keeps("web.consul", &kept).await;
        }
        consul.register("web", "web-2", 8002).await;
        for bridge in &mut bridges {
            bridge.shows("web.consul", "dc1/real/web-2 127.0.0.9:8002 Passing 7").await;
        }
    });
}

#[test]
fn access_control_takes_nothing_away() {
    run(async {
        let consul = Consul::start(json!({ "acl": access_control() })).await;
        consul.register("web", "web-1", 8001).await;
        let read = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#;
        let reader = consul.token(read).await;
        let useless = consul.token(r#"key "x" { policy = "read" }"#).await;

        // Nobody in particular: empty, and not complete.
        let anonymous = client(&consul.address(), None, true);
        let mut bridge = Bridge::start(anonymous, vec![rule(&["*"])], quick());
        let import = bridge.until("filtered", |import| !import.stale.is_empty()).await;
        assert!(!import.complete && import.stale.values().all(|stale| stale.why == Why::Filtered));

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        write_token(&file, &reader);
        let client = client(&consul.address(), Some(&file), true);
        let mut bridge = Bridge::start(client, vec![rule(&["*"])], quick());
        bridge.shows("web.consul", WEB_1).await;
        let kept = format!("~ {WEB_1}");
        // One that may read nothing, one that nobody knows, and the right one again.
        write_token(&file, &useless);
        bridge.shows("web.consul", &kept).await;
        bridge
            .until("filtered", |import| {
                let stale = import.services["web.consul"].stale.as_ref();
                stale.is_some_and(|stale| stale.why == Why::Filtered)
            })
            .await;
        bridge.keeps("web.consul", &kept).await;
        write_token(&file, "3f9e1f3c-0000-4000-8000-00000000dead");
        let refused = |why: &Why| matches!(why, Why::Failed(text) if text.contains("refuses"));
        bridge
            .until("refused", |import| {
                let stale = import.services["web.consul"].stale.as_ref();
                stale.is_some_and(|stale| refused(&stale.why))
            })
            .await;
        bridge.keeps("web.consul", &kept).await;
        consul.register("web", "web-2", 8002).await;
        write_token(&file, &reader);
        bridge
            .shows("web.consul", &format!("{WEB_1}, dc1/real/web-2 127.0.0.9:8002 Passing 7"))
            .await;
    });
}

/// Silence, and a datacenter that is not there.
#[test]
fn who_does_not_answer_takes_nothing_away() {
    run(async {
        let consul = Consul::start(json!({})).await;
        consul.register("web", "web-1", 8001).await;
        let address = consul.address();
        let elsewhere = mesh_consul::import::ImportRule { dc: Some("dc9".into()), ..rule(&["*"]) };
        let rules = vec![rule(&["web"]), elsewhere];
        let mut bridge = Bridge::start(client(&address, None, true), rules, quick());
        bridge.shows("web.consul", WEB_1).await;
        let import = bridge.until("without dc9", |import| !import.stale.is_empty()).await;
        let why = import.stale[&Some("dc9".to_owned())].why.to_string();
        assert!(why.contains("no path to the datacenter") && !import.complete, "{why}");

        consul.signal("STOP");
        bridge.shows("web.consul", &format!("~ {WEB_1}")).await;
        let why = bridge.told.borrow().services["web.consul"].stale.clone().unwrap().why;
        assert!(why.to_string().contains("did not answer in time"), "{why}");
        consul.signal("CONT");
        bridge.shows("web.consul", WEB_1).await;
    });
}

/// Consul takes no more than so many connections from one address, until it is told
/// otherwise.
#[test]
fn a_limit_of_consul_is_waited_out() {
    run(async {
        let limits = |most: u32| json!({ "http_max_conns_per_client": most });
        let mut consul = Consul::start(json!({ "limits": limits(4) })).await;
        for i in 1..=6 {
            consul.register(&format!("web{i}"), &format!("web{i}-1"), 8000 + i).await;
        }
        // Whoever has a connection keeps it.
        let pace = Pace { wait: Duration::from_secs(60), ..quick() };
        let client = client(&consul.address(), None, true);
        let mut bridge = Bridge::start(client, vec![rule(&["web*"])], pace);
        let import = bridge.until("begun", |import| !import.services.is_empty()).await;
        assert!(!import.complete, "there are seven lists");
        consul.reload("limits", limits(100));
        let import = bridge.until("complete", |import| import.complete).await;
        assert_eq!(import.services.len(), 6);
    });
}
