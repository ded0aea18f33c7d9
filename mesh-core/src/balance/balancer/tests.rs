use std::collections::BTreeMap;

use super::*;
use crate::{
    balance::{
        INTERVAL,
        load::DECAY,
        policy::{Affinity, AffinityKey, Percent, SuccessRate},
    },
    example,
    service::Locality,
};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// An endpoint of `<site>/<zone>`; zones `eu-1` and so on lie in region `eu`.
pub(crate) fn at(site: &str, zone: &str, id: &str) -> Endpoint {
    let region = zone.split('-').next().unwrap_or_default();
    Endpoint {
        locality: crate::service::Locality {
            region: region.into(),
            zone: zone.into(),
            host: "".into(),
        },
        ..Endpoint::try_from(&example::endpoint("orders.shop", site, id)).unwrap()
    }
}

pub(crate) fn local(id: &str) -> Endpoint {
    at("east", "eu-1", id)
}

fn weighted(id: &str, weight: u32) -> Endpoint {
    Endpoint { weight, ..local(id) }
}

/// A balancer with its surroundings, and a clock that is turned by hand.
pub(crate) struct World {
    pub(crate) balancer: Balancer,
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    pub(crate) policy: BalancePolicy,
    pub(crate) paths: Paths,
    pub(crate) now: Duration,
    unreachable: Vec<String>,
}

impl World {
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> Self {
        Self::with(BalancePolicy::default(), endpoints)
    }

    pub(crate) fn with(policy: BalancePolicy, endpoints: Vec<Endpoint>) -> Self {
        let mut world = Self {
            balancer: Balancer::new(7),
            endpoints: Vec::new(),
            policy,
            paths: Paths::default(),
            now: SECOND,
            unreachable: Vec::new(),
        };
        world.update(endpoints);
        world
    }

    pub(crate) fn update(&mut self, endpoints: Vec<Endpoint>) {
        self.endpoints = endpoints.into_iter().map(Arc::new).collect();
        self.endpoints.sort_by(|a, b| (&a.site, &a.id).cmp(&(&b.site, &b.id)));
        let locality = Locality { region: "eu".into(), zone: "eu-1".into(), host: "".into() };
        let from = Vantage { site: "east".parse().unwrap(), locality };
        let backing = Backing {
            from: &from,
            policy: &self.policy,
            endpoints: &self.endpoints,
            reachable: &|endpoint| !self.unreachable.contains(&endpoint.id.to_string()),
            workers: 1,
        };
        self.balancer.update(&backing, self.now);
        self.balancer.keep_fresh(&self.paths, self.now);
    }

    /// Changes what is reported of some.
    pub(crate) fn report(&mut self, health: Health, of: impl Fn(&Endpoint) -> bool) {
        let changed = |e: &Arc<Endpoint>| match of(e) {
            true => Endpoint { health, ..(**e).clone() },
            false => (**e).clone(),
        };
        self.update(self.endpoints.iter().map(changed).collect());
    }

    pub(crate) fn id(&self, slot: Slot) -> String {
        self.balancer.endpoint(slot).id.to_string()
    }

    pub(crate) fn slot(&self, id: &str) -> Slot {
        let endpoint = self.endpoints.iter().find(|e| e.id.as_str() == id).unwrap();
        self.balancer.find(&endpoint.site, &endpoint.id).unwrap()
    }

    fn load_mut(&mut self, id: &str) -> &mut Load {
        let slot = self.slot(id);
        &mut self.balancer.members[slot.0 as usize].load
    }

    pub(crate) fn choose(&mut self, tried: &[Slot], key: Option<u64>) -> Option<Slot> {
        self.balancer.keep_fresh(&self.paths, self.now);
        self.balancer.choose(tried, key, self.now)
    }

    /// One request with this end.
    pub(crate) fn once(&mut self, id: &str, end: End) {
        let slot = self.slot(id);
        self.balancer.begin(slot);
        self.balancer.end(slot, end, self.now);
    }

