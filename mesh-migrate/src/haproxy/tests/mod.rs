mod agreement;
mod edges;
mod generator;
mod joined;
mod kinds;
mod limits;
mod more;
mod told;

use std::{net::IpAddr, path::Path};

use serde_json::Value;

use super::*;
use crate::request::{Answer, Endpoint, Http, Kind, Outcome, Request};

fn legacy() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/legacy"))
}

pub(super) fn from(texts: &[(&str, &str)]) -> Result<Config, Problem> {
    let sources: Vec<_> = texts.iter().map(|(name, text)| Source::of(name, text)).collect();
    let file = |name: &str| Source::read(&legacy().join(name));
    let variable = |name: &str| (name == "HOST").then(|| "10.0.0.1".to_owned());
    read(&sources, &Outside { file: &file, variable: &variable })
}

fn written(name: &str) -> Config {
    let source = Source::read(&legacy().join(name)).unwrap();
    from(&[(name, &source.text)]).unwrap()
}

/// The JSON block of the expectations.
fn cases(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(legacy().join(format!("{name}.expect.md"))).unwrap();
    let (_, block) = text.split_once("```json").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    serde_json::from_str(block).unwrap()
}

fn request(case: &Value) -> Request {
    let text = |name: &str| case[name].as_str().unwrap_or_default().to_owned();
    let listener = text("listener");
    let (is_tcp, listener) = match listener.strip_prefix("tcp ") {
        Some(listener) => (true, listener.to_owned()),
        None => (false, listener),
    };
    let (source, _) = listener.split_once(':').unwrap();
    let source: IpAddr = source.parse().unwrap();
    let headers = case["headers"].as_object().unwrap().iter();
    let headers = headers.map(|(name, value)| (name.clone(), value.as_str().unwrap().to_owned()));
    let kind = match is_tcp {
        true => Kind::Connection { server_name: None },
        false => Kind::Http(Http {
            method: text("method"),
            host: Some(text("host")),
            target: text("path"),
            headers: headers.collect(),
            is_http10: false,
        }),
    };
    Request { listener: Some(listener), source, kind }
}

/// The address of a name, as `hosts` has it.
fn address(endpoint: &Endpoint) -> String {
    let name = match endpoint {
        Endpoint::Address(address) => return address.to_string(),
        Endpoint::Name(name) => name,
    };
    let hosts = std::fs::read_to_string(legacy().join("hosts")).unwrap();
    let (host, port) = name.split_once(':').unwrap();
    let line = hosts.lines().find(|line| line.split_whitespace().nth(1) == Some(host)).unwrap();
    format!("{}:{port}", line.split_whitespace().next().unwrap())
}

fn is_as_expected(case: &Value, answer: &Answer) {
    let expect = &case["expect"];
    let id = &case["id"];
    match &answer.outcome {
        Outcome::Forwarded(to) => {
            let mut got: Vec<String> = to.endpoints.iter().map(|(e, _)| address(e)).collect();
            let backends = expect["backend"].as_array().unwrap().iter();
            let mut backends: Vec<&str> = backends.map(|b| b.as_str().unwrap()).collect();
            got.sort_unstable();
            backends.sort_unstable();
            assert_eq!(got, backends, "{id}: {answer:?}");
            assert_eq!(to.is_sticky, expect["sticky"] == true, "{id}");
            if let Some(up) = expect["up"].as_str() {
                assert_eq!(to.target.as_deref(), Some(up), "{id}");
            }
            for (name, value) in expect["uph"].as_object().into_iter().flatten() {
                let sent = if name == "host" { case["host"].as_str() } else { None };
                let got = to.headers.iter().find(|(known, _)| known == name);
                let got = got.map_or(sent, |(_, value)| value.as_deref());
                assert_eq!(got, value.as_str(), "{id}: {name}");
            }
            if let Some(shares) = expect["dist"].as_object() {
                let all: f64 = shares.values().map(|part| part.as_f64().unwrap()).sum();
                for (endpoint, share) in &to.endpoints {
                    let part = shares[&address(endpoint)].as_f64().unwrap() / all;
                    assert!((part - share).abs() < 1e-9, "{id}: {endpoint:?} {share}");
                }
            }
        }
        Outcome::Answered { status, headers, .. } => {
            assert_eq!(Some(u64::from(*status)), expect["status"].as_u64(), "{id}: {answer:?}");
            assert!(expect["backend"].is_null(), "{id}");
            for (name, value) in expect["rh"].as_object().into_iter().flatten() {
                let got = headers.iter().find(|(known, _)| known == name);
                assert_eq!(got.map(|(_, value)| value.as_str()), value.as_str(), "{id}");
            }
        }
        Outcome::Closed => panic!("{id}: {answer:?}"),
    }
    assert!(answer.why.iter().any(|step| step.place.is_some()), "{id}: no reason");
}

const FILES: [&str; 2] = ["haproxy-01-internal-lb.cfg", "haproxy-02-tcp-listen.cfg"];

#[test]
fn cases_are_explained() {
    for (name, expected) in FILES.into_iter().zip([9, 8]) {
        let config = written(name);
        let cases = cases(name);
        assert_eq!(cases.len(), expected);
        for case in &cases {
            is_as_expected(case, &explain(&config, &request(case)));
        }
    }
}
