//! Conversion and explanation agree, and every line is told of.

use std::collections::BTreeMap;

use super::{
    super::{config::Config, convert::convert, explain::explain, world::World},
    FILES, expected, legacy_files, no_files, request, rules, source,
};
use crate::{
    decide::decide,
    ledger::{Ledger, Verdict},
    program::{Accepts, Program},
    request::{Answer, Endpoint, Outcome, Request},
    source::Source,
};

/// Gives every name of the world an endpoint of its own.
pub(in super::super) fn populated(world: &mut World) {
    for (at, (_, known)) in (1u16..).zip(&mut world.names) {
        let [high, low] = at.to_be_bytes();
        let ip = std::net::Ipv4Addr::new(10, 9, high, low);
        let of = |last: u16| Endpoint::Address((ip, 8000 + last).into());
        *known = Some(vec![(of(1), 1.0), (of(2), 3.0)]);
    }
    world.local_addresses = Some((0..=255).map(|n| [10, 9, 0, n].into()).collect());
}

/// What matters of an answer: status, or endpoints with shares, and the target.
pub(in super::super) fn gist(answer: &Answer, with_port: bool) -> String {
    let Outcome::Forwarded(to) = &answer.outcome else {
        return match &answer.outcome {
            Outcome::Answered { status, .. } => status.to_string(),
            _ => "closed".into(),
        };
    };
    let mut shares: BTreeMap<String, f64> = BTreeMap::new();
    for (endpoint, share) in &to.endpoints {
        let at = match endpoint {
            Endpoint::Address(at) if with_port => at.to_string(),
            Endpoint::Address(at) => at.ip().to_string(),
            Endpoint::Name(name) => name.clone(),
        };
        *shares.entry(at).or_default() += share;
    }
    let all: f64 = shares.values().sum();
    let shares: Vec<_> =
        shares.iter().map(|(at, s)| format!("{at} {}", rounded(s / all))).collect();
    format!("{} as {}", shares.join(", "), to.target.as_deref().unwrap_or_default())
}

