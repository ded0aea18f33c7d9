use serde_json::{Value as Json, json};

use crate::{
    decide::decide,
    envoy::{config::Config, convert::convert, explain::explain},
    ledger::{Ledger, Verdict},
    program::{Program, ServerTls, TlsVersion},
    request::{Http, Kind, Outcome, Request},
    source::Source,
};

fn typed(message: &str, mut config: Json) -> Json {
    config["@type"] = format!("type.googleapis.com/envoy.extensions.{message}").into();
    json!({ "name": message, "typed_config": config })
}

fn pair(name: &str) -> Json {
    json!({
        "certificate_chain": { "filename": format!("/{name}.pem") },
        "private_key": { "filename": format!("/{name}.key") },
    })
}

/// What a client is asked for.
fn validation(more: Json) -> Json {
    let mut context = json!({ "trusted_ca": { "filename": "/ca.pem" } });
    context.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    context
}

/// A chain for these names, all of whose answers have this status.
fn chain(names: &[&str], certificates: &[&str], validation: Option<&Json>, status: u16) -> Json {
    let pairs: Vec<_> = certificates.iter().map(|name| pair(name)).collect();
    let mut common = json!({ "tls_certificates": pairs });
    if let Some(validation) = validation {
        common["validation_context"] = validation.clone();
    }
    let tls = json!({
        "common_tls_context": common, "require_client_certificate": validation.is_some(),
    });
    let reply = json!({ "status": status });
    let routes = json!([{ "match": { "prefix": "/" }, "direct_response": reply }]);
    let hosts = json!([{ "name": "all", "domains": ["*"], "routes": routes }]);
    let hcm = json!({ "stat_prefix": "x", "route_config": { "virtual_hosts": hosts } });
    let mut chain = json!({
        "transport_socket": typed("transport_sockets.tls.v3.DownstreamTlsContext", tls),
        "filters": [typed(
            "filters.network.http_connection_manager.v3.HttpConnectionManager",
            hcm,
        )],
    });
    if !names.is_empty() {
        chain["filter_chain_match"] = json!({ "server_names": names });
    }
    chain
}

fn config(chains: &[Json]) -> Config {
    let listener = json!({
        "name": "in",
        "address": { "socket_address": { "address": "10.0.0.1", "port_value": 443 } },
        "listener_filters":
            [typed("filters.listener.tls_inspector.v3.TlsInspector", json!({}))],
        "filter_chains": chains,
    });
    let text = json!({ "static_resources": { "listeners": [listener] } }).to_string();
    Config::read(&Source::of("envoy.json", &text)).unwrap()
}

fn converted(chains: &[Json]) -> (Program, ServerTls, Ledger) {
    let (program, ledger) = convert(&config(chains));
    let tls = program.listeners[0].tls.clone().unwrap();
    (program, tls, ledger)
}

fn more(tls: &ServerTls) -> Vec<String> {
    let all = tls.more.iter();
    all.map(|one| format!("{} {} {}", one.certificate, one.key, one.names.join(","))).collect()
}

fn get(host: &str) -> Request {
    let http = Http {
        method: "GET".into(),
        host: Some(host.into()),
        target: "/".into(),
        headers: Vec::new(),
        is_http10: false,
    };
    let source = "10.0.0.9".parse().unwrap();
    Request { listener: Some("10.0.0.1:443".into()), source, kind: Kind::Http(http) }
}

fn asked(ledger: &Ledger, words: &str) -> bool {
    ledger.entries().iter().any(|entry| match &entry.verdict {
        Verdict::Decision { question, .. } => question.contains(words),
        _ => false,
    })
}

#[test]
fn chains_by_name_are_one_listener() {
    let chains = [
        chain(&["*.example", "a.example"], &["wild"], None, 201),
        chain(&["b.example", "*.b.example"], &["b", "b2"], None, 202),
        chain(&["c.b.example"], &["c"], None, 203),
    ];
    let (program, tls, ledger) = converted(&chains);
    assert_eq!(tls.certificate, "/wild.pem");
    let wanted = [
        "/wild.pem /wild.key *.example,a.example",
        "/b.pem /b.key b.example,*.b.example",
        "/b2.pem /b2.key b.example,*.b.example",
        "/c.pem /c.key c.b.example",
    ];
    assert_eq!(more(&tls), wanted);
    // Envoy closes connections of others, whatever stands in the certificate.
    assert!(tls.only_known_names);
    assert_eq!(tls.names, ["*.example", "a.example"]);
    assert!(!asked(&ledger, "filter chain"), "{:?}", ledger.entries());
    let hosts =
        ["a.example", "x.y.example", "b.example", "B.example", "d.b.example", "c.b.example"];
    for host in hosts {
        let (theirs, ours) = (explain(&config(&chains), &get(host)), decide(&program, &get(host)));
        assert_eq!(theirs.outcome, ours.outcome, "{host}");
    }

    let mut chains = chains.to_vec();
    chains.push(chain(&[], &["rest"], None, 204));
    let (program, tls, _) = converted(&chains);
    assert_eq!((&*tls.certificate, tls.more.len(), tls.only_known_names), ("/rest.pem", 4, false));
    for host in hosts.into_iter().chain(["other.test"]) {
        let (theirs, ours) = (explain(&config(&chains), &get(host)), decide(&program, &get(host)));
        assert_eq!(theirs.outcome, ours.outcome, "{host}");
    }
}

