//! What the controller counts.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use mesh_api::v1::RegistryError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Clones share them.
#[derive(Clone)]
pub(super) struct Figures {
    lag: Histogram,
    changes: Counter<u64, AtomicU64>,
    refused: Family<Reason, Counter<u64, AtomicU64>>,
    counts: Arc<[(Gauge, &'static str)]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

impl Figures {
    pub(super) fn new() -> Self {
        let bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let counts = ["pods", "services", "endpoint_slices"].map(|name| (Gauge::default(), name));
        Self {
            lag: Histogram::new(bounds),
            changes: Counter::default(),
            refused: Family::default(),
            counts: counts.into(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "From a change of the cluster to federation having it durable";
        registry.register_with_unit("lag", help, Unit::Seconds, self.lag.clone());
        registry.register("pod_changes", "Pods told to federation", self.changes.clone());
        let help = "What federation refused, by reason";
        registry.register("registrations_refused", help, self.refused.clone());
        for (gauge, name) in &*self.counts {
            registry.register(*name, "Objects that are followed", gauge.clone());
        }
    }

    pub(super) fn told(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }

    pub(super) fn changes(&self, pods: usize) {
        self.changes.inc_by(pods as u64);
    }

    pub(super) fn refused(&self, error: RegistryError) {
        let reason = error.as_str_name().trim_start_matches("REGISTRY_ERROR_");
        let reason = reason.to_ascii_lowercase();
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(super) fn counts(&self, counts: (usize, usize, usize)) {
        let counts = [counts.0, counts.1, counts.2];
        for ((gauge, _), count) in self.counts.iter().zip(counts) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
