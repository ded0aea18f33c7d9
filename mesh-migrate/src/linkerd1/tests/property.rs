//! Random configurations: nothing panics, no line is silent, and conversion does what
//! explanation says, or the ledger says that it may not.

use proptest::prelude::*;

use super::{
    super::{
        config::{Config, Protocol},
        convert::convert,
        dtab::{Dentry, Dtab},
        explain::delegate,
        world::{Ingress, IngressRule, World},
    },
    conversion::{both, gist, populated},
    no_files,
};
use crate::{
    ledger::Verdict,
    request::{Http, Kind, Request},
    source::Source,
    testing::same_each_time,
};

const LABELS: [&str; 8] = ["a", "b", "web", "x.y", "GET", "web.corp", "80", "v1"];

fn label() -> impl Strategy<Value = String> {
    prop::sample::select(&LABELS[..]).prop_map(str::to_owned)
}

/// Where names lead: to discovery, to each other, to namers that every Linkerd has.
fn leaf() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (prop::sample::select(&["a", "b", "web", "none"][..])).prop_map(|l| format!("/#/io.l5d.fs/{l}")),
        2 => Just("/#/io.l5d.fs".to_owned()),
        2 => (prop::sample::select(&["dc1", "dc2"][..])).prop_map(|dc| format!("/#/c/{dc}")),
        1 => Just("/$/inet/10.0.0.1/80".to_owned()),
        1 => Just("/$/io.buoyant.rinet/80".to_owned()),
        1 => Just("/$/inet".to_owned()),
        1 => Just("/$/io.buoyant.http.domainToPathPfx/h".to_owned()),
        1 => Just("/$/io.buoyant.http.subdomainOfPfx/corp/p".to_owned()),
        1 => Just("/$/io.buoyant.hostportPfx/p".to_owned()),
        1 => Just("/$/io.buoyant.porthostPfx/p".to_owned()),
        1 => Just("/$/io.buoyant.http.anyMethodPfx/p".to_owned()),
        1 => Just("/$/io.buoyant.http.status/204".to_owned()),
        1 => Just("/$/nil".to_owned()),
        1 => Just("/$/com.example.Mine".to_owned()),
        1 => Just("/#/rw".to_owned()),
        3 => prop::sample::select(&["/p", "/h", "/q", "/svc/a", "/p/web", "/h/corp"][..]).prop_map(str::to_owned),
    ]
}

fn tree() -> impl Strategy<Value = String> {
    let simple = prop_oneof![
        8 => leaf(),
        1 => Just("~".to_owned()),
        1 => Just("!".to_owned()),
        1 => Just("$".to_owned()),
    ];
    simple.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|t| format!("({})", t.join(" | "))),
            prop::collection::vec(
                (prop::sample::select(&["", "1 * ", "0.25*", "3 *"][..]), inner),
                2..4
            )
            .prop_map(|t| {
                let t: Vec<_> = t.into_iter().map(|(w, t)| format!("{w}{t}")).collect();
                format!("({})", t.join("&"))
            }),
        ]
    })
}

fn entry() -> impl Strategy<Value = String> {
    let first = prop::sample::select(&["/svc", "/p", "/h", "/q", "/*"][..]);
    let more = prop::collection::vec(prop_oneof![6 => label(), 1 => Just("*".to_owned())], 0..3);
    let blank = prop::sample::select(&[" ", "  ", "\n      ", " # why\n      "][..]);
    (first, more, blank.clone(), tree(), blank).prop_map(|(first, more, one, tree, two)| {
        let more: String = more.iter().map(|label| format!("/{label}")).collect();
        format!("{first}{more}{one}=>{two}{tree}")
    })
}

fn dtab() -> impl Strategy<Value = String> {
    prop::collection::vec(entry(), 0..7).prop_map(|entries| entries.join(" ;\n      "))
}

const IDENTIFIERS: [&str; 14] = [
    "{kind: io.l5d.header.token}",
    "{kind: io.l5d.header.token, header: x-svc}",
    "{kind: io.l5d.methodAndHost}",
    "{kind: io.l5d.path}",
    "{kind: io.l5d.path, segments: 1, consume: true}",
    "{kind: io.l5d.path, segments: 2, consume: true}",
    "{kind: io.l5d.header}",
    "{kind: io.l5d.header.path}",
    "{kind: io.l5d.header.path, segments: 1}",
    "{kind: io.l5d.header.path, segments: 2}",
    "[{kind: io.l5d.header.path, header: x-svc, segments: 1}, {kind: io.l5d.header.token}]",
    "{kind: io.l5d.static, path: /web}",
    "[{kind: io.l5d.header.token, header: x-svc}, {kind: io.l5d.path}]",
    "{kind: io.l5d.ingress}",
];

