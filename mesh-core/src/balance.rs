//! Which endpoint of a backend a request goes to: locality tiers, then the
//! better of two by peak-EWMA latency times requests in flight.

use std::{sync::Arc, time::Duration};

use crate::{
    name::{EndpointId, SiteName},
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

/// What one worker has seen of one endpoint. `now` values are durations since
/// any fixed moment of the caller's.
#[derive(Debug, Clone, Default)]
pub struct Load {
    /// Peak-EWMA of latency in microseconds.
    pub ewma_us: f64,
    /// When it was last updated.
    pub updated: Duration,
    /// Requests in flight.
    pub in_flight: u32,
    /// Failed in a row.
    pub failures: u32,
    /// Not chosen before this moment while another usable one is in reach.
    pub ejected_until: Option<Duration>,
}

impl Load {
    /// A request starts.
    pub fn start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request ended after `latency`; `ok` is false if the endpoint (not the
    /// client, not the path) is to blame.
    pub fn end(&mut self, _now: Duration, _latency: Duration, _ok: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// What two candidates are compared by; lower is better.
    pub fn cost(&self, _now: Duration) -> f64 {
        self.ewma_us * f64::from(self.in_flight + 1)
    }
}

/// How near `endpoint` is to `from`.
pub fn tier(from: &Vantage, endpoint: &Endpoint) -> Tier {
    if endpoint.site == from.site { Tier::Zone } else { Tier::Remote }
}

/// Chooses one of `endpoints`, never one of `exclude` (those already tried).
///
/// Only the nearest tier that has a usable endpoint is considered; when no
/// tier has one, all that are not draining or of weight zero are. `load` gives what the caller
/// knows of an endpoint, `random` is uniform over all of `u64`.
pub fn choose<'a>(
    _from: &Vantage,
    endpoints: &'a [Arc<Endpoint>],
    exclude: &[EndpointId],
    _load: impl Fn(&Endpoint) -> Load,
    _now: Duration,
    _random: impl FnMut() -> u64,
) -> Option<&'a Arc<Endpoint>> {
    endpoints.iter().find(|endpoint| !exclude.contains(&endpoint.id))
}
