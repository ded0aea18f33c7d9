//! A world of three sites with two zones each, in virtual time: requests
//! arrive, take their time, fail where nobody is, and are tried elsewhere.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
    time::Duration,
};

use super::{
    balancer::tests::{SECOND, World, at, ms},
    hash::{Dice, unit},
    *,
};
use crate::service::Health;

/// Endpoints of one zone.
const EACH: u32 = 6;
/// Whatever lies in the own zone.
const NEAR: &str = "east/eu-1";
const NEXT: &str = "east/eu-2";

/// What the applications of an endpoint do.
#[derive(Debug, Clone, Copy)]
struct Behaviour {
    latency: f64,
    alive: bool,
}

struct Simulation {
    world: World,
    behaviour: BTreeMap<String, Behaviour>,
    dice: Dice,
    /// Requests a second.
    rate: f64,
    running: BinaryHeap<Reverse<(Duration, Slot, Duration)>>,
    served: BTreeMap<String, u32>,
    failed: u32,
}

fn all_endpoints() -> Vec<Endpoint> {
    let zones = ["east", "west", "north"]
        .into_iter()
        .flat_map(|site| ["eu-1", "eu-2"].into_iter().map(move |zone| (site, zone)));
    let in_zone = |(site, zone): (&'static str, &'static str)| {
        (0..EACH).map(move |i| at(site, zone, &format!("{zone}-{i}")))
    };
    zones.flat_map(in_zone).collect()
}

fn name(e: &Endpoint) -> String {
    format!("{}/{}", e.site, e.id)
}

fn is_in(zone: &str, e: &Endpoint) -> bool {
    format!("{}/{}", e.site, e.locality.zone) == zone
}

impl Simulation {
    fn new(endpoints: Vec<Endpoint>) -> Self {
        let policy =
            BalancePolicy { slow_start: Duration::ZERO, subset: 0, ..BalancePolicy::default() };
        let behaviour =
            endpoints.iter().map(|e| (name(e), Behaviour { latency: 0.01, alive: true })).collect();
        Self {
            world: World::with(policy, endpoints),
            behaviour,
            dice: Dice::new(11),
            rate: 1000.0,
            running: BinaryHeap::new(),
            served: BTreeMap::new(),
            failed: 0,
        }
    }

    fn change(&mut self, which: impl Fn(&Endpoint) -> bool, change: impl Fn(&mut Behaviour)) {
        let names: Vec<_> =
            self.world.endpoints.iter().filter(|e| which(e)).map(|e| name(e)).collect();
        for name in names {
            change(self.behaviour.get_mut(&name).unwrap());
        }
    }

    /// Lets requests come for so long, and counts who served those.
    fn run(&mut self, time: Duration) -> &BTreeMap<String, u32> {
        let end = self.world.now + time;
        self.served.clear();
        self.failed = 0;
        while self.world.now < end {
            let gap = -(1.0 - unit(self.dice.roll())).ln() / self.rate;
            let next = self.world.now + Duration::from_secs_f64(gap);
            self.finish(next);
            self.world.now = next;
            self.request();
        }
        &self.served
    }

    fn finish(&mut self, until: Duration) {
        while let Some(Reverse((at, slot, latency))) = self.running.peek().copied() {
            if at > until {
                return;
            }
            self.running.pop();
            self.world.balancer.end(slot, End::Served(latency), at);
        }
    }

    /// Tries until somebody answers.
    fn request(&mut self) {
        let mut tried = Vec::new();
        while let Some(slot) = self.world.choose(&tried, None) {
            tried.push(slot);
            self.world.balancer.begin(slot);
            let name = name(self.world.balancer.endpoint(slot));
            let Behaviour { latency, alive } = self.behaviour[&name];
            if alive {
                // Half to one and a half of the mean.
                let latency = Duration::from_secs_f64(latency * (0.5 + unit(self.dice.roll())));
                self.running.push(Reverse((self.world.now + latency, slot, latency)));
                *self.served.entry(name).or_default() += 1;
                return;
            }
            self.world.balancer.end(slot, End::Unreachable, self.world.now);
        }
        self.failed += 1;
    }

    /// Every endpoint has the share that `wanted` says: within four standard
    /// deviations of a binomial distribution, and `slack` of it.
    fn check(&self, slack: f64, wanted: impl Fn(&Endpoint) -> f64) {
        let n = f64::from(self.served.values().sum::<u32>());
        for e in &self.world.endpoints {
            let p = wanted(e);
            let count = f64::from(self.served.get(&name(e)).copied().unwrap_or_default());
            let bound = 4.0 * (n * p * (1.0 - p)).sqrt() + slack * n * p;
            assert!((count - n * p).abs() <= bound, "{}: {count}, not {}", name(e), n * p);
        }
        assert_eq!(self.failed, 0);
    }

