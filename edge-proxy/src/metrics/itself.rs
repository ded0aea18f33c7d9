//! What a proxy is worth at the moment: how long its certificate lasts, and
//! what it decides from. Read at each scrape.

use std::{fmt, sync::Arc};

use mesh_runtime::{clock, memory::limit};
use mesh_tunnel::Credentials;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, metrics::MetricType};

use super::traffic;
use crate::snapshot_cell::SnapshotCell;

/// Shows it; register it without a prefix.
#[derive(Debug)]
pub struct Itself {
    /// Presented.
    pub credentials: Arc<Credentials>,
    /// Decided from.
    pub snapshot: SnapshotCell,
}

impl Collector for Itself {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let labels = traffic::workload(&self.credentials);
        let mut gauge = |name: &str, help: &str, value: f64| {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_family(&labels)?.encode_gauge(&value)
        };
        if let Some(limit) = limit::kept() {
            let help = "Bytes that it may hold before it takes in nobody new";
            gauge("isthmus_proxy_memory_limit_bytes", help, limit as f64)?;
        }
        let now = clock::now_unix().as_secs_f64();
        if let Some(svid) = self.credentials.svid() {
            let end = svid.not_after.as_secs() as f64;
            let help = "End of the certificate, since the Unix epoch";
            gauge("identity_cert_expiration_timestamp_seconds", help, end)?;
            let help = "Seconds that the certificate is still good for";
            gauge("isthmus_proxy_svid_seconds_left", help, (end - now).max(0.0))?;
        }
        if let Some(snapshot) = self.snapshot.load() {
            let revision = snapshot.revision.n as f64;
            gauge("isthmus_proxy_snapshot_revision", "Of what is decided from", revision)?;
            let age = (now - self.snapshot.replaced().as_secs_f64()).max(0.0);
            let help = "Seconds since anything has changed in it";
            gauge("isthmus_proxy_snapshot_age_seconds", help, age)?;
        }
        Ok(())
    }
}
