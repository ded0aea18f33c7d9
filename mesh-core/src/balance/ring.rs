//! Consistent hashing: which endpoint a key stays with.
//!
//! A multi-probe ring (Appleton, O'Reilly: "Multi-probe consistent hashing",
//! 2015): each endpoint has a few points, in proportion to its weight; a key
//! has several, and belongs to the endpoint whose point follows one of the
//! key's most closely. The spread is as even as with hundreds of points per
//! endpoint, and the ring stays small enough to be built anew whenever health
//! changes. A key moves only if its endpoint goes, or if a new one is closer.

use super::hash::{mix, part};

/// Points of a key. With 21 the fullest of equal endpoints has 5 % more than
/// its share.
const PROBES: usize = 21;
/// Points of an endpoint of mean weight, and at most.
const POINTS: f64 = 4.0;
const MOST_POINTS: f64 = 64.0;

/// Where an endpoint's points lie; the same in every proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Point {
    at: u64,
    pub(super) item: u32,
}

/// All points of `items` (number, hash, weight), sorted.
pub(super) fn points(items: &[(u32, u64, f64)]) -> Vec<Point> {
    let sum: f64 = items.iter().map(|(.., weight)| weight).sum();
    let mean = sum / items.len().max(1) as f64;
    let mut points = Vec::with_capacity(items.len() * 5);
    for (item, hash, weight) in items {
        let count = (weight / mean * POINTS).round().clamp(1.0, MOST_POINTS) as u64;
        points.extend((0..count).map(|i| Point { at: mix(hash ^ mix(i + 1)), item: *item }));
    }
    points.sort_unstable();
    points
}

/// A ring of those that may be chosen now.
#[derive(Debug, Clone, Default)]
pub(super) struct Ring {
    points: Vec<Point>,
    /// The first point of each equal part of the circle.
    starts: Vec<u32>,
}

impl Ring {
    pub(super) fn clear(&mut self) {
        self.points.clear();
    }

    /// `point` is at or after the last one.
    pub(super) fn push(&mut self, point: Point) {
        self.points.push(point);
    }

    /// After the last push, before the first lookup.
    pub(super) fn finish(&mut self) {
        let (n, parts) = (self.points.len(), self.points.len());
        self.starts.clear();
        let mut next = 0;
        for number in 0..parts {
            while next < n && part(self.points[next].at, parts) < number {
                next += 1;
            }
            self.starts.push(u32::try_from(next).unwrap_or(u32::MAX));
        }
    }

    /// The item that `key` belongs to, among those that `accept` takes: the
    /// nearest, else the next nearest, and so on around the ring.
    pub(super) fn find(&self, key: u64, accept: impl Fn(u32) -> bool) -> Option<u32> {
        if self.points.is_empty() {
            return None;
        }
        let mut probes: [(u64, usize); PROBES] = std::array::from_fn(|i| {
            let probe = mix(key ^ mix(!(i as u64)));
            let at = self.after(probe);
            (self.points[at].at.wrapping_sub(probe), at)
        });
        let best = probes.iter().min().map_or(0, |(_, at)| *at);
        if accept(self.points[best].item) {
            return Some(self.points[best].item);
        }
        probes.sort_unstable();
        let around = (1..self.points.len()).map(|step| (best + step) % self.points.len());
        let places = probes.iter().map(|(_, at)| *at).chain(around);
        places.map(|at| self.points[at].item).find(|item| accept(*item))
    }

