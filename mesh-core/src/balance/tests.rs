use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::v1;
use proptest::prelude::*;

use super::{EJECT_AFTER, EJECT_BASE, EJECT_MAX, Load, Tier, Vantage, choose, scale, tier};
use crate::{
    example,
    name::EndpointId,
    service::{Endpoint, Health, Locality},
};

const SECOND: Duration = Duration::from_secs(1);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn locality(region: &str, zone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into(), host: "".into() }
}

fn vantage(region: &str, zone: &str) -> Vantage {
    Vantage { site: "east".parse().unwrap(), locality: locality(region, zone) }
}

fn endpoint(site: &str, id: &str) -> Endpoint {
    Endpoint::try_from(&example::endpoint("orders.shop", site, id)).unwrap()
}

fn weighted(id: &str, weight: u32) -> Arc<Endpoint> {
    Arc::new(Endpoint { weight, ..endpoint("east", id) })
}

/// SplitMix64: deterministic, and uniform enough for what is asserted.
fn random(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// How often each id is chosen.
fn tally(
    endpoints: &[Arc<Endpoint>],
    rounds: u32,
    load: impl Fn(&Endpoint) -> Load,
) -> BTreeMap<String, u32> {
    let (from, mut random) = (vantage("", ""), random(42));
    let mut counts = BTreeMap::new();
    for _ in 0..rounds {
        let chosen = choose(&from, endpoints, &[], &load, SECOND, &mut random).unwrap();
        *counts.entry(chosen.id.to_string()).or_default() += 1;
    }
    counts
}

fn idle(_: &Endpoint) -> Load {
    Load::default()
}

fn chosen(
    endpoints: &[Arc<Endpoint>],
    exclude: &[&str],
    load: impl Fn(&Endpoint) -> Load,
) -> Vec<String> {
    let exclude: Vec<EndpointId> = exclude.iter().map(|id| id.parse().unwrap()).collect();
    let (from, mut random) = (vantage("eu", "eu-1"), random(7));
    let mut ids: Vec<String> = (0..200)
        .filter_map(|_| choose(&from, endpoints, &exclude, &load, SECOND, &mut random))
        .map(|e| e.id.to_string())
        .collect();
    ids.sort();
    ids.dedup();
    ids
}

#[test]
fn tiers() {
    let cases = [
        // (own region, own zone), (site, region, zone), tier
        (("eu", "eu-1"), ("east", "eu", "eu-1"), Tier::Zone),
        (("eu", "eu-1"), ("east", "", "eu-1"), Tier::Zone),
        (("", "eu-1"), ("east", "eu", "eu-1"), Tier::Zone),
        (("eu", "eu-1"), ("east", "eu", "eu-2"), Tier::Region),
        (("eu", "eu-1"), ("east", "eu", ""), Tier::Region),
        (("eu", "1"), ("east", "us", "1"), Tier::Site),
        (("eu", "eu-1"), ("east", "us", "us-1"), Tier::Site),
        (("eu", "eu-1"), ("east", "", ""), Tier::Site),
        (("", "eu-1"), ("east", "", "eu-2"), Tier::Site),
        (("", ""), ("east", "us", "us-1"), Tier::Zone),
        (("eu", ""), ("east", "us", "us-1"), Tier::Zone),
        (("", ""), ("west", "", ""), Tier::Remote),
        (("eu", "eu-1"), ("west", "eu", "eu-1"), Tier::Remote),
    ];
    for ((region, zone), (site, its_region, its_zone), expected) in cases {
        let there = Endpoint { locality: locality(its_region, its_zone), ..endpoint(site, "a") };
        let case = format!("{region}/{zone} -> {site}/{its_region}/{its_zone}");
        assert_eq!(tier(&vantage(region, zone), &there), expected, "{case}");
    }
    assert!(Tier::Zone < Tier::Region && Tier::Region < Tier::Site && Tier::Site < Tier::Remote);
}

#[test]
fn the_nearest_tier_with_a_usable_endpoint() {
    let at = |site: &str, id: &str, region: &str, zone: &str| {
        Arc::new(Endpoint { locality: locality(region, zone), ..endpoint(site, id) })
    };
    let all = [
        at("west", "remote", "eu", "eu-1"),
        at("east", "site", "us", "us-1"),
        at("east", "region", "eu", "eu-2"),
        at("east", "zone", "eu", "eu-1"),
    ];
    assert_eq!(chosen(&all, &[], idle), ["zone"]);
    assert_eq!(chosen(&all, &["zone"], idle), ["region"]);
    assert_eq!(chosen(&all, &["zone", "region"], idle), ["site"]);
    assert_eq!(chosen(&all, &["zone", "region", "site"], idle), ["remote"]);
    assert_eq!(chosen(&all, &["zone", "region", "site", "remote"], idle), [""; 0]);
    // Outcomes count as much as reports.
    let ejected = |e: &Endpoint| Load {
        ejected_until: (e.id.as_str() == "zone").then_some(2 * SECOND),
        ..Load::default()
    };
    assert_eq!(chosen(&all, &[], ejected), ["region"]);
    assert_eq!(chosen(&[], &[], idle), [""; 0]);
}

#[test]
fn who_is_used_when_nobody_is_well() {
    let with = |id: &str, health| Arc::new(Endpoint { health, ..endpoint("east", id) });
    let ejected = |_: &Endpoint| Load { ejected_until: Some(2 * SECOND), ..Load::default() };
    let healthy = with("healthy", Health::Healthy);
    let unknown = with("unknown", Health::Unknown);
    let unhealthy = with("unhealthy", Health::Unhealthy);
    let draining = with("draining", Health::Draining);
    let weightless = weighted("weightless", 0);
    let far = Arc::new(endpoint("west", "far"));
    let all = [&healthy, &unknown, &unhealthy, &draining, &weightless].map(Arc::clone);
    assert_eq!(chosen(&all, &[], idle), ["healthy", "unknown"]);
    assert_eq!(chosen(&all, &[], ejected), ["healthy", "unknown"]);
    assert_eq!(chosen(&all, &["healthy", "unknown"], idle), ["unhealthy"]);
    assert_eq!(chosen(&all, &["healthy", "unknown"], ejected), ["unhealthy"]);
    assert_eq!(chosen(&all, &["healthy", "unknown", "unhealthy"], idle), [""; 0]);
    // The only thing in reach, near or far.
    assert_eq!(chosen(&[far.clone(), healthy.clone()], &[], ejected), ["far", "healthy"]);
    assert_eq!(chosen(&[far, unhealthy], &[], idle), ["far"]);
    assert_eq!(chosen(&[healthy], &[], ejected), ["healthy"]);
}

#[test]
fn the_better_of_two() {
    let endpoints = ["a", "b", "c"].map(|id| weighted(id, 1));
    // `a` is always beaten, `b` by nobody.
    let load = |e: &Endpoint| Load {
        ewma_us: if e.id.as_str() == "b" { 1000.0 } else { 2000.0 },
        in_flight: u32::from(e.id.as_str() == "a"),
        updated: SECOND,
        ..Load::default()
    };
    let counts = tally(&endpoints, 3000, load);
    assert_eq!(counts.get("a"), None);
    // In two of three pairs.
    assert!(counts["b"].abs_diff(2000) < 120, "{counts:?}");
    assert!(counts["c"].abs_diff(1000) < 120, "{counts:?}");
}

#[test]
fn equal_endpoints_share_equally_and_by_weight() {
    let cases: [&[u32]; 5] =
        [&[1, 1], &[100, 100, 100], &[3, 1], &[10, 100, 40], &[u32::MAX, u32::MAX]];
    for weights in cases {
        let endpoints: Vec<_> =
            weights.iter().enumerate().map(|(i, w)| weighted(&format!("e{i}"), *w)).collect();
        let rounds = 20_000;
        let counts = tally(&endpoints, rounds, idle);
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        for (i, weight) in weights.iter().enumerate() {
            let expected = u64::from(rounds) * u64::from(*weight) / total;
            let count = u64::from(counts[&format!("e{i}")]);
            assert!(count.abs_diff(expected) < 400, "{weights:?}: {counts:?}");
        }
    }
}

/// Two endpoints of equal weight are always compared; of unequal weight, the
/// heavy one meets itself often enough to keep its share.
#[test]
fn how_often_candidates_meet() {
    let slow = |slow: &'static str| {
        move |e: &Endpoint| Load {
            ewma_us: if e.id.as_str() == slow { 2000.0 } else { 1000.0 },
            updated: SECOND,
            ..Load::default()
        }
    };
    for weight in [1, 100] {
        let equal = [weighted("a", weight), weighted("b", weight)];
        assert_eq!(tally(&equal, 500, slow("a")).get("a"), None);
    }
    // Of 4 shares 3 are a's: it meets itself in 3 * 2 of 4 * 3 draws.
    let unequal = [weighted("a", 3), weighted("b", 1)];
    let counts = tally(&unequal, 10_000, slow("a"));
    assert!(counts["a"].abs_diff(5000) < 300, "{counts:?}");
    assert_eq!(tally(&unequal, 500, slow("b")).get("b"), None);
}

