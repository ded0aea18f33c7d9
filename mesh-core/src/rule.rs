//! What is written about requests: Gateway API rules, and how callers and
//! servers protect themselves.
//!
//! - [`matching`]: which rule a request falls under.
//! - [`connection`]: which rule a connection falls under.
//! - [`budget`]: how many repetitions there may be.
//! - [`health`]: how callers find out who answers.
//! - [`filter`]: what a rule changes about a request and its answer.
//! - [`extension`]: what of both Gateway API has no words for.
//! - [`rewrite`]: paths that are changed by a pattern.
//! - [`template`]: header values that are made of the request.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};

use crate::name::{PortName, ServiceName};

pub mod budget;
pub mod connection;
pub mod extension;
pub mod filter;
pub mod health;
pub mod matching;
pub mod rewrite;
pub mod template;

pub use budget::Budget;
pub use connection::{ConnectionRoute, ConnectionRoutes};
pub use extension::{Caller, Extension, Reply};
pub use filter::Target;
pub use health::HealthCheck;
pub use matching::{Routes, RuleOrder};
pub use rewrite::PathPattern;
pub use template::Template;

/// One rule of a Gateway API HTTPRoute or GRPCRoute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Route {
    /// Unique in the service.
    pub name: Arc<str>,
    /// The port it is for; `None` is every one.
    pub port: Option<PortName>,
    /// The callers' namespace it is for; `None` is every one (a producer
    /// route, GEP-1294).
    pub client_namespace: Option<Arc<str>>,
    /// Any may match; none matches everything.
    pub matches: Vec<RouteMatch>,
    /// What it changes.
    pub filters: Filters,
    /// What takes the requests, by weight; none refuses them.
    pub backends: Vec<RouteBackend>,
    /// Deadline of the whole request.
    pub request_timeout: Option<Duration>,
    /// Deadline of one attempt.
    pub backend_timeout: Option<Duration>,
    /// When an attempt is repeated; `None` only if it was never processed, or
    /// once if it is idempotent and got no answer.
    pub retry: Option<RetryPolicy>,
    /// Injected on purpose.
    pub fault: Option<Fault>,
    /// Statuses that count as failures; empty is 500 to 599.
    pub failures: Vec<RangeInclusive<u16>>,
    /// What Gateway API has no words for; `None` is nothing.
    pub extension: Option<Box<Extension>>,
}

/// Whether an answer counts as a failure of the service: its status is one of
/// the rule's `failures` (without any, or without a rule, 5xx), or what gRPC
/// says in it or after it is the server's fault.
pub fn is_failure(
    failures: &[RangeInclusive<u16>],
    status: StatusCode,
    grpc_status: Option<u32>,
) -> bool {
    let by_status = match failures {
        [] => status.is_server_error(),
        failures => failures.iter().any(|range| range.contains(&status.as_u16())),
    };
    by_status || grpc_status.is_some_and(is_grpc_failure)
}

/// UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS: all others
/// are what the caller asked for, or its own fault.
pub fn is_grpc_failure(status: u32) -> bool {
    matches!(status, 2 | 4 | 13 | 14 | 15)
}

/// One weighted target of a rule as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteBackend {
    /// Which service.
    pub service: ServiceName,
    /// Which of its ports; `None` is the one the client called.
    pub port: Option<PortName>,
    /// Relative share; 0 is none.
    pub weight: u32,
    /// Header changes after those of the rule.
    pub request: HeaderChanges,
    /// The same for answers.
    pub response: HeaderChanges,
    /// Why its share is answered with 500 (Gateway API: an invalid backendRef
    /// keeps its share).
    pub invalid: Option<Arc<str>>,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteMatch {
    /// The path of the request target, without its query.
    pub path: Option<PathMatch>,
    /// Exact, case-sensitive (RFC 9110 section 9.1).
    pub method: Option<Method>,
    /// Any value of the field may match; `host` is as the client sent it.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// What is made of the request must match; it may be empty.
    pub said: Vec<(Template, TextMatch)>,
    /// The first value of the parameter must match, percent-encoding undone.
    pub query: Vec<(Arc<str>, TextMatch)>,
}

/// Gateway API HTTPPathMatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(Arc<str>),
    /// Whole path elements: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(Arc<str>),
    /// The whole path matches the pattern.
    Regex(Pattern),
}

/// What one header or query parameter must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextMatch {
    /// These bytes.
    Exact(Arc<[u8]>),
    /// Matches as a whole.
    Regex(Pattern),
}

/// A regular expression over bytes that matches whole values, in linear time
/// (the syntax of the `regex` crate, without Unicode classes).
#[derive(Debug, Clone)]
pub struct Pattern {
    text: Arc<str>,
    compiled: regex::bytes::Regex,
}

/// Memory that one compiled pattern may take.
const MAX_PATTERN_MEMORY: usize = 256 << 10;

