//! Wires the process: one control runtime on the main thread, and data workers
//! with a runtime, listeners and pools of their own.

use std::{io, sync::Arc};

use mesh_runtime::{admin::Readiness, drain::Drain};
use mesh_tunnel::{Credentials, Net};

use crate::{
    access_log::AccessLog,
    config::{Config, Role},
    discovery,
    gateway::Gateway,
    identity,
    metrics::Metrics,
    own::{Own, OwnCell},
    snapshot_cell::SnapshotCell,
    stats::Stats,
    tunnels::Tunnels,
    worker::{Bound, Worker},
};

/// What every part of the process shares; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shared {
    /// As checked at the start; it never changes.
    pub config: Arc<Config>,
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed; replaced by [`identity`] and [`discovery`].
    pub credentials: Arc<Credentials>,
    /// Decided from; replaced by [`discovery`].
    pub snapshot: SnapshotCell,
    /// Site, node, gateway id; replaced by [`identity`].
    pub own: OwnCell,
    /// What must hold before this proxy is ready.
    pub readiness: Readiness,
    /// What federation is told of the traffic.
    pub stats: Stats,
    /// Stop accepting, then stop.
    pub drain: Drain,
    /// What is counted.
    pub metrics: Metrics,
    /// One line per request.
    pub access_log: AccessLog,
}

impl Shared {
    /// Without identity or snapshot yet; opens the access log.
    pub fn new(
        config: Config,
        net: Arc<dyn Net>,
        credentials: Arc<Credentials>,
    ) -> io::Result<Self> {
        let metrics = Metrics::new();
        let dropped = metrics.access_log_dropped.clone();
        let access_log = AccessLog::open(&config.access_log, dropped)?;
        let own = Own { locality: config.locality.clone(), ..Own::default() };
        Ok(Self {
            config: Arc::new(config),
            net,
            credentials,
            snapshot: SnapshotCell::new(),
            own: OwnCell::new(own),
            readiness: Readiness::new(),
            stats: Stats::default(),
            drain: Drain::new(),
            metrics,
            access_log,
        })
    }
}

/// One proxy.
#[derive(Debug, Clone)]
pub struct App {
    /// What every part shares.
    pub shared: Shared,
    /// Tunnels to the gateways of the own site.
    pub tunnels: Tunnels,
    /// What the workers share in role gateway.
    pub gateway: Gateway,
}

impl App {
    /// Nothing runs yet.
    pub fn new(shared: Shared) -> Self {
        let tunnels = Tunnels::new(&shared);
        let gateway = Gateway::new(&shared);
        Self { shared, tunnels, gateway }
    }

    /// The tasks that are no worker's: identity and discovery. Call it inside
    /// the control runtime.
    fn start_control(&self) {
        identity::start(&self.shared);
        discovery::start(&self.shared, &self.tunnels, &self.gateway);
        self.gateway.start_control();
    }

    /// One worker and the control tasks in the runtime of the caller, who ends
    /// them with [`Drain::finish`]. For simulation and tests.
    pub async fn run_in_place(&self) -> io::Result<Bound> {
        self.start_control();
        self.start_worker(0, Bound::wanted(&self.shared.config)).await
    }

    /// Binds the listeners of one worker and starts its tasks, in the runtime
    /// of the caller.
    async fn start_worker(&self, index: usize, wanted: Bound) -> io::Result<Bound> {
        let worker = Worker::new(self, index);
        let bound = worker.start(&wanted).await?;
        self.tunnels.start(&worker);
        if self.shared.config.role == Role::Gateway {
            self.gateway.start(&worker).await?;
        }
        Ok(bound)
    }
}
