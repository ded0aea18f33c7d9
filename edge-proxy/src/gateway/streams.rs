//! One stream: decided, connected on, copied, logged.

use std::{convert::Infallible, sync::Arc, time::Duration};

use mesh_api::FEDERATION_SERVICE;
use mesh_core::{
    GatewayId, NodeId, SiteName, Snapshot,
    path::{Connect, MAX_HOPS, NextHop, Own, RefusedReason, check_dialled, forward},
};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{
    IncomingStream, OpenError, RefusedHeader, Session, Stream, TunnelStream, session::refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{
    neighbours::{LEAVING_QUIET, Tunnel},
    quota::Slot,
    relay::{self, Carried, Limits},
};
use crate::{aside::Aside, metrics::Taken, trace::passage, tunnels::going};

/// How long saying no may take; a neighbour that does not read its answers
/// has its stream dropped.
const REFUSE_DEADLINE: Duration = Duration::from_secs(5);

/// How much less each further hop waits than the one before it.
const HOP_MARGIN: Duration = Duration::from_millis(500);

/// Bytes that are passed on at once ahead of an answer: a `ClientHello` fits.
const EARLY_BUFFER: usize = 4 * 1024;

/// Why a stream goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    reason: RefusedReason,
    /// `None`: this gateway.
    hop: Option<String>,
    detail: String,
}

/// The open next hop, with the places it takes.
struct Far {
    end: FarEnd,
    /// Bytes that have gone there ahead of the answer.
    early: u64,
    _towards: Option<Slot>,
}

enum FarEnd {
    Tcp(Stream),
    Tunnel(TunnelStream),
}

impl Far {
    /// The tunnel, if another gateway is at its end.
    fn gateway(&self) -> Option<&Session> {
        let FarEnd::Tunnel(stream) = &self.end else { return None };
        Some(stream.session()).filter(|session| session.peer().id.is_gateway())
    }
}

impl Refusal {
    fn here(reason: RefusedReason, detail: impl Into<String>) -> Self {
        Self { reason, hop: None, detail: detail.into() }
    }

    /// Nothing leads further from this gateway; it was not tried.
    fn is_missing_tunnel(&self) -> bool {
        self.reason == RefusedReason::NoPath && self.hop.is_none()
    }
}

impl From<OpenError> for Refusal {
    /// The next hop's refusal is passed on as it is, with its own name.
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Refused { reason, hop, detail } => {
                let hop = Some(hop).filter(|hop| !hop.is_empty());
                Self { reason, hop, detail }
            }
            OpenError::Closed => Self::here(RefusedReason::NoPath, "the next tunnel has ended"),
            OpenError::Timeout(after) => Self::timeout(after),
        }
    }
}

impl Refusal {
    fn timeout(after: Duration) -> Self {
        Self::here(RefusedReason::Timeout, format!("the next hop did not answer in {after:?}"))
    }
}

/// Serves one stream that a neighbour has opened, until it has ended.
pub(super) async fn serve(tunnel: Arc<Tunnel>, mut incoming: IncomingStream) {
    let started = Instant::now();
    let mut changed = tunnel.state.sessions.changed();
    let outcome = loop {
        let outcome = attempt(&tunnel, &mut incoming).await;
        // What has just opened waits for those who come back to it.
        match (outcome, tunnel.state.gathering_until()) {
            (Err(refusal), Some(until)) if refusal.is_missing_tunnel() => {
                let news = timeout_at(until, changed.changed()).await;
                if !news.is_ok_and(|news| news.is_ok()) {
                    break Err(refusal);
                }
            }
            (outcome, _) => break outcome,
        }
    };
    match outcome {
        Ok((_slot, next, far)) => {
            carry(&tunnel, incoming, &next, far, started).await;
        }
        Err(refusal) => refuse(&tunnel, incoming, refusal).await,
    }
}

async fn attempt(
    tunnel: &Tunnel,
    incoming: &mut IncomingStream,
) -> Result<(Slot, NextHop, Far), Refusal> {
    let connect = incoming.connect.clone();
    let (slot, half_open, next) = admit(tunnel, &connect)?;
    let far = Box::pin(reach(tunnel, &next, incoming)).await?;
    drop(half_open);
    Ok((slot, next, far))
}

