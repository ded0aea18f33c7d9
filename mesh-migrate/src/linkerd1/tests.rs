//! The cases of `tests/legacy/linkerd1-*`, and what the manual says that they do not.

mod conversion;
mod examples;
mod keys;
mod malformed;
mod property;
mod rules;

use serde_json::Value as Json;

use super::{
    config::Config,
    explain::{Delegation, delegate, explain},
    world::World,
};
use crate::{
    request::{Http, Kind, Outcome, Request},
    source::{Place, Problem, Source},
};

pub(super) const LEGACY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/legacy/");

pub(super) const FILES: [&str; 9] = [
    "linkerd1-02-consul-per-host-tls.yaml",
    "linkerd1-03-path-fs.yaml",
    "linkerd1-04-h2-grpc.yaml",
    "linkerd1-06-methodhost-marathon.yaml",
    "linkerd1-12-edge-chain.yaml",
    "linkerd1-13-consul-regions.yaml",
    "linkerd1-14-grpc-h2.yaml",
    "linkerd1-15-edge-paths.yaml",
    "linkerd1-16-sidecar.yaml",
];

pub(super) fn source(file: &str) -> Source {
    let text = std::fs::read_to_string(format!("{LEGACY}{file}")).unwrap();
    Source::of(file, &text)
}

pub(super) fn expected(file: &str) -> Json {
    let text = std::fs::read_to_string(format!("{LEGACY}{file}.expect.md")).unwrap();
    let (_, json) = text.split_once("```json").unwrap();
    serde_json::from_str(json.split_once("```").unwrap().0).unwrap()
}

pub(super) fn no_files(name: &str) -> Result<Source, Problem> {
    let place = Place::start(&name.into());
    Err(Problem::at(&place, "is not there"))
}

pub(super) fn legacy_files(name: &str) -> Result<Source, Problem> {
    Source::read(std::path::Path::new(&format!("{LEGACY}{name}")))
}

pub(super) fn world(expected: &Json) -> World {
    World::of_names(expected["world"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()))
}

pub(super) fn request(case: &Json) -> Request {
    let text = |key: &str| case[key].as_str().unwrap().to_owned();
    let headers = case["headers"].as_object().unwrap();
    let plain = headers.iter().filter(|(name, _)| !name.starts_with(':'));
    let http = Http {
        method: text("method"),
        host: Some(text("host")).filter(|host| !host.is_empty()),
        target: text("uri"),
        headers: plain.map(|(n, v)| (n.clone(), v.as_str().unwrap().to_owned())).collect(),
        is_http10: headers.contains_key(":http10"),
    };
    Request {
        listener: Some(text("router")),
        source: "127.0.0.1".parse().unwrap(),
        kind: Kind::Http(http),
    }
}

/// For tests of how long something takes.
#[expect(clippy::disallowed_methods, reason = "no simulated time reaches these")]
pub(super) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[test]
fn every_case() {
    let mut count = 0;
    for file in FILES {
        let config = Config::read(&source(file)).unwrap();
        let expected = expected(file);
        let world = world(&expected);
        for case in expected["cases"].as_array().unwrap() {
            let id = format!("{file} {}", case["id"]);
            let request = request(case);
            let found = delegate(&config, &world, &legacy_files, &request).unwrap();
            check(&id, case, &found);
            let answer = explain(&config, &world, &legacy_files, &request).unwrap();
            match (&answer.outcome, case["status"].as_u64()) {
                (Outcome::Answered { status, .. }, Some(code)) => {
                    assert_eq!(u64::from(*status), code, "{id}");
                }
                (Outcome::Forwarded(to), None) => {
                    assert_eq!(to.target.as_deref(), case["upstream_uri"].as_str(), "{id}");
                    assert!((to.pools.iter().map(|(_, s)| s).sum::<f64>() - 1.0).abs() < 1e-9);
                }
                other => panic!("{id}: {other:?}"),
            }
            assert!(answer.why.iter().any(|step| step.place.is_some()), "{id}");
            count += 1;
        }
    }
    assert_eq!(count, 130);
}

fn check(id: &str, case: &Json, found: &Delegation) {
    let service = found.service.as_ref().map(ToString::to_string);
    assert_eq!(service.as_deref(), case["service"].as_str(), "{id}");
    assert_eq!(found.status.map(u64::from), case["status"].as_u64(), "{id}");
    assert_eq!(Some(found.upstream_uri.as_str()), case["upstream_uri"].as_str(), "{id}");
    assert_eq!(Json::Object(found.service_policy().clone()), case["service_policy"], "{id}");
    assert_eq!(Json::Object(found.client_policy()), case["client_policy"], "{id}");
    let bound = case["bound"].as_array().unwrap();
    assert_eq!(found.bound.len(), bound.len(), "{id}: {found}");
    for (target, expected) in found.bound.iter().zip(bound) {
        assert_eq!(Some(target.client.to_string().as_str()), expected["client"].as_str(), "{id}");
        assert_eq!(Some(target.residual().as_str()), expected["residual"].as_str(), "{id}");
        assert!((target.share - expected["share"].as_f64().unwrap()).abs() < 1e-9, "{id}");
    }
}

#[test]
fn the_tree_is_printed_with_its_lines() {
    let file = "linkerd1-02-consul-per-host-tls.yaml";
    let config = Config::read(&source(file)).unwrap();
    let expected = expected(file);
    let request = request(&expected["cases"][1]);
    let found = delegate(&config, &world(&expected), &no_files, &request).unwrap();
    let said = found.to_string();
    for line in [
        "router outgoing (linkerd1-02-consul-per-host-tls.yaml:13:3)",
        "service /svc/search: Host is \"search\"",
        "/svc/search",
        "    /#/io.l5d.consul/dc1/search  negative: /#/io.l5d.consul/dc1/search is not known  (/consul => /#/io.l5d.consul/dc1, linkerd1-02-consul-per-host-tls.yaml:17:5)",
        "    /#/io.l5d.consul/dc2/search  is bound: /#/io.l5d.consul/dc2/search  (/consul2 => /#/io.l5d.consul/dc2, linkerd1-02-consul-per-host-tls.yaml:18:5)",
        "=> 1.0000 /%/io.l5d.port/4141/#/io.l5d.consul/dc2/search",
    ] {
        assert!(said.lines().any(|printed| printed == line), "{line}\n{said}");
    }
}

#[test]
fn files_are_discovery() {
    let config = Config::read(&source("linkerd1-03-path-fs.yaml")).unwrap();
    let case = &expected("linkerd1-03-path-fs.yaml")["cases"][0];
    let answer = explain(&config, &World::default(), &legacy_files, &request(case)).unwrap();
    let Outcome::Forwarded(to) = answer.outcome else { panic!("{answer:?}") };
    let shares: Vec<_> = to
        .endpoints
        .iter()
        .map(|(at, share)| format!("{} {share:.4}", serde_json::to_string(at).unwrap()))
        .collect();
    assert_eq!(
        shares,
        ["\"10.20.1.11:8080\" 0.3167", "\"10.20.1.12:8080\" 0.6333", "\"10.20.1.31:8080\" 0.0500"]
    );
}
