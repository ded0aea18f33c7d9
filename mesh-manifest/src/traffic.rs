//! TrafficPolicy (`isthmus.io/v1`): how a service and its rules are protected.

use mesh_api::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    balance::Balance,
    duration::{ManifestDuration, millis},
    extension::{PatternRewrite, Reply, RuleOrder},
    health::HealthCheck,
    profile::RetryBudget,
    rule::{Fraction, HeaderModifier, HttpMatch, Retry, Timeouts, ValueMatch},
};

/// `spec` of a TrafficPolicy.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrafficPolicySpec {
    /// The service it is for, of its own namespace.
    pub target_ref: TargetRef,
    /// For all of its requests.
    pub traffic: Traffic,
    /// How its callers spread requests over its endpoints.
    pub balance: Option<Balance>,
    /// Which of its rules takes a request that several match.
    pub rule_order: RuleOrder,
    /// More for single rules of its routes.
    pub rules: Vec<RulePolicy>,
}

/// What a policy is for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TargetRef {
    /// Of a Service or Namespace empty or `core`.
    pub group: Option<String>,
    /// `Service`; of an AuthorizationPolicy others, too.
    pub kind: String,
    /// Of the policy's namespace.
    pub name: String,
}

/// Protection of a service.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Traffic {
    /// By each proxy of its endpoints.
    pub rate_limits: Vec<RateLimit>,
    /// The same.
    pub concurrency: Option<Concurrency>,
    /// By its callers.
    pub retry_budget: Option<RetryBudget>,
    /// The same.
    pub circuit_breaker: Option<CircuitBreaker>,
    /// The same.
    pub health_check: Option<HealthCheck>,
    /// Bodies are kept for repetition up to this; 65536 where absent.
    pub replay_bytes: Option<u64>,
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// Only requests that match any; every one where absent.
    #[serde(default)]
    pub matches: Vec<HttpMatch>,
    /// Tokens per period.
    pub requests: u32,
    /// `1s` where absent.
    #[serde(default)]
    pub per: Option<ManifestDuration>,
    /// At once; as many as per period where absent.
    #[serde(default)]
    pub burst: Option<u32>,
    /// Each caller identity has its own.
    #[serde(default)]
    pub per_caller: bool,
}

/// Requests that one proxy gives to one endpoint at a time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Concurrency {
    /// At least 1.
    pub max_in_flight: u32,
    /// That wait; none where absent.
    #[serde(default)]
    pub max_queue: u32,
    /// How long one waits; `1s` where absent.
    #[serde(default)]
    pub queue_timeout: Option<ManifestDuration>,
}

/// What one worker of a caller has at the service at most; absent is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CircuitBreaker {
    /// Requests in flight.
    pub max_requests: u32,
    /// Requests that wait for a session or connection; 1024 where only
    /// connections are limited.
    pub max_pending: u32,
    /// Connections that are opaque, or carry one request; to one endpoint also
    /// those that are shared.
    pub max_connections: u32,
    /// Repetitions in flight.
    pub max_retries: u32,
}

/// More for one rule.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RulePolicy {
    /// Name of the rule; every rule where absent.
    pub name: Option<String>,
    /// Injected on purpose.
    pub fault: Option<Fault>,
    /// When to repeat.
    pub retry: Option<Retry>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Statuses that count as failures; 5xx where absent.
    pub failures: Vec<u16>,
    /// All of these must match, too, for the rule to take a request. A header
    /// may have a text of the request instead of a name, as values of
    /// `requestHeaders` are.
    pub also: Vec<HttpMatch>,
    /// None of these may.
    pub unless: Vec<HttpMatch>,
    /// Addresses or CIDR blocks of which one must have the client; anywhere
    /// where absent.
    pub sources: Vec<String>,
    /// None of these may.
    pub not_sources: Vec<String>,
    /// Answered instead of being forwarded or redirected.
    pub reply: Option<Reply>,
    /// After what filters change; of redirects, too.
    pub rewrite: Option<PatternRewrite>,
    /// Forwarded, and redirected, without the client's query.
    pub strip_query: bool,
    /// After what filters change. In values `%{client_ip}`, `%{forwarded_for}`
    /// (`X-Forwarded-For` with the client's address appended), `%{host}`,
    /// `%{hostname}`, `%{path}`, `%{query}`, `%{target}`, `%{scheme}`,
    /// `%{method}`, `%{header:NAME}`, `%{headers:NAME}`, `%{cookie:NAME}` and `%{query:NAME}` are
    /// the client's, changed by `%{host|lower}` or
    /// `%{path|s~PATTERN~SUBSTITUTION~}`; `%%` is a percent sign. An empty
    /// value is no header.
    pub request_headers: Option<HeaderModifier>,
    /// In order after those, of requests that the conditions hold for.
    pub conditional_headers: Vec<ConditionalHeaders>,
    /// Of an application's answer, after what filters change; values are
    /// literal.
    pub response_headers: Option<HeaderModifier>,
}

