//! From the mesh to the application. In reading order:
//! - this page: accepting, inner TLS, the session of one caller.
//! - [`line`]: streams that wait for their turn.
//! - [`request`]: one stream: which own endpoint, whether the caller may, and
//!   the answer.
//! - [`guard`]: whether the caller may, and for how long.
//! - [`limits`]: what a service allows its callers.
//! - [`app`]: the way to an application, with a permit only.
//! - [`answer`]: its answer on the way back.
//! - [`stream`]: what a caller is to both.
//! - [`door`]: clients that are not of the mesh; [`captured`]: those of them
//!   who dialled the application.

mod answer;
mod app;
pub(crate) mod captured;
pub(crate) mod door;
pub(crate) mod guard;
pub mod limits;
mod line;
pub mod request;
mod stream;

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_core::{Allowed, Client, PeerIdentity, identity::Side};
use mesh_runtime::{clock, drain::LAST};
use mesh_tunnel::{
    Stream,
    admission::{Full, Place},
    filter::Shunning,
    listen::abort,
    net::Listener,
    tls::{self, Before, Binding, Standing},
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout_at,
};

use line::Line;

use crate::{
    access_log::Entry,
    app::Shared,
    aside::Aside,
    inner::{
        HANDSHAKE_TIMEOUT,
        mux::{Guardian, Limits, Probing, ServerSession},
    },
    metrics::{
        Direction, Taken,
        traffic::{self, OpenTcp},
    },
    worker::Worker,
};

/// Handshakes under way per worker; more are closed unanswered, so that a
/// flood of them leaves sessions alone.
pub const MAX_HALF_OPEN: usize = 256;
/// Of one source: a gateway's address stands for all who come through it.
pub const MAX_HALF_OPEN_PER_SOURCE: usize = 128;
/// Connections of the mesh per worker; more wait to be accepted.
const MAX_SESSIONS: usize = 16_384;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

    /// Streams of gateways have no address, and are one source.
    fn source(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(from) => Some(from.ip()),
            Self::Reverse { .. } => None,
        }
    }
}

/// A verified caller and its session.
#[derive(Debug)]
pub struct Caller {
    /// Who it is.
    pub peer: PeerIdentity,
    /// `direct` or `reverse`.
    pub path_kind: &'static str,
    /// Joins log lines, if the path has told.
    pub connection: Option<Arc<str>>,
    /// Where it calls from; `None` where gateways are between.
    address: Option<IpAddr>,
    /// `X-Forwarded-Client-Cert`, where that is asked for.
    certificate: Option<Box<str>>,
    /// Set once its session carries requests: connections of opaque bytes are
    /// counted one by one.
    counted: OnceLock<OpenTcp>,
}

impl Caller {
    /// Its session carries a request.
    fn asks(&self, shared: &Shared, entry: &Entry) {
        self.counted.get_or_init(|| {
            let labels = traffic::labels(shared, entry, true);
            shared.metrics.traffic.opened(&labels, "src")
        });
    }
}

impl Caller {
    /// To policies.
    pub fn client(&self) -> Client<'_> {
        Client { peer: Some(&self.peer), address: self.address }
    }
}

