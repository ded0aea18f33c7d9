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