/// Whether the stream may go on, and where. Takes its places in the quotas.
fn admit(tunnel: &Tunnel, connect: &Connect) -> Result<(Slot, Slot, NextHop), Refusal> {
    if tunnel.is_draining() {
        return Err(Refusal::here(RefusedReason::Draining, "this gateway is going away"));
    }
    if !tunnel.state.shared.has_memory(Taken::Stream) {
        let text = "this gateway holds as much memory as it may";
        return Err(Refusal::here(RefusedReason::Quota, text));
    }
    let quota = |what| move || Refusal::here(RefusedReason::Quota, what);
    let slot = tunnel.quota.stream().ok_or_else(quota("too many open streams"))?;
    let half_open =
        tunnel.quota.half_open().ok_or_else(quota("too many streams without an answer yet"))?;
    let Some(snapshot) = tunnel.state.snapshot() else {
        return Err(Refusal::here(RefusedReason::NoPath, "this gateway has no snapshot yet"));
    };
    let listens = tunnel.state.listens();
    let own = Own {
        id: &tunnel.own.id,
        listens: &listens,
        has: &|ip| tunnel.state.shared.net.has(ip),
        holds: &|node| tunnel.state.sessions.holds(node),
    };
    let next = forward(&snapshot, own, tunnel.session.peer(), connect)
        .map_err(|reason| Refusal::here(reason, explain(&snapshot, own, connect, reason)))?;
    Ok((slot, half_open, next))
}

/// What is wrong with an address that is not dialled. The neighbour may be
/// another site: the address itself stays in our own log.
fn explain(snapshot: &Snapshot, own: Own<'_>, connect: &Connect, reason: RefusedReason) -> String {
    let id = connect.endpoint.as_ref().filter(|_| reason == RefusedReason::ForbiddenTarget);
    let endpoint =
        id.and_then(|id| snapshot.endpoint(connect.service.as_str(), &connect.site, id.as_str()));
    let Some(addr) = endpoint.and_then(|endpoint| endpoint.address) else { return String::new() };
    let Err(problem) = check_dialled(snapshot, own, addr) else { return String::new() };
    log::warn!(
        connection = connect.connection_id.as_str(), service = connect.service.as_str(),
        endpoint = endpoint.map_or("-", |endpoint| endpoint.id.as_str()), addr:% = addr;
        "the address of an endpoint is not dialled: {problem}"
    );
    format!("its address is not dialled: {problem}")
}

/// Opens the next hop. Exactly one attempt: trying elsewhere is the source's
/// business.
async fn reach(
    tunnel: &Tunnel,
    next: &NextHop,
    incoming: &mut IncomingStream,
) -> Result<Far, Refusal> {
    match next {
        NextHop::Dial { addr, .. } => dial(tunnel, *addr, "the endpoint's proxy").await,
        NextHop::Federation(addr) => dial(tunnel, *addr, "federation").await,
        NextHop::Session(node) => {
            let session = to_node(tunnel, node, &incoming.connect);
            open(tunnel, session.ok_or_else(|| no_path("no session of the node"))?, incoming).await
        }
        NextHop::Sibling(gateways, _node) => {
            let session = to_sibling(tunnel, gateways);
            open(tunnel, session.ok_or_else(|| no_path("no tunnel to a sibling"))?, incoming).await
        }
        NextHop::Link(site) => over_link(tunnel, site, incoming).await,
    }
}

fn no_path(what: &str) -> Refusal {
    Refusal::here(RefusedReason::NoPath, what)
}

fn to_node(tunnel: &Tunnel, node: &NodeId, connect: &Connect) -> Option<Session> {
    let snapshot = tunnel.state.snapshot()?;
    let id = connect.endpoint.as_ref()?;
    let endpoint = snapshot.endpoint(connect.service.as_str(), &connect.site, id.as_str());
    tunnel.state.sessions.node(node, endpoint.and_then(|endpoint| endpoint.identity.as_ref()))
}

fn to_sibling(tunnel: &Tunnel, gateways: &[GatewayId]) -> Option<Session> {
    gateways.iter().find_map(|gateway| tunnel.state.sessions.sibling(gateway))
}

