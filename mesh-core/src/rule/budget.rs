//! How many repetitions a caller may add: a share of its requests, and a few
//! whatever they are.

use std::time::Duration;

use super::RetryBudget;

/// Parts that the time over which requests are counted is cut into.
const SLICES: usize = 10;

/// Requests and repetitions of the last `ttl`. `now` values are durations
/// since any fixed moment of the caller's.
#[derive(Debug, Clone, Default)]
pub struct Budget {
    /// (number of the slice of time, requests, repetitions).
    slices: [(u64, u32, u32); SLICES],
}

impl Budget {
    /// A request begins.
    pub fn request(&mut self, policy: &RetryBudget, now: Duration) {
        let slice = self.slice(policy, now);
        slice.1 = slice.1.saturating_add(1);
    }

    /// Whether a repetition may begin; counts it if so.
    pub fn repetition(&mut self, policy: &RetryBudget, now: Duration) -> bool {
        let current = number(policy, now);
        let live =
            self.slices.iter().filter(|slice| current - slice.0.min(current) < SLICES as u64);
        let (requests, repeated) = live.fold((0_u64, 0_u64), |(requests, repeated), slice| {
            (requests + u64::from(slice.1), repeated + u64::from(slice.2))
        });
        let seconds = policy.ttl.as_secs_f64();
        let floor = f64::from(policy.min_per_second) * seconds;
        #[allow(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let allowed = floor + requests as f64 * f64::from(policy.percent) / 100.0;
        #[allow(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let may = (repeated as f64) + 1.0 <= allowed;
        if may {
            let slice = self.slice(policy, now);
            slice.2 = slice.2.saturating_add(1);
        }
        may
    }

    fn slice(&mut self, policy: &RetryBudget, now: Duration) -> &mut (u64, u32, u32) {
        let number = number(policy, now);
        let index = usize::try_from(number % SLICES as u64).unwrap_or_default();
        let slice = &mut self.slices[index];
        if slice.0 != number {
            *slice = (number, 0, 0);
        }
        slice
    }
}

/// Which slice of time it is; none is number 0, which unused slices have.
fn number(policy: &RetryBudget, now: Duration) -> u64 {
    let slice = (policy.ttl.as_nanos() / SLICES as u128).max(1);
    u64::try_from(now.as_nanos() / slice).unwrap_or(u64::MAX).saturating_add(SLICES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(percent: u32, min_per_second: u32) -> RetryBudget {
        RetryBudget { percent, min_per_second, ttl: Duration::from_secs(10) }
    }

    fn allowed(budget: &mut Budget, policy: &RetryBudget, now: Duration) -> usize {
        (0..1000).take_while(|_| budget.repetition(policy, now)).count()
    }

    #[test]
    fn a_share_of_the_requests_and_a_floor() {
        let now = Duration::from_secs(100);
        let mut budget = Budget::default();
        assert_eq!(allowed(&mut budget, &policy(20, 0), now), 0);
        assert_eq!(allowed(&mut budget, &policy(0, 3), now), 30);
        let mut budget = Budget::default();
        for _ in 0..50 {
            budget.request(&policy(20, 1), now);
        }
        assert_eq!(allowed(&mut budget, &policy(20, 1), now), 20);
    }

    #[test]
    fn what_is_older_than_its_time_is_forgotten() {
        let policy = policy(100, 0);
        let mut budget = Budget::default();
        for second in 0..10 {
            budget.request(&policy, Duration::from_secs(second));
        }
        let at = |budget: &Budget, second| {
            allowed(&mut budget.clone(), &policy, Duration::from_secs(second))
        };
        assert_eq!(at(&budget, 9), 10);
        assert_eq!(at(&budget, 14), 5);
        assert_eq!(at(&budget, 19), 0);
        // Repetitions grow old too.
        assert_eq!(allowed(&mut budget, &policy, Duration::from_secs(9)), 10);
        budget.request(&policy, Duration::from_secs(30));
        assert_eq!(allowed(&mut budget, &policy, Duration::from_secs(30)), 1);
    }

    #[test]
    fn an_odd_ttl_is_no_obstacle() {
        for ttl in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let policy = RetryBudget { percent: 100, min_per_second: 1, ttl };
            let mut budget = Budget::default();
            budget.request(&policy, Duration::MAX);
            budget.repetition(&policy, Duration::MAX);
        }
    }
}
