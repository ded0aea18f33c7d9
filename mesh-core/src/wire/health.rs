//! How callers ask endpoints whether they are well.

use std::{sync::Arc, time::Duration};

use http::uri::PathAndQuery;
use mesh_api::v1;

use super::{
    MAX_MATCH_TEXT, WireError, millis,
    rule::{status_range, statuses},
    text, to_millis, wrong,
};
use crate::rule::health::{HealthCheck, HttpCheck};

const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(1);
const UNHEALTHY: u32 = 3;
const HEALTHY: u32 = 2;
/// More often than this is load, not a check.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Answers in a row.
const MAX_THRESHOLD: u32 = 100;

impl TryFrom<&v1::HealthCheck> for HealthCheck {
    type Error = WireError;

    fn try_from(message: &v1::HealthCheck) -> Result<Self, WireError> {
        let interval = millis(message.interval_ms).unwrap_or(INTERVAL);
        if !(SHORTEST..=LONGEST).contains(&interval) {
            return Err(wrong("health_check.interval_ms", "must be 100 ms to 1 h"));
        }
        let timeout = millis(message.timeout_ms).unwrap_or(TIMEOUT);
        if timeout > LONGEST_TIMEOUT {
            return Err(wrong("health_check.timeout_ms", "must be at most 60 s"));
        }
        let threshold = |field, written: u32, default| match written {
            0 => Ok(default),
            written if written <= MAX_THRESHOLD => Ok(written),
            _ => Err(wrong(field, format_args!("must be at most {MAX_THRESHOLD}"))),
        };
        let (unhealthy, healthy) = (message.unhealthy_threshold, message.healthy_threshold);
        let http = match message.http_path.as_str() {
            "" if !message.http_statuses.is_empty() => {
                return Err(wrong("health_check.http_statuses", "need a path"));
            }
            "" => None,
            written => Some(HttpCheck {
                path: path(written)?,
                statuses: statuses("health_check.http_statuses", &message.http_statuses)?,
            }),
        };
        Ok(Self {
            http,
            interval,
            timeout,
            unhealthy_threshold: threshold("health_check.unhealthy", unhealthy, UNHEALTHY)?,
            healthy_threshold: threshold("health_check.healthy", healthy, HEALTHY)?,
        })
    }
}

fn path(written: &str) -> Result<Arc<str>, WireError> {
    const FIELD: &str = "health_check.http_path";
    let path = text(FIELD, written, MAX_MATCH_TEXT)?;
    match path.parse::<PathAndQuery>() {
        Ok(parsed) if path.starts_with('/') && parsed.as_str() == &*path => Ok(path),
        _ => Err(wrong(FIELD, "must be a path that begins with '/', as it is sent")),
    }
}

impl From<&HealthCheck> for v1::HealthCheck {
    fn from(check: &HealthCheck) -> Self {
        let http = check.http.as_ref();
        let statuses = http.map(|http| http.statuses.iter().map(status_range).collect());
        Self {
            http_path: http.map(|http| http.path.to_string()).unwrap_or_default(),
            http_statuses: statuses.unwrap_or_default(),
            interval_ms: to_millis(Some(check.interval)),
            timeout_ms: to_millis(Some(check.timeout)),
            unhealthy_threshold: check.unhealthy_threshold,
            healthy_threshold: check.healthy_threshold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let check = HealthCheck::try_from(&v1::HealthCheck::default()).unwrap();
        assert_eq!((check.interval, check.timeout), (INTERVAL, TIMEOUT));
        assert_eq!((check.unhealthy_threshold, check.healthy_threshold), (3, 2));
        assert_eq!(check.http, None);
    }

    #[test]
    fn the_ends_are_within() {
        for (interval_ms, timeout_ms, threshold) in [(100, 1, 1), (3_600_000, 60_000, 100)] {
            let message = v1::HealthCheck {
                interval_ms,
                timeout_ms,
                unhealthy_threshold: threshold,
                healthy_threshold: threshold,
                ..Default::default()
            };
            let check = HealthCheck::try_from(&message).unwrap();
            assert_eq!(v1::HealthCheck::from(&check), message);
        }
    }

    #[test]
    fn checks_that_mean_nothing() {
        let wrong = |change: fn(&mut v1::HealthCheck)| {
            let mut message = v1::HealthCheck::default();
            change(&mut message);
            HealthCheck::try_from(&message).unwrap_err().field
        };
        let cases: [(&str, fn(&mut v1::HealthCheck)); 10] = [
            ("health_check.http_path", |m| m.http_path = "healthz".into()),
            ("health_check.http_path", |m| m.http_path = "/a b".into()),
            ("health_check.http_path", |m| m.http_path = "/a#b".into()),
            ("health_check.http_statuses", |m| {
                m.http_statuses.push(v1::StatusRange { from: 200, to: 200 });
            }),
            ("health_check.interval_ms", |m| m.interval_ms = 99),
            ("health_check.interval_ms", |m| m.interval_ms = 3_600_001),
            ("health_check.interval_ms", |m| m.interval_ms = u64::MAX),
            ("health_check.timeout_ms", |m| m.timeout_ms = 60_001),
            ("health_check.unhealthy", |m| m.unhealthy_threshold = 101),
            ("health_check.healthy", |m| m.healthy_threshold = 101),
        ];
        for (field, change) in cases {
            assert_eq!(wrong(change), field);
        }
    }
}
