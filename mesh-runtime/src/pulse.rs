//! Whether the threads of a process still run their tasks.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::clock;

/// Of all threads; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pulses {
    began: tokio::time::Instant,
    beats: Arc<Mutex<Vec<Arc<AtomicU64>>>>,
}

impl Default for Pulses {
    fn default() -> Self {
        Self { began: clock::monotonic(), beats: Arc::default() }
    }
}

impl Pulses {
    /// One thread's, which beats so often as long as this is polled in it.
    pub fn beat(&self, interval: Duration) -> impl Future<Output = ()> + Send + use<> {
        let beat = Arc::new(AtomicU64::new(self.now()));
        self.beats.lock().unwrap_or_else(PoisonError::into_inner).push(beat.clone());
        let pulses = self.clone();
        async move {
            loop {
                beat.store(pulses.now(), Ordering::Relaxed);
                tokio::time::sleep(interval).await;
            }
        }
    }

    /// Whether each has beaten since so long ago.
    pub fn are_within(&self, patience: Duration) -> bool {
        let since = self.now().saturating_sub(millis(patience));
        let beats = self.beats.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().all(|beat| beat.load(Ordering::Relaxed) >= since)
    }

    fn now(&self) -> u64 {
        millis(clock::monotonic() - self.began)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_seen() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::pause();
            let (pulses, second) = (Pulses::default(), Duration::from_secs(1));
            assert!(pulses.are_within(second), "nobody is not dead");
            #[allow(clippy::disallowed_methods, reason = "its end is looked at")]
            let beating = tokio::spawn(pulses.beat(second));
            tokio::time::sleep(10 * second).await;
            assert!(pulses.are_within(2 * second));
            beating.abort();
            tokio::time::sleep(3 * second).await;
            assert!(!pulses.are_within(2 * second));
        });
    }
}
