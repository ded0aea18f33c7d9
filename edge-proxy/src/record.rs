//! One request or opaque connection, told when it ends: one access-log line,
//! and the metrics.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    Endpoint, Reason, ServiceName,
    message::{Fields, RequestHead},
    route::Destination,
};
use mesh_runtime::clock;
use prometheus_client::metrics::gauge::Gauge;
use tokio::time::Instant;

use crate::{
    access_log::{Asked, Entry},
    copy::Told,
    inner,
    metrics::{
        Direction, TargetLabels,
        authz::Decided,
        traffic::{self, OpenTcp},
    },
    outbound::answer::grpc_status,
    refusal::Refusal,
    resolved::Handles,
    stats::{Figures, Flow},
    trace::{SpanIds, passage::Passing},
    worker::Worker,
};

/// Filled in while a request or opaque connection runs; told when dropped, so
/// that clients who vanish are told of too.
#[derive(Debug)]
pub struct Record {
    /// What is told.
    pub entry: Entry,
    worker: Arc<Worker>,
    started: Instant,
    answered: Option<Duration>,
    open: Option<Open>,
    span: Option<SpanIds>,
    /// Dropped after what is told here.
    passing: Option<Passing>,
}

/// An opaque connection that is open.
#[derive(Debug)]
struct Open {
    gauge: Arc<Gauge>,
    tcp: OpenTcp,
    /// As long as it is there federation is told of the other end.
    _edge: Option<Arc<Figures>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

/// When a request has come, which may have waited since.
#[derive(Debug, Clone, Copy)]
pub struct Came {
    /// By the clock that goes on.
    pub at: Instant,
    time: Duration,
}

impl Came {
    /// Just now.
    pub fn now() -> Self {
        Self { at: clock::monotonic(), time: clock::now_unix() }
    }

    /// At another time.
    pub fn at(at: Instant) -> Self {
        Self { at, time: clock::now_unix().saturating_sub(at.elapsed()) }
    }
}

impl Record {
    /// It begins now.
    pub fn new(worker: &Arc<Worker>, direction: Direction, protocol: &'static str) -> Self {
        Self::since(Came::now(), worker, direction, protocol)
    }

    /// It has begun when the request came.
    pub fn since(
        came: Came,
        worker: &Arc<Worker>,
        direction: Direction,
        protocol: &'static str,
    ) -> Self {
        let entry = Entry {
            time: came.time,
            direction,
            protocol,
            service: None,
            port: None,
            client: None,
            asked: None,
            status: 0,
            received: 0,
            sent: 0,
            duration: Duration::ZERO,
            path_kind: "",
            endpoint: None,
            peer: None,
            route: None,
            grpc_status: None,
            failure: None,
            decided: None,
            reason: None,
            connection: None,
            attempts: 1,
        };
        let (started, worker) = (came.at, worker.clone());
        Self { entry, worker, started, answered: None, open: None, span: None, passing: None }
    }

    /// What a request asks for; kept only if somebody will read it. A request
    /// that is traced says from here on that it comes from this hop.
    pub fn asks(&mut self, head: &mut RequestHead) {
        let shared = &self.worker.shared;
        if let Some(tracer) = &shared.tracer {
            self.span = tracer.enter(&mut head.fields);
        }
        if shared.access_log.is_on() || self.span.is_some() || shared.tap.is_watched() {
            self.entry.asked = Some(Arc::new(Asked::of(head)));
        }
    }

    /// What a policy says to it; a connection, which may last, is counted now.
    pub fn decided(&mut self, decided: Decided) {
        self.entry.decided = Some(decided);
        let shared = &self.worker.shared;
        if self.entry.is_opaque()
            && let Some(counter) = shared.metrics.authz.of(shared, &self.entry)
        {
            counter.inc();
        }
    }

    /// What it goes to, before any rule.
    pub fn wants(&mut self, destination: &Destination) {
        self.entry.service = Some(destination.service.clone());
        self.entry.port = Some(destination.port.clone());
    }

