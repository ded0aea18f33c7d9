//! Which answers are believed, and when to ask again. Pure.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Pace, State, Why};
use crate::client::{Answer, Error, Listing};

/// One list: what is known of it, and where its questions stand.
pub(super) struct Track<T> {
    pace: Pace,
    /// What the next question blocks on; none: it is answered at once.
    index: Option<u64>,
    /// Of the last answer.
    last_index: u64,
    /// The last that was believed.
    good: Option<Arc<T>>,
    /// Since when, and why, it is not what Consul says.
    stale: Option<(Instant, Why)>,
    /// While answers are empty: when that is believed.
    empty_until: Option<Instant>,
    /// Until then a server may not have been told everything.
    rebuilt_until: Option<Instant>,
    /// In a row.
    failures: u32,
    not_before: Option<Instant>,
}

impl<T: Listing + PartialEq> Track<T> {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            index: None,
            last_index: 0,
            good: None,
            stale: None,
            empty_until: None,
            rebuilt_until: None,
            failures: 0,
            not_before: None,
        }
    }

    pub(super) fn index(&self) -> Option<u64> {
        self.index
    }

    /// The next question waits until then.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// The state, if it is another one now.
    pub(super) fn answered(&mut self, answer: Answer<T>, now: Instant) -> Option<State<T>> {
        self.failures = 0;
        self.not_before = None;
        // An index of 0 would not block: the loop would spin.
        let index = answer.index.max(1);
        let went_back = index < self.last_index;
        if went_back {
            self.rebuilt_until = Some(now + self.pace.rebuilt);
        }
        self.index = (!went_back).then_some(index);
        self.last_index = index;
        if !answer.data.is_empty() {
            self.empty_until = None;
            return self.believe(answer.data);
        }
        if answer.filtered {
            return self.doubt(Why::Filtered, self.pace.backoff_max, now);
        }
        if !answer.has_leader {
            return self.doubt(Why::NoLeader, self.pace.hold, now);
        }
        if self.good.as_ref().is_none_or(|good| good.is_empty()) {
            return self.believe(answer.data);
        }
        let rebuilt = self.rebuilt_until.filter(|until| *until > now);
        let until = *self.empty_until.get_or_insert(rebuilt.unwrap_or(now + self.pace.hold));
        if now >= until {
            self.empty_until = None;
            return self.believe(answer.data);
        }
        self.doubt(Why::Emptied, self.pace.hold.min(until - now), now)
    }

    /// The state, if it is another one now. What failed is asked again after a
    /// pause that doubles, times `jitter`.
    pub(super) fn failed(&mut self, error: &Error, now: Instant, jitter: f64) -> Option<State<T>> {
        let doubled = self.pace.backoff.saturating_mul(1 << self.failures.min(16));
        let pause = doubled.min(self.pace.backoff_max).mul_f64(jitter);
        self.failures += 1;
        self.doubt(Why::Failed(error.to_string().into()), pause, now)
    }

    fn believe(&mut self, data: T) -> Option<State<T>> {
        let was_stale = self.stale.take().is_some();
        let good = match self.good.take() {
            Some(good) if *good == data => {
                self.good = Some(good.clone());
                return was_stale.then_some(State::Fresh(good));
            }
            _ => Arc::new(data),
        };
        self.good = Some(good.clone());
        Some(State::Fresh(good))
    }

    /// Asks again after `pause`, at once answered.
    fn doubt(&mut self, why: Why, pause: Duration, now: Instant) -> Option<State<T>> {
        self.not_before = Some(now + pause);
        self.index = None;
        let since = self.stale.as_ref().map_or(now, |(since, _)| *since);
        if self.stale.as_ref().is_some_and(|(_, known)| *known == why) {
            return None;
        }
        self.stale = Some((since, why.clone()));
        Some(State::Stale { last: self.good.clone(), since, why })
    }
}
