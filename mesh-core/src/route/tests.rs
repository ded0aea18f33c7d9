use std::time::Duration;

use http::Method;
use mesh_api::v1::{self, resource::Resource as Kind, route_match::Path};
use proptest::prelude::*;

use super::{Caller, Destination, NoRoute, choose, choose_backend, connection, route, rule};
use crate::{
    example::{change, mesh, service},
    message::RequestHead,
    reason::Reason,
    service::{Backend, Backends},
    snapshot::{Snapshot, apply},
};

fn destination(service: &str, port: &str) -> Destination {
    Destination { service: service.parse().unwrap(), port: port.parse().unwrap() }
}

fn backend(service: &str, port: &str, weight: u32) -> v1::Backend {
    v1::Backend { service: service.into(), port: port.into(), weight, ..Default::default() }
}

fn on_path(path: Path) -> v1::RouteMatch {
    v1::RouteMatch { path: Some(path), ..Default::default() }
}

fn header(name: &str, value: &str) -> v1::HeaderMatch {
    v1::HeaderMatch { name: name.into(), value: value.into(), ..Default::default() }
}

/// `orders.shop` with these routes: (name, matches).
fn routed(routes: Vec<(&str, Vec<v1::RouteMatch>)>) -> Snapshot {
    let routes = routes.into_iter().map(|(name, matches)| v1::Route {
        name: name.into(),
        matches,
        backends: vec![backend(&format!("{name}.shop"), "", 1)],
        ..Default::default()
    });
    let service = v1::Service { routes: routes.collect(), ..service("orders.shop") };
    let mesh = mesh();
    apply(Some(&mesh), &change(&mesh, vec![Kind::Service(service)], vec![])).unwrap()
}

/// The name of the route that a request falls under, or the refusal.
fn routed_to(snapshot: &Snapshot, head: Option<&RequestHead>) -> String {
    match rule(snapshot, &destination("orders.shop", "http"), Caller::default(), head) {
        Ok(rule) => rule.route.map_or("itself".into(), |route| route.name.to_string()),
        Err(error) => error.reason().to_string(),
    }
}

fn with_path(snapshot: &Snapshot, path: &str) -> String {
    routed_to(snapshot, Some(&RequestHead { target: path.into(), ..RequestHead::new() }))
}

#[test]
fn a_service_without_routes_is_its_own_backend() {
    let mesh = mesh();
    let to = destination("orders.shop", "http");
    let own = Backend { service: to.service.clone(), port: to.port.clone(), weight: 1 };
    assert_eq!(route(&mesh, &to, Caller::default(), None), Ok(Backends(vec![own])));
    let rule = rule(&mesh, &to, Caller::default(), None).unwrap();
    let chosen = rule.choose(u64::MAX).map(|chosen| (chosen.service, chosen.port));
    assert_eq!(chosen, Some((&to.service, &to.port)));
    assert_eq!(rule.request_timeout(), None);
    assert_eq!(rule.port.number, 80);
}

#[test]
fn refusals() {
    let mesh = mesh();
    let cases = [
        ("none.shop", "http", Reason::NoSuchService, "service none.shop: not known here"),
        ("orders.shop", "grpc", Reason::NoSuchPort, "service orders.shop: no port grpc"),
    ];
    for (service, port, reason, message) in cases {
        let error = route(&mesh, &destination(service, port), Caller::default(), None).unwrap_err();
        assert_eq!((error.reason(), error.to_string().as_str()), (reason, message));
    }
    let post = v1::RouteMatch { method: "POST".into(), ..Default::default() };
    let snapshot = routed(vec![("post", vec![post])]);
    let error =
        route(&snapshot, &destination("orders.shop", "http"), Caller::default(), None).unwrap_err();
    assert_eq!(error, NoRoute::NoMatch("orders.shop".parse().unwrap()));
    assert_eq!(error.reason(), Reason::NoRoute);
}

#[test]
fn paths() {
    let exact = |path: &str| vec![on_path(Path::ExactPath(path.into()))];
    let prefix = |path: &str| vec![on_path(Path::PathPrefix(path.into()))];
    let snapshot = routed(vec![
        ("exact", exact("/a")),
        ("deep", prefix("/a/b/")),
        ("prefix", prefix("/a")),
        ("other", prefix("/c")),
    ]);
    let cases = [
        ("/a", "exact"),
        ("/a/", "prefix"),
        ("/a/x", "prefix"),
        ("/a/b", "deep"),
        ("/a/b/", "deep"),
        ("/a/b/c", "deep"),
        ("/a/bc", "prefix"),
        ("/ab", "no_route"),
        ("/c", "other"),
        ("/", "no_route"),
        ("", "no_route"),
        ("*", "no_route"),
    ];
    for (path, expected) in cases {
        assert_eq!(with_path(&snapshot, path), expected, "{path}");
    }
    let everything = routed(vec![("all", prefix("/"))]);
    for path in ["/", "/x", "/x/y"] {
        assert_eq!(with_path(&everything, path), "all", "{path}");
    }
}