impl Pattern {
    /// Compiles it.
    ///
    /// # Errors
    ///
    /// It is no regular expression, or needs too much memory.
    pub fn new(text: &str) -> Result<Self, regex::Error> {
        let compiled = regex::bytes::RegexBuilder::new(&format!("^(?:{text})$"))
            .unicode(false)
            .size_limit(MAX_PATTERN_MEMORY)
            .dfa_size_limit(MAX_PATTERN_MEMORY)
            .build()?;
        Ok(Self { text: text.into(), compiled })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether all of `value` matches.
    pub fn matches(&self, value: &[u8]) -> bool {
        self.compiled.is_match(value)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

/// Gateway API HTTPRouteFilters of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filters {
    /// Changes to the request's headers.
    pub request: HeaderChanges,
    /// Changes to the answer's headers.
    pub response: HeaderChanges,
    /// Answered with this instead of being forwarded.
    pub redirect: Option<Redirect>,
    /// Where it goes under another name.
    pub rewrite: Option<Rewrite>,
    /// Copies whose answers are ignored.
    pub mirrors: Vec<Mirror>,
}

/// Set replaces, then add appends, then remove removes (Gateway API
/// HTTPHeaderFilter).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    /// Replace all values.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Append a value.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Remove all values.
    pub remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// A change of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathChange {
    /// The whole path.
    Full(Arc<str>),
    /// The prefix that matched.
    Prefix(Arc<str>),
}

/// Gateway API HTTPRequestRedirectFilter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`; `None` keeps it.
    pub scheme: Option<Arc<str>>,
    /// `None` keeps it.
    pub hostname: Option<Arc<str>>,
    /// `None` keeps it.
    pub path: Option<PathChange>,
    /// `None` is the scheme's own if the scheme changes, else the called one.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Gateway API HTTPURLRewriteFilter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// The authority that the backend sees.
    pub hostname: Option<Arc<str>>,
    /// The path that the backend sees.
    pub path: Option<PathChange>,
}

/// Gateway API HTTPRequestMirrorFilter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Which service.
    pub service: ServiceName,
    /// Which of its ports; `None` is the one the client called.
    pub port: Option<PortName>,
    /// Of how many requests.
    pub fraction: Fraction,
}

/// A part of all requests; at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Fraction = Fraction { numerator: 1, denominator: 1 };

    /// Whether this request is one of them; `random` is uniform over all of
    /// `u64`.
    pub fn takes(self, random: u64) -> bool {
        crate::balance::scale(random, self.denominator.into()) < self.numerator.into()
    }
}

/// When a failed attempt is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub attempts: u32,
    /// Statuses that are repeated.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// `grpc-status` values that are repeated.
    pub grpc_codes: Vec<u32>,
    /// Whatever the method: the service is declared repeatable.
    pub any_method: bool,
    /// Not what got no answer and may have been processed.
    pub answers_only: bool,
    /// Before the first repetition, doubling each time.
    pub backoff: Duration,
    /// At most.
    pub max_backoff: Duration,
}

impl RetryPolicy {
    /// Whether an answer with `status` is repeated.
    pub fn repeats(&self, status: StatusCode) -> bool {
        self.statuses.iter().any(|range| range.contains(&status.as_u16()))
    }

    /// How long to wait before repetition `n`, counted from 0: exponential
    /// with full jitter over its upper half; `random` is uniform over all of
    /// `u64`.
    pub fn wait(&self, n: u32, random: u64) -> Duration {
        let full = self.backoff.saturating_mul(1 << n.min(16)).min(self.max_backoff);
        let half = full / 2;
        let micros = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(crate::balance::scale(random, micros))
    }
}

/// Injected on purpose, for tests of callers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// How long these requests are held up.
    pub delay: Option<(Duration, Fraction)>,
    /// What these are answered with.
    pub abort: Option<(StatusCode, Fraction)>,
    /// `grpc-status` of an abort of a gRPC request.
    pub abort_grpc_status: u32,
    /// Only requests with all of these headers.
    pub headers: Vec<(HeaderName, TextMatch)>,
}

/// Protection of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrafficPolicy {
    /// By each proxy of its endpoints.
    pub rate_limits: Vec<RateLimit>,
    /// The same.
    pub concurrency: Option<Concurrency>,
    /// By its callers.
    pub retry_budget: RetryBudget,
    /// The same.
    pub circuit_breaker: CircuitBreaker,
    /// The same.
    pub health_check: Option<HealthCheck>,
    /// Bodies are kept for repetition up to this.
    pub replay_bytes: usize,
    /// Which of several rules that match takes a request.
    pub rule_order: RuleOrder,
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Only requests that match any; empty is every one.
    pub matches: Vec<RouteMatch>,
    /// At least 1.
    pub requests: u32,
    /// In which `requests` tokens come in.
    pub period: Duration,
    /// Tokens at most.
    pub burst: u32,
    /// Each caller identity has a bucket of its own.
    pub per_caller: bool,
}

/// Requests that one proxy gives to one endpoint at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concurrency {
    /// At least 1.
    pub max_in_flight: u32,
    /// That wait for a place.
    pub max_queue: u32,
    /// How long one waits at most.
    pub queue_timeout: Duration,
}

/// How many repetitions a caller may add to its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Per cent of the requests within `ttl`.
    pub percent: u32,
    /// Whatever the requests are.
    pub min_per_second: u32,
    /// Over which requests are counted.
    pub ttl: Duration,
}

impl Default for RetryBudget {
    /// Those of Linkerd's ServiceProfile.
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10, ttl: Duration::from_secs(10) }
    }
}

/// What one worker of a caller has at one service at most; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CircuitBreaker {
    /// Requests in flight.
    pub max_requests: Option<u32>,
    /// Requests that wait for a session or connection.
    pub max_pending: Option<u32>,
    /// Connections that are opaque, or carry one request; to one endpoint also
    /// those that are shared.
    pub max_connections: Option<u32>,
    /// Repetitions in flight.
    pub max_retries: Option<u32>,
}
