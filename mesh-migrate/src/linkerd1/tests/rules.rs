//! Rules of the manual and of Finagle, one by one.

use super::{
    super::{config::Config, dtab::Dtab, explain::delegate, world::*},
    no_files, now,
};
use crate::{
    request::{Endpoint, Http, Kind, Request},
    source::Source,
};

pub(in super::super) fn get(host: &str, target: &str, headers: &[(&str, &str)]) -> Request {
    let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    let http = Http {
        method: "GET".into(),
        host: Some(host.to_owned()).filter(|host| !host.is_empty()),
        target: target.into(),
        headers,
        is_http10: false,
    };
    Request { listener: None, source: "127.0.0.1".parse().unwrap(), kind: Kind::Http(http) }
}

/// What becomes of a request: name, arrow, and where it goes with shares.
fn said(yaml: &str, world: &World, request: &Request) -> String {
    let config = match Config::read(&Source::of("l", yaml)) {
        Ok(config) => config,
        Err(problem) => return problem.to_string(),
    };
    let found = match delegate(&config, world, &no_files, request) {
        Ok(found) => found,
        Err(problem) => return problem.to_string(),
    };
    let service = found.service.as_ref().map_or("-".into(), ToString::to_string);
    let to: Vec<String> = found
        .bound
        .iter()
        .map(|t| format!("{:.2} {}{}", t.share, t.client, t.residual()))
        .collect();
    let status = found.status.map_or(String::new(), |status| format!(" {status}"));
    format!("{service} -> {}{status}", to.join(", ")).replace("1.00 ", "")
}

fn with_dtab(dtab: &str) -> String {
    format!(
        "namers: [{{kind: io.l5d.fs, rootDir: d}}, {{kind: io.l5d.consul, prefix: /c}}]\n\
         routers: [{{protocol: http, servers: [{{port: 1}}], dtab: \"{dtab}\"}}]\n"
    )
}

#[test]
fn delegation() {
    let world = World::of_names(["/#/io.l5d.fs/a", "/#/io.l5d.fs/b", "/#/c/dc1/web"]);
    let cases = [
        ("/svc => /#/io.l5d.fs", "a", "/svc/a -> /#/io.l5d.fs/a"),
        ("/svc => /#/io.l5d.fs", "A", "/svc/A -> NEG 502"),
        // The last entry is asked first, however long its prefix.
        ("/svc/a => /#/io.l5d.fs/b; /svc => /#/io.l5d.fs", "a", "/svc/a -> /#/io.l5d.fs/a"),
        ("/svc => /#/io.l5d.fs; /svc/a => /#/io.l5d.fs/b", "a", "/svc/a -> /#/io.l5d.fs/b"),
        ("/svc => /#/io.l5d.fs; /svc => ~", "a", "/svc/a -> /#/io.l5d.fs/a"),
        ("/svc => /#/io.l5d.fs; /svc => $", "a", "/svc/a -> EMPTY 502"),
        ("/svc => /#/io.l5d.fs; /svc => !", "a", "/svc/a -> FAIL 502"),
        // Prefixes end at a slash, and `*` is one label, whose value is lost.
        ("/svc => ! ; /svc/a/b => /#/io.l5d.fs/a", "a", "/svc/a -> FAIL 502"),
        ("/*/a => /#/io.l5d.fs/b", "a", "/svc/a -> /#/io.l5d.fs/b"),
        ("/* => /#/io.l5d.fs", "a", "/svc/a -> ERROR 502"),
        ("/svc => /#/io.l5d.fs/a/x/y", "z", "/svc/z -> /#/io.l5d.fs/a/x/y/z"),
        // Only what no entry is for goes to namers; one `~` alone is none.
        ("/svc => /#/io.l5d.fs; /#/io.l5d.fs/a => /#/io.l5d.fs/b", "a", "/svc/a -> /#/io.l5d.fs/b"),
        ("/svc => /#/io.l5d.fs; /#/io.l5d.fs/a => ~", "a", "/svc/a -> /#/io.l5d.fs/a"),
        (
            "/svc => /#/io.l5d.fs; /#/io.l5d.fs/a => ~; /#/io.l5d.fs/a => ~",
            "a",
            "/svc/a -> NEG 502",
        ),
        // Unions.
        (
            "/svc => 3 * /#/io.l5d.fs/a & /#/io.l5d.fs/b",
            "x",
            "/svc/x -> 0.75 /#/io.l5d.fs/a/x, 0.25 /#/io.l5d.fs/b/x",
        ),
        ("/svc => 3 * ~ & 2 * ! & /#/io.l5d.fs/b", "x", "/svc/x -> /#/io.l5d.fs/b/x"),
        ("/svc => ~ & !", "x", "/svc/x -> NEG 502"),
        ("/svc => $ & /#/io.l5d.fs/b", "x", "/svc/x -> 0.50 EMPTY, 0.50 /#/io.l5d.fs/b/x"),
        (
            "/svc => (/#/io.l5d.fs/a & /#/io.l5d.fs/b) & 3 * /#/c/dc1/web",
            "x",
            "/svc/x -> 0.12 /#/io.l5d.fs/a/x, 0.12 /#/io.l5d.fs/b/x, 0.75 /#/c/dc1/web/x",
        ),
        // Alternatives.
        ("/svc => /#/io.l5d.fs/x | ~ | /#/io.l5d.fs/b | !", "q", "/svc/q -> /#/io.l5d.fs/b/q"),
        ("/svc => ! | /#/io.l5d.fs/b", "q", "/svc/q -> FAIL 502"),
        ("/svc => $ | /#/io.l5d.fs/b", "q", "/svc/q -> EMPTY 502"),
        // inet always binds: what is above it is dead.
        (
            "/svc => /#/io.l5d.fs; /svc => /$/inet/10.0.0.1/80",
            "a",
            "/svc/a -> /$/inet/10.0.0.1/80/a",
        ),
        (
            "/svc => /$/io.buoyant.http.status/204",
            "a",
            "/svc/a -> /$/io.buoyant.http.status/204/a 204",
        ),
        ("/svc => /$/com.example.Mine", "a", "/svc/a -> ERROR 502"),
        ("/svc => /#/c/dc1", "WEB", "/svc/WEB -> /#/c/dc1/WEB"),
        ("", "a", "/svc/a -> NEG 502"),
        ("/svc => /svc", "a", "/svc/a -> ERROR 502"),
    ];
    for (dtab, host, expected) in cases {
        assert_eq!(said(&with_dtab(dtab), &world, &get(host, "/", &[])), expected, "{dtab}");
    }
}

