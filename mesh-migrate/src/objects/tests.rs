use std::time::Duration;

use super::*;
use crate::{
    ledger::Verdict,
    program::{
        Balance, Change, ClientName, ClientTls, Clients, Condition, Forward, Location, Member,
        NamePart, PathChange, Pool, Reply, Rule, Said, ServerCertificate, ServerTls, Sometimes,
        TcpRule, Text, TlsVersion,
    },
    source::Place,
};

fn place() -> Place {
    Place::start(&"a.cfg".into())
}

fn pool(address: &str) -> Pool {
    Pool {
        panic_percent: None,
        place: place(),
        members: vec![Member {
            place: place(),
            endpoint: Endpoint::Address(address.parse().unwrap()),
            weight: 1,
            priority: 0,
            is_disabled: false,
            max_requests: 0,
        }],
        balance: Balance::default(),
        connect_timeout: None,
        idle_timeout: None,
        check: None,
        outlier: None,
        tls: None,
        is_http2: false,
        limits: crate::program::Limits::default(),
    }
}

fn program(rules: Vec<Rule>) -> Program {
    let accepts = Accepts::Http {
        rules,
        otherwise: Reply { status: 503, ..Reply::default() },
        forwarded: Forwarded::Append,
        paths: Paths::default(),
        drops_underscores: false,
        brief_errors: true,
    };
    let listener = Listener {
        place: place(),
        name: "fe_main".into(),
        addresses: vec!["127.0.0.1:8000".parse().unwrap()],
        accepts,
        tls: None,
    };
    let pools =
        [("be.a".to_owned(), pool("10.0.0.1:80")), ("be-a".to_owned(), pool("10.0.0.2:80"))];
    Program { listeners: vec![listener], pools: pools.into() }
}

fn rule(when: Condition, pool: &str) -> Rule {
    let forward = Forward { pools: vec![(pool.into(), 1)], ..Forward::default() };
    Rule { place: place(), when, then: Then::Forward(Box::new(forward)) }
}

fn made(rules: Vec<Rule>) -> (Objects, Vec<crate::ledger::Entry>) {
    made_of(&program(rules), None)
}

fn made_of(program: &Program, tls_until: Option<&str>) -> (Objects, Vec<crate::ledger::Entry>) {
    let mut ledger = Ledger::default();
    let wanted = Wanted { namespace: "legacy", site: "west", resolve: &|_| Vec::new(), tls_until };
    let made = objects(program, &wanted, &mut ledger);
    (made, ledger.entries())
}

#[test]
fn names_are_labels_and_each_is_there_once() {
    assert_eq!(label("be_Orders.v2"), "be-orders-v2");
    assert_eq!(label("__"), "x");
    assert_eq!(label(&"a_".repeat(60)).len(), 63);
    let mut names = Names::default();
    let all: Vec<_> = ["a.b", "a-b", "a_b"].map(|name| names.free(name)).into();
    assert_eq!(all, ["a-b", "a-b-2", "a-b-3"]);
    // With a namespace and a number behind it, it is an endpoint's id of 64 at most.
    let long = "b".repeat(80);
    names.longest = MAX_LABEL - "legacy".len();
    let all = [&long, &long].map(|name| names.free(name));
    assert!(all[0] != all[1] && all.iter().all(|one| one.len() <= 51), "{all:?}");
    let (objects, _) = made(vec![rule(Condition::Always, "be.a")]);
    assert_eq!(objects.site["services"][1]["name"], "be-a-2.legacy");
}

#[test]
fn what_holds_unless_something_else_does() {
    let path = Condition::Path(Text::Prefix("/admin".into()));
    let ops = Condition::Source(vec!["10.20.200.0/24".into()]);
    let header = Condition::Header("X-A".into(), Text::Exact("1".into()));
    let when =
        Condition::All(vec![path, Condition::Not(Box::new(ops)), Condition::Not(Box::new(header))]);
    let (objects, said) = made(vec![rule(when, "be.a")]);
    assert_eq!(said, []);
    let rules = &objects.rules[0]["spec"]["rules"];
    assert_eq!(
        rules[0]["matches"],
        json!([{ "path": { "type": "RegularExpression", "value": "/admin(?s:.*)" } }])
    );
    let policy = &objects.rules[1]["spec"];
    assert_eq!(policy["ruleOrder"], "Listed");
    assert_eq!(policy["rules"][0]["notSources"], json!(["10.20.200.0/24"]));
    assert_eq!(
        policy["rules"][0]["unless"],
        json!([{ "headers": [{ "name": "x-a", "value": "1" }] }])
    );
    assert_eq!(rules[1]["name"], "otherwise");
    assert_eq!(policy["rules"][1]["reply"], json!({ "status": 503 }));
}

