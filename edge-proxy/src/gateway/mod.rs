//! The role at a site's border: it authenticates its neighbours, decides with
//! `mesh_core::path::forward` over its own snapshot, and copies bytes that it
//! cannot read. It has no workload keys, never retries and never chooses
//! another endpoint.
//!
//! - [`door`]: what comes in: tunnels, and strangers who want to join.
//! - [`neighbours`]: one tunnel, from its `Hello` to its end.
//! - [`streams`]: one stream: decided, connected on, copied, logged.
//! - [`relay`]: bytes both ways until both have ended.
//! - [`peers`]: the tunnels that this side dials: to linked sites and siblings.
//! - [`sessions`]: all tunnels, by what they lead to.
//! - [`quota`]: how much one neighbour may have open.
//! - [`report`]: what federation is told.
//! - [`metrics`]: what is counted.

pub mod door;
pub mod metrics;
pub mod neighbours;
pub mod peers;
pub mod quota;
pub mod relay;
pub mod report;
pub mod sessions;
pub mod streams;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_api::v1;
use mesh_core::{GatewayId, SiteName, Snapshot, TrustDomain};
use mesh_runtime::clock;
use tokio::{sync::watch, time::Instant};

use self::{
    metrics::Metrics,
    quota::{Limits, Quotas},
    sessions::Sessions,
};
use crate::{
    app::Shared,
    config::Role,
    worker::{Bound, Worker},
};

/// Longer than neighbours take to dial anew.
const GATHERING: Duration = Duration::from_secs(2);

/// Deadlines and limits of a gateway.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// Quotas per neighbour.
    pub limits: Limits,
    /// A stream in which nothing moves for this long is reset.
    pub stream_idle: Duration,
    /// How long an endpoint's proxy or federation may take to accept a
    /// connection.
    pub dial_deadline: Duration,
    /// How long the next gateway or proxy may take to answer a `Connect`, at
    /// the first gateway of a path; each further one waits half a second less.
    pub open_deadline: Duration,
    /// Pause before QUIC is tried again on a link that fell back to TLS/TCP;
    /// doubles up to six times this.
    pub quic_retry: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            stream_idle: Duration::from_secs(3600),
            // Sources wait 5 s in all.
            dial_deadline: Duration::from_millis(2500),
            open_deadline: Duration::from_millis(4500),
            quic_retry: Duration::from_secs(10),
        }
    }
}

/// Where a gateway listens: UDP if it offers QUIC, and TCP.
pub type DoorAddrs = (Option<SocketAddr>, SocketAddr);

/// What the workers of a gateway share; clones are the same gateway. In the
/// other roles it stays empty.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<State>);

#[derive(Debug)]
pub(crate) struct State {
    shared: Shared,
    tuning: Tuning,
    sessions: Sessions,
    quotas: Quotas,
    metrics: Metrics,
    told: watch::Sender<v1::NodeSessions>,
    doors: watch::Sender<Option<DoorAddrs>>,
    /// When the first tunnel came in.
    opened: OnceLock<Instant>,
}

/// What a gateway must know of itself before it can open its doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) site: SiteName,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) id: GatewayId,
}

impl Own {
    /// How this gateway is called in refusals: `<site>/<gateway id>`.
    pub(crate) fn hop(&self) -> String {
        format!("{}/{}", self.site, self.id)
    }
}

impl Gateway {
    /// Nothing runs yet.
    pub fn new(shared: &Shared) -> Self {
        Self::tuned(shared, Tuning::default())
    }

    /// The same with other deadlines and limits.
    pub fn tuned(shared: &Shared, tuning: Tuning) -> Self {
        Self(Arc::new(State {
            shared: shared.clone(),
            tuning,
            sessions: Sessions::default(),
            quotas: Quotas::new(tuning.limits),
            metrics: shared.metrics.gateway.clone(),
            told: watch::Sender::default(),
            doors: watch::Sender::default(),
            opened: OnceLock::new(),
        }))
    }

    /// Starts the tasks that are no worker's: reports to federation.
    pub fn start_control(&self) {
        if self.0.shared.config.role == Role::Gateway {
            self.0.shared.drain.spawn(report::keep(self.0.clone()));
        }
    }

    /// Fails if an address of the doors cannot be bound.
    pub async fn probe(&self) -> io::Result<()> {
        door::probe(&self.0).await
    }

    /// Opens the doors of one worker and starts its tasks, in the runtime of
    /// the caller; the doors open once there is an identity.
    pub fn start(&self, worker: &Arc<Worker>) {
        // Who waits for a gateway to be ready knocks at once.
        let ready = self.0.shared.readiness.condition("doors");
        self.0.shared.drain.spawn(door::keep(self.0.clone(), ready));
        self.0.shared.drain.spawn(peers::keep(self.0.clone(), worker.index));
    }

    /// What federation is told of this gateway's tunnels.
    pub fn told(&self) -> watch::Receiver<v1::NodeSessions> {
        self.0.told.subscribe()
    }

    /// Where it listens, once it does.
    pub fn doors(&self) -> watch::Receiver<Option<DoorAddrs>> {
        self.0.doors.subscribe()
    }
}

impl State {
    fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.shared.snapshot.load()
    }

    /// Who has just opened waits this long for those who come back to it:
    /// what is missing until then is not refused at once.
    fn gathering_until(&self) -> Option<Instant> {
        let until = *self.opened.get()? + GATHERING;
        (until > clock::monotonic()).then_some(until)
    }

    /// Where this process listens, whatever for.
    fn listens(&self) -> Vec<SocketAddr> {
        let config = &self.shared.config;
        let written = config.gateway.map(|doors| (doors.quic, doors.tls));
        let doors = [written, *self.doors.borrow()].into_iter().flatten();
        let doors = doors.flat_map(|(quic, tls)| quic.into_iter().chain([tls]));
        let bound = Bound::wanted(config);
        let Bound { http, transparent, inbound_transparent, inbound, .. } = bound;
        let Bound { listeners, sni, plaintext, .. } = bound;
        let others = [config.admin, http, transparent, inbound_transparent, inbound];
        let others = others.into_iter().flatten();
        doors.chain(others).chain(plaintext).chain(listeners).chain(sni).collect()
    }

    /// What this gateway is; waits for the identity source. `None` if the
    /// process stops before that.
    async fn own(&self) -> Option<Own> {
        let mut changed = self.shared.credentials.changed();
        loop {
            let own = self.shared.own.load();
            if let (Some(site), Some(trust_domain), Some(id), Some(_)) =
                (&own.site, &own.trust_domain, &own.gateway, self.shared.credentials.svid())
            {
                let (site, trust_domain) = (site.clone(), trust_domain.clone());
                return Some(Own { site, trust_domain, id: id.clone() });
            }
            tokio::select! {
                changed = changed.changed() => changed.ok()?,
                () = self.shared.drain.closing() => return None,
            }
        }
    }
}
