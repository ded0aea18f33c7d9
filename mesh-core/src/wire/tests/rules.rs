//! Rules and protection of services.

use std::time::Duration;

use mesh_api::v1::{self, path_change::Change};

use super::services::{header_match, matched, routed, service};
use crate::{
    rule::{Fraction, RetryBudget, TrafficPolicy},
    service::Service,
    wire::{
        MAX_CHANGES, MAX_HEADERS, MAX_MATCH_TEXT, MAX_MATCHES, MAX_MIRRORS, MAX_RATE_LIMITS,
        MAX_STATUSES, WireError,
    },
};

pub(super) fn backend(service: &str, port: &str, weight: u32) -> v1::Backend {
    v1::Backend { service: service.into(), port: port.into(), weight, ..Default::default() }
}

pub(super) fn changes() -> v1::HeaderChanges {
    let header = |name: &str| v1::Header { name: name.into(), value: "v w".into() };
    v1::HeaderChanges {
        set: vec![header("x-set")],
        add: vec![header("x-add"), header("x-add")],
        remove: vec!["x-remove".into()],
    }
}

#[allow(clippy::unnecessary_wraps, reason = "as the field wants it")]
pub(super) fn path_change(change: Change) -> Option<v1::PathChange> {
    Some(v1::PathChange { change: Some(change) })
}

pub(super) fn filters() -> v1::Filters {
    let fraction = Some(v1::Fraction { numerator: 1, denominator: 1000 });
    v1::Filters {
        request: Some(changes()),
        response: Some(changes()),
        redirect: None,
        rewrite: Some(v1::Rewrite {
            hostname: "orders.internal:8080".into(),
            path: path_change(Change::Full("/whole".into())),
        }),
        mirrors: vec![
            v1::Mirror { service: "copy.shop".into(), port: "http".into(), fraction },
            v1::Mirror { service: "copy.shop".into(), ..Default::default() },
        ],
    }
}

pub(super) fn traffic() -> v1::TrafficPolicy {
    v1::TrafficPolicy {
        rate_limits: vec![v1::RateLimit {
            matches: vec![v1::RouteMatch { method: "POST".into(), ..Default::default() }],
            requests: 10,
            period_ms: 1500,
            burst: 3,
            per_caller: true,
        }],
        concurrency: Some(v1::Concurrency { max_in_flight: 7, max_queue: 0, queue_timeout_ms: 20 }),
        retry_budget: Some(v1::RetryBudget { percent: 5, min_per_second: 0, ttl_ms: 60_000 }),
        circuit_breaker: Some(v1::CircuitBreaker {
            max_requests: 1,
            max_pending: 2,
            max_connections: 0,
            max_retries: 3,
        }),
        health_check: Some(v1::HealthCheck {
            http_path: "/healthz?deep=1".into(),
            http_statuses: vec![v1::StatusRange { from: 200, to: 204 }],
            interval_ms: 500,
            timeout_ms: 100,
            unhealthy_threshold: 4,
            healthy_threshold: 1,
        }),
        replay_bytes: 1,
        listed_order: true,
    }
}

