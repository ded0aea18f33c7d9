//! The endpoints of one port of a service, as one worker chooses from them.
//!
//! What a request costs: a tier by share, two candidates by weight, one
//! comparison, a counter up, later a counter down. Everything else is worked
//! out in [`Balancer::refresh`], when something has changed and every
//! [`INTERVAL`](super::INTERVAL).

use std::{cmp::Ordering, sync::Arc, time::Duration};

use super::{
    BalancePolicy, LocalityMode, Paths, TIERS, Vantage,
    hash::{Dice, hash_name, mix, unit},
    load::{Load, Why},
    refresh::{Class, Ejected, Tiers},
    ring::{Point, points},
    tier,
};
use crate::{
    name::{EndpointId, SiteName},
    service::{Endpoint, Health},
};

/// Draws at a second attempt before all that is left is looked through.
const DRAWS: usize = 4;
/// An endpoint may have so many requests in flight before a bound on its share
/// counts: of few, every one is more than a share.
const UNBOUND: f64 = 8.0;

/// An endpoint's place in a balancer. It is the endpoint's for as long as the
/// endpoint is known or anything is in flight there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub(super) u32);

/// What backs one port of a service, as one worker sees it.
pub struct Backing<'a> {
    /// Where the worker is.
    pub from: &'a Vantage,
    /// The service's.
    pub policy: &'a BalancePolicy,
    /// Of every site and health, sorted by (site, id).
    pub endpoints: &'a [Arc<Endpoint>],
    /// Whether any path leads there.
    pub reachable: &'a dyn Fn(&Endpoint) -> bool,
    /// Workers that share what an endpoint can take, as far as this process
    /// knows: its own.
    pub workers: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Answered after so long.
    Served(Duration),
    /// The endpoint (not the client, not the path) is to blame.
    Failed(Duration),
    /// Nobody was there.
    Unreachable,
    /// It never got as far as the endpoint.
    NotTried,
}

/// State and choice. `now` values are durations since any fixed moment of the
/// caller's.
#[derive(Debug)]
pub struct Balancer {
    pub(super) policy: BalancePolicy,
    pub(super) members: Vec<Member>,
    /// Slots of the endpoints that are known, by (site, id).
    pub(super) order: Vec<u32>,
    /// Slots that nobody has.
    free: Vec<u32>,
    pub(super) tiers: Tiers,
    /// Every endpoint's points on the ring of its tier; empty without affinity.
    pub(super) points: [Vec<Point>; TIERS],
    pub(super) workers: u32,
    pub(super) stale: bool,
    pub(super) refreshed: Option<Duration>,
    pub(super) paths_version: u64,
    pub(super) ejected: Ejected,
    /// Whether anybody who is well stands by.
    pub(super) has_reserve: bool,
    /// Nobody who is unwell is chosen, even if nobody else is left.
    pub(super) is_strict: bool,
    dice: Dice,
    seed: u64,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<Endpoint>,
    /// False for one that is gone and has something in flight still.
    known: bool,
    /// 0 is nearest.
    pub(super) tier: usize,
    pub(super) remote: bool,
    pub(super) reachable: bool,
    /// The proxy itself tries it, and says when it is back.
    pub(super) held: bool,
    /// It was asked, and did not answer well.
    pub(super) failing: bool,
    /// Weight times capacity.
    pub(super) size: f64,
    /// What of it counts now, while it ramps up.
    pub(super) weight: f64,
    /// Requests at once that it is good for; 0 is unknown.
    pub(super) capacity: f64,
    /// The same in every proxy.
    hash: u64,
    /// The same in one worker at all times.
    pub(super) rank: u64,
    /// As of the last refresh; `None` before the first.
    pub(super) class: Option<Class>,
    /// Since when it ramps up.
    pub(super) ramp: Option<Duration>,
    pub(super) load: Load,
}

impl Balancer {
    /// Without endpoints. `seed` is the worker's: from the same one follow
    /// the same subset and the same draws.
    pub fn new(seed: u64) -> Self {
        Self {
            policy: BalancePolicy::default(),
            members: Vec::new(),
            order: Vec::new(),
            free: Vec::new(),
            tiers: Tiers::default(),
            points: Default::default(),
            workers: 1,
            stale: true,
            refreshed: None,
            paths_version: 0,
            ejected: Ejected::default(),
            has_reserve: false,
            is_strict: false,
            dice: Dice::new(mix(seed)),
            seed,
        }
    }

