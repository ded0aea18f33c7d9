//! What federation is told of the traffic since the last report: per service
//! and direction, per route, and per other end.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_api::v1::{EdgeStat, RouteStat, ServiceStat};
use mesh_core::{ServiceName, SiteName, SpiffeId};

use crate::{access_log::Entry, metrics::Direction};

/// Upper bounds of the latency buckets, in milliseconds; one more counts the
/// rest. All proxies use the same, so that federation can add them up.
pub const BOUNDS_MS: [f64; 18] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0,
    5000.0, 30000.0,
];
/// Services and directions that are counted; more are left out of the report.
const MAX_SERVICES: usize = 4096;
/// Routes, and other ends; the same. All of it fits in one message.
const MAX_OTHERS: usize = 512;

/// Which way, seen from a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Flow {
    /// From the mesh to the application.
    Inbound,
    /// From the application into the mesh.
    Outbound,
}

impl Flow {
    /// Which way a request or connection goes.
    pub fn of(entry: &Entry) -> Self {
        match entry.direction {
            Direction::Inbound => Self::Inbound,
            Direction::Outbound => Self::Outbound,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// A route, as its callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Route {
    /// `<name>.<namespace>:<port number>`.
    pub authority: String,
    /// Its name; empty for what no route took.
    pub route: String,
}

/// Whom this proxy has to do with, and over what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The called service.
    pub service: ServiceName,
    /// Who calls.
    pub flow: Flow,
    /// The verified other end; `None` if it has no identity.
    pub peer: Option<SpiffeId>,
    /// Where that is, as far as it is known.
    pub site: Option<SiteName>,
}

/// Shared; clones are the same figures.
#[derive(Debug, Clone, Default)]
pub struct Stats(Arc<All>);

#[derive(Debug, Default)]
struct All {
    services: Counts<(ServiceName, Flow)>,
    routes: Counts<Route>,
    edges: Counts<Edge>,
}

/// Figures by what they are of.
#[derive(Debug)]
struct Counts<K>(Mutex<HashMap<K, Arc<Figures>>>);

/// Figures of one thing. Keep the handle: finding it takes a lock, counting
/// does not.
#[derive(Debug, Default)]
pub struct Figures {
    success: AtomicU64,
    failure: AtomicU64,
    connections: AtomicU64,
    repeated: AtomicU64,
    latency: [AtomicU64; BOUNDS_MS.len() + 1],
}

/// What was counted since the last report.
struct Counted {
    success: u64,
    failure: u64,
    connections: u64,
    repeated: u64,
    latency: Vec<u64>,
}

impl Figures {
    /// A request, or an opaque connection, has ended. `latency` is the time
    /// until the head of the response.
    pub fn ended(&self, ok: bool, latency: Duration) {
        self.ended_at_some_time(ok);
        let ms = latency.as_secs_f64() * 1000.0;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.latency.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The same where nobody asks how long it took.
    pub fn ended_at_some_time(&self, ok: bool) {
        let counter = if ok { &self.success } else { &self.failure };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// An opaque connection has been opened.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// Of what has ended, there were so many attempts beyond the first.
    pub fn repeated(&self, attempts: u64) {
        self.repeated.fetch_add(attempts, Ordering::Relaxed);
    }

    fn take(&self) -> Counted {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Counted {
            success: take(&self.success),
            failure: take(&self.failure),
            connections: take(&self.connections),
            repeated: take(&self.repeated),
            latency: self.latency.iter().map(take).collect(),
        }
    }
}

impl Counted {
    fn is_nothing(&self) -> bool {
        self.success + self.failure + self.connections == 0
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq + Clone> Counts<K> {
    fn of(&self, key: K, most: usize) -> Arc<Figures> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(figures) = all.get(&key) {
            return figures.clone();
        }
        let figures = Arc::new(Figures::default());
        if all.len() < most {
            all.insert(key, figures.clone());
        }
        figures
    }

    /// Everything. What nobody counts in any more is forgotten once it was
    /// told.
    fn take(&self) -> Vec<(K, Counted)> {
        let mut taken = Vec::new();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|key, figures| {
            // Looked at first: whoever lets go later has counted already.
            let is_used = Arc::strong_count(figures) > 1;
            let counted = figures.take();
            if is_used || !counted.is_nothing() {
                taken.push((key.clone(), counted));
            }
            is_used
        });
        taken
    }
}

impl Stats {
    /// The figures of one service and direction.
    pub fn of(&self, service: &ServiceName, flow: Flow) -> Arc<Figures> {
        self.0.services.of((service.clone(), flow), MAX_SERVICES)
    }

    /// The figures of a route.
    pub fn of_route(&self, route: Route) -> Arc<Figures> {
        self.0.routes.of(route, MAX_OTHERS)
    }

    /// The figures of another end.
    pub fn of_edge(&self, edge: Edge) -> Arc<Figures> {
        self.0.edges.of(edge, MAX_OTHERS)
    }

    /// Everything counted since the last call; services without traffic are
    /// left out.
    pub fn take(&self) -> Vec<ServiceStat> {
        let taken = self.0.services.take().into_iter();
        let mut stats: Vec<_> = taken
            .filter(|(_, counted)| !counted.is_nothing())
            .map(|((service, flow), counted)| ServiceStat {
                service: service.to_string(),
                direction: flow.as_str().to_owned(),
                success: counted.success,
                failure: counted.failure,
                connections: counted.connections,
                latency: counted.latency,
                bounds_ms: BOUNDS_MS.to_vec(),
            })
            .collect();
        stats.sort_by(|a, b| (&a.service, &a.direction).cmp(&(&b.service, &b.direction)));
        stats
    }

    /// The same of routes.
    pub fn take_routes(&self) -> Vec<RouteStat> {
        let taken = self.0.routes.take().into_iter();
        let with_traffic = taken.filter(|(_, counted)| !counted.is_nothing());
        with_traffic
            .map(|(Route { authority, route }, counted)| RouteStat {
                authority,
                route,
                success: counted.success,
                failure: counted.failure,
                repeated_attempts: counted.repeated,
                latency: counted.latency,
                bounds_ms: BOUNDS_MS.to_vec(),
            })
            .collect()
    }

    /// Other ends, also those with which nothing happened lately.
    pub fn take_edges(&self) -> Vec<EdgeStat> {
        let stat = |(edge, counted): (Edge, Counted)| EdgeStat {
            service: edge.service.to_string(),
            direction: edge.flow.as_str().to_owned(),
            spiffe_id: edge.peer.map(|peer| peer.to_string()).unwrap_or_default(),
            site: edge.site.map(|site| site.to_string()).unwrap_or_default(),
            success: counted.success,
            failure: counted.failure,
            connections: counted.connections,
        };
        self.0.edges.take().into_iter().map(stat).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_holds_what_was_counted_since_the_last_one() {
        let stats = Stats::default();
        let orders: ServiceName = "orders.shop".parse().unwrap();
        let figures = stats.of(&orders, Flow::Outbound);
        figures.ended(true, Duration::from_micros(100));
        figures.ended(true, Duration::from_millis(1));
        figures.ended(false, Duration::from_secs(60));
        stats.of(&orders, Flow::Inbound).connected();
        let report = stats.take();
        let (inbound, outbound) = (&report[0], &report[1]);
        assert_eq!((inbound.direction.as_str(), inbound.connections), ("inbound", 1));
        assert_eq!((outbound.success, outbound.failure), (2, 1));
        let filled: Vec<_> = outbound.latency.iter().enumerate().filter(|(_, n)| **n > 0).collect();
        assert_eq!(filled, [(0, &1), (2, &1), (BOUNDS_MS.len(), &1)]);
        assert!(stats.take().is_empty());
    }

    #[test]
    fn who_is_quiet_is_still_there_until_nobody_counts() {
        let stats = Stats::default();
        let edge = Edge {
            service: "orders.shop".parse().unwrap(),
            flow: Flow::Outbound,
            peer: "spiffe://east.example/ns/shop/sa/orders".parse().ok(),
            site: "east".parse().ok(),
        };
        let figures = stats.of_edge(edge.clone());
        figures.ended(true, Duration::ZERO);
        let told = stats.take_edges();
        assert_eq!((told.len(), told[0].success, told[0].site.as_str()), (1, 1, "east"));
        assert_eq!(stats.take_edges()[0].success, 0, "quiet");
        stats.of_edge(edge).connected();
        drop(figures);
        assert_eq!(stats.take_edges()[0].connections, 1, "what was counted last is told");
        assert!(stats.take_edges().is_empty());
    }

    #[test]
    fn routes_count_attempts_and_have_an_end() {
        let stats = Stats::default();
        let route = |n: usize| Route { authority: "a.b:80".into(), route: n.to_string() };
        let kept: Vec<_> = (0..MAX_OTHERS + 9).map(|n| stats.of_route(route(n))).collect();
        for figures in &kept {
            figures.ended(false, Duration::ZERO);
            figures.repeated(2);
        }
        let told = stats.take_routes();
        assert_eq!(told.len(), MAX_OTHERS);
        assert!(told.iter().all(|stat| (stat.failure, stat.repeated_attempts) == (1, 2)));
        assert!(stats.take_routes().is_empty());
    }
}
