//! The tunnels that this side dials: one per worker to each linked site, and
//! one to each sibling. Each is kept up: re-dialled within a second when it
//! ends, and moved to QUIC when that works again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{
    Allowed, Gateway, GatewayId, SiteName, Snapshot, SpiffeId, TrustDomain, service::LinkTransport,
};
use mesh_tunnel::{DialError, Dialer, Session, Transport};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Own, State, door, neighbours::Tunnel};
use crate::{retry::Backoff, tunnels::addresses};

/// Pause before a tunnel that has ended is dialled again; doubles while
/// dialling fails.
const REDIAL: Duration = Duration::from_millis(500);
/// The longest such pause.
const REDIAL_MAX: Duration = Duration::from_secs(5);
/// One attempt to bring up one tunnel.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// How much of an error is kept for people.
const REASON_CHARS: usize = 200;

/// Whom to dial. A link whose transport or domain changes is another peer: its
/// tunnels are replaced.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Peer {
    Link(SiteName, TrustDomain, Pin),
    Sibling(GatewayId),
}

/// [`LinkTransport`], ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Pin {
    Raced,
    Quic,
    Tls,
}

impl From<LinkTransport> for Pin {
    fn from(transport: LinkTransport) -> Self {
        match transport {
            LinkTransport::Raced => Self::Raced,
            LinkTransport::Quic => Self::Quic,
            LinkTransport::Tls => Self::Tls,
        }
    }
}

impl From<Pin> for LinkTransport {
    fn from(pin: Pin) -> Self {
        match pin {
            Pin::Raced => Self::Raced,
            Pin::Quic => Self::Quic,
            Pin::Tls => Self::Tls,
        }
    }
}

/// Keeps this worker's tunnels up until the drain begins.
pub(super) async fn keep(state: Arc<State>, worker: usize) {
    let Some(own) = state.own().await else { return };
    let mut changed = state.shared.snapshot.changed();
    let mut kept: BTreeMap<Peer, DropGuard> = BTreeMap::new();
    loop {
        let wanted = state.snapshot().map(|now| wanted(&now, &own, worker)).unwrap_or_default();
        // Dropping the guard of one that is no longer wanted stops its task.
        kept.retain(|peer, _| wanted.contains(peer));
        for peer in wanted {
            kept.entry(peer.clone()).or_insert_with(|| start(&state, &own, peer, worker));
        }
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = state.shared.drain.draining() => return,
        }
    }
}

/// Links that this side dials, by every worker; siblings by the first worker
/// of the gateway whose id is lower, so that two do not dial each other.
fn wanted(snapshot: &Snapshot, own: &Own, worker: usize) -> Vec<Peer> {
    let links = snapshot.links.values().filter(|link| link.dial).map(|link| {
        Peer::Link(link.site.clone(), link.trust_domain.clone(), link.transport.into())
    });
    let siblings = snapshot
        .gateways
        .keys()
        .filter(|(site, id)| worker == 0 && site == &own.site && id > &own.id)
        .map(|(_, id)| Peer::Sibling(id.clone()));
    links.chain(siblings).collect()
}

fn start(state: &Arc<State>, own: &Own, peer: Peer, worker: usize) -> DropGuard {
    let unwanted = CancellationToken::new();
    let (state, own) = (state.clone(), own.clone());
    let drain = state.shared.drain.clone();
    let keeper = Keeper { state, own, peer, worker, unwanted: unwanted.clone() };
    drain.spawn(keeper.run());
    unwanted.drop_guard()
}

