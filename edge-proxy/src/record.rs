//! One request or opaque connection, told when it ends: one access-log line,
//! and the metrics.

use std::{net::IpAddr, sync::Arc, time::Duration};

use mesh_core::{Reason, ServiceName, message::RequestHead};
use mesh_runtime::clock;
use tokio::time::Instant;

use crate::{
    access_log::Entry,
    metrics::{Direction, RequestLabels, TargetLabels},
    stats::Flow,
    worker::Worker,
};

/// Filled in while a request or opaque connection runs; told when dropped, so
/// that clients who vanish are told of too.
#[derive(Debug)]
pub struct Record {
    /// What is told.
    pub entry: Entry,
    /// Where it came from, if it came from outside.
    pub client: Option<IpAddr>,
    worker: Arc<Worker>,
    started: Instant,
    answered: Option<Duration>,
    failure: Option<bool>,
    open: Option<TargetLabels>,
}

impl Record {
    /// It begins now.
    pub fn new(worker: &Arc<Worker>, direction: Direction, protocol: &'static str) -> Self {
        let entry = Entry {
            time: clock::now_unix(),
            direction,
            protocol,
            service: None,
            port: None,
            method: None,
            path: None,
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
        Self {
            entry,
            client: None,
            worker: worker.clone(),
            started: clock::monotonic(),
            answered: None,
            failure: None,
            open: None,
        }
    }

    /// What a request asks for; kept only if it will be written.
    pub fn asks(&mut self, head: &RequestHead) {
        if self.worker.shared.access_log.is_on() {
            self.entry.method = Some(head.method.clone());
            self.entry.path = Some(head.path().into());
        }
    }

    /// The head of a response is there.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.entry.status = status.as_u16();
        self.answered = Some(self.started.elapsed());
    }

    /// Whether the rule counts the answer as a failure of the service; 5xx is
    /// one where no rule says anything.
    pub fn classified(&mut self, failure: bool) {
        self.failure = Some(failure);
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
        self.worker.shared.metrics.tcp_open.get_or_create(&target).inc();
        if let Some(service) = &target.service {
            self.worker.shared.stats.of(service, self.flow()).connected();
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

    fn flow(&self) -> Flow {
        match self.entry.direction {
            Direction::Inbound => Flow::Inbound,
            Direction::Outbound => Flow::Outbound,
        }
    }

    /// Clients choose names: only those of the snapshot become labels.
    fn is_known(&self, name: &ServiceName) -> bool {
        self.worker
            .shared
            .snapshot
            .load()
            .is_some_and(|snapshot| snapshot.services.contains_key(name))
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.entry.duration = self.started.elapsed();
        let shared = &self.worker.shared;
        if let Some(open) = self.open.take() {
            shared.metrics.tcp_open.get_or_create(&open).dec();
        }
        let target = TargetLabels {
            direction: self.entry.direction,
            service: self.entry.service.clone(),
            port: self.entry.port.clone(),
            path: self.entry.path_kind,
        };
        let opaque = self.entry.protocol == "tcp";
        let labels = RequestLabels {
            target,
            protocol: if opaque { "tcp" } else { "http" },
            status_class: u8::try_from(self.entry.status / 100).unwrap_or_default(),
            reason: self.entry.reason,
        };
        let known = || self.entry.service.as_ref().is_some_and(|name| self.is_known(name));
        let handles = self.worker.resolved.of(shared, labels, self.flow(), known);
        handles.requests.inc();
        if let Some(latency) = self.answered {
            handles.latency_ms.observe(latency.as_secs_f64() * 1000.0);
        }
        if let Some(figures) = &handles.figures {
            // What federation is told.
            let failure = self.failure.unwrap_or(self.entry.status >= 500);
            let ok = !failure && self.entry.reason.is_none();
            figures.ended(ok, self.answered.unwrap_or(self.entry.duration));
        }
        if shared.access_log.is_on() {
            shared.access_log.put(self.entry.clone());
        }
    }
}
