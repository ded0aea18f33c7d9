//! Pauses between attempts: doubling, jittered, bounded.

use std::time::Duration;

use rand::Rng;

/// The pause before the next attempt.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// `first`, doubling up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// It worked: the next pause is the first one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }

    /// The next pause: half of the step plus a random half, so that those who
    /// failed together do not come back together.
    pub(crate) fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        jittered(step)
    }

    /// Waits for [`Backoff::step`].
    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.step()).await;
    }
}

/// Between half of `duration` and all of it.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_begins_again() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 5);
        for want in [1, 2, 4, 5, 5] {
            let pause = backoff.step();
            assert!(pause <= second * want && pause >= second * want / 2, "{pause:?}, step {want}");
        }
        backoff.reset();
        assert!(backoff.step() <= second);
    }
}