#[test]
fn a_table_without_end_is_an_error_at_once() {
    let mut wide = String::new();
    for n in 0..30 {
        wide += &format!("/a{n} => /a{0} | /a{0} & /a{0} ;", n + 1);
    }
    let deep = format!("/svc => {}/svc{}", "(~|".repeat(30), ")".repeat(30));
    let long = format!("/svc => /svc{}", "/a".repeat(10_000));
    let many = "/svc => /svc | /svc ; ".repeat(10_000);
    for dtab in [
        "/svc => /svc/x",
        "/svc => /a; /a => /svc",
        "/svc => /svc | /svc & /svc",
        &format!("/svc => /a0; {wide}"),
        &deep,
        &long,
        &many,
    ] {
        let config = Config::read(&Source::of("l", &with_dtab(dtab))).unwrap();
        // The best of three: others use the machine, too.
        let times = [(); 3].map(|()| {
            let start = now();
            let request = get("a", "/", &[]);
            let found = delegate(&config, &World::default(), &no_files, &request).unwrap();
            assert_eq!(found.status, Some(502), "{found}");
            start.elapsed()
        });
        let best = times.iter().min().unwrap();
        assert!(best.as_millis() < 1000, "{best:?} {dtab:.60}");
    }
}

#[test]
fn per_request_tables() {
    let world = World::of_names(["/#/io.l5d.fs/a", "/#/io.l5d.fs/b", "/#/io.l5d.fs/d"]);
    let yaml = with_dtab("/svc => /#/io.l5d.fs");
    let of = |headers: &[(&str, &str)]| said(&yaml, &world, &get("a", "/", headers));
    let b = ("L5d-Dtab", "/svc/a => /#/io.l5d.fs/b");
    assert_eq!(of(&[b]), "/svc/a -> /#/io.l5d.fs/b");
    let context = ("l5d-ctx-dtab", "/svc/a => /#/io.l5d.fs/d");
    assert_eq!(of(&[b, context]), "/svc/a -> /#/io.l5d.fs/b");
    assert_eq!(of(&[context]), "/svc/a -> /#/io.l5d.fs/d");
    assert_eq!(of(&[b, ("l5d-dtab", "/svc/a => ~")]), "/svc/a -> /#/io.l5d.fs/b");
    assert_eq!(of(&[b, ("l5d-dtab", "/svc/a => !")]), "/svc/a -> FAIL 502");
    assert_eq!(of(&[("l5d-dtab", "nonsense")]), "- -> UNIDENTIFIED 400");
    let cleared = yaml.replace("{port: 1}", "{port: 1, clearContext: true}");
    assert_eq!(said(&cleared, &world, &get("a", "/", &[b])), "/svc/a -> /#/io.l5d.fs/a");
}

