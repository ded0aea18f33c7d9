//! What is worked out when something has changed: who may be chosen, and the
//! share of every tier.

use std::time::Duration;

use super::{
    Balancer, INTERVAL, LocalityMode, Paths, TIERS,
    balancer::Member,
    formula::{Capacity, even, shares},
    load::Why,
    outlier::lowest_rate,
    ring::Ring,
    urn::Urn,
    watch::Watch,
};
use crate::service::Health;

/// What an endpoint that ramps up begins with, as a part of its full share.
const FIRST_SHARE: f64 = 0.1;

/// Who is preferred to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Nothing speaks against it.
    Usable,
    /// There, but said to be unwell: by reports, or for what came back.
    Suspect,
    /// There for those who have nowhere else to go.
    Draining,
    /// Nobody is there, or nothing leads there.
    Absent,
    /// Not to be chosen: it has no weight, lies too far, or stands by.
    Never,
}

/// All tiers, nearest first.
#[derive(Debug, Default)]
pub(super) struct Tiers {
    pub(super) of: [Tier; TIERS],
    shares: [f64; TIERS],
    adapted: Option<Duration>,
}

/// One tier.
#[derive(Debug, Default)]
pub(super) struct Tier {
    /// Who may be chosen now.
    pub(super) urn: Urn,
    /// The same, for those who come with a key.
    pub(super) ring: Ring,
    pub(super) watch: Watch,
    /// Requests in flight.
    pub(super) in_flight: u32,
}

/// How many endpoints are ejected, and how many may be.
#[derive(Debug, Default)]
pub(super) struct Ejected {
    pub(super) now: usize,
    most: usize,
}

/// What there is, in sizes.
#[derive(Debug, Default)]
struct Census {
    capacities: [Capacity; TIERS],
    /// What is usable, and what is at least there.
    usable: [f64; TIERS],
    present: [f64; TIERS],
    draining: [f64; TIERS],
    all: [f64; TIERS],
    /// Requests at once that the usable are good for.
    good_for: [f64; TIERS],
    /// Requests in flight at the usable.
    in_flight: [f64; TIERS],
    /// Whether any usable endpoint has not just failed several times.
    any_well: bool,
}

impl Tiers {
    /// What is in flight has been counted anew.
    pub(super) fn place(&mut self, in_flight: [u32; TIERS]) {
        self.of.iter_mut().zip(in_flight).for_each(|(tier, n)| tier.in_flight = n);
    }

    /// The tier at a point of [0, 1).
    pub(super) fn at(&self, point: f64) -> Option<usize> {
        let mut upto = 0.0;
        let mut last = None;
        for (number, share) in self.shares.iter().enumerate() {
            upto += share;
            if *share > 0.0 {
                last = Some(number);
                if point < upto {
                    break;
                }
            }
        }
        // Rounding may lead past the end.
        last
    }

    pub(super) fn shares(&self) -> [f64; TIERS] {
        self.shares
    }
}

impl Ejected {
    pub(super) fn has_room(&self) -> bool {
        self.now < self.most
    }
}

impl Balancer {
    /// Works out who may be chosen and what every tier takes. Linear in the
    /// number of endpoints.
    pub fn refresh(&mut self, paths: &Paths, now: Duration) {
        self.judge(now);
        self.classify(paths, now);
        let census = self.census();
        let widest = self.widest(&census);
        self.adapt(&census, now);
        self.tiers.shares = match widest {
            Class::Usable => {
                let mut capacities = census.capacities;
                for (capacity, tier) in capacities.iter_mut().zip(&self.tiers.of) {
                    capacity.relief = tier.watch.relief();
                }
                shares(&capacities, self.policy.overprovisioning.ratio())
            }
            Class::Suspect => even(census.present),
            Class::Draining => even(census.draining),
            Class::Absent | Class::Never => even(census.all),
        };
        self.fill(widest);
        self.is_strict = widest == Class::Usable && self.policy.panic_threshold.0 == 0;
        self.stale = false;
        self.refreshed = Some(now);
        self.paths_version = paths.version();
    }