/// In thousandths, so that no common fraction is between two.
fn rounded(share: f64) -> f64 {
    (share * 1000.0 + 0.2137).floor()
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

pub(in super::super) fn both(
    config: &Config,
    world: &World,
    program: &Program,
    request: &Request,
) -> (Answer, Answer) {
    (explain(config, world, &legacy_files, request).unwrap(), decide(program, request))
}

#[test]
fn every_case_is_the_same_after_conversion() {
    let mut count = 0;
    for file in FILES {
        let config = Config::read(&source(file)).unwrap();
        let expected = expected(file);
        let mut world = super::world(&expected);
        populated(&mut world);
        let (program, ledger) = convert(&config, &world, &legacy_files, &[]);
        let silent = ledger.silent_lines(&source(file), is_blank);
        assert!(silent.is_empty(), "{file}: {silent:?}");
        for case in expected["cases"].as_array().unwrap() {
            let request = request(case);
            // Of HTTP/1.0, and of hops between Linkerds, the ledger says what differs.
            if case["headers"].get(":http10").is_some() {
                continue;
            }
            let with_port = !case["router"].as_str().unwrap().ends_with("outgoing");
            let (legacy, ours) = both(&config, &world, &program, &request);
            assert_eq!(gist(&legacy, with_port), gist(&ours, with_port), "{file} {}", case["id"]);
            count += 1;
        }
    }
    assert_eq!(count, 128);
}

fn converted(yaml: &str, world: &World) -> (Config, Program, Ledger) {
    let config = Config::read(&Source::of("l", yaml)).unwrap();
    let (program, ledger) = convert(&config, world, &no_files, &[]);
    let silent = ledger.silent_lines(&Source::of("l", yaml), is_blank);
    assert!(silent.is_empty(), "{silent:?} of\n{yaml}");
    (config, program, ledger)
}

fn says(ledger: &Ledger, line: u32, part: &str) -> bool {
    ledger.entries().iter().any(|entry| {
        entry.place.line == line
            && match &entry.verdict {
                Verdict::Exact => part == "exact",
                Verdict::Approximated { how } => how.contains(part),
                Verdict::Dropped { meaning } => meaning.contains(part),
                Verdict::Decision { question, .. } => question.contains(part),
            }
    })
}

#[test]
fn entries_say_what_they_have_become() {
    let yaml = "namers:\n- {kind: io.l5d.fs, rootDir: d}\nrouters:\n- protocol: http\n  servers: [{port: 1}]\n  dtab: |\n    \
        /svc => /$/io.buoyant.rinet/80 ;\n    /svc/a => /#/io.l5d.fs/a ;\n    /svc/b => /$/inet/10.0.0.1/80 ;\n    \
        /svc/c => /$/com.example.Mine ;\n    /other => /#/io.l5d.fs ;\n    /svc/d => /svc/d ;\n    /svc/e => ! ;\n";
    let mut world = World::of_names(["/#/io.l5d.fs/a"]);
    populated(&mut world);
    let (_, program, ledger) = converted(yaml, &world);
    assert!(says(&ledger, 7, "any name goes to /$/io.buoyant.rinet/80/<any>"), "{ledger:?}");
    assert!(says(&ledger, 8, "discovery knows now"));
    assert!(says(&ledger, 9, "exact"));
    assert!(says(&ledger, 10, "com.example.Mine is a class of a plugin"));
    assert!(says(&ledger, 11, "no name that is known leads here"));
    assert!(says(&ledger, 12, "delegated more than 100 times"));
    assert!(says(&ledger, 13, "exact"));
    let Accepts::Http { rules, otherwise, .. } = &program.listeners[0].accepts else { panic!() };
    assert_eq!(otherwise.status, 400);
    assert!(rules.len() >= 3, "{rules:?}");
}

#[test]
fn linkers_are_converted_together() {
    let file = "linkerd1-02-consul-per-host-tls.yaml";
    let config = Config::read(&source(file)).unwrap();
    let mut world = super::world(&expected(file));
    populated(&mut world);
    let (program, ledger) = convert(&config, &world, &no_files, &[]);
    let all: Vec<_> = program.pools.values().flat_map(|pool| &pool.members).collect();
    let is_4141 =
        |endpoint: &Endpoint| matches!(endpoint, Endpoint::Address(at) if at.port() == 4141);
    assert!(!all.is_empty() && !all.iter().any(|member| is_4141(&member.endpoint)));
    assert!(says(
        &ledger,
        28,
        "the hop to router incoming of the other host becomes the mesh's own"
    ));
    assert!(says(&ledger, 44, "the hop between Linkerds becomes the mesh's own"));
    // dc2 and reports-next are not what the incoming router of a host sends on to.
    assert!(says(&ledger, 28, "Which is meant?"));
    // Alone, the hop stays and somebody must say what it is.
    let mut text = source(file).text;
    text.truncate(text.find("- protocol: http\n  label: incoming").unwrap());
    let config = Config::read(&Source::of("l", &text)).unwrap();
    let (program, ledger) = convert(&config, &world, &no_files, &[]);
    assert!(program.pools.values().flat_map(|p| &p.members).all(|m| is_4141(&m.endpoint)));
    assert!(says(&ledger, 28, "requests go to port 4141 of each endpoint's host"));
    assert!(program.pools.values().all(|pool| pool.tls.is_some()));
}

#[test]
fn calls_are_connections_where_names_do_not_matter() {
    let yaml = "routers:\n- protocol: thrift\n  servers: [{port: 4114}]\n  dtab: /svc => /$/inet/127.0.0.1/9090\n";
    let (_, program, ledger) = converted(yaml, &World::default());
    let Accepts::Tcp { rules } = &program.listeners[0].accepts else { panic!() };
    assert_eq!(rules[0].pools.len(), 1);
    assert!(says(&ledger, 2, "calls are not read"));
    let told = yaml.replace("9090", "9090 ; /svc/get => /$/inet/127.0.0.1/9091");
    let (_, program, ledger) = converted(&told, &World::default());
    assert!(program.listeners.is_empty());
    assert!(says(&ledger, 2, "calls are told apart by name, as /svc/get shows"));
}

#[test]
fn older_spellings_and_unknown_keys_are_told() {
    let yaml = "routers:\n- protocol: http\n  servers:\n  - port: 1\n  timeoutMs: 100\n  tracers: []\n  client:\n    tls:\n      \
        kind: io.l5d.static\n    responseClassifier: {kind: io.l5d.retryableRead5XX}\n  baseDtab: |\n    /http => ! ;\n  \
        sevrice: {}\n  identifier:\n    kind: io.l5d.headerToken\n";
    let (_, _, ledger) = converted(yaml, &World::default());
    assert!(says(&ledger, 5, "today `service.totalTimeoutMs`"));
    assert!(says(&ledger, 6, "today `telemetry`"));
    assert!(says(&ledger, 9, "TLS has no kinds since 1.0"));
    assert!(says(&ledger, 10, "of `service` since 1.0"));
    assert!(says(&ledger, 11, "today `dtab`"));
    assert!(says(&ledger, 13, "`sevrice` is no key"));
    assert!(says(&ledger, 15, "older name of io.l5d.header.token"));
}

#[test]
fn longer_names_and_captures_have_rules() {
    let yaml = "namers:\n- {kind: io.l5d.fs, rootDir: d}\n- {kind: io.l5d.rewrite, prefix: /lower, pattern: '/svc-{a}', \
        name: '/files/{a}'}\nrouters:\n- protocol: http\n  servers: [{port: 1}]\n  dstPrefix: /\n  identifier:\n    kind: \
        io.l5d.header\n  dtab: |\n    /files => /#/io.l5d.fs ;\n    /lower => /#/lower ;\n    /api => /files/api ;\n    \
        /api/*/admin => ! ;\n    /api/v1/admin/ping => /files/web ;\n";
    let mut world = World::of_names(["/#/io.l5d.fs/api", "/#/io.l5d.fs/web"]);
    populated(&mut world);
    let (config, program, _) = converted(yaml, &world);
    for path in [
        "/api/v1",
        "/api/v2/admin",
        "/api/v.2/admin",
        "/api/v1/admin/ping",
        "/api/v1/admin/pong",
        "/lower/svc-web",
        "/lower/svc-gone",
    ] {
        let request = super::rules::get("h", "/", &[("l5d-name", path)]);
        let (legacy, ours) = both(&config, &world, &program, &request);
        assert_eq!(gist(&legacy, true), gist(&ours, true), "{path}");
    }
}

#[test]
fn lines_of_a_transformer_are_told_of() {
    let yaml = "namers:\n- kind: io.l5d.consul\n  transformers:\n  - kind: io.l5d.port\n    port: 4141\n  - kind: \
        io.l5d.k8s.daemonset\n    namespace: l5d\n    port: incoming\n    service: l5d\nrouters:\n- protocol: http\n  \
        servers: [{port: 1}]\n";
    let (_, _, ledger) = converted(yaml, &World::default());
    assert!(says(&ledger, 5, "where the hop goes"));
    assert!(says(&ledger, 9, "where the hop goes"));
}

/// Names that lead to what is known, among more than can be tried; and in any letters, where
/// a registry is asked in small ones.
#[test]
fn names_are_found_from_what_they_lead_to() {
    let apps: Vec<String> = (0..40).map(|n| format!("/#/io.l5d.consul/dc1/app{n}-v1")).collect();
    let mut world = World::of_names(apps);
    world.names.insert("/#/io.l5d.consul/dc1/com".into(), None);
    populated(&mut world);
    let yaml = "namers:
- {kind: io.l5d.consul, useHealthCheck: true}
- {kind: io.l5d.rewrite, prefix: /v, pattern: '/{v}/{name}', name: '/#/io.l5d.consul/dc1/{name}-{v}'}
routers:
- {protocol: http, label: paths, identifier: {kind: io.l5d.path, segments: 2}, servers: [{port: 1}], dtab: '/svc => /#/v ; /svc/*/app7 => ! ;'}
- {protocol: http, label: hosts, servers: [{port: 2}], dtab: '/svc => /$/io.buoyant.http.domainToPathPfx/d ; /d => /#/io.l5d.consul/dc1 ; /svc/APP9-V1 => ! ;'}
";
    let (config, program, _) = converted(yaml, &world);
    for (listener, host, target, is_there) in [
        ("paths", "h", "/v1/app31/x", true),
        ("paths", "h", "/v1/app7/x", false),
        ("paths", "h", "/v2/app31/x", false),
        ("hosts", "app31-v1", "/", true),
        ("hosts", "APP31-v1", "/", true),
        ("hosts", "app9-v1", "/", true),
        ("hosts", "APP9-V1", "/", false),
        ("hosts", "any.com", "/", true),
        ("hosts", "any.where.com", "/", true),
        ("hosts", "any.org", "/", false),
    ] {
        let request = Request { listener: Some(listener.into()), ..rules::get(host, target, &[]) };
        let theirs = explain(&config, &world, &no_files, &request).unwrap();
        let ours = decide(&program, &request);
        let id = format!("{listener} {host} {target}");
        assert_eq!(gist(&theirs, false), gist(&ours, false), "{id}");
        assert_eq!(matches!(ours.outcome, Outcome::Forwarded(_)), is_there, "{id}");
    }
}

#[test]
fn what_clients_say_of_the_context_does_not_go_on_where_it_is_cleared() {
    let yaml = "routers:\n- protocol: http\n  servers: [{port: 4140, clearContext: true}]\n  dtab: /svc => /$/inet/10.0.0.1/80\n";
    let removed = |yaml: &str| {
        let (_, program, _) = converted(yaml, &World::default());
        let Accepts::Http { rules, .. } = &program.listeners[0].accepts else { panic!() };
        let forwards = rules.iter().filter_map(|rule| match &rule.then {
            crate::program::Then::Forward(forward) => Some(forward.remove.clone()),
            crate::program::Then::Reply(_) => None,
        });
        forwards.collect::<Vec<_>>()
    };
    let all = removed(yaml);
    assert!(!all.is_empty());
    for own in all {
        assert!(own.contains(&"l5d-dtab".to_owned()) && own.contains(&"l5d-ctx-dtab".to_owned()));
    }
    assert!(removed(&yaml.replace(", clearContext: true", "")).iter().all(Vec::is_empty));
}

#[test]
fn nobody_is_left_alone_where_that_is_switched_off() {
    let yaml = "routers:\n- protocol: http\n  servers: [{port: 4140}]\n  dtab: /svc => /$/inet/10.0.0.1/80\n  client: {failureAccrual: {kind: none}}\n";
    let failures = |yaml: &str| {
        let (_, program, _) = converted(yaml, &World::default());
        let of = program.pools.values().map(|pool| pool.outlier.as_ref().map(|one| one.failures));
        of.collect::<Vec<_>>()
    };
    assert_eq!(failures(yaml), [Some(0)]);
    assert_eq!(
        failures(&yaml.replace("kind: none", "kind: io.l5d.consecutiveFailures")),
        [Some(5)]
    );
}

#[test]
fn hosts_and_ports_that_clients_name_are_asked_about() {
    let yaml = "routers:\n- protocol: http\n  servers: [{port: 4140}]\n  dtab: |\n    /hp => /$/inet ;\n    /svc => /$/io.buoyant.hostportPfx/hp ;\n";
    let (_, _, ledger) = converted(yaml, &World::default());
    let asks = |verdict: &Verdict| matches!(verdict, Verdict::Decision { question, .. } if question.contains("hosts and ports that clients name"));
    assert_eq!(ledger.entries().iter().filter(|entry| asks(&entry.verdict)).count(), 2);
}
