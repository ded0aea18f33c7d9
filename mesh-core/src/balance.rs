//! Which endpoint of a backend a request goes to: locality tiers, then the
//! better of two by peak-EWMA latency times requests in flight.
//!
//! An endpoint of weight `w` stands for `w` equal ones: it is drawn as a
//! candidate that often, and its requests in flight count as spread over them.

mod balancer;
pub mod formula;
mod hash;
pub mod load;
mod outlier;
mod paths;
pub mod policy;
mod refresh;
mod ring;
mod urn;
mod watch;

use std::{sync::Arc, time::Duration};

pub use self::{
    balancer::{Backing, Balancer, End, Slot},
    formula::TIERS,
    hash::hash,
    paths::Paths,
    policy::{BalancePolicy, LocalityMode},
    watch::INTERVAL,
};
use crate::{
    name::{EndpointId, SiteName},
    service::{Endpoint, Health, Locality},
};

/// After this long without a sample a latency counts for 1/e of itself.
pub const DECAY: Duration = Duration::from_secs(10);
/// Failures in a row after which an endpoint is left alone.
pub const EJECT_AFTER: u32 = 5;
/// For how long the first time; twice as long each further time.
pub const EJECT_BASE: Duration = Duration::from_secs(3);
/// For how long at most.
pub const EJECT_MAX: Duration = Duration::from_secs(60);
/// Latency of an endpoint that has work and has never answered: one request
/// finds out, the others go where answers come from.
const UNMEASURED_US: f64 = 1_000_000.0;

/// Where a decision is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vantage {
    /// Own site.
    pub site: SiteName,
    /// Own locality.
    pub locality: Locality,
}

/// How near an endpoint is; lower is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Same site, same zone (or the own zone is unknown).
    Zone,
    /// Same site, same region.
    Region,
    /// Same site.
    Site,
    /// Another site.
    Remote,
}

/// What one worker has seen of one endpoint. `now` values are durations since
/// any fixed moment of the caller's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Peak-EWMA of latency in microseconds; 0 until there was an answer.
    pub ewma_us: f64,
    /// When it was last updated.
    pub updated: Duration,
    /// Requests in flight.
    pub in_flight: u32,
    /// Failed in a row.
    pub failures: u32,
    /// Not chosen before this moment while another usable one is in reach.
    pub ejected_until: Option<Duration>,
    /// How long the last ejection was; half of it after each success.
    pub ejection: Duration,
}

