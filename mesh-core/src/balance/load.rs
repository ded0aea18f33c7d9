//! What one worker has seen of one endpoint: latency, what is in flight,
//! failures, and whether it is left alone for them.

use std::time::Duration;

use super::policy::OutlierPolicy;

/// After this long without a sample a latency counts for 1/e of itself.
pub const DECAY: Duration = Duration::from_secs(10);
/// Latency of an endpoint that has work and has never answered: one request
/// finds out, the others go where answers come from.
const UNMEASURED_US: f64 = 1_000_000.0;
/// Latencies are alike when the higher is at most so many times the lower, and
/// so many microseconds more.
pub(super) const TOLERANCE: f64 = 2.0;
pub(super) const SLACK_US: f64 = 1000.0;
/// Parts of the window over which successes are counted.
const BUCKETS: usize = 5;

/// `now` values are durations since any fixed moment of the caller's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Peak-EWMA of latency in microseconds; 0 until there was an answer.
    pub ewma_us: f64,
    /// When it was last updated.
    pub updated: Duration,
    /// Requests in flight.
    pub in_flight: u32,
    /// Failed in a row.
    pub failures: u32,
    /// Left alone while another usable one is in reach.
    pub out: Option<Out>,
    /// How long it was left alone last; forgotten by halves.
    pub ejection: Duration,
    /// When it came back, or when `ejection` was last halved.
    pub back: Duration,
    /// Successes and failures lately.
    pub outcomes: Outcomes,
}

/// Until when, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// It comes back then, on probation.
    pub until: Duration,
    /// Why.
    pub why: Why,
}

/// Why an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nobody was there.
    Absent,
    /// It failed several times in a row.
    Failures,
    /// It fails more often than the others.
    SuccessRate,
}

impl Load {
    /// A request starts.
    pub fn start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request never reached the endpoint: nothing is learned of it.
    pub fn abandon(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A request ended well after `latency`. Outcomes are counted over
    /// `window`, if at all.
    pub fn succeed(&mut self, now: Duration, latency: Duration, window: Option<Duration>) {
        self.abandon();
        self.outcomes.count(now, window, true);
        self.observe(now, micros(latency));
        self.failures = 0;
        // An answer shows that it is there and answers; a rate is no matter of
        // one answer.
        if self.out.is_some_and(|out| out.why != Why::SuccessRate) {
            self.come_back(now);
        } else if self.out.is_none()
            && !self.ejection.is_zero()
            && now.saturating_sub(self.back) >= self.ejection
        {
            // As long in service as it was out.
            self.ejection /= 2;
            self.back = now;
        }
    }

    /// A request ended after `latency`, and the endpoint (not the client, not
    /// the path) is to blame.
    pub fn fail(&mut self, now: Duration, latency: Duration, window: Option<Duration>) {
        self.abandon();
        self.outcomes.count(now, window, false);
        self.failures = self.failures.saturating_add(1);
        let us = micros(latency);
        if us > self.ewma_us {
            // A quick failure is no sign of speed, a slow one is of slowness.
            self.observe(now, us);
        }
    }

    /// A request ended because nobody was there (any more): the endpoint is
    /// left alone at once, and what it took says nothing of its latency.
    pub fn vanish(&mut self, now: Duration, policy: &OutlierPolicy) {
        self.abandon();
        self.failures = self.failures.saturating_add(1);
        if !self.is_out(now) {
            self.eject(now, Why::Absent, policy);
        }
    }

    /// Left alone from now on: for twice as long as the last time.
    pub fn eject(&mut self, now: Duration, why: Why, policy: &OutlierPolicy) {
        self.ejection = (self.ejection * 2).clamp(policy.base_ejection, policy.max_ejection);
        self.out = Some(Out { until: now + self.ejection, why });
    }

    /// Its time is over: it is tried again, on probation. What failed is
    /// remembered until something succeeds.
    pub fn release(&mut self, now: Duration) {
        if self.out.is_some_and(|out| out.until <= now) {
            self.come_back(now);
        }
    }

    /// It has been reached again: what failed before is forgotten.
    pub fn readmit(&mut self, now: Duration) {
        self.failures = 0;
        self.ejection = Duration::ZERO;
        self.come_back(now);
    }

    fn come_back(&mut self, now: Duration) {
        self.out = None;
        self.back = now;
        self.outcomes = Outcomes::default();
    }

    /// Whether it is left alone for now.
    pub fn is_out(&self, now: Duration) -> bool {
        self.out.is_some_and(|out| now < out.until)
    }

    /// Rises at once, falls slowly.
    fn observe(&mut self, now: Duration, us: f64) {
        let keep = self.decay(now);
        self.ewma_us = us.max(self.ewma_us * keep + us * (1.0 - keep));
        self.updated = now;
    }

    /// Whether a request had better go here than to `other`; each stands for
    /// so many equal endpoints. Where latencies are alike, what is in flight
    /// decides, and nothing where that is equal: so equal endpoints keep the
    /// shares that they are drawn by. Else latency times what is in flight.
    pub fn is_better(&self, shares: f64, other: &Load, others: f64, now: Duration) -> bool {
        let (own, its) = (self.latency(now), other.latency(now));
        let (low, high) = (own.min(its), own.max(its));
        let busy = f64::from(self.in_flight) / shares;
        let other_busy = f64::from(other.in_flight) / others;
        if low > 0.0 && high <= TOLERANCE * low + SLACK_US {
            return busy < other_busy;
        }
        own * (busy + 1.0) < its * (other_busy + 1.0)
    }

    /// What a request is to expect, in microseconds.
    fn latency(&self, now: Duration) -> f64 {
        match self.ewma_us {
            0.0 if self.in_flight > 0 => UNMEASURED_US,
            0.0 => 0.0,
            // An old latency says little: what was slow is tried again.
            measured => measured * self.decay(now),
        }
    }

    fn decay(&self, now: Duration) -> f64 {
        let idle = now.saturating_sub(self.updated);
        (-idle.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

fn micros(latency: Duration) -> f64 {
    latency.as_secs_f64() * 1e6
}

/// Successes and failures in a sliding window, counted in parts of it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcomes {
    buckets: [[u32; 2]; BUCKETS],
    /// Which part of all time the newest bucket is for.
    newest: u64,
}

impl Outcomes {
    fn count(&mut self, now: Duration, window: Option<Duration>, ok: bool) {
        let Some(window) = window else { return };
        self.turn(now, window);
        let newest = part(self.newest);
        let bucket = &mut self.buckets[newest][usize::from(ok)];
        *bucket = bucket.saturating_add(1);
    }

    /// Failures and successes of the window that ends now.
    pub fn sums(&mut self, now: Duration, window: Duration) -> [u64; 2] {
        self.turn(now, window);
        self.buckets
            .iter()
            .fold([0, 0], |[bad, good], [b, g]| [bad + u64::from(*b), good + u64::from(*g)])
    }

    /// Forgets what is older than the window.
    fn turn(&mut self, now: Duration, window: Duration) {
        let width = (window / u32::try_from(BUCKETS).unwrap_or(1)).as_secs_f64();
        let current = (now.as_secs_f64() / width.max(1e-3)) as u64;
        let gone = current.saturating_sub(self.newest).min(BUCKETS as u64);
        for step in 1..=gone {
            self.buckets[part(self.newest + step)] = [0, 0];
        }
        // All of them, if all are old.
        self.newest = self.newest.max(current);
    }
}

fn part(number: u64) -> usize {
    usize::try_from(number % BUCKETS as u64).unwrap_or_default()
}