    fn fail(&mut self, id: &str, times: u32) {
        (0..times).for_each(|_| self.once(id, End::Failed(ms(1))));
    }

    pub(crate) fn sleep(&mut self, time: Duration) {
        self.now += time;
        self.balancer.keep_fresh(&self.paths, self.now);
    }

    /// How often each id is chosen when nothing is in flight.
    pub(crate) fn tally(&mut self, rounds: u32) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..rounds {
            let slot = self.choose(&[], None).unwrap();
            *counts.entry(self.id(slot)).or_default() += 1;
        }
        counts
    }

    /// Who may be chosen, when these have been tried.
    pub(crate) fn chosen(&mut self, tried: &[&str]) -> Vec<String> {
        if tried.is_empty() {
            let expected = self.expected().into_iter();
            return expected.filter(|(_, share)| *share > 0.0).map(|(id, _)| id).collect();
        }
        let tried: Vec<Slot> = tried.iter().map(|id| self.slot(id)).collect();
        let slots: Vec<_> = (0..300).filter_map(|_| self.choose(&tried, None)).collect();
        let mut ids: Vec<String> = slots.into_iter().map(|slot| self.id(slot)).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    pub(crate) fn expected(&mut self) -> BTreeMap<String, f64> {
        self.balancer.keep_fresh(&self.paths, self.now);
        let expected = self.balancer.expected();
        expected.into_iter().map(|(slot, share)| (self.id(slot), share)).collect()
    }

    /// The share of all endpoints of which this is true.
    pub(crate) fn share(&mut self, of: impl Fn(&Endpoint) -> bool) -> f64 {
        self.balancer.keep_fresh(&self.paths, self.now);
        let expected = self.balancer.expected();
        let of = |(slot, share)| if of(self.balancer.endpoint(slot)) { share } else { 0.0 };
        expected.into_iter().map(of).sum()
    }
}

fn no_slow_start() -> BalancePolicy {
    BalancePolicy { slow_start: Duration::ZERO, ..BalancePolicy::default() }
}

fn close(is: f64, wanted: f64) {
    assert!((is - wanted).abs() < 1e-9, "{is}, not {wanted}");
}

#[test]
fn nobody_to_choose() {
    let mut world = World::new(vec![]);
    assert_eq!(world.choose(&[], None), None);
    assert_eq!(world.choose(&[], Some(7)), None);
    assert!(world.balancer.is_empty());
    let mut world = World::new(vec![
        weighted("none", 0),
        Endpoint { health: Health::Draining, ..local("leaving") },
    ]);
    assert_eq!(world.choose(&[], None), None);
    assert_eq!(world.choose(&[Slot(9)], None), None);
}

#[test]
fn the_nearest_tier_takes_all_while_it_is_well() {
    let mut world = World::new(vec![
        at("west", "eu-1", "remote"),
        at("east", "us-1", "site"),
        at("east", "eu-2", "region"),
        at("east", "eu-1", "zone"),
    ]);
    assert_eq!(world.chosen(&[]), ["zone"]);
    assert_eq!(world.chosen(&["zone"]), ["region"]);
    assert_eq!(world.chosen(&["zone", "region"]), ["site"]);
    assert_eq!(world.chosen(&["zone", "region", "site"]), ["remote"]);
    assert_eq!(world.chosen(&["zone", "region", "site", "remote"]), [""; 0]);
    world.report(Health::Unhealthy, |e| e.id.as_str() == "zone");
    assert_eq!(world.chosen(&[]), ["region"]);
    assert_eq!(world.chosen(&["region"]), ["site"]);
    assert_eq!(world.chosen(&["region", "site", "remote"]), ["zone"], "better than nobody");
}

