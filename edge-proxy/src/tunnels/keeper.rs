//! Keeps a worker's tunnels up.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_api::v1;
use mesh_core::{Allowed, Gateway, GatewayId, SpiffeId, service::LinkTransport};
use mesh_tunnel::{DialError, Dialer, Session, Transport};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{GATEWAYS, Tunnels, addresses, boot_id, reverse, select};
use crate::{app::Shared, retry::Backoff, worker::Worker};

/// Pause before a tunnel that has ended is dialled again; doubles while
/// dialling fails.
const REDIAL: Duration = Duration::from_millis(500);
/// The longest such pause.
const REDIAL_MAX: Duration = Duration::from_secs(5);
/// One attempt to bring up one tunnel.
const DIAL_DEADLINE: Duration = Duration::from_secs(5);
/// A gateway that has failed or said that it goes away is chosen last for this
/// long.
const AWAY: Duration = Duration::from_secs(15);
/// How often the choice of gateways is made anew.
const CHOOSE: Duration = Duration::from_secs(5);
/// How long streams of a tunnel that is no longer used may go on.
const RETIRED_DEADLINE: Duration = Duration::from_secs(3600);
/// How often such a tunnel looks whether its last stream has ended.
const LAST_STREAM_POLL: Duration = Duration::from_millis(250);
/// Looks in a row without a stream before it is closed: a request that is being
/// served may be about to open one.
const QUIET_LOOKS: u32 = 2;
/// Streams that a gateway may have open towards one tunnel of ours.
const REVERSE_STREAMS: u32 = 4096;

/// Which gateways are chosen last, and until when.
type Away = Arc<Mutex<BTreeMap<GatewayId, Instant>>>;

/// Keeps this worker's tunnels up until the process takes nothing at all.
pub(super) async fn keep(tunnels: Tunnels, worker: Arc<Worker>) {
    let shared = worker.shared.clone();
    let mut snapshot = shared.snapshot.changed();
    let mut credentials = shared.credentials.changed();
    let away = Away::default();
    let mut kept: BTreeMap<GatewayId, DropGuard> = BTreeMap::new();
    loop {
        let wanted = wanted(&worker, &away);
        // Dropping the guard of one that is no longer wanted stops its task.
        kept.retain(|id, _| wanted.contains(id));
        for id in wanted {
            kept.entry(id.clone()).or_insert_with(|| start(&tunnels, &worker, &away, id));
        }
        tokio::select! {
            changed = snapshot.changed() => if changed.is_err() { return },
            changed = credentials.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(CHOOSE) => {}
            () = shared.drain.refusing() => break,
        }
    }
    // Requests that are being served may still need a tunnel: each ends when
    // nothing is left in it, and is not dialled again.
    kept.into_values().for_each(|guard| drop(guard.disarm()));
}

/// Gateways of the own site: the snapshot's, or those that the identity source
/// knows while there is no snapshot.
pub(super) fn known(shared: &Shared) -> Vec<Gateway> {
    let own = shared.own.load();
    match shared.snapshot.load() {
        Some(snapshot) => {
            let is_ours = |gateway: &&Arc<Gateway>| gateway.site == snapshot.site;
            let ours = snapshot.gateways.values().filter(is_ours);
            let ours: Vec<_> = ours.map(|gateway| Gateway::clone(gateway)).collect();
            if ours.is_empty() { own.gateways.clone() } else { ours }
        }
        None => own.gateways.clone(),
    }
}

fn wanted(worker: &Worker, away: &Away) -> Vec<GatewayId> {
    if worker.shared.credentials.svid().is_none() {
        return Vec::new();
    }
    let known = known(&worker.shared);
    let own = worker.shared.own.load();
    let machine = own.node.as_ref().map_or(boot_id(), |node| node.as_str());
    let count = if worker.index == 0 { GATEWAYS } else { 1 };
    let seed = format!("{machine}/{}", worker.index);
    let now = mesh_runtime::clock::monotonic();
    let mut away = away.lock().unwrap_or_else(PoisonError::into_inner);
    away.retain(|_, until| *until > now);
    let chosen = select(known.iter(), count, &seed, |id| away.contains_key(id));
    chosen.into_iter().map(|gateway| gateway.id.clone()).collect()
}

fn start(tunnels: &Tunnels, worker: &Arc<Worker>, away: &Away, gateway: GatewayId) -> DropGuard {
    let unwanted = CancellationToken::new();
    let keeper = Keeper {
        tunnels: tunnels.clone(),
        worker: worker.clone(),
        gateway,
        away: away.clone(),
        unwanted: unwanted.clone(),
    };
    worker.shared.drain.spawn(keeper.run());
    unwanted.drop_guard()
}