const SERVICES: [&str; 4] = [
    "{}",
    "{totalTimeoutMs: 10, responseClassifier: {kind: io.l5d.http.retryableRead5XX}}",
    "{kind: io.l5d.static, configs: [{prefix: /svc/a, totalTimeoutMs: 10}, {prefix: '/svc/{x}', retries: {backoff: {kind: constant, ms: 5}}, responseClassifier: {kind: io.l5d.http.retryableAll5XX}}]}",
    "{wrong: 1, retries: {budget: {minRetriesPerSec: 0, percentCanRetry: 0}}}",
];

const CLIENTS: [&str; 4] = [
    "{}",
    "{loadBalancer: {kind: ewma, decayTimeMs: 1}, failureAccrual: {kind: none}, tls: {commonName: x}}",
    "{kind: io.l5d.static, configs: [{prefix: '/#/io.l5d.fs/{s}', tls: {commonName: '{s}.corp', disableValidation: true}}, {prefix: /, requestAttemptTimeoutMs: 7}]}",
    "{failureAccrual: {kind: io.l5d.successRate, successRate: 0.9, requests: 5, backoff: {kind: jittered, minMs: 1, maxMs: 9}}, hostConnectionPool: {maxSize: 3, minSize: 1}}",
];

const INTERPRETERS: [&str; 4] = [
    "{kind: default}",
    "{kind: default, transformers: [{kind: io.l5d.port, port: 4141}]}",
    "{kind: default, transformers: [{kind: io.l5d.localhost}, {kind: io.l5d.specificHost, host: 10.9.0.1}]}",
    "{kind: io.l5d.namerd, dst: /x}",
];

prop_compose! {
    fn config()(
        dtab in dtab(),
        identifier in prop::sample::select(&IDENTIFIERS[..]),
        service in prop::sample::select(&SERVICES[..]),
        client in prop::sample::select(&CLIENTS[..]),
        interpreter in prop_oneof![5 => Just(INTERPRETERS[0]), 1 => prop::sample::select(&INTERPRETERS[..])],
        style in 0..3u8,
        protocol in prop_oneof![12 => Just("http"), 6 => Just("h2"), 1 => Just("thrift")],
    ) -> String {
        let dtab = match style {
            0 => format!("|\n      {dtab}\n"),
            1 => format!("'{}'\n", dtab.replace("# why", "")),
            _ => format!("\"{}\"\n", dtab.replace('\n', "\\n\\\n")),
        };
        format!(
            "# random\nnamers:\n- kind: io.l5d.fs\n  rootDir: d\n- {{kind: io.l5d.consul, prefix: /c,\n   useHealthCheck: true}}\n\
             - kind: io.l5d.rewrite\n  prefix: /rw\n  pattern: '/{{x}}'\n  name: '/#/io.l5d.fs/{{x}}'\n\
             routers:\n- protocol: {protocol}\n  label: r\n  servers: [{{port: 4140}}]\n  identifier: {identifier}\n  \
             service: {service}\n  client: {client}\n  interpreter: {interpreter}\n  # table\n  dtab: {dtab}"
        )
    }
}

prop_compose! {
    fn request()(
        host in prop::option::of(prop::sample::select(&[
            "a", "b", "web", "web:80", "web.corp", "web.corp:80", "A", "x.y", "none", "a.b.corp", "10.0.0.1:80",
        ][..])),
        header in prop::option::of(prop::sample::select(&["a", "/a", "/web/v1", "web", "/none/x/y"][..])),
        target in prop::sample::select(&[
            "/", "/a", "/a/b?q", "/web/v1/x", "/web/", "/x.y/b//", "//a", "/none", "/web//x",
        ][..]),
        method in prop::sample::select(&["GET", "POST", "PROPFIND"][..]),
    ) -> Request {
        let mut headers = Vec::new();
        for (name, value) in [("x-svc", header), ("l5d-name", header)] {
            headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        }
        let http = Http {
            method: method.into(), host: host.map(str::to_owned), target: target.into(), headers, is_http10: false,
        };
        Request { listener: Some("r".into()), source: [127, 0, 0, 1].into(), kind: Kind::Http(http) }
    }
}

fn world() -> World {
    let mut world = World::of_names([
        "/#/io.l5d.fs/a",
        "/#/io.l5d.fs/b",
        "/#/io.l5d.fs/web",
        "/#/c/dc1/web",
        "/#/c/dc2/a",
        "/#/c/dc1/x.y",
    ]);
    populated(&mut world);
    let rule = |host: Option<&str>, path: Option<&str>, service: &str| IngressRule {
        host: host.map(str::to_owned),
        path: path.map(str::to_owned),
        service: service.into(),
        port: "80".into(),
    };
    world.ingresses = Some(vec![Ingress {
        namespace: "a".into(),
        class: None,
        rules: vec![rule(Some("web.corp"), None, "web"), rule(None, Some("/a(/.*)?"), "a")],
        default_backend: None,
    }]);
    world
}

