//! How callers spread requests over a service's endpoints. What is not said is
//! the default of whoever reads.

use std::{num::NonZeroU8, time::Duration};

use mesh_api::v1::{self, affinity::By};

use super::{MAX_TEXT, WireError, parse, text, wrong};
use crate::balance::{
    BalancePolicy,
    policy::{Affinity, AffinityKey, BadPolicy, LocalityMode, OutlierPolicy, Percent, SuccessRate},
};

/// The policy of a service; `None` is the default.
pub(super) fn balance(message: Option<&v1::BalancePolicy>) -> Result<BalancePolicy, WireError> {
    message.map_or_else(|| Ok(BalancePolicy::default()), BalancePolicy::try_from)
}

impl From<BadPolicy> for WireError {
    fn from(bad: BadPolicy) -> Self {
        Self { field: bad.field, problem: bad.problem }
    }
}

impl TryFrom<&v1::BalancePolicy> for BalancePolicy {
    type Error = WireError;

    fn try_from(message: &v1::BalancePolicy) -> Result<Self, WireError> {
        let default = Self::default();
        // Guessing would send requests where they shall not go.
        let locality = v1::LocalityMode::try_from(message.locality)
            .map_err(|_| wrong("balance.locality", "unsupported: this version does not know it"))?;
        let policy = Self {
            locality: locality.into(),
            overprovisioning: percent(message.overprovisioning_percent, default.overprovisioning),
            panic_threshold: percent(message.panic_percent, default.panic_threshold),
            slow_start: millis(message.slow_start_ms, default.slow_start),
            subset: message.subset.unwrap_or(default.subset),
            outlier: message.outlier.as_ref().map_or(default.outlier, Into::into),
            affinity: message.affinity.as_ref().map(Affinity::try_from).transpose()?,
        };
        policy.check()?;
        Ok(policy)
    }
}

/// Ranges are checked with the whole policy.
impl From<&v1::OutlierPolicy> for OutlierPolicy {
    fn from(message: &v1::OutlierPolicy) -> Self {
        let default = Self::default();
        let failures = message.consecutive_failures;
        Self {
            consecutive_failures: failures.unwrap_or(default.consecutive_failures),
            base_ejection: millis(message.base_ejection_ms, default.base_ejection),
            max_ejection: millis(message.max_ejection_ms, default.max_ejection),
            max_ejected: percent(message.max_ejected_percent, default.max_ejected),
            success_rate: match &message.success_rate {
                None => default.success_rate,
                Some(rate) => (!rate.off).then(|| rate.into()),
            },
        }
    }
}

impl From<&v1::SuccessRate> for SuccessRate {
    fn from(message: &v1::SuccessRate) -> Self {
        let default = Self::default();
        Self {
            window: millis(message.window_ms, default.window),
            min_hosts: message.min_hosts.unwrap_or(default.min_hosts),
            min_requests: message.min_requests.unwrap_or(default.min_requests),
            deviations: percent(message.deviations_percent, default.deviations),
        }
    }
}

impl TryFrom<&v1::Affinity> for Affinity {
    type Error = WireError;

    fn try_from(message: &v1::Affinity) -> Result<Self, WireError> {
        const FIELD: &str = "balance.affinity";
        let by = match &message.by {
            _ if !message.application_cookie.is_empty() => {
                const COOKIE: &str = "balance.affinity.application_cookie";
                AffinityKey::ApplicationCookie(text(COOKIE, &message.application_cookie, MAX_TEXT)?)
            }
            Some(By::Cookie(name)) => AffinityKey::Cookie {
                name: text("balance.affinity.cookie", name, MAX_TEXT)?,
                ttl: (message.cookie_ttl_s > 0).then(|| Duration::from_secs(message.cookie_ttl_s)),
            },
            Some(By::Header(name)) => AffinityKey::Header(parse("balance.affinity.header", name)?),
            Some(By::Source(true)) => AffinityKey::Source,
            Some(By::PathDepth(depth)) => {
                let depth = u8::try_from(*depth);
                let depth = depth.map_err(|_| wrong("balance.affinity.path_depth", "is above 255"));
                AffinityKey::Path(NonZeroU8::new(depth?))
            }
            Some(By::Query(name)) if !name.is_empty() => {
                AffinityKey::Query(text("balance.affinity.query", name, MAX_TEXT)?)
            }
            Some(By::Source(false) | By::Query(_)) | None => {
                let problem = "needs one of cookie, header, source, path and query";
                return Err(wrong(FIELD, problem));
            }
        };
        let max_load = (message.max_load_percent > 0).then_some(Percent(message.max_load_percent));
        Ok(Self { by, max_load })
    }
}

