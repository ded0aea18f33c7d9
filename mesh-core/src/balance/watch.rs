//! How a tier fares: what is in flight against its capacity, and its latency
//! against the next tier's. Both send a part of its requests on, in
//! proportion.

use std::time::Duration;

use super::load::{SLACK_US, TOLERANCE};

/// How often a tier is looked at, and shares with it.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// What a tier keeps however bad it is: somebody has to find out when it is
/// better.
const FLOOR: f64 = 0.05;
/// What goes on to find out how fast the next tier is, when this one has
/// become slower than it was.
const TRIAL: f64 = 0.05;
/// How fast what is in flight is followed: the higher, the more noise.
const GAIN: f64 = 0.3;
/// Answers in the window that make a latency, of the tier and of the next.
const ENOUGH: u32 = 20;
const ENOUGH_NEXT: u32 = 5;
/// The window: so many parts of so long.
const PARTS: usize = 5;
const PART: Duration = Duration::from_secs(2);
/// How fast the best latency that a tier had is forgotten, per interval:
/// doubled after about six minutes.
const FORGET: f64 = 0.000_5;

/// One tier.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    /// What capacity leaves, 0 to 1.
    room: f64,
    /// What latency leaves, 0 to 1.
    pace: f64,
    /// Sums of log2 of microseconds, and how many.
    parts: [(f64, u32); PARTS],
    newest: u64,
    /// The best latency it had, in log2 of microseconds.
    best: Option<f64>,
}

impl Default for Watch {
    fn default() -> Self {
        let parts = [(0.0, 0); PARTS];
        Self { room: 1.0, pace: 1.0, parts, newest: 0, best: None }
    }
}

/// A latency, as log2 of microseconds, from so many answers. The mean of
/// logarithms: one slow answer among many says little.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    log2: f64,
    answers: u32,
}

impl Watch {
    /// The part of its requests that it is to keep.
    pub(super) fn relief(&self) -> f64 {
        (self.room * self.pace).max(FLOOR)
    }

    /// An answer came after `latency`.
    pub(super) fn sample(&mut self, now: Duration, latency: Duration) {
        self.turn(now);
        let (sum, count) = &mut self.parts[index(self.newest)];
        // At least a microsecond: there is no logarithm of nothing.
        *sum += (latency.as_secs_f64() * 1e6).max(1.0).log2();
        *count += 1;
    }

    /// Latency in the window that ends now.
    pub(super) fn pace(&mut self, now: Duration) -> Option<Pace> {
        self.turn(now);
        let (sum, answers) =
            self.parts.iter().fold((0.0, 0), |(s, c), (sum, count)| (s + sum, c + count));
        (answers > 0).then(|| Pace { log2: sum / f64::from(answers), answers })
    }

    fn turn(&mut self, now: Duration) {
        let current = now.as_secs() / PART.as_secs();
        let gone = current.saturating_sub(self.newest).min(PARTS as u64);
        for step in 1..=gone {
            self.parts[index(self.newest + step)] = (0.0, 0);
        }
        self.newest = self.newest.max(current);
    }

    /// Follows what is in flight. What a tier has in flight grows with what it
    /// keeps (Little's law), so that keeping `capacity / in flight` of what it
    /// keeps now leaves it with its capacity. `None`: capacity is not known.
    pub(super) fn follow_load(&mut self, in_flight: f64, capacity: Option<f64>) {
        let Some(capacity) = capacity else {
            self.room = 1.0;
            return;
        };
        let ratio = (capacity / in_flight.max(1e-9)).clamp(0.25, 4.0);
        self.room = (self.room * ratio.powf(GAIN)).clamp(FLOOR, 1.0);
    }

    /// Follows latency. `next` is that of the next tier, if there is one that
    /// could take more; its inner `None` is one that has not been measured.
    pub(super) fn follow_pace(&mut self, own: Option<Pace>, next: Option<Option<Pace>>) {
        let own = own.filter(|own| own.answers >= ENOUGH);
        let target = match (own, next) {
            (Some(own), Some(next)) => {
                let next = next.filter(|next| next.answers >= ENOUGH_NEXT);
                self.target(own, next)
            }
            (None, _) | (_, None) => 1.0,
        };
        if let Some(own) = own {
            let best = self.best.map_or(own.log2, |best| (best + FORGET).min(own.log2));
            self.best = Some(best);
        }
        // Half of the way: what is measured lags behind what is done.
        self.pace += (target - self.pace) / 2.0;
    }

