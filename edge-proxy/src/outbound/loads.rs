//! What this worker has seen of endpoints: latency, requests in flight,
//! failures in a row; and, apart from them, of the ways to other sites.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    Endpoint, EndpointId, SiteName, Snapshot,
    balance::{Load, Vantage, choose},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use crate::inner::Blame;

type Key = (SiteName, EndpointId);

/// Loads by endpoint.
#[derive(Debug)]
pub struct Loads {
    start: Instant,
    table: Mutex<HashMap<Key, Load>>,
    /// Ways that failed, by the site they lead to.
    paths: Mutex<HashMap<SiteName, Load>>,
    /// Endpoints that the proxy itself tries again.
    probation: Mutex<HashSet<Key>>,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            start: clock::monotonic(),
            table: Mutex::default(),
            paths: Mutex::default(),
            probation: Mutex::default(),
        }
    }
}

impl Loads {
    fn table(&self) -> MutexGuard<'_, HashMap<Key, Load>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paths(&self) -> MutexGuard<'_, HashMap<SiteName, Load>> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn probation(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.probation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an endpoint alone; false if it is already.
    pub fn begin_probation(&self, endpoint: &Endpoint) -> bool {
        self.probation().insert((endpoint.site.clone(), endpoint.id.clone()))
    }

    /// It may be chosen again, whatever was before.
    pub fn end_probation(&self, endpoint: &Endpoint) {
        let key = (endpoint.site.clone(), endpoint.id.clone());
        self.probation().remove(&key);
        if let Some(load) = self.table().get_mut(&key) {
            load.readmit();
        }
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
        let (table, paths, probation) = (self.table(), self.paths(), self.probation());
        let load = |endpoint: &Endpoint| {
            let key = (endpoint.site.clone(), endpoint.id.clone());
            let mut load = table.get(&key).cloned().unwrap_or_default();
            if probation.contains(&key) {
                load.ejected_until = Some(Duration::MAX);
                return load;
            }
            // An endpoint behind a way that failed is left alone like one
            // that failed itself, and is not blamed.
            let path = paths.get(&endpoint.site).and_then(|path| path.ejected_until);
            load.ejected_until = load.ejected_until.max(path);
            load
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
        self.paths().retain(|site, _| snapshot.links.contains_key(site));
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
    PathFailed,
    NotTried,
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

    /// No session came up.
    pub fn not_opened(&mut self, blame: Blame) {
        self.end = match blame {
            Blame::Nobody => AttemptEnd::NotTried,
            Blame::Path => AttemptEnd::PathFailed,
            Blame::Endpoint => AttemptEnd::Unreachable,
        };
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
                AttemptEnd::Served => load.end(now, latency, true),
                AttemptEnd::Failed => load.end(now, latency, false),
                AttemptEnd::PathFailed | AttemptEnd::NotTried => load.abandon(),
            }
        }
        let mut paths = self.loads.paths();
        match self.end {
            AttemptEnd::PathFailed => {
                paths.entry(self.key.0.clone()).or_default().end_unreachable(now);
            }
            // Whatever was said there, somebody there said it.
            AttemptEnd::Served | AttemptEnd::Failed if self.latency.is_some() => {
                paths.remove(&self.key.0);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_core::{Endpoint, Health, Locality, balance::Vantage};

    use super::{Blame, Loads};

    fn endpoint(site: &str, id: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            id: id.parse().expect("an id"),
            service: "orders.shop".parse().expect("a service"),
            port: "http".parse().expect("a port"),
            site: site.parse().expect("a site"),
            identity: format!("spiffe://{site}.example/ns/shop/sa/orders").parse().expect("an id"),
            address: None,
            target: ([127, 0, 0, 1], 8080).into(),
            locality: Locality::default(),
            weight: 1,
            capacity: 0,
            health: Health::Healthy,
            node: None,
            via: Default::default(),
        })
    }

    #[test]
    fn a_failed_way_spares_its_endpoints_without_blame() {
        let loads = Arc::new(Loads::default());
        let from = Vantage { site: "west".parse().expect("a site"), locality: Locality::default() };
        let (a, b) = (endpoint("east", "a"), endpoint("east", "b"));
        let all = [a.clone(), b.clone(), endpoint("north", "c")];
        let chosen = || {
            let choose = |_| loads.choose(&from, &all, &[]).expect("one").id.to_string();
            (0..200).map(choose).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(chosen().len(), 3);

        loads.begin(&a).not_opened(Blame::Path);
        assert_eq!(Vec::from_iter(chosen()), ["c"], "b lies behind the same way");
        assert!(loads.table().values().all(|load| load.failures == 0 && load.in_flight == 0));

        loads.begin(&b).answered();
        assert!(chosen().contains("a"), "an answer shows that the way is open");

        loads.begin(&a).not_opened(Blame::Endpoint);
        assert!(!chosen().contains("a"));

        assert!(loads.begin_probation(&a) && !loads.begin_probation(&a));
        assert!(!chosen().contains("a"));
        loads.end_probation(&a);
        assert!(chosen().contains("a"));
    }
}
