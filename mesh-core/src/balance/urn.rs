//! Drawing by weight: one in O(log n), and a second one beside it.

use super::hash::{part, unit};

/// Things with weights. Built once, drawn from often.
#[derive(Debug, Clone)]
pub(super) struct Urn {
    /// What is drawn.
    items: Vec<u32>,
    /// Sums of the weights up to and with each item.
    upto: Vec<f64>,
    /// The least full weight: one share.
    share: f64,
    is_even: bool,
}

impl Default for Urn {
    fn default() -> Self {
        Self { items: Vec::new(), upto: Vec::new(), share: f64::INFINITY, is_even: true }
    }
}

/// One item at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Drawn {
    at: usize,
    pub(super) item: u32,
}

impl Urn {
    pub(super) fn clear(&mut self) {
        self.items.clear();
        self.upto.clear();
        (self.share, self.is_even) = (f64::INFINITY, true);
    }

    /// `weight` is more than 0 and at most `full`, what it is when the item
    /// has its full share.
    pub(super) fn push(&mut self, item: u32, weight: f64, full: f64) {
        let before = self.total();
        self.is_even &= self.items.is_empty() || weight == self.weight(0);
        self.items.push(item);
        self.upto.push(before + weight);
        self.share = self.share.min(full);
    }

    pub(super) fn items(&self) -> &[u32] {
        &self.items
    }

    pub(super) fn total(&self) -> f64 {
        self.upto.last().copied().unwrap_or_default()
    }

    /// What was drawn, and how many shares (the least full weight of all) it
    /// stands for.
    pub(super) fn shares(&self, drawn: Drawn) -> (u32, f64) {
        let shares = if self.is_even { 1.0 } else { self.weight(drawn.at) / self.share };
        (drawn.item, shares)
    }

    /// Weight of the item at a place.
    pub(super) fn weight(&self, at: usize) -> f64 {
        let before = at.checked_sub(1).map_or(0.0, |before| self.upto[before]);
        self.upto[at] - before
    }

    /// One by weight; `random` is uniform over all of `u64`.
    pub(super) fn draw(&self, random: u64) -> Option<Drawn> {
        let n = self.items.len();
        let at = match n {
            0 => return None,
            _ if self.is_even => part(random, n),
            _ => self.at(unit(random) * self.total()),
        };
        Some(Drawn { at, item: self.items[at] })
    }

    /// A second one, where `first` has one share less: with equal weights it
    /// is another one, and a heavy item meets itself often enough to keep what
    /// it is due.
    pub(super) fn draw_beside(&self, first: Drawn, random: u64) -> Drawn {
        let n = self.items.len();
        let at = match n {
            0 | 1 => first.at,
            _ if self.is_even => {
                let at = part(random, n - 1);
                at + usize::from(at >= first.at)
            }
            _ => {
                let share = self.share.min(self.weight(first.at));
                let point = unit(random) * (self.total() - share);
                let gap = self.upto[first.at] - share;
                self.at(if point >= gap { point + share } else { point })
            }
        };
        Drawn { at, item: self.items[at] }
    }

    fn at(&self, point: f64) -> usize {
        // Rounding may lead past the end.
        self.upto.partition_point(|upto| *upto <= point).min(self.items.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::hash::Dice;

    fn urn(weights: &[f64]) -> Urn {
        let mut urn = Urn::default();
        weights.iter().zip(0..).for_each(|(weight, item)| urn.push(item, *weight, *weight));
        urn
    }

    #[test]
    fn edges() {
        assert_eq!(Urn::default().draw(7), None);
        let one = urn(&[3.0]);
        let drawn = one.draw(u64::MAX).unwrap();
        assert_eq!((drawn.item, one.draw_beside(drawn, 5)), (0, drawn));
        for urn in [urn(&[1.0, 1.0]), urn(&[1.0, 2.0])] {
            assert_eq!(urn.draw(0).unwrap().item, 0);
            assert_eq!(urn.draw(u64::MAX).unwrap().item, 1);
        }
        let mut urn = urn(&[1.0, 2.0, 4.0]);
        assert_eq!([0, 1, 2].map(|at| urn.weight(at)), [1.0, 2.0, 4.0]);
        assert_eq!((urn.total(), urn.share), (7.0, 1.0));
        assert_eq!([0.0, 0.9, 1.0, 2.9, 3.0, 7.0].map(|point| urn.at(point)), [0, 0, 1, 1, 2, 2]);
        urn.clear();
        assert!(urn.items().is_empty() && urn.total() == 0.0);
        urn.push(9, 0.5, 2.0);
        assert_eq!((urn.share, urn.weight(0), urn.items()), (2.0, 0.5, &[9][..]));
    }

    #[test]
    fn equal_ones_never_meet_themselves() {
        let (urn, mut dice) = (urn(&[2.0, 2.0, 2.0]), Dice::new(1));
        for _ in 0..1000 {
            let first = urn.draw(dice.roll()).unwrap();
            assert_ne!(urn.draw_beside(first, dice.roll()), first);
        }
    }

    /// Of 4 shares 3 are the first one's: it meets itself in 3 * 2 of 4 * 3.
    #[test]
    fn heavy_ones_meet_themselves() {
        let (urn, mut dice) = (urn(&[3.0, 1.0]), Dice::new(2));
        let mut itself = 0;
        for _ in 0..10_000 {
            let first = urn.draw(dice.roll()).unwrap();
            let second = urn.draw_beside(first, dice.roll());
            assert!(first.item == 0 || second.item == 0, "the light one is but one share");
            itself += u32::from(first == second);
        }
        assert!(itself.abs_diff(5000) < 250, "{itself}");
    }

    proptest! {
        /// Five standard deviations of a binomial distribution.
        #[test]
        fn draws_follow_the_weights(
            weights in prop::collection::vec(1u32..100, 1..12),
            seed in any::<u64>(),
        ) {
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            let (urn, mut dice, n) = (urn(&weights), Dice::new(seed), 20_000.0);
            let mut counts = vec![0.0; weights.len()];
            for _ in 0..20_000 {
                counts[urn.draw(dice.roll()).unwrap().item as usize] += 1.0;
            }
            for (weight, count) in weights.iter().zip(counts) {
                let p = weight / urn.total();
                let bound = 5.0 * (n * p * (1.0 - p)).sqrt() + 1.0;
                prop_assert!((count - n * p).abs() <= bound, "{weight} of {weights:?}: {count}");
            }
        }
    }
}