/// Keeps one tunnel up.
struct Keeper {
    state: Arc<State>,
    own: Own,
    peer: Peer,
    worker: usize,
    unwanted: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let up = async {
            let mut backoff = Backoff::new(REDIAL, REDIAL_MAX);
            // Which of the peer's gateways is next: workers begin with
            // different ones.
            let mut turn = self.worker;
            // A tunnel whose other end leaves is used until there is another.
            let mut left = None;
            // A successor dials its own; what is here is used to the end.
            while !self.state.shared.drain.is_closing() {
                match self.dial(turn, self.transport()).await {
                    Ok(session) => {
                        backoff.reset();
                        left = self.hold(turn, session, left.take()).await;
                        if left.is_some() {
                            // The successor is at the same place.
                            continue;
                        }
                    }
                    Err(error) => {
                        log::warn!(peer:? = self.peer, error:% = error; "cannot open a tunnel, trying again");
                    }
                }
                turn = turn.wrapping_add(1);
                backoff.pause().await;
            }
            drop(left);
        };
        tokio::select! {
            () = up => {}
            () = self.unwanted.cancelled() => {}
            () = self.state.shared.drain.draining() => {}
        }
    }

    fn transport(&self) -> LinkTransport {
        match &self.peer {
            Peer::Link(_, _, pin) => (*pin).into(),
            Peer::Sibling(_) => LinkTransport::Raced,
        }
    }

    /// One tunnel to the gateway whose turn it is.
    async fn dial(&self, turn: usize, transport: LinkTransport) -> Result<Session, DialError> {
        let snapshot = self.state.snapshot();
        let gateways: Vec<&Arc<Gateway>> = snapshot
            .iter()
            .flat_map(|snapshot| snapshot.gateways.values())
            .filter(|gateway| self.is_of_peer(gateway))
            .collect();
        if gateways.is_empty() {
            return Err(DialError("no gateway of it is known".into()));
        }
        let gateway = gateways[turn % gateways.len()];
        let domain = match &self.peer {
            Peer::Link(_, domain, _) => domain,
            Peer::Sibling(_) => &self.own.trust_domain,
        };
        let dialer = Dialer {
            net: self.state.shared.net.clone(),
            credentials: self.state.shared.credentials.clone(),
            hello: door::hello(&self.state, &self.own),
        };
        let allowed = Allowed::Exactly(SpiffeId::gateway(domain));
        Box::pin(dialer.dial(&addresses(gateway), allowed, transport, DIAL_DEADLINE)).await
    }

    fn is_of_peer(&self, gateway: &Gateway) -> bool {
        match &self.peer {
            Peer::Link(site, ..) => &gateway.site == site,
            Peer::Sibling(id) => gateway.site == self.own.site && &gateway.id == id,
        }
    }

    /// Serves a tunnel, and the better one that may replace it, until it has
    /// ended or its other end goes away; returns it in the latter case if it
    /// can still be used. It takes the place of `left`.
    async fn hold(
        &self,
        turn: usize,
        session: Session,
        left: Option<Retiring>,
    ) -> Option<Retiring> {
        let tunnel = self.serve(session)?;
        drop(left);
        // If this task is stopped, or a better tunnel is there, what runs in
        // the old one goes on and nothing new begins there.
        let mut current = Retiring(tunnel);
        let mut over_quic = current.0.session.transport() == Transport::Quic
            || self.transport() != LinkTransport::Raced;
        loop {
            let tunnel = &current.0;
            tokio::select! {
                () = tunnel.session.ending() => {
                    return tunnel.session.is_usable().then_some(current);
                }
                session = self.upgrade(turn, tunnel), if !over_quic => {
                    if let Some(better) = self.serve(session) {
                        log::info!(peer:? = self.peer; "QUIC works again, new streams move over");
                        current = Retiring(better);
                        over_quic = true;
                    }
                }
            }
        }
    }

    fn serve(&self, session: Session) -> Option<Arc<Tunnel>> {
        let reason = match session.transport() {
            Transport::Quic => String::new(),
            Transport::Tls => session.chosen_because().chars().take(REASON_CHARS).collect(),
        };
        match Tunnel::new(self.state.clone(), self.own.clone(), session, reason) {
            Ok(tunnel) => {
                self.state.shared.drain.spawn(tunnel.clone().serve());
                Some(tunnel)
            }
            // Told already.
            Err(_unwanted) => None,
        }
    }

    /// Tries QUIC until it works.
    async fn upgrade(&self, turn: usize, tunnel: &Tunnel) -> Session {
        let first = self.state.tuning.quic_retry;
        let mut backoff = Backoff::new(first, first * 6);
        loop {
            backoff.pause().await;
            match self.dial(turn, LinkTransport::Quic).await {
                Ok(session) => return session,
                Err(error) => {
                    let reason: String = error.to_string().chars().take(REASON_CHARS).collect();
                    tunnel.explain(&reason);
                }
            }
        }
    }
}

/// A tunnel that is retired when this is dropped.
struct Retiring(Arc<Tunnel>);

impl Drop for Retiring {
    fn drop(&mut self) {
        self.0.retire();
    }
}
