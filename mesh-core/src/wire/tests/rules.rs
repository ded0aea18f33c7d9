//! Rules and protection of services.

use mesh_api::v1::{self, path_change::Change};

use super::services::{header_match, matched, routed, service};
use crate::{service::Service, wire::WireError};

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
            hostname: "orders.internal".into(),
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
        replay_bytes: 1,
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