    /// Ejects who fails more often than the others.
    fn judge(&mut self, now: Duration) {
        let count = |is: fn(&Member) -> bool| {
            self.order.iter().filter(|slot| is(&self.members[**slot as usize])).count()
        };
        let most = count(Member::serves) as f64 * self.policy.outlier.max_ejected.ratio();
        self.ejected.most = (most as usize).max(1);
        // Who serves nothing takes no place from those who do.
        self.ejected.now = count(|member| member.is_ejected() && member.serves());
        let Some(rate) = self.policy.outlier.success_rate.clone() else { return };
        let due = |last| now.saturating_sub(last) >= INTERVAL;
        if !self.tiers.adapted.is_none_or(due) {
            return;
        }
        let mut rates = Vec::new();
        for slot in &self.order {
            let load = &mut self.members[*slot as usize].load;
            let [bad, good] = load.outcomes.sums(now, rate.window);
            if load.out.is_none() && bad + good >= u64::from(rate.min_requests) {
                rates.push((*slot, good as f64 / (bad + good) as f64));
            }
        }
        if rates.len() < rate.min_hosts as usize {
            return;
        }
        let lowest = lowest_rate(rates.iter().map(|(_, rate)| *rate), rate.deviations.ratio());
        rates.retain(|(_, rate)| *rate < lowest);
        // The worst first: there may not be room for all.
        rates.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (slot, _) in rates {
            if self.ejected.has_room() {
                let load = &mut self.members[slot as usize].load;
                load.eject(now, Why::SuccessRate, &self.policy.outlier);
                self.ejected.now += 1;
            }
        }
    }

    fn classify(&mut self, paths: &Paths, now: Duration) {
        let strict = self.policy.locality == LocalityMode::Strict;
        let all = || self.order.iter().map(|slot| &self.members[*slot as usize]);
        let nearest = |is: fn(&&Member) -> bool| all().filter(is).map(|member| member.tier).min();
        let nearest = nearest(|m| m.serves()).or_else(|| nearest(|m| m.size > 0.0));
        // Who comes when nobody was there has nobody to ramp up beside.
        let was_usable = |slot: &u32| self.members[*slot as usize].class == Some(Class::Usable);
        let begins = !self.order.iter().any(was_usable);
        let mut best = (Class::Never, u32::MAX);
        for slot in &self.order {
            let member = &mut self.members[*slot as usize];
            member.load.release(now);
            let is_far = strict && Some(member.tier) != nearest;
            let is_cut = || !paths.is_clear() && paths.is_down(&member.endpoint.site, now);
            let class = match member.endpoint.health {
                _ if is_far || member.size <= 0.0 => Class::Never,
                _ if !member.reachable || member.held || is_cut() => Class::Absent,
                _ if member.load.out.is_some_and(|out| out.why == Why::Absent) => Class::Absent,
                Health::Draining => Class::Draining,
                _ if member.load.out.is_some() || member.failing => Class::Suspect,
                Health::Healthy | Health::Unknown => Class::Usable,
                Health::Unhealthy => Class::Suspect,
            };
            if class == Class::Usable && !begins && member.class != Some(Class::Usable) {
                member.ramp = Some(now);
            }
            best = best.min((class, member.endpoint.priority));
            member.class = Some(class);
            member.weight = member.size * member.ramp(now, self.policy.slow_start);
        }
        self.stand_by(best.1);
    }

    /// Those of another priority than whoever is best stand by: behind them, or
    /// before them and unwell.
    fn stand_by(&mut self, priority: u32) {
        self.has_reserve = false;
        for slot in &self.order {
            let member = &mut self.members[*slot as usize];
            if member.endpoint.priority != priority {
                self.has_reserve |= member.class == Some(Class::Usable);
                member.class = Some(Class::Never);
            }
        }
    }

    fn census(&self) -> Census {
        let mut census = Census::default();
        let most = self.policy.outlier.consecutive_failures;
        for slot in &self.order {
            let member = &self.members[*slot as usize];
            let class = member.class.unwrap_or(Class::Never);
            if class == Class::Never {
                continue;
            }
            let tier = member.tier;
            census.all[tier] += member.size;
            if class == Class::Draining {
                census.draining[tier] += member.size;
            }
            if !member.serves() {
                continue;
            }
            census.capacities[tier].total += member.size;
            if class <= Class::Suspect {
                census.present[tier] += member.size;
            }
            if class == Class::Usable {
                census.capacities[tier].healthy += member.weight;
                census.usable[tier] += member.size;
                census.good_for[tier] += member.capacity;
                census.in_flight[tier] += f64::from(member.load.in_flight);
                census.any_well |= most == 0 || member.load.failures < most;
            }
        }
        census
    }

    /// The worst class that may be chosen.
    fn widest(&self, census: &Census) -> Class {
        let sum = |sizes: &[f64; TIERS]| sizes.iter().sum::<f64>();
        let (usable, present) = (sum(&census.usable), sum(&census.present));
        // Where nobody answers is no matter of opinion: only what is there
        // counts for whether reports are believed. Where others stand by that are
        // well, reports tell the ones from the others.
        let few = usable < self.policy.panic_threshold.ratio() * present;
        let panics = few && !self.has_reserve;
        // When all fail, those that are left alone for it are no worse.
        let all_fail = self.ejected.now > 0 && !census.any_well;
        let believes_all = self.policy.panic_threshold.0 == 0;
        match () {
            () if present <= 0.0 && sum(&census.draining) > 0.0 => Class::Draining,
            () if present <= 0.0 => Class::Absent,
            () if all_fail => Class::Suspect,
            () if believes_all => Class::Usable,
            () if usable <= 0.0 || panics => Class::Suspect,
            () => Class::Usable,
        }
    }