#[test]
fn locality_off_and_strict() {
    let all = || vec![at("west", "eu-1", "w"), local("a"), at("east", "eu-2", "b")];
    let with = |locality| World::with(BalancePolicy { locality, ..no_slow_start() }, all());
    let mut off = with(LocalityMode::Off);
    for id in ["a", "b", "w"] {
        close(off.expected()[id], 1.0 / 3.0);
    }
    off.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    assert_eq!(off.chosen(&[]), ["b", "w"]);
    let mut strict = with(LocalityMode::Strict);
    assert_eq!(strict.chosen(&[]), ["a"]);
    strict.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    assert_eq!(strict.chosen(&[]), ["a"], "the nearest, whatever its health");
    assert_eq!(strict.chosen(&["a"]), [""; 0]);
    strict.update(vec![at("west", "eu-1", "w"), at("east", "eu-2", "b")]);
    assert_eq!(strict.chosen(&[]), ["b"], "the nearest that there is");
}

#[test]
fn weights_and_capacities_multiply() {
    let of = |id: &str, weight, capacity| Endpoint { weight, capacity, ..local(id) };
    let mut world = World::new(vec![of("a", 1, 100), of("b", 3, 100), of("c", 1, 300)]);
    let expected = world.expected();
    close(expected["a"], 1.0 / 7.0);
    close(expected["b"], 3.0 / 7.0);
    close(expected["c"], 3.0 / 7.0);
    // Who does not say is as large as the mean.
    world.update(vec![of("a", 1, 100), of("b", 1, 300), of("c", 1, 0)]);
    assert_eq!(
        ["a", "b", "c"].map(|id| (world.expected()[id] * 600.0).round()),
        [100.0, 300.0, 200.0]
    );
}

#[test]
fn spilling_panic_and_what_is_left() {
    let mut world = World::with(no_slow_start(), {
        let near = (0..3).map(|i| local(&format!("n{i}")));
        near.chain((0..9).map(|i| at("west", "eu-1", &format!("w{i}")))).collect()
    });
    let near = |e: &Endpoint| e.site.as_str() == "east";
    let ids = |ids: &'static [&'static str]| move |e: &Endpoint| ids.contains(&e.id.as_str());
    close(world.share(near), 1.0);
    world.report(Health::Unhealthy, ids(&["n0"]));
    close(world.share(near), 1.4 * 2.0 / 3.0);
    world.report(Health::Unhealthy, ids(&["n0", "n1"]));
    close(world.share(near), 1.4 / 3.0);
    assert!(!world.chosen(&[]).contains(&"n0".to_owned()));
    world.report(Health::Unhealthy, near);
    close(world.share(near), 0.0);
    // 6 of 12: not yet less than half.
    world.report(Health::Unhealthy, ids(&["w0", "w1", "w2"]));
    close(world.share(near), 0.0);
    // 5 of 12: nothing that is reported is believed; all are alike.
    world.report(Health::Unhealthy, ids(&["w3"]));
    close(world.share(near), 3.0 / 12.0);
    assert!(world.chosen(&[]).iter().any(|id| id.starts_with('n')));
    // But a second attempt goes where it is well.
    let again = world.chosen(&["n0"]);
    assert!(again.iter().all(|id| ["w4", "w5", "w6", "w7", "w8"].contains(&&**id)), "{again:?}");
    // Who drains is not there to be lost.
    world.report(Health::Draining, |e| e.health == Health::Unhealthy && e.id.as_str() != "n0");
    close(world.share(near), 0.0);
    let never = Percent(0);
    world.policy.panic_threshold = never;
    world.report(Health::Unhealthy, |e| e.id.as_str() != "w8");
    assert_eq!(world.chosen(&[]), ["w8"]);
    world.report(Health::Unhealthy, |_| true);
    assert_eq!(world.chosen(&[]).len(), 3 + 8, "nobody is well: all alike");
}

