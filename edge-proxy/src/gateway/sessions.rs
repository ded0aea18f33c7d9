//! Which tunnels this gateway holds, by what they lead to. Shared by all
//! workers; a handle found here may be used from any of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use mesh_core::{GatewayId, NodeId, SiteName, SpiffeId};
use mesh_tunnel::{Session, Transport};
use tokio::sync::watch;

/// Who is at the other end of a tunnel, decided once when it comes up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Neighbour {
    /// A proxy of a node of this site; streams may be opened towards it.
    Node(NodeId, SpiffeId),
    /// Somebody of this site who only opens streams: a machine agent,
    /// federation, a command line, a proxy without a node.
    Client(SpiffeId),
    /// A gateway of a linked site.
    Link(SiteName, GatewayId),
    /// Another gateway of this site.
    Sibling(GatewayId),
}

impl std::fmt::Display for Neighbour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(node, id) => write!(f, "{id} on node {node}"),
            Self::Client(id) => write!(f, "{id}"),
            Self::Link(site, gateway) => write!(f, "gateway {gateway} of site {site}"),
            Self::Sibling(gateway) => write!(f, "gateway {gateway} of this site"),
        }
    }
}

/// Names one tunnel in this process.
pub type TunnelId = u64;

/// One tunnel that is up.
#[derive(Debug, Clone)]
pub struct Held {
    /// Names it.
    pub id: TunnelId,
    /// Who is at the other end.
    pub neighbour: Neighbour,
    /// Handle.
    pub session: Session,
    /// Why it is not over the preferred transport; empty if it is.
    pub reason: String,
    /// A better one has replaced it: it takes no new streams.
    retired: bool,
}

impl Held {
    fn is_usable(&self) -> bool {
        !self.retired && self.session.is_usable()
    }

    /// Its other end goes away, and takes only what can go nowhere else.
    fn is_leaving(&self) -> bool {
        !self.session.is_open()
    }
}

/// What tunnels are looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Node(NodeId),
    Link(SiteName),
    Sibling(GatewayId),
}

fn target(neighbour: &Neighbour) -> Option<Target> {
    match neighbour {
        Neighbour::Node(node, _) => Some(Target::Node(node.clone())),
        Neighbour::Link(site, _) => Some(Target::Link(site.clone())),
        Neighbour::Sibling(gateway) => Some(Target::Sibling(gateway.clone())),
        Neighbour::Client(_) => None,
    }
}

/// All tunnels of this gateway that streams may be opened in.
#[derive(Debug)]
pub struct Sessions {
    /// Oldest first.
    held: Mutex<HashMap<Target, Vec<Held>>>,
    next: AtomicU64,
    turn: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            held: Mutex::default(),
            next: AtomicU64::new(0),
            turn: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }
}

impl Sessions {
    /// Adds a tunnel that has come up; the answer names it.
    pub fn insert(&self, neighbour: Neighbour, session: Session, reason: String) -> TunnelId {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(target) = target(&neighbour) {
            let held = Held { id, neighbour, session, reason, retired: false };
            self.lock().entry(target).or_default().push(held);
            self.tell();
        }
        id
    }

    /// Forgets a tunnel that has ended.
    pub fn remove(&self, neighbour: &Neighbour, id: TunnelId) {
        let Some(target) = target(neighbour) else { return };
        let mut held = self.lock();
        if let Some(tunnels) = held.get_mut(&target) {
            tunnels.retain(|tunnel| tunnel.id != id);
            if tunnels.is_empty() {
                held.remove(&target);
            }
        }
        drop(held);
        self.tell();
    }

    /// Opens nothing new in a tunnel; what runs in it goes on.
    pub fn retire(&self, neighbour: &Neighbour, id: TunnelId) {
        self.update(neighbour, id, |tunnel| tunnel.retired = true);
    }

    /// Says why a tunnel is not over the preferred transport.
    pub fn explain(&self, neighbour: &Neighbour, id: TunnelId, reason: &str) {
        self.update(neighbour, id, |tunnel| reason.clone_into(&mut tunnel.reason));
    }

    fn update(&self, neighbour: &Neighbour, id: TunnelId, change: impl FnOnce(&mut Held)) {
        let Some(target) = target(neighbour) else { return };
        let mut held = self.lock();
        let found = held
            .get_mut(&target)
            .and_then(|tunnels| tunnels.iter_mut().find(|tunnel| tunnel.id == id));
        if let Some(tunnel) = found {
            change(tunnel);
        }
        drop(held);
        self.tell();
    }

    /// Whether a proxy of this node can be reached here.
    pub fn holds(&self, node: &NodeId) -> bool {
        let held = self.lock();
        held.get(&Target::Node(node.clone())).is_some_and(|all| all.iter().any(Held::is_usable))
    }

    /// The newest tunnel of a node: one of the proxy with `identity` if there
    /// is one, since a machine may run several.
    pub fn node(&self, node: &NodeId, identity: Option<&SpiffeId>) -> Option<Session> {
        let held = self.lock();
        let is_wanted = |tunnel: &Held| matches!(&tunnel.neighbour, Neighbour::Node(_, id) if Some(id) == identity);
        let all = held.get(&Target::Node(node.clone()))?.iter().rev();
        let best = all
            .filter(|tunnel| tunnel.is_usable())
            .min_by_key(|tunnel| (!is_wanted(tunnel), tunnel.is_leaving()))?;
        Some(best.session.clone())
    }

    /// A tunnel to a linked site: QUIC while there is one, in turns.
    pub fn link(&self, site: &SiteName) -> Option<Session> {
        self.in_turn(&Target::Link(site.clone()))
    }

    /// A tunnel to a gateway of this site.
    pub fn sibling(&self, gateway: &GatewayId) -> Option<Session> {
        self.in_turn(&Target::Sibling(gateway.clone()))
    }

    fn in_turn(&self, target: &Target) -> Option<Session> {
        let held = self.lock();
        let all = held.get(target)?;
        let rank = |tunnel: &Held| (tunnel.is_leaving(), !is_quic(tunnel));
        let usable = || all.iter().filter(|tunnel| tunnel.is_usable());
        let best = usable().map(rank).min()?;
        let equals = || usable().filter(|tunnel| rank(tunnel) == best);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) as usize;
        let chosen = equals().nth(turn % equals().count().max(1))?;
        Some(chosen.session.clone())
    }

    /// Everything that is reported: nodes with a usable tunnel, and the
    /// tunnels to linked sites.
    pub fn overview(&self) -> (Vec<NodeId>, BTreeMap<SiteName, Vec<Held>>) {
        let held = self.lock();
        let mut nodes = Vec::new();
        let mut links = BTreeMap::new();
        for (target, tunnels) in held.iter() {
            match target {
                Target::Node(node) if tunnels.iter().any(Held::is_usable) => {
                    nodes.push(node.clone());
                }
                Target::Link(site) => {
                    links.insert(site.clone(), tunnels.clone());
                }
                Target::Node(_) | Target::Sibling(_) => {}
            }
        }
        nodes.sort_unstable();
        (nodes, links)
    }

    /// Wakes whenever a tunnel comes, goes or changes.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Vec<Held>>> {
        self.held.lock().expect("no code that holds this lock panics")
    }
}

fn is_quic(tunnel: &Held) -> bool {
    tunnel.session.transport() == Transport::Quic
}