#[test]
fn alternatives_share_a_rule_where_they_can() {
    let exact = |path: &str| Condition::Path(Text::Exact(path.into()));
    let methods = Condition::Method(vec!["GET".into(), "HEAD".into()]);
    let when = Condition::All(vec![methods, Condition::Any(vec![exact("/a"), exact("/b")])]);
    let (objects, _) = made(vec![rule(when, "be.a"), rule(Condition::Always, "be-a")]);
    let rules = objects.rules[0]["spec"]["rules"].as_array().unwrap();
    assert_eq!(rules[0]["matches"].as_array().unwrap().len(), 4);
    assert_eq!(rules.len(), 2, "the last takes everything");
    assert!(rules[1].get("matches").is_none());
}

#[test]
fn two_conditions_about_a_path_must_both_hold() {
    let ends = Condition::Path(Text::Pattern(".*png".into()));
    let begins = Condition::Path(Text::Prefix("/a".into()));
    let (objects, said) = made(vec![rule(Condition::All(vec![ends, begins]), "be.a")]);
    assert_eq!(said, []);
    let path = &objects.rules[0]["spec"]["rules"][0]["matches"][0]["path"]["value"];
    assert_eq!(path, ".*png");
    let also = &objects.rules[1]["spec"]["rules"][0]["also"];
    assert_eq!(*also, json!([{ "path": { "type": "RegularExpression", "value": "/a(?s:.*)" } }]));
    let shorter = Condition::Path(Text::Prefix("/".into()));
    let longer = Condition::Path(Text::Prefix("/a/".into()));
    let (objects, _) = made(vec![rule(Condition::All(vec![shorter, longer]), "be.a")]);
    let path = &objects.rules[0]["spec"]["rules"][0]["matches"][0]["path"]["value"];
    assert_eq!(path, "/a/(?s:.*)");
}

#[test]
fn what_cannot_be_said_is_a_decision() {
    let one = Condition::Source(vec!["10.0.0.0/8".into()]);
    let other = Condition::Source(vec!["10.1.0.0/16".into()]);
    let (objects, said) = made(vec![rule(Condition::All(vec![one, other]), "be.a")]);
    assert!(matches!(said[0].verdict, crate::ledger::Verdict::Decision { .. }), "{said:?}");
    assert_eq!(objects.rules[0]["spec"]["rules"].as_array().unwrap().len(), 1, "no wrong rule");
}

#[test]
fn paths_change_as_text() {
    let mut changed = rule(Condition::Always, "be.a");
    if let Then::Forward(forward) = &mut changed.then {
        forward.path = Some(PathChange::Prefix { from: "/a.b".into(), to: "/$x".into() });
        forward.request_timeout = Some(Duration::from_millis(1500));
    }
    let (objects, _) = made(vec![changed]);
    let policy = &objects.rules[1]["spec"]["rules"][0];
    assert_eq!(policy["rewrite"], json!({ "pattern": "^/a\\.b", "substitution": "/$$x" }));
    assert_eq!(objects.rules[0]["spec"]["rules"][0]["timeouts"], json!({ "request": "1500ms" }));
}

#[test]
fn the_same_program_is_the_same_bytes() {
    let once = made(vec![rule(Condition::Always, "be.a")]).0.files();
    assert_eq!(once, made(vec![rule(Condition::Always, "be.a")]).0.files());
    assert_eq!(
        once.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["proxy.yaml", "site.yaml", "rules.yaml"]
    );
}

