//! How often, how long.

use std::time::Duration;

use tokio::time::Instant;

/// The times of a [`follow`](super::follow).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// How long Consul holds a question that has no new answer; at most 10 min.
    pub wait: Duration,
    /// Under churn one question in this time, after [`Pace::BURST`] at once.
    pub churn: Duration,
    /// The first pause after an error; it doubles.
    pub backoff: Duration,
    /// The longest pause after errors.
    pub backoff_max: Duration,
    /// Until an empty answer is asked for again.
    pub hold: Duration,
    /// The same after the index has gone back.
    pub rebuilt: Duration,
}

impl Pace {
    /// Questions at once.
    pub const BURST: u32 = 2;
}

impl Default for Pace {
    /// Consul's own advice for `wait` and `churn`. Agents tell a new server within
    /// two minutes what they run.
    fn default() -> Self {
        Self {
            wait: Duration::from_secs(300),
            churn: Duration::from_secs(15),
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            hold: Duration::from_secs(5),
            rebuilt: Duration::from_secs(120),
        }
    }
}

/// A token bucket: it lets few through at once, and then one at a time.
pub(super) struct Bucket {
    every: Duration,
    tokens: u32,
    /// When the last token was added.
    filled: Instant,
}

impl Bucket {
    /// Full.
    pub(super) fn new(pace: &Pace, now: Instant) -> Self {
        // A bucket that fills at once would let the loop spin.
        let every = pace.churn.max(Duration::from_millis(1));
        Self { every, tokens: Pace::BURST, filled: now }
    }

    /// Takes a token; it may be used from then on.
    pub(super) fn take(&mut self, now: Instant) -> Instant {
        while self.tokens < Pace::BURST && self.filled + self.every <= now {
            self.filled += self.every;
            self.tokens += 1;
        }
        if self.tokens == Pace::BURST {
            self.filled = now;
        }
        if self.tokens > 0 {
            self.tokens -= 1;
            return now;
        }
        self.filled += self.every;
        self.filled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_at_once_and_then_one_at_a_time() {
        let start = Instant::now();
        let mut bucket = Bucket::new(&Pace::default(), start);
        let mut now = start;
        let mut taken = Vec::new();
        for _ in 0..5 {
            now = bucket.take(now);
            taken.push((now - start).as_secs());
        }
        assert_eq!(taken, [0, 0, 15, 30, 45]);
        // Long silence fills it again, and no more than that.
        now += Duration::from_secs(3600);
        let taken: Vec<_> = (0..3).map(|_| (bucket.take(now) - now).as_secs()).collect();
        assert_eq!(taken, [0, 0, 15]);
    }
}
