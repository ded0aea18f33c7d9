//! What is true of a site only while somebody says so: never written to disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::v1::{Health, TunnelStatus};
use mesh_core::{NodeId, SiteName};
use tokio::time::Instant;

use crate::imports::Imported;

/// Health, gateway sessions and imports.
#[derive(Debug, Default)]
pub struct Live {
    /// As last reported, by node and instance.
    pub health: BTreeMap<(NodeId, Arc<str>), Reported>,
    /// By gateway id.
    pub gateways: BTreeMap<String, GatewayLive>,
    /// By linked site.
    pub links: BTreeMap<SiteName, LinkLive>,
}

/// A health report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// What was reported.
    pub health: Health,
    /// For people.
    pub detail: String,
}

/// What a gateway said last.
#[derive(Debug, Default, PartialEq)]
pub struct GatewayLive {
    /// Nodes that hold a session with it.
    pub nodes: BTreeSet<NodeId>,
    /// Its tunnels to linked sites.
    pub tunnels: Vec<TunnelStatus>,
    /// The newest of its streams that has spoken: what an older one says, or that
    /// it ends, changes nothing.
    pub stream: u64,
    /// Since when it has no stream.
    pub gone: Option<Instant>,
}

/// The replication from one linked site.
#[derive(Debug, Default)]
pub struct LinkLive {
    /// What it exports to us, as last accepted.
    pub imported: Imported,
    /// Whether a replication stream is up.
    pub up: bool,
    /// When it last sent a delta or a heartbeat.
    pub heard: Option<Instant>,
    /// Why its last delta was refused.
    pub refused: Option<String>,
    /// Why there is no stream.
    pub problem: Option<String>,
    /// How far the clock of its federation is ahead of ours, if it has said.
    pub clock_ahead_ms: Option<i64>,
}

impl LinkLive {
    /// `up`, `connecting` (never was) or `lost`.
    pub fn state(&self) -> &'static str {
        match (self.up, self.heard) {
            (true, _) => "up",
            (false, None) => "connecting",
            (false, Some(_)) => "lost",
        }
    }
}
