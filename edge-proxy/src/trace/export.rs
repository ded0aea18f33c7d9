//! Batches of spans on their way to the collector.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tonic::transport::{Channel, Endpoint};

use super::{Span, otlp, zipkin};
use crate::{
    app::Shared,
    config::{Tracing, tracing::TracingProtocol},
    metrics::traffic,
};

/// Spans of one batch: OpenTelemetry's default.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// How long a collector may take for a batch.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Tries of one batch; meanwhile the queue fills, and then spans are dropped.
const TRIES: u32 = 3;
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the last batch may take when the process stops.
const LAST: Duration = Duration::from_millis(500);
/// Of a collector's answer.
const MAX_ANSWER: usize = 64 << 10;

/// Who tells, besides what the spans are of.
pub(super) struct Teller {
    /// `service.name`
    pub(super) service: String,
    /// `service.namespace`; may be empty.
    pub(super) namespace: String,
    /// The site; may be empty.
    pub(super) site: String,
    /// The machine; may be empty.
    pub(super) host: String,
}

impl Teller {
    fn of(shared: &Shared, tracing: &Tracing) -> Self {
        let own = shared.own.load();
        let mut workload = traffic::workload(&shared.credentials).into_iter();
        let mut next = || workload.next().map(|(_, value)| value).unwrap_or_default();
        let (namespace, account) = (next(), next());
        let account = if account.is_empty() { "edge-proxy".to_owned() } else { account };
        Self {
            service: tracing.service_name.clone().unwrap_or(account),
            namespace,
            site: own.site.as_ref().map_or_else(String::new, ToString::to_string),
            host: own.locality.host.to_string(),
        }
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer in time")]
    Late,
    #[error("answered {0}")]
    Answered(StatusCode),
    #[error("answered {0}")]
    Grpc(tonic::Status),
}

impl NotTaken {
    /// As OTLP's specification has it.
    fn may_be_repeated(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Unreachable(_) | Self::Late => true,
            Self::Answered(status) => matches!(status.as_u16(), 429 | 502 | 503 | 504),
            Self::Grpc(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::DataLoss
            ),
        }
    }
}

/// Exports until the process stops, and then once more.
pub(super) async fn run(shared: Shared, tracing: Tracing, mut spans: mpsc::Receiver<Span>) {
    let mut collector = Collector::new(&tracing);
    let mut failing = false;
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        let Some(first) = spans.recv().await else { return };
        batch.push(first);
        let deadline = Instant::now() + DELAY;
        while batch.len() < BATCH {
            tokio::select! {
                span = timeout_at(deadline, spans.recv()) => match span {
                    Ok(Some(span)) => batch.push(span),
                    _ => break,
                },
                // What is left goes at once: nobody waits for this task.
                () = shared.drain.draining() => {
                    while batch.len() < BATCH && let Ok(span) = spans.try_recv() {
                        batch.push(span);
                    }
                    break;
                }
            }
        }
        let teller = Teller::of(&shared, &tracing);
        let sending = send(&mut collector, &teller, &batch);
        let sent = match shared.drain.is_draining() {
            true => timeout(LAST, sending).await.unwrap_or(Err(NotTaken::Late)),
            false => sending.await,
        };
        let count = batch.len() as u64;
        match sent {
            Ok(()) => {
                shared.metrics.spans_exported.inc_by(count);
                failing = false;
            }
            Err(error) => {
                shared.metrics.spans_dropped.inc_by(count);
                if !failing {
                    log::warn!(endpoint:% = tracing.endpoint, error:% = error; "spans are lost");
                }
                failing = true;
            }
        }
    }
}

async fn send(collector: &mut Collector, teller: &Teller, batch: &[Span]) -> Result<(), NotTaken> {
    let mut tries = 0;
    loop {
        tries += 1;
        let taken = timeout(TIMEOUT, collector.take(teller, batch)).await;
        match taken.unwrap_or(Err(NotTaken::Late)) {
            Err(error) if tries < TRIES && error.may_be_repeated() => {
                tokio::time::sleep(PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Where spans go.
enum Collector {
    Grpc(Result<Channel, String>),
    Http { uri: Uri, zipkin: bool },
}

impl Collector {
    fn new(tracing: &Tracing) -> Self {
        let with_path = |usual: &'static str| {
            let mut parts = tracing.endpoint.clone().into_parts();
            if tracing.endpoint.path() == "/" {
                parts.path_and_query = Some(http::uri::PathAndQuery::from_static(usual));
            }
            Uri::from_parts(parts).unwrap_or_else(|_| tracing.endpoint.clone())
        };
        match tracing.protocol {
            TracingProtocol::OtlpGrpc => {
                let endpoint = Endpoint::new(tracing.endpoint.clone());
                Self::Grpc(endpoint.map(|e| e.connect_lazy()).map_err(|error| error.to_string()))
            }
            TracingProtocol::OtlpHttp => Self::Http { uri: with_path("/v1/traces"), zipkin: false },
            TracingProtocol::Zipkin => Self::Http { uri: with_path("/api/v2/spans"), zipkin: true },
        }
    }

    async fn take(&mut self, teller: &Teller, batch: &[Span]) -> Result<(), NotTaken> {
        match self {
            Self::Grpc(Ok(channel)) => {
                otlp::export(channel.clone(), teller, batch).await.map_err(NotTaken::Grpc)
            }
            Self::Grpc(Err(error)) => Err(NotTaken::Unreachable(error.clone())),
            Self::Http { uri, zipkin: false } => {
                post(uri, "application/x-protobuf", otlp::encoded(teller, batch)).await
            }
            Self::Http { uri, zipkin: true } => {
                post(uri, "application/json", zipkin::encoded(teller, batch)).await
            }
        }
    }
}

/// One request on a connection of its own: there is one a second at most.
async fn post(uri: &Uri, kind: &'static str, body: Vec<u8>) -> Result<(), NotTaken> {
    let unreachable = |error: &dyn std::fmt::Display| NotTaken::Unreachable(error.to_string());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let stream = TcpStream::connect(authority).await.map_err(|e| unreachable(&e))?;
    let (mut requests, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| unreachable(&e))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, authority)
        .header(header::CONTENT_TYPE, kind)
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| unreachable(&e))?;
    let answered = async {
        let answer = requests.send_request(request).await.map_err(|e| unreachable(&e))?;
        let status = answer.status();
        let rest = http_body_util::Limited::new(answer.into_body(), MAX_ANSWER);
        let _read = rest.collect().await;
        Ok(status)
    };
    tokio::pin!(connection, answered);
    let status = tokio::select! {
        status = &mut answered => status?,
        ended = &mut connection => match ended {
            Ok(()) => answered.await?,
            Err(error) => return Err(unreachable(&error)),
        },
    };
    if status.is_success() { Ok(()) } else { Err(NotTaken::Answered(status)) }
}
