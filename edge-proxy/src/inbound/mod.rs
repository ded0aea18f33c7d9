//! From the mesh to the application. In reading order:
//! - this page: accepting, inner TLS, the session of one caller.
//! - [`request`]: one stream: which own endpoint, whether the caller may, and
//!   the answer.
//! - [`limits`]: what a service allows its callers.
//! - [`app`]: connections to applications.

pub mod app;
pub mod limits;
pub mod request;

use std::{future::poll_fn, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::server::Connection;
use http::HeaderValue;
use mesh_core::{Allowed, PeerIdentity, identity::Side};
use mesh_tunnel::{Stream, net::Listener, tls};
use rustls::pki_types::CertificateDer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::{
    http2::{CONNECTION_WINDOW, MAX_HEADER_LIST, MAX_STREAMS, Probing, SEND_BUFFER, STREAM_WINDOW},
    inner::{HANDSHAKE_TIMEOUT, until_end},
    metrics::Direction,
    worker::Worker,
};

/// Handshakes under way per worker; more are closed unanswered, so that a
/// flood of them leaves sessions alone.
pub const MAX_HALF_OPEN: usize = 256;
/// Connections of the mesh per worker; more wait to be accepted.
const MAX_SESSIONS: usize = 16_384;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a cut session may take to tell its peer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How a caller's bytes reached this proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A TCP connection from this address.
    Tcp(SocketAddr),
    /// A stream that a gateway opened in a tunnel that this proxy dialled.
    Reverse {
        /// `<site>/<gateway>`.
        gateway: String,
        /// Joins the log lines of every hop.
        connection_id: String,
    },
}

impl Via {
    fn describe(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "direct",
            Self::Reverse { .. } => "reverse",
        }
    }
}

/// A verified caller and its session.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub peer: PeerIdentity,
    /// The same for applications.
    pub client_id: HeaderValue,
    /// `direct` or `reverse`.
    pub path_kind: &'static str,
    /// Joins log lines, if the path has told.
    pub connection: Option<Arc<str>>,
    chain: Vec<CertificateDer<'static>>,
}

