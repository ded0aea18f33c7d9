//! One request or opaque connection, told when it ends: one access-log line,
//! and the metrics.

use std::{net::IpAddr, time::Duration};

use mesh_core::{Reason, ServiceName};
use mesh_runtime::clock;
use tokio::time::Instant;

use crate::{
    access_log::Entry,
    app::Shared,
    metrics::{Direction, RequestLabels, TargetLabels},
    stats::Flow,
};

/// Filled in while a request or opaque connection runs; told when dropped, so
/// that clients who vanish are told of too.
#[derive(Debug)]
pub struct Record {
    /// What is told.
    pub entry: Entry,
    /// Where it came from, if it came from outside.
    pub client: Option<IpAddr>,
    shared: Shared,
    started: Instant,
    answered: Option<Duration>,
    open: Option<TargetLabels>,
}

impl Record {
    /// It begins now.
    pub fn new(shared: &Shared, direction: Direction, protocol: &'static str) -> Self {
        let entry = Entry {
            time: clock::now_unix(),
            direction,
            protocol,
            service: None,
            port: None,
            method: None,
            uri: None,
            status: 0,
            received: 0,
            sent: 0,
            duration: Duration::ZERO,
            path_kind: "",
            endpoint: None,
            site: None,
            peer: None,
            reason: None,
            connection: None,
            attempts: 1,
        };
        let started = clock::monotonic();
        Self { entry, client: None, shared: shared.clone(), started, answered: None, open: None }
    }

    /// The head of a response is there.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.entry.status = status.as_u16();
        self.answered = Some(self.started.elapsed());
    }

    /// It was refused, or failed.
    pub fn failed(&mut self, reason: Reason) {
        self.entry.reason = Some(reason);
        if self.entry.protocol != "tcp" && self.entry.status == 0 {
            self.entry.status = reason.http_status();
        }
    }

    /// An opaque connection is open from now on.
    pub fn opened(&mut self) {
        let target = self.target();
        self.shared.metrics.tcp_open.get_or_create(&target).inc();
        if let Some(service) = &target.service {
            self.shared.stats.of(service, self.flow()).connected();
        }
        self.answered = Some(self.started.elapsed());
        self.open = Some(target);
    }

    fn target(&self) -> TargetLabels {
        TargetLabels {
            direction: self.entry.direction,
            service: self.entry.service.clone().filter(|name| self.is_known(name)),
            port: self.entry.port.clone(),
            path: self.entry.path_kind,
        }
    }

    /// What federation is told: a failure is what a client cannot mend.
    fn report(&self, service: &ServiceName) {
        let ok = self.entry.status < 500 && self.entry.reason.is_none();
        let latency = self.answered.unwrap_or(self.entry.duration);
        self.shared.stats.of(service, self.flow()).ended(ok, latency);
    }

    fn flow(&self) -> Flow {
        match self.entry.direction {
            Direction::Inbound => Flow::Inbound,
            Direction::Outbound => Flow::Outbound,
        }
    }

    /// Clients choose names: only those of the snapshot become labels.
    fn is_known(&self, name: &ServiceName) -> bool {
        self.shared.snapshot.load().is_some_and(|snapshot| snapshot.services.contains_key(name))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.entry.duration = self.started.elapsed();
        let metrics = &self.shared.metrics;
        if let Some(open) = self.open.take() {
            metrics.tcp_open.get_or_create(&open).dec();
        }
        let target = self.target();
        if let Some(service) = &target.service {
            self.report(service);
        }
        if let Some(latency) = self.answered {
            metrics.latency_ms.get_or_create(&target).observe(latency.as_secs_f64() * 1000.0);
        }
        let opaque = self.entry.protocol == "tcp";
        let labels = RequestLabels {
            target,
            protocol: if opaque { "tcp" } else { "http" },
            status_class: u8::try_from(self.entry.status / 100).unwrap_or_default(),
            reason: self.entry.reason,
        };
        metrics.requests.get_or_create(&labels).inc();
        if self.shared.access_log.is_on() {
            self.shared.access_log.put(self.entry.clone());
        }
    }
}