#[test]
fn requests_in_flight_count_per_share() {
    let endpoints = [weighted("a", 12), weighted("b", 3)];
    let load = |a: u32, b: u32| {
        move |e: &Endpoint| Load {
            ewma_us: 1000.0,
            updated: SECOND,
            in_flight: if e.id.as_str() == "a" { a } else { b },
            ..Load::default()
        }
    };
    // 7 on four shares is less than 2 on one, 9 is more.
    assert_eq!(tally(&endpoints, 300, load(7, 2)).get("b"), None);
    let counts = tally(&endpoints, 10_000, load(9, 2));
    assert!(counts["b"].abs_diff(4000) < 300, "{counts:?}");
    // 8 on four shares make three times the latency: worse than twice.
    let slow_b = |e: &Endpoint| {
        let (in_flight, ewma_us) = if e.id.as_str() == "a" { (8, 1000.0) } else { (0, 2000.0) };
        Load { ewma_us, in_flight, updated: SECOND, ..Load::default() }
    };
    assert!(tally(&endpoints, 10_000, slow_b)["b"].abs_diff(4000) < 300);
}

#[test]
fn latency_rises_at_once_and_falls_slowly() {
    let mut load = Load::default();
    let mut end = |now: Duration, latency: Duration, ok: bool| {
        load.start();
        load.end(now, latency, ok);
        assert_eq!(load.in_flight, 0);
        assert_eq!(load.updated, now);
        load.ewma_us
    };
    assert_eq!(end(SECOND, ms(10), true), 10_000.0);
    assert_eq!(end(2 * SECOND, ms(100), true), 100_000.0);
    // Ten seconds: 1/e of the old is left.
    let fallen = end(12 * SECOND, ms(10), true);
    assert!((fallen - 43_109.15).abs() < 0.1, "{fallen}");
    // A slow failure counts as slowness.
    assert_eq!(end(13 * SECOND, ms(60), false), 60_000.0);
}