async fn over_link(
    tunnel: &Tunnel,
    site: &SiteName,
    incoming: &mut IncomingStream,
) -> Result<Far, Refusal> {
    let towards = tunnel.state.quotas.towards(site).stream().ok_or_else(|| {
        Refusal::here(RefusedReason::Quota, format!("too many open streams to site {site}"))
    })?;
    let session = tunnel.state.sessions.link(site);
    let session = session.ok_or_else(|| no_path(&format!("no tunnel to site {site} is up")))?;
    let far = open(tunnel, session, incoming).await?;
    Ok(Far { _towards: Some(towards), ..far })
}

async fn open(
    tunnel: &Tunnel,
    session: Session,
    incoming: &mut IncomingStream,
) -> Result<Far, Refusal> {
    let connect = &incoming.connect;
    let onward = Connect { hops: connect.hops.saturating_add(1), ..connect.clone() };
    // Each hop gives up a little before the one that waits for it, so that
    // the refusal comes from where the problem is.
    let passed = u32::from(connect.hops.min(MAX_HOPS));
    let deadline = tunnel.state.tuning.open_deadline.saturating_sub(HOP_MARGIN * passed);
    let opening = async {
        let mut far = session.begin(&onward, deadline).await?;
        let early = forward_early(incoming, &mut far).await?;
        Ok::<_, OpenError>(Far { end: FarEnd::Tunnel(far), early, _towards: None })
    };
    Ok(timeout(deadline, opening).await.map_err(|_| Refusal::timeout(deadline))??)
}

/// Passes on what the source sends ahead of the answer, until the answer is
/// there; returns how many bytes that were. More than fits ahead waits in the
/// source's window.
async fn forward_early(
    near: &mut IncomingStream,
    far: &mut TunnelStream,
) -> Result<u64, OpenError> {
    let mut buffer = Vec::new();
    let mut passed = 0;
    while far.early_room() > 0 {
        buffer.resize(far.early_room().min(EARLY_BUFFER), 0);
        let read = tokio::select! {
            biased;
            answer = far.answered() => return answer.map(|()| passed),
            read = near.read(&mut buffer) => read,
        };
        // An end or a reset is passed on once the answer is there.
        let Some(read) = read.ok().filter(|read| *read > 0) else { break };
        let written = far.write_all(&buffer[..read]).await;
        written.map_err(|error| refusal(&error).unwrap_or(OpenError::Closed))?;
        passed += read as u64;
    }
    far.answered().await.map(|()| passed)
}

async fn dial(tunnel: &Tunnel, addr: std::net::SocketAddr, what: &str) -> Result<Far, Refusal> {
    let deadline = tunnel.state.tuning.dial_deadline;
    match timeout(deadline, tunnel.state.shared.net.dial(addr)).await {
        Ok(Ok(stream)) => Ok(Far { end: FarEnd::Tcp(stream), early: 0, _towards: None }),
        Ok(Err(error)) => {
            // The neighbour may be another site: our addresses stay here.
            log::debug!(addr:% = addr, error:% = error; "{what} cannot be reached");
            Err(Refusal::here(RefusedReason::Unreachable, format!("{what} does not answer")))
        }
        Err(_) => {
            let text = format!("{what} did not answer in {deadline:?}");
            Err(Refusal::here(RefusedReason::Unreachable, text))
        }
    }
}

/// Says yes and copies until both directions have ended.
async fn carry(
    tunnel: &Tunnel,
    incoming: IncomingStream,
    next: &NextHop,
    far: Far,
    started: Instant,
) {
    let connect = incoming.connect.clone();
    let _passage = tunnel.passages.enter(&passage::Stream {
        connect: &connect,
        neighbour: &tunnel.neighbour,
        next: kind(next),
        onward: far.gateway(),
        tracer: tunnel.state.shared.tracer.as_ref(),
    });
    let mut near = match incoming.accept().await {
        Ok(near) => near,
        Err(error) => {
            log::debug!(connection = connect.connection_id.as_str(), error:% = error; "source is gone");
            return;
        }
    };
    let opened = started.elapsed();
    let counted = tunnel.state.metrics.stream(&tunnel.neighbour);
    let limits = Limits { idle: tunnel.state.tuning.stream_idle };
    // Each message wakes this task, and seldom one of these.
    let mut aside = Aside::default().with(stop(tunnel.state.shared.drain.clone(), &connect));
    let mut carried = match far.end {
        FarEnd::Tcp(mut far) => relay::relay(&mut near, &mut far, limits, aside.next()).await,
        FarEnd::Tunnel(mut far) => {
            let drains = pass_on_drain(far.session(), near.session(), &connect.connection_id);
            aside = aside.with(async { match drains.await {} });
            relay::relay(&mut near, &mut far, limits, aside.next()).await
        }
    };
    carried.sent += far.early;
    counted.ended(&carried);
    log_carried(tunnel, &connect, next, &carried, opened, started);
}

