//! How much each tier takes: the formula, and nothing else.

/// How many tiers there are.
pub const TIERS: usize = 4;

/// What there is of one tier, in any one unit of capacity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Of all endpoints that ought to serve.
    pub total: f64,
    /// Of those that can.
    pub healthy: f64,
    /// What overload leaves of it: 1 is none, 0.5 sends half on.
    pub relief: f64,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { total: 0.0, healthy: 0.0, relief: 1.0 }
    }
}

/// The share of requests of each tier, nearest first: each keeps
/// `min(1, overprovisioning × healthy / total) × relief` of what reaches it
/// and hands the rest on; what the last one hands on is taken by all in
/// proportion. The sum is 1, or 0 where nothing is healthy.
pub fn shares(tiers: &[Capacity; TIERS], overprovisioning: f64) -> [f64; TIERS] {
    let mut reaches = 1.0;
    let mut shares = tiers.map(|tier| {
        let share = reaches * tier.keeps(overprovisioning);
        reaches -= share;
        share
    });
    let sum: f64 = shares.iter().sum();
    if sum > 0.0 {
        shares.iter_mut().for_each(|share| *share /= sum);
    }
    shares
}

/// The share of each tier when none is preferred.
pub fn even(capacities: [f64; TIERS]) -> [f64; TIERS] {
    let sum: f64 = capacities.iter().sum();
    if sum > 0.0 { capacities.map(|one| one / sum) } else { capacities }
}

impl Capacity {
    fn keeps(&self, overprovisioning: f64) -> f64 {
        if self.total <= 0.0 {
            return 0.0;
        }
        (overprovisioning * self.healthy / self.total).min(1.0) * self.relief
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tier(total: f64, healthy: f64) -> Capacity {
        Capacity { total, healthy, relief: 1.0 }
    }

    fn check(tiers: &[Capacity], expected: &[f64]) {
        let mut all = [Capacity::default(); TIERS];
        all[..tiers.len()].copy_from_slice(tiers);
        let shares = shares(&all, 1.4);
        for (i, share) in shares.iter().enumerate() {
            let expected = expected.get(i).copied().unwrap_or_default();
            assert!((share - expected).abs() < 1e-9, "{tiers:?}: {shares:?}");
        }
    }

    #[test]
    fn the_exact_numbers() {
        let well = tier(6.0, 6.0);
        let cases: &[(&[Capacity], &[f64])] = &[
            (&[well, well], &[1.0]),
            // 1.4 covers the loss of two sevenths.
            (&[tier(7.0, 5.0), well], &[1.0]),
            (&[tier(3.0, 2.0), well], &[1.4 * 2.0 / 3.0, 1.0 - 1.4 * 2.0 / 3.0]),
            (&[tier(3.0, 1.0), well], &[1.4 / 3.0, 1.0 - 1.4 / 3.0]),
            (&[tier(3.0, 0.0), well], &[0.0, 1.0]),
            (&[tier(0.0, 0.0), well], &[0.0, 1.0]),
            (&[], &[]),
            (&[tier(3.0, 0.0), tier(2.0, 0.0)], &[]),
            // What spills meets a tier that is short itself.
            (&[tier(2.0, 1.0), tier(4.0, 1.0), tier(1.0, 1.0)], &[0.7, 0.3 * 0.35, 0.3 * 0.65]),
            // All are short: 0.7 and 0.3 * 0.7, brought to 1.
            (&[tier(2.0, 1.0), tier(2.0, 1.0)], &[0.7 / 0.91, 0.21 / 0.91]),
            (&[tier(10.0, 1.0)], &[1.0]),
            // Overload spills in proportion.
            (&[Capacity { relief: 0.5, ..well }, well], &[0.5, 0.5]),
            (&[Capacity { relief: 0.5, ..tier(3.0, 1.0) }, well], &[0.7 / 3.0, 1.0 - 0.7 / 3.0]),
        ];
        for (tiers, expected) in cases {
            check(tiers, expected);
        }
    }

    #[test]
    fn a_third_lost_keeps_93_3_and_two_thirds_46_7() {
        let of = |healthy: f64| {
            let mut tiers = [Capacity::default(); TIERS];
            (tiers[0], tiers[3]) = (tier(9.0, healthy), tier(9.0, 9.0));
            format!("{:.1}", 100.0 * shares(&tiers, 1.4)[0])
        };
        assert_eq!([of(9.0), of(6.0), of(3.0), of(0.0)], ["100.0", "93.3", "46.7", "0.0"]);
    }

    #[test]
    fn without_preference_shares_are_sizes() {
        assert_eq!(even([1.0, 0.0, 3.0, 0.0]), [0.25, 0.0, 0.75, 0.0]);
        assert_eq!(even([0.0; TIERS]), [0.0; TIERS], "nobody is there");
    }

    proptest! {
        #[test]
        fn shares_are_a_distribution_over_what_is_healthy(
            parts in prop::array::uniform4((0u32..50, 0u32..50, 1u32..=100)),
            over in 100u32..300,
        ) {
            let tiers = parts.map(|(a, b, relief)| Capacity {
                total: f64::from(a.max(b)),
                healthy: f64::from(a.min(b)),
                relief: f64::from(relief) / 100.0,
            });
            let shares = shares(&tiers, f64::from(over) / 100.0);
            let sum: f64 = shares.iter().sum();
            let any = tiers.iter().any(|tier| tier.healthy > 0.0);
            prop_assert!((sum - f64::from(u8::from(any))).abs() < 1e-9, "{shares:?}");
            for (share, tier) in shares.iter().zip(&tiers) {
                prop_assert!(*share >= 0.0 && (*share == 0.0) <= (tier.healthy == 0.0 || sum > 0.0));
                prop_assert!(tier.healthy > 0.0 || *share == 0.0, "{tiers:?} {shares:?}");
            }
        }

        /// Losing an endpoint never brings its tier more, nor a nearer tier less.
        #[test]
        fn what_is_lost_is_spilled(
            healthy in prop::array::uniform4(1u32..20),
            lost in 0usize..TIERS,
        ) {
            let well = healthy.map(|n| tier(20.0, f64::from(n)));
            let mut worse = well;
            worse[lost].healthy -= 1.0;
            let (before, after) = (shares(&well, 1.4), shares(&worse, 1.4));
            prop_assert!(after[lost] <= before[lost] + 1e-9);
            for i in lost + 1..TIERS {
                prop_assert!(after[i] >= before[i] - 1e-9);
            }
        }
    }
}
