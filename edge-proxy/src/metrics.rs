//! What a proxy counts (OpenMetrics, on the admin port).
//!
//! - [`authz`]: what policies have said.
//! - [`labels`]: what series are told apart by.
//! - [`series`]: families whose series come and go.
//! - [`itself`]: what is read at each scrape.
//! - [`traffic`]: what has Linkerd's names.

pub mod authz;
pub mod itself;
pub mod labels;
pub mod series;
pub mod traffic;

use std::{fmt, sync::Arc, time::Duration};

use mesh_core::{PortName, Reason, ServiceName};
use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::time::Instant;

use crate::gateway;
use authz::Authz;
use series::{Latency, Series};
use traffic::Traffic;

/// Upper bounds in milliseconds: fine where services usually are.
const LATENCY_BUCKETS_MS: [f64; 18] = [
    0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 500.0, 1000.0,
    5000.0, 30000.0,
];

/// Why a connection was cut that has not ended by itself.
const STOPPING: &str = "stopping";

/// Which way, seen from this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the mesh to the application.
    Inbound,
    /// From the application into the mesh.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// Whose request or connection is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TargetLabels {
    /// Which way.
    pub direction: Direction,
    /// `None` if the client named no service of the mesh.
    pub service: Option<ServiceName>,
    /// `None` if the client named no port of it.
    pub port: Option<PortName>,
    /// `direct`, `via gateway`, `reverse`, or empty before one was chosen.
    pub path: &'static str,
}

/// A [`TargetLabels`] with how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// Whose.
    pub target: TargetLabels,
    /// `http` or `tcp`.
    pub protocol: &'static str,
    /// 1 to 5, or 0 for opaque connections and vanished clients.
    pub status_class: u8,
    /// The code, if one of our proxies refused it or it failed.
    pub reason: Option<Reason>,
}

/// A stable reason code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReasonLabel {
    /// Which way.
    pub direction: Direction,
    /// The code.
    pub reason: &'static str,
}

impl EncodeLabelSet for TargetLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
        ("direction", self.direction.as_str()).encode(encoder.encode_label())?;
        ("service", name(self.service.as_ref().map(ServiceName::as_str)))
            .encode(encoder.encode_label())?;
        ("port", name(self.port.as_ref().map(PortName::as_str))).encode(encoder.encode_label())?;
        ("path", self.path).encode(encoder.encode_label())
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.target.encode(encoder)?;
        ("protocol", self.protocol).encode(encoder.encode_label())?;
        let class = ["", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let class = class.get(usize::from(self.status_class)).copied().unwrap_or_default();
        ("status_class", class).encode(encoder.encode_label())?;
        ("reason", self.reason.map_or("", Reason::code)).encode(encoder.encode_label())
    }
}

/// Which way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DirectionLabel(pub Direction);

impl EncodeLabelSet for DirectionLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("direction", self.0.as_str()).encode(encoder.encode_label())
    }
}

/// What came of asking endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProbeLabels {
    service: ServiceName,
    port: PortName,
    /// `ok`, `failed` or `skipped`; empty where it is no matter.
    result: &'static str,
}

impl EncodeLabelSet for ProbeLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("service", self.service.as_str()).encode(encoder.encode_label())?;
        ("port", self.port.as_str()).encode(encoder.encode_label())?;
        match self.result {
            "" => Ok(()),
            result => ("result", result).encode(encoder.encode_label()),
        }
    }
}

/// What takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Taken {
    /// Of a client or of the mesh.
    Connection,
    /// Of a neighbour of a gateway.
    Stream,
    /// Over HTTP.
    Request,
}

/// What was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TakenLabel(Taken);

impl EncodeLabelSet for TakenLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let what = match self.0 {
            Taken::Connection => "connection",
            Taken::Stream => "stream",
            Taken::Request => "request",
        };
        ("what", what).encode(encoder.encode_label())
    }
}

/// What connections turned out to speak.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpeaksLabel(&'static str);

impl EncodeLabelSet for SpeaksLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("protocol", self.0).encode(encoder.encode_label())
    }
}

/// How a wait for an endpoint that had just gone has ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeldLabel(&'static str);

impl EncodeLabelSet for HeldLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("result", self.0).encode(encoder.encode_label())
    }
}

/// A histogram of how long that took.
type Detections = Family<SpeaksLabel, Histogram, fn() -> Histogram>;

/// Counts something that is open while it lives.
#[derive(Debug)]
pub struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl EncodeLabelSet for ReasonLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        ("direction", self.direction.as_str()).encode(encoder.encode_label())?;
        ("reason", self.reason).encode(encoder.encode_label())
    }
}