fn with_identifier(protocol: &str, identifier: &str) -> String {
    format!("routers: [{{protocol: {protocol}, identifier: {identifier}, dtab: '/svc => /$/nil'}}]")
}

/// The name of a request, without what comes of it.
fn name(protocol: &str, identifier: &str, request: &Request) -> String {
    let world = World {
        ingresses: Some(vec![Ingress {
            namespace: "prod".into(),
            class: Some("linkerd".into()),
            rules: vec![IngressRule {
                host: Some("web.corp".into()),
                path: Some("/a/.*".into()),
                service: "web".into(),
                port: "http".into(),
            }],
            default_backend: Some(("rest".into(), "80".into())),
        }]),
        ..World::default()
    };
    let said = said(&with_identifier(protocol, identifier), &world, request);
    said.split(" -> ").next().unwrap().to_owned()
}

#[test]
fn identifiers() {
    let http = [
        ("{kind: io.l5d.header.token}", get("Web:80", "/", &[]), "/svc/Web:80"),
        ("{kind: io.l5d.header.token}", get("", "/", &[]), "-"),
        (
            "{kind: io.l5d.header.token, header: x-Svc}",
            get("", "/", &[("X-svc", "a/b")]),
            r"/svc/\x61\x2f\x62",
        ),
        ("{kind: io.l5d.header}", get("", "/", &[("l5d-name", "/a/b")]), "/svc/a/b"),
        ("{kind: io.l5d.header}", get("", "/", &[("l5d-name", "a")]), "-"),
        ("[{kind: io.l5d.header}, {kind: io.l5d.header.token}]", get("w", "/", &[]), "/svc/w"),
        (
            "[{kind: io.l5d.header}, {kind: io.l5d.header.token}]",
            get("w", "/", &[("l5d-name", "bad")]),
            "-",
        ),
        ("{kind: io.l5d.methodAndHost}", get("WEB:80", "/x", &[]), "/svc/1.1/GET/web:80"),
        (
            "{kind: io.l5d.methodAndHost, httpUriInDst: true}",
            get("w", "/x/y?q", &[]),
            "/svc/1.1/GET/w/x/y",
        ),
        ("{kind: io.l5d.path, segments: 2}", get("w", "/x/y/z", &[]), "/svc/x/y"),
        ("{kind: io.l5d.path, segments: 2}", get("w", "/x//", &[]), "-"),
        ("{kind: io.l5d.path}", get("w", "/?x=/a", &[]), "-"),
        ("{kind: io.l5d.static, path: /x/y}", get("w", "/", &[]), "/svc/x/y"),
        ("{kind: io.l5d.ingress}", get("web.corp:80", "/a/b", &[]), "/svc/prod/http/web"),
        ("{kind: io.l5d.ingress}", get("web.corp", "/b/a/b", &[]), "/svc/prod/80/rest"),
        ("{kind: io.l5d.ingress, ignoreDefaultBackends: true}", get("x", "/a/b", &[]), "-"),
        ("{kind: io.l5d.ingress, namespace: dev}", get("web.corp", "/a/b", &[]), "-"),
        ("{kind: io.l5d.ingress, ingressClassAnnotation: x}", get("web.corp", "/a/b", &[]), "-"),
        (
            "{kind: io.l5d.k8s.istio}",
            get("w", "/", &[]),
            "l:1:40: io.l5d.k8s.istio asks Istio Pilot for its routes, which no file holds",
        ),
        (
            "{kind: io.l5d.header.token}",
            get("x", "http://u@web:80/a", &[]),
            r"/svc/\x75\x40\x77\x65\x62\x3a\x38\x30",
        ),
    ];
    for (identifier, request, expected) in http {
        assert_eq!(name("http", identifier, &request), expected, "{identifier}");
    }
}

#[test]
fn identifiers_of_h2() {
    let h2 = [
        ("{kind: io.l5d.header.token}", get("Web:80", "/", &[]), "/svc/Web:80"),
        ("{kind: io.l5d.header.path}", get("w", "/a.B/C/?q", &[]), "/svc/a.B/C"),
        ("{kind: io.l5d.header.path, segments: 1}", get("w", "/a.B/C", &[]), "/svc/a.B"),
        ("{kind: io.l5d.header.path, segments: 3}", get("w", "/a.B/C", &[]), "-"),
        ("{kind: io.l5d.header.path}", get("w", "/", &[]), "-"),
        ("{kind: io.l5d.header.path}", get("w", "/a//b", &[]), "-"),
        ("{kind: io.l5d.header.path, header: x}", get("w", "/", &[("x", "/p")]), "/svc/p"),
    ];
    for (identifier, request, expected) in h2 {
        assert_eq!(name("h2", identifier, &request), expected, "{identifier}");
    }
}