    /// The share of one zone.
    fn share(&self, zone: &str) -> f64 {
        let of = |e: &&Arc<Endpoint>| is_in(zone, e);
        let served = |e: &Arc<Endpoint>| self.served.get(&name(e)).copied().unwrap_or_default();
        let count: u32 = self.world.endpoints.iter().filter(of).map(served).sum();
        f64::from(count) / f64::from(self.served.values().sum::<u32>())
    }
}

/// The share of each of `left` endpoints near, and of the next zone.
fn spilled(left: u32) -> impl Fn(&Endpoint) -> f64 {
    let near = (1.4 * f64::from(left) / f64::from(EACH)).min(1.0);
    move |e: &Endpoint| {
        let lost = |e: &Endpoint| e.health == Health::Unhealthy;
        match () {
            () if is_in(NEAR, e) && !lost(e) => near / f64::from(left),
            () if is_in(NEXT, e) => (1.0 - near) / f64::from(EACH),
            () => 0.0,
        }
    }
}

/// The first of the own zone.
fn first(n: u32) -> impl Fn(&Endpoint) -> bool {
    move |e: &Endpoint| is_in(NEAR, e) && (0..n).any(|i| e.id.as_str() == format!("eu-1-{i}"))
}

#[test]
fn all_is_well() {
    let mut simulation = Simulation::new(all_endpoints());
    simulation.run(30 * SECOND);
    simulation.check(0.0, spilled(EACH));
}

#[test]
fn all_is_well_with_many_in_flight_or_few() {
    for rate in [20.0, 10_000.0] {
        let mut simulation = Simulation::new(all_endpoints());
        simulation.rate = rate;
        simulation.run(ms((20_000_000.0 / rate) as u64));
        simulation.check(0.0, spilled(EACH));
    }
}

#[test]
fn a_zone_loses_a_third_two_thirds_all() {
    let mut simulation = Simulation::new(all_endpoints());
    for lost in [2, 4] {
        simulation.world.report(Health::Unhealthy, first(lost));
        simulation.run(30 * SECOND);
        simulation.check(0.0, spilled(EACH - lost));
    }
    assert!((simulation.share(NEAR) - 0.467).abs() < 0.012, "{}", simulation.share(NEAR));
    simulation.world.report(Health::Unhealthy, first(EACH));
    simulation.run(30 * SECOND);
    simulation.check(0.0, |e| if is_in(NEXT, e) { 1.0 / f64::from(EACH) } else { 0.0 });
}

/// Nobody reports anything: the requests themselves find out.
#[test]
fn machines_of_a_zone_die_without_a_word() {
    for lost in [2, 4, EACH] {
        let mut simulation = Simulation::new(all_endpoints());
        simulation.run(2 * SECOND);
        simulation.change(first(lost), |behaviour| behaviour.alive = false);
        simulation.run(60 * SECOND);
        // Now and then one is tried again.
        let near = (1.4 * f64::from(EACH - lost) / f64::from(EACH)).min(1.0);
        let share = simulation.share(NEAR);
        assert!((share - near).abs() < 0.03, "{lost}: {share}");
        assert_eq!(simulation.failed, 0);
        simulation.change(first(lost), |behaviour| behaviour.alive = true);
        simulation.run(70 * SECOND);
        simulation.run(30 * SECOND);
        simulation.check(0.0, spilled(EACH));
    }
}

#[test]
fn no_request_fails_while_one_endpoint_is_alive() {
    let mut simulation = Simulation::new(all_endpoints());
    simulation.run(2 * SECOND);
    simulation.change(|e| name(e) != "north/eu-2-3", |behaviour| behaviour.alive = false);
    simulation.run(60 * SECOND);
    assert_eq!((simulation.served.len(), simulation.failed), (1, 0));
    // Nor while reports say that nobody is well.
    simulation.world.report(Health::Unhealthy, |_| true);
    simulation.run(10 * SECOND);
    assert_eq!((simulation.served.len(), simulation.failed), (1, 0));
}

#[test]
fn less_than_half_are_well() {
    let mut simulation = Simulation::new(all_endpoints());
    // 18 of 36 are half: the near zone, and one of the next.
    simulation.world.report(Health::Unhealthy, |e| is_in("west/eu-1", e) || is_in("north/eu-1", e));
    simulation.world.report(Health::Unhealthy, |e| is_in("west/eu-2", e));
    simulation.run(30 * SECOND);
    simulation.check(0.0, spilled(EACH));
    simulation.world.report(Health::Unhealthy, |e| name(e) == "north/eu-2-0");
    simulation.run(60 * SECOND);
    simulation.check(0.0, |_| 1.0 / 36.0);
}

#[test]
fn all_are_short() {
    let mut simulation = Simulation::new(all_endpoints());
    // Half of everything: 0.7, 0.3 * 0.7, 0.09 * 0.7 of 0.973.
    simulation.world.report(Health::Unhealthy, |e| {
        e.id.as_str() < "eu-1-3" || { e.id.as_str() > "eu-2" && e.id.as_str() < "eu-2-3" }
    });
    simulation.run(60 * SECOND);
    simulation.check(0.0, |e| match e.health {
        Health::Unhealthy => 0.0,
        _ if is_in(NEAR, e) => 0.7 / 0.973 / 3.0,
        _ if is_in(NEXT, e) => 0.21 / 0.973 / 3.0,
        _ => 0.063 / 0.973 / 12.0,
    });
}