/// What a proxy counts.
#[derive(Debug)]
pub struct Metrics {
    /// Requests, and opaque connections, that have ended.
    pub requests: Series<RequestLabels, Counter>,
    /// Until the head of the response.
    pub latency_ms: Series<TargetLabels, Latency>,
    /// Opaque connections open now.
    pub tcp_open: Series<TargetLabels, Gauge>,
    /// Connections of applications open now.
    pub clients_open: Gauge,
    /// Connections that we ended for what the other side did.
    pub cut: Family<ReasonLabel, Counter>,
    /// Endpoints asked how they are.
    pub probes: Family<ProbeLabels, Counter>,
    /// Those left alone for what they answered, once for each worker.
    pub probes_failing: Family<ProbeLabels, Gauge>,
    /// Until it was found out what a connection speaks.
    pub detection_ms: Detections,
    /// Inner sessions open now.
    pub inner_sessions: Family<DirectionLabel, Gauge>,
    /// Inner handshakes that failed.
    pub handshake_failures: Family<ReasonLabel, Counter>,
    /// Attempts after the first one.
    pub retries: Family<ReasonLabel, Counter>,
    /// Requests and connections that waited for an endpoint which had just gone.
    pub held: Family<HeldLabel, Counter>,
    /// Copies of requests that were not made.
    pub mirrors_skipped: Counter,
    /// What audited ports would have refused.
    pub would_deny: Family<ReasonLabel, Counter>,
    /// What was not taken in for want of memory.
    pub memory_refused: Family<TakenLabel, Counter>,
    /// Access-log lines that the writer had no room for.
    pub access_log_dropped: Counter,
    /// Spans that the collector has.
    pub spans_exported: Counter,
    /// Spans that nobody took.
    pub spans_dropped: Counter,
    /// Requests that statsd was not told of.
    pub statsd_dropped: Counter,
    /// Requests that watchers were not shown.
    pub tap_lost: Counter,
    /// Series that there was no room for.
    pub series_refused: Counter,
    /// What has Linkerd's names.
    pub traffic: Traffic,
    /// What policies have said.
    pub authz: Authz,
    /// What the role gateway counts.
    pub gateway: gateway::metrics::Metrics,
    /// Where all of this is registered.
    pub registry: Arc<Registry>,
}

impl Metrics {
    /// Registers everything, and what is read at each scrape.
    pub fn new(read: Vec<Box<dyn Collector>>) -> Self {
        let mut all = Registry::default();
        let latency: fn() -> Histogram = || Histogram::new(LATENCY_BUCKETS_MS);
        let refused = Counter::default();
        let mut metrics = Self {
            requests: Series::new(Counter::default, refused.clone()),
            latency_ms: Series::new(|| Latency::new(&LATENCY_BUCKETS_MS), refused.clone()),
            tcp_open: Series::new(Gauge::default, refused.clone()),
            clients_open: Gauge::default(),
            cut: Family::default(),
            probes: Family::default(),
            probes_failing: Family::default(),
            detection_ms: Detections::new_with_constructor(latency),
            inner_sessions: Family::default(),
            handshake_failures: Family::default(),
            retries: Family::default(),
            held: Family::default(),
            mirrors_skipped: Counter::default(),
            would_deny: Family::default(),
            memory_refused: Family::default(),
            access_log_dropped: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            statsd_dropped: Counter::default(),
            tap_lost: Counter::default(),
            traffic: Traffic::new(&refused),
            authz: Authz::new(&refused),
            series_refused: refused,
            gateway: gateway::metrics::Metrics::default(),
            registry: Arc::default(),
        };
        metrics.traffic.register(&mut all);
        metrics.authz.register(&mut all);
        for collector in read {
            all.register_collector(collector);
        }
        metrics.register(all.sub_registry_with_prefix("isthmus_proxy"));
        metrics.registry = Arc::new(all);
        metrics
    }

    fn register(&self, registry: &mut Registry) {
        let m = self;
        registry.register("request", "Requests and connections ended", m.requests.clone());
        let latency = "Milliseconds until the head of the response";
        registry.register("response_latency_ms", latency, m.latency_ms.clone());
        registry.register("tcp_open_connections", "Opaque connections open", m.tcp_open.clone());
        let clients = "Connections of applications open";
        registry.register("client_open_connections", clients, m.clients_open.clone());
        let cut = "Connections that were ended for what the other side did";
        registry.register("connections_cut", cut, m.cut.clone());
        registry.register("probe", "Endpoints asked how they are", m.probes.clone());
        let failing = "Endpoints left alone for what they answered, once for each worker";
        registry.register("probe_failing", failing, m.probes_failing.clone());
        let detection = "Milliseconds until it was found out what a connection speaks";
        registry.register("protocol_detection_ms", detection, m.detection_ms.clone());
        let sessions = "Inner sessions open";
        registry.register("inner_sessions", sessions, m.inner_sessions.clone());
        let handshakes = "Inner handshakes that failed";
        registry.register("handshake_failure", handshakes, m.handshake_failures.clone());
        registry.register("retry", "Attempts after the first one", m.retries.clone());
        let held = "Requests and connections held for an endpoint that had just gone";
        registry.register("held", held, m.held.clone());
        let skipped = "Copies of requests that were not made";
        registry.register("mirror_skipped", skipped, m.mirrors_skipped.clone());
        let audited = "Calls that audited ports would have refused";
        registry.register("would_deny", audited, m.would_deny.clone());
        let memory = "Connections, streams and requests refused for want of memory";
        registry.register("memory_refused", memory, m.memory_refused.clone());
        let dropped = "Access-log lines the writer had no room for";
        registry.register("access_log_dropped", dropped, m.access_log_dropped.clone());
        registry.register("spans_exported", "Spans the collector has", m.spans_exported.clone());
        registry.register("spans_dropped", "Spans that nobody took", m.spans_dropped.clone());
        let statsd = "Requests that statsd was not told of";
        registry.register("statsd_dropped", statsd, m.statsd_dropped.clone());
        registry.register("tap_lost", "Requests watchers were not shown", m.tap_lost.clone());
        let refused = "Series left out because there are too many";
        registry.register("series_refused", refused, m.series_refused.clone());
        m.gateway.register(registry);
    }

