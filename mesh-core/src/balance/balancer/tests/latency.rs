//! Latency, and the better of two.

use super::*;
use crate::balance::load::DECAY;

/// Gives endpoints a latency in milliseconds and something in flight.
fn loaded(endpoints: Vec<Endpoint>, loads: &[(&str, u32, u32)]) -> World {
    let mut world = World::new(endpoints);
    for (id, latency, in_flight) in loads {
        let (ewma_us, updated) = (1000.0 * f64::from(*latency), world.now);
        *world.load_mut(id) = Load { ewma_us, in_flight: *in_flight, updated, ..Load::default() };
    }
    world
}

#[test]
fn the_better_of_two() {
    let three = || ["a", "b", "c"].map(local).into();
    let counts = loaded(three(), &[("a", 40, 1), ("b", 10, 0), ("c", 40, 0)]).tally(3000);
    assert_eq!(counts.get("a"), None, "always beaten");
    assert!(counts["b"].abs_diff(2000) < 130, "in two of three pairs: {counts:?}");
    // Who is nearly as fast is not starved.
    let counts = loaded(three(), &[("a", 21, 0), ("b", 10, 0), ("c", 15, 0)]).tally(3000);
    assert!(counts.values().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
    // Nor is who was just met first.
    let counts = loaded(three(), &[("a", 10, 1), ("b", 10, 1), ("c", 10, 1)]).tally(3000);
    assert!(counts.values().all(|n| n.abs_diff(1000) < 130), "{counts:?}");
}

/// Two of equal weight are always compared; of unequal weight the heavy one
/// meets itself often enough to keep its share.
#[test]
fn how_often_candidates_meet() {
    let with = |weights: [u32; 2], a: u32, b: u32| {
        let both = vec![weighted("a", weights[0]), weighted("b", weights[1])];
        loaded(both, &[("a", a, 0), ("b", b, 0)]).tally(10_000)
    };
    assert_eq!(with([1, 1], 40, 10).get("a"), None);
    assert_eq!(with([100, 100], 40, 10).get("a"), None);
    // Of 4 shares 3 are a's: it meets itself in 3 * 2 of 4 * 3 draws.
    assert!(with([3, 1], 40, 10)["a"].abs_diff(5000) < 300);
    assert_eq!(with([3, 1], 10, 40).get("b"), None);
    assert!(with([3, 1], 10, 20)["a"].abs_diff(7500) < 250);
}

#[test]
fn requests_in_flight_count_per_share() {
    let with = |a: (u32, u32), b: (u32, u32)| {
        let both = vec![weighted("a", 12), weighted("b", 3)];
        let counts = loaded(both, &[("a", a.0, a.1), ("b", b.0, b.1)]).tally(10_000);
        counts.get("b").copied().unwrap_or_default()
    };
    // 7 on four shares is less than 2 on one, 9 is more.
    assert_eq!(with((10, 7), (10, 2)), 0);
    assert!(with((10, 9), (10, 2)).abs_diff(4000) < 300);
    assert!(with((10, 8), (10, 2)).abs_diff(2000) < 250, "8 is equal");
    // 16 on four shares make five times the latency: worse than four times.
    assert!(with((10, 16), (40, 0)).abs_diff(4000) < 300);
    assert_eq!(with((10, 8), (40, 0)), 0);
}

#[test]
fn latency_rises_at_once_and_falls_slowly() {
    let mut world = World::new(vec![local("a")]);
    let mut end = |at: u64, end: End| {
        world.now = ms(at);
        world.once("a", end);
        world.load_mut("a").ewma_us
    };
    assert_eq!(end(1000, End::Served(ms(10))), 10_000.0);
    assert_eq!(end(2000, End::Served(ms(100))), 100_000.0);
    // Ten seconds: 1/e of the old is left.
    assert_eq!(DECAY, 10 * SECOND);
    let fallen = end(12_000, End::Served(ms(10)));
    assert!((fallen - 43_109.15).abs() < 0.1, "{fallen}");
    assert_eq!(end(13_000, End::Failed(ms(60))), 60_000.0, "a slow failure is slowness");
    assert_eq!(end(14_000, End::Failed(ms(1))), 60_000.0, "a quick one is no speed");
    assert_eq!(end(15_000, End::Unreachable), 60_000.0);
    assert_eq!(end(16_000, End::NotTried), 60_000.0);
}

/// What is known grows no younger by a failure that is no slower.
#[test]
fn failures_renew_only_what_they_raise() {
    for (took, updated) in [(4, 1), (5, 1), (6, 2)] {
        let mut load = Load { ewma_us: 5000.0, updated: SECOND, in_flight: 1, ..Load::default() };
        load.fail(2 * SECOND, ms(took), None);
        assert_eq!(load.updated, updated * SECOND, "{took}");
    }
}

#[test]
fn what_is_better() {
    let load = |ms, in_flight, at: u64| Load {
        ewma_us: 1000.0 * f64::from(ms),
        in_flight,
        updated: Duration::from_secs(at),
        ..Load::default()
    };
    let now = 20 * SECOND;
    let cases = [
        (load(10, 0, 20), load(10, 0, 20), false, "nothing decides"),
        (load(10, 0, 20), load(21, 0, 20), false, "alike"),
        (load(10, 0, 20), load(22, 0, 20), true, "faster"),
        (load(10, 1, 20), load(22, 0, 20), true, "two waits of 10 before one of 22"),
        (load(10, 2, 20), load(22, 0, 20), false, "three of 10 are more"),
        (load(10, 7, 20), load(10, 8, 20), true, "less in flight"),
        (load(20, 7, 20), load(10, 8, 20), true, "less in flight, and alike"),
        (load(40, 0, 10), load(15, 0, 20), false, "what is old has faded: alike"),
        (load(400, 0, 0), load(15, 0, 20), false, "faded, and slower still"),
        (load(40, 0, 0), load(15, 0, 20), true, "faded to less"),
        (load(0, 0, 0), load(1, 0, 20), true, "never measured: the first finds out"),
        (load(0, 1, 0), load(9, 90, 20), false, "never measured: a second waits"),
        (load(0, 0, 0), load(0, 0, 0), false, "neither measured"),
        (load(0, 0, 0), load(0, 1, 0), true, "neither measured, one busy"),
        // A clock that seems to go back changes nothing.
        (load(10, 0, 90), load(22, 0, 20), true, "of the future"),
    ];
    for (own, other, better, why) in cases {
        assert_eq!(own.is_better(1.0, &other, 1.0, now), better, "{why}");
    }
    assert!(load(10, 3, 20).is_better(4.0, &load(10, 1, 20), 1.0, now));
    let most = load(u32::MAX, u32::MAX, 20);
    assert!(load(1, 0, 20).is_better(1.0, &most, 1.0, now));
}
