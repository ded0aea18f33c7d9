//! HTTP/1 and HTTP/2 towards clients.
//!
//! - [`http1`]: connections that carry one request after the other.
//! - [`http2`]: connections that carry many at once.
//! - [`ending`]: how long a connection may go on.

pub mod ending;
pub mod http1;
pub mod http2;

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;
use mesh_core::{
    Reason,
    carriage::Carriage,
    message::{RequestHead, Scheme},
    route::Destination,
};
use mesh_tunnel::{Stream, net::BoxFuture};

use super::{
    body::ClientBody,
    dtab, opaque, port,
    request::{self, Client, Outcome},
    sniff::{PREFACE, Speaks},
    target, tls,
};
use crate::{
    config::{Errors, Manner},
    inbound::door,
    metrics::Direction,
    prefixed::Prefixed,
    record::Record,
    refusal::Refusal,
    scratch::Scratch,
    worker::Worker,
};

/// How long a client may take for a request head, waiting between two
/// requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// What the requests of a connection are for.
#[derive(Debug, Clone)]
pub enum Toward {
    /// Each names its service: a proxy's client.
    Named,
    /// All are for this one.
    Service(Destination, Manner),
    /// The same, of clients that have said it in TLS.
    Decrypted(Destination, Manner),
    /// The same, of clients that are not of the mesh to an own application.
    Own(Destination),
}

impl Toward {
    /// Where a request is for, which is put in the form that rules see.
    fn destination(&self, worker: &Worker, head: &mut RequestHead) -> Result<Destination, Refusal> {
        match self {
            Self::Service(destination, manner) | Self::Decrypted(destination, manner) => {
                manner.apply(head)?;
                Ok(destination.clone())
            }
            Self::Own(destination) => Ok(destination.clone()),
            Self::Named => {
                let snapshot = worker.shared.snapshot.load();
                let snapshot = snapshot.ok_or_else(super::dispatch::no_snapshot)?;
                let allowed = &worker.shared.config.dtab_overrides;
                match dtab::destination(head, allowed, &snapshot)? {
                    Some(instead) => Ok(instead),
                    None => target::resolve(head, &snapshot),
                }
            }
        }
    }

    fn manner(&self) -> Manner {
        match self {
            Self::Service(_, manner) | Self::Decrypted(_, manner) => *manner,
            Self::Named | Self::Own(_) => Manner::default(),
        }
    }

    /// What its clients are told of a refusal.
    fn told(&self, refusal: &Refusal, grpc: bool) -> Response<Bytes> {
        match self.manner().errors {
            Errors::Full => refusal.response(grpc),
            Errors::Brief => refusal.brief().response(grpc),
        }
    }

    fn direction(&self) -> Direction {
        match self {
            Self::Named | Self::Service(..) | Self::Decrypted(..) => Direction::Outbound,
            Self::Own(_) => Direction::Inbound,
        }
    }

    /// Whether bytes may be asked for with CONNECT.
    fn may_connect(&self) -> Result<(), Refusal> {
        match self {
            Self::Named => Ok(()),
            // Whoever asks is no client of a proxy, and this is none for them.
            Self::Service(..) | Self::Decrypted(..) | Self::Own(_) => {
                Err(Refusal::new(Reason::Unsupported, "CONNECT is for the HTTP proxy listener"))
            }
        }
    }

    /// Carries one request up to the head of its answer.
    async fn carry(
        &self,
        worker: &Arc<Worker>,
        destination: &Destination,
        scratch: &mut Scratch,
        body: ClientBody,
        client: Client<'_>,
        record: &mut Record,
    ) -> Result<Outcome, Refusal> {
        let client = Client { forwarded: self.manner().forwarded, ..client };
        match self {
            Self::Named | Self::Service(..) => {
                request::carry(worker, destination, scratch, body, client, record).await
            }
            Self::Decrypted(..) => {
                // HTTP/1 does not say it (RFC 9112 section 3.3).
                scratch.head.scheme = Scheme::Https;
                request::carry(worker, destination, scratch, body, client, record).await
            }
            Self::Own(_) => door::carry(worker, destination, scratch, body, client, record).await,
        }
    }
}

/// Whether a request may begin, at its turn.
fn may_begin(
    worker: &Worker,
    destination: &Destination,
    turn: Result<(), Refusal>,
    record: &mut Record,
) -> Result<(), Refusal> {
    record.wants(destination);
    if worker.shared.drain.is_draining() {
        let text = "this proxy is going away; open a new connection";
        return Err(Refusal::new(Reason::Draining, text));
    }
    worker.shared.check_memory()?;
    turn
}

/// Serves a connection that must be HTTP.
pub async fn serve(worker: &Arc<Worker>, toward: Toward, client: IpAddr, stream: Stream) {
    let conn = http1::Conn::new(worker, stream);
    let begins = std::future::poll_fn(|cx| conn.lock().poll_begins_with(cx, PREFACE));
    match tokio::time::timeout(HEAD_TIMEOUT, begins).await {
        Ok(Ok(false)) => http1::serve(worker, &toward, client, conn).await,
        Ok(Ok(true)) => {
            if let Some(stream) = conn.into_stream() {
                http2::serve(worker, toward, client, stream).await;
            }
        }
        Ok(Err(error)) => log::debug!(error:% = error; "client connection ended"),
        Err(_) => {}
    }
}

/// Serves a connection to one port by what that port speaks.
pub async fn serve_port(
    worker: &Arc<Worker>,
    (destination, manner): (Destination, Manner),
    client: IpAddr,
    stream: Stream,
) {
    serve_toward(worker, destination, |to| Toward::Service(to, manner), client, stream).await;
}

/// The same of one that came in TLS.
pub async fn serve_decrypted(
    worker: &Arc<Worker>,
    (destination, manner): (Destination, Manner),
    client: IpAddr,
    stream: Stream,
) {
    serve_toward(worker, destination, |to| Toward::Decrypted(to, manner), client, stream).await;
}

async fn serve_toward(
    worker: &Arc<Worker>,
    destination: Destination,
    toward: impl FnOnce(Destination) -> Toward,
    client: IpAddr,
    stream: Stream,
) {
    let record = || {
        let mut record = Record::new(worker, Direction::Outbound, "tcp");
        record.entry.client = Some(client);
        record
    };
    match port::carriage(worker, &destination).await {
        Carriage::Opaque => opaque::carry(worker, &destination, stream, record()).await,
        Carriage::Tls => tls::carry(worker, &destination, stream, record()).await,
        Carriage::Http => {
            serve(worker, toward(destination), client, stream).await;
        }
        Carriage::Detect => match port::detect(worker, stream).await {
            Ok((Speaks::Opaque, stream)) => {
                opaque::carry(worker, &destination, stream, record()).await;
            }
            Ok((Speaks::Tls, stream)) => {
                tls::carry_detected(worker, &destination, stream, record()).await;
            }
            Ok((_, stream)) => serve(worker, toward(destination), client, stream).await,
            Err(error) => log::debug!(error:% = error; "client connection ended"),
        },
    }
}

/// Requests inside a CONNECT; boxed, because one may hold another.
fn inside(
    worker: Arc<Worker>,
    destination: Destination,
    client: IpAddr,
    stream: Stream,
) -> BoxFuture<'static, ()> {
    let to = (destination, Manner::default());
    Box::pin(async move { serve_port(&worker, to, client, stream).await })
}

/// Puts back what was read of a connection.
fn with_read(stream: Stream, read: Vec<u8>) -> Stream {
    if read.is_empty() { stream } else { Box::new(Prefixed::new(read.into(), stream)) }
}
