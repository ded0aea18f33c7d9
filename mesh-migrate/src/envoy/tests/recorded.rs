//! What Envoy 1.40.0 was seen to do (`tests/migrate/envoy.py --record`).

use serde_json::Value as Json;

use super::{Config, differences, explain, request};
use crate::{
    request::{Answer, Endpoint, Outcome},
    source::Source,
};

const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/migrate/envoy/");

/// Endpoints, by the addresses of names in `tests/legacy/hosts`.
fn address(endpoint: &Endpoint) -> String {
    let text = match endpoint {
        Endpoint::Address(address) => address.to_string(),
        Endpoint::Name(name) => name.clone(),
    };
    text.replace("orders-1.internal", "10.20.1.11").replace("orders-2.internal", "10.20.1.12")
}

fn is_same(answer: &Answer, saw: &Json) -> bool {
    match &answer.outcome {
        Outcome::Closed => saw["closed"] == true,
        Outcome::Answered { status, headers, .. } => {
            let location = headers.iter().find(|(name, _)| name == "location");
            saw["status"] == *status
                && saw["location"].as_str() == location.map(|(_, value)| value.as_str())
        }
        Outcome::Forwarded(to) => {
            let may: Vec<String> = to.endpoints.iter().map(|(one, _)| address(one)).collect();
            let Some(seen) = saw["endpoints"].as_array() else { return false };
            let header = |(name, value): &(String, Option<String>)| {
                let known = saw["headers"].get(name).and_then(Json::as_str);
                let value = value.as_ref().map(|value| value.replace(", ", ","));
                let is_told = name == "host" || saw["headers"].get(name).is_some();
                !is_told || known == value.as_deref()
            };
            seen.iter().all(|one| may.iter().any(|known| one == known))
                && to.target.as_deref() == saw["target"].as_str()
                && to.headers.iter().all(header)
        }
    }
}

#[test]
fn explain_says_what_envoy_was_seen_to_do() {
    let cases = std::fs::read_to_string(format!("{RECORDED}cases.json")).unwrap();
    let cases: Vec<Json> = serde_json::from_str(&cases).unwrap();
    let mut count = 0;
    for case in &cases {
        let name = case["config"].as_str().unwrap();
        let source = Source::read(format!("{RECORDED}{name}").as_ref()).unwrap();
        let config = Config::read(&source).unwrap_or_else(|problem| panic!("{problem}"));
        let requests = case["requests"].as_array().unwrap();
        for one in requests {
            let answer = explain(&config, &request(one, "target"));
            assert!(is_same(&answer, &one["saw"]), "{name} {one}\n{answer:#?}");
            count += 1;
        }
        let (_, wrong) = differences(&config, requests);
        assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), requests.len(), wrong[0]);
    }
    assert!(count > 300, "{count}");
}
