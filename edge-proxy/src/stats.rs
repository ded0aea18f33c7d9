//! What federation is told of the traffic: per service and direction, since
//! the last report.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_api::v1::ServiceStat;
use mesh_core::ServiceName;

use crate::{access_log::Entry, metrics::Direction};

/// Upper bounds of the latency buckets, in milliseconds; one more counts the
/// rest. All proxies use the same, so that federation can add them up.
pub const BOUNDS_MS: [f64; 18] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0,
    5000.0, 30000.0,
];
/// Services and directions that are counted; more are left out of the report.
const MAX_SERVICES: usize = 4096;

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

/// Shared; clones are the same figures.
#[derive(Debug, Clone, Default)]
pub struct Stats(Arc<Mutex<All>>);

type All = HashMap<(ServiceName, Flow), Arc<Figures>>;

/// Figures of one service and direction. Keep the handle: finding it takes a
/// lock, counting does not.
#[derive(Debug, Default)]
pub struct Figures {
    success: AtomicU64,
    failure: AtomicU64,
    connections: AtomicU64,
    latency: [AtomicU64; BOUNDS_MS.len() + 1],
}

impl Figures {
    /// A request, or an opaque connection, has ended. `latency` is the time
    /// until the head of the response.
    pub fn ended(&self, ok: bool, latency: Duration) {
        let counter = if ok { &self.success } else { &self.failure };
        counter.fetch_add(1, Ordering::Relaxed);
        let ms = latency.as_secs_f64() * 1000.0;
        let bucket = BOUNDS_MS.partition_point(|bound| *bound < ms);
        if let Some(count) = self.latency.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An opaque connection has been opened.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self, service: &ServiceName, flow: Flow) -> ServiceStat {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        ServiceStat {
            service: service.to_string(),
            direction: flow.as_str().to_owned(),
            success: take(&self.success),
            failure: take(&self.failure),
            connections: take(&self.connections),
            latency: self.latency.iter().map(take).collect(),
            bounds_ms: BOUNDS_MS.to_vec(),
        }
    }
}

impl Stats {
    /// The figures of one service and direction.
    pub fn of(&self, service: &ServiceName, flow: Flow) -> Arc<Figures> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.clone(), flow);
        if let Some(figures) = all.get(&key) {
            return figures.clone();
        }
        let figures = Arc::new(Figures::default());
        if all.len() < MAX_SERVICES {
            all.insert(key, figures.clone());
        }
        figures
    }

    /// Everything counted since the last call; services without traffic are
    /// left out.
    pub fn take(&self) -> Vec<ServiceStat> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stats: Vec<_> =
            all.iter().map(|((service, flow), figures)| figures.take(service, *flow)).collect();
        stats.retain(|stat| stat.success + stat.failure + stat.connections > 0);
        stats.sort_by(|a, b| (&a.service, &a.direction).cmp(&(&b.service, &b.direction)));
        stats
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
}