    /// The first point at or after a place of the circle.
    fn after(&self, place: u64) -> usize {
        let start = self.starts[part(place, self.starts.len())];
        let mut at = start as usize;
        while at < self.points.len() && self.points[at].at < place {
            at += 1;
        }
        at % self.points.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::balance::hash;

    fn ring(items: &[(u32, f64)], without: &[u32]) -> Ring {
        let hashed: Vec<_> = items
            .iter()
            .map(|(item, weight)| (*item, hash(format!("east/e-{item}").as_bytes()), *weight))
            .collect();
        let mut ring = Ring::default();
        for point in points(&hashed) {
            if !without.contains(&point.item) {
                ring.push(point);
            }
        }
        ring.finish();
        ring
    }

    fn equal(n: u32) -> Vec<(u32, f64)> {
        (0..n).map(|item| (item, 1.0)).collect()
    }

    fn owners(ring: &Ring, keys: u64) -> BTreeMap<u32, u64> {
        let mut owners = BTreeMap::new();
        for key in 0..keys {
            *owners.entry(ring.find(mix(key), |_| true).unwrap()).or_default() += 1;
        }
        owners
    }

    #[test]
    fn keys_are_spread_evenly() {
        for n in [1, 2, 3, 10, 100] {
            let counts = owners(&ring(&equal(n), &[]), 1000 * u64::from(n));
            let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
            assert!(*least > 650 && *most < 1300, "{n}: {least} to {most}");
            assert_eq!(counts.len(), n as usize);
        }
        assert_eq!(ring(&[], &[]).find(7, |_| true), None);
    }

    #[test]
    fn keys_follow_the_weights() {
        let mut items = equal(10);
        (items[3].1, items[7].1) = (4.0, 0.5);
        let counts = owners(&ring(&items, &[]), 100_000);
        let share = |item: u32| counts[&item] as f64 / 100_000.0 * 12.5;
        assert!((3.4..4.6).contains(&share(3)), "{}", share(3));
        assert!((0.3..0.8).contains(&share(7)), "{}", share(7));
    }

    #[test]
    fn who_is_refused_hands_on_to_many() {
        let ring = ring(&equal(10), &[]);
        let mut heirs = BTreeMap::<u32, u32>::new();
        for key in 0..10_000 {
            let (key, owner) = (mix(key), ring.find(mix(key), |_| true).unwrap());
            let heir = ring.find(key, |item| item != owner).unwrap();
            if owner == 4 {
                *heirs.entry(heir).or_default() += 1;
            }
        }
        assert!(heirs.len() == 9 && heirs.values().all(|n| *n > 40), "{heirs:?}");
        assert_eq!(ring.find(7, |_| false), None);
        assert_eq!(ring.find(7, |item| item == 5), Some(5));
    }

    /// However few are left: at the 400 points of these, most lie beyond what
    /// the probes of a key reach.
    #[test]
    fn anybody_who_is_accepted_is_found() {
        let ring = ring(&equal(100), &[]);
        for item in 0..100 {
            for key in 0..10 {
                assert_eq!(ring.find(mix(key), |is| is == item), Some(item));
            }
        }
    }

    /// A lookup begins where it may end: it takes no longer with more points.
    #[test]
    fn the_index_skips_all_that_lies_before() {
        for n in [1, 3, 10, 100] {
            let ring = ring(&equal(n), &[]);
            let parts = ring.points.len();
            let before = |number| ring.points.iter().filter(|p| part(p.at, parts) < number).count();
            let wanted: Vec<_> = (0..parts).map(|number| before(number) as u32).collect();
            assert_eq!(ring.starts, wanted);
        }
    }

    proptest! {
        /// The first point at or after, found the slow way.
        #[test]
        fn successors(n in 1u32..40, places in prop::collection::vec(any::<u64>(), 1..50)) {
            let ring = ring(&equal(n), &[]);
            let points: Vec<u64> = ring.points.iter().map(|point| point.at).collect();
            for place in places.into_iter().chain(points).chain([0, u64::MAX]) {
                let slow = ring.points.iter().position(|p| p.at >= place).unwrap_or(0);
                prop_assert_eq!(ring.after(place), slow);
            }
        }

        /// Minimal disruption: only the keys of who goes move; only to who
        /// comes do keys move.
        #[test]
        fn only_the_keys_of_who_goes_move(
            n in 2u32..60,
            gone in prop::collection::btree_set(0u32..60, 0..10),
            keys in prop::collection::vec(any::<u64>(), 1..200),
        ) {
            let gone: Vec<u32> = gone.into_iter().filter(|item| *item < n).collect();
            prop_assume!(gone.len() < n as usize);
            let (before, after) = (ring(&equal(n), &[]), ring(&equal(n), &gone));
            for key in keys {
                let was = before.find(key, |_| true).unwrap();
                let is = after.find(key, |_| true).unwrap();
                prop_assert!(!gone.contains(&is));
                prop_assert!(was == is || gone.contains(&was), "{key}: {was} -> {is}");
            }
        }
    }
}
