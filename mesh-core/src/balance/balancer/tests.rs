use std::collections::BTreeMap;

use super::*;
use crate::{
    balance::{INTERVAL, policy::Percent},
    example,
    service::Locality,
};

mod asked;
mod ejection;
mod keys;
mod latency;
mod rates;
mod tiers;

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
    workers: u32,
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
            workers: 1,
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
            workers: self.workers,
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
    let mut world = World::new(vec![weighted("none", 0)]);
    assert_eq!(world.choose(&[], None), None);
    assert_eq!(world.choose(&[Slot(9)], None), None);
    assert!(world.balancer.is_deserted());
}

/// As terminating endpoints are in Kubernetes.
#[test]
fn who_drains_is_the_last_resort() {
    for locality in [LocalityMode::On, LocalityMode::Off, LocalityMode::Strict] {
        let policy = BalancePolicy { locality, ..no_slow_start() };
        let all = [at("west", "eu-1", "w"), local("a"), local("b")];
        let mut world = World::with(policy, all.into());
        let is = |id: &'static str| move |e: &Endpoint| e.id.as_str() == id;
        world.report(Health::Draining, is("a"));
        assert!(!world.chosen(&[]).contains(&"a".to_owned()), "{locality:?}");
        // Whoever is unwell comes first, and whoever is not there last.
        world.report(Health::Unhealthy, is("b"));
        world.paths.fail(&"west".parse().unwrap(), world.now);
        assert_eq!(world.chosen(&[]), ["b"], "{locality:?}");
        assert_eq!(world.chosen(&["b"]), ["a"], "{locality:?}");
        world.once("b", End::Unreachable);
        assert_eq!(world.chosen(&[]), ["a"], "{locality:?}");
        assert!(!world.balancer.is_deserted());
        world.fail("a", 9);
        assert_eq!(world.chosen(&[]), ["a"], "there at least");
        world.balancer.readmit(world.slot("a"), world.now);
        world.once("a", End::Unreachable);
        let nobody = world.chosen(&[]);
        assert!(nobody.len() > 1 && world.balancer.is_deserted(), "{nobody:?}");
        world.balancer.readmit(world.slot("a"), world.now);
        assert_eq!(world.chosen(&[]), ["a"], "{locality:?}");
        assert!(!world.balancer.is_deserted());
    }
}

#[test]
fn those_who_drain_share_as_they_would() {
    let mut world = World::new(vec![weighted("a", 1), weighted("b", 3), weighted("c", 4)]);
    world.report(Health::Draining, |_| true);
    close(world.expected()["b"], 3.0 / 8.0);
    assert_eq!(world.chosen(&[]), ["a", "b", "c"]);
    assert_eq!(world.chosen(&["a", "b"]), ["c"]);
    // Nobody of them counts beside one who serves.
    world.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    close(world.expected()["a"], 1.0);
    close(world.expected()["c"], 0.0);
}

/// Every request asks whether something is to be worked out anew.
#[test]
fn nothing_is_worked_out_twice() {
    let mut world = World::new(["a", "b"].map(local).into());
    assert_eq!((world.balancer.len(), world.balancer.is_empty()), (2, false));
    let (a, then, version) = (world.slot("a"), world.now, world.paths.version());
    assert!(!world.balancer.is_stale(then, version));
    assert!(!world.balancer.is_stale(then + INTERVAL - ms(1), version));
    assert!(world.balancer.is_stale(then + INTERVAL, version));
    assert!(world.balancer.is_stale(then, version + 1));
    let changes: [fn(&mut World, Slot); 3] = [
        |world, a| assert!(world.balancer.hold(a)),
        |world, a| world.balancer.readmit(a, world.now),
        |world, _| world.once("a", End::Unreachable),
    ];
    for change in changes {
        change(&mut world, a);
        assert!(world.balancer.is_stale(world.now, version));
        world.sleep(Duration::ZERO);
        assert!(!world.balancer.is_stale(world.now, version));
    }
    world.once("b", End::Served(ms(1)));
    assert!(!world.balancer.is_stale(then, version), "an answer is no news");
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
    assert!(world.chosen(&["w8"]).is_empty(), "nor a second time");
    world.report(Health::Unhealthy, |_| true);
    assert!(world.chosen(&[]).is_empty(), "and nobody, where nobody is well");
    world.policy.panic_threshold = Percent(1);
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

/// One that stands for three is heavy, and the one beside it is one share: it
/// never meets itself.
#[test]
fn a_subset_weighs_what_it_stands_for() {
    let mut policy = no_slow_start();
    (policy.locality, policy.subset) = (LocalityMode::Off, 1);
    let far = (0..3).map(|i| at("west", "eu-1", &format!("w{i}")));
    let mut world = World::with(policy, far.chain([local("a")]).collect());
    close(world.expected()["a"], 0.25);
    let used = world.chosen(&[]);
    assert_eq!((used.len(), &*used[0]), (2, "a"));
    for (id, us) in [("a", 40_000.0), (&*used[1], 10_000.0)] {
        let now = world.now;
        *world.load_mut(id) = Load { ewma_us: us, updated: now, ..Load::default() };
    }
    assert_eq!(world.tally(1000).get("a"), None, "always beside the faster one");
}
