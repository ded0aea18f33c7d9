//! How a service is protected: limits of its own proxies and of its callers.

use std::time::Duration;

use mesh_api::v1;

use super::{MAX_MATCHES, MAX_RATE_LIMITS, WireError, at_most, millis, to_millis, wrong};
use crate::rule::{
    CircuitBreaker, Concurrency, HealthCheck, RateLimit, RetryBudget, RouteMatch, RuleOrder,
    TrafficPolicy,
};

/// Bodies that are kept for repetition, where nothing is said.
const REPLAY_BYTES: u64 = 64 << 10;
/// The same, at most.
const MAX_REPLAY_BYTES: u64 = 16 << 20;
const SECOND: Duration = Duration::from_secs(1);

impl Default for TrafficPolicy {
    fn default() -> Self {
        Self {
            rate_limits: Vec::new(),
            concurrency: None,
            retry_budget: RetryBudget::default(),
            circuit_breaker: CircuitBreaker::default(),
            health_check: None,
            replay_bytes: usize::try_from(REPLAY_BYTES).unwrap_or(usize::MAX),
            rule_order: RuleOrder::Precedence,
        }
    }
}

impl TryFrom<&v1::TrafficPolicy> for TrafficPolicy {
    type Error = WireError;

    fn try_from(message: &v1::TrafficPolicy) -> Result<Self, WireError> {
        at_most("traffic.rate_limits", &message.rate_limits, MAX_RATE_LIMITS)?;
        let replay = if message.replay_bytes == 0 { REPLAY_BYTES } else { message.replay_bytes };
        if replay > MAX_REPLAY_BYTES {
            return Err(wrong("traffic.replay_bytes", "must be at most 16 MiB"));
        }
        let rate_limits = message.rate_limits.iter().map(RateLimit::try_from);
        let budget = message.retry_budget.as_ref().map(RetryBudget::try_from).transpose()?;
        Ok(Self {
            rate_limits: rate_limits.collect::<Result<_, _>>()?,
            concurrency: message.concurrency.as_ref().map(Concurrency::try_from).transpose()?,
            retry_budget: budget.unwrap_or_default(),
            circuit_breaker: message.circuit_breaker.as_ref().map(Into::into).unwrap_or_default(),
            health_check: message.health_check.as_ref().map(HealthCheck::try_from).transpose()?,
            replay_bytes: usize::try_from(replay).unwrap_or(usize::MAX),
            rule_order: match message.listed_order {
                true => RuleOrder::Listed,
                false => RuleOrder::Precedence,
            },
        })
    }
}

impl From<&TrafficPolicy> for v1::TrafficPolicy {
    fn from(policy: &TrafficPolicy) -> Self {
        let default = TrafficPolicy::default();
        let breaker = policy.circuit_breaker;
        Self {
            rate_limits: policy.rate_limits.iter().map(Into::into).collect(),
            concurrency: policy.concurrency.as_ref().map(Into::into),
            retry_budget: (policy.retry_budget != default.retry_budget)
                .then(|| (&policy.retry_budget).into()),
            circuit_breaker: (breaker != default.circuit_breaker).then(|| (&breaker).into()),
            health_check: policy.health_check.as_ref().map(Into::into),
            replay_bytes: u64::try_from(policy.replay_bytes).unwrap_or(u64::MAX),
            listed_order: policy.rule_order == RuleOrder::Listed,
        }
    }
}

impl TryFrom<&v1::RateLimit> for RateLimit {
    type Error = WireError;

    fn try_from(message: &v1::RateLimit) -> Result<Self, WireError> {
        at_most("rate_limits.matches", &message.matches, MAX_MATCHES)?;
        if message.requests == 0 {
            return Err(wrong("rate_limits.requests", "must be at least 1"));
        }
        let burst = if message.burst == 0 { message.requests } else { message.burst };
        let matches = message.matches.iter().map(RouteMatch::try_from);
        Ok(Self {
            matches: matches.collect::<Result<_, _>>()?,
            requests: message.requests,
            period: millis(message.period_ms).unwrap_or(SECOND),
            burst,
            per_caller: message.per_caller,
        })
    }
}

impl From<&RateLimit> for v1::RateLimit {
    fn from(limit: &RateLimit) -> Self {
        Self {
            matches: limit.matches.iter().map(Into::into).collect(),
            requests: limit.requests,
            period_ms: to_millis(Some(limit.period)),
            burst: limit.burst,
            per_caller: limit.per_caller,
        }
    }
}

impl TryFrom<&v1::Concurrency> for Concurrency {
    type Error = WireError;

    fn try_from(message: &v1::Concurrency) -> Result<Self, WireError> {
        if message.max_in_flight == 0 {
            return Err(wrong("concurrency.max_in_flight", "must be at least 1"));
        }
        Ok(Self {
            max_in_flight: message.max_in_flight,
            max_queue: message.max_queue,
            queue_timeout: millis(message.queue_timeout_ms).unwrap_or(SECOND),
        })
    }
}

impl From<&Concurrency> for v1::Concurrency {
    fn from(limit: &Concurrency) -> Self {
        Self {
            max_in_flight: limit.max_in_flight,
            max_queue: limit.max_queue,
            queue_timeout_ms: to_millis(Some(limit.queue_timeout)),
        }
    }
}

impl TryFrom<&v1::RetryBudget> for RetryBudget {
    type Error = WireError;

    fn try_from(message: &v1::RetryBudget) -> Result<Self, WireError> {
        if message.percent > 100 {
            return Err(wrong("retry_budget.percent", "must be at most 100"));
        }
        Ok(Self {
            percent: message.percent,
            min_per_second: message.min_per_second,
            ttl: millis(message.ttl_ms).unwrap_or(Self::default().ttl),
        })
    }
}

impl From<&RetryBudget> for v1::RetryBudget {
    fn from(budget: &RetryBudget) -> Self {
        Self {
            percent: budget.percent,
            min_per_second: budget.min_per_second,
            ttl_ms: to_millis(Some(budget.ttl)),
        }
    }
}

impl From<&v1::CircuitBreaker> for CircuitBreaker {
    fn from(message: &v1::CircuitBreaker) -> Self {
        let limit = |limit: u32| (limit != 0).then_some(limit);
        Self {
            max_requests: limit(message.max_requests),
            max_pending: limit(message.max_pending),
            max_connections: limit(message.max_connections),
            max_retries: limit(message.max_retries),
        }
    }
}

impl From<&CircuitBreaker> for v1::CircuitBreaker {
    fn from(breaker: &CircuitBreaker) -> Self {
        Self {
            max_requests: breaker.max_requests.unwrap_or_default(),
            max_pending: breaker.max_pending.unwrap_or_default(),
            max_connections: breaker.max_connections.unwrap_or_default(),
            max_retries: breaker.max_retries.unwrap_or_default(),
        }
    }
}