    /// The head of a response is there.
    pub fn answered(&mut self, status: http::StatusCode) {
        self.entry.status = status.as_u16();
        self.answered = Some(self.started.elapsed());
    }

    /// Whether the rule counts the answer as a failure of the service; 5xx is
    /// one where no rule says anything.
    pub fn classified(&mut self, failure: bool) {
        self.entry.failure = Some(failure);
    }

    /// Where the next attempt goes.
    pub fn tries(&mut self, endpoint: &Arc<Endpoint>, attempts: usize) {
        self.entry.endpoint = Some(endpoint.clone());
        self.entry.attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
    }

    /// The session that carries the attempt.
    pub fn goes_by(&mut self, session: &inner::Session) {
        self.entry.path_kind = session.path_kind;
        self.entry.peer = Some(session.peer.id.clone());
        self.entry.connection = Some(session.connection.clone());
        // An attempt before this one has ended.
        self.passing = None;
        if let (Some(span), Some(tunnel)) = (self.span, &session.tunnel) {
            self.passing = Some(Passing::begin(tunnel, &session.connection, span));
        }
    }

    /// The fields of a head, or what follows the body: gRPC's status is in
    /// either.
    pub fn says(&mut self, fields: &Fields) {
        if let Some(status) = grpc_status(fields) {
            self.entry.grpc_status = Some(status);
        }
    }

    /// It was refused, or failed.
    pub fn failed(&mut self, reason: Reason) {
        self.entry.reason = Some(reason);
        if !self.entry.is_opaque() && self.entry.status == 0 {
            self.entry.status = reason.http_status();
        }
        if let Some(open) = &mut self.open {
            open.tcp.failed(reason);
        }
    }

    /// It was refused, as its client is told.
    pub fn refused(&mut self, refusal: &Refusal, grpc: bool) {
        self.failed(refusal.reason);
        if grpc {
            self.entry.grpc_status = Some(refusal.grpc_status());
        }
    }

    /// An opaque connection is open from now on; what it carries is counted in
    /// what is returned.
    pub fn opened(&mut self) -> Told {
        let shared = &self.worker.shared;
        let known = |name: &&ServiceName| traffic::is_known(shared, name);
        let service = self.entry.service.as_ref().filter(known).cloned();
        let labels = traffic::labels(shared, &self.entry, service.is_some());
        if let Some(service) = &service {
            shared.stats.of(service, Flow::of(&self.entry)).connected();
        }
        let edge = traffic::edge(shared, &self.entry).map(|edge| shared.stats.of_edge(edge));
        if let Some(edge) = &edge {
            edge.connected();
        }
        let gauge = shared.metrics.tcp_open.of(&TargetLabels {
            direction: self.entry.direction,
            service,
            port: self.entry.port.clone(),
            path: self.entry.path_kind,
        });
        gauge.inc();
        let (read, written, tcp) = match self.entry.direction {
            Direction::Inbound => {
                let tcp = shared.metrics.traffic.opened(&labels, "src");
                (tcp.read.clone(), tcp.written.clone(), tcp)
            }
            // What comes from the client goes to the other end.
            Direction::Outbound => {
                let tcp = shared.metrics.traffic.opened(&labels, "dst");
                (tcp.written.clone(), tcp.read.clone(), tcp)
            }
        };
        self.answered = Some(self.started.elapsed());
        self.open = Some(Open { gauge, tcp, _edge: edge });
        Told { forth: read, back: written }
    }

