use super::*;
use crate::program::{Clients, Member, Paths};

fn place() -> Place {
    Place::start(&"a".into())
}

fn member(endpoint: &str, weight: u32, priority: u32) -> Member {
    Member {
        place: place(),
        endpoint: Endpoint::Address(endpoint.parse().unwrap()),
        weight,
        priority,
        is_disabled: false,
        max_requests: 0,
    }
}

fn pool(members: Vec<Member>, balance: Balance) -> Pool {
    Pool {
        panic_percent: None,
        place: place(),
        members,
        balance,
        connect_timeout: None,
        idle_timeout: None,
        check: None,
        outlier: None,
        tls: None,
        is_http2: false,
        limits: Default::default(),
    }
}

fn program(when: Condition, forward: Forward) -> Program {
    let then = Then::Forward(Box::new(forward));
    let weighted =
        vec![member("10.0.0.1:80", 1, 0), member("10.0.0.2:80", 3, 0), member("10.0.0.3:80", 1, 1)];
    let pools = [
        ("a".to_owned(), pool(weighted.clone(), Balance::RoundRobin)),
        ("first".to_owned(), pool(weighted, Balance::First)),
        ("none".to_owned(), pool(Vec::new(), Balance::RoundRobin)),
        (
            "hash".to_owned(),
            pool(vec![member("10.0.0.4:80", 1, 0)], Balance::Hash(Key::Header("X-User".into()))),
        ),
    ];
    Program {
        listeners: vec![Listener {
            place: place(),
            name: "l".into(),
            addresses: vec!["10.0.0.9:80".parse().unwrap()],
            accepts: Accepts::Http {
                rules: vec![Rule { place: place(), when, then }],
                otherwise: Reply { status: 404, ..Reply::default() },
                forwarded: Forwarded::Append,
                paths: Paths::default(),
                drops_underscores: false,
                brief_errors: true,
            },
            tls: None,
        }],
        pools: pools.into(),
    }
}

fn get(url: &str, headers: &[(&str, &str)]) -> Request {
    let (host, path) = url.split_at(url.find('/').unwrap());
    Request {
        listener: None,
        source: "192.0.2.7".parse().unwrap(),
        kind: Kind::Http(Http {
            method: "GET".into(),
            host: Some(host.into()),
            target: path.into(),
            headers: headers.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect(),
            is_http10: false,
        }),
    }
}

fn to(pools: &[(&str, u32)]) -> Forward {
    let pools = pools.iter().map(|(name, weight)| ((*name).to_owned(), *weight)).collect();
    Forward { pools, ..Forward::default() }
}

#[test]
fn conditions_hold() {
    let host = |text| Condition::Header("host".into(), text);
    let table = [
        (Condition::Always, true),
        (Condition::All(Vec::new()), true),
        (Condition::Any(Vec::new()), false),
        (Condition::Not(Box::new(Condition::Any(Vec::new()))), true),
        (Condition::Path(Text::Prefix("/a".into())), true),
        (Condition::Path(Text::Exact("/ab".into())), true),
        (Condition::Path(Text::Pattern("/a".into())), false),
        (Condition::Path(Text::Pattern("(?i)/A.".into())), true),
        (Condition::Path(Text::Pattern("(".into())), false),
        (Condition::Method(vec!["get".into()]), false),
        (Condition::Method(vec!["POST".into(), "GET".into()]), true),
        (host(Text::Exact("h:8".into())), true),
        (host(Text::Exact("h".into())), false),
        (Condition::Header("X-a".into(), Text::Exact("2".into())), true),
        (Condition::Header("x-b".into(), Text::Present), false),
        (Condition::Query("q".into(), Text::Exact("1".into())), true),
        (Condition::Query("r".into(), Text::Present), true),
        (Condition::Query("s".into(), Text::Present), false),
        (Condition::Source(vec!["192.0.2.0/29".into()]), true),
        (Condition::Source(vec!["192.0.2.0/30".into(), "::/0".into()]), false),
        (Condition::Source(vec!["0.0.0.0/0".into()]), true),
        (Condition::Source(vec!["192.0.2.7".into()]), true),
    ];
    for (when, holds) in table {
        let request = get("h:8/ab?q=1&q=2&r", &[("x-a", "1"), ("X-A", "2")]);
        let answer = decide(&program(when.clone(), to(&[("a", 1)])), &request);
        assert_eq!(matches!(answer.outcome, Outcome::Forwarded(_)), holds, "{when:?}");
    }
}

fn forwarded(forward: Forward, request: &Request) -> request::Forwarded {
    match decide(&program(Condition::Always, forward), request).outcome {
        Outcome::Forwarded(forwarded) => forwarded,
        other => panic!("{other:?}"),
    }
}

#[test]
fn shares_are_those_of_weights_and_priorities() {
    let shares = |pools: &[(&str, u32)]| {
        let to = forwarded(to(pools), &get("h/", &[]));
        to.endpoints.iter().map(|(_, share)| *share).collect::<Vec<_>>()
    };
    assert_eq!(shares(&[("a", 1)]), [0.25, 0.75]);
    assert_eq!(shares(&[("first", 1)]), [1.0]);
    assert_eq!(shares(&[("a", 1), ("first", 1)]), [0.625, 0.375]);
    assert_eq!(shares(&[("a", 0), ("hash", 2)]), [1.0]);
    let sticky = |pool, headers: &[_]| forwarded(to(&[(pool, 1)]), &get("h/", headers)).is_sticky;
    assert!(sticky("hash", &[("x-user", "1")]) && !sticky("hash", &[]) && !sticky("a", &[]));
    let nobody = decide(&program(Condition::Always, to(&[("none", 1)])), &get("h/", &[]));
    assert!(matches!(nobody.outcome, Outcome::Answered { status: 503, .. }));
}