/// Panic is about reports. Where nobody answers is no matter of opinion.
#[test]
fn absence_is_no_matter_of_opinion() {
    let mut world = World::with(no_slow_start(), {
        let near = ["a", "b"].map(local).into_iter();
        near.chain((0..8).map(|i| at("west", "eu-1", &format!("w{i}")))).collect()
    });
    let north: SiteName = "west".parse().unwrap();
    world.paths.fail(&north, world.now);
    assert_eq!(world.chosen(&[]), ["a", "b"]);
    world.once("a", End::Unreachable);
    assert_eq!(world.chosen(&[]), ["b"], "2 of 10 are left, and nobody panics");
    assert_eq!(world.chosen(&["b"]).len(), 9, "whoever, before nobody");
    world.report(Health::Unhealthy, |e| e.id.as_str() == "b");
    assert_eq!(world.chosen(&[]), ["b"], "there at least");
    world.once("b", End::Unreachable);
    assert_eq!(world.chosen(&[]).len(), 8 + 2, "nobody is anywhere: all are tried");
    world.paths.answer(&north);
    let back = world.chosen(&[]);
    assert!(back.len() == 8 && back.iter().all(|id| id.starts_with('w')), "{back:?}");
}

#[test]
fn what_nothing_leads_to_is_left_alone() {
    let mut world = World::new(vec![local("a"), local("b")]);
    world.unreachable = vec!["a".into()];
    world.update(vec![local("a"), local("b")]);
    assert_eq!(world.chosen(&[]), ["b"]);
    assert_eq!(world.chosen(&["b"]), ["a"]);
}

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
fn a_new_or_readmitted_endpoint_ramps_up() {
    let mut world = World::new(["a", "b"].map(local).into());
    close(world.expected()["b"], 0.5);
    world.update(["a", "b", "c"].map(local).into());
    close(world.expected()["c"], 0.1 / 2.1);
    world.sleep(5 * SECOND);
    close(world.expected()["c"], 0.5 / 2.5);
    world.sleep(5 * SECOND);
    close(world.expected()["c"], 1.0 / 3.0);
    world.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    world.sleep(SECOND);
    world.report(Health::Healthy, |_| true);
    close(world.expected()["a"], 0.1 / 2.1);
    // What comes when nobody was there does not.
    let mut world = World::new(vec![]);
    world.sleep(SECOND);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 1.0);
    // A tier that ramps up is short, and spills.
    let mut world = World::new(vec![at("west", "eu-1", "w")]);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 0.14);
    world.sleep(8 * SECOND);
    close(world.expected()["a"], 1.0);
    let mut world = World::with(no_slow_start(), vec![at("west", "eu-1", "w")]);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 1.0);
}

#[test]
fn failures_in_a_row_eject_with_doubling_and_probation() {
    let mut world = World::with(no_slow_start(), ["a", "b", "c", "d"].map(local).into());
    let (base, longest) = (world.policy.outlier.base_ejection, world.policy.outlier.max_ejection);
    world.fail("a", 4);
    world.once("a", End::Served(ms(1)));
    world.fail("a", 4);
    assert_eq!(world.chosen(&[]).len(), 4, "a success begins the count anew");
    world.fail("a", 1);
    let mut expected = base;
    for _ in 0..7 {
        assert_eq!(world.chosen(&[]), ["b", "c", "d"]);
        world.sleep(expected - INTERVAL);
        assert_eq!(world.chosen(&[]), ["b", "c", "d"]);
        world.sleep(INTERVAL);
        assert_eq!(world.chosen(&[]).len(), 4);
        // On probation one failure is enough.
        world.fail("a", 1);
        expected = (expected * 2).min(longest);
    }
    assert_eq!(expected, longest);
    world.once("a", End::Served(ms(1)));
    assert_eq!(world.chosen(&[]).len(), 4, "an answer ends it");
    // It is forgotten as slowly as it was learned.
    world.fail("a", 5);
    assert_eq!(world.load_mut("a").ejection, longest);
    world.once("a", End::Served(ms(1)));
    world.sleep(longest);
    world.once("a", End::Served(ms(1)));
    assert_eq!(world.load_mut("a").ejection, longest / 2);
    world.policy.outlier.consecutive_failures = 0;
    world.update(["a", "b", "c", "d"].map(local).into());
    world.fail("a", 100);
    assert_eq!(world.chosen(&[]).len(), 4, "0 is never");
}