/// Accepts until the process drains.
pub async fn accept(worker: Arc<Worker>, listener: Box<dyn Listener>) {
    let places = Arc::new(Semaphore::new(MAX_SESSIONS));
    loop {
        let accepted = tokio::select! {
            accepted = next(&*listener, &places) => accepted,
            () = worker.shared.drain.draining() => return,
        };
        match accepted {
            Ok((stream, from, place)) => {
                let task = serve_stream(worker.clone(), stream, Via::Tcp(from));
                worker.shared.drain.spawn(async move {
                    task.await;
                    drop(place);
                });
            }
            Err(error) => {
                log::warn!(error:% = error; "cannot accept connections from the mesh");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next(
    listener: &dyn Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(Stream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, from) = listener.accept().await?;
    Ok((stream, from, place))
}

/// Serves one caller: inner TLS, then requests, each authorized. Returns when
/// the session has ended.
pub async fn serve_stream(worker: Arc<Worker>, stream: Stream, via: Via) {
    let Ok(half_open) = worker.half_open.try_acquire() else {
        worker.shared.metrics.handshake_failed(Direction::Inbound, "overloaded");
        return;
    };
    match handshake(&worker, stream, &via, half_open).await {
        Ok((caller, connection)) => serve_session(&worker, caller, connection).await,
        Err(error) => {
            let refused = tls::verify_error(&error);
            let code = refused.as_ref().map_or("handshake", mesh_core::VerifyError::code);
            worker.shared.metrics.handshake_failed(Direction::Inbound, code);
            log::info!(via:? = via, reason = code, error:% = error; "caller refused");
        }
    }
}

type Session = Connection<Stream, Bytes>;

async fn handshake(
    worker: &Worker,
    stream: Stream,
    via: &Via,
    _half_open: SemaphorePermit<'_>,
) -> io::Result<(Arc<Caller>, Session)> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
    let secured = tls::accept(worker.inner_server.clone(), stream);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, secured).await.map_err(late)??;
    let tls_session = stream.get_ref().1;
    let credentials = &worker.shared.credentials;
    let peer = tls::peer_of(tls_session, credentials, Side::Client, &Allowed::Known)
        .map_err(io::Error::other)?;
    let chain = tls_session.peer_certificates().unwrap_or_default().to_vec();
    let client_id = HeaderValue::from_str(peer.id.as_str()).expect("SPIFFE IDs are ASCII");
    let connection = match via {
        Via::Tcp(_) => None,
        Via::Reverse { connection_id, .. } => Some(connection_id.as_str().into()),
    };
    let path_kind = via.describe();
    let caller = Caller { peer, client_id, path_kind, connection, chain };
    let begun = server().handshake(Box::new(stream) as Stream);
    let session = tokio::time::timeout(HANDSHAKE_TIMEOUT, begun).await.map_err(late)?;
    Ok((Arc::new(caller), session.map_err(io::Error::other)?))
}

fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// Why a session ends before its peer ends it.
enum Ending {
    /// Streams that run may finish.
    Drain,
    /// The peer is no longer who it proved to be.
    Cut,
}

async fn serve_session(worker: &Arc<Worker>, caller: Arc<Caller>, mut session: Session) {
    let _open = worker.shared.metrics.inner_session(Direction::Inbound);
    let ping = session.ping_pong().map(|ping| (Probing::DESTINATION, ping));
    let silent = crate::http2::probe(ping, || true);
    tokio::pin!(silent);
    let ending = tokio::select! {
        () = serve_streams(worker, &caller, &mut session) => return,
        () = &mut silent => return,
        ending = until_ending(worker, &caller) => ending,
        () = worker.shared.drain.stopping() => Ending::Cut,
    };
    if matches!(ending, Ending::Drain) {
        session.graceful_shutdown();
        let patience = tokio::time::sleep(worker.shared.config.longest_drain());
        tokio::select! {
            () = serve_streams(worker, &caller, &mut session) => return,
            () = &mut silent => return,
            () = until_disbelieved(worker, &caller) => {}
            () = patience => {}
            () = worker.shared.drain.stopping() => {}
        }
    }
    session.abrupt_shutdown(h2::Reason::CANCEL);
    let closed = poll_fn(|cx| session.poll_closed(cx));
    let _told = tokio::time::timeout(CLOSE_TIMEOUT, closed).await;
}

async fn serve_streams(worker: &Arc<Worker>, caller: &Arc<Caller>, session: &mut Session) {
    while let Some(accepted) = session.accept().await {
        match accepted {
            Ok((request, respond)) => {
                let (worker, caller) = (worker.clone(), caller.clone());
                let drain = worker.shared.drain.clone();
                drain.spawn(request::serve(worker, caller, request, respond));
            }
            Err(error) => {
                log::debug!(peer = caller.peer.id.as_str(), error:% = error; "session ended");
                return;
            }
        }
    }
}

/// A session does not outlive what proved it.
async fn until_ending(worker: &Worker, caller: &Caller) -> Ending {
    tokio::select! {
        () = worker.shared.drain.draining() => Ending::Drain,
        () = tokio::time::sleep(until_end(&caller.peer)) => Ending::Drain,
        () = until_disbelieved(worker, caller) => Ending::Cut,
    }
}

/// Returns when new credentials or bundles no longer vouch for the caller.
async fn until_disbelieved(worker: &Worker, caller: &Caller) {
    let credentials = &worker.shared.credentials;
    let mut changed = credentials.changed();
    while changed.changed().await.is_ok() {
        if let Err(error) = credentials.recheck(&caller.peer, &caller.chain) {
            log::info!(peer = caller.peer.id.as_str(), reason = error.code(); "session cut");
            return;
        }
    }
    std::future::pending().await
}
