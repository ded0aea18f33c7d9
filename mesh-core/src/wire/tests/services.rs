//! Services.

use mesh_api::v1::{self, path_change::Change};

use super::{
    extensions::extension,
    names,
    rules::{backend, changes, filters, path_change, traffic},
};
use crate::{
    authorize::Access,
    balance::BalancePolicy,
    example,
    service::Service,
    wire::{
        self, MAX_BACKENDS, MAX_HEADERS, MAX_MATCH_TEXT, MAX_MATCHES, MAX_PORTS, MAX_PRINCIPALS,
        MAX_ROUTES, MAX_SITES, MAX_TEXT, WireError,
    },
};

pub(super) fn service(change: impl FnOnce(&mut v1::Service)) -> Result<Service, WireError> {
    let mut message = example::service("orders.shop");
    change(&mut message);
    wire::service(&message, &"east.example".parse().unwrap())
}

pub(super) fn header_match(name: &str, value: &str) -> v1::HeaderMatch {
    v1::HeaderMatch { name: name.into(), value: value.into(), ..Default::default() }
}

fn pattern_match(name: &str, regex: &str) -> v1::HeaderMatch {
    v1::HeaderMatch { name: name.into(), regex: regex.into(), ..Default::default() }
}

/// Each writes back what was read.
#[test]
#[allow(clippy::too_many_lines, reason = "every field once")]
fn a_service_there_and_back() {
    let mut message = example::service("orders.shop");
    message.exported_to = vec!["north".into(), "west".into()];
    message.imported_from = vec!["west".into()];
    message.virtual_address = "2001:db8::7".into();
    message.ports[0].number = 65535;
    let connections = |name: &str, tls: bool, hostnames: &[&str]| v1::ConnectionRoute {
        name: name.into(),
        port: "http".into(),
        client_namespace: "web".into(),
        tls,
        hostnames: hostnames.iter().map(ToString::to_string).collect(),
        backends: vec![v1::Backend { service: "a.b".into(), weight: 3, ..Default::default() }],
    };
    message.connection_routes = vec![
        connections("a", true, &["a.example.com", "*.example.com"]),
        connections("b", true, &[]),
        connections("c", false, &[]),
    ];
    let balance = BalancePolicy { subset: 3, ..BalancePolicy::default() };
    message.balance = Some((&balance).into());
    let principal = |trust_domain: &str, namespace: &str, account: &str| v1::PrincipalMatch {
        trust_domain: trust_domain.into(),
        namespace: namespace.into(),
        account: account.into(),
    };
    message.policy = Some(v1::AuthorizationPolicy {
        allow: vec![
            principal("", "shop", "web"),
            principal("*", "", ""),
            principal("west.example", "", "job"),
        ],
        rules: vec![
            v1::AccessRule {
                name: "AuthorizationPolicy shop/a".into(),
                port: "http".into(),
                route: "shop/orders".into(),
                callers: vec![principal("", "ops", "")],
                networks: vec![v1::Network {
                    cidr: "10.0.0.0/8".into(),
                    except: vec!["10.1.0.0/16".into()],
                }],
                ..Default::default()
            },
            v1::AccessRule {
                name: "default".into(),
                fallback: true,
                anyone: true,
                ..Default::default()
            },
        ],
        audit_ports: vec!["http".into()],
        routes: vec![v1::Route {
            name: "shop/orders".into(),
            matches: vec![v1::RouteMatch { method: "PUT".into(), ..Default::default() }],
            ..Default::default()
        }],
    });
    let route_match = |path| v1::RouteMatch {
        path,
        method: "PATCH".into(),
        headers: vec![header_match("x-a", "1\t2"), pattern_match("x-b", "a+")],
        query: vec![header_match("q", "a b"), pattern_match("r", "b+")],
    };
    message.routes = vec![
        v1::Route {
            name: "one".into(),
            matches: vec![
                route_match(None),
                route_match(Some(v1::route_match::Path::ExactPath("/a".into()))),
                route_match(Some(v1::route_match::Path::PathPrefix("/".into()))),
                route_match(Some(v1::route_match::Path::PathRegex("/a|/b".into()))),
            ],
            backends: vec![
                v1::Backend {
                    filters: Some(v1::Filters {
                        request: Some(changes()),
                        response: Some(changes()),
                        ..Default::default()
                    }),
                    invalid: "no such service".into(),
                    ..backend("a.shop", "x", u32::MAX)
                },
                backend("b.shop", "", 0),
            ],
            request_timeout_ms: u64::MAX,
            backend_timeout_ms: 1,
            port: "http".into(),
            client_namespace: "web".into(),
            failures: vec![v1::StatusRange { from: 404, to: 404 }],
            filters: Some(filters()),
            retry: Some(v1::RetryPolicy {
                attempts: 3,
                statuses: vec![v1::StatusRange { from: 500, to: 504 }],
                grpc_codes: vec![14],
                any_method: true,
                backoff_ms: 10,
                max_backoff_ms: 20,
                answers_only: true,
            }),
            fault: Some(v1::Fault {
                delay_ms: 5,
                delay_fraction: Some(v1::Fraction { numerator: 1, denominator: 3 }),
                abort_status: 503,
                abort_grpc_status: 8,
                abort_fraction: None,
                headers: vec![header_match("x-fault", "1")],
            }),
            extension: Some(extension()),
        },
        v1::Route {
            name: "two".into(),
            filters: Some(v1::Filters {
                redirect: Some(v1::Redirect {
                    scheme: "https".into(),
                    hostname: "x.y".into(),
                    path: path_change(Change::Full("/whole".into())),
                    port: 8443,
                    status: 308,
                }),
                ..Default::default()
            }),
            ..Default::default()
        },
    ];
    message.traffic = Some(traffic());
    let read = wire::service(&message, &"east.example".parse().unwrap()).unwrap();
    assert_eq!(v1::Service::from(&read), message);
    message.policy = Some(v1::AuthorizationPolicy::default());
    let read = wire::service(&message, &"east.example".parse().unwrap()).unwrap();
    assert_eq!(read.policy.access, Some(Access::default()), "nobody is not everybody");
    assert_eq!(v1::Service::from(&read), message);
}