#[test]
fn no_more_than_half_are_ejected_unless_all_fail() {
    let names = ["a", "b", "c", "d", "e"];
    let mut world = World::with(no_slow_start(), names.map(local).into());
    for id in ["a", "b", "c"] {
        world.fail(id, 5);
    }
    assert_eq!(world.chosen(&[]), ["c", "d", "e"]);
    world.fail("d", 5);
    world.fail("e", 5);
    world.sleep(INTERVAL);
    assert_eq!(world.chosen(&[]).len(), 5, "all fail: nobody is better than anybody");
    world.once("e", End::Served(ms(1)));
    world.sleep(INTERVAL);
    assert_eq!(world.chosen(&[]), ["c", "d", "e"]);
    // One may always be.
    let mut world = World::new(["a", "b"].map(local).into());
    world.policy.outlier.max_ejected = Percent(0);
    world.update(["a", "b"].map(local).into());
    world.fail("a", 5);
    assert_eq!(world.chosen(&[]), ["b"]);
    // Where nobody is does not count.
    let mut world = World::new(names.map(local).into());
    for id in ["a", "b", "c", "d"] {
        world.once(id, End::Unreachable);
    }
    assert_eq!(world.chosen(&[]), ["e"]);
}

#[test]
fn who_fails_more_often_than_the_others_is_ejected() {
    let rate = SuccessRate { min_requests: 20, ..SuccessRate::default() };
    let mut policy = no_slow_start();
    policy.outlier.success_rate = Some(rate);
    let names: Vec<String> = (0..10).map(|i| format!("e{i}")).collect();
    let ten = || names.iter().map(|id| local(id)).collect::<Vec<_>>();
    let traffic = |world: &mut World, bad: &[&str], n: u32| {
        for i in 0..n {
            for id in &names {
                // Never five in a row.
                let fails = bad.contains(&&**id) && i % 2 == 0;
                let end = if fails { End::Failed(ms(1)) } else { End::Served(ms(1)) };
                world.once(id, end);
            }
        }
    };
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &["e3"], 19);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10, "too few to say");
    traffic(&mut world, &["e3"], 1);
    world.sleep(SECOND);
    assert!(!world.chosen(&[]).contains(&"e3".to_owned()));
    world.once("e3", End::Served(ms(1)));
    assert!(!world.chosen(&[]).contains(&"e3".to_owned()), "no matter of one answer");
    world.sleep(world.policy.outlier.base_ejection);
    assert_eq!(world.chosen(&[]).len(), 10, "on probation, with nothing held against it");
    // All fail alike: nobody is an outlier.
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &all, 40);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
    // What is long past does not count.
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &["e3"], 40);
    world.now += 31 * SECOND;
    traffic(&mut world, &[], 20);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
    policy.outlier.success_rate = None;
    let mut world = World::with(policy, ten());
    traffic(&mut world, &["e3"], 40);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
}

#[test]
fn who_is_held_stays_away_until_it_is_back() {
    let mut world = World::with(no_slow_start(), ["a", "b"].map(local).into());
    let a = world.slot("a");
    assert!(world.balancer.hold(a) && !world.balancer.hold(a));
    world.sleep(100 * SECOND);
    assert_eq!(world.chosen(&[]), ["b"]);
    world.balancer.readmit(a, world.now);
    assert_eq!(world.chosen(&[]), ["a", "b"]);
    assert!(world.balancer.hold(a));
}

