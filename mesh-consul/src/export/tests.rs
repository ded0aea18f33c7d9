use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{Asked, agent, reply, run};

fn wanted(instance: &str) -> Wanted {
    Wanted {
        service: "pay".into(),
        instance: instance.into(),
        address: "10.0.0.1".into(),
        port: 80,
        tags: Vec::new(),
        meta: BTreeMap::new(),
        weight: 1,
        health: Health::Passing,
    }
}

/// The calls that were made, without those that only read.
fn writes(asked: &Mutex<Vec<Asked>>) -> Vec<String> {
    let asked = asked.lock().unwrap();
    let writes = asked.iter().filter(|asked| asked.line.starts_with("PUT"));
    writes.map(|asked| asked.line.trim_start_matches("PUT /v1/agent/").to_owned()).collect()
}

fn exporter(client: Client) -> (Exporter, channel::Sender<Exports>) {
    let site = "west".parse().unwrap();
    (Exporter::new(client, site, Duration::from_secs(15)), channel::Sender::default())
}

#[test]
fn what_consul_does_not_take_costs_the_others_nothing() {
    run(async {
        let (client, asked) = agent(|asked| match asked.line.as_str() {
            "GET /v1/agent/services" => reply(200, &[], "{}"),
            _ if asked.body.contains(":bad") || asked.line.contains(":bad") => {
                reply(400, &[], "Invalid Service Meta")
            }
            _ => reply(200, &[], ""),
        })
        .await;
        let (exporter, told) = exporter(client);
        let result = exporter.reconcile(&[wanted("bad"), wanted("good")], &told).await;
        assert!(result.unwrap_err().to_string().contains("Invalid Service Meta"));
        assert_eq!(told.borrow().shown, 1);
        let register = "service/register?replace-existing-checks=true";
        let update = |id| format!("check/update/isthmus:west:pay:{id}:alive");
        assert_eq!(writes(&asked), [register, register, &update("bad"), &update("good")]);
        let asked = asked.lock().unwrap();
        let body: serde_json::Value = serde_json::from_str(&asked[2].body).unwrap();
        assert_eq!(body["Check"]["DeregisterCriticalServiceAfter"], "1m");
        assert_eq!(
            (&body["Check"]["TTL"], &body["Check"]["Status"]),
            (&"15000ms".into(), &"passing".into())
        );
    });
}

#[test]
fn an_agent_that_is_not_there_is_not_asked_for_each() {
    run(async {
        let (client, asked) = agent(|asked| match asked.line.as_str() {
            "GET /v1/agent/services" => reply(200, &[], "{}"),
            _ => reply(500, &[], "rpc error"),
        })
        .await;
        let (exporter, told) = exporter(client);
        let many: Vec<_> = (0..100).map(|i| wanted(&i.to_string())).collect();
        assert!(exporter.reconcile(&many, &told).await.is_err());
        assert_eq!(writes(&asked).len(), MAX_FAILURES);
    });
}

#[test]
fn nothing_is_written_before_it_is_known_what_is_wanted() {
    run(async {
        let site = r#"{"isthmus-site":"west","managed-by":"isthmus"}"#;
        let left = format!(r#"{{"old":{{"ID":"old","Service":"pay","Meta":{site}}}}}"#);
        let (client, asked) = agent(move |asked| match asked.line.as_str() {
            "GET /v1/agent/services" => reply(200, &[], &left),
            _ => reply(200, &[], ""),
        })
        .await;
        let exporter = Exporter { ttl: Duration::from_millis(30), ..exporter(client).0 };
        let (want, wanted) = channel::channel(None);
        let (tell, mut told) = channel::channel(Exports { shown: 7, ..Exports::default() });
        let drive = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(asked.lock().unwrap().is_empty());
            want.send_replace(Some(Vec::new()));
            told.wait_for(|told| told.shown == 0).await.unwrap();
            assert!(writes(&asked).starts_with(&["service/deregister/old".into()]));
        };
        tokio::select! {
            () = exporter.run(wanted, &tell) => unreachable!("it runs for ever"),
            () = drive => {}
        }
    });
}

#[test]
fn one_that_fails_says_since_when() {
    run(async {
        let ill = Arc::new(Mutex::new(true));
        let is_ill = ill.clone();
        let (client, _) = agent(move |_| match *is_ill.lock().unwrap() {
            true => reply(403, &[], "Permission denied"),
            false => reply(200, &[], "{}"),
        })
        .await;
        let exporter = Exporter { ttl: Duration::from_millis(30), ..exporter(client).0 };
        let (_want, wanted) = channel::channel(Some(vec![wanted("a")]));
        let (tell, mut told) = channel::channel(Exports::default());
        let drive = async {
            let since = |told: &Exports| told.failing.as_ref().map(|(since, _)| *since);
            let first = since(&told.wait_for(|told| told.failing.is_some()).await.unwrap());
            for _ in 0..3 {
                told.changed().await.unwrap();
                assert_eq!(since(&told.borrow_and_update()), first);
            }
            let why = told.borrow().failing.clone().unwrap().1;
            assert!(why.contains("service:write"), "{why}");
            *ill.lock().unwrap() = false;
            told.wait_for(|told| told.failing.is_none() && told.shown == 1).await.unwrap();
        };
        tokio::select! {
            () = exporter.run(wanted, &tell) => unreachable!("it runs for ever"),
            () = drive => {}
        }
    });
}