/// Control never ends by itself, and is begun anew elsewhere when it is cut: it
/// does not keep a process whose successor has taken over.
fn stop(drain: Drain, connect: &Connect) -> impl Future<Output = ()> + use<> {
    let is_control = connect.service.as_str() == FEDERATION_SERVICE;
    async move {
        let left = async {
            drain.leaving().await;
            tokio::time::sleep(LEAVING_QUIET).await;
        };
        tokio::select! {
            () = drain.stopping() => {}
            () = left, if is_control => {}
        }
    }
}

/// Tells the source of a stream when something further along its path goes
/// away, so that it opens new sessions elsewhere while this one still works.
fn pass_on_drain(
    far: &Session,
    near: &Session,
    connection_id: &str,
) -> impl Future<Output = Infallible> + use<> {
    let going = going(far, connection_id);
    let (near, connection_id) = (near.clone(), connection_id.to_owned());
    async move {
        going.await;
        near.drain_streams(vec![connection_id]);
        std::future::pending().await
    }
}

fn log_carried(
    tunnel: &Tunnel,
    connect: &Connect,
    next: &NextHop,
    carried: &Carried,
    opened: Duration,
    started: Instant,
) {
    log::info!(
        target: "access",
        connection = connect.connection_id.as_str(), neighbour:% = tunnel.neighbour,
        site = connect.site.as_str(), service = connect.service.as_str(),
        port = connect.port.as_str(),
        endpoint = connect.endpoint.as_ref().map_or("-", |id| id.as_str()),
        next = kind(next), sent = carried.sent, received = carried.received,
        end = carried.ending.code(), open_ms = millis(opened), total_ms = millis(started.elapsed());
        "stream"
    );
}

async fn refuse(tunnel: &Tunnel, incoming: IncomingStream, refusal: Refusal) {
    let Refusal { reason, hop, detail } = refusal;
    let connect = incoming.connect.clone();
    let hop = hop.unwrap_or_else(|| tunnel.own.hop());
    tunnel.state.metrics.refused(&tunnel.neighbour, reason);
    log::info!(
        target: "access",
        connection = connect.connection_id.as_str(), neighbour:% = tunnel.neighbour,
        site = connect.site.as_str(), service = connect.service.as_str(),
        port = connect.port.as_str(),
        endpoint = connect.endpoint.as_ref().map_or("-", |id| id.as_str()),
        refused:% = reason, hop = hop.as_str(), detail = detail.as_str();
        "stream refused"
    );
    let _late = timeout(REFUSE_DEADLINE, incoming.refuse(reason, &hop, &detail)).await;
}

/// A stream that was refused before it was decided on: what it wanted could not
/// be read, or is no name.
pub(super) fn note_refused(tunnel: &Tunnel, refused: &RefusedHeader) {
    let RefusedHeader { reason, detail } = refused;
    tunnel.state.metrics.refused(&tunnel.neighbour, *reason);
    log::info!(
        target: "access",
        neighbour:% = tunnel.neighbour, refused:% = reason, hop = tunnel.own.hop().as_str(),
        detail = detail.as_str();
        "stream refused"
    );
}

fn kind(next: &NextHop) -> &'static str {
    match next {
        NextHop::Dial { .. } => "endpoint",
        NextHop::Session(_) => "session",
        NextHop::Sibling(..) => "sibling",
        NextHop::Link(_) => "link",
        NextHop::Federation(_) => "federation",
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
