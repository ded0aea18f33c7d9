//! What this worker has seen of endpoints: latency, requests in flight,
//! failures in a row.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    Endpoint, EndpointId, SiteName, Snapshot,
    balance::{Load, Vantage, choose},
};
use mesh_runtime::clock;
use tokio::time::Instant;

type Key = (SiteName, EndpointId);

/// Loads by endpoint.
#[derive(Debug)]
pub struct Loads {
    start: Instant,
    table: Mutex<HashMap<Key, Load>>,
}

impl Default for Loads {
    fn default() -> Self {
        Self { start: clock::monotonic(), table: Mutex::default() }
    }
}

impl Loads {
    fn table(&self) -> MutexGuard<'_, HashMap<Key, Load>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The better of two by chance, never one of `exclude`.
    pub fn choose<'a>(
        &self,
        from: &Vantage,
        endpoints: &'a [Arc<Endpoint>],
        exclude: &[EndpointId],
    ) -> Option<&'a Arc<Endpoint>> {
        let table = self.table();
        let load = |endpoint: &Endpoint| {
            table.get(&(endpoint.site.clone(), endpoint.id.clone())).cloned().unwrap_or_default()
        };
        choose(from, endpoints, exclude, load, self.now(), rand::random)
    }

    /// An attempt at an endpoint begins.
    pub fn begin(self: &Arc<Self>, endpoint: &Endpoint) -> Attempt {
        let key = (endpoint.site.clone(), endpoint.id.clone());
        self.table().entry(key.clone()).or_default().start();
        let started = self.now();
        let end = AttemptEnd::Served;
        Attempt { loads: self.clone(), key, started, latency: None, end }
    }

    /// Forgets endpoints that are no longer in the snapshot.
    pub fn sweep(&self, snapshot: &Snapshot) {
        let known = |id: &EndpointId, site: &SiteName| {
            let named = |endpoint: &Arc<Endpoint>| endpoint.id == *id && endpoint.site == *site;
            snapshot.services.values().any(|service| service.endpoints.iter().any(named))
        };
        self.table().retain(|(site, id), load| load.in_flight > 0 || known(id, site));
    }
}

/// One attempt at an endpoint; its end is counted when it is dropped.
#[derive(Debug)]
pub struct Attempt {
    loads: Arc<Loads>,
    key: Key,
    started: Duration,
    latency: Option<Duration>,
    end: AttemptEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttemptEnd {
    Served,
    Failed,
    Unreachable,
}

impl Attempt {
    /// The head of the answer is there: that was the latency.
    pub fn answered(&mut self) {
        self.latency = Some(self.loads.now().saturating_sub(self.started));
    }

    /// The endpoint is to blame.
    pub fn blame(&mut self) {
        self.end = AttemptEnd::Failed;
    }

    /// Nobody was there: others are tried first for a while.
    pub fn unreachable(&mut self) {
        self.end = AttemptEnd::Unreachable;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let now = self.loads.now();
        let latency = self.latency.unwrap_or(now.saturating_sub(self.started));
        if let Some(load) = self.loads.table().get_mut(&self.key) {
            match self.end {
                AttemptEnd::Unreachable => load.end_unreachable(now),
                end => load.end(now, latency, end == AttemptEnd::Served),
            }
        }
    }
}
