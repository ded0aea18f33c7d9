//! Counting requests and their latency in bounded space.

use std::{collections::BTreeMap, time::Duration};

/// Neighbouring bounds differ by 2 %: that is how exact a percentile is.
const GROWTH: f64 = 1.02;
/// 1 µs × 1.02^1000 is more than 6 minutes; what takes longer counts as that.
const BUCKETS: usize = 1000;
/// Over how many whole seconds the current rate is taken.
const RATE_SECONDS: usize = 5;

/// Latencies as counts in buckets of equal ratio.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, latency: Duration) {
        let us = latency.as_secs_f64() * 1e6;
        let exact = us.max(1.0).ln() / GROWTH.ln();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1000")]
        let bucket = exact.clamp(0.0, (BUCKETS - 1) as f64) as usize;
        self.counts[bucket] += 1;
        self.total += 1;
    }

    /// Milliseconds below which a share `q` of the recorded lies; `None`
    /// without a record.
    pub(crate) fn quantile_ms(&self, q: f64) -> Option<f64> {
        if self.total == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let rank = (q * self.total as f64).max(1.0);
        let mut below = 0_u64;
        for (bucket, count) in self.counts.iter().enumerate() {
            below += count;
            #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
            if below as f64 >= rank {
                let middle = bucket as f64 + 0.5;
                return Some(GROWTH.powf(middle) / 1000.0);
            }
        }
        None
    }
}

/// What one request came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Who the callee saw; empty where the protocol does not say.
    pub(crate) caller: String,
    /// Which site answered; empty where the protocol does not say.
    pub(crate) site: String,
}

/// Everything counted of one flow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    pub(crate) requests: u64,
    pub(crate) successes: u64,
    pub(crate) latency: Histogram,
    /// By SPIFFE ID as the callee verified it.
    pub(crate) callers: BTreeMap<String, u64>,
    /// By site that answered.
    pub(crate) sites: BTreeMap<String, u64>,
    /// By message.
    pub(crate) errors: BTreeMap<String, u64>,
    /// When the last answer of each site came, since the start.
    pub(crate) last_answer: BTreeMap<String, Duration>,
    recent: [(u64, u64); RATE_SECONDS + 1],
}

/// Distinct messages kept per flow; the rest is one line.
const MAX_ERRORS: usize = 16;

impl Meter {
    /// `now` is the time since the start.
    pub(crate) fn record(
        &mut self,
        now: Duration,
        latency: Duration,
        result: Result<Outcome, String>,
    ) {
        self.requests += 1;
        let second = now.as_secs();
        let slot = &mut self.recent[second as usize % (RATE_SECONDS + 1)];
        *slot = if slot.0 == second { (second, slot.1 + 1) } else { (second, 1) };
        match result {
            Ok(outcome) => {
                self.successes += 1;
                self.latency.record(latency);
                if !outcome.caller.is_empty() {
                    *self.callers.entry(outcome.caller).or_default() += 1;
                }
                if !outcome.site.is_empty() {
                    self.last_answer.insert(outcome.site.clone(), now);
                    *self.sites.entry(outcome.site).or_default() += 1;
                }
            }
            Err(error) => {
                let known = self.errors.len() < MAX_ERRORS || self.errors.contains_key(&error);
                let key = if known { error } else { "other errors".to_owned() };
                *self.errors.entry(key).or_default() += 1;
            }
        }
    }

    /// Requests per second over the last whole seconds.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(crate) fn rate(&self, now: Duration) -> f64 {
        let second = now.as_secs();
        let oldest = second.saturating_sub(RATE_SECONDS as u64);
        let whole = self.recent.iter().filter(|(at, _)| (oldest..second).contains(at));
        let sum: u64 = whole.map(|(_, count)| count).sum();
        sum as f64 / (second - oldest).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ms(0.5), None);
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (q, expected) in [(0.5, 500.0), (0.95, 950.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.quantile_ms(q).expect("recorded");
            assert!((got / expected - 1.0).abs() < 0.02, "{q}: {got} instead of {expected}");
        }
    }

    #[test]
    fn extremes_are_counted() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::ZERO);
        histogram.record(Duration::from_secs(86_400));
        assert_eq!(histogram.total, 2);
        assert!(histogram.quantile_ms(1.0).expect("recorded") > 60_000.0);
    }

    #[test]
    fn the_rate_covers_whole_seconds_only() {
        let mut meter = Meter::default();
        let ok = || Ok(Outcome { caller: "a".into(), site: "b".into() });
        for tenth in 0..100 {
            meter.record(Duration::from_millis(tenth * 100), Duration::from_millis(1), ok());
        }
        assert!((meter.rate(Duration::from_millis(9_950)) - 10.0).abs() < 1e-9);
        assert!((meter.rate(Duration::from_secs(12)) - 6.0).abs() < 1e-9);
        assert!(meter.rate(Duration::from_secs(60)).abs() < 1e-9);
        assert_eq!((meter.requests, meter.successes, meter.callers["a"]), (100, 100, 100));
    }

    #[test]
    fn errors_are_kept_by_message_and_bounded() {
        let mut meter = Meter::default();
        for n in 0..100 {
            meter.record(Duration::ZERO, Duration::ZERO, Err(format!("error {n}")));
        }
        assert_eq!(meter.successes, 0);
        assert_eq!(meter.errors.len(), MAX_ERRORS + 1);
        assert_eq!(meter.errors["other errors"], 100 - MAX_ERRORS as u64);
    }
}