/// Of a match the first header of a name counts alone, as Gateway API has it.
#[test]
fn two_conditions_about_one_header_are_two_matches() {
    let header = |text: Text| Condition::Header("Host".into(), text);
    let when = Condition::All(vec![
        header(Text::Present),
        header(Text::Prefix("a".into())),
        header(Text::Pattern(".*z".into())),
        Condition::Query("v".into(), Text::Exact("1".into())),
        Condition::Query("v".into(), Text::Pattern("[0-9]".into())),
    ]);
    let (objects, _) = made(vec![rule(when, "be.a")]);
    let first = &objects.rules[0]["spec"]["rules"][0]["matches"][0];
    assert_eq!(first["headers"].as_array().unwrap().len(), 1);
    assert_eq!(first["headers"][0]["value"], "a(?s:.*)");
    let also = &objects.rules[1]["spec"]["rules"][0]["also"];
    assert_eq!(also[0]["headers"][0]["value"], ".*z");
    // Parameters are compared as they are sent.
    for (at, value) in [(1, "1"), (2, "[0-9]")] {
        assert_eq!(also[at]["headers"][0]["name"], "%{query:v}");
        assert_eq!(also[at]["headers"][0]["value"], value);
    }
}

/// Where names of TLS matter, what takes any connection takes those of TLS, too.
#[test]
fn what_takes_all_connections_takes_tls_of_other_names() {
    let rule = |names: &[&str], pool: &str| TcpRule {
        place: place(),
        server_names: names.iter().map(ToString::to_string).collect(),
        clients: Clients::default(),
        pools: vec![(pool.into(), 1)],
    };
    let kinds = |rules: Vec<TcpRule>| {
        let mut program = program(Vec::new());
        program.listeners[0].accepts = Accepts::Tcp { rules };
        let wanted =
            Wanted { namespace: "legacy", site: "west", resolve: &|_| Vec::new(), tls_until: None };
        let made = objects(&program, &wanted, &mut Ledger::default());
        let routes = made.rules.iter().filter(|one| one["kind"] != "TrafficPolicy");
        routes
            .map(|one| {
                let name = one["metadata"]["name"].as_str().unwrap();
                format!("{} {name} {}", one["kind"].as_str().unwrap(), one["spec"]["hostnames"])
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(vec![rule(&[], "be.a")]), ["TCPRoute fe-main-1 null"]);
    let both = kinds(vec![rule(&["a.example"], "be.a"), rule(&[], "be-a")]);
    let named = "TLSRoute fe-main-1 [\"a.example\"]";
    assert_eq!(both, [named, "TLSRoute fe-main-2-tls null", "TCPRoute fe-main-2 null"]);
    // The first rule counts, not the narrowest.
    let ordered = kinds(vec![
        rule(&["*.example"], "be.a"),
        rule(&["a.example", "*.b.Example", "b.test"], "be-a"),
        rule(&["*.example"], "be-a"),
        rule(&[], "be.a"),
        rule(&["c.test"], "be-a"),
    ]);
    let wide = "TLSRoute fe-main-1 [\"*.example\"]";
    let left = "TLSRoute fe-main-2 [\"b.test\"]";
    let rest = ["TLSRoute fe-main-4-tls null", "TCPRoute fe-main-4 null"];
    assert_eq!(ordered, [wide, left, rest[0], rest[1]]);
}

#[test]
fn a_path_that_may_lose_its_slash_is_told() {
    let told = |path: PathChange| {
        let forward =
            Forward { pools: vec![("be.a".into(), 1)], path: Some(path), ..Forward::default() };
        let then = Then::Forward(Box::new(forward));
        let (_, entries) = made(vec![Rule { place: place(), when: Condition::Always, then }]);
        entries.iter().any(|entry| format!("{:?}", entry.verdict).contains("begin with /"))
    };
    let pattern = |pattern: &str, substitution: &str| PathChange::Pattern {
        pattern: pattern.into(),
        substitution: substitution.into(),
        all: true,
    };
    assert!(told(pattern("/(.)", "<$1>")) && told(pattern("a|/", "b")));
    assert!(!told(pattern("/a", "/b")) && !told(pattern("a", "b")));
    assert!(told(PathChange::Prefix { from: "/a".into(), to: "b".into() }));
    assert!(!told(PathChange::Prefix { from: "/a".into(), to: "/b".into() }));
}

#[test]
fn a_redirect_has_headers_of_its_own() {
    let reply = Reply {
        status: 301,
        headers: vec![("x-r".into(), "r".into())],
        location: Some(Location { host: Some("new.example".into()), ..Location::default() }),
        ..Reply::default()
    };
    let then = Then::Reply(reply);
    let (objects, _) = made(vec![Rule { place: place(), when: Condition::Always, then }]);
    let filters = &objects.rules[0]["spec"]["rules"][0]["filters"];
    assert_eq!(filters[0]["requestRedirect"]["hostname"], "new.example");
    assert_eq!(filters[1]["responseHeaderModifier"]["add"][0]["name"], "x-r");
}

/// A program that ends TLS and speaks it.
fn with_tls(server: ServerTls, client: ClientTls) -> Program {
    let rules = vec![rule(Condition::Always, "be.a"), rule(Condition::Always, "be-a")];
    let mut program = program(rules);
    program.listeners[0].tls = Some(server);
    program.pools.get_mut("be.a").unwrap().tls = Some(client);
    program
}

fn server_tls() -> ServerTls {
    ServerTls {
        certificate: "/etc/ssl/a.pem".into(),
        key: "/etc/ssl/a.pem".into(),
        client_roots: Some("clients.pem".into()),
        ..ServerTls::default()
    }
}

fn client_tls() -> ClientTls {
    ClientTls {
        server_name: Some("a.example.com".into()),
        roots: Some("/etc/ssl/ca.pem".into()),
        certificate: Some(("/etc/ssl/us.pem".into(), "/etc/ssl/us.key".into())),
    }
}

#[test]
fn tls_lasts_until_somebody_says() {
    let program = with_tls(server_tls(), client_tls());
    let (objects, said) = made_of(&program, None);
    // Who would have to show a certificate is not let in without.
    assert_eq!(objects.proxy["listeners"], json!([]));
    assert!(objects.site["services"].as_array().unwrap().iter().all(|s| s.get("tls").is_none()));
    let asks = |entry: &&crate::ledger::Entry| match &entry.verdict {
        Verdict::Decision { choices, .. } => choices.iter().any(|c| c.contains("--tls-until")),
        _ => false,
    };
    assert_eq!(said.iter().filter(asks).count(), 2);

    let (objects, said) = made_of(&program, Some("2027-03-01"));
    let tls = json!({
        "certificate": "/etc/ssl/a.pem", "client_ca": "clients.pem", "until": "2027-03-01",
    });
    assert_eq!(objects.proxy["listeners"][0]["tls"], tls);
    let tls = json!({
        "ca": "/etc/ssl/ca.pem", "name": "a.example.com", "certificate": "/etc/ssl/us.pem",
        "key": "/etc/ssl/us.key", "until": "2027-03-01",
    });
    let service = |objects: &Objects, name: &str| {
        let services = objects.site["services"].as_array().unwrap().clone();
        services.into_iter().find(|service| service["name"] == name).unwrap()
    };
    assert_eq!(service(&objects, "be-a-2.legacy")["tls"], tls);
    assert_eq!(service(&objects, "be-a.legacy").get("tls"), None);
    let approximated: Vec<_> = said
        .iter()
        .filter_map(|entry| match &entry.verdict {
            Verdict::Approximated { how } => Some(how.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(approximated.len(), 2, "{said:?}");
    assert!(approximated.iter().all(|how| how.contains("until 2027-03-01")), "{approximated:?}");
    assert!(approximated[0].contains("clients.pem is looked for beside"), "{approximated:?}");

    let blind = ClientTls { roots: None, certificate: None, ..client_tls() };
    let (objects, _) = made_of(&with_tls(server_tls(), blind), Some("2027-03-01"));
    let tls = json!({ "name": "a.example.com", "verify": "none", "until": "2027-03-01" });
    assert_eq!(service(&objects, "be-a-2.legacy")["tls"], tls);
}

#[test]
fn tls_that_cannot_be_written_is_asked_about() {
    let server = |certificate: &str| ServerTls { certificate: certificate.into(), ..server_tls() };
    let client = client_tls();
    let cases = [
        (server(""), client.clone(), "no single file"),
        (server("@store/a.pem"), client.clone(), "no single file"),
        (ServerTls { crl: Some(String::new()), ..server_tls() }, client.clone(), "are revoked"),
        (server_tls(), ClientTls { server_name: None, ..client.clone() }, "for no name"),
        (server_tls(), ClientTls { roots: Some("@system-ca".into()), ..client }, "in no file"),
    ];
    for (server, client, wanted) in cases {
        let (_, said) = made_of(&with_tls(server, client), Some("2027-03-01"));
        let asked = said.iter().any(|entry| match &entry.verdict {
            Verdict::Decision { question, .. } => question.contains(wanted),
            _ => false,
        });
        assert!(asked, "{wanted}: {said:?}");
    }
}

#[test]
fn all_certificates_of_a_listener_are_written() {
    let one = |certificate: &str, key: &str, names: &[&str]| ServerCertificate {
        certificate: certificate.into(),
        key: key.into(),
        names: names.iter().map(|&name| name.into()).collect(),
    };
    let server = ServerTls {
        certificate: "/etc/haproxy/certs/".into(),
        key: "/etc/haproxy/certs/".into(),
        more: vec![
            one("/b.pem", "/b.key", &["b.example", "*.b.example"]),
            one("/c.pem", "/c.pem", &[]),
            one("@store/d", "@store/d", &["d.example"]),
        ],
        only_known_names: true,
        names: vec!["a.example".into()],
        versions: vec![TlsVersion::Tls13],
        alpn: Some(vec!["http/1.1".into()]),
        client_names: vec![ClientName {
            is_uri: true,
            part: NamePart::Prefix,
            text: "spiffe://old.example/".into(),
        }],
        crl: Some("/etc/ssl/clients.crl".into()),
        ..server_tls()
    };
    let (objects, said) = made_of(&with_tls(server, client_tls()), Some("2027-03-01"));
    let tls = json!({
        "certificate": "/etc/haproxy/certs/",
        "certificates": [
            { "certificate": "/b.pem", "key": "/b.key", "names": ["b.example", "*.b.example"] },
            { "certificate": "/c.pem" },
        ],
        "only_known_names": true,
        "names": ["a.example"],
        "versions": ["TLSv1.3"],
        "alpn": ["http/1.1"],
        "client_ca": "clients.pem",
        "client_names": [{ "kind": "uri", "prefix": "spiffe://old.example/" }],
        "crl": "/etc/ssl/clients.crl",
        "until": "2027-03-01",
    });
    assert_eq!(objects.proxy["listeners"][0]["tls"], tls);
    let asked = said.iter().any(|entry| match &entry.verdict {
        Verdict::Decision { question, .. } => question.contains("a certificate for d.example"),
        _ => false,
    });
    assert!(asked, "{said:?}");
}

#[test]
fn an_address_is_spoken_to_in_one_way() {
    let mut program = with_tls(server_tls(), client_tls());
    program.pools.get_mut("be-a").unwrap().members = program.pools["be.a"].members.clone();
    let endpoints = |objects: &Objects| -> usize {
        let services = objects.site["services"].as_array().unwrap().iter();
        services.filter_map(|service| Some(service.get("endpoints")?.as_array()?.len())).sum()
    };
    let (objects, _) = made_of(&program, None);
    assert_eq!(endpoints(&objects), 1, "none in plaintext of those that want TLS");
    let (objects, said) = made_of(&program, Some("2027-03-01"));
    assert_eq!(endpoints(&objects), 1);
    let asked = said.iter().any(|entry| match &entry.verdict {
        Verdict::Decision { question, .. } => question.contains("in two ways"),
        _ => false,
    });
    assert!(asked, "{said:?}");
    program.pools.get_mut("be-a").unwrap().tls = program.pools["be.a"].tls.clone();
    let (objects, _) = made_of(&program, Some("2027-03-01"));
    assert_eq!(endpoints(&objects), 2);
}

#[test]
fn what_no_filter_can_say_is_a_pattern_or_a_question() {
    let moved = |host: Option<&str>, path: &str| {
        let location = Location {
            host: host.map(Into::into),
            path: Some(PathChange::Whole(path.into())),
            strip_query: true,
            ..Location::default()
        };
        let then = Then::Reply(Reply { status: 301, location: Some(location), ..Reply::default() });
        let (objects, entries) = made(vec![Rule { place: place(), when: Condition::Always, then }]);
        let policy = objects.rules[1]["spec"]["rules"][0].clone();
        (objects.rules[0]["spec"]["rules"][0]["filters"].clone(), policy, entries)
    };
    let (filters, policy, _) = moved(Some("a.example"), "/new?x=1");
    assert!(filters[0]["requestRedirect"]["path"].is_null());
    assert_eq!(policy["rewrite"]["substitution"], "/new?x=1");
    let (filters, policy, _) = moved(Some("a.example"), "/new");
    assert_eq!(filters[0]["requestRedirect"]["path"]["replaceFullPath"], "/new");
    assert!(policy["rewrite"].is_null());
    let (_, policy, entries) = moved(Some("*.a.example"), "/new");
    assert_eq!(policy["reply"]["status"], 501);
    assert!(format!("{entries:?}").contains("is no name of a host to send clients to"));
}

#[test]
fn lines_of_one_header_and_hosts_with_ports() {
    let sent = |host: &str| {
        let forward = Forward {
            pools: vec![("be.a".into(), 1)],
            host: Some(host.into()),
            set: vec![("x-b".into(), "1".into()), ("x-b".into(), "2".into())],
            path: Some(PathChange::Whole("u".into())),
            ..Forward::default()
        };
        let then = Then::Forward(Box::new(forward));
        let (objects, entries) = made(vec![Rule { place: place(), when: Condition::Always, then }]);
        (objects.rules[0]["spec"]["rules"][0]["filters"].clone(), format!("{entries:?}"))
    };
    let (filters, entries) = sent("app:9000");
    let changes = &filters[0]["requestHeaderModifier"];
    assert_eq!(
        (&changes["set"][0]["value"], &changes["add"][0]["value"]),
        (&json!("1"), &json!("2"))
    );
    assert_eq!(filters[1]["urlRewrite"], json!({ "hostname": "app:9000" }));
    assert!(entries.contains("does not begin with /"));
    let (filters, entries) = sent("$x");
    assert!(filters[1].is_null() && entries.contains("is no name of a host"));
}

#[test]
fn a_redirect_to_a_path_alone_is_told_so() {
    let redirect = |path, strip_query| {
        let location = Location { path, strip_query, ..Location::default() };
        let reply = Reply { status: 301, location: Some(location), ..Reply::default() };
        let rule = Rule { place: place(), when: Condition::Always, then: Then::Reply(reply) };
        let (objects, said) = made(vec![rule]);
        let to = objects.rules[1]["spec"]["rules"][0]["reply"]["headers"][0]["value"].clone();
        (to, said.len())
    };
    let whole = |to: &str| Some(PathChange::Whole(to.into()));
    assert_eq!(redirect(whole("/b%"), true), (json!("/b%%"), 0));
    assert_eq!(redirect(whole("/b$/"), false), (json!("%{target|s~^[^?]*~/b$$/~}"), 0));
    let prefix = PathChange::Prefix { from: "/a.".into(), to: "/c".into() };
    assert_eq!(redirect(Some(prefix), false), (json!(r"%{target|s~^/a\.~/c~}"), 0));
    let pattern = |all| {
        let (pattern, substitution) = ("^/(a)".into(), "/$1".into());
        Some(PathChange::Pattern { pattern, substitution, all })
    };
    assert_eq!(redirect(pattern(true), true), (json!("%{path|s~^/(a)~/$1~g}"), 0));
    let (to, told) = redirect(pattern(false), false);
    assert_eq!((to, told), (json!(null), 1), "with scheme and host, and told");
}

#[test]
fn headers_change_where_any_of_the_alternatives_holds() {
    let inside = Condition::Source(vec!["10.0.0.0/8".into()]);
    let path = Condition::Path(Text::Prefix("/a".into()));
    let when = Condition::Any(vec![inside, path]);
    let set = |name: &str, to: &str| Sometimes {
        when: when.clone(),
        name: name.into(),
        change: Change::Set(Said::Text(to.into())),
    };
    let mut rule = rule(Condition::Always, "be.a");
    let Then::Forward(forward) = &mut rule.then else { unreachable!("it is one") };
    forward.sometimes = vec![set("x-a", "1"), set("x-b", "2"), set("connection", "close")];
    let (objects, said) = made(vec![rule]);
    let headers =
        json!({ "set": [{ "name": "x-a", "value": "1" }, { "name": "x-b", "value": "2" }] });
    let path = json!({ "path": { "type": "RegularExpression", "value": "/a(?s:.*)" } });
    assert_eq!(
        objects.rules[1]["spec"]["rules"][0]["conditionalHeaders"],
        json!([
            { "requestHeaders": headers, "sources": ["10.0.0.0/8"] },
            { "requestHeaders": headers, "also": [path] },
        ])
    );
    assert_eq!(said.len(), 1, "connection is ours: {said:?}");
}