#[test]
fn services_that_mean_nothing() {
    let port = |name: &str, number| v1::Port { name: name.into(), number, protocol: 0 };
    let route = |name: &str| v1::Route { name: name.into(), ..Default::default() };
    let one = |change: &dyn Fn(&mut v1::RouteMatch)| {
        let mut one = v1::RouteMatch::default();
        change(&mut one);
        v1::Route { matches: vec![one], ..route("r") }
    };
    let on_path = |path: String| {
        one(&move |m| m.path = Some(v1::route_match::Path::PathPrefix(path.clone())))
    };
    let header = |name: &str, value: &str| {
        let header = header_match(name, value);
        one(&move |m| m.headers = vec![header.clone()])
    };
    let principal = |namespace: &str| v1::AuthorizationPolicy {
        allow: vec![v1::PrincipalMatch { namespace: namespace.into(), ..Default::default() }],
        ..Default::default()
    };
    let to = |service: &str, port: &str| v1::Route {
        backends: vec![backend(service, port, 1)],
        ..route("r")
    };
    let cases: Vec<(&str, Result<Service, WireError>)> = vec![
        ("name", service(|s| s.name = "x".into())),
        ("ports", service(|s| s.ports.clear())),
        ("ports", service(|s| s.ports.push(port("http", 81)))),
        ("ports", service(|s| s.ports.push(port("other", 80)))),
        ("ports.name", service(|s| s.ports.push(port("", 81)))),
        ("ports.number", service(|s| s.ports.push(port("other", 0)))),
        ("ports.number", service(|s| s.ports.push(port("other", 65536)))),
        ("exported_to", service(|s| s.exported_to = vec!["*".into()])),
        ("imported_from", service(|s| s.imported_from = vec![String::new()])),
        ("virtual_address", service(|s| s.virtual_address = "10.0.0.1:80".into())),
        ("routes", service(|s| s.routes = vec![route("a"), route("a")])),
        ("routes.name", service(|s| s.routes = vec![route("a\nb")])),
        ("matches.path", service(|s| s.routes = vec![on_path("a".into())])),
        ("matches.path", service(|s| s.routes = vec![on_path(String::new())])),
        ("matches.method", service(|s| s.routes = vec![one(&|m| m.method = "G T".into())])),
        ("matches.method", service(|s| s.routes = vec![one(&|m| m.method = "G".repeat(33))])),
        ("matches.headers", service(|s| s.routes = vec![header("x y", "1")])),
        ("matches.headers", service(|s| s.routes = vec![header("x", "\n")])),
        ("backends.service", service(|s| s.routes = vec![to("x", "")])),
        ("backends.port", service(|s| s.routes = vec![to("a.shop", "-")])),
        ("policy.namespace", service(|s| s.policy = Some(principal("a/b")))),
    ];
    for (field, result) in cases {
        let error = result.expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

fn route(i: usize) -> v1::Route {
    v1::Route { name: format!("r-{i}"), ..Default::default() }
}

/// A service with one such route.
pub(super) fn routed(change: &dyn Fn(&mut v1::Route)) -> Result<Service, WireError> {
    let mut one = route(0);
    change(&mut one);
    service(|s| s.routes = vec![one])
}

/// A service with one route with one such match.
pub(super) fn matched(change: &dyn Fn(&mut v1::RouteMatch)) -> Result<Service, WireError> {
    let mut one = v1::RouteMatch::default();
    change(&mut one);
    routed(&|r| r.matches = vec![one.clone()])
}

/// Every limit: exactly so many pass, one more does not.
#[test]
fn limits() {
    fn fill<T: Clone>(n: usize, one: impl Fn(usize) -> T) -> Vec<T> {
        (0..n).map(one).collect()
    }
    let port = |i: usize| v1::Port { name: format!("p-{i}"), number: i as u32 + 1, protocol: 0 };
    let header = |_| header_match("x", "1");
    let one = |_| backend("a.shop", "", u32::MAX);
    let path = |n: usize| format!("/{}", "x".repeat(n - 1));
    type Case<'a> = (&'a str, usize, Box<dyn Fn(usize) -> Result<Service, WireError> + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("ports", MAX_PORTS, Box::new(|n| service(|s| s.ports = fill(n, port)))),
        ("routes", MAX_ROUTES, Box::new(|n| service(|s| s.routes = fill(n, route)))),
        ("exported_to", MAX_SITES, Box::new(|n| service(|s| s.exported_to = names(n)))),
        ("imported_from", MAX_SITES, Box::new(|n| service(|s| s.imported_from = names(n)))),
        (
            "policy.allow",
            MAX_PRINCIPALS,
            Box::new(|n| {
                let allow = fill(n, |_| v1::PrincipalMatch::default());
                let policy = v1::AuthorizationPolicy { allow, ..Default::default() };
                service(|s| s.policy = Some(policy))
            }),
        ),
        ("routes.name", MAX_TEXT, Box::new(|n| routed(&|r| r.name = "n".repeat(n)))),
        (
            "routes.matches",
            MAX_MATCHES,
            Box::new(|n| routed(&|r| r.matches = fill(n, |_| v1::RouteMatch::default()))),
        ),
        ("routes.backends", MAX_BACKENDS, Box::new(|n| routed(&|r| r.backends = fill(n, one)))),
        ("matches.headers", MAX_HEADERS, Box::new(|n| matched(&|m| m.headers = fill(n, header)))),
        (
            "matches.headers",
            MAX_MATCH_TEXT,
            Box::new(|n| {
                let header = header_match("x", &"v".repeat(n));
                matched(&|m| m.headers = vec![header.clone()])
            }),
        ),
        (
            "matches.headers",
            MAX_TEXT,
            Box::new(|n| {
                let header = header_match(&"n".repeat(n), "v");
                matched(&|m| m.headers = vec![header.clone()])
            }),
        ),
        (
            "matches.path",
            MAX_MATCH_TEXT,
            Box::new(|n| matched(&|m| m.path = Some(v1::route_match::Path::ExactPath(path(n))))),
        ),
        ("matches.method", 32, Box::new(|n| matched(&|m| m.method = "M".repeat(n)))),
    ];
    for (field, max, case) in cases {
        assert!(case(max).is_ok(), "{field}: {max}");
        assert_eq!(case(max + 1).unwrap_err().field, field, "{max}");
    }
}