/// Keeps one tunnel up.
struct Keeper {
    tunnels: Tunnels,
    worker: Arc<Worker>,
    gateway: GatewayId,
    away: Away,
    unwanted: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut backoff = Backoff::new(REDIAL, REDIAL_MAX);
        let drain = &self.worker.shared.drain;
        // A tunnel whose gateway leaves is used until there is another.
        let mut left = None;
        let up = async {
            while !drain.is_refusing() {
                let dialled = tokio::select! {
                    dialled = self.dial(LinkTransport::Raced) => dialled,
                    () = drain.refusing() => return,
                };
                match dialled {
                    Ok(session) => {
                        backoff.reset();
                        left = self.hold(session, left.take()).await;
                        if left.is_some() {
                            continue;
                        }
                    }
                    Err(error) => {
                        log::warn!(gateway = self.gateway.as_str(), error:% = error; "cannot open a tunnel, trying again");
                        self.mark_away();
                    }
                }
                tokio::select! {
                    () = backoff.pause() => {}
                    () = drain.refusing() => {}
                }
            }
        };
        tokio::select! {
            () = up => {}
            () = self.unwanted.cancelled() => {}
            () = drain.stopping() => {}
        }
    }

    async fn dial(&self, transport: LinkTransport) -> Result<Session, DialError> {
        let shared = &self.worker.shared;
        let known = known(shared);
        let Some(gateway) = known.iter().find(|gateway| gateway.id == self.gateway) else {
            return Err(DialError(format!("gateway {} is not known any more", self.gateway)));
        };
        let own = shared.own.load();
        let domain = match shared.credentials.svid() {
            Some(svid) => svid.id.trust_domain().clone(),
            None => return Err(DialError("there is no certificate".into())),
        };
        let dialer = Dialer {
            net: shared.net.clone(),
            credentials: shared.credentials.clone(),
            hello: v1::Hello {
                versions: mesh_api::VERSIONS.to_vec(),
                role: v1::Role::Workload.into(),
                site: own.site.as_ref().map(ToString::to_string).unwrap_or_default(),
                limits: Some(v1::TunnelLimits { streams: REVERSE_STREAMS }),
                boot_id: boot_id().to_owned(),
                ..v1::Hello::default()
            },
        };
        let allowed = Allowed::Exactly(SpiffeId::gateway(&domain));
        Box::pin(dialer.dial(&addresses(gateway), allowed, transport, DIAL_DEADLINE)).await
    }

    /// Uses a tunnel, and the better one that may replace it, until it has
    /// ended or its gateway goes away; returns it in the latter case. It takes
    /// the place of `left`.
    async fn hold(&self, session: Session, left: Option<InUse>) -> Option<InUse> {
        let mut tunnel = self.serve(session);
        drop(left);
        let mut over_quic = tunnel.session.transport() == Transport::Quic;
        loop {
            tokio::select! {
                () = tunnel.session.ending() => {
                    if tunnel.session.is_closed() {
                        return None;
                    }
                    log::info!(gateway = self.gateway.as_str(); "the gateway goes away");
                    // Its successor is the same gateway.
                    if tunnel.session.is_usable() {
                        return Some(tunnel);
                    }
                    self.mark_away();
                    return None;
                }
                session = self.upgrade(), if !over_quic => {
                    log::info!(gateway = self.gateway.as_str(); "QUIC works again, new streams move over");
                    tunnel = self.serve(session);
                    over_quic = true;
                }
            }
        }
    }

    /// Opens streams in a tunnel from now on, and serves those that come.
    fn serve(&self, session: Session) -> InUse {
        log::info!(
            gateway = self.gateway.as_str(), transport:% = session.transport(), because = session.chosen_because(),
            worker = self.worker.index;
            "tunnel up"
        );
        let retired = CancellationToken::new();
        let serving = serve(self.worker.clone(), session.clone(), retired.clone());
        self.worker.shared.drain.spawn(serving);
        let id = self.tunnels.insert(self.gateway.clone(), session.clone());
        InUse { tunnels: self.tunnels.clone(), id, session, retired }
    }

    async fn upgrade(&self) -> Session {
        let first = self.tunnels.inner.quic_retry;
        let mut backoff = Backoff::new(first, first * 6);
        loop {
            backoff.pause().await;
            match self.dial(LinkTransport::Quic).await {
                Ok(session) => return session,
                Err(error) => {
                    log::debug!(gateway = self.gateway.as_str(), error:% = error; "QUIC still does not work");
                }
            }
        }
    }

    fn mark_away(&self) {
        let until = mesh_runtime::clock::monotonic() + AWAY;
        let mut away = self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.insert(self.gateway.clone(), until);
    }
}

/// A tunnel that new streams are opened in, until this is dropped; what runs
/// in it goes on.
struct InUse {
    tunnels: Tunnels,
    id: u64,
    session: Session,
    retired: CancellationToken,
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.tunnels.remove(self.id);
        self.retired.cancel();
    }
}

/// Serves the streams that come in one tunnel until it has ended, or until it
/// is not used any more and its last stream has ended.
async fn serve(worker: Arc<Worker>, session: Session, retired: CancellationToken) {
    let drain = worker.shared.drain.clone();
    let going = async {
        tokio::select! {
            biased;
            () = drain.refusing() => worker.shared.config.drain_timeout,
            () = retired.cancelled() => RETIRED_DEADLINE,
        }
    };
    let mut going = std::pin::pin!(going);
    let mut end = None;
    let mut left = false;
    let mut quiet = 0;
    let mut look = tokio::time::interval(LAST_STREAM_POLL);
    loop {
        tokio::select! {
            incoming = session.accept() => match incoming {
                Some(incoming) => reverse::serve(&worker, &session, incoming),
                None => break,
            },
            // What our successor is for comes to it; we still open streams here
            // for the connections that we have.
            () = drain.leaving(), if !left => {
                session.leave(worker.shared.config.handover_timeout);
                left = true;
            }
            deadline = &mut going, if end.is_none() => {
                session.drain(deadline);
                end = Some(mesh_runtime::clock::monotonic() + deadline);
                look.reset();
            }
            now = look.tick(), if end.is_some() => {
                quiet = if session.streams() == 0 { quiet + 1 } else { 0 };
                if quiet >= QUIET_LOOKS || end.is_some_and(|end| now >= end) {
                    session.close("not used any more");
                }
            }
            () = drain.stopping() => session.close("this proxy stops"),
        }
    }
    let why = session.closed().await;
    log::info!(
        gateway = session.hello().gateway.as_str(), transport:% = session.transport(),
        why = why.as_str();
        "tunnel down"
    );
}