#[test]
fn versions_and_protocols_are_carried() {
    let speaks = |names: &[&str], common: Json| {
        let mut chain = chain(names, &["a"], None, 201);
        let own = &mut chain["transport_socket"]["typed_config"]["common_tls_context"];
        own.as_object_mut().unwrap().extend(common.as_object().unwrap().clone());
        chain
    };
    let params = |field: &str, version: &str| json!({ "tls_params": { field: version } });
    let (least, most) = ("tls_minimum_protocol_version", "tls_maximum_protocol_version");
    let offer = |all: &[&str]| json!({ "alpn_protocols": all });
    for (common, versions, alpn) in [
        (json!({}), vec![], vec![]),
        (params(least, "TLSv1_3"), vec![TlsVersion::Tls13], vec![]),
        (params(least, "TLSv1_2"), vec![], vec![]),
        (params(most, "TLSv1_2"), vec![TlsVersion::Tls12], vec![]),
        (offer(&["h2", "http/1.1"]), vec![], vec!["h2", "http/1.1"]),
        (offer(&["http/1.1", "http/1.0"]), vec![], vec!["http/1.1"]),
    ] {
        let (_, tls, _) = converted(&[speaks(&[], common.clone())]);
        let alpn = alpn.into_iter().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((tls.versions, tls.alpn), (versions, Some(alpn)), "{common}");
    }
    // Chains that differ get what all of them have together.
    let differ =
        [speaks(&["a.example"], params(least, "TLSv1_3")), speaks(&["b.example"], offer(&["h2"]))];
    let (_, tls, _) = converted(&differ);
    assert_eq!((tls.versions, tls.alpn), (vec![], None));
}

#[test]
fn chains_that_ask_clients_for_other_things_are_not_joined() {
    let (one, crl) = (validation(json!({})), validation(json!({ "crl": { "filename": "/c" } })));
    for (a, b) in [(None, Some(&one)), (Some(&one), None), (Some(&crl), Some(&one))] {
        let chains = [chain(&["a.example"], &["a"], a, 201), chain(&["b.example"], &["b"], b, 202)];
        let (program, tls, ledger) = converted(&chains);
        assert_eq!(tls.client_roots.as_deref(), a.map(|_| "/ca.pem"));
        assert!(asked(&ledger, "Another filter chain"));
        let outcome = decide(&program, &get("b.example")).outcome;
        assert!(!matches!(outcome, Outcome::Answered { status: 202, .. }), "{outcome:?}");
    }
    let chains =
        [chain(&["a.example"], &["a"], Some(&crl), 201), chain(&[], &["b"], Some(&crl), 202)];
    let (_, tls, ledger) = converted(&chains);
    assert_eq!((tls.client_roots.as_deref(), tls.crl.as_deref()), (Some("/ca.pem"), Some("/c")));
    assert!(!asked(&ledger, "Another filter chain"));
}

#[test]
fn revoked_clients_are_refused_or_nobody_is_let_in() {
    let crl = |more: Json| {
        let chain = chain(&[], &["a"], Some(&validation(more)), 200);
        converted(&[chain]).1.crl
    };
    assert_eq!(crl(json!({})), None);
    assert_eq!(crl(json!({ "crl": { "filename": "/ca.crl" } })).as_deref(), Some("/ca.crl"));
    assert_eq!(crl(json!({ "crl": { "inline_string": "x" } })).as_deref(), Some(""));
    let leaf = json!({ "crl": { "filename": "/c" }, "only_verify_leaf_cert_crl": true });
    assert_eq!(crl(leaf).as_deref(), Some(""));
}

#[test]
fn clients_of_other_names_are_refused_or_nobody_is_let_in() {
    let names = |more: Json| {
        let chain = chain(&[], &["a"], Some(&validation(more)), 200);
        let (_, tls, _) = converted(&[chain]);
        let names = tls.client_names.iter().map(|name| {
            let kind = if name.is_uri { "uri" } else { "dns" };
            format!("{kind} {:?} {}", name.part, name.text)
        });
        (tls.client_roots.unwrap(), names.collect::<Vec<_>>().join(", "))
    };
    let typed = |kind: &str, matcher: Json| json!({ "san_type": kind, "matcher": matcher });
    let all = |matchers: &[Json]| json!({ "match_typed_subject_alt_names": matchers });
    let cases = [
        (json!({}), "/ca.pem", ""),
        (
            all(&[
                typed("DNS", json!({ "exact": "a.example" })),
                typed("URI", json!({ "prefix": "spiffe://old/" })),
                typed("URI", json!({ "suffix": "/sa/b" })),
                typed("EMAIL", json!({ "exact": "a@b.example" })),
                typed("DNS", json!({ "safe_regex": { "regex": ".*" } })),
                typed("DNS", json!({ "exact": "a", "ignore_case": true })),
                typed("URI", json!({ "prefix": "" })),
            ]),
            "/ca.pem",
            "dns Exact a.example, uri Prefix spiffe://old/, uri Suffix /sa/b",
        ),
        (all(&[typed("IP_ADDRESS", json!({ "exact": "10.0.0.1" }))]), "", ""),
        (
            json!({ "match_subject_alt_names": [{ "exact": "x" }] }),
            "/ca.pem",
            "dns Exact x, uri Exact x",
        ),
        (json!({ "match_subject_alt_names": [{ "contains": "x" }] }), "", ""),
        (json!({ "verify_certificate_hash": ["00"] }), "", ""),
    ];
    for (more, roots, wanted) in cases {
        assert_eq!(names(more.clone()), (roots.to_owned(), wanted.to_owned()), "{more}");
    }
}
