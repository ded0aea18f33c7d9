//! Affinity.

use super::*;
use crate::balance::policy::{Affinity, AffinityKey, Percent};

fn by_key(max_load: Option<u32>) -> BalancePolicy {
    let max_load = max_load.map(Percent);
    let affinity = Some(Affinity { by: AffinityKey::Source, max_load });
    BalancePolicy { affinity, ..no_slow_start() }
}

#[test]
fn a_key_stays_with_its_endpoint_and_only_its_own_keys_move() {
    let names: Vec<String> = (0..10).map(|i| format!("e{i}")).collect();
    let mut world = World::with(by_key(None), names.iter().map(|id| local(id)).collect());
    let owners = |world: &mut World| -> Vec<String> {
        let slots: Vec<_> = (0..2000).map(|key| world.choose(&[], Some(mix(key)))).collect();
        slots.into_iter().map(|slot| world.id(slot.unwrap())).collect()
    };
    let before = owners(&mut world);
    assert_eq!(owners(&mut world), before);
    world.report(Health::Unhealthy, |e| e.id.as_str() == "e4");
    let after = owners(&mut world);
    for (was, is) in before.iter().zip(&after) {
        assert!(is != "e4" && (was == is || was == "e4"), "{was} -> {is}");
    }
    // A second attempt goes where the key would go without the first.
    for (key, was) in (0..2000).zip(&before).filter(|(_, was)| *was == "e7").take(50) {
        let tried = [world.slot(was)];
        let next = world.choose(&tried, Some(mix(key))).unwrap();
        assert_eq!(world.choose(&tried, Some(mix(key))), Some(next));
        assert!(next != tried[0] && world.id(next) != "e4");
    }
    // Another proxy agrees.
    let mut other = World::with(by_key(None), names.iter().map(|id| local(id)).collect());
    other.balancer = Balancer::new(99);
    other.update(names.iter().map(|id| local(id)).collect());
    assert_eq!(owners(&mut other), before);
}

#[test]
fn keys_spill_with_their_tier_and_come_back() {
    let mut world = World::with(by_key(None), {
        let near = (0..3).map(|i| local(&format!("n{i}")));
        near.chain((0..30).map(|i| at("west", "eu-1", &format!("w{i}")))).collect()
    });
    world.report(Health::Unhealthy, |e| e.id.as_str() == "n0");
    let mut remote = 0;
    for key in 0..10_000 {
        let slot = world.choose(&[], Some(mix(key))).unwrap();
        let again = world.choose(&[], Some(mix(key))).unwrap();
        assert_eq!(slot, again);
        remote += u32::from(world.id(slot).starts_with('w'));
    }
    assert!(remote.abs_diff(667) < 130, "6.7 % of keys go elsewhere: {remote}");
}

/// Proxies of other versions send a key to the same endpoint: these never
/// change.
#[test]
fn owners_are_for_ever() {
    let near = [("n0", 1), ("n1", 1), ("n2", 3)].map(|(id, weight)| weighted(id, weight));
    let far = (0..6).map(|i| at("west", "eu-1", &format!("w{i}")));
    let mut world = World::with(by_key(None), near.into_iter().chain(far).collect());
    let owners = |world: &mut World, keys: std::ops::Range<u64>| -> String {
        let slots: Vec<_> = keys.map(|key| world.choose(&[], Some(mix(key))).unwrap()).collect();
        slots.into_iter().map(|slot| world.id(slot) + " ").collect()
    };
    let all = "n2 n2 n2 n0 n2 n2 n1 n2 n0 n0 n0 n2 n2 n2 n1 n2 n2 n0 n2 n1 n1 n2 n2 n1 ";
    assert_eq!(owners(&mut world, 0..24), all);
    world.report(Health::Unhealthy, |e| e.id.as_str() == "n2");
    let spilled = "n1 w0 w2 n0 n1 w1 n1 w2 w4 w0 n0 w3 w4 w0 n1 w5 w4 w5 n0 n1 n1 w2 n0 w3 ";
    assert_eq!(owners(&mut world, 0..24), spilled);
}

/// Who has no weight has no keys, and makes no other key move.
#[test]
fn endpoints_without_weight_move_no_key() {
    let ten = || (0..10).map(|i| local(&format!("e{i}")));
    let mut world = World::with(by_key(None), ten().collect());
    let owners = |world: &mut World| -> Vec<String> {
        let slots: Vec<_> = (0..500).map(|key| world.choose(&[], Some(mix(key)))).collect();
        slots.into_iter().map(|slot| world.id(slot.unwrap())).collect()
    };
    let before = owners(&mut world);
    let without_weight = (0..10).map(|i| weighted(&format!("none{i}"), 0));
    world.update(ten().chain(without_weight).collect());
    assert_eq!(owners(&mut world), before);
}

#[test]
fn an_overloaded_owner_hands_on() {
    let mut world =
        World::with(by_key(Some(125)), (0..4).map(|i| local(&format!("e{i}"))).collect());
    let key = Some(mix(7));
    let owner = world.choose(&[], key).unwrap();
    let mut counts = BTreeMap::<Slot, u32>::new();
    for _ in 0..100 {
        let slot = world.choose(&[], key).unwrap();
        world.balancer.begin(slot);
        *counts.entry(slot).or_default() += 1;
    }
    // Nobody above 1.25 times a quarter of all.
    assert_eq!(counts.len(), 4, "{counts:?}");
    assert!(counts.values().all(|n| *n <= 32), "{counts:?}");
    assert!(counts[&owner] >= 31);
    // Few in flight are no overload.
    let mut world =
        World::with(by_key(Some(125)), (0..4).map(|i| local(&format!("e{i}"))).collect());
    for _ in 0..8 {
        assert_eq!(world.choose(&[], key), Some(owner));
        world.balancer.begin(owner);
    }
    assert_ne!(world.choose(&[], key), Some(owner));
}

/// The request that is to be placed counts among those in flight.
#[test]
fn the_bound_of_an_owner_is_exact() {
    let mut world =
        World::with(by_key(Some(125)), (0..4).map(|i| local(&format!("e{i}"))).collect());
    let key = Some(mix(7));
    let owner = world.choose(&[], key).unwrap();
    let other = ["e0", "e1"].map(|id| world.slot(id)).into_iter().find(|slot| *slot != owner);
    (0..33).for_each(|_| world.balancer.begin(other.unwrap()));
    (0..15).for_each(|_| world.balancer.begin(owner));
    // 15 of 48: 1.25 times a quarter of 49 is 15.3.
    assert_eq!(world.choose(&[], key), Some(owner));
    world.balancer.begin(owner);
    // 16 of 49: of 50 it is 15.6.
    assert_ne!(world.choose(&[], key), Some(owner));
}
