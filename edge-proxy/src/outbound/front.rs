//! HTTP/1 and HTTP/2 towards clients.

use std::{convert::Infallible, future::Future, net::IpAddr, sync::Arc, time::Duration};

use http::{Method, Request, Response};
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::Upgraded,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::{Protocol, route::Destination};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{Stream, net::BoxFuture};

use super::{
    body::OutBody,
    opaque, request,
    sniff::{self, Speaks},
    target,
};
use crate::{
    http2::{CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_STREAMS, SEND_BUFFER, STREAM_WINDOW},
    metrics::Direction,
    prefixed::{Prefixed, UpgradedIo},
    record::Record,
    refusal::{Refusal, is_grpc},
    worker::Worker,
};

/// How long a client may take for a request head, waiting between two
/// requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// Header fields of one message.
const MAX_HEADERS: usize = 128;
/// A client that is silent this long with streams open is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// What HTTP/1 buffers per connection.
const MAX_BUFFER: usize = 64 << 10;
/// How long clients that may also speak something else take for their first
/// bytes; where a server speaks first, both sides wait for this.
pub const DETECT_PATIENCE: Duration = Duration::from_millis(100);

/// What the requests of a connection are for.
#[derive(Debug, Clone)]
pub enum Toward {
    /// Each names its service: a proxy's client.
    Named,
    /// All are for this one.
    Service(Destination),
}

/// Serves a connection that must be HTTP.
pub async fn serve(worker: &Arc<Worker>, toward: Toward, client: IpAddr, stream: Stream) {
    match sniff::http(stream, HEAD_TIMEOUT).await {
        Ok((speaks, stream)) => serve_as(worker, toward, client, speaks, stream).await,
        Err(error) => log::debug!(error:% = error; "client connection ended"),
    }
}

/// Serves a connection to one port by what that port speaks.
pub async fn serve_port(
    worker: &Arc<Worker>,
    destination: Destination,
    client: IpAddr,
    stream: Stream,
) {
    let record = || {
        let mut record = Record::new(worker, Direction::Outbound, "tcp");
        record.client = Some(client);
        record
    };
    match protocol(worker, &destination).await {
        Protocol::Tcp => opaque::carry(worker, &destination, stream, record()).await,
        Protocol::Http | Protocol::Grpc => {
            serve(worker, Toward::Service(destination), client, stream).await;
        }
        Protocol::Detect => match sniff::detect(stream, DETECT_PATIENCE).await {
            Ok((Speaks::Opaque, stream)) => {
                opaque::carry(worker, &destination, stream, record()).await;
            }
            Ok((speaks, stream)) => {
                serve_as(worker, Toward::Service(destination), client, speaks, stream).await;
            }
            Err(error) => log::debug!(error:% = error; "client connection ended"),
        },
    }
}

async fn protocol(worker: &Worker, destination: &Destination) -> Protocol {
    let snapshot = worker.shared.snapshot.want(&destination.service).await;
    let service = snapshot.and_then(|s| s.services.get(&destination.service).cloned());
    let port = service.as_ref().and_then(|service| service.port(destination.port.as_str()));
    port.map_or(Protocol::Detect, |port| port.protocol)
}

async fn serve_as(
    worker: &Arc<Worker>,
    toward: Toward,
    client: IpAddr,
    speaks: Speaks,
    stream: Stream,
) {
    let drain = worker.shared.drain.clone();
    let patience = worker.shared.config.drain_timeout;
    // Boxed: hyper moves it more than once.
    let service =
        service_fn(|request| Box::pin(answer(worker.clone(), toward.clone(), client, request)));
    let io = TokioIo::new(stream);
    let ended = if speaks == Speaks::Http2 {
        let connection = http2_server(&drain).serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = drain.draining() => {
                connection.as_mut().graceful_shutdown();
                finish(connection, patience, &drain).await
            }
        }
    } else {
        let connection = http1_server().serve_connection(io, service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = drain.draining() => {
                connection.as_mut().graceful_shutdown();
                finish(connection, patience, &drain).await
            }
        }
    };
    if let Err(error) = ended {
        log::debug!(error:% = error; "client connection ended");
    }
}

