use std::sync::Arc;

use mesh_api::v1;
use proptest::prelude::*;

use super::{
    BalancePolicy, End, Tier, Vantage,
    balancer::tests::{World, ms},
    formula, scale, tier,
};
use crate::{
    example,
    service::{Endpoint, Health, Locality},
};

fn locality(region: &str, zone: &str) -> Locality {
    Locality { region: region.into(), zone: zone.into(), host: "".into() }
}

fn vantage(region: &str, zone: &str) -> Vantage {
    Vantage { site: "east".parse().unwrap(), locality: locality(region, zone) }
}

fn endpoint(site: &str, id: &str) -> Endpoint {
    Endpoint::try_from(&example::endpoint("orders.shop", site, id)).unwrap()
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
fn scaling_covers_the_range_evenly() {
    assert_eq!(scale(0, 10), 0);
    assert_eq!(scale(u64::MAX, 10), 9);
    assert_eq!(scale(u64::MAX / 2, 10), 4);
    assert_eq!(scale(u64::MAX / 2 + 1, 10), 5);
    assert_eq!(scale(u64::MAX, 0), 0);
    assert_eq!(scale(u64::MAX, u64::MAX), u64::MAX - 1);
}

/// What happens to an endpoint before anything is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Well,
    Ejected,
    Absent,
    Held,
}

fn any_endpoint() -> impl Strategy<Value = (Endpoint, Fate)> {
    let health = prop_oneof![
        4 => Just(v1::Health::Healthy),
        1 => Just(v1::Health::Unknown),
        2 => Just(v1::Health::Unhealthy),
        1 => Just(v1::Health::Draining)
    ];
    let fate = prop_oneof![
        5 => Just(Fate::Well),
        1 => Just(Fate::Ejected),
        1 => Just(Fate::Absent),
        1 => Just(Fate::Held)
    ];
    let zone = prop_oneof![Just(""), Just("eu-1"), Just("eu-2"), Just("us-1")];
    (prop::bool::ANY, health, zone, 0u32..4, fate).prop_map(
        |(local, health, zone, weight, fate)| {
            let site = if local { "east" } else { "west" };
            let message = v1::Endpoint {
                weight,
                health: health.into(),
                locality: Some(v1::Locality {
                    region: zone.split('-').next().unwrap_or_default().into(),
                    zone: zone.into(),
                    host: String::new(),
                }),
                ..example::endpoint("orders.shop", site, "x")
            };
            (Endpoint::try_from(&message).unwrap(), fate)
        },
    )
}

fn is_serving(e: &Endpoint) -> bool {
    e.weight > 0 && !is_draining(e)
}

fn is_draining(e: &Endpoint) -> bool {
    e.health == Health::Draining
}

