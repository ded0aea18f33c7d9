//! How callers find out whether an endpoint of a service answers.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use http::StatusCode;

/// What the proxies of callers ask the endpoints that they use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// Asked over HTTP on ports that do not speak something else; `None` only
    /// opens connections.
    pub http: Option<HttpCheck>,
    /// Between two of them, about.
    pub interval: Duration,
    /// For one of them, the way there included.
    pub timeout: Duration,
    /// So many failures in a row, and an endpoint is left alone.
    pub unhealthy_threshold: u32,
    /// So many successes in a row, and it is back.
    pub healthy_threshold: u32,
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// Path and query.
    pub path: Arc<str>,
    /// What it must be answered with; empty is 200 to 399.
    pub statuses: Vec<RangeInclusive<u16>>,
}

impl HttpCheck {
    /// Whether an answer is a good one.
    pub fn is_good(&self, status: StatusCode) -> bool {
        let status = status.as_u16();
        match self.statuses.is_empty() {
            true => (200..400).contains(&status),
            false => self.statuses.iter().any(|range| range.contains(&status)),
        }
    }
}

/// What a row of answers means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streak {
    /// It has failed often enough, and not yet succeeded often enough.
    failing: bool,
    /// Answers in a row that say the opposite.
    against: u32,
}

impl Streak {
    /// Whether the endpoint is left alone.
    pub fn is_failing(self) -> bool {
        self.failing
    }

    /// An answer; whether it changes anything.
    pub fn take(&mut self, good: bool, check: &HealthCheck) -> bool {
        if good != self.failing {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if good { check.healthy_threshold } else { check.unhealthy_threshold };
        let changes = self.against >= enough;
        if changes {
            *self = Self { failing: !good, against: 0 };
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(http: Option<HttpCheck>) -> HealthCheck {
        let second = Duration::from_secs(1);
        HealthCheck {
            http,
            interval: second,
            timeout: second,
            unhealthy_threshold: 3,
            healthy_threshold: 2,
        }
    }

    #[test]
    fn it_takes_some_in_a_row() {
        let (check, mut streak) = (check(None), Streak::default());
        for (said, states) in [
            ("--+--+", "......"),
            ("---", "..x"),
            ("+-+-", "xxxx"),
            ("++", "x."),
            ("--+---", ".....x"),
        ] {
            for (answer, state) in said.chars().zip(states.chars()) {
                let before = streak.is_failing();
                let changed = streak.take(answer == '+', &check);
                assert_eq!(streak.is_failing(), state == 'x', "{said}");
                assert_eq!(changed, before != streak.is_failing(), "{said}");
            }
        }
    }

    #[test]
    fn good_answers() {
        let good = |statuses: Vec<RangeInclusive<u16>>, status: u16| {
            let http = HttpCheck { path: "/".into(), statuses };
            http.is_good(StatusCode::from_u16(status).unwrap())
        };
        assert!(good(Vec::new(), 200) && good(Vec::new(), 399));
        assert!(!good(Vec::new(), 199) && !good(Vec::new(), 400));
        assert!(good(vec![503..=503], 503) && !good(vec![503..=503], 200));
    }
}