fn is_blank(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.chars().all(|c| "\\n\"' ".contains(c))
}

proptest! {
    #![proptest_config(same_each_time(100))]

    #[test]
    fn conversion_does_what_explanation_says(
        yaml in config(),
        requests in prop::collection::vec(request(), 6),
    ) {
        let source = Source::of("l", &yaml);
        let config = match Config::read(&source) {
            Ok(config) => config,
            Err(problem) => panic!("{problem}\n{yaml}"),
        };
        let world = world();
        let (program, ledger) = convert(&config, &world, &no_files, &[]);
        prop_assert_eq!(ledger.silent_lines(&source, is_blank), Vec::<u32>::new(), "{}", yaml);
        let is_thrift = matches!(config.routers[0].protocol, Protocol::Rpc(_));
        if program.listeners.is_empty() || is_thrift {
            return Ok(());
        }
        for request in &requests {
            let (legacy, ours) = both(&config, &world, &program, request);
            // An empty share fails in Linkerd, and is 502 where it is all there is.
            let (legacy, ours) = (gist(&legacy, true), gist(&ours, true));
            if legacy == ours || legacy.starts_with("NaN") || (ours == "503" && legacy == "502") {
                continue;
            }
            let found = delegate(&config, &world, &no_files, request).unwrap();
            // Where it may differ, we answer rather than send it elsewhere, unless somebody
            // is asked which names there are, or about a `/` at the end of this path.
            let ends = request_ends_with_slash(request);
            let is_asked = |entry: &crate::ledger::Entry| {
                let said = format!("{:?}", entry.verdict);
                said.contains("more names than were tried")
                    || ends && said.contains("at the end of a path")
            };
            let is_asked = ledger.entries().iter().any(is_asked);
            let told = told_lines(&found, &ledger.entries());
            prop_assert!(told || is_asked, "{legacy}\n{ours}\n{request:?}\n{found}\n{yaml}\n{:#?}", program.listeners);
            let is_safe = ours.parse::<u16>().is_ok() || is_asked;
            prop_assert!(is_safe, "{legacy}\n{ours}\n{request:?}\n{found}\n{yaml}\n{:#?}", program.listeners);
        }
    }

    #[test]
    fn tables_are_read_as_they_are_printed(text in dtab()) {
        let dtab = Dtab::read("d", &text).unwrap();
        let printed: Vec<String> = dtab.entries.iter().map(Dentry::to_string).collect();
        let again = Dtab::read("d", &printed.join(";")).unwrap();
        let trees = |dtab: &Dtab| dtab.entries.iter().map(|e| (e.prefix.clone(), e.tree.clone())).collect::<Vec<_>>();
        prop_assert_eq!(trees(&dtab), trees(&again));
    }

    #[test]
    fn nothing_panics(text in "[/a*$#~!|&;()=>. 0-9\\\\x\n-]{0,60}", yaml in "[a-z:{}\\[\\] ,\n\"'|-]{0,80}") {
        let _ = Dtab::read("d", &text);
        let _ = Config::read(&Source::of("l", &yaml));
        let _ = Config::read(&Source::of("l", &format!("routers: [{{protocol: http, dtab: {yaml}}}]")));
        let routers = format!("routers: [{{protocol: http, servers: [{{port: 1}}], {yaml}: {yaml}}}]");
        if let Ok(config) = Config::read(&Source::of("l", &routers)) {
            let _ = convert(&config, &World::default(), &no_files, &[]);
        }
    }
}

fn request_ends_with_slash(request: &Request) -> bool {
    matches!(&request.kind, Kind::Http(http) if http.path().ends_with('/'))
}

/// Whether the ledger says of a line on the way that it may differ.
fn told_lines(found: &super::super::explain::Delegation, entries: &[crate::ledger::Entry]) -> bool {
    let mut lines: Vec<u32> = found.identifier.iter().map(|place| place.line).collect();
    let mut trees: Vec<_> = found.tree.iter().collect();
    while let Some(tree) = trees.pop() {
        lines.extend(tree.entry.iter().map(|(place, _)| place.line));
        trees.extend(&tree.below);
    }
    let differs = |entry: &&crate::ledger::Entry| entry.verdict != Verdict::Exact;
    entries
        .iter()
        .filter(differs)
        .any(|e| lines.iter().any(|l| (e.place.line..=e.last_line).contains(l)))
}
