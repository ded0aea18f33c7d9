//! How many frames a peer may send that carry nothing: pings, windows,
//! settings, streams that are given up at once. Each is answered or forgotten
//! by itself, and costs its sender less than it costs us.

use std::time::Duration;

use tokio::time::Instant;

/// Ahead of frames that carry something; as many again each second.
const FRAMES: u32 = 4096;
const REFILL: Duration = Duration::from_secs(1);
/// How many each frame allows that carries something, either way: a peer may
/// answer every piece with two windows.
const PER_FRAME: u32 = 4;
/// What one counts for that has carried something, and all for nothing.
pub const UNDONE: u32 = 2 * PER_FRAME;

/// What one connection may still send of them.
#[derive(Debug)]
pub struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowance {
    /// Of a connection that begins.
    pub fn new(now: Instant) -> Self {
        Self { left: FRAMES, refilled: now }
    }

    /// So many frames have carried something.
    pub fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames.saturating_mul(PER_FRAME)).min(FRAMES);
    }

    /// So many more have carried nothing; whether that is too much.
    pub fn is_exceeded(&mut self, frames: u32, now: impl FnOnce() -> Instant) -> bool {
        if let Some(left) = self.left.checked_sub(frames) {
            self.left = left;
            return false;
        }
        let now = now();
        if now.duration_since(self.refilled) < REFILL {
            return true;
        }
        (self.left, self.refilled) = (FRAMES, now);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_carries_something_may_send_more_and_so_does_who_waits() {
        let began = Instant::now();
        let mut allowance = Allowance::new(began);
        let mut exceeded = |earned, frames, after| {
            allowance.earn(earned);
            allowance.is_exceeded(frames, || began + after)
        };
        assert!(!exceeded(0, FRAMES, Duration::ZERO));
        assert!(!exceeded(10, 10 * PER_FRAME, Duration::ZERO));
        assert!(exceeded(0, 1, Duration::from_millis(999)));
        assert!(!exceeded(0, 1, REFILL) && !exceeded(0, FRAMES, REFILL));
        assert!(exceeded(0, 1, REFILL + Duration::from_millis(999)));
    }
}