fn percent(value: Option<u32>, default: Percent) -> Percent {
    value.map_or(default, Percent)
}

fn millis(value: Option<u64>, default: Duration) -> Duration {
    value.map_or(default, Duration::from_millis)
}

/// Everything is said: what it means is the same whoever reads.
impl From<&BalancePolicy> for v1::BalancePolicy {
    fn from(policy: &BalancePolicy) -> Self {
        Self {
            locality: v1::LocalityMode::from(policy.locality).into(),
            overprovisioning_percent: Some(policy.overprovisioning.0),
            panic_percent: Some(policy.panic_threshold.0),
            slow_start_ms: Some(in_millis(policy.slow_start)),
            subset: Some(policy.subset),
            outlier: Some((&policy.outlier).into()),
            affinity: policy.affinity.as_ref().map(Into::into),
        }
    }
}

impl From<&OutlierPolicy> for v1::OutlierPolicy {
    fn from(policy: &OutlierPolicy) -> Self {
        let off = || v1::SuccessRate { off: true, ..Default::default() };
        Self {
            consecutive_failures: Some(policy.consecutive_failures),
            base_ejection_ms: Some(in_millis(policy.base_ejection)),
            max_ejection_ms: Some(in_millis(policy.max_ejection)),
            max_ejected_percent: Some(policy.max_ejected.0),
            success_rate: Some(policy.success_rate.as_ref().map_or_else(off, Into::into)),
        }
    }
}

impl From<&SuccessRate> for v1::SuccessRate {
    fn from(rate: &SuccessRate) -> Self {
        Self {
            off: false,
            window_ms: Some(in_millis(rate.window)),
            min_hosts: Some(rate.min_hosts),
            min_requests: Some(rate.min_requests),
            deviations_percent: Some(rate.deviations.0),
        }
    }
}

impl From<&Affinity> for v1::Affinity {
    fn from(affinity: &Affinity) -> Self {
        let (by, ttl) = match &affinity.by {
            AffinityKey::Cookie { name, ttl } => (By::Cookie(name.to_string()), *ttl),
            AffinityKey::ApplicationCookie(_) => (By::Header("cookie".into()), None),
            AffinityKey::Header(name) => (By::Header(name.to_string()), None),
            AffinityKey::Source => (By::Source(true), None),
            AffinityKey::Path(depth) => {
                (By::PathDepth(depth.map_or(0, NonZeroU8::get).into()), None)
            }
            AffinityKey::Query(name) => (By::Query(name.to_string()), None),
        };
        Self {
            by: Some(by),
            cookie_ttl_s: ttl.map_or(0, |ttl| ttl.as_secs()),
            max_load_percent: affinity.max_load.map_or(0, |percent| percent.0),
            application_cookie: match &affinity.by {
                AffinityKey::ApplicationCookie(name) => name.to_string(),
                _ => String::new(),
            },
        }
    }
}

fn in_millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl From<v1::LocalityMode> for LocalityMode {
    fn from(message: v1::LocalityMode) -> Self {
        match message {
            v1::LocalityMode::Unspecified => Self::On,
            v1::LocalityMode::Off => Self::Off,
            v1::LocalityMode::Strict => Self::Strict,
        }
    }
}