#[test]
fn what_is_known_survives_a_new_snapshot() {
    let mut world = World::new(["a", "c"].map(local).into());
    let (a, c) = (world.slot("a"), world.slot("c"));
    world.balancer.begin(a);
    world.once("c", End::Served(ms(5)));
    world.update(["b", "c"].map(local).into());
    assert_eq!(world.slot("c"), c);
    assert_eq!(world.balancer.load(c).ewma_us, 5000.0);
    assert_ne!(world.slot("b"), a, "something is in flight at what was there");
    assert_eq!(world.balancer.find(&"east".parse().unwrap(), &"a".parse().unwrap()), None);
    world.balancer.end(a, End::Served(ms(1)), world.now);
    world.update(["b", "c", "d"].map(local).into());
    assert_eq!(world.slot("d"), a, "the slot is used again");
    assert_eq!(world.balancer.load(a), &Load::default());
    // Who answers elsewhere is somebody else.
    world.fail("b", 5);
    let address = Some(([10, 9, 9, 9], 4143).into());
    world.update(vec![Endpoint { address, ..local("b") }, local("c")]);
    assert_eq!(world.chosen(&[]), ["b", "c"]);
}

#[test]
fn a_subset_of_other_sites_stands_for_all_of_them() {
    let remote = |n: u32| (0..n).map(|i| at("west", "eu-1", &format!("w{i:02}"))).collect();
    let mut world = World::with(no_slow_start(), remote(30));
    let used = world.chosen(&[]);
    assert_eq!(used.len(), 8);
    let gone = |world: &mut World, id: &str| {
        let all = world.endpoints.iter().map(|e| (**e).clone());
        world.update(all.filter(|e| e.id.as_str() != id).collect());
        world.chosen(&[])
    };
    let other = (0..30).map(|i| format!("w{i:02}")).find(|id| !used.contains(id)).unwrap();
    assert_eq!(gone(&mut world, &other), used, "who was not used is not missed");
    let after = gone(&mut world, &used[3]);
    let kept = after.iter().filter(|id| used.contains(id)).count();
    assert_eq!((after.len(), kept), (8, 7), "one goes, one comes");
    // Who is unwell makes room likewise, and has its place again after.
    world.report(Health::Unhealthy, |e| e.id.as_str() == after[0]);
    assert_eq!(world.chosen(&[]).iter().filter(|id| after.contains(id)).count(), 7);
    world.report(Health::Healthy, |_| true);
    assert_eq!(world.chosen(&[]), after);
    // Other workers use others.
    let mut sets = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut other = World::with(no_slow_start(), remote(30));
        other.balancer = Balancer::new(seed);
        other.update(remote(30));
        sets.extend(other.chosen(&[]));
    }
    assert!(sets.len() > 28, "{sets:?}");
    // Without locality the eight take what is due to all thirty.
    let mut policy = no_slow_start();
    policy.locality = LocalityMode::Off;
    let local_and_remote = (0..10).map(|i| local(&format!("n{i}"))).chain(remote(30)).collect();
    let mut world = World::with(policy.clone(), local_and_remote);
    close(world.share(|e| e.site.as_str() == "east"), 0.25);
    policy.subset = 0;
    let mut world = World::with(policy, remote(30));
    assert_eq!(world.chosen(&[]).len(), 30);
}

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

#[test]
fn what_begins_ends() {
    let mut world = World::new(["a", "b"].map(local).into());
    let a = world.slot("a");
    for end in [End::NotTried, End::Unreachable, End::Served(ms(1)), End::Failed(ms(1))] {
        world.balancer.begin(a);
        world.balancer.begin(a);
        assert_eq!(world.balancer.tiers.of[0].in_flight, 2);
        world.balancer.end(a, end, world.now);
        world.balancer.end(a, end, world.now);
        assert_eq!(world.balancer.load(a).in_flight, 0);
        assert_eq!(world.balancer.tiers.of[0].in_flight, 0);
    }
    world.balancer.end(a, End::NotTried, world.now);
    assert_eq!(world.balancer.load(a).in_flight, 0, "never wraps");
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
