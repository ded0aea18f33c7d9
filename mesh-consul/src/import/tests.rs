use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{Reply, agent, list, reply, run, web};

fn rule(allow: &str) -> ImportRule {
    ImportRule {
        allow: vec![Pattern(allow.into())],
        tags: Vec::new(),
        dc: None,
        as_namespace: "consul".into(),
        rename: BTreeMap::new(),
        address: AddressOf::Service,
        port: None,
    }
}

fn quick() -> Pace {
    let ms = Duration::from_millis;
    Pace { churn: ms(2), backoff: ms(1), backoff_max: ms(5), hold: ms(20), ..Pace::default() }
}

/// An agent that says what these texts say now.
#[derive(Clone)]
struct Script {
    names: Reply,
    web: Reply,
}

/// Nodes of `web`, as `n1 n2`; `~` where it is stale, `-` where it is not there.
fn nodes(import: &Import) -> String {
    let Some(web) = import.services.get("web.consul") else { return "-".into() };
    let stale = if web.stale.is_some() { "~ " } else { "" };
    let nodes: Vec<_> = web.instances.iter().map(|instance| instance.node.as_str()).collect();
    format!("{stale}{}", nodes.join(" "))
}

async fn with_script<F: AsyncFnOnce(Arc<Mutex<Script>>, channel::Receiver<Import>)>(test: F) {
    let names = list(1, r#"{"web":[],"db":[]}"#);
    let script = Arc::new(Mutex::new(Script { names, web: list(1, &web(&["n1"])) }));
    let says = script.clone();
    let (client, _) = agent(move |asked| {
        let says = says.lock().unwrap();
        match asked.line.contains("/catalog/services") {
            true => says.names.clone(),
            false => says.web.clone(),
        }
    })
    .await;
    let (tell, told) = channel::channel(Import::default());
    let (rules, pace) = ([rule("web")], quick());
    tokio::select! {
        never = follow(&client, &rules, &pace, 10, &tell) => match never {},
        () = test(script, told) => {}
    }
}

#[test]
fn a_service_goes_with_its_own_list_and_not_with_the_names() {
    run(with_script(async |script, mut told| {
        told.wait_for(|import| import.complete && nodes(import) == "n1").await.unwrap();
        script.lock().unwrap().names = list(2, r#"{"db":[]}"#);
        // It is watched although nobody names it.
        script.lock().unwrap().web = list(2, &web(&["n1", "n2"]));
        told.wait_for(|import| nodes(import) == "n1 n2").await.unwrap();
        script.lock().unwrap().web = list(3, "[]");
        told.wait_for(|import| nodes(import) == "-").await.unwrap();
        script.lock().unwrap().names = list(4, r#"{"web":[]}"#);
        script.lock().unwrap().web = list(4, &web(&["n3"]));
        told.wait_for(|import| nodes(import) == "n3").await.unwrap();
    }));
}

#[test]
fn silence_and_refusals_take_nothing_away() {
    run(with_script(async |script, mut told| {
        told.wait_for(|import| nodes(import) == "n1").await.unwrap();
        let refusals =
            [(403, "Permission denied"), (429, ""), (500, "No cluster leader"), (503, "")];
        for (status, text) in refusals {
            let refusal = reply(status, &[], text);
            *script.lock().unwrap() = Script { names: refusal.clone(), web: refusal };
            let is_kept = |import: &Import| nodes(import) == "~ n1" && !import.stale.is_empty();
            told.wait_for(is_kept).await.unwrap();
            let names = list(1, r#"{"web":[]}"#);
            *script.lock().unwrap() = Script { names, web: list(1, &web(&["n1"])) };
            let is_fresh = |import: &Import| nodes(import) == "n1" && import.stale.is_empty();
            told.wait_for(is_fresh).await.unwrap();
        }
    }));
}

#[test]
fn what_cannot_be_read_keeps_an_import_from_being_complete_and_says_so() {
    run(async {
        let filtered = &[("x-consul-index", "1"), ("x-consul-results-filtered-by-acls", "true")];
        let (client, _) = agent(move |asked| match asked.line.contains("/catalog/services") {
            true => reply(200, filtered, r#"{"web":[]}"#),
            false => reply(200, filtered, "[]"),
        })
        .await;
        let (tell, mut told) = channel::channel(Import::default());
        let (rules, pace) = ([rule("*")], quick());
        tokio::select! {
            never = follow(&client, &rules, &pace, 10, &tell) => match never {},
            import = told.wait_for(|import| !import.skipped.is_empty()) => {
                let import = import.unwrap().clone();
                assert!(!import.complete);
                assert!(import.skipped.first().unwrap().why.contains("node:read"));
            }
        }
    });
}
