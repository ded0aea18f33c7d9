//! The snapshot from federation and its copy on disk.
//!
//! One gRPC stream: a gateway dials federation itself, everybody else goes
//! through a tunnel. While federation is away everything goes on with the
//! snapshot that is there; a machine that boots without federation begins with
//! the one on its disk.

mod disk;
mod stream;
mod taps;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use mesh_api::v1;
use mesh_core::{Snapshot, apply};
use mesh_runtime::admin::Condition;
use mesh_tunnel::control::{self, Route};
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::{
    app::Shared,
    beliefs,
    config::{Role, SnapshotSource},
    gateway::Gateway,
    identity,
    retry::Backoff,
    snapshot_cell::Complete,
    tunnels::Tunnels,
};

/// Pauses between two streams.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Getting to federation, TLS included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Starts the tasks that fill `shared.snapshot`; none if it comes from a file.
pub fn start(shared: &Shared, tunnels: &Tunnels, gateway: &Gateway) {
    if !matches!(shared.config.snapshot, SnapshotSource::Federation) {
        return;
    }
    let ready = shared.readiness.condition("snapshot");
    let disk = shared.config.state.as_deref().map(disk::Disk::new);
    let discovery = Discovery {
        shared: shared.clone(),
        tunnels: tunnels.clone(),
        sessions: (shared.config.role == Role::Gateway).then(|| gateway.told()),
        ready,
    };
    if let Some(disk) = &disk {
        discovery.begin_with(disk.read());
        shared.drain.spawn(disk::keep(disk.clone(), shared.clone()));
    }
    shared.drain.spawn(discovery.run());
}

struct Discovery {
    shared: Shared,
    tunnels: Tunnels,
    /// Gateways: what federation is told of their tunnels.
    sessions: Option<watch::Receiver<v1::NodeSessions>>,
    ready: Condition,
}

/// Why a stream has ended or could not begin.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("there is no identity yet")]
    NoIdentity,
    #[error("federation's address is not known yet")]
    NoAddress,
    #[error("no tunnel to a gateway is up")]
    NoTunnel,
    #[error("federation cannot be reached: {0}")]
    Unreachable(#[from] std::io::Error),
    #[error("federation does not answer")]
    Timeout,
    #[error("federation: {0}")]
    Ended(Box<tonic::Status>),
    #[error("federation has ended the stream")]
    Closed,
    #[error("federation does not read")]
    Stuck,
    #[error("a whole snapshot is needed: {0}")]
    Resync(String),
    #[error("this proxy now belongs to another site")]
    Moved,
}

impl From<tonic::Status> for StreamError {
    fn from(status: tonic::Status) -> Self {
        Self::Ended(Box::new(status))
    }
}

impl Discovery {
    /// Starts with the snapshot of the disk. It is good for routing at once;
    /// whether it is of this proxy's site is checked when the identity is
    /// there.
    fn begin_with(&self, delta: Option<v1::Delta>) {
        let Some(delta) = delta else { return };
        match apply(None, &delta) {
            Ok(snapshot) => {
                log::info!(
                    epoch = snapshot.revision.epoch, n = snapshot.revision.n,
                    site = snapshot.site.as_str();
                    "beginning with the snapshot on disk"
                );
                // Its endpoints are those of the services that were wanted
                // last time, and will be again.
                let complete = snapshot.services.values().filter(|s| !s.endpoints.is_empty());
                let complete: BTreeSet<_> = complete.map(|service| service.name.clone()).collect();
                complete.iter().for_each(|service| self.shared.snapshot.add_wanted(service));
                self.publish(snapshot, Complete::Services(complete));
            }
            Err(error) => {
                log::error!(error:% = error; "the snapshot on disk is not usable, beginning without");
            }
        }
    }

    /// Puts a snapshot where everybody looks.
    fn publish(&self, snapshot: Snapshot, complete: Complete) {
        beliefs::replace(&self.shared.credentials, &snapshot);
        self.shared.snapshot.store(Arc::new(snapshot), complete);
        self.ready.holds();
    }

    async fn run(mut self) {
        let drain = self.shared.drain.clone();
        tokio::select! {
            () = self.keep() => {}
            () = drain.refusing() => {}
        }
    }

    async fn keep(&mut self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut credentials = self.shared.credentials.changed();
        // `have` is offered so that federation sends only what changed.
        let mut resync = false;
        loop {
            let mut heard = false;
            let Err(error) = self.stream(resync, &mut heard).await;
            if heard {
                backoff.reset();
            }
            resync = matches!(error, StreamError::Resync(_));
            match &error {
                StreamError::NoIdentity => {
                    self.wait_for_identity(&mut credentials).await;
                    continue;
                }
                StreamError::Moved => self.forget(),
                StreamError::Ended(status) => identity::heed(&self.shared, status).await,
                _ => {}
            }
            log::warn!(error:% = error; "discovery stream ended, going on with what is there");
            if self.shared.snapshot.load().is_none() {
                self.ready.fails(error.to_string());
            }
            backoff.pause().await;
        }
    }

    async fn wait_for_identity(&self, credentials: &mut watch::Receiver<u64>) {
        if self.shared.snapshot.load().is_none() {
            self.ready.fails("waiting for an identity");
        }
        let have =
            || self.shared.credentials.svid().is_some() && self.shared.own.load().site.is_some();
        while !have() {
            if credentials.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Drops a snapshot of another site: this machine has joined elsewhere.
    fn forget(&self) {
        let own = self.shared.own.load();
        let (Some(site), Some(trust_domain)) = (&own.site, &own.trust_domain) else { return };
        let trust = self.shared.credentials.trust();
        let bundles = trust.bundles.iter().filter(|(domain, _)| *domain == trust_domain);
        let bundles: BTreeMap<_, _> = bundles.map(|(d, b)| (d.clone(), b.clone())).collect();
        let empty = Snapshot {
            revision: mesh_core::Revision::default(),
            site: site.clone(),
            trust_domain: trust_domain.clone(),
            federation: own.federation,
            services: BTreeMap::new(),
            gateways: BTreeMap::new(),
            links: BTreeMap::new(),
            bundles: Arc::new(bundles),
            revocations: Arc::default(),
        };
        self.publish(empty, Complete::Services(BTreeSet::new()));
        self.ready.fails("waiting for the first snapshot of the new site");
    }

    /// The way to federation, as of now.
    async fn channel(&self) -> Result<Channel, StreamError> {
        let own = self.shared.own.load();
        let (Some(site), Some(domain), Some(_)) =
            (&own.site, &own.trust_domain, self.shared.credentials.svid())
        else {
            return Err(StreamError::NoIdentity);
        };
        let is_ours = |now: Arc<Snapshot>| &now.site == site && &now.trust_domain == domain;
        if !self.shared.snapshot.load().is_none_or(is_ours) {
            return Err(StreamError::Moved);
        }
        let route = match self.shared.config.role {
            Role::Gateway => {
                // The identity source sits beside federation and knows better
                // than a snapshot that may be old.
                let known = || self.shared.snapshot.load().and_then(|now| now.federation);
                let addr = own.federation.or_else(known).ok_or(StreamError::NoAddress)?;
                Route::Direct(self.shared.net.clone(), addr)
            }
            Role::Node | Role::Sidecar => {
                let session = self.tunnels.session().await.ok_or(StreamError::NoTunnel)?;
                Route::Through(session, site.clone())
            }
        };
        let channel = control::channel(route, &self.shared.credentials, domain);
        let channel = Box::pin(tokio::time::timeout(CONNECT_DEADLINE, channel)).await;
        Ok(channel.map_err(|_| StreamError::Timeout)??)
    }
}
