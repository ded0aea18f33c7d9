//! Spans of requests. A proxy takes part in the traces of its clients: where a
//! request says that it is traced, it goes on with a span of this hop, and the
//! span is exported once the request has ended.
//!
//! - [`context`]: how requests say it.
//! - [`passage`]: how gateways hear of it, and their spans.
//! - [`export`]: batches on their way to the collector.
//! - [`otlp`], [`zipkin`]: how collectors want them.

pub mod context;
mod export;
mod otlp;
pub mod passage;
mod zipkin;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use mesh_core::message::Fields;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use crate::{access_log::Entry, app::Shared, config::Tracing, metrics::Direction};
use context::Context;
use passage::Passed;

/// Spans that wait for the exporter: OpenTelemetry's default.
const QUEUE: usize = 2048;

/// The ids of a request's span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanIds {
    /// Of the whole trace.
    pub trace: [u8; 16],
    /// Of this hop.
    pub span: [u8; 8],
    /// Of whoever sent the request; `None` if the trace begins here.
    pub parent: Option<[u8; 8]>,
}

/// The span of a request that has ended.
#[derive(Debug)]
struct Span {
    ids: SpanIds,
    what: What,
}

#[derive(Debug)]
enum What {
    /// At a proxy.
    Request(Box<Entry>),
    /// At a gateway.
    Passed(Passed),
}

/// Takes spans; cheap to clone.
#[derive(Clone)]
pub struct Tracer {
    queue: mpsc::Sender<Span>,
    /// Until [`start`] takes it.
    spans: Arc<Mutex<Option<mpsc::Receiver<Span>>>>,
    sample: f64,
    dropped: Counter,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("sample", &self.sample).finish_non_exhaustive()
    }
}

impl Tracer {
    /// Nothing is exported before [`start`].
    pub fn new(tracing: &Tracing, dropped: Counter) -> Self {
        let (queue, spans) = mpsc::channel(QUEUE);
        let spans = Arc::new(Mutex::new(Some(spans)));
        Self { queue, spans, sample: tracing.sample, dropped }
    }

    /// Takes part in the trace of a request, whose fields say so afterwards;
    /// `None` if nobody wants its spans.
    pub fn enter(&self, fields: &mut Fields) -> Option<SpanIds> {
        let span = new_id();
        if let Some(context) = Context::read(fields) {
            if !context.is_sampled() {
                return None;
            }
            context.write(span, fields);
            return Some(SpanIds { trace: context.trace, span, parent: Some(context.span) });
        }
        if self.sample == 0.0 || rand::random::<f64>() >= self.sample {
            return None;
        }
        let trace = loop {
            let trace: [u8; 16] = rand::random();
            if trace != [0; 16] {
                break trace;
            }
        };
        Context::begin(trace).write(span, fields);
        Some(SpanIds { trace, span, parent: None })
    }

    /// Hands a span to the exporter; counts it as dropped if there is no room.
    pub fn put(&self, ids: SpanIds, entry: &Entry) {
        self.export(Span { ids, what: What::Request(Box::new(entry.clone())) });
    }

    fn export(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.dropped.inc();
        }
    }
}

fn new_id() -> [u8; 8] {
    loop {
        let id: [u8; 8] = rand::random();
        if id != [0; 8] {
            return id;
        }
    }
}

/// Starts the exporter, if spans are wanted. Call it inside the control
/// runtime.
pub fn start(shared: &Shared) {
    let (Some(tracer), Some(tracing)) = (&shared.tracer, &shared.config.tracing) else { return };
    let spans = tracer.spans.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(spans) = spans else { return };
    shared.drain.spawn_beside(export::run(shared.clone(), tracing.clone(), spans));
}

/// What is told of a span besides its ids and times.
struct Told<'a> {
    /// Of low cardinality.
    name: String,
    /// Whether this hop was called, or calls.
    server: bool,
    tags: Vec<(&'static str, Tag<'a>)>,
    error: Option<&'static str>,
}

/// A value of a tag.
enum Tag<'a> {
    Text(&'a str),
    Number(i64),
}

impl Span {
    fn began_ns(&self) -> u64 {
        let began = match &self.what {
            What::Request(entry) => entry.time,
            What::Passed(passed) => passed.time,
        };
        u64::try_from(began.as_nanos()).unwrap_or(u64::MAX)
    }

    fn ended_ns(&self) -> u64 {
        let lasted = match &self.what {
            What::Request(entry) => entry.duration,
            What::Passed(passed) => passed.duration,
        };
        let lasted = u64::try_from(lasted.as_nanos()).unwrap_or(u64::MAX);
        self.began_ns().saturating_add(lasted)
    }

    /// By the names of OpenTelemetry's semantic conventions.
    fn told(&self) -> Told<'_> {
        let mut told = match &self.what {
            What::Request(entry) => told(entry),
            What::Passed(passed) => passed.told(),
        };
        told.tags.retain(|(_, tag)| !matches!(tag, Tag::Text("")));
        told
    }
}

fn told(entry: &Entry) -> Told<'_> {
    let mut tags = vec![("direction", Tag::Text(entry.direction.as_str()))];
    let mut name = entry.protocol.to_owned();
    if let Some(asked) = &entry.asked {
        name = asked.method.as_str().to_owned();
        tags.push(("http.request.method", Tag::Text(asked.method.as_str())));
        tags.push(("url.scheme", Tag::Text("http")));
        tags.push(("url.path", Tag::Text(&asked.path)));
        tags.push(("server.address", Tag::Text(&asked.authority)));
        tags.push(("user_agent.original", Tag::Text(&asked.user_agent)));
    }
    tags.push(("network.protocol.version", Tag::Text(version(entry.protocol))));
    if let Some(route) = &entry.route {
        name = format!("{name} {route}");
        tags.push(("http.route", Tag::Text(route)));
    }
    if entry.status != 0 {
        tags.push(("http.response.status_code", Tag::Number(entry.status.into())));
    }
    if let Some(status) = entry.grpc_status {
        tags.push(("rpc.system", Tag::Text("grpc")));
        tags.push(("rpc.grpc.status_code", Tag::Number(status.into())));
    }
    if let Some(service) = &entry.service {
        tags.push(("isthmus.service", Tag::Text(service.as_str())));
    }
    if let Some(endpoint) = &entry.endpoint {
        tags.push(("isthmus.endpoint", Tag::Text(endpoint.id.as_str())));
        tags.push(("isthmus.site", Tag::Text(endpoint.site.as_str())));
    }
    if let Some(peer) = &entry.peer {
        tags.push(("isthmus.peer", Tag::Text(peer.as_str())));
    }
    if let Some(connection) = &entry.connection {
        tags.push(("isthmus.connection", Tag::Text(connection)));
    }
    let failed = (!entry.is_success()).then_some("");
    let error = entry.reason.map(mesh_core::Reason::code).or(failed);
    if let Some(code) = error.filter(|code| !code.is_empty()) {
        tags.push(("error.type", Tag::Text(code)));
    }
    Told { name, server: entry.direction == Direction::Inbound, tags, error }
}

fn version(protocol: &str) -> &'static str {
    match protocol {
        "http1" => "1.1",
        "http2" => "2",
        _ => "",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