    /// Forgets series that nobody uses.
    pub fn sweep(&self, now: Instant) {
        self.requests.sweep(now);
        self.latency_ms.sweep(now);
        self.tcp_open.sweep(now);
        self.traffic.sweep(now);
        self.authz.sweep(now);
    }

    /// Counts an inner session while the result lives.
    pub fn inner_session(&self, direction: Direction) -> Open {
        let gauge = self.inner_sessions.get_or_create_owned(&DirectionLabel(direction));
        gauge.inc();
        Open(gauge)
    }

    /// Counts a connection that we end for what the other side does.
    pub fn connection_cut(&self, direction: Direction, reason: &'static str) {
        self.cut.get_or_create(&ReasonLabel { direction, reason }).inc();
    }

    /// Counts what is refused for want of memory.
    pub fn memory_refused(&self, what: Taken) {
        self.memory_refused.get_or_create(&TakenLabel(what)).inc();
    }

    /// Counts a connection that the end of this process cut.
    pub fn cut_by_stop(&self, direction: Direction) {
        self.connection_cut(direction, STOPPING);
    }

    /// How many there are.
    pub fn cut_stopping(&self) -> usize {
        let of = |direction| ReasonLabel { direction, reason: STOPPING };
        let all = [Direction::Inbound, Direction::Outbound].map(of);
        let all = all.iter().map(|label| self.cut.get_or_create(label).get()).sum::<u64>();
        usize::try_from(all).unwrap_or(usize::MAX)
    }

    /// Counts a failed inner handshake.
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        self.handshake_failures.get_or_create(&ReasonLabel { direction, reason }).inc();
    }

    /// Counts a connection whose protocol was looked for, by what was found.
    pub fn detected(&self, protocol: &'static str, after: Duration) {
        let found = self.detection_ms.get_or_create(&SpeaksLabel(protocol));
        found.observe(after.as_secs_f64() * 1000.0);
    }

    /// Counts an endpoint that was asked.
    pub fn probed(&self, service: &ServiceName, port: &PortName, result: &'static str) {
        let (service, port) = (service.clone(), port.clone());
        self.probes.get_or_create(&ProbeLabels { service, port, result }).inc();
    }

    /// An endpoint is left alone for what it answered, or no longer is.
    pub fn probe_changed(&self, service: &ServiceName, port: &PortName, failing: bool) {
        let label = ProbeLabels { service: service.clone(), port: port.clone(), result: "" };
        let gauge = self.probes_failing.get_or_create(&label);
        if failing {
            gauge.inc()
        } else {
            gauge.dec()
        };
    }

    /// Counts what waited for an endpoint: `resumed`, `late` or `refused`.
    pub fn held(&self, result: &'static str) {
        self.held.get_or_create(&HeldLabel(result)).inc();
    }

    /// Counts an attempt after the first one, by what failed before it.
    pub fn retried(&self, reason: Reason) {
        let label = ReasonLabel { direction: Direction::Outbound, reason: reason.code() };
        self.retries.get_or_create(&label).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_out_as_documented() {
        let metrics = Metrics::default();
        let target = TargetLabels {
            direction: Direction::Outbound,
            service: Some("orders.shop".parse().unwrap()),
            port: Some("http".parse().unwrap()),
            path: "direct",
        };
        let labels = RequestLabels {
            target: target.clone(),
            protocol: "http",
            status_class: 5,
            reason: Some(Reason::Timeout),
        };
        metrics.requests.of(&labels).inc();
        metrics.latency_ms.of(&target).observe(Duration::from_millis(3));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &metrics.registry).unwrap();
        let line = "isthmus_proxy_request_total{direction=\"outbound\",service=\"orders.shop\",\
                    port=\"http\",path=\"direct\",protocol=\"http\",status_class=\"5xx\",\
                    reason=\"timeout\"} 1";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("isthmus_proxy_response_latency_ms_bucket{le=\"3.0\""), "{text}");
    }
}