#[test]
fn methods_and_headers_and_their_conjunction() {
    let one = |method: &str, headers: Vec<v1::HeaderMatch>| v1::RouteMatch {
        path: Some(Path::PathPrefix("/".into())),
        method: method.into(),
        headers,
        ..Default::default()
    };
    let snapshot = routed(vec![
        ("both", vec![one("POST", vec![header("X-Tenant", "a"), header("x-beta", "1")])]),
        ("either", vec![one("PUT", vec![]), one("", vec![header("x-tenant", "b")])]),
        ("rest", vec![one("GET", vec![])]),
    ]);
    type Pairs = &'static [(&'static str, &'static str)];
    let cases: [(Method, Pairs, &str); 8] = [
        (Method::POST, &[("x-tenant", "a"), ("x-beta", "1")], "both"),
        (Method::POST, &[("x-tenant", "z"), ("x-tenant", "a"), ("x-beta", "1")], "both"),
        (Method::POST, &[("x-tenant", "a")], "no_route"),
        (Method::POST, &[("x-tenant", "A"), ("x-beta", "1")], "no_route"),
        (Method::PUT, &[], "either"),
        (Method::DELETE, &[("x-tenant", "b")], "either"),
        (Method::GET, &[], "rest"),
        (Method::HEAD, &[], "no_route"),
    ];
    for (method, pairs, expected) in cases {
        let target = "/".to_owned();
        let mut head = RequestHead { method: method.clone(), target, ..RequestHead::new() };
        for (name, value) in pairs {
            head.fields.push(name, value.as_bytes());
        }
        assert_eq!(routed_to(&snapshot, Some(&head)), expected, "{method} {pairs:?}");
    }
}

#[test]
fn opaque_bytes_take_only_routes_without_matches() {
    let any = on_path(Path::PathPrefix("/".into()));
    let snapshot = routed(vec![("http", vec![any.clone()]), ("tcp", vec![]), ("late", vec![])]);
    assert_eq!(routed_to(&snapshot, None), "tcp");
    assert_eq!(with_path(&snapshot, "/x"), "http");
    assert_eq!(routed_to(&routed(vec![("http", vec![any])]), None), "no_route");
}

#[test]
fn backends_take_the_called_port_unless_they_name_one() {
    let mesh = mesh();
    let split = v1::Route {
        name: "split".into(),
        backends: vec![backend("orders.shop", "", 3), backend("billing.shop", "admin", 1)],
        request_timeout_ms: 1500,
        ..Default::default()
    };
    let service = v1::Service { routes: vec![split], ..service("orders.shop") };
    let snapshot =
        apply(Some(&mesh), &change(&mesh, vec![Kind::Service(service)], vec![])).unwrap();
    let to = destination("orders.shop", "http");
    let rule = rule(&snapshot, &to, Caller::default(), None).unwrap();
    assert_eq!(rule.request_timeout(), Some(Duration::from_millis(1500)));
    let names =
        |point: u64| rule.choose(point).map(|chosen| format!("{}:{}", chosen.service, chosen.port));
    assert_eq!(names(0).as_deref(), Some("orders.shop:http"));
    assert_eq!(names(u64::MAX).as_deref(), Some("billing.shop:admin"));
    let written = &rule.route.unwrap().backends;
    for (random, at) in [(0, 0), (u64::MAX / 2, 0), (u64::MAX, 1)] {
        assert_eq!(choose(written, random), Some((at, &written[at])), "{random}");
    }
    assert_eq!(choose(&[], 0), None);
    let backends = route(&snapshot, &to, Caller::default(), None).unwrap();
    let connection = connection(&snapshot, &to, Caller::default(), None).unwrap();
    assert_eq!(connection.backends(), backends);
    let all: Vec<_> =
        backends.0.iter().map(|b| format!("{}:{}:{}", b.service, b.port, b.weight)).collect();
    assert_eq!(all, ["orders.shop:http:3", "billing.shop:admin:1"]);
}

fn weights(weights: &[u32]) -> Backends {
    let backends = weights.iter().enumerate().map(|(i, weight)| Backend {
        service: format!("b{i}.shop").parse().unwrap(),
        port: "http".parse().unwrap(),
        weight: *weight,
    });
    Backends(backends.collect())
}

#[test]
fn no_weight_no_backend() {
    assert_eq!(choose_backend(&weights(&[]), 0), None);
    assert_eq!(choose_backend(&weights(&[0, 0]), u64::MAX), None);
    for random in [0, 1, u64::MAX / 2, u64::MAX] {
        let only = weights(&[0, 7, 0]);
        assert_eq!(choose_backend(&only, random), Some(&only.0[1]));
    }
}

proptest! {
    /// Evenly spread points hit each backend exactly as often as its weight
    /// says, within one.
    #[test]
    fn weights_are_honoured(
        given in prop::collection::vec(prop_oneof![Just(0u32), 1u32..1000, Just(u32::MAX)], 1..8)
    ) {
        let total: u64 = given.iter().map(|w| u64::from(*w)).sum();
        prop_assume!(total > 0);
        let backends = weights(&given);
        const POINTS: u64 = 10_000;
        let mut counts = vec![0u64; given.len()];
        for i in 0..POINTS {
            let chosen = choose_backend(&backends, i * (u64::MAX / POINTS)).unwrap();
            counts[backends.0.iter().position(|b| b == chosen).unwrap()] += 1;
        }
        for (count, weight) in counts.iter().zip(&given) {
            let expected = u128::from(POINTS) * u128::from(*weight) / u128::from(total);
            prop_assert!(u128::from(*count).abs_diff(expected) <= 1, "{counts:?} for {given:?}");
        }
    }
}
