//! This proxy's tunnels to the gateways of its site.
//!
//! The first worker keeps tunnels to up to [`GATEWAYS`] gateways, every other
//! worker one of its own, so that its streams stay on its thread. Each tunnel
//! is kept up: re-dialled within a second when it ends, moved to QUIC when
//! that works again, and replaced when its gateway goes away. Streams that a
//! gateway opens in them are served if they name an endpoint of ours.

mod keeper;
mod reverse;

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_core::{
    Gateway, GatewayId,
    path::{Connect, Path},
};
use mesh_tunnel::{GatewayAddresses, OpenError, Session, Transport, TunnelStream};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{app::Shared, config::Role, worker::Worker};

/// Gateways to which the first worker keeps tunnels.
pub const GATEWAYS: usize = 3;
/// How long a stream waits for a tunnel to come up.
pub const UP_DEADLINE: Duration = Duration::from_secs(2);
/// Pause before QUIC is tried again after a fall-back to TLS/TCP; doubles up
/// to six times this.
const QUIC_RETRY: Duration = Duration::from_secs(10);

/// Shared by all workers; clones are the same tunnels.
#[derive(Debug, Clone)]
pub struct Tunnels {
    inner: Arc<Inner>,
    /// The worker whose tunnels are preferred.
    home: usize,
}

#[derive(Debug)]
struct Inner {
    shared: Shared,
    held: Mutex<Vec<Held>>,
    next: AtomicU64,
    turn: AtomicU64,
    changed: watch::Sender<u64>,
    quic_retry: Duration,
}

/// One tunnel that is up.
#[derive(Debug, Clone)]
struct Held {
    id: u64,
    worker: usize,
    gateway: GatewayId,
    session: Session,
}

impl Tunnels {
    /// Dials nothing yet.
    pub fn new(shared: &Shared) -> Self {
        Self::retrying_quic(shared, QUIC_RETRY)
    }

    /// The same with another pause before QUIC is tried again.
    pub fn retrying_quic(shared: &Shared, quic_retry: Duration) -> Self {
        let inner = Inner {
            shared: shared.clone(),
            held: Mutex::default(),
            next: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            changed: watch::Sender::new(0),
            quic_retry,
        };
        Self { inner: Arc::new(inner), home: 0 }
    }

    /// The same tunnels, seen from one worker: its own are preferred.
    #[must_use]
    pub fn at(&self, worker: usize) -> Self {
        Self { inner: self.inner.clone(), home: worker }
    }

    /// Called once by each worker, inside its runtime. Streams that arrive in
    /// reverse are handed to `inbound::serve_stream` of that worker.
    pub fn start(&self, worker: &Arc<Worker>) {
        let shared = &self.inner.shared;
        if shared.config.role != Role::Gateway {
            shared.drain.spawn(keeper::keep(self.at(worker.index), worker.clone()));
        }
    }

    /// A stream along `path`, which is never [`Path::Direct`], begun and not
    /// yet answered: that has to happen before `deadline`. Waits at most
    /// [`UP_DEADLINE`] for a tunnel; every error is one of the path, never of
    /// the endpoint, unless a hop says otherwise.
    pub async fn begin(
        &self,
        path: &Path,
        connect: &Connect,
        deadline: Instant,
    ) -> Result<TunnelStream, OpenError> {
        let gateways: &[GatewayId] = match path {
            Path::ViaGateway(gateways) | Path::Reverse(gateways) => gateways,
            Path::Direct(_) => &[],
        };
        let up = deadline.min(Instant::now() + UP_DEADLINE);
        loop {
            let held = self.up(gateways, up).await.ok_or(OpenError::Closed)?;
            let left = deadline.saturating_duration_since(Instant::now());
            return match held.session.begin(connect, left).await {
                // It ended between being chosen and being used: nothing was
                // sent, so another one may do.
                Err(OpenError::Closed) if Instant::now() < up => {
                    self.remove(held.id);
                    continue;
                }
                outcome => outcome,
            };
        }
    }

    /// A tunnel to any gateway, for control streams. Waits at most
    /// [`UP_DEADLINE`].
    pub async fn session(&self) -> Option<Session> {
        self.up(&[], Instant::now() + UP_DEADLINE).await.map(|held| held.session)
    }

