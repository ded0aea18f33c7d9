//! Cases of `tests/legacy`, what is wrong in a file, and configurations by chance.

mod chance;
mod filters;
mod generate;
mod inject;
mod malformed;
mod recorded;
mod switches;
mod writer;

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value as Json;

use super::{
    config::Config,
    convert::convert,
    explain::explain,
    is_blank,
    notes::{self, Notes},
    parts,
    tree::Tree,
};
use crate::{
    decide::decide,
    ledger::{Entry, Ledger, Verdict},
    request::{Answer, Endpoint, Http, Kind, Outcome, Request},
    source::{Place, Source},
};

const LEGACY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/legacy/");

/// A request as cases write it; without a target it is a connection.
fn request(value: &Json, target: &str) -> Request {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let pair = |name: &str, value: &Json| (name.to_owned(), value.as_str().unwrap().to_owned());
    let headers = match &value["headers"] {
        Json::Object(all) => all.iter().map(|(name, value)| pair(name, value)).collect(),
        Json::Array(all) => all.iter().map(|one| pair(one[0].as_str().unwrap(), &one[1])).collect(),
        _ => Vec::new(),
    };
    let kind = match text(target) {
        Some(target) => Kind::Http(Http {
            method: text("method").unwrap_or_else(|| "GET".into()),
            host: text("host"),
            target,
            headers,
            is_http10: value["http10"] == true,
        }),
        None => Kind::Connection { server_name: text("server_name") },
    };
    let source = text("source").unwrap_or_else(|| "127.0.0.1".into()).parse().unwrap();
    let listener = text("listener").map(|all| all.trim_start_matches("tcp ").to_owned());
    Request { listener, source, kind }
}

fn endpoints(answer: &Answer) -> BTreeSet<String> {
    let Outcome::Forwarded(to) = &answer.outcome else { return BTreeSet::new() };
    let names = [
        ("orders-1.internal", "10.20.1.11"),
        ("orders-2.internal", "10.20.1.12"),
        ("orders-3.internal", "10.20.1.13"),
        ("users-2.internal", "10.20.2.12"),
        ("catalog-1.internal", "10.20.3.11"),
    ];
    let text = |endpoint: &Endpoint| match endpoint {
        Endpoint::Address(address) => address.to_string(),
        Endpoint::Name(name) => {
            names.iter().fold(name.clone(), |name, (from, to)| name.replace(from, to))
        }
    };
    to.endpoints.iter().map(|(endpoint, _)| text(endpoint)).collect()
}

#[test]
fn legacy_cases_hold() {
    for (file, count) in [
        ("envoy-01-http.yaml", 11),
        ("envoy-11-edge-gateway.yaml", 24),
        ("envoy-13-sidecar-egress.yaml", 20),
        ("envoy-15-monolith.yaml", 27),
        ("envoy-16-tcp-brokers.yaml", 9),
        ("envoy-17-api-products.yaml", 20),
    ] {
        let source = Source::read(format!("{LEGACY}{file}").as_ref()).unwrap();
        let config = Config::read(&source).unwrap();
        let (program, ledger) = convert(&config);
        assert_eq!(ledger.silent_lines(&source, is_blank), Vec::<u32>::new(), "{file}");
        let expect = std::fs::read_to_string(format!("{LEGACY}{file}.expect.md")).unwrap();
        let json = expect.split("```json").nth(1).unwrap().split("```").next().unwrap();
        let cases: Vec<Json> = serde_json::from_str(json).unwrap();
        assert_eq!(cases.len(), count, "{file}");
        for case in &cases {
            let request = request(case, "path");
            for (answer, by) in
                [(explain(&config, &request), "explain"), (decide(&program, &request), "decide")]
            {
                holds(file, case, &answer, by);
            }
        }
    }
}

fn holds(file: &str, case: &Json, answer: &Answer, by: &str) {
    let id = format!("{file} {} by {by}: {answer:?}", case["id"]);
    let is_first = file == "envoy-01-http.yaml";
    let expect = &case["expect"];
    let Some(backends) = expect["backend"].as_array() else {
        if case["method"] == "TCP" {
            assert_eq!(answer.outcome, Outcome::Closed, "{id}");
            return;
        }
        let Outcome::Answered { status, headers, .. } = &answer.outcome else { panic!("{id}") };
        assert_eq!(u64::from(*status), expect["status"].as_u64().unwrap(), "{id}");
        if let Some(location) = expect["rh"]["location"].as_str() {
            let wanted = ("location".to_owned(), location.to_owned());
            assert!(headers.contains(&wanted), "{id}");
        }
        return;
    };
    let mut wanted: BTreeSet<String> =
        backends.iter().map(|one| one.as_str().unwrap().to_owned()).collect();
    if is_first && case["id"] == "e10" {
        // The other endpoint fails, and the request is repeated on this one.
        wanted.insert("10.20.8.99:8080".into());
    }
    assert_eq!(endpoints(answer), wanted, "{id}");
    let Outcome::Forwarded(to) = &answer.outcome else { panic!("{id}") };
    if let Some(up) = expect["up"].as_str() {
        assert_eq!(to.target.as_deref(), Some(up), "{id}");
    }
    for (name, value) in expect["uph"].as_object().into_iter().flatten() {
        let changed = to.headers.iter().find(|(known, _)| known == name);
        let unchanged = (name == "host").then(|| case["host"].as_str()).flatten();
        let got = changed.map_or(unchanged, |(_, value)| value.as_deref());
        // A program leaves the port in Host, and its ledger says so.
        let is_left = by == "decide" && name == "host" && is_first && case["id"] == "e3";
        assert!(is_left || got == value.as_str(), "{id} {name} {got:?}");
    }
}