/// What a rule may not say, each with the field that says it.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn rules_that_mean_nothing() {
    let filtered = |filters: v1::Filters| routed(&move |r| r.filters = Some(filters.clone()));
    let redirect = |redirect: v1::Redirect| {
        filtered(v1::Filters { redirect: Some(redirect), ..Default::default() })
    };
    let rewritten = |hostname: &str| {
        let rewrite = Some(v1::Rewrite { hostname: hostname.into(), path: None });
        filtered(v1::Filters { rewrite, ..Default::default() })
    };
    let set = |name: &str| {
        let header = v1::Header { name: name.into(), value: "1".into() };
        let request = Some(v1::HeaderChanges { set: vec![header], ..Default::default() });
        filtered(v1::Filters { request, ..Default::default() })
    };
    let prefix = || v1::Filters {
        rewrite: Some(v1::Rewrite {
            path: path_change(Change::Prefix("/x".into())),
            ..Default::default()
        }),
        ..Default::default()
    };
    let retry = |retry: v1::RetryPolicy| routed(&move |r| r.retry = Some(retry.clone()));
    let traffic = |change: &dyn Fn(&mut v1::TrafficPolicy)| {
        let mut policy = traffic();
        change(&mut policy);
        service(|s| s.traffic = Some(policy))
    };
    let range = |from, to| vec![v1::StatusRange { from, to }];
    let cases: Vec<(&str, Result<Service, WireError>)> = vec![
        ("filters.request", set("Content-Length")),
        ("filters.request", set("transfer-encoding")),
        ("filters.request", set("host")),
        ("filters.request", set("x-isthmus-client-id")),
        (
            "filters.path",
            redirect(v1::Redirect {
                path: Some(v1::PathChange { change: None }),
                ..Default::default()
            }),
        ),
        ("redirect.scheme", redirect(v1::Redirect { scheme: "ftp".into(), ..Default::default() })),
        ("redirect.status", redirect(v1::Redirect { status: 304, ..Default::default() })),
        ("redirect.port", redirect(v1::Redirect { port: 65536, ..Default::default() })),
        (
            "redirect.hostname",
            redirect(v1::Redirect { hostname: "a/b".into(), ..Default::default() }),
        ),
        ("rewrite.hostname", rewritten("a:b")),
        ("rewrite.hostname", rewritten(":80")),
        ("rewrite.hostname", rewritten("a:80:80")),
        (
            "filters.redirect",
            routed(&|r| {
                r.backends = vec![backend("a.shop", "", 1)];
                r.filters = Some(v1::Filters {
                    redirect: Some(v1::Redirect::default()),
                    ..Default::default()
                });
            }),
        ),
        (
            "filters.path.prefix",
            routed(&|r| {
                r.filters = Some(prefix());
                r.matches = vec![v1::RouteMatch {
                    path: Some(v1::route_match::Path::ExactPath("/a".into())),
                    ..Default::default()
                }];
            }),
        ),
        (
            "filters.mirrors",
            filtered(v1::Filters {
                mirrors: vec![v1::Mirror { service: "a.b".into(), ..Default::default() }; 5],
                ..Default::default()
            }),
        ),
        (
            "mirrors.fraction",
            filtered(v1::Filters {
                mirrors: vec![v1::Mirror {
                    service: "a.b".into(),
                    fraction: Some(v1::Fraction { numerator: 101, denominator: 0 }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
        ),
        (
            "backends.filters",
            routed(&|r| {
                let filters = Some(v1::Filters {
                    rewrite: Some(v1::Rewrite::default()),
                    ..Default::default()
                });
                r.backends = vec![v1::Backend { filters, ..backend("a.shop", "", 1) }];
            }),
        ),
        (
            "matches.path",
            matched(&|m| {
                m.path = Some(v1::route_match::Path::PathRegex("(".into()));
            }),
        ),
        (
            "matches.query",
            matched(&|m| {
                m.query = vec![v1::HeaderMatch { regex: "[".into(), ..header_match("q", "") }];
            }),
        ),
        ("routes.failures", routed(&|r| r.failures = range(500, 499))),
        ("routes.failures", routed(&|r| r.failures = range(0, 499))),
        ("routes.port", routed(&|r| r.port = "-".into())),
        ("routes.client_namespace", routed(&|r| r.client_namespace = "a/b".into())),
        ("retry.attempts", retry(v1::RetryPolicy { attempts: 11, ..Default::default() })),
        (
            "retry.statuses",
            retry(v1::RetryPolicy { statuses: range(500, 1000), ..Default::default() }),
        ),
        (
            "retry.max_backoff_ms",
            retry(v1::RetryPolicy { backoff_ms: 10, max_backoff_ms: 9, ..Default::default() }),
        ),
        (
            "fault.abort_status",
            routed(&|r| {
                r.fault = Some(v1::Fault { abort_status: 600, ..Default::default() });
            }),
        ),
        ("rate_limits.requests", traffic(&|t| t.rate_limits[0].requests = 0)),
        (
            "concurrency.max_in_flight",
            traffic(&|t| {
                t.concurrency = Some(v1::Concurrency::default());
            }),
        ),
        (
            "retry_budget.percent",
            traffic(&|t| {
                t.retry_budget = Some(v1::RetryBudget { percent: 101, ..Default::default() });
            }),
        ),
        ("traffic.replay_bytes", traffic(&|t| t.replay_bytes = (16 << 20) + 1)),
    ];
    for (field, result) in cases {
        let error = result.expect_err(field);
        assert_eq!(error.field, field, "{error}");
    }
}

/// Every limit of rules and protection: so much passes, one more does not.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn limits_of_rules() {
    type Case<'a> = (&'a str, u32, Box<dyn Fn(u32) -> Result<Service, WireError> + 'a>);
    fn many<T: Clone>(n: u32, one: T) -> Vec<T> {
        vec![one; n as usize]
    }
    fn limit(limit: usize) -> u32 {
        u32::try_from(limit).unwrap()
    }
    let filtered = |filters: v1::Filters| routed(&move |r| r.filters = Some(filters.clone()));
    let changed = |request: v1::HeaderChanges| {
        filtered(v1::Filters { request: Some(request), ..Default::default() })
    };
    let header = |name: &str, length| v1::Header { name: name.into(), value: "v".repeat(length) };
    let fraction = |numerator, denominator| Some(v1::Fraction { numerator, denominator });
    let faulty = |fault: v1::Fault| routed(&move |r| r.fault = Some(fault.clone()));
    let retry = |retry: v1::RetryPolicy| routed(&move |r| r.retry = Some(retry.clone()));
    let protected = |change: &dyn Fn(&mut v1::TrafficPolicy)| {
        let mut policy = traffic();
        change(&mut policy);
        service(|s| s.traffic = Some(policy))
    };
    let status = v1::StatusRange { from: 100, to: 999 };
    let mirror = v1::Mirror { service: "a.b".into(), ..Default::default() };
    let any_match = v1::RouteMatch::default();
    let cases: Vec<Case<'_>> = vec![
        (
            "filters.request",
            limit(MAX_MATCH_TEXT),
            Box::new(|n| {
                let set = vec![header("x-a", n as usize)];
                changed(v1::HeaderChanges { set, ..Default::default() })
            }),
        ),
        (
            "filters.request",
            limit(MAX_CHANGES),
            Box::new(|n| {
                let add = many(n, header("x-a", 1));
                changed(v1::HeaderChanges { add, ..Default::default() })
            }),
        ),
        (
            "filters.request",
            limit(MAX_CHANGES),
            Box::new(|n| {
                let remove = many(n, "x-a".into());
                changed(v1::HeaderChanges { remove, ..Default::default() })
            }),
        ),
        (
            "filters.mirrors",
            limit(MAX_MIRRORS),
            Box::new(|n| {
                filtered(v1::Filters { mirrors: many(n, mirror.clone()), ..Default::default() })
            }),
        ),
        (
            "redirect.port",
            65535,
            Box::new(|port| {
                let redirect = Some(v1::Redirect { port, ..Default::default() });
                filtered(v1::Filters { redirect, ..Default::default() })
            }),
        ),
        (
            "matches.query",
            limit(MAX_HEADERS),
            Box::new(|n| matched(&|m| m.query = many(n, header_match("q", "1")))),
        ),
        (
            "matches.query",
            limit(MAX_MATCH_TEXT),
            Box::new(|n| matched(&|m| m.query = vec![header_match("q", &"v".repeat(n as usize))])),
        ),
        (
            "routes.failures",
            limit(MAX_STATUSES),
            Box::new(|n| routed(&|r| r.failures = many(n, status))),
        ),
        (
            "routes.failures",
            999,
            Box::new(|to| routed(&|r| r.failures = vec![v1::StatusRange { from: 999, to }])),
        ),
        (
            "retry.attempts",
            10,
            Box::new(|attempts| retry(v1::RetryPolicy { attempts, ..Default::default() })),
        ),
        (
            "retry.grpc_codes",
            limit(MAX_STATUSES),
            Box::new(|n| retry(v1::RetryPolicy { grpc_codes: many(n, 14), ..Default::default() })),
        ),
        (
            "retry.max_backoff_ms",
            20,
            Box::new(|n| {
                let backoff_ms = n.into();
                retry(v1::RetryPolicy { backoff_ms, max_backoff_ms: 20, ..Default::default() })
            }),
        ),
        (
            "fault.abort_status",
            599,
            Box::new(|abort_status| faulty(v1::Fault { abort_status, ..Default::default() })),
        ),
        (
            "fault.delay_fraction",
            7,
            Box::new(|n| {
                faulty(v1::Fault { delay_fraction: fraction(n, 7), ..Default::default() })
            }),
        ),
        (
            "fault.abort_fraction",
            100,
            Box::new(|n| {
                faulty(v1::Fault { abort_fraction: fraction(n, 0), ..Default::default() })
            }),
        ),
        (
            "traffic.rate_limits",
            limit(MAX_RATE_LIMITS),
            Box::new(|n| protected(&|t| t.rate_limits = many(n, t.rate_limits[0].clone()))),
        ),
        (
            "rate_limits.matches",
            limit(MAX_MATCHES),
            Box::new(|n| protected(&|t| t.rate_limits[0].matches = many(n, any_match.clone()))),
        ),
        (
            "retry_budget.percent",
            100,
            Box::new(|percent| {
                let budget = v1::RetryBudget { percent, ..Default::default() };
                protected(&|t| t.retry_budget = Some(budget))
            }),
        ),
        ("traffic.replay_bytes", 16 << 20, Box::new(|n| protected(&|t| t.replay_bytes = n.into()))),
    ];
    for (field, max, case) in cases {
        case(max).unwrap_or_else(|error| panic!("{field} {max}: {error}"));
        assert_eq!(case(max + 1).unwrap_err().field, field, "{max}");
    }
}

#[test]
fn redirects_there_and_back() {
    let redirected = |redirect: &v1::Redirect| {
        let filters = v1::Filters { redirect: Some(redirect.clone()), ..Default::default() };
        let read = routed(&|r| r.filters = Some(filters.clone()))?;
        Ok::<_, WireError>(v1::Redirect::from(read.routes[0].filters.redirect.as_ref().unwrap()))
    };
    for status in [301, 302, 303, 307, 308] {
        for scheme in ["", "http", "https"] {
            let redirect = v1::Redirect { scheme: scheme.into(), status, ..Default::default() };
            assert_eq!(redirected(&redirect), Ok(redirect));
        }
    }
    assert_eq!(redirected(&v1::Redirect::default()).unwrap().status, 302);
}

/// An empty prefix takes the matched one away; any other begins with a slash.
#[test]
fn changes_of_paths_there_and_back() {
    let rewritten = |change: Change| {
        let rewrite = v1::Rewrite { path: path_change(change), ..Default::default() };
        let filters = v1::Filters { rewrite: Some(rewrite), ..Default::default() };
        let read = routed(&|r| r.filters = Some(filters.clone()))?;
        let rewrite = v1::Rewrite::from(read.routes[0].filters.rewrite.as_ref().unwrap());
        Ok::<_, WireError>(rewrite.path.unwrap().change.unwrap())
    };
    let good = [Change::Full("/a".into()), Change::Prefix("/a".into()), Change::Prefix("".into())];
    for change in good {
        assert_eq!(rewritten(change.clone()), Ok(change));
    }
    for bad in [Change::Full("a".into()), Change::Full("".into()), Change::Prefix("a".into())] {
        assert_eq!(rewritten(bad.clone()).unwrap_err().field, "filters.path", "{bad:?}");
    }
}

/// What is not said means the same to everybody.
#[test]
fn what_rules_do_not_say() {
    let ms = Duration::from_millis;
    let policy = |message: v1::TrafficPolicy| {
        let read = service(|s| s.traffic = Some(message)).unwrap();
        read.traffic
    };
    let nothing = policy(v1::TrafficPolicy::default());
    assert_eq!(nothing, TrafficPolicy::default());
    assert_eq!(nothing.replay_bytes, 65536);
    let RetryBudget { percent, min_per_second, ttl } = nothing.retry_budget;
    assert_eq!((percent, min_per_second, ttl), (20, 10, ms(10_000)));
    let some = policy(v1::TrafficPolicy {
        rate_limits: vec![v1::RateLimit { requests: 7, ..Default::default() }],
        concurrency: Some(v1::Concurrency { max_in_flight: 1, ..Default::default() }),
        ..Default::default()
    });
    assert_eq!((some.rate_limits[0].burst, some.rate_limits[0].period), (7, ms(1000)));
    assert_eq!(some.concurrency.unwrap().queue_timeout, ms(1000));
    let read = routed(&|r| {
        r.retry = Some(v1::RetryPolicy::default());
        r.fault = Some(v1::Fault { abort_status: 200, ..Default::default() });
    });
    let rule = &read.unwrap().routes[0];
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.backoff, retry.max_backoff), (ms(25), ms(250)));
    let fault = rule.fault.as_ref().unwrap();
    assert_eq!(fault.abort, Some((http::StatusCode::OK, Fraction::ALL)));
    assert_eq!((fault.abort_grpc_status, fault.delay), (14, None));
}