    /// Waits until each worker has a tunnel, if there is a gateway to have one
    /// to: requests that come in reverse find this process from then on.
    pub async fn settled(&self) {
        let Inner { shared, .. } = &*self.inner;
        let mut changed = self.changed();
        while shared.config.role != Role::Gateway && !keeper::known(shared).is_empty() {
            let with: BTreeSet<usize> = self.lock().iter().map(|held| held.worker).collect();
            if with.len() >= shared.config.workers || changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// What carries the tunnels that are up, by gateway.
    pub fn transports(&self) -> Vec<(GatewayId, Transport)> {
        let held = self.lock();
        held.iter().map(|held| (held.gateway.clone(), held.session.transport())).collect()
    }

    /// Wakes whenever a tunnel comes or goes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    async fn up(&self, gateways: &[GatewayId], deadline: Instant) -> Option<Held> {
        let mut changed = self.changed();
        loop {
            if let Some(held) = self.choose(gateways) {
                return Some(held);
            }
            timeout_at(deadline, changed.changed()).await.ok()?.ok()?;
        }
    }

    /// The best tunnel that is up: to a gateway that is listed early (those
    /// hold the session of the node), of the own worker, over QUIC; in turns
    /// among equals. A gateway that is not listed may hand the stream on.
    fn choose(&self, gateways: &[GatewayId]) -> Option<Held> {
        let held = self.lock();
        let rank = |held: &Held| {
            let listed = gateways.iter().position(|id| id == &held.gateway);
            let is_quic = held.session.transport() == Transport::Quic;
            // Only whether it is listed counts, not where: otherwise every
            // source would use the first gateway of the list.
            let leaving = !held.session.is_open();
            (leaving, listed.is_none(), held.worker != self.home, !is_quic)
        };
        let usable = || held.iter().filter(|held| held.session.is_usable());
        let best = usable().map(rank).min()?;
        let equals = || usable().filter(|held| rank(held) == best);
        let turn = self.inner.turn.fetch_add(1, Ordering::Relaxed) as usize;
        equals().nth(turn % equals().count().max(1)).cloned()
    }

    fn insert(&self, gateway: GatewayId, session: Session) -> u64 {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.lock().push(Held { id, worker: self.home, gateway, session });
        self.tell();
        id
    }

    fn remove(&self, id: u64) {
        self.lock().retain(|held| held.id != id);
        self.tell();
    }

    fn tell(&self) {
        self.inner.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Held>> {
        self.inner.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Completes when the path of a stream of `session` goes away: the gateway
/// itself, or one further along as far as it has told, or the tunnel has
/// ended. Holds no stream, but keeps the session from ending by itself.
pub(crate) fn going(
    session: &Session,
    connection_id: &str,
) -> impl Future<Output = ()> + Send + use<> {
    let mut drained = session.drained_streams();
    let (session, connection_id) = (session.clone(), connection_id.to_owned());
    async move {
        loop {
            tokio::select! {
                () = session.ending() => return,
                ids = drained.recv() => match ids {
                    Ok(ids) if !ids.contains(&connection_id) => {}
                    // Named; or too much was missed to know that it was not.
                    Ok(_) | Err(_) => return,
                },
            }
        }
    }
}

/// Where a gateway can be dialled.
pub(crate) fn addresses(gateway: &Gateway) -> GatewayAddresses {
    GatewayAddresses { quic: gateway.quic_addresses.clone(), tls: gateway.tls_addresses.clone() }
}

/// Random per process start.
pub(crate) fn boot_id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| format!("{:032x}", rand::random::<u128>()))
}

/// Up to `count` of `gateways`, chosen so that proxies spread over them and
/// each keeps its choice while the others come and go (rendezvous hashing).
/// Those that are `away` only if there are not enough others.
fn select<'a>(
    gateways: impl Iterator<Item = &'a Gateway>,
    count: usize,
    seed: &str,
    away: impl Fn(&GatewayId) -> bool,
) -> Vec<&'a Gateway> {
    let mut ranked: Vec<_> = gateways
        .map(|gateway| {
            let mut hasher = DefaultHasher::new();
            (seed, gateway.id.as_str()).hash(&mut hasher);
            (away(&gateway.id), hasher.finish(), gateway)
        })
        .collect();
    ranked.sort_by_key(|(away, hash, _)| (*away, *hash));
    ranked.into_iter().take(count).map(|(_, _, gateway)| gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(id: &str) -> Gateway {
        Gateway {
            id: id.parse().unwrap(),
            site: "east".parse().unwrap(),
            quic_addresses: Vec::new(),
            tls_addresses: Vec::new(),
        }
    }

    fn ids(chosen: &[&Gateway]) -> Vec<String> {
        let mut ids: Vec<_> = chosen.iter().map(|gateway| gateway.id.to_string()).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn proxies_spread_over_gateways_and_keep_their_choice() {
        let all: Vec<_> = (0..6).map(|n| gateway(&format!("gw-{n}"))).collect();
        let mut used = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let seed = seed.to_string();
            let chosen = ids(&select(all.iter(), 3, &seed, |_| false));
            assert_eq!(chosen.len(), 3);
            // One that was not chosen goes: nothing changes for this proxy.
            let other = all.iter().find(|g| !chosen.contains(&g.id.to_string())).unwrap();
            let rest = all.iter().filter(|gateway| gateway.id != other.id);
            assert_eq!(ids(&select(rest, 3, &seed, |_| false)), chosen);
            used.extend(chosen);
        }
        assert_eq!(used.len(), 6);
    }

    #[test]
    fn a_gateway_that_goes_away_is_used_only_if_there_is_no_other() {
        let all = [gateway("gw-1"), gateway("gw-2")];
        let away = |id: &GatewayId| id.as_str() == "gw-1";
        assert_eq!(ids(&select(all.iter(), 1, "x", away)), ["gw-2"]);
        assert_eq!(ids(&select(all.iter(), 2, "x", away)), ["gw-1", "gw-2"]);
        assert_eq!(ids(&select(all[..1].iter(), 1, "x", away)), ["gw-1"]);
    }
}