/// Lets what runs finish, up to the deadline of the drain.
async fn finish(
    connection: impl Future<Output = hyper::Result<()>>,
    patience: Duration,
    drain: &Drain,
) -> hyper::Result<()> {
    tokio::select! {
        ended = connection => ended,
        () = tokio::time::sleep(patience) => Ok(()),
        () = drain.stopping() => Ok(()),
    }
}

fn http1_server() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .half_close(true)
        // The application's own date passes.
        .auto_date_header(false);
    builder
}

fn http2_server(drain: &Drain) -> http2::Builder<OnDrain> {
    let mut builder = http2::Builder::new(OnDrain(drain.clone()));
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING_TIMEOUT)
        .keep_alive_timeout(PING_TIMEOUT)
        .enable_connect_protocol()
        .auto_date_header(false);
    builder
}

/// hyper's tasks belong to the drain like all others.
#[derive(Debug, Clone)]
pub struct OnDrain(pub Drain);

impl<F> Executor<F> for OnDrain
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        self.0.spawn(async move {
            task.await;
        });
    }
}

/// Answers one request in any case.
async fn answer(
    worker: Arc<Worker>,
    toward: Toward,
    client: IpAddr,
    request: Request<Incoming>,
) -> Result<Response<OutBody>, Infallible> {
    let speaks = if request.version() == http::Version::HTTP_2 { "http2" } else { "http1" };
    let mut record = Record::new(&worker, Direction::Outbound, speaks);
    record.client = Some(client);
    record.entry.method = Some(request.method().clone());
    record.entry.uri = Some(request.uri().clone());
    let grpc = is_grpc(request.headers());
    let destination = match destination(&worker, toward, &request) {
        Ok(destination) => destination,
        Err(refusal) => return Ok(request::refused(&refusal, grpc, record)),
    };
    if request.method() == Method::CONNECT {
        return Ok(tunnel(&worker, destination, client, request, record).await);
    }
    Ok(request::carry(&worker, destination, request, record).await)
}

fn destination(
    worker: &Worker,
    toward: Toward,
    request: &Request<Incoming>,
) -> Result<Destination, Refusal> {
    match toward {
        Toward::Service(destination) => Ok(destination),
        Toward::Named => {
            let snapshot = worker.shared.snapshot.load();
            let snapshot = snapshot.ok_or_else(super::dispatch::no_snapshot)?;
            target::named(request)?.resolve(&snapshot)
        }
    }
}

/// CONNECT: a byte stream to the named port. For a port that speaks HTTP the
/// requests inside are carried one by one.
async fn tunnel(
    worker: &Arc<Worker>,
    destination: Destination,
    client: IpAddr,
    request: Request<Incoming>,
    mut record: Record,
) -> Response<OutBody> {
    let drain = worker.shared.drain.clone();
    let worker = worker.clone();
    if protocol(&worker, &destination).await == Protocol::Tcp {
        record.entry.protocol = "tcp";
        let opened = match opaque::open(&worker, &destination, &mut record).await {
            Ok(opened) => opened,
            Err(refusal) => return request::refused(&refusal, false, record),
        };
        drain.spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => {
                    opaque::run(&worker, upgraded_stream(upgraded), opened, record).await
                }
                Err(error) => log::debug!(error:% = error; "client left after CONNECT"),
            }
        });
    } else {
        drain.spawn(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => {
                    inside(worker, destination, client, upgraded_stream(upgraded)).await
                }
                Err(error) => log::debug!(error:% = error; "client left after CONNECT"),
            }
        });
    }
    Response::new(OutBody::empty())
}

/// Requests inside a CONNECT; boxed, because one may hold another.
fn inside(
    worker: Arc<Worker>,
    destination: Destination,
    client: IpAddr,
    stream: Stream,
) -> BoxFuture<'static, ()> {
    Box::pin(async move { serve_port(&worker, destination, client, stream).await })
}

/// The client's connection itself where it can be had (HTTP/1), so that a
/// reset stays a reset.
fn upgraded_stream(upgraded: Upgraded) -> Stream {
    match upgraded.downcast::<TokioIo<Stream>>() {
        Ok(parts) if parts.read_buf.is_empty() => parts.io.into_inner(),
        Ok(parts) => Box::new(Prefixed::new(parts.read_buf, parts.io.into_inner())),
        Err(upgraded) => Box::new(UpgradedIo(TokioIo::new(upgraded))),
    }
}