proptest! {
    /// Whatever is there: something is chosen whenever there is anything to
    /// choose; nothing unhealthy while anything healthy is in reach, unless
    /// less than half of what can be reached is, and never at a second
    /// attempt; nothing that drains while anything is there that does not, and
    /// nothing absent while anything is there at all. The shares of tiers are
    /// the formula's.
    #[test]
    fn nothing_better_was_in_reach(
        all in prop::collection::vec(any_endpoint(), 0..12),
        tried in prop::collection::btree_set(0usize..12, 0..4),
        key in prop::option::of(any::<u64>()),
    ) {
        let mut policy = BalancePolicy { subset: 0, ..BalancePolicy::default() };
        policy.outlier.max_ejected = super::policy::Percent(100);
        policy.affinity = key.map(|_| super::policy::Affinity {
            by: super::policy::AffinityKey::Source,
            max_load: None,
        });
        let endpoints: Vec<Endpoint> = all
            .iter()
            .enumerate()
            .map(|(i, (e, _))| Endpoint { id: format!("e{i}").parse().unwrap(), ..e.clone() })
            .collect();
        let mut world = World::with(policy, endpoints.clone());
        for (i, (_, fate)) in all.iter().enumerate() {
            let id = format!("e{i}");
            match fate {
                Fate::Well => {}
                Fate::Ejected => (0..5).for_each(|_| world.once(&id, End::Failed(ms(1)))),
                Fate::Absent => world.once(&id, End::Unreachable),
                Fate::Held => {
                    let slot = world.slot(&id);
                    world.balancer.hold(slot);
                }
            }
        }
        let of = |e: &Endpoint| all[e.id.as_str()[1..].parse::<usize>().unwrap()].1;
        let present = |e: &Endpoint| is_serving(e) && matches!(of(e), Fate::Well | Fate::Ejected);
        let drains =
            |e: &Endpoint| e.weight > 0 && is_draining(e) && matches!(of(e), Fate::Well | Fate::Ejected);
        let usable = |e: &Endpoint| present(e) && of(e) == Fate::Well && e.health.is_usable();
        let size = |which: &dyn Fn(&Endpoint) -> bool| {
            endpoints.iter().filter(|e| which(e)).map(|e| f64::from(e.weight)).sum::<f64>()
        };
        let panics = size(&usable) < 0.5 * size(&present);

        let tried: Vec<usize> = tried.into_iter().filter(|i| *i < all.len()).collect();
        let slots: Vec<_> = tried.iter().map(|i| world.slot(&format!("e{i}"))).collect();
        let left: Vec<&Endpoint> = endpoints
            .iter()
            .enumerate()
            .filter(|(i, e)| e.weight > 0 && !tried.contains(i))
            .map(|(_, e)| e)
            .collect();
        for _ in 0..20 {
            let Some(slot) = world.choose(&slots, key) else {
                prop_assert!(left.is_empty());
                return Ok(());
            };
            let chosen: Arc<Endpoint> = world.balancer.endpoint(slot).clone();
            prop_assert!(left.contains(&&*chosen), "{chosen:?}");
            let believes = !panics || !tried.is_empty();
            if believes && left.iter().any(|e| usable(e)) {
                prop_assert!(usable(&chosen), "{chosen:?}");
            }
            let there = |e: &Endpoint| present(e) || drains(e);
            if left.iter().any(|e| present(e)) {
                prop_assert!(present(&chosen), "{chosen:?}");
            } else if left.iter().any(|e| there(e)) {
                prop_assert!(there(&chosen), "{chosen:?}");
            }
        }
        if panics || size(&usable) == 0.0 {
            return Ok(());
        }
        let mut capacities = [formula::Capacity::default(); formula::TIERS];
        let from = vantage("eu", "eu-1");
        for e in endpoints.iter().filter(|e| is_serving(e)) {
            let of_tier = &mut capacities[tier(&from, e) as usize];
            of_tier.total += f64::from(e.weight);
            of_tier.healthy += if usable(e) { f64::from(e.weight) } else { 0.0 };
        }
        for (number, wanted) in formula::shares(&capacities, 1.4).into_iter().enumerate() {
            let is = world.share(|e| tier(&from, e) as usize == number);
            prop_assert!((is - wanted).abs() < 1e-9, "{is} is not {wanted}");
        }
    }

    /// Whoever is best decides which priority is in service: nobody behind it is
    /// chosen, and nobody before it, who is worse. Nobody panics while anybody
    /// well stands by.
    #[test]
    fn one_priority_is_in_service(
        all in prop::collection::vec((any_endpoint(), 0u32..3), 1..12),
        key in prop::option::of(any::<u64>()),
    ) {
        let mut policy = BalancePolicy { subset: 0, ..BalancePolicy::default() };
        policy.outlier.max_ejected = super::policy::Percent(100);
        policy.affinity = key.map(|_| super::policy::Affinity {
            by: super::policy::AffinityKey::Source,
            max_load: None,
        });
        let named = all.iter().enumerate().map(|(i, ((endpoint, _), priority))| {
            Endpoint { id: format!("e{i}").parse().unwrap(), priority: *priority, ..endpoint.clone() }
        });
        let endpoints: Vec<Endpoint> = named.collect();
        let mut world = World::with(policy, endpoints.clone());
        for (i, ((_, fate), _)) in all.iter().enumerate() {
            let id = format!("e{i}");
            match fate {
                Fate::Well | Fate::Ejected => {}
                Fate::Absent => world.once(&id, End::Unreachable),
                Fate::Held => {
                    let slot = world.slot(&id);
                    world.balancer.hold(slot);
                }
            }
        }
        let ranked: Vec<_> = endpoints.iter().zip(&all).filter(|(e, _)| e.weight > 0).map(|(e, ((_, fate), _))| {
            let rank = match e.health {
                _ if matches!(fate, Fate::Absent | Fate::Held) => 3,
                Health::Draining => 2,
                Health::Unhealthy => 1,
                Health::Healthy | Health::Unknown => 0,
            };
            (rank, e.priority)
        }).collect();
        let Some((best, in_service)) = ranked.iter().copied().min() else {
            prop_assert_eq!(world.choose(&[], key), None);
            return Ok(());
        };
        let has_reserve = ranked.contains(&(0, in_service + 1)) || ranked.contains(&(0, in_service + 2));
        for _ in 0..20 {
            let slot = world.choose(&[], key).unwrap();
            let chosen = world.balancer.endpoint(slot).clone();
            prop_assert_eq!(chosen.priority, in_service);
            if best == 0 && has_reserve {
                prop_assert!(chosen.health.is_usable(), "reports are believed: {chosen:?}");
            }
            // A second attempt takes nobody else either.
            if let Some(next) = world.choose(&[slot], key) {
                prop_assert_eq!(world.balancer.endpoint(next).priority, in_service);
            }
        }
    }

    /// What begins ends: whatever happens meanwhile, nothing is left in flight.
    #[test]
    fn nothing_is_left_in_flight(
        steps in prop::collection::vec((0usize..8, 0u8..6, 0u64..2000), 1..120),
    ) {
        let names: Vec<String> = (0..8).map(|i| format!("e{i}")).collect();
        let some = |mask: usize| -> Vec<Endpoint> {
            let kept = names.iter().enumerate().filter(|(i, _)| (mask * 37 + 11) >> i & 1 == 1);
            kept.map(|(_, id)| endpoint("east", id)).collect()
        };
        let mut world = World::new(some(7));
        let mut running = Vec::new();
        for (n, what, pause) in steps {
            world.sleep(ms(pause));
            match what {
                0 => world.update(some(n * 29)),
                1 if !running.is_empty() => {
                    let slot = running.swap_remove(n % running.len());
                    let ends =
                        [End::Served(ms(pause)), End::Failed(ms(1)), End::Unreachable, End::NotTried];
                    world.balancer.end(slot, ends[n % 4], world.now);
                }
                _ => {
                    if let Some(slot) = world.choose(&[], None) {
                        world.balancer.begin(slot);
                        running.push(slot);
                    }
                }
            }
            let known = world.endpoints.iter().map(|e| e.id.to_string());
            let known: u32 = known.map(|id| world.balancer.load(world.slot(&id)).in_flight).sum();
            prop_assert_eq!(world.balancer.in_flight(), known);
        }
        for slot in running {
            world.balancer.end(slot, End::NotTried, world.now);
        }
        for id in world.endpoints.iter().map(|e| e.id.to_string()).collect::<Vec<_>>() {
            let slot = world.slot(&id);
            prop_assert_eq!(world.balancer.load(slot).in_flight, 0);
        }
        prop_assert_eq!(world.balancer.in_flight(), 0);
    }
}