#[test]
fn a_quick_failure_is_no_speed() {
    let mut load = Load { ewma_us: 10_000.0, updated: SECOND, ..Load::default() };
    load.end(5 * SECOND, ms(1), false);
    assert_eq!((load.ewma_us, load.updated), (10_000.0, SECOND));
    load.end(5 * SECOND, ms(10), false);
    assert_eq!((load.ewma_us, load.updated), (10_000.0, SECOND));
}

#[test]
fn equal_candidates_are_taken_in_the_order_of_the_draw() {
    let endpoints = ["a", "b"].map(|id| weighted(id, 1));
    for (point, expected) in [(0, "a"), (u64::MAX, "b")] {
        let chosen = choose(&vantage("", ""), &endpoints, &[], idle, SECOND, || point).unwrap();
        assert_eq!(chosen.id.as_str(), expected);
    }
}

#[test]
fn in_flight_is_counted_and_never_wraps() {
    let mut load = Load::default();
    load.start();
    load.start();
    assert_eq!(load.in_flight, 2);
    load.end(SECOND, ms(1), true);
    assert_eq!(load.in_flight, 1);
    let mut load = Load::default();
    load.end(SECOND, ms(1), true);
    assert_eq!(load.in_flight, 0);
    load.in_flight = u32::MAX;
    load.start();
    assert_eq!(load.in_flight, u32::MAX);
    assert!(load.cost(SECOND).is_finite());
}