/// Accepts until somebody else does, or nobody: a proxy that drains may be the
/// only one that has what its callers want.
pub async fn accept(worker: Arc<Worker>, listener: Box<dyn Listener>) {
    let places = Arc::new(Semaphore::new(MAX_SESSIONS));
    let listener: Arc<dyn Listener> = listener.into();
    let shunning = Shunning::new(listener.clone());
    loop {
        let accepted = tokio::select! {
            accepted = next(&worker, &*listener, &places) => accepted,
            () = until_elsewhere(&worker) => return,
        };
        match accepted {
            Ok((stream, from, place)) => {
                let via = Via::Tcp(from);
                let half_open = match enter(&worker, &via) {
                    Ok(half_open) if worker.shared.has_memory(Taken::Connection) => half_open,
                    refused => {
                        abort(stream);
                        if let Err(Full::Source) = refused {
                            shunning.refused(from.ip());
                        }
                        continue;
                    }
                };
                let task = serve(worker.clone(), stream, via, half_open);
                worker.shared.drain.spawn_session(async move {
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

/// Callers of the mesh had better come anew: to a successor, or to the process
/// after this one, which does not take them any more.
async fn until_elsewhere(worker: &Worker) {
    tokio::select! {
        () = worker.shared.drain.leaving() => {}
        () = worker.shared.drain.refusing() => {}
    }
}

async fn next(
    worker: &Worker,
    listener: &dyn Listener,
    places: &Arc<Semaphore>,
) -> io::Result<(Stream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    worker.door.turn().await;
    let (stream, from) = listener.accept().await?;
    Ok((stream, from, place))
}

/// Serves one caller: inner TLS, then requests, each authorized. Returns when
/// the session has ended.
pub async fn serve_stream(worker: Arc<Worker>, stream: Stream, via: Via) {
    if let Ok(half_open) = enter(&worker, &via) {
        serve(worker, stream, via, half_open).await;
    }
}

/// A place for a handshake; none is counted.
fn enter(worker: &Worker, via: &Via) -> Result<Place, Full> {
    let place = match worker.handshakes.has_left() {
        true => worker.half_open.take(via.source()),
        false => worker.half_open.take_to_wait(via.source()),
    };
    let refused = |full: &Full| {
        worker.shared.metrics.handshake_failed(Direction::Inbound, full.code());
    };
    place.inspect_err(refused)
}

async fn serve(worker: Arc<Worker>, stream: Stream, via: Via, half_open: Place) {
    if let Some((caller, standing, stream)) = in_turn(&worker, stream, &via, half_open).await {
        serve_session(&worker, caller, &standing, stream).await;
    }
}

fn refused(worker: &Worker, via: &Via, error: &io::Error) {
    let refused = tls::verify_error(error);
    let code = refused.as_ref().map_or("handshake", mesh_core::VerifyError::code);
    worker.shared.metrics.handshake_failed(Direction::Inbound, code);
    log::info!(via:? = via, reason = code, error:% = error; "caller refused");
}

/// A handshake, once there is time for it; `None` is told.
async fn in_turn(
    worker: &Worker,
    stream: Stream,
    via: &Via,
    _half_open: Place,
) -> Option<(Arc<Caller>, Standing, Stream)> {
    let until = clock::monotonic() + HANDSHAKE_TIMEOUT;
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the handshake took too long");
    if let Err(error) = timeout_at(until, worker.handshakes.turn()).await.map_err(late) {
        refused(worker, via, &error);
        return None;
    }
    // To its very end: refusals cost as much.
    let shaking = async {
        let secured = timeout_at(until, handshake(worker, stream, via)).await.map_err(late);
        secured.flatten().inspect_err(|error| refused(worker, via, error)).ok()
    };
    let (secured, spent) = worker.handshakes.spend_on(shaking).await;
    if secured.is_some() {
        worker.handshakes.refund(spent);
    }
    secured
}

async fn handshake(
    worker: &Worker,
    stream: Stream,
    via: &Via,
) -> io::Result<(Arc<Caller>, Standing, Stream)> {
    let before = Before::handshake(&worker.shared.credentials);
    let stream = tls::accept(worker.inner_server.clone(), stream).await?;
    let tls_session = stream.get_ref().1;
    let credentials = &worker.shared.credentials;
    let peer = tls::peer_of(tls_session, credentials, Side::Client, &Allowed::Known)
        .map_err(io::Error::other)?;
    let (binding, chain) = (Binding::of_tls(tls_session, false)?, tls::chain_of(tls_session));
    let connection = match via {
        Via::Tcp(_) => None,
        Via::Reverse { connection_id, .. } => Some(connection_id.as_str().into()),
    };
    let path_kind = via.describe();
    let address = address_of(worker, via, &peer);
    let certificate = certificate_of(worker, &peer, &chain);
    let counted = OnceLock::new();
    let standing = before.proved(binding, peer.clone(), chain);
    let caller = Caller { peer, path_kind, connection, address, certificate, counted };
    Ok((Arc::new(caller), standing, Box::new(stream)))
}

/// The address that a caller calls from, if no gateway is between: those of
/// other sites always have one, and a gateway's own address is nobody's.
fn address_of(worker: &Worker, via: &Via, peer: &PeerIdentity) -> Option<IpAddr> {
    let Via::Tcp(from) = via else { return None };
    let snapshot = worker.shared.snapshot.load()?;
    let from = from.ip().to_canonical();
    let is_here = |addr: &Arc<str>| addr.parse().is_ok_and(|addr: SocketAddr| addr.ip() == from);
    let behind = snapshot
        .gateways
        .values()
        .any(|one| one.quic_addresses.iter().chain(&one.tls_addresses).any(is_here));
    let own_domain = *peer.id.trust_domain() == snapshot.trust_domain;
    (own_domain && (from.is_loopback() || !behind)).then_some(from)
}

/// As Envoy writes it: whom the caller has called, and with which certificate.
fn certificate_of(
    worker: &Worker,
    peer: &PeerIdentity,
    chain: &[CertificateDer<'_>],
) -> Option<Box<str>> {
    let leaf = chain.first().filter(|_| worker.shared.config.forwarded_client_cert)?;
    let own = worker.shared.credentials.svid()?;
    let hash: String = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("By={};Hash={hash};URI={}", own.id, peer.id).into())
}

async fn serve_session(
    worker: &Arc<Worker>,
    caller: Arc<Caller>,
    standing: &Standing,
    stream: Stream,
) {
    let _open = worker.shared.metrics.inner_session(Direction::Inbound);
    let drain = &worker.shared.drain;
    let (mut session, guardian) =
        ServerSession::start(stream, Probing::DESTINATION, Limits::default(), drain);
    // Each request wakes this task, and seldom one of these.
    let mut aside = Aside::default()
        .with(async {
            until_retired(worker, standing).await;
            guardian.retire();
        })
        .with(async {
            let error = standing.disbelieved().await;
            log::info!(peer = caller.peer.id.as_str(), reason = error.code(); "session cut");
            guardian.cut();
        })
        .with(async {
            until_late(worker, standing, &guardian).await;
            guardian.cut();
        })
        .with(async { guardian.keep_proving(standing).await });
    let mut line = Line::new(worker, caller.clone());
    loop {
        let opened = tokio::select! {
            biased;
            () = aside.next() => continue,
            () = poll_fn(|cx| line.poll(cx)), if !line.is_empty() => continue,
            opened = session.accept() => opened,
        };
        let Some(opened) = opened else {
            if session.is_violated() {
                worker.shared.metrics.connection_cut(Direction::Inbound, "protocol_error");
            }
            return;
        };
        line.add(opened);
    }
}

/// A session does not outlive what proved it.
async fn until_retired(worker: &Worker, standing: &Standing) {
    tokio::select! {
        () = until_elsewhere(worker) => {}
        () = standing.expires(Duration::ZERO) => {}
    }
}

/// What runs in it has its time after what proved the caller has ended, and
/// after the drain has begun; then only what has just come goes on, up to the
/// end of the process. While this proxy leaves, nothing is late.
async fn until_late(worker: &Worker, standing: &Standing, guardian: &Guardian) {
    let shared = &worker.shared;
    let longest = shared.config.longest_drain();
    let drained = async {
        shared.drain.draining().await;
        tokio::time::sleep(longest.saturating_sub(LAST)).await;
        let newest = guardian.newest();
        tokio::time::sleep(longest.min(LAST)).await;
        for _ in 0..guardian.reset_up_to(newest, "this proxy stops") {
            shared.metrics.cut_by_stop(Direction::Inbound);
        }
        std::future::pending().await
    };
    tokio::select! {
        () = standing.expires(Duration::ZERO) => {}
        never = drained => never,
    }
    tokio::time::sleep(longest).await;
}