#[test]
fn a_slow_zone_keeps_its_part() {
    let mut simulation = Simulation::new(all_endpoints());
    simulation.run(10 * SECOND);
    simulation.change(|e| is_in(NEAR, e), |behaviour| behaviour.latency = 0.1);
    simulation.run(30 * SECOND);
    simulation.run(60 * SECOND);
    // As slow as twice the next, and a millisecond more: 21 of 100.
    let near = 0.21;
    let wanted = |e: &Endpoint| match () {
        () if is_in(NEAR, e) => near / f64::from(EACH),
        () if is_in(NEXT, e) => (1.0 - near) / f64::from(EACH),
        () => 0.0,
    };
    simulation.check(0.05, wanted);
    assert!((simulation.share(NEAR) - near).abs() < 0.02, "{}", simulation.share(NEAR));
    simulation.change(|_| true, |behaviour| behaviour.latency = 0.01);
    simulation.run(30 * SECOND);
    simulation.run(30 * SECOND);
    simulation.check(0.0, spilled(EACH));
}

#[test]
fn an_overloaded_zone_keeps_what_it_can_carry() {
    let near_can = |capacity: u32| {
        let endpoints = all_endpoints().into_iter();
        let with = endpoints.map(|e| match is_in(NEAR, &e) {
            true => Endpoint { capacity, ..e },
            false => Endpoint { capacity: 1000, ..e },
        });
        let mut simulation = Simulation::new(with.collect());
        // 40 in flight.
        simulation.rate = 4000.0;
        simulation.run(20 * SECOND);
        simulation.run(20 * SECOND);
        assert_eq!(simulation.failed, 0);
        simulation
    };
    let simulation = near_can(100);
    simulation.check(0.0, spilled(EACH));
    // 20 of 40.
    let simulation = near_can(20 / EACH + 1);
    let wanted = f64::from((20 / EACH + 1) * EACH) / 40.0;
    let share = simulation.share(NEAR);
    assert!((share - wanted).abs() < 0.06, "{share}, not {wanted}");
    assert!((simulation.share(NEXT) - (1.0 - share)).abs() < 1e-9, "all else to the next zone");
}

#[test]
fn weights_and_failover_together() {
    let endpoints = all_endpoints().into_iter().map(|e| {
        let heavy = e.id.as_str().ends_with("-5");
        Endpoint { weight: if heavy { 5 } else { 1 }, ..e }
    });
    let mut simulation = Simulation::new(endpoints.collect());
    simulation.rate = 50.0;
    // Half of the near zone's ten is lost with its heaviest: 0.7 stay.
    simulation.world.report(Health::Unhealthy, |e| is_in(NEAR, e) && e.weight == 5);
    simulation.run(400 * SECOND);
    simulation.check(0.1, |e| match e.health {
        Health::Unhealthy => 0.0,
        _ if is_in(NEAR, e) => 0.7 / 5.0,
        _ if is_in(NEXT, e) => 0.3 * f64::from(e.weight) / 10.0,
        _ => 0.0,
    });
}

/// As a pool with servers in reserve.
#[test]
fn standbys_take_over_and_give_back() {
    let stands_by = |e: &Endpoint| e.priority > 0;
    let prioritized = all_endpoints()
        .into_iter()
        .map(|e| Endpoint { priority: u32::from(e.site.as_str() != "east"), ..e });
    let mut simulation = Simulation::new(prioritized.collect());
    let shares = |simulation: &mut Simulation, time: Duration| {
        let served = simulation.run(time).clone();
        assert_eq!(simulation.failed, 0);
        let standbys = simulation.world.endpoints.iter().filter(|e| stands_by(e));
        let standby: u32 = standbys.filter_map(|e| served.get(&name(e))).sum();
        f64::from(standby) / f64::from(served.values().sum::<u32>())
    };
    assert!(shares(&mut simulation, 2 * SECOND) < 1e-9);
    // One is enough, whatever is said of the others.
    let last = |e: &Endpoint| name(e) == "east/eu-2-5";
    simulation.world.report(Health::Unhealthy, |e| !stands_by(e) && !last(e));
    assert!(shares(&mut simulation, 2 * SECOND) < 1e-9);
    assert_eq!(simulation.served.len(), 1);
    simulation.change(last, |behaviour| behaviour.alive = false);
    let standby = shares(&mut simulation, 30 * SECOND);
    assert!(standby > 0.999, "{standby}");
    assert_eq!(simulation.served.len(), 24, "all of them");
    simulation.world.report(Health::Healthy, |_| true);
    assert!(shares(&mut simulation, 2 * SECOND) < 1e-9);
}
