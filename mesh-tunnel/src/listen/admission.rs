//! How many strangers may be busy with us at once.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Handshakes under way, both transports.
const HALF_OPEN: usize = 256;
/// Of one address; a site behind address translation still fits.
const HALF_OPEN_PER_SOURCE: usize = 64;
/// More than this, and QUIC clients must prove their address first.
const BUSY: usize = 64;
/// Join streams at once.
const JOINING: usize = 64;
/// Join streams begun per second, and as many in one burst.
const JOINS_PER_SECOND: u32 = 20;

/// Counts and limits of one door.
#[derive(Debug, Default)]
pub(super) struct Admission(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    half_open: usize,
    sources: HashMap<IpAddr, usize>,
    joining: usize,
    bucket: Option<Bucket>,
    turned_away: BTreeMap<&'static str, u64>,
}

/// Join streams that may begin now.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

/// One handshake under way.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    source: IpAddr,
}

/// One join stream.
#[derive(Debug)]
pub(super) struct Joining(Arc<Admission>);

impl Admission {
    /// Begins a handshake; counts and refuses one too many.
    pub(super) fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Admitted> {
        let mut state = self.state();
        let of_source = state.sources.get(&source).copied().unwrap_or(0);
        if state.half_open >= HALF_OPEN || of_source >= HALF_OPEN_PER_SOURCE {
            state.count("handshake_limit");
            return None;
        }
        state.half_open += 1;
        *state.sources.entry(source).or_default() += 1;
        Some(Admitted { admission: self.clone(), source })
    }

    /// Whether strangers should first prove that they receive what we send.
    pub(super) fn is_busy(&self) -> bool {
        self.state().half_open >= BUSY
    }

    /// Begins a join stream.
    pub(super) fn join(self: &Arc<Self>, now: Instant) -> Option<Joining> {
        let mut state = self.state();
        if state.joining >= JOINING {
            return None;
        }
        let full = f64::from(JOINS_PER_SECOND);
        let bucket = state.bucket.get_or_insert(Bucket { tokens: full, filled: now });
        let since: Duration = now.duration_since(bucket.filled);
        bucket.tokens = full.min(bucket.tokens + since.as_secs_f64() * full);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return None;
        }
        bucket.tokens -= 1.0;
        state.joining += 1;
        Some(Joining(self.clone()))
    }

    pub(super) fn count(&self, code: &'static str) {
        self.state().count(code);
    }

    pub(super) fn turned_away(&self) -> Vec<(&'static str, u64)> {
        self.state().turned_away.iter().map(|(code, n)| (*code, *n)).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self, code: &'static str) {
        *self.turned_away.entry(code).or_default() += 1;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.admission.state();
        state.half_open -= 1;
        if let Some(n) = state.sources.get_mut(&self.source) {
            *n -= 1;
            if *n == 0 {
                state.sources.remove(&self.source);
            }
        }
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        self.0.state().joining -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).unwrap().to_be_bytes())
    }

    #[test]
    fn handshakes_are_limited_per_source_and_in_all() {
        let admission = Arc::new(Admission::default());
        let one: Vec<_> = (0..200).filter_map(|_| admission.enter(ip(1))).collect();
        assert_eq!(one.len(), HALF_OPEN_PER_SOURCE);
        assert!(admission.is_busy());
        let all: Vec<_> = (2..2000).filter_map(|n| admission.enter(ip(n))).collect();
        assert_eq!(one.len() + all.len(), HALF_OPEN);
        drop((one, all));
        assert!(!admission.is_busy());
        assert!(admission.enter(ip(1)).is_some());
        assert!(admission.state().sources.is_empty(), "nothing is kept of a source that left");
        assert_eq!(admission.turned_away(), [("handshake_limit", 136 + 1998 - 192)]);
    }

    #[test]
    fn joining_is_limited_per_second_and_at_once() {
        let admission = Arc::new(Admission::default());
        let mut now = Instant::now();
        let burst = |now| (0..100).filter_map(|_| admission.join(now)).collect::<Vec<_>>();
        let mut held = burst(now);
        assert_eq!(held.len(), 20);
        now += Duration::from_millis(500);
        held.extend(burst(now));
        assert_eq!(held.len(), 30);
        for _ in 0..5 {
            now += Duration::from_secs(1);
            held.extend(burst(now));
        }
        assert_eq!(held.len(), JOINING);
        held.clear();
        now += Duration::from_secs(1);
        assert!(admission.join(now).is_some());
    }
}