    /// Takes over what backs the port from now on. What is known of endpoints
    /// that stay is kept.
    pub fn update(&mut self, backing: &Backing<'_>, now: Duration) {
        self.policy.clone_from(backing.policy);
        self.workers = backing.workers.max(1);
        let mut old = std::mem::take(&mut self.order).into_iter().peekable();
        for endpoint in backing.endpoints {
            let (site, id) = (&endpoint.site, &endpoint.id);
            while let Some(gone) = old.next_if(|slot| self.order_of(*slot, site, id).is_lt()) {
                self.forget(gone);
            }
            let slot = match old.next_if(|slot| self.order_of(*slot, site, id).is_eq()) {
                Some(slot) => self.follow(slot, endpoint, now),
                None => self.insert(endpoint),
            };
            self.order.push(slot);
        }
        old.for_each(|gone| self.forget(gone));
        self.place(backing);
        self.stale = true;
    }

    fn forget(&mut self, slot: u32) {
        let member = &mut self.members[slot as usize];
        member.known = false;
        if member.load.in_flight == 0 {
            self.free.push(slot);
        }
    }

    fn follow(&mut self, slot: u32, endpoint: &Arc<Endpoint>, now: Duration) -> u32 {
        let member = &mut self.members[slot as usize];
        let old = std::mem::replace(&mut member.endpoint, endpoint.clone());
        if old.address != endpoint.address || old.identity != endpoint.identity {
            // Whoever answers there now has done nothing yet.
            member.load.readmit(now);
            member.load.ewma_us = 0.0;
            member.failing = false;
        }
        slot
    }

    fn insert(&mut self, endpoint: &Arc<Endpoint>) -> u32 {
        let hash = hash_name(endpoint.site.as_str(), endpoint.id.as_str());
        let member = Member {
            endpoint: endpoint.clone(),
            known: true,
            tier: 0,
            remote: false,
            reachable: true,
            held: false,
            failing: false,
            size: 0.0,
            weight: 0.0,
            capacity: 0.0,
            hash,
            rank: mix(hash ^ mix(self.seed)),
            class: None,
            ramp: None,
            load: Load::default(),
        };
        if let Some(slot) = self.free.pop() {
            self.members[slot as usize] = member;
            return slot;
        }
        self.members.push(member);
        u32::try_from(self.members.len() - 1).expect("a service has fewer endpoints than u32::MAX")
    }

    /// Tiers, sizes and points on rings.
    fn place(&mut self, backing: &Backing<'_>) {
        let declared = backing.endpoints.iter().map(|e| e.capacity).filter(|c| *c > 0);
        let (sum, count) = declared.fold((0.0, 0.0), |(s, n), c| (s + f64::from(c), n + 1.0));
        // Who does not say is as large as the others are on average.
        let mean = sum / f64::max(count, 1.0);
        let mut in_flight = [0; TIERS];
        for slot in &self.order {
            let member = &mut self.members[*slot as usize];
            let endpoint = &member.endpoint;
            member.tier = match backing.policy.locality {
                LocalityMode::Off => 0,
                LocalityMode::On | LocalityMode::Strict => tier(backing.from, endpoint) as usize,
            };
            member.remote = endpoint.site != backing.from.site;
            member.reachable = (backing.reachable)(endpoint);
            member.capacity = if endpoint.capacity > 0 { endpoint.capacity.into() } else { mean };
            let unit = if member.capacity > 0.0 { member.capacity } else { 1.0 };
            member.size = f64::from(endpoint.weight) * unit;
            in_flight[member.tier] += member.load.in_flight;
        }
        self.tiers.place(in_flight);
        self.place_points();
    }

    fn place_points(&mut self) {
        self.points.iter_mut().for_each(Vec::clear);
        if self.policy.affinity.is_none() {
            return;
        }
        for (number, of_tier) in self.points.iter_mut().enumerate() {
            let members = self.order.iter().map(|slot| (*slot, &self.members[*slot as usize]));
            let items: Vec<(u32, u64, f64)> = members
                .filter(|(_, member)| member.tier == number && member.size > 0.0)
                .map(|(slot, member)| (slot, member.hash, member.size))
                .collect();
            *of_tier = points(&items);
        }
    }

    /// The endpoint of a slot.
    pub fn endpoint(&self, slot: Slot) -> &Arc<Endpoint> {
        &self.members[slot.0 as usize].endpoint
    }

    /// Where an endpoint is.
    pub fn find(&self, site: &SiteName, id: &EndpointId) -> Option<Slot> {
        let found = self.order.binary_search_by(|slot| self.order_of(*slot, site, id));
        found.ok().map(|at| Slot(self.order[at]))
    }

    fn order_of(&self, slot: u32, site: &SiteName, id: &EndpointId) -> Ordering {
        let endpoint = &self.members[slot as usize].endpoint;
        (&endpoint.site, &endpoint.id).cmp(&(site, id))
    }