#[test]
fn the_application_gets_what_was_changed() {
    let forward = Forward {
        path: Some(PathChange::Prefix { from: "/a".into(), to: "/x/".into() }),
        set: vec![("x-set".into(), "1".into())],
        add: vec![("x-add".into(), "3".into())],
        remove: vec!["x-gone".into()],
        ..to(&[("a", 1)])
    };
    let headers = [("X-Set", "0"), ("x-add", "2"), ("x-gone", ""), ("X-Forwarded-For", "10.9.9.9")];
    let got = forwarded(forward, &get("h/ab?q", &headers));
    assert_eq!(got.target.as_deref(), Some("/x/b?q"));
    let expected = [
        ("x-add", Some("2, 3")),
        ("x-forwarded-for", Some("10.9.9.9, 192.0.2.7")),
        ("x-gone", None),
        ("x-set", Some("1")),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    assert_eq!(got.headers, expected);
}

#[test]
fn paths_change() {
    let pattern = |pattern: &str, all| PathChange::Pattern {
        pattern: pattern.into(),
        substitution: "-${1}".into(),
        all,
    };
    let made = |path: &str, change| changed(path.as_bytes(), &change, <[u8]>::to_vec);
    assert_eq!(made("/a1b2", pattern("[ab]([0-9])", true)).as_deref(), Some("/-1-2"));
    assert_eq!(made("/a1b2", pattern("[ab]([0-9])", false)).as_deref(), Some("/-1b2"));
    assert_eq!(made("/c", pattern("[ab]([0-9])", false)), None);
    assert_eq!(made("/a", PathChange::Whole("/b".into())).as_deref(), Some("/b"));
    let named = changed(b"/a b", &pattern("(. .)", false), crate::nginx::uri::escaped);
    assert_eq!(named.as_deref(), Some("/-a%20b"));
}

#[test]
fn redirects_say_where() {
    let location = |to: Location, url: &str| {
        let mut program = program(Condition::Always, Forward::default());
        let Accepts::Http { rules, .. } = &mut program.listeners[0].accepts else { panic!() };
        let reply = Reply { status: 302, location: Some(to), ..Reply::default() };
        rules[0].then = Then::Reply(reply);
        match decide(&program, &get(url, &[])).outcome {
            Outcome::Answered { status: 302, headers, .. } => headers[0].1.clone(),
            other => panic!("{other:?}"),
        }
    };
    let https = Location { scheme: Some("https".into()), ..Location::default() };
    assert_eq!(location(https.clone(), "h:8000/a?q"), "https://h/a?q");
    assert_eq!(location(https.clone(), "[::1]:80/"), "https://[::1]/");
    let with_port = Location { port: Some(8443), strip_query: true, ..https };
    assert_eq!(location(with_port, "h/a?q"), "https://h:8443/a");
    let host = Location { host: Some("x".into()), ..Location::default() };
    assert_eq!(location(host, "h/a"), "http://x/a");
    let path = Some(PathChange::Whole("/b".into()));
    assert_eq!(location(Location { path, ..Location::default() }, "h/a?q"), "/b?q");
}

#[test]
fn connections_go_by_name() {
    let mut program = program(Condition::Always, Forward::default());
    let rule = |names: &[&str], pool: &str| TcpRule {
        place: place(),
        server_names: names.iter().map(|&name| name.to_owned()).collect(),
        clients: Clients::default(),
        pools: vec![(pool.to_owned(), 1)],
    };
    let rules = vec![
        rule(&["a.example", "*.b.example"], "first"),
        rule(&["none.example"], "none"),
        rule(&["*.example"], "hash"),
    ];
    program.listeners[0].accepts = Accepts::Tcp { rules };
    let to = |server_name: Option<&str>| {
        let kind = Kind::Connection { server_name: server_name.map(str::to_owned) };
        let listener = Some("10.0.0.9:80".to_owned());
        let request = Request { listener, source: "192.0.2.7".parse().unwrap(), kind };
        match decide(&program, &request).outcome {
            Outcome::Forwarded(to) => Some(to.pools[0].0.clone()),
            Outcome::Closed => None,
            other => panic!("{other:?}"),
        }
    };
    let table = [
        (Some("A.example"), Some("first")),
        (Some("x.y.B.example"), Some("first")),
        (Some("b.example"), Some("hash")),
        (Some("none.example"), None),
        (Some("example"), None),
        (None, None),
    ];
    for (name, pool) in table {
        assert_eq!(to(name).as_deref(), pool, "{name:?}");
    }
    let any = |address: &str| {
        let mut program = program.clone();
        program.listeners[0].addresses = vec![address.parse().unwrap()];
        let request = Request { listener: Some("10.0.0.9:80".into()), ..get("h/", &[]) };
        listener(&program, &request).is_some()
    };
    assert!(any("0.0.0.0:80") && any("[::]:80") && !any("0.0.0.0:81"));
    program.listeners[0].addresses.clear();
    let request = Request { listener: Some("10.0.0.9:80".into()), ..get("h/", &[]) };
    assert_eq!(decide(&program, &request).outcome, Outcome::Closed);
}