#[test]
fn cost() {
    let load = |ewma_us, in_flight| Load { ewma_us, in_flight, updated: SECOND, ..Load::default() };
    assert_eq!(load(1000.0, 0).cost(SECOND), 1000.0);
    assert_eq!(load(1000.0, 3).cost(SECOND), 4000.0);
    // Old knowledge fades.
    let faded = load(1000.0, 0).cost(11 * SECOND);
    assert!((faded - 367.88).abs() < 0.01, "{faded}");
    // A clock that seems to go back changes nothing.
    assert_eq!(load(1000.0, 0).cost(Duration::ZERO), 1000.0);
    // Never measured: the first request is free, a second is not.
    assert_eq!(load(0.0, 0).cost(SECOND), 0.0);
    assert_eq!(load(0.0, 1).cost(SECOND), 2_000_000.0);
}

#[test]
fn nobody_there_is_left_alone_at_once() {
    let mut load = Load { in_flight: 2, ewma_us: 700.0, ..Load::default() };
    load.end_unreachable(SECOND);
    assert_eq!((load.in_flight, load.ewma_us), (1, 700.0));
    assert!(load.is_ejected(SECOND) && !load.is_ejected(SECOND + EJECT_BASE));
    assert_eq!(load.failures, EJECT_AFTER, "it counts for as many as are needed");
    load.abandon();
    assert_eq!((load.in_flight, load.failures), (0, EJECT_AFTER), "of what was not tried");
    load.end_unreachable(SECOND + EJECT_BASE);
    assert_eq!((load.in_flight, load.failures), (0, EJECT_AFTER + 1));
    assert!(load.is_ejected(SECOND + EJECT_BASE * 2), "the second time for longer");
    load.end(20 * SECOND, SECOND, true);
    assert!(!load.is_ejected(20 * SECOND), "an answer ends it");
    load.end_unreachable(30 * SECOND);
    load.readmit();
    assert_eq!((load.failures, load.ejection), (0, Duration::ZERO), "reached again");
    assert!(!load.is_ejected(30 * SECOND));
}

#[test]
fn ejection_backs_off_and_recovers() {
    let mut load = Load::default();
    let mut now = SECOND;
    for _ in 1..EJECT_AFTER {
        load.end(now, ms(1), false);
        assert!(!load.is_ejected(now));
    }
    let mut expected = EJECT_BASE;
    for _ in 0..8 {
        load.end(now, ms(1), false);
        assert_eq!(load.ejected_until, Some(now + expected));
        // What still ends while it is left alone changes nothing.
        load.end(now + SECOND, ms(1), false);
        assert_eq!(load.ejected_until, Some(now + expected));
        assert!(load.is_ejected(now + expected - ms(1)));
        now += expected;
        assert!(!load.is_ejected(now));
        expected = (expected * 2).min(EJECT_MAX);
    }
    assert_eq!(expected, EJECT_MAX);
    load.end(now, ms(1), true);
    assert_eq!((load.failures, load.ejected_until, load.ejection), (0, None, EJECT_MAX / 2));
    for _ in 0..EJECT_AFTER {
        load.end(now, ms(1), false);
    }
    assert_eq!(load.ejected_until, Some(now + EJECT_MAX));
    for _ in 0..10 {
        load.end(now, ms(1), true);
    }
    assert_eq!(load.ejection, Duration::ZERO);
    let mut base = Load { ejection: EJECT_BASE * 2, ..Load::default() };
    base.end(now, ms(1), true);
    assert_eq!(base.ejection, EJECT_BASE);
    base.end(now, ms(1), true);
    assert_eq!(base.ejection, Duration::ZERO);
}

