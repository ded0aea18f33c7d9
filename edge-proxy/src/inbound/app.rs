//! Connections to applications. Every way to one takes a [`Permit`].

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, Uri, Version, header::HOST, response::Parts,
    uri::PathAndQuery,
};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use mesh_core::{Endpoint, Permit, Reason};
use mesh_runtime::clock;
use mesh_tunnel::Stream;
use tokio::time::Instant;

use crate::{
    http2::{Client, ExchangeError, Lease, RecvBody, Upload},
    inner::{mux::StreamError, request},
    refusal::Refusal,
    worker::Worker,
};

/// How long an application may take to accept a connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Idle HTTP/1 connections kept per application.
const MAX_IDLE: usize = 256;
/// How long an HTTP/1 connection is kept idle.
const IDLE: Duration = Duration::from_secs(60);
/// How long an answered connection may take to be ready for the next request.
const READY_TIMEOUT: Duration = Duration::from_millis(100);
/// HTTP/2 connections per application.
const MAX_HTTP2: usize = 4;
/// Streams on the least used HTTP/2 connection from which another is opened.
const SPREAD_AT: usize = 100;
/// Header fields of one answer.
const MAX_HEADERS: usize = 128;
/// What HTTP/1 buffers per connection.
const MAX_BUFFER: usize = 64 << 10;

/// An application's answer on its way back.
pub struct Answer {
    /// Head of the response.
    pub head: Parts,
    /// Its body.
    pub body: AppBody,
    /// What is left of the request; must be driven on.
    pub upload: Option<Upload<CountedBody>>,
    /// The connection it came on.
    pub kept: Kept,
}

/// The connection of an answer.
pub enum Kept {
    /// To be given back once the answer has been read.
    Http1(SocketAddr, SendRequest<CountedBody>),
    /// A place on a shared one.
    Http2(#[allow(dead_code, reason = "counts the stream until dropped")] Lease),
}

/// HTTP/1 connections by application, and since when they have been idle.
type Idle = HashMap<SocketAddr, Vec<(Instant, SendRequest<CountedBody>)>>;

/// Connections to applications of one worker.
#[derive(Debug, Default)]
pub struct Apps {
    idle: Mutex<Idle>,
    http2: Mutex<HashMap<SocketAddr, Arc<tokio::sync::Mutex<Vec<Client>>>>>,
}

impl Apps {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection used last, which is the least likely to have been closed.
    fn take(&self, target: SocketAddr) -> Option<SendRequest<CountedBody>> {
        let mut idle = self.idle();
        let connections = idle.get_mut(&target)?;
        while let Some((_, connection)) = connections.pop() {
            if connection.is_ready() {
                return Some(connection);
            }
        }
        None
    }

    fn give(&self, target: SocketAddr, connection: SendRequest<CountedBody>) {
        let mut idle = self.idle();
        let connections = idle.entry(target).or_default();
        if connections.len() < MAX_IDLE {
            connections.push((clock::monotonic(), connection));
        }
    }

    fn shared(&self, target: SocketAddr) -> Arc<tokio::sync::Mutex<Vec<Client>>> {
        let mut http2 = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
        http2.entry(target).or_default().clone()
    }

    /// Closes what has been idle for long.
    pub fn sweep(&self) {
        self.idle().retain(|_, connections| {
            connections.retain(|(since, c)| since.elapsed() < IDLE && !c.is_closed());
            !connections.is_empty()
        });
        let mut http2 = self.http2.lock().unwrap_or_else(PoisonError::into_inner);
        http2.retain(|_, shared| {
            let Ok(mut clients) = shared.try_lock() else { return true };
            clients.retain(|client| client.is_usable() && client.idle_for() < IDLE);
            !clients.is_empty()
        });
    }
}

impl Kept {
    /// Keeps an HTTP/1 connection for the next request, if it can take one.
    pub fn give_back(self, worker: &Worker) {
        let Self::Http1(target, mut connection) = self else { return };
        if connection.is_ready() {
            return worker.apps.give(target, connection);
        }
        if connection.is_closed() {
            return;
        }
        // Its task has yet to see that the answer was read.
        let apps = worker.apps.clone();
        worker.shared.drain.spawn(async move {
            let ready = tokio::time::timeout(READY_TIMEOUT, connection.ready()).await;
            if matches!(ready, Ok(Ok(()))) {
                apps.give(target, connection);
            }
        });
    }
}

/// A connection for opaque bytes.
pub async fn dial(
    worker: &Worker,
    endpoint: &Endpoint,
    _permit: &Permit,
) -> Result<Stream, Refusal> {
    connect(worker, endpoint).await
}

async fn connect(worker: &Worker, endpoint: &Endpoint) -> Result<Stream, Refusal> {
    let dialled = tokio::time::timeout(DIAL_TIMEOUT, worker.shared.net.dial(endpoint.target)).await;
    match dialled {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(unreachable(endpoint, error)),
        Err(_) => Err(unreachable(endpoint, "no answer")),
    }
}

fn unreachable(endpoint: &Endpoint, error: impl std::fmt::Display) -> Refusal {
    let Endpoint { service, id, target, .. } = endpoint;
    let text = format!("service {service}, endpoint {id}: the application at {target}: {error}");
    Refusal::new(Reason::AppUnreachable, text)
}

fn broken(endpoint: &Endpoint, error: impl std::fmt::Display) -> Refusal {
    let Endpoint { service, id, .. } = endpoint;
    let text = format!("service {service}, endpoint {id}: the application's answer broke: {error}");
    Refusal::new(Reason::UpstreamReset, text)
}

/// Sends a request and waits for the head of the answer.
///
/// # Errors
///
/// `AppUnreachable` if the application has seen nothing of the request.
pub async fn send(
    worker: &Arc<Worker>,
    endpoint: &Endpoint,
    _permit: Permit,
    http2: bool,
    request: Request<CountedBody>,
) -> Result<Answer, Refusal> {
    if http2 {
        send_http2(worker, endpoint, request).await
    } else {
        send_http1(worker, endpoint, to_http1(request)).await
    }
}

/// The authority becomes `Host`, the target origin-form (RFC 9112 section
/// 3.2.1).
fn to_http1(mut request: Request<CountedBody>) -> Request<CountedBody> {
    let host = request.uri().authority().map(|authority| authority.as_str());
    if let Some(host) = host.and_then(|host| HeaderValue::from_str(host).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    let path = request.uri().path_and_query().cloned();
    // `OPTIONS *` travels as an empty path with the method (RFC 9113 section 8.3.1).
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    request
}

async fn send_http1(
    worker: &Arc<Worker>,
    endpoint: &Endpoint,
    mut request: Request<CountedBody>,
) -> Result<Answer, Refusal> {
    let target = endpoint.target;
    while let Some(mut connection) = worker.apps.take(target) {
        match connection.try_send_request(request).await {
            Ok(response) => return Ok(http1_answer(response, target, connection)),
            // It was closed while idle and nothing was written: the next one.
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(broken(endpoint, error.into_error())),
            },
        }
    }
    let stream = connect(worker, endpoint).await?;
    let (mut connection, task) = http1::Builder::new()
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(endpoint, error))?;
    worker.shared.drain.spawn_beside(async move {
        if let Err(error) = task.await {
            log::debug!(error:% = error; "connection to an application ended");
        }
    });
    let response = connection.send_request(request).await;
    let response = response.map_err(|error| broken(endpoint, error))?;
    Ok(http1_answer(response, target, connection))
}

