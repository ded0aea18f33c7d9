//! What several commands show: the messages of the wire as documents. Field
//! names are stable; scripts read them.

use mesh_api::v1;
use serde::Serialize;

use crate::output::{Paint, Show};

/// A change that has been made; nothing else to say.
#[derive(Debug, Serialize)]
pub struct Done {
    done: String,
}

impl Done {
    /// `what` names the resource and what it is now.
    pub fn new(what: impl Into<String>) -> Self {
        Self { done: what.into() }
    }
}

impl Show for Done {
    fn text(&self, _wide: bool, _paint: Paint) -> String {
        format!("{}\n", self.done)
    }
}

/// What a node may obtain and register.
#[derive(Debug, Serialize, Clone)]
pub struct Grants {
    /// Of its workload's identity.
    pub namespace: String,
    /// Of its workload's identity.
    pub account: String,
    /// Names, or `*.<namespace>`.
    pub services: Vec<String>,
}

impl Grants {
    /// `<namespace>/<account>`.
    pub fn identity(&self) -> String {
        if self.namespace.is_empty() && self.account.is_empty() {
            return String::new();
        }
        format!("{}/{}", self.namespace, self.account)
    }
}

impl From<v1::Grants> for Grants {
    fn from(grants: v1::Grants) -> Self {
        Self { namespace: grants.namespace, account: grants.account, services: grants.services }
    }
}

/// A joined machine.
#[derive(Debug, Serialize, Clone)]
pub struct Node {
    /// UUID.
    pub id: String,
    /// As it called itself when it joined.
    pub hostname: String,
    /// `connected`, `leaving`, `unknown`, `lapsed`, `duplicated`.
    pub state: String,
    /// What it may obtain and register.
    pub grants: Option<Grants>,
    /// End of the node certificate.
    pub certificate_expires_unix_s: i64,
    /// Milliseconds.
    pub last_heard_ms: u64,
    /// Of vm-agent.
    pub agent_version: String,
    /// Hex.
    pub serial: String,
    /// Hex.
    pub previous_serial: String,
    /// How far its clock is ahead of federation's, milliseconds.
    pub clock_ahead_ms: Option<i64>,
}

impl From<v1::NodeInfo> for Node {
    fn from(node: v1::NodeInfo) -> Self {
        Self {
            id: node.id,
            hostname: node.hostname,
            state: node.state,
            grants: node.grants.map(Into::into),
            certificate_expires_unix_s: node.certificate_expires_unix_s,
            last_heard_ms: node.last_heard_ms,
            agent_version: node.agent_version,
            serial: node.serial,
            previous_serial: node.previous_serial,
            clock_ahead_ms: node.clock_ahead_ms,
        }
    }
}

/// A port of a service.
#[derive(Debug, Serialize, Clone)]
pub struct Port {
    /// Unique in the service.
    pub name: String,
    /// What clients dial.
    pub number: u32,
    /// `http`, `grpc`, `tcp`, `tls` or `detect`.
    pub protocol: &'static str,
}

impl From<v1::Port> for Port {
    fn from(port: v1::Port) -> Self {
        let protocol = match port.protocol() {
            v1::Protocol::Unspecified => "detect",
            v1::Protocol::Http => "http",
            v1::Protocol::Grpc => "grpc",
            v1::Protocol::Tcp => "tcp",
            v1::Protocol::Tls => "tls",
        };
        Self { name: port.name, number: port.number, protocol }
    }
}

impl Port {
    /// `http 80, grpc 50051`.
    pub fn list(ports: &[Port]) -> String {
        let one = |port: &Port| format!("{} {}/{}", port.name, port.number, port.protocol);
        ports.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// A link, as one of its sites sees it.
#[derive(Debug, Serialize, Clone)]
pub struct Link {
    /// The other site.
    pub site: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// `up`, `connecting`, `lost`.
    pub state: String,
    /// What gateways say of their tunnels.
    pub tunnels: Vec<Tunnel>,
    /// Since the last delta or heartbeat of the peer.
    pub last_heard_ms: u64,
    /// Of the peer's trust bundle.
    pub bundle_sequence: u64,
    /// SHA-256 of the peer's root.
    pub root_fingerprint: String,
    /// Services the peer may call.
    pub exports: Vec<String>,
    /// Services of the peer that are known here.
    pub imports: Vec<String>,
    /// What could not be imported, and why.
    pub refused: Vec<String>,
    /// How far the clock of its federation is ahead of ours, milliseconds.
    pub clock_ahead_ms: Option<i64>,
}

/// The tunnels of one gateway to one site.
#[derive(Debug, Serialize, Clone)]
pub struct Tunnel {
    /// Own gateway.
    pub gateway: String,
    /// `quic` or `tls`.
    pub transport: String,
    /// Round-trip time, milliseconds.
    pub rtt_ms: f64,
    /// How many are open.
    pub count: u32,
    /// Why it is not the preferred transport; empty if it is.
    pub reason: String,
}

impl From<v1::LinkInfo> for Link {
    fn from(link: v1::LinkInfo) -> Self {
        Self {
            site: link.site,
            trust_domain: link.trust_domain,
            state: link.state,
            tunnels: link.tunnels.into_iter().map(Into::into).collect(),
            last_heard_ms: link.last_heard_ms,
            bundle_sequence: link.bundle_sequence,
            root_fingerprint: link.root_fingerprint,
            exports: link.exports,
            imports: link.imports,
            refused: link.refused,
            clock_ahead_ms: link.clock_ahead_ms,
        }
    }
}

impl From<v1::TunnelStatus> for Tunnel {
    fn from(tunnel: v1::TunnelStatus) -> Self {
        Self {
            gateway: tunnel.gateway,
            transport: tunnel.transport,
            rtt_ms: f64::from(u32::try_from(tunnel.rtt_us).unwrap_or(u32::MAX)) / 1000.0,
            count: tunnel.count,
            reason: tunnel.reason,
        }
    }
}

impl Link {
    /// The transports in use, e.g. `quic` or `quic+tls`.
    pub fn transports(&self) -> String {
        let mut names: Vec<&str> =
            self.tunnels.iter().filter(|t| t.count > 0).map(|t| t.transport.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join("+")
    }

    /// The longest round-trip time of its tunnels, `1.2ms`.
    pub fn rtt(&self) -> String {
        let longest = self.tunnels.iter().map(|tunnel| tunnel.rtt_ms).fold(0.0, f64::max);
        if longest > 0.0 { format!("{longest:.1}ms") } else { String::new() }
    }
}

/// A state word in its colour.
pub fn state(paint: Paint, word: &str) -> String {
    match word {
        "up" | "connected" | "healthy" | "open" => paint.good(word),
        "lost" | "lapsed" | "duplicated" | "unhealthy" => paint.bad(word),
        _ => paint.warn(word),
    }
}

/// The word for a health.
pub fn health(health: v1::Health) -> &'static str {
    match health {
        v1::Health::Unspecified | v1::Health::Unknown => "unknown",
        v1::Health::Healthy => "healthy",
        v1::Health::Unhealthy => "unhealthy",
        v1::Health::Draining => "draining",
    }
}