#[test]
fn a_consumed_path_keeps_its_query() {
    let yaml = with_identifier("http", "{kind: io.l5d.path, consume: true}");
    let config = Config::read(&Source::of("l", &yaml)).unwrap();
    for (target, expected) in [
        ("/a", "/"),
        ("/a?x=/y", "/?x=/y"),
        ("/a/b/", "/b/"),
        ("/a/", "/"),
        ("/a/b//c?d", "/b//c?d"),
    ] {
        let found =
            delegate(&config, &World::default(), &no_files, &get("h", target, &[])).unwrap();
        assert_eq!(found.upstream_uri, expected, "{target}");
    }
}

fn at(endpoints: &[&str]) -> Known {
    Some(endpoints.iter().map(|at| (Endpoint::Address(at.parse().unwrap()), 1.0)).collect())
}

/// Transformers, the client's name, and its endpoints.
const TRANSFORMERS: [(&str, &str, &str); 8] = [
    (
        "{kind: io.l5d.port, port: 4141}",
        "/%/io.l5d.port/4141/#/io.l5d.consul/dc/web",
        "10.1.0.1:4141 10.2.0.1:4141",
    ),
    ("{kind: io.l5d.localhost}", "/%/io.l5d.localhost/#/io.l5d.consul/dc/web", "10.1.0.1:80"),
    (
        "{kind: io.l5d.specificHost, host: 10.2.0.1}",
        "/%/io.l5d.specificHost/#/io.l5d.consul/dc/web",
        "10.2.0.1:81",
    ),
    (
        "{kind: io.l5d.k8s.localnode}",
        "/%/io.l5d.k8s.localnode/10.2.0.9/#/io.l5d.consul/dc/web",
        "10.2.0.1:81",
    ),
    (
        "{kind: io.l5d.k8s.daemonset, namespace: l5d, service: l5d, port: incoming}",
        "/%/io.l5d.k8s.daemonset/l5d/incoming/l5d/#/io.l5d.consul/dc/web",
        "10.2.0.7:4141",
    ),
    (
        "{kind: io.l5d.replace, path: /$/inet/10.9.9.9/1}",
        "/%/io.l5d.replace/$/inet/10.9.9.9/1",
        "10.9.9.9:1",
    ),
    (
        "{kind: io.l5d.const, path: /$/inet/10.9.9.9/1}",
        "/%/io.l5d.const/$/inet/10.9.9.9/1",
        "10.9.9.9:1",
    ),
    (
        "{kind: io.l5d.port, port: 1}, {kind: io.l5d.localhost}",
        "/%/io.l5d.localhost/%/io.l5d.port/1/#/io.l5d.consul/dc/web",
        "10.1.0.1:1",
    ),
];

#[test]
fn transformers() {
    let mut world = World {
        local_addresses: Some(vec!["10.1.0.1".parse().unwrap()]),
        environment: [("POD_IP".to_owned(), "10.2.0.9".to_owned())].into(),
        ..World::default()
    };
    world.names.insert("/#/io.l5d.consul/dc/web".into(), at(&["10.1.0.1:80", "10.2.0.1:81"]));
    world.names.insert("/#/io.l5d.k8s/l5d/incoming/l5d".into(), at(&["10.2.0.7:4141"]));
    for on in ["interpreter", "namer"] {
        for (transformers, client, endpoints) in TRANSFORMERS {
            let place = |name: &str| if on == name { transformers } else { "" };
            let yaml = format!(
                "namers: [{{kind: io.l5d.consul, transformers: [{}]}}]\nrouters: [{{protocol: http, \
                 dtab: /svc => /#/io.l5d.consul/dc, interpreter: {{transformers: [{}]}}}}]",
                place("namer"),
                place("interpreter")
            );
            let config = Config::read(&Source::of("l", &yaml)).unwrap();
            let found = delegate(&config, &world, &no_files, &get("web", "/", &[])).unwrap();
            assert_eq!(found.bound[0].client.to_string(), client, "{transformers}");
            let super::super::explain::Client::Name(bound) = &found.bound[0].client else {
                panic!("{found}")
            };
            let known: Vec<_> = bound
                .endpoints
                .as_ref()
                .unwrap()
                .iter()
                .map(|(at, _)| match at {
                    Endpoint::Address(at) => at.to_string(),
                    Endpoint::Name(at) => at.clone(),
                })
                .collect();
            assert_eq!(known.join(" "), endpoints, "{transformers} on {on}");
        }
    }
}