fn http1_answer(
    response: Response<Incoming>,
    target: SocketAddr,
    connection: SendRequest<CountedBody>,
) -> Answer {
    let (head, body) = response.into_parts();
    let kept = Kept::Http1(target, connection);
    Answer { head, body: AppBody::Http1(body), upload: None, kept }
}

async fn send_http2(
    worker: &Arc<Worker>,
    endpoint: &Endpoint,
    mut request: Request<CountedBody>,
) -> Result<Answer, Refusal> {
    *request.version_mut() = Version::HTTP_2;
    // `:authority` says the same, and says it first.
    request.headers_mut().remove(HOST);
    let client = http2_client(worker, endpoint).await?;
    let lease = client.lease();
    let (head, body) = request.into_parts();
    let head = Request::from_parts(head, ());
    let is_connect = *head.method() == Method::CONNECT;
    if is_connect {
        return Err(Refusal::new(Reason::Unsupported, "CONNECT to an application"));
    }
    match client.exchange(head, body, None).await {
        Ok((response, upload)) => {
            let (head, stream) = response.into_parts();
            let upload = (!upload.is_done()).then_some(upload);
            let body = AppBody::Http2(RecvBody::new(stream));
            Ok(Answer { head, body, upload, kept: Kept::Http2(lease) })
        }
        Err((ExchangeError::NotProcessed(error), _)) => Err(unreachable(endpoint, error)),
        Err((error, _)) => Err(broken(endpoint, error)),
    }
}

/// A connection with room; opening is one at a time per application.
async fn http2_client(worker: &Arc<Worker>, endpoint: &Endpoint) -> Result<Client, Refusal> {
    let shared = worker.apps.shared(endpoint.target);
    let mut clients = shared.lock().await;
    clients.retain(Client::is_usable);
    let least = clients.iter().min_by_key(|client| client.streams()).cloned();
    let crowded = |client: &Client| client.streams() >= SPREAD_AT && clients.len() < MAX_HTTP2;
    if let Some(client) = least.filter(|client| !crowded(client)) {
        return Ok(client);
    }
    let stream = connect(worker, endpoint).await?;
    let begun = tokio::time::timeout(DIAL_TIMEOUT, Client::begin(stream, &worker.shared.drain));
    let late = |_| unreachable(endpoint, "it does not speak HTTP/2");
    let client = begun.await.map_err(late)?.map_err(|error| unreachable(endpoint, error))?;
    clients.push(client.clone());
    Ok(client)
}

/// The body of an application's answer.
#[derive(Debug)]
pub enum AppBody {
    /// Over HTTP/1.
    Http1(Incoming),
    /// Over HTTP/2.
    Http2(RecvBody),
}

impl Body for AppBody {
    type Data = Bytes;
    type Error = ();

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ()>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(|_| ()),
            Self::Http2(body) => Pin::new(body).poll_frame(cx).map_err(|_| ()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.is_end_stream(),
        }
    }
}

/// A caller's body, counted.
#[derive(Debug)]
pub struct CountedBody {
    body: request::RecvBody,
    count: Arc<AtomicU64>,
}

impl CountedBody {
    /// Nothing has been read yet.
    pub fn new(body: request::RecvBody) -> Self {
        Self { body, count: Arc::default() }
    }

    /// Bytes read so far.
    pub fn count(&self) -> Arc<AtomicU64> {
        self.count.clone()
    }
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.count.fetch_add(bytes, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