    /// What is known of the endpoint of a slot.
    pub fn load(&self, slot: Slot) -> &Load {
        &self.members[slot.0 as usize].load
    }

    /// Requests in flight at all endpoints that are known.
    pub fn in_flight(&self) -> u32 {
        self.tiers.of.iter().map(|tier| tier.in_flight).sum()
    }

    /// How many endpoints are known.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether [`refresh`](Self::refresh) is due before the next choice.
    pub fn is_stale(&self, now: Duration, paths: u64) -> bool {
        let due = |last| now.saturating_sub(last) >= super::INTERVAL;
        self.stale || self.paths_version != paths || self.refreshed.is_none_or(due)
    }

    /// [`refresh`](Self::refresh) if it is due.
    pub fn keep_fresh(&mut self, paths: &Paths, now: Duration) {
        if self.is_stale(now, paths.version()) {
            self.refresh(paths, now);
        }
    }

    /// Chooses one endpoint, never one of `tried`, nor one that has no weight,
    /// and one that drains only where nothing else is there. With a `key` it is
    /// the one that the key belongs to.
    ///
    /// A second attempt (one with `tried`) takes nothing unhealthy while
    /// anything healthy is left, panic or not. `None`: there is nothing left, or
    /// with a panic threshold of 0 nothing healthy.
    pub fn choose(&mut self, tried: &[Slot], key: Option<u64>, now: Duration) -> Option<Slot> {
        if tried.is_empty() {
            return self.draw(tried, key, now).map(Slot);
        }
        for _ in 0..DRAWS {
            let Some(slot) = self.draw(tried, key, now) else { break };
            let is_well = self.members[slot as usize].class == Some(Class::Usable);
            if is_well && !tried.contains(&Slot(slot)) {
                return Some(Slot(slot));
            }
        }
        self.best_left(tried).map(Slot)
    }

    fn draw(&mut self, tried: &[Slot], key: Option<u64>, now: Duration) -> Option<u32> {
        let random = key.map_or_else(|| self.dice.roll(), |key| mix(!key));
        let tier = self.tiers.at(unit(random))?;
        match key {
            Some(key) => self.owner(tier, key, tried),
            None => self.better_of_two(tier, now),
        }
    }

    fn better_of_two(&mut self, tier: usize, now: Duration) -> Option<u32> {
        let urn = &self.tiers.of[tier].urn;
        let first = urn.draw(self.dice.roll())?;
        if urn.items().len() == 1 {
            return Some(first.item);
        }
        let second = urn.draw_beside(first, self.dice.roll());
        if first == second {
            return Some(first.item);
        }
        let load = |drawn| {
            let (item, shares) = urn.shares(drawn);
            (&self.members[item as usize].load, shares)
        };
        let ((first_load, firsts), (second_load, seconds)) = (load(first), load(second));
        let better = second_load.is_better(seconds, first_load, firsts, now);
        Some(if better { second.item } else { first.item })
    }

    /// Who a key belongs to, as far as it has room.
    fn owner(&self, tier: usize, key: u64, tried: &[Slot]) -> Option<u32> {
        let max_load = self.policy.affinity.as_ref().and_then(|affinity| affinity.max_load);
        let tier = &self.tiers.of[tier];
        let has_room = |slot: u32| {
            let Some(max_load) = max_load else { return true };
            let member = &self.members[slot as usize];
            let share = member.size / tier.urn.total().max(member.size);
            let bound = max_load.ratio() * f64::from(tier.in_flight + 1) * share;
            f64::from(member.load.in_flight) < bound.max(UNBOUND)
        };
        let is_new = |slot: u32| !tried.contains(&Slot(slot));
        tier.ring
            .find(key, |slot| is_new(slot) && has_room(slot))
            .or_else(|| tier.ring.find(key, is_new))
    }

    /// One of the best class by weight; of the usable, one of the nearest tier.
    fn best_left(&mut self, tried: &[Slot]) -> Option<u32> {
        let mut found: Option<((Class, usize), u32)> = None;
        let mut sum = 0.0;
        for slot in &self.order {
            let member = &self.members[*slot as usize];
            let class = member.class.unwrap_or(Class::Never);
            let worst = if self.is_strict { Class::Usable } else { Class::Absent };
            if class > worst || tried.contains(&Slot(*slot)) {
                continue;
            }
            let rank = (class, if class == Class::Usable { member.tier } else { 0 });
            match found {
                Some((best, _)) if best < rank => continue,
                Some((best, _)) if best == rank => sum += member.size,
                _ => sum = member.size,
            }
            // Each of them in proportion, whatever comes after.
            if unit(self.dice.roll()) * sum < member.size {
                found = Some((rank, *slot));
            }
        }
        found.map(|(_, slot)| slot)
    }

