//! What the injector counts.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// A review takes less than a millisecond, unless the namespace has to be asked
/// for.
const BUCKETS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// Reviews. Clones share the figures.
#[derive(Debug, Clone)]
pub(super) struct Admissions {
    total: Family<Labels, Counter<u64, AtomicU64>>,
    seconds: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    outcome: &'static str,
    reason: &'static str,
}

/// What is kept in the Secret. Clones share the figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Certificates {
    leaf_left: Gauge,
    ca_left: Gauge,
}

/// Of `inject.yaml`. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    refused: Gauge,
}

impl File {
    /// Whether what is in the file now is in force.
    pub(super) fn counts(&self, does: bool) {
        self.refused.set(i64::from(!does));
    }
}

impl Admissions {
    pub(super) fn new() -> Self {
        Self { total: Family::default(), seconds: Histogram::new(BUCKETS) }
    }

    pub(super) fn count(&self, outcome: &'static str, reason: &'static str) {
        self.total.get_or_create(&Labels { outcome, reason }).inc();
    }

    pub(super) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }
}

impl Certificates {
    /// In seconds.
    pub(super) fn left(&self, (leaf, ca): (i64, i64)) {
        self.leaf_left.set(leaf);
        self.ca_left.set(ca);
    }
}

pub(super) fn register(
    registry: &mut Registry,
    admissions: &Admissions,
    certificates: &Certificates,
    file: &File,
) {
    let registry = registry.sub_registry_with_prefix("isthmus_injector");
    let help = "Pods looked at, by what became of them and why";
    registry.register("admissions", help, admissions.total.clone());
    let help = "Time that a review took";
    registry.register_with_unit(
        "admission_duration",
        help,
        Unit::Seconds,
        admissions.seconds.clone(),
    );
    let help = "1 while inject.yaml makes no sense and what it said before holds";
    registry.register("settings_refused", help, file.refused.clone());
    let left = [
        ("certificate_left", "Life left of the certificate", &certificates.leaf_left),
        ("ca_left", "Life left of the CA that signs it", &certificates.ca_left),
    ];
    for (name, help, gauge) in left {
        registry.register_with_unit(name, help, Unit::Seconds, gauge.clone());
    }
}