    fn count(&self, handles: &Handles) {
        handles.requests.inc();
        if let Some(latency) = self.answered {
            handles.latency_ms.observe(latency);
        }
        if let Some(figures) = &handles.figures {
            figures.ended(self.entry.is_success(), self.answered.unwrap_or(self.entry.duration));
        }
        if let Some(route) = &handles.route {
            route.ended(self.entry.is_success(), self.answered.unwrap_or(self.entry.duration));
            route.repeated(self.entry.attempts.saturating_sub(1).into());
        }
        if let Some(authz) = &handles.authz {
            authz.inc();
        }
        if let Some(edge) = &handles.edge {
            edge.ended_at_some_time(self.entry.is_success());
        }
        let Some(http) = &handles.http else { return };
        let (read, written) = match self.entry.direction {
            Direction::Inbound => (self.entry.received, self.entry.sent),
            Direction::Outbound => (self.entry.sent, self.entry.received),
        };
        // What was switched to another protocol was counted as it went.
        if self.open.is_none() {
            http.read.inc_by(read);
            http.written.inc_by(written);
        }
        http.requests.inc();
        let latency = self.answered.unwrap_or(self.entry.duration);
        if let Some((responses, latencies)) = &http.responses {
            responses.inc();
            latencies.observe(latency);
        }
        let Some(route) = &http.route else { return };
        route.requests.inc();
        if self.entry.endpoint.is_some() {
            route.attempts.inc_by(self.entry.attempts.into());
            route.last.inc();
            route.repeated.inc_by(self.entry.attempts.saturating_sub(1).into());
        }
        if let Some((responses, latencies)) = &route.responses {
            responses.inc();
            latencies.observe(latency);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.entry.duration = self.started.elapsed();
        let shared = &self.worker.shared;
        let now = self.started + self.entry.duration;
        self.worker.resolved.count(shared, &self.entry, now, |handles| self.count(handles));
        let latency = self.answered;
        if let (Some(tracer), Some(span)) = (&shared.tracer, self.span.take()) {
            tracer.put(span, &self.entry);
        }
        if let Some(statsd) = &shared.statsd {
            statsd.put(&self.entry, latency);
        }
        if shared.tap.is_watched() {
            shared.tap.show(shared, &self.entry, latency);
        }
        if shared.access_log.is_on() {
            shared.access_log.put(self.entry.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;
    use mesh_tunnel::{Credentials, RealNet, Trust};

    use super::*;
    use crate::{
        app::{App, Shared},
        config::{Config, Role},
        files::snapshot,
        snapshot_cell::Complete,
    };

    const SITE: &str = "site: west\ntrust_domain: west.example\nservices:\n  - name: \
                        orders.shop\n    ports: [{ name: http, port: 80 }]\n    endpoints: [{ id: \
                        a, port: http, target: 127.0.0.1:1, plaintext: true }]\n";

    #[tokio::test]
    async fn a_warm_request_is_counted_without_memory() {
        let credentials = Credentials::new(None, Trust::default());
        let shared = Shared::new(Config::given(Role::Node), Arc::new(RealNet), credentials);
        let app = App::new(shared.unwrap());
        let site = Arc::new(snapshot::parse(SITE, "site.yaml", &TrustBundles::new()).unwrap());
        app.shared.snapshot.store(site.clone(), Complete::All);
        let worker = Worker::new(&app, 0);
        let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
        let service: &ServiceName = &service;
        let endpoint = &site.services[service].endpoints[0];
        let mut head = RequestHead::new();
        let mut request = || {
            let mut record = Record::new(&worker, Direction::Outbound, "http1");
            record.asks(&mut head);
            record.entry.service = Some(service.clone());
            record.entry.port = Some(mesh_core::PortName::clone(&port));
            record.tries(endpoint, 1);
            record.answered(http::StatusCode::OK);
        };
        let cold = allocation_counter::measure(&mut request);
        let warm = allocation_counter::measure(|| (0..100).for_each(|_| request()));
        assert!(cold.count_total > 0);
        assert_eq!(warm.count_total, 0);
        let mut text = String::new();
        let registry = &app.shared.metrics.registry;
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let counted = text.lines().filter(|line| line.starts_with("response_total{"));
        assert_eq!(counted.map(|line| line.ends_with(" 101")).collect::<Vec<_>>(), [true]);
    }
}
