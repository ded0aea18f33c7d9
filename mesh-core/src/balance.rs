//! Which endpoint of a backend a request goes to; `docs/balancing.md` has the
//! formula with examples.
//!
//! In reading order:
//! - [`policy`]: what may be chosen per service, and the defaults.
//! - [`formula`]: the share of requests that each locality tier takes.
//! - [`Balancer`]: the endpoints of one port, chosen from per request: a tier
//!   by share, then the better of two, or the owner of a key.
//! - `refresh`: what is worked out when something has changed.
//! - [`load`]: what is known of one endpoint, and ejection.
//! - `outlier`, `watch`: who fails more than the others; overload of a tier.
//! - [`Paths`]: the ways to other sites, apart from their endpoints.
//! - `urn`, `ring`, `hash`: drawing by weight, consistent hashing, numbers.
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

pub use self::{
    balancer::{Backing, Balancer, End, Slot},
    formula::TIERS,
    hash::hash,
    paths::Paths,
    policy::{BalancePolicy, LocalityMode},
    watch::INTERVAL,
};
use crate::{
    name::SiteName,
    service::{Endpoint, Locality},
};

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

/// A point below `total` from one that is uniform over all of `u64`.
pub(crate) fn scale(random: u64, total: u64) -> u64 {
    let point = (u128::from(random) * u128::from(total)) >> 64;
    u64::try_from(point).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
