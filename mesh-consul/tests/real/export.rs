//! What Consul shows of a site.

use std::{collections::BTreeMap, time::Duration};

use mesh_consul::{
    client::Client,
    export::{Exporter, Exports, Wanted},
    import::Health,
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    Bridge, client,
    consul::{Consul, LONG, access_control},
    quick, rule, run, write_token,
};

/// An exporter that runs, and dies without a word when it is dropped.
struct Export {
    want: watch::Sender<Option<Vec<Wanted>>>,
    told: watch::Receiver<Exports>,
    task: JoinHandle<()>,
}

impl Export {
    fn start(client: Client, site: &str) -> Self {
        let exporter = Exporter::new(client, site.parse().unwrap(), Duration::from_secs(6));
        let (want, wanted) = watch::channel(None);
        let (tell, told) = watch::channel(Exports::default());
        let task = tokio::spawn(async move { exporter.run(wanted, &tell).await });
        Self { want, told, task }
    }

    fn want(&self, wanted: &[Wanted]) {
        self.want.send_replace(Some(wanted.to_vec()));
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn wanted(service: &str, instance: &str, port: u16) -> Wanted {
    Wanted {
        service: service.into(),
        instance: instance.into(),
        address: "127.0.0.7".into(),
        port,
        tags: vec!["mesh".into()],
        meta: BTreeMap::from([("team".into(), "pay".into())]),
        weight: 5,
        health: Health::Passing,
    }
}

/// Instances of a service as `id port status`.
async fn shown(consul: &Consul, service: &str) -> Vec<String> {
    let entries: Value =
        consul.call("GET", &format!("/v1/health/service/{service}"), &Value::Null).await;
    let one = |entry: &Value| {
        let checks = entry["Checks"].as_array().unwrap();
        let own = checks.iter().find(|check| check["ServiceID"] != "").unwrap();
        let (service, status) = (&entry["Service"], &own["Status"]);
        format!("{} {} {}", service["ID"], service["Port"], status).replace('"', "")
    };
    let mut shown: Vec<_> = entries.as_array().unwrap().iter().map(one).collect();
    shown.sort();
    shown
}

async fn shows(consul: &Consul, service: &str, expected: &[&str]) {
    let wait = async {
        while shown(consul, service).await != expected {
            sleep(Duration::from_millis(200)).await;
        }
    };
    if timeout(LONG, wait).await.is_err() {
        panic!("{:?} are not {expected:?}", shown(consul, service).await);
    }
}

#[test]
fn what_is_wanted_is_shown_and_nothing_elses_is_touched() {
    run(async {
        let mut consul = Consul::start(json!({})).await;
        consul.register("pay", "theirs", 9000).await;
        let start = |site| Export::start(client(&consul.address(), None, true), site);
        let mut everything =
            Bridge::start(client(&consul.address(), None, true), vec![rule(&["*"])], quick());
        let (west, east) = (start("west"), start("east"));
        west.want(&[wanted("pay", "a", 8001), wanted("pay", "b", 8002)]);
        east.want(&[wanted("pay", "a", 8003)]);
        let theirs = "theirs 9000 passing";
        let (a, b) = ("isthmus:west:pay:a 8001 passing", "isthmus:west:pay:b 8002 passing");
        let of_east = "isthmus:east:pay:a 8003 passing";
        shows(&consul, "pay", &[of_east, a, b, theirs]).await;
        let entries = consul.call("GET", "/v1/health/service/pay", &Value::Null).await;
        let ours = entries.as_array().unwrap().iter().find(|e| e["Service"]["Port"] == 8001);
        let service = &ours.unwrap()["Service"];
        let meta = json!({ "managed-by": "isthmus", "isthmus-site": "west", "team": "pay" });
        assert_eq!(service["Meta"], meta);
        assert_eq!(service["Weights"], json!({ "Passing": 5, "Warning": 5 }));

        // It is not imported, here or elsewhere.
        everything.shows("pay.consul", "dc1/real/theirs 127.0.0.9:9000 Passing 7").await;
        everything.keeps("pay.consul", "dc1/real/theirs 127.0.0.9:9000 Passing 7").await;

        // Health follows, and nothing is registered anew for it.
        let mut ill = wanted("pay", "b", 8002);
        ill.health = Health::Critical;
        west.want(&[wanted("pay", "a", 8001), ill]);
        let critical = "isthmus:west:pay:b 8002 critical";
        shows(&consul, "pay", &[of_east, a, critical, theirs]).await;
        let after = consul.call("GET", "/v1/health/service/pay", &Value::Null).await;
        let index = |entries: &Value| {
            let mut all = entries.as_array().unwrap().iter();
            all.find(|e| e["Service"]["Port"] == 8002).unwrap()["Service"]["ModifyIndex"].clone()
        };
        assert_eq!(index(&after), index(&entries));

        // One that comes after a crash finds what its predecessor left.
        drop(west);
        let west = start("west");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(shown(&consul, "pay").await.len(), 4, "nothing is known of what is wanted");
        west.want(&[wanted("pay", "a", 8001)]);
        shows(&consul, "pay", &[of_east, a, theirs]).await;

        // An agent that has lost everything is told again.
        consul.kill();
        consul.forget_everything();
        consul.run(1);
        consul.has_leader().await;
        shows(&consul, "pay", &[of_east, a]).await;
        assert_eq!(west.told.borrow().shown, 1);

        west.want(&[]);
        shows(&consul, "pay", &[of_east]).await;
    });
}

#[test]
fn who_dies_is_soon_critical_and_then_gone() {
    run(async {
        let consul = Consul::start(json!({})).await;
        let export = Export::start(client(&consul.address(), None, true), "west");
        export.want(&[wanted("pay", "a", 8001)]);
        shows(&consul, "pay", &["isthmus:west:pay:a 8001 passing"]).await;
        // Longer than the TTL: it is kept alive.
        for _ in 0..80 {
            sleep(Duration::from_millis(100)).await;
            assert_eq!(shown(&consul, "pay").await, ["isthmus:west:pay:a 8001 passing"]);
        }
        drop(export);
        shows(&consul, "pay", &["isthmus:west:pay:a 8001 critical"]).await;
        shows(&consul, "pay", &[]).await;
    });
}

#[test]
fn whose_id_is_taken_says_so() {
    run(async {
        let consul = Consul::start(json!({})).await;
        consul.register("pay", "isthmus:west:pay:a", 9000).await;
        let mut export = Export::start(client(&consul.address(), None, true), "west");
        export.want(&[wanted("pay", "a", 8001), wanted("pay", "b", 8002)]);
        let told = timeout(LONG, export.told.wait_for(|told| told.shown == 1)).await.unwrap();
        assert!(told.unwrap().refused["isthmus:west:pay:a"].contains("somebody else"));
        let expected = ["isthmus:west:pay:a 9000 passing", "isthmus:west:pay:b 8002 passing"];
        shows(&consul, "pay", &expected).await;
        let exporter = Exporter::new(
            client(&consul.address(), None, true),
            "west".parse().unwrap(),
            Duration::from_secs(6),
        );
        drop(export);
        exporter.withdraw().await.unwrap();
        shows(&consul, "pay", &expected[..1]).await;
    });
}

#[test]
fn who_may_not_write_says_so_and_who_may_does() {
    run(async {
        let consul = Consul::start(json!({ "acl": access_control() })).await;
        let reads = r#"service_prefix "" { policy = "read" }"#;
        let writes = r#"service_prefix "" { policy = "write" }"#;
        let (reader, writer) = (consul.token(reads).await, consul.token(writes).await);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        write_token(&file, &reader);
        let mut export = Export::start(client(&consul.address(), Some(&file), true), "west");
        export.want(&[wanted("pay", "a", 8001)]);
        let told = timeout(LONG, export.told.wait_for(|told| told.failing.is_some())).await;
        let why = told.unwrap().unwrap().failing.clone().unwrap().1;
        assert!(why.contains("service:write"), "{why}");
        write_token(&file, &writer);
        shows(&consul, "pay", &["isthmus:west:pay:a 8001 passing"]).await;
        timeout(LONG, export.told.wait_for(|told| told.failing.is_none())).await.unwrap().unwrap();
    });
}