impl Load {
    /// A request starts.
    pub fn start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request ended after `latency`; `ok` is false if the endpoint (not the
    /// client, not the path) is to blame.
    pub fn end(&mut self, now: Duration, latency: Duration, ok: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let us = latency.as_secs_f64() * 1e6;
        if ok || us > self.ewma_us {
            // A quick failure is no sign of speed, a slow one is of slowness.
            self.observe(now, us);
        }
        if ok { self.succeeded() } else { self.failed(now) }
    }

    /// It has been reached again: what failed before is forgotten.
    pub fn readmit(&mut self) {
        self.failures = 0;
        self.ejected_until = None;
        self.ejection = Duration::ZERO;
    }

    /// A request never reached the endpoint: nothing is learned of it.
    pub fn abandon(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A request ended because nobody was there any more: the endpoint is left
    /// alone at once, and what it took says nothing of its latency.
    pub fn end_unreachable(&mut self, now: Duration) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.failures = self.failures.max(EJECT_AFTER - 1);
        self.failed(now);
    }

    /// Rises at once, falls slowly.
    fn observe(&mut self, now: Duration, us: f64) {
        let keep = self.decay(now);
        self.ewma_us = us.max(self.ewma_us * keep + us * (1.0 - keep));
        self.updated = now;
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.ejected_until = None;
        self.ejection /= 2;
        if self.ejection < EJECT_BASE {
            self.ejection = Duration::ZERO;
        }
    }

    fn failed(&mut self, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < EJECT_AFTER || self.is_ejected(now) {
            return;
        }
        self.ejection = (self.ejection * 2).clamp(EJECT_BASE, EJECT_MAX);
        self.ejected_until = Some(now + self.ejection);
    }

    /// Whether it is left alone for now.
    pub fn is_ejected(&self, now: Duration) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// What two candidates are compared by; lower is better.
    pub fn cost(&self, now: Duration) -> f64 {
        self.cost_of_share(now, 1.0)
    }

    /// The same for an endpoint that stands for `shares` equal ones.
    fn cost_of_share(&self, now: Duration, shares: f64) -> f64 {
        let latency = match self.ewma_us {
            0.0 if self.in_flight > 0 => UNMEASURED_US,
            // An old latency says little: what was slow is tried again.
            measured => measured * self.decay(now),
        };
        latency * (f64::from(self.in_flight) / shares + 1.0)
    }

    fn decay(&self, now: Duration) -> f64 {
        let idle = now.saturating_sub(self.updated);
        (-idle.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

/// How near `endpoint` is to `from`. Unknown parts equal nothing; from an
/// unknown zone the whole site is near.
pub fn tier(from: &Vantage, endpoint: &Endpoint) -> Tier {
    let (own, its) = (&from.locality, &endpoint.locality);
    let equal = |a: &str, b: &str| !a.is_empty() && a == b;
    let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
    let same_zone = equal(&own.zone, &its.zone) && !differ(&own.region, &its.region);
    if endpoint.site != from.site {
        Tier::Remote
    } else if own.zone.is_empty() || same_zone {
        Tier::Zone
    } else if equal(&own.region, &its.region) {
        Tier::Region
    } else {
        Tier::Site
    }
}

/// Chooses one of `endpoints`, never one of `exclude` (those already tried),
/// never one that drains or has no weight.
///
/// Only the nearest tier that has a usable endpoint is considered. When no
/// tier has one, those that are ejected but healthy are, of all tiers; when
/// there is none either, the unhealthy. `load` gives what the caller knows of
/// an endpoint, `random` is uniform over all of `u64`.
pub fn choose<'a>(
    from: &Vantage,
    endpoints: &'a [Arc<Endpoint>],
    exclude: &[EndpointId],
    load: impl Fn(&Endpoint) -> Load,
    now: Duration,
    mut random: impl FnMut() -> u64,
) -> Option<&'a Arc<Endpoint>> {
    let class = |endpoint: &Endpoint| {
        if exclude.contains(&endpoint.id) {
            return None;
        }
        Class::of(from, endpoint, || load(endpoint).is_ejected(now))
    };
    let (best, total, least) = survey(endpoints, class)?;
    let candidates = || endpoints.iter().filter(|endpoint| class(endpoint) == Some(best));
    let first = draw(candidates(), scale(random(), total), None)?;
    // The first one's own share is out: with equal weights, all of it.
    let others = total - u64::from(least);
    let second = draw(candidates(), scale(random(), others), Some((first, least)))?;
    let cost = |endpoint: &Endpoint| {
        load(endpoint).cost_of_share(now, f64::from(endpoint.weight) / f64::from(least))
    };
    if !Arc::ptr_eq(first, second) && cost(second) < cost(first) {
        Some(second)
    } else {
        Some(first)
    }
}

/// The best class that is there, and the sum and the least of its weights.
fn survey(
    endpoints: &[Arc<Endpoint>],
    class: impl Fn(&Endpoint) -> Option<Class>,
) -> Option<(Class, u64, u32)> {
    let mut found: Option<(Class, u64, u32)> = None;
    for endpoint in endpoints {
        let Some(class) = class(endpoint) else { continue };
        let weight = endpoint.weight;
        found = Some(match found {
            Some((best, ..)) if best < class => continue,
            Some((best, total, least)) if best == class => {
                (best, total + u64::from(weight), least.min(weight))
            }
            _ => (class, weight.into(), weight),
        });
    }
    found
}

/// Who is preferred to whom, whatever the load. `None` is for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Usable(Tier),
    Ejected,
    Unhealthy,
}

impl Class {
    fn of(from: &Vantage, endpoint: &Endpoint, ejected: impl Fn() -> bool) -> Option<Self> {
        if endpoint.weight == 0 || endpoint.health == Health::Draining {
            return None;
        }
        Some(match endpoint.health.is_usable() {
            false => Self::Unhealthy,
            true if ejected() => Self::Ejected,
            true => Self::Usable(tier(from, endpoint)),
        })
    }
}

/// The candidate at `point` of the summed weights, where one of them may weigh
/// less than it says.
fn draw<'a>(
    candidates: impl Iterator<Item = &'a Arc<Endpoint>>,
    mut point: u64,
    less: Option<(&Arc<Endpoint>, u32)>,
) -> Option<&'a Arc<Endpoint>> {
    let mut last = None;
    for endpoint in candidates {
        let less = less.filter(|(which, _)| Arc::ptr_eq(which, endpoint)).map_or(0, |(_, by)| by);
        let weight = u64::from(endpoint.weight.saturating_sub(less));
        if point < weight {
            return Some(endpoint);
        }
        point -= weight;
        last = Some(endpoint);
    }
    last
}

/// A point below `total` from one that is uniform over all of `u64`.
pub(crate) fn scale(random: u64, total: u64) -> u64 {
    let point = (u128::from(random) * u128::from(total)) >> 64;
    u64::try_from(point).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