#[test]
fn a_success_begins_the_count_anew() {
    let mut load = Load::default();
    for round in 0..20 {
        load.end(SECOND, ms(1), round % EJECT_AFTER == EJECT_AFTER - 1);
        assert!(!load.is_ejected(SECOND), "round {round}");
    }
}

#[test]
fn scaling_covers_the_range_evenly() {
    assert_eq!(scale(0, 10), 0);
    assert_eq!(scale(u64::MAX, 10), 9);
    assert_eq!(scale(u64::MAX / 2, 10), 4);
    assert_eq!(scale(u64::MAX / 2 + 1, 10), 5);
    assert_eq!(scale(u64::MAX, 0), 0);
    assert_eq!(scale(u64::MAX, u64::MAX), u64::MAX - 1);
}

fn any_endpoint() -> impl Strategy<Value = (v1::Endpoint, bool)> {
    let health = prop_oneof![
        3 => Just(v1::Health::Healthy),
        1 => Just(v1::Health::Unknown),
        3 => Just(v1::Health::Unhealthy),
        1 => Just(v1::Health::Draining)
    ];
    let zone = prop_oneof![Just(""), Just("eu-1"), Just("eu-2"), Just("us-1")];
    (prop::bool::ANY, health, zone, 0u32..4, prop::bool::ANY).prop_map(
        |(local, health, zone, weight, ejected)| {
            let site = if local { "east" } else { "west" };
            let endpoint = v1::Endpoint {
                weight,
                health: health.into(),
                locality: Some(v1::Locality {
                    region: zone.split('-').next().unwrap_or_default().into(),
                    zone: zone.into(),
                    host: String::new(),
                }),
                ..example::endpoint("orders.shop", site, "x")
            };
            (endpoint, ejected)
        },
    )
}

proptest! {
    /// Whatever is there: nothing better than what is chosen was in reach, and
    /// something is chosen whenever there is anything to choose.
    #[test]
    fn nothing_better_was_in_reach(
        all in prop::collection::vec(any_endpoint(), 0..12),
        exclude in prop::collection::btree_set(0usize..12, 0..4),
        zone in prop_oneof![Just(""), Just("eu-1")],
        seed in any::<u64>(),
    ) {
        let endpoints: Vec<Arc<Endpoint>> = all.iter().enumerate().map(|(i, (endpoint, _))| {
            let endpoint = v1::Endpoint { id: format!("e{i}"), ..endpoint.clone() };
            Arc::new(Endpoint::try_from(&endpoint).unwrap())
        }).collect();
        let is_ejected = |e: &Endpoint| {
            let i: usize = e.id.as_str()[1..].parse().unwrap();
            all[i].1
        };
        let load = |e: &Endpoint| Load {
            ejected_until: is_ejected(e).then_some(2 * SECOND),
            ewma_us: 10.0 * f64::from(e.weight),
            ..Load::default()
        };
        let exclude: Vec<EndpointId> =
            exclude.iter().map(|i| format!("e{i}").parse().unwrap()).collect();
        let from = vantage("eu", zone);
        let allowed = |e: &Endpoint| {
            !exclude.contains(&e.id) && e.weight > 0 && e.health != Health::Draining
        };
        let usable = |e: &Endpoint| allowed(e) && e.health.is_usable() && !is_ejected(e);
        let chosen = choose(&from, &endpoints, &exclude, load, SECOND, random(seed));
        let Some(chosen) = chosen else {
            prop_assert!(!endpoints.iter().any(|e| allowed(e)));
            return Ok(());
        };
        prop_assert!(allowed(chosen));
        for other in &endpoints {
            if usable(other) {
                prop_assert!(usable(chosen), "{chosen:?} although {other:?}");
                prop_assert!(tier(&from, chosen) <= tier(&from, other));
            }
            if allowed(other) && other.health.is_usable() {
                prop_assert!(chosen.health.is_usable(), "{chosen:?} although {other:?}");
            }
        }
    }
}