impl From<LocalityMode> for v1::LocalityMode {
    fn from(mode: LocalityMode) -> Self {
        match mode {
            LocalityMode::On => Self::Unspecified,
            LocalityMode::Off => Self::Off,
            LocalityMode::Strict => Self::Strict,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(message: &v1::BalancePolicy) -> Result<BalancePolicy, WireError> {
        BalancePolicy::try_from(message)
    }

    fn with(affinity: v1::Affinity) -> Result<Option<Affinity>, String> {
        let message = v1::BalancePolicy { affinity: Some(affinity), ..Default::default() };
        read(&message).map(|policy| policy.affinity).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(balance(None), Ok(BalancePolicy::default()));
        assert_eq!(read(&v1::BalancePolicy::default()), Ok(BalancePolicy::default()));
        let outlier = v1::OutlierPolicy {
            success_rate: Some(v1::SuccessRate::default()),
            ..Default::default()
        };
        let message = v1::BalancePolicy { outlier: Some(outlier), ..Default::default() };
        assert_eq!(read(&message), Ok(BalancePolicy::default()));
    }

    #[test]
    fn affinity_is_by_one_thing() {
        let by = |by| v1::Affinity { by: Some(by), ..Default::default() };
        let cookie = v1::Affinity { cookie_ttl_s: 60, ..by(By::Cookie("sid".into())) };
        let ttl = Some(Duration::from_secs(60));
        let key = |by| Ok(Some(Affinity { by, max_load: None }));
        assert_eq!(with(cookie), key(AffinityKey::Cookie { name: "sid".into(), ttl }));
        assert_eq!(
            with(by(By::Header("X-User".into()))),
            key(AffinityKey::Header(http::HeaderName::from_static("x-user")))
        );
        assert_eq!(with(by(By::Source(true))), key(AffinityKey::Source));
        let bad = |affinity, wanted: &str| {
            let error = with(affinity).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        };
        bad(by(By::Source(false)), "needs one of");
        bad(v1::Affinity::default(), "needs one of");
        bad(by(By::Query(String::new())), "needs one of");
        bad(by(By::PathDepth(256)), "balance.affinity.path_depth");
        bad(by(By::Header("a b".into())), "balance.affinity.header");
        bad(by(By::Cookie("a b".into())), "balance.affinity.cookie");
        let theirs = |name: &str| v1::Affinity {
            application_cookie: name.into(),
            ..by(By::Header("cookie".into()))
        };
        assert_eq!(with(theirs("sid")), key(AffinityKey::ApplicationCookie("sid".into())));
        bad(theirs("a b"), "balance.affinity.application_cookie");
        bad(by(By::Cookie("x".repeat(10_000))), "balance.affinity.cookie");
        bad(v1::Affinity { max_load_percent: 100, ..by(By::Source(true)) }, "max_load_percent");
    }

    #[test]
    fn what_is_out_of_range_or_unknown_is_refused() {
        let cases = [
            (v1::BalancePolicy { locality: 9, ..Default::default() }, "balance.locality"),
            (
                v1::BalancePolicy { overprovisioning_percent: Some(0), ..Default::default() },
                "balance.overprovisioning_percent",
            ),
            (
                v1::BalancePolicy { slow_start_ms: Some(u64::MAX), ..Default::default() },
                "balance.slow_start",
            ),
        ];
        for (message, field) in cases {
            assert_eq!(read(&message).unwrap_err().field, field);
        }
    }

    fn any_policy() -> impl Strategy<Value = BalancePolicy> {
        let mode = prop_oneof![
            Just(LocalityMode::On),
            Just(LocalityMode::Off),
            Just(LocalityMode::Strict)
        ];
        let ttl = prop_oneof![Just(None), (1u64..1000).prop_map(|s| Some(Duration::from_secs(s)))];
        let by = prop_oneof![
            ttl.prop_map(|ttl| AffinityKey::Cookie { name: "sid".into(), ttl }),
            Just(AffinityKey::ApplicationCookie("JSESSIONID".into())),
            Just(AffinityKey::Header(http::header::USER_AGENT)),
            Just(AffinityKey::Source),
            any::<u8>().prop_map(|depth| AffinityKey::Path(NonZeroU8::new(depth))),
            Just(AffinityKey::Query("user".into())),
        ];
        let affinity = (by, prop::option::of(101u32..=1000))
            .prop_map(|(by, max_load)| Affinity { by, max_load: max_load.map(Percent) });
        let rate = (1000u64..600_000, 2u32..100, 1u32..1000, 0u32..=1000).prop_map(
            |(window, min_hosts, min_requests, deviations)| SuccessRate {
                window: Duration::from_millis(window),
                min_hosts,
                min_requests,
                deviations: Percent(deviations),
            },
        );
        let outlier =
            (0u32..=1000, 100u64..10_000, 0u64..100_000, 0u32..=100, prop::option::of(rate))
                .prop_map(|(consecutive_failures, base, more, percent, success_rate)| {
                    OutlierPolicy {
                        consecutive_failures,
                        base_ejection: Duration::from_millis(base),
                        max_ejection: Duration::from_millis(base + more),
                        max_ejected: Percent(percent),
                        success_rate,
                    }
                });
        let numbers = (100u32..=1000, 0u32..=100, 0u64..=3_600_000, 0u32..=10_000);
        (mode, numbers, outlier, prop::option::of(affinity)).prop_map(
            |(locality, (over, panic, slow, subset), outlier, affinity)| BalancePolicy {
                locality,
                overprovisioning: Percent(over),
                panic_threshold: Percent(panic),
                slow_start: Duration::from_millis(slow),
                subset,
                outlier,
                affinity,
            },
        )
    }

    proptest! {
        #[test]
        fn there_and_back(policy in any_policy()) {
            prop_assert_eq!(read(&v1::BalancePolicy::from(&policy)), Ok(policy));
        }
    }
}