    fn target(&self, own: Pace, next: Option<Pace>) -> f64 {
        let tolerated = |log2: f64| (TOLERANCE * log2.exp2() + SLACK_US) / own.log2.exp2();
        match next {
            Some(next) => tolerated(next.log2).min(1.0),
            None if self.best.is_some_and(|best| tolerated(best) < 1.0) => 1.0 - TRIAL,
            None => 1.0,
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number % PARTS as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn measured(latency: Duration, answers: u32) -> Option<Pace> {
        Some(Pace { log2: (latency.as_secs_f64() * 1e6).log2(), answers })
    }

    /// What is kept after the same has been seen for long.
    fn settled(own: Option<Pace>, next: Option<Option<Pace>>) -> f64 {
        let mut watch = Watch::default();
        watch.follow_pace(measured(ms(10), 100), Some(None));
        (0..60).for_each(|_| watch.follow_pace(own, next));
        watch.relief()
    }

    #[test]
    fn a_slow_tier_sends_on_in_proportion() {
        let cases = [
            (measured(ms(10), 100), measured(ms(10), 100), 1.0),
            (measured(ms(21), 100), measured(ms(10), 100), 1.0),
            (measured(ms(42), 100), measured(ms(10), 100), 0.5),
            (measured(ms(105), 100), measured(ms(10), 5), 0.2),
            (measured(ms(9000), 100), measured(ms(10), 100), FLOOR),
            // Not enough answers to say.
            (measured(ms(100), 19), measured(ms(10), 100), 1.0),
            (None, measured(ms(10), 100), 1.0),
            // Slower than it was, and nobody knows about the next.
            (measured(ms(40), 100), measured(ms(10), 4), 1.0 - TRIAL),
            (measured(ms(40), 100), None, 1.0 - TRIAL),
            (measured(ms(15), 100), None, 1.0),
        ];
        for (own, next, kept) in cases {
            let is = settled(own, Some(next));
            assert!((is - kept).abs() < 1e-6, "{own:?} {next:?}: {is}");
        }
        assert_eq!(settled(measured(ms(100), 100), None), 1.0, "there is no next tier");
    }

    /// What is measured lags behind what is done.
    #[test]
    fn latency_is_followed_by_halves() {
        let mut watch = Watch::default();
        for kept in [0.75, 0.625, 0.5625] {
            watch.follow_pace(measured(ms(42), 100), Some(measured(ms(10), 100)));
            assert!((watch.relief() - kept).abs() < 1e-6, "{}", watch.relief());
        }
    }

    #[test]
    fn what_is_in_flight_settles_at_the_capacity() {
        for (offered, capacity, kept) in
            [(50.0, 100.0, 1.0), (100.0, 100.0, 1.0), (200.0, 100.0, 0.5), (1e6, 100.0, FLOOR)]
        {
            let mut watch = Watch::default();
            (0..60).for_each(|_| watch.follow_load(offered * watch.room, Some(capacity)));
            assert!((watch.relief() - kept).abs() < 0.01, "{offered}: {}", watch.relief());
            (0..60).for_each(|_| watch.follow_load(0.0, Some(capacity)));
            assert_eq!(watch.relief(), 1.0, "and comes back");
        }
        let mut watch = Watch { room: 0.3, ..Watch::default() };
        watch.follow_load(1e6, None);
        assert_eq!(watch.relief(), 1.0);
    }

    #[test]
    fn latency_is_of_the_last_ten_seconds_and_robust() {
        let mut watch = Watch::default();
        assert_eq!(watch.pace(ms(0)), None);
        for i in 0..100 {
            watch.sample(ms(4000), if i == 50 { ms(5000) } else { ms(10) });
        }
        let pace = watch.pace(ms(4000)).unwrap();
        assert_eq!(pace.answers, 100);
        let us = pace.log2.exp2();
        assert!((10_000.0..11_000.0).contains(&us), "one slow answer says little: {us}");
        assert!(watch.pace(ms(13_999)).is_some());
        assert_eq!(watch.pace(ms(14_000)), None);
        watch.sample(ms(500_000), Duration::ZERO);
        assert_eq!(watch.pace(ms(500_000)), Some(Pace { log2: 0.0, answers: 1 }));
    }

    #[test]
    fn the_best_latency_is_forgotten_slowly() {
        let mut watch = Watch::default();
        watch.follow_pace(measured(ms(10), 100), Some(None));
        let slower = measured(ms(40), 100);
        let rounds = (1..10_000_u32).find(|_| {
            watch.follow_pace(slower, Some(None));
            watch.target(slower.unwrap(), None) >= 1.0
        });
        let rounds = rounds.expect("in the end");
        let minutes = INTERVAL.as_secs_f64() * f64::from(rounds) / 60.0;
        assert!((7.0..10.0).contains(&minutes), "{minutes}");
    }
}