/// What matters most of an answer, endpoints, and what is left: headers.
fn comparable(answer: &Answer) -> [String; 3] {
    match &answer.outcome {
        Outcome::Forwarded(to) => {
            let shares = |all: Vec<(String, f64)>| {
                let mut all: Vec<String> =
                    all.into_iter().map(|(name, share)| format!("{name} {share:.3}")).collect();
                all.sort();
                all.join(" ")
            };
            let pools = shares(to.pools.clone());
            let endpoints = to.endpoints.iter().map(|(one, share)| (format!("{one:?}"), *share));
            [
                format!("{pools} {:?}", to.target),
                format!("{} {}", shares(endpoints.collect()), to.is_sticky),
                format!("{:?}", to.headers).replace(", ", ","),
            ]
        }
        Outcome::Answered { status, headers, body } => {
            let mut headers = headers.clone();
            headers.sort();
            [format!("{status} {body:?}"), String::new(), format!("{headers:?}")]
        }
        Outcome::Closed => ["closed".into(), String::new(), String::new()],
    }
}

/// What the ledger says beyond what it says of every such field, and what may matter.
fn reservations(config: &Config, ledger: &Ledger) -> Vec<Entry> {
    let mut plain = Ledger::default();
    notes::sweep(&config.root, &Notes::default(), &mut plain);
    let plain = plain.entries();
    let always = "Envoy refuses some requests itself";
    let matters = |entry: &Entry| match &entry.verdict {
        Verdict::Exact => false,
        Verdict::Decision { .. } => true,
        Verdict::Approximated { how: text } | Verdict::Dropped { meaning: text } => {
            !text.starts_with(always)
                && (text.contains("may go to another cluster") || !plain.contains(entry))
        }
    };
    ledger.entries().into_iter().filter(matters).collect()
}

/// Places that had a part in an answer: of messages that its steps name, without what
/// is below of other routes; and those of its clusters.
fn involved(config: &Config, answers: [&Answer; 2]) -> [BTreeSet<Place>; 2] {
    let steps: BTreeSet<_> = answers
        .iter()
        .flat_map(|answer| &answer.why)
        .filter_map(|step| step.place.clone())
        .collect();
    let [mut here, mut clusters] = [BTreeSet::new(), BTreeSet::new()];
    let mut visit = |tree: &Tree| match tree.short() {
        "Route" | "TcpProxy" if steps.contains(&tree.place) => below(tree, &[], &mut here),
        "Cluster" if steps.contains(&tree.place) => below(tree, &[], &mut clusters),
        "VirtualHost" if steps.contains(&tree.place) => below(tree, &["routes"], &mut here),
        "RouteConfiguration" => below(tree, &["virtual_hosts"], &mut here),
        "HttpConnectionManager" => below(tree, &["route_config"], &mut here),
        "Listener" => below(tree, &["filter_chains", "default_filter_chain"], &mut here),
        "FilterChain" => below(tree, &["filters"], &mut here),
        "Filter" => below(tree, &["typed_config"], &mut here),
        _ => {}
    };
    parts::each(&config.root, &mut visit);
    [here, clusters]
}

/// All places of a tree but those below some fields.
fn below(tree: &Tree, without: &[&str], places: &mut BTreeSet<Place>) {
    places.insert(tree.place.clone());
    for field in tree.fields.iter().filter(|field| !without.contains(&field.name.as_str())) {
        places.insert(field.place.clone());
        let mut visit = |tree: &Tree| {
            places.insert(tree.place.clone());
            places.extend(tree.fields.iter().map(|field| field.place.clone()));
        };
        parts::each_value(&field.value.what, &mut visit);
    }
}

/// Whether an entry says that a request may go somewhere else.
fn is_about_routing(entry: &Entry) -> bool {
    match &entry.verdict {
        Verdict::Decision { .. } => true,
        Verdict::Exact => false,
        Verdict::Approximated { how: text } | Verdict::Dropped { meaning: text } => {
            ["may go to another cluster", "any may name one"].iter().any(|one| text.contains(one))
        }
    }
}

/// Whether Envoy refuses the request itself, before it asks for a route, as every report
/// says.
fn is_refused(answer: &Answer) -> bool {
    matches!(answer.outcome, Outcome::Answered { status: 400 | 426, .. })
        && answer.why.iter().all(|step| !step.what.contains("takes it"))
}