    /// Whether nobody is there, or nothing leads to anybody; as of the last
    /// refresh.
    pub fn is_deserted(&self) -> bool {
        let is_there = |class: Class| class < Class::Absent;
        !self.order.iter().any(|slot| self.members[*slot as usize].class.is_some_and(is_there))
    }

    /// An attempt begins.
    pub fn begin(&mut self, slot: Slot) {
        let member = &mut self.members[slot.0 as usize];
        member.load.start();
        self.tiers.of[member.tier].in_flight += 1;
    }

    /// An attempt that began has ended; every one does, once.
    pub fn end(&mut self, slot: Slot, end: End, now: Duration) {
        let window = self.policy.outlier.success_rate.as_ref().map(|rate| rate.window);
        let Some(member) = self.members.get_mut(slot.0 as usize) else { return };
        let tier = &mut self.tiers.of[member.tier];
        // A tier's sum is of those that are known.
        tier.in_flight = tier.in_flight.saturating_sub(u32::from(member.known));
        let was_out = member.load.out;
        match end {
            End::NotTried => member.load.abandon(),
            End::Unreachable => member.load.vanish(now, &self.policy.outlier),
            End::Served(latency) => {
                tier.watch.sample(now, latency);
                member.load.succeed(now, latency, window);
            }
            End::Failed(latency) => {
                member.load.fail(now, latency, window);
                self.eject_for_failures(slot.0, now);
            }
        }
        let member = &self.members[slot.0 as usize];
        self.stale |= was_out != member.load.out;
        if !member.known && member.load.in_flight == 0 {
            self.free.push(slot.0);
        }
    }

    fn eject_for_failures(&mut self, slot: u32, now: Duration) {
        let outlier = &self.policy.outlier;
        let most = outlier.consecutive_failures;
        let member = &mut self.members[slot as usize];
        let due = most > 0 && member.load.failures >= most && !member.load.is_out(now);
        let counts = member.serves();
        if due && (!counts || self.ejected.has_room()) {
            member.load.eject(now, Why::Failures, outlier);
            self.ejected.now += usize::from(counts);
        }
    }

    /// The proxy itself tries an endpoint from now on: it is left alone until
    /// [`readmit`](Self::readmit). False if it is already.
    pub fn hold(&mut self, slot: Slot) -> bool {
        self.stale = true;
        !std::mem::replace(&mut self.members[slot.0 as usize].held, true)
    }

    /// It has been reached again: it may be chosen, whatever was before.
    pub fn readmit(&mut self, slot: Slot, now: Duration) {
        let member = &mut self.members[slot.0 as usize];
        member.held = false;
        member.load.readmit(now);
        self.stale = true;
    }

    /// Whoever asks an endpoint how it is says that it fails, or no longer
    /// does.
    pub fn examined(&mut self, slot: Slot, failing: bool) {
        self.members[slot.0 as usize].failing = failing;
        self.stale = true;
    }

    /// Who is to be asked: those who may be chosen, as of the last refresh,
    /// and those who are not for what they answered.
    pub fn probed(&self) -> Vec<Arc<Endpoint>> {
        let mut chosen = vec![false; self.members.len()];
        for item in self.tiers.of.iter().flat_map(|tier| tier.urn.items()) {
            chosen[*item as usize] = true;
        }
        let wanted = |slot: &&u32| {
            let member = &self.members[**slot as usize];
            let asked = chosen[**slot as usize] || member.failing;
            asked && member.serves() && member.reachable && !member.held
        };
        let wanted = self.order.iter().filter(wanted);
        wanted.map(|slot| self.members[*slot as usize].endpoint.clone()).collect()
    }

    /// The share of requests that each endpoint takes while all candidates
    /// cost the same, in the order of (site, id); as of the last refresh.
    pub fn expected(&self) -> Vec<(Slot, f64)> {
        let mut shares = vec![0.0; self.members.len()];
        for (share, tier) in self.tiers.shares().into_iter().zip(&self.tiers.of) {
            for (at, item) in tier.urn.items().iter().enumerate() {
                shares[*item as usize] = share * tier.urn.weight(at) / tier.urn.total();
            }
        }
        self.order.iter().map(|slot| (Slot(*slot), shares[*slot as usize])).collect()
    }
}

impl Member {
    /// Whether it ought to serve while others can.
    pub(super) fn serves(&self) -> bool {
        self.size > 0.0 && self.endpoint.health != Health::Draining
    }
}

#[cfg(test)]
pub(super) mod tests;