    /// Follows load and latency of the tiers.
    fn adapt(&mut self, census: &Census, now: Duration) {
        let due = |last| now.saturating_sub(last) >= INTERVAL;
        if !self.tiers.adapted.is_none_or(due) {
            return;
        }
        self.tiers.adapted = Some(now);
        // Nothing is sent on where nobody would take it.
        let others = census.usable.iter().filter(|usable| **usable > 0.0).count() > 1;
        let mut next = None;
        for number in (0..TIERS).rev() {
            let watch = &mut self.tiers.of[number].watch;
            let good_for = census.good_for[number] / f64::from(self.workers);
            watch.follow_load(
                census.in_flight[number],
                (others && good_for > 0.0).then_some(good_for),
            );
            let own = watch.pace(now);
            watch.follow_pace(own, next);
            if census.usable[number] > 0.0 {
                next = Some(own);
            }
        }
    }

    /// Fills the urns and rings with who may be chosen.
    fn fill(&mut self, widest: Class) {
        let Self { members, order, tiers, points, policy, .. } = self;
        for tier in &mut tiers.of {
            tier.urn.clear();
            tier.ring.clear();
        }
        let may = |slot: u32| members[slot as usize].class.is_some_and(|class| class <= widest);
        let subset = Subset::of(members, order, policy.subset as usize, may);
        for slot in order.iter().filter(|slot| may(**slot)) {
            let member = &members[*slot as usize];
            if let Some(scale) = subset.scale(member) {
                let urn = &mut tiers.of[member.tier].urn;
                urn.push(*slot, member.weight * scale, member.size * scale);
            }
        }
        for (tier, points) in tiers.of.iter_mut().zip(points) {
            points.iter().filter(|point| may(point.item)).for_each(|p| tier.ring.push(*p));
            tier.ring.finish();
        }
    }
}

/// Which endpoints of other sites this worker uses: those with the lowest
/// rank. One that goes makes room for the next, and nothing else changes.
#[derive(Debug)]
struct Subset {
    /// The highest rank that is in.
    last: u64,
    /// What those in it count for, so that they stand for all.
    scale: f64,
}

impl Subset {
    fn of(members: &[Member], order: &[u32], most: usize, may: impl Fn(u32) -> bool) -> Self {
        let whole = Self { last: u64::MAX, scale: 1.0 };
        let remote = || {
            let eligible = order.iter().filter(|slot| may(**slot));
            eligible.map(|slot| &members[*slot as usize]).filter(|member| member.remote)
        };
        if most == 0 || remote().count() <= most {
            return whole;
        }
        let mut ranks: Vec<u64> = remote().map(|member| member.rank).collect();
        let (_, last, _) = ranks.select_nth_unstable(most - 1);
        let last = *last;
        let all: f64 = remote().map(|member| member.size).sum();
        let kept: f64 = remote().filter(|m| m.rank <= last).map(|m| m.size).sum();
        Self { last, scale: all / kept }
    }

    /// What a member's weight counts for; `None` if it is not in.
    fn scale(&self, member: &Member) -> Option<f64> {
        match member.remote {
            false => Some(1.0),
            true => (member.rank <= self.last).then_some(self.scale),
        }
    }
}

impl Member {
    fn is_ejected(&self) -> bool {
        self.load.out.is_some_and(|out| out.why != Why::Absent)
    }

    /// The part of its share that it takes while it ramps up.
    fn ramp(&mut self, now: Duration, window: Duration) -> f64 {
        let Some(since) = self.ramp else { return 1.0 };
        let elapsed = now.saturating_sub(since);
        if elapsed >= window {
            self.ramp = None;
            return 1.0;
        }
        (elapsed.as_secs_f64() / window.as_secs_f64()).max(FIRST_SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_leads_to_a_tier_that_has_a_share() {
        let at = |shares: [f64; TIERS], points: [f64; 4]| {
            let tiers = Tiers { shares, ..Tiers::default() };
            points.map(|point| tiers.at(point))
        };
        let points = [0.0, 0.25, 0.5, 0.999_999];
        assert_eq!(at([0.0; TIERS], points), [None; 4]);
        assert_eq!(at([1.0, 0.0, 0.0, 0.0], points), [Some(0); 4]);
        assert_eq!(at([0.0, 0.5, 0.0, 0.5], points), [Some(1), Some(1), Some(3), Some(3)]);
        // Rounding has lost a little.
        assert_eq!(at([0.25, 0.0, 0.74, 0.0], points), [Some(0), Some(2), Some(2), Some(2)]);
    }
}