/// Whether an earlier route, which cannot be converted, may have taken the request.
fn is_after_a_gap(config: &Config, answer: &Answer, reservations: &[Entry]) -> bool {
    let mut found = false;
    parts::each(&config.root, &mut |tree| {
        if tree.short() == "VirtualHost"
            && answer.why.iter().any(|s| s.place.as_ref() == Some(&tree.place))
        {
            found |= tree.messages("routes").any(|route| {
                reservations.iter().any(|entry| {
                    entry.place == route.place && matches!(entry.verdict, Verdict::Decision { .. })
                })
            });
        }
    });
    found
}

fn differences(config: &Config, requests: &[Json]) -> (usize, Vec<String>) {
    let (program, ledger) = convert(config);
    let reservations = reservations(config, &ledger);
    let mut agreed = 0;
    let mut wrong = Vec::new();
    for request in requests {
        let request = self::request(request, "target");
        let (said, done) = (explain(config, &request), decide(&program, &request));
        if comparable(&said) == comparable(&done) {
            agreed += 1;
            continue;
        }
        let [here, clusters] = involved(config, [&said, &done]);
        let ([routes, ends, _], [other_routes, other_ends, _]) =
            (comparable(&said), comparable(&done));
        let of = |places: &BTreeSet<Place>, entry: &Entry| places.contains(&entry.place);
        let is_told = match (routes == other_routes, ends == other_ends) {
            (false, _) => {
                reservations.iter().any(|entry| of(&here, entry) && is_about_routing(entry))
                    || is_refused(&said)
                    || is_after_a_gap(config, &said, &reservations)
            }
            (true, false) => reservations.iter().any(|entry| of(&clusters, entry)),
            (true, true) => reservations.iter().any(|entry| of(&here, entry)),
        };
        if !is_told {
            wrong.push(format!(
                "{request:?}\n{:?}\n{:?}\n{:?}",
                comparable(&said),
                comparable(&done),
                said.why.iter().map(|step| &step.what).collect::<Vec<_>>()
            ));
        }
    }
    (agreed, wrong)
}

#[test]
fn most_answers_are_the_same() {
    let (mut agreed, mut all) = (0, 0);
    for seed in 0..300 {
        let made = generate::generate(seed, false);
        let text = writer::yaml(&made.config, &mut chance::Chance::new(seed));
        let config =
            Config::read(&Source::of("c.yaml", &text)).unwrap_or_else(|p| panic!("{p}\n{text}"));
        agreed += differences(&config, &made.requests).0;
        all += made.requests.len();
    }
    assert!(agreed * 10 > all * 7, "{agreed} of {all}");
    eprintln!("{agreed} of {all}");
}

proptest! {
    #![proptest_config(crate::testing::same_each_time(500))]

    #[test]
    fn what_is_different_is_told(seed in any::<u64>()) {
        let made = generate::generate(seed, false);
        let text = writer::yaml(&made.config, &mut chance::Chance::new(seed));
        let source = Source::of("c.yaml", &text);
        let config = Config::read(&source).map_err(|p| TestCaseError::fail(format!("{p}\n{text}")))?;
        let (_, ledger) = convert(&config);
        let silent = ledger.silent_lines(&source, is_blank);
        prop_assert!(silent.is_empty(), "lines {silent:?} of\n{text}");
        let (_, wrong) = differences(&config, &made.requests);
        prop_assert!(wrong.is_empty(), "{}\n{text}", wrong[0]);
    }

    /// Whatever of Envoy is there: nothing panics, and no line is silent.
    #[test]
    fn all_that_envoy_knows_is_told(seed in any::<u64>()) {
        let mut made = generate::generate(seed, false);
        let mut chance = chance::Chance::new(seed);
        inject::inject(&mut made.config, "envoy.config.bootstrap.v3.Bootstrap", &mut chance);
        let text = writer::yaml(&made.config, &mut chance);
        let source = Source::of("c.yaml", &text);
        let Ok(config) = Config::read(&source) else { return Ok(()) };
        let (_, ledger) = convert(&config);
        let silent = ledger.silent_lines(&source, is_blank);
        prop_assert!(silent.is_empty(), "lines {silent:?} of\n{text}");
        let (_, wrong) = differences(&config, &made.requests);
        prop_assert!(wrong.is_empty(), "{}\n{text}", wrong[0]);
    }

    #[test]
    fn cut_files_end_well(seed in any::<u64>(), cut in 0usize..4000) {
        let made = generate::generate(seed, false);
        let mut text = writer::yaml(&made.config, &mut chance::Chance::new(seed));
        text.truncate(cut.min(text.len()));
        if let Ok(config) = Config::read(&Source::of("c.yaml", &text)) {
            convert(&config);
            for request in &made.requests {
                explain(&config, &self::request(request, "target"));
            }
        }
    }
}