#[test]
fn interpreters() {
    let router = |interpreter: &str| {
        format!(
            "namers: [{{kind: io.l5d.fs, rootDir: d}}]\nrouters: [{{protocol: http, dtab: /svc/own => \
             /#/io.l5d.fs/own, interpreter: {interpreter}}}]"
        )
    };
    let mut world = World::of_names(["/#/io.l5d.fs/own", "/#/io.l5d.fs/web", "/#/far/web"]);
    let of = |interpreter: &str, host: &str, world: &World| {
        said(&router(interpreter), world, &get(host, "/", &[]))
    };
    let wrong = of("{kind: io.l5d.consul.interpreter, namespace: prod}", "web", &world);
    assert!(
        wrong.ends_with("the table \"prod\" is kept elsewhere, and is not known here"),
        "{wrong}"
    );
    let dtab = |text: &str| Dtab::read("far", text).unwrap();
    world.dtabs.insert("prod".into(), dtab("/svc => /#/io.l5d.fs; /svc/own => !"));
    world.dtabs.insert("default/cm/l5d.dtab".into(), dtab("/svc => /#/io.l5d.fs/web"));
    world.dtabs.insert("far".into(), dtab("/svc => /#/far"));
    let consul = "{kind: io.l5d.consul.interpreter, namespace: prod}";
    assert_eq!(of(consul, "web", &world), "/svc/web -> /#/io.l5d.fs/web");
    assert_eq!(of(consul, "own", &world), "/svc/own -> /#/io.l5d.fs/own");
    let map = "{kind: io.l5d.k8s.configMap, name: cm, filename: l5d.dtab}";
    assert_eq!(of(map, "x", &world), "/svc/x -> /#/io.l5d.fs/web/x");
    for namerd in ["{kind: io.l5d.namerd, namespace: far}", "{kind: io.l5d.mesh, root: /far}"] {
        assert_eq!(of(namerd, "web", &world), "/svc/web -> /#/far/web", "{namerd}");
    }
    assert!(of("{kind: io.l5d.k8s.istio}", "x", &world).contains("io.l5d.k8s.istio"));
}

#[test]
fn other_namers() {
    let yaml = "namers:\n- {kind: io.l5d.consul, includeTag: true}\n- {kind: io.l5d.k8s, labelSelector: v}\n\
        - {kind: io.l5d.k8s.ns, envVar: NS}\n- {kind: io.l5d.marathon}\n- {kind: io.l5d.serversets}\n\
        - {kind: io.l5d.rewrite, prefix: /rw, pattern: '/{a}/x', name: '/#/io.l5d.marathon/{a}'}\n\
        - {kind: io.l5d.rancher}\n- {kind: com.example.mine}\n\
        routers: [{protocol: http, identifier: {kind: io.l5d.header}, dtab: /svc => /#}]\n";
    let world = World::of_names([
        "/#/io.l5d.consul/dc1/blue/web",
        "/#/io.l5d.k8s/prod/http/web/v1",
        "/#/io.l5d.k8s.ns/http/web",
        "/#/io.l5d.marathon/corp/web",
        "/#/io.l5d.serversets/zk/a",
        "/#/io.l5d.serversets/zk/a/b",
        "/#/io.l5d.rancher/80/stack/web",
        "/#/com.example.mine/q",
    ]);
    for (name, expected) in [
        ("/io.l5d.consul/dc1/Blue/Web/r", "/#/io.l5d.consul/dc1/Blue/Web/r"),
        ("/io.l5d.consul/DC1/blue/web", "NEG 502"),
        ("/io.l5d.k8s/Prod/http/web/v1/r", "/#/io.l5d.k8s/prod/http/web/v1/r"),
        ("/io.l5d.k8s/prod/http/web", "NEG 502"),
        ("/io.l5d.k8s.ns/http/web", "/#/io.l5d.k8s.ns/http/web"),
        ("/io.l5d.marathon/Corp/web/r/s", "/#/io.l5d.marathon/corp/web/r/s"),
        ("/io.l5d.serversets/zk/a/b/r", "/#/io.l5d.serversets/zk/a/b/r"),
        ("/rw/corp/x/dropped", "NEG 502"),
        ("/rw/q/y", "NEG 502"),
        ("/io.l5d.rancher/80/stack/web", "/#/io.l5d.rancher/80/stack/web"),
        ("/com.example.mine/q/r", "/#/com.example.mine/q/r"),
    ] {
        let found = said(yaml, &world, &get("h", "/", &[("l5d-name", name)]));
        assert_eq!(found, format!("/svc{name} -> {expected}"));
    }
}
