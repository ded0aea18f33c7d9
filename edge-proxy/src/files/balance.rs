//! `balance:` of a service in a static snapshot. What is left out has its
//! default; ranges are checked with the snapshot.
//!
//! ```yaml
//! balance:
//!   locality: on                  # on | off | strict
//!   overprovisioning_percent: 140
//!   panic_percent: 50             # 0 is never
//!   slow_start: 10s               # 0s is at once
//!   subset: 8                     # of other sites' endpoints; 0 is all
//!   outlier:
//!     consecutive_failures: 5     # 0 is never
//!     base_ejection: 3s
//!     max_ejection: 60s
//!     max_ejected_percent: 50
//!     success_rate: { window: 30s, min_hosts: 5, min_requests: 100, deviations_percent: 190 }
//!   affinity: { cookie: SESSION, cookie_ttl: 1h, max_load_percent: 125 }
//! ```
//!
//! `success_rate: { off: true }` ejects nobody for it; `affinity` is by one of
//! `cookie`, `header` and `source: true`.

use mesh_api::v1::{self, affinity::By};
use mesh_runtime::config::HumanDuration;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BalanceFile {
    locality: LocalityFile,
    overprovisioning_percent: Option<u32>,
    panic_percent: Option<u32>,
    slow_start: Option<HumanDuration>,
    subset: Option<u32>,
    outlier: Option<OutlierFile>,
    affinity: Option<AffinityFile>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LocalityFile {
    #[default]
    On,
    Off,
    Strict,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct OutlierFile {
    consecutive_failures: Option<u32>,
    base_ejection: Option<HumanDuration>,
    max_ejection: Option<HumanDuration>,
    max_ejected_percent: Option<u32>,
    success_rate: Option<SuccessRateFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SuccessRateFile {
    off: bool,
    window: Option<HumanDuration>,
    min_hosts: Option<u32>,
    min_requests: Option<u32>,
    deviations_percent: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AffinityFile {
    cookie: Option<String>,
    cookie_ttl: Option<HumanDuration>,
    header: Option<String>,
    source: bool,
    max_load_percent: u32,
}

impl BalanceFile {
    pub(super) fn wire(&self) -> v1::BalancePolicy {
        let locality = match self.locality {
            LocalityFile::On => v1::LocalityMode::Unspecified,
            LocalityFile::Off => v1::LocalityMode::Off,
            LocalityFile::Strict => v1::LocalityMode::Strict,
        };
        v1::BalancePolicy {
            locality: locality.into(),
            overprovisioning_percent: self.overprovisioning_percent,
            panic_percent: self.panic_percent,
            slow_start_ms: self.slow_start.map(millis),
            subset: self.subset,
            outlier: self.outlier.as_ref().map(OutlierFile::wire),
            affinity: self.affinity.as_ref().map(AffinityFile::wire),
        }
    }

    /// What the message cannot say.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let affinity = self.affinity.as_ref()?;
        let ways = [affinity.cookie.is_some(), affinity.header.is_some(), affinity.source];
        if ways.into_iter().filter(|way| *way).count() != 1 {
            return Some("is by one of cookie, header and source: true");
        }
        let lone = affinity.cookie_ttl.is_some() && affinity.cookie.is_none();
        lone.then_some("has a cookie_ttl only with a cookie")
    }
}

impl OutlierFile {
    fn wire(&self) -> v1::OutlierPolicy {
        v1::OutlierPolicy {
            consecutive_failures: self.consecutive_failures,
            base_ejection_ms: self.base_ejection.map(millis),
            max_ejection_ms: self.max_ejection.map(millis),
            max_ejected_percent: self.max_ejected_percent,
            success_rate: self.success_rate.as_ref().map(|rate| v1::SuccessRate {
                off: rate.off,
                window_ms: rate.window.map(millis),
                min_hosts: rate.min_hosts,
                min_requests: rate.min_requests,
                deviations_percent: rate.deviations_percent,
            }),
        }
    }
}

impl AffinityFile {
    fn wire(&self) -> v1::Affinity {
        let by = match (&self.cookie, &self.header) {
            (Some(cookie), _) => By::Cookie(cookie.clone()),
            (None, Some(header)) => By::Header(header.clone()),
            (None, None) => By::Source(self.source),
        };
        v1::Affinity {
            by: Some(by),
            cookie_ttl_s: self.cookie_ttl.map_or(0, |ttl| ttl.0.as_secs().max(1)),
            max_load_percent: self.max_load_percent,
        }
    }
}

fn millis(duration: HumanDuration) -> u64 {
    u64::try_from(duration.0.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::{
        TrustBundles,
        balance::{
            BalancePolicy, LocalityMode,
            policy::{AffinityKey, Percent},
        },
    };

    use crate::files::snapshot::parse;

    fn read(balance: &str) -> Result<BalancePolicy, String> {
        let text = format!(
            "site: west\ntrust_domain: west.example\nservices:\n  - name: orders.shop\n    ports: \
             [{{ name: http, port: 80 }}]\n    balance: {balance}\n"
        );
        let snapshot = parse(&text, "west.yaml", &TrustBundles::new());
        let snapshot = snapshot.map_err(|error| error.to_string())?;
        Ok(snapshot.services["orders.shop"].balance.clone())
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(read("{}"), Ok(BalancePolicy::default()));
        let policy = read(
            "{ locality: strict, overprovisioning_percent: 200, panic_percent: 0, slow_start: 0s, \
             subset: 0, outlier: { consecutive_failures: 3, base_ejection: 1s, max_ejection: 5m, \
             max_ejected_percent: 30, success_rate: { off: true } }, affinity: { cookie: SID, \
             cookie_ttl: 1h, max_load_percent: 125 } }",
        );
        let policy = policy.unwrap();
        assert_eq!(policy.locality, LocalityMode::Strict);
        assert_eq!((policy.overprovisioning, policy.panic_threshold), (Percent(200), Percent(0)));
        assert_eq!((policy.slow_start, policy.subset), (Duration::ZERO, 0));
        let outlier = &policy.outlier;
        assert_eq!((outlier.consecutive_failures, outlier.max_ejected), (3, Percent(30)));
        assert_eq!(outlier.base_ejection, Duration::from_secs(1));
        assert_eq!(outlier.max_ejection, Duration::from_secs(300));
        assert_eq!(outlier.success_rate, None);
        let affinity = policy.affinity.unwrap();
        let ttl = Some(Duration::from_secs(3600));
        assert_eq!(affinity.by, AffinityKey::Cookie { name: "SID".into(), ttl });
        assert_eq!(affinity.max_load, Some(Percent(125)));
        let by = |text: &str| read(text).map(|policy| policy.affinity.map(|a| a.by));
        let user = AffinityKey::Header(http::HeaderName::from_static("x-user"));
        assert_eq!(by("{ affinity: { header: X-User } }"), Ok(Some(user)));
        assert_eq!(by("{ affinity: { source: true } }"), Ok(Some(AffinityKey::Source)));
        assert_eq!(by("{ outlier: { success_rate: { min_hosts: 3 } } }"), Ok(None));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("{ localty: on }", "did you mean `locality`"),
            ("{ locality: near }", "west.yaml:6"),
            ("{ overprovisioning_percent: 50 }", "balance.overprovisioning_percent"),
            ("{ slow_start: 2h }", "balance.slow_start"),
            ("{ outlier: { max_ejection: 1s } }", "balance.outlier.max_ejection"),
            ("{ affinity: {} }", "one of cookie, header and source"),
            ("{ affinity: { cookie: a, source: true } }", "one of cookie, header and source"),
            ("{ affinity: { header: x-a, cookie_ttl: 1s } }", "only with a cookie"),
            ("{ affinity: { cookie: 'a b' } }", "balance.affinity.cookie"),
            ("{ affinity: { source: true, max_load_percent: 7 } }", "max_load_percent"),
        ];
        for (balance, wanted) in cases {
            let error = read(balance).unwrap_err();
            assert!(error.contains(wanted) && error.contains("west.yaml"), "{balance}: {error}");
        }
    }
}