/// Headers that change with some requests of a rule: conditions are about what
/// the client has sent.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConditionalHeaders {
    /// All of these must match, as in a rule.
    pub also: Vec<HttpMatch>,
    /// None of these may.
    pub unless: Vec<HttpMatch>,
    /// Addresses or CIDR blocks of which one must have the client; anywhere
    /// where absent.
    pub sources: Vec<String>,
    /// None of these may.
    pub not_sources: Vec<String>,
    /// As in a rule.
    pub request_headers: HeaderModifier,
}

/// Injected on purpose, for tests of callers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// Before the request goes on.
    pub delay: Option<FaultDelay>,
    /// Instead of it.
    pub abort: Option<FaultAbort>,
    /// Only requests with all of these.
    pub headers: Vec<ValueMatch>,
}

/// A delay.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultDelay {
    /// How long.
    pub duration: ManifestDuration,
    /// Of how many requests; all where absent.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// An answer instead of forwarding.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FaultAbort {
    /// 200 to 599.
    pub status: u16,
    /// For gRPC requests; 14 (UNAVAILABLE) where absent.
    #[serde(default)]
    pub grpc_status: u32,
    /// Of how many requests; all where absent.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

impl Traffic {
    /// As it travels.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self) -> Result<v1::TrafficPolicy, String> {
        let rate_limit = |limit: &RateLimit| {
            let matches = limit.matches.iter().map(HttpMatch::wire);
            Ok(v1::RateLimit {
                matches: matches.collect::<Result<_, String>>()?,
                requests: limit.requests,
                period_ms: millis(limit.per),
                burst: limit.burst.unwrap_or_default(),
                per_caller: limit.per_caller,
            })
        };
        let concurrency = |limit: &Concurrency| v1::Concurrency {
            max_in_flight: limit.max_in_flight,
            max_queue: limit.max_queue,
            queue_timeout_ms: millis(limit.queue_timeout),
        };
        let breaker = |breaker: &CircuitBreaker| v1::CircuitBreaker {
            max_requests: breaker.max_requests,
            max_pending: breaker.max_pending,
            max_connections: breaker.max_connections,
            max_retries: breaker.max_retries,
        };
        Ok(v1::TrafficPolicy {
            rate_limits: self.rate_limits.iter().map(rate_limit).collect::<Result<_, String>>()?,
            concurrency: self.concurrency.as_ref().map(concurrency),
            retry_budget: self.retry_budget.map(RetryBudget::wire).transpose()?,
            circuit_breaker: self.circuit_breaker.as_ref().map(breaker),
            health_check: self.health_check.as_ref().map(HealthCheck::wire).transpose()?,
            replay_bytes: self.replay_bytes.unwrap_or_default(),
            listed_order: false,
        })
    }
}

impl RulePolicy {
    /// Changes a rule that it is for.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn apply(&self, route: &mut v1::Route) -> Result<(), String> {
        self.timeouts.check()?;
        if self.name.as_ref().is_some_and(|name| !rule_is(&route.name, name)) {
            return Ok(());
        }
        if let Some(request) = self.timeouts.request {
            route.request_timeout_ms = request.millis();
        }
        if let Some(backend) = self.timeouts.backend_request {
            route.backend_timeout_ms = backend.millis();
        }
        if let Some(retry) = &self.retry {
            route.retry = Some(retry.wire()?);
        }
        if let Some(fault) = &self.fault {
            route.fault = Some(fault.wire());
        }
        if !self.failures.is_empty() {
            let one =
                |status: &u16| v1::StatusRange { from: (*status).into(), to: (*status).into() };
            route.failures = self.failures.iter().map(one).collect();
        }
        self.extend(route)
    }
}

/// A compiled rule is called `<namespace>/<route>/<rule>`.
fn rule_is(full: &str, name: &str) -> bool {
    full == name || full.rsplit('/').next() == Some(name)
}

impl Fault {
    fn wire(&self) -> v1::Fault {
        let (delay, abort) = (self.delay.as_ref(), self.abort.as_ref());
        v1::Fault {
            delay_ms: delay.map_or(0, |delay| delay.duration.millis()),
            delay_fraction: delay.and_then(|delay| delay.fraction).map(Fraction::wire),
            abort_status: abort.map_or(0, |abort| abort.status.into()),
            abort_grpc_status: abort.map_or(0, |abort| abort.grpc_status),
            abort_fraction: abort.and_then(|abort| abort.fraction).map(Fraction::wire),
            headers: self.headers.iter().map(ValueMatch::wire).collect(),
        }
    }
}
