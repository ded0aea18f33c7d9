//! What was written in `proxy.yaml`, and what it means.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use mesh_core::{Locality, PortName, ServiceName, TrustDomain};

/// What one proxy does; checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Node, sidecar or gateway.
    pub role: Role,
    /// Where the SVID comes from.
    pub identity: IdentitySource,
    /// Where the snapshot comes from.
    pub snapshot: SnapshotSource,
    /// Data workers, at least 1.
    pub workers: usize,
    /// HTTP proxy listener.
    pub http_listener: Option<SocketAddr>,
    /// Captured outbound traffic.
    pub transparent: Option<SocketAddr>,
    /// The mesh's door.
    pub inbound: Option<SocketAddr>,
    /// One service each.
    pub listeners: Vec<ServiceListener>,
    /// /metrics /live /ready.
    pub admin: Option<SocketAddr>,
    /// Where access-log lines go.
    pub access_log: AccessLogTarget,
    /// How long requests may finish after SIGTERM.
    pub drain_timeout: Duration,
    /// How long opaque connections may go on after SIGTERM.
    pub opaque_drain_timeout: Duration,
    /// Holds the last snapshot.
    pub state: Option<PathBuf>,
    /// Region, zone, host.
    pub locality: Locality,
    /// The doors, for role gateway only.
    pub gateway: Option<GatewayDoors>,
    /// Clients of `http_listener` off loopback.
    pub allow_from: Vec<Cidr>,
}

/// What a proxy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All workloads of one identity on one machine.
    Node,
    /// One workload.
    Sidecar,
    /// A site's border.
    Gateway,
}

/// Where the SVID comes from.
#[derive(Debug, Clone)]
pub enum IdentitySource {
    /// The `WorkloadIdentity` socket of vm-agent or federation.
    Socket(PathBuf),
    /// PEM files.
    Files {
        /// Leaf first, then the issuing CA.
        certificate: PathBuf,
        /// PKCS#8.
        key: PathBuf,
        /// Roots by trust domain.
        bundles: Vec<(TrustDomain, PathBuf)>,
    },
    /// The caller of [`crate::app::App::new`] has filled the credentials.
    Given,
}

/// Where the snapshot comes from.
#[derive(Debug, Clone)]
pub enum SnapshotSource {
    /// A YAML file, read once.
    File(PathBuf),
    /// The own site's federation.
    Federation,
    /// The caller of [`crate::app::App::new`] has filled the cell.
    Given,
}

/// A listener for one port of one service.
#[derive(Debug, Clone)]
pub struct ServiceListener {
    /// Where.
    pub listen: SocketAddr,
    /// For which service.
    pub service: ServiceName,
    /// For which of its ports.
    pub port: PortName,
}

/// Where access-log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// systemd's journal.
    Journald,
    /// Nowhere.
    Off,
    /// Appended to this file.
    File(PathBuf),
}

/// Where a gateway listens for tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatewayDoors {
    /// UDP; `None` offers no QUIC.
    pub quic: Option<SocketAddr>,
    /// TCP.
    pub tls: SocketAddr,
}

/// A block of addresses (RFC 4632).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    addr: std::net::IpAddr,
    prefix: u8,
}

impl Config {
    /// Everything off or default; what tests and simulations start from.
    pub fn given(role: Role) -> Self {
        Self {
            role,
            identity: IdentitySource::Given,
            snapshot: SnapshotSource::Given,
            workers: 1,
            http_listener: None,
            transparent: None,
            inbound: None,
            listeners: Vec::new(),
            admin: None,
            access_log: AccessLogTarget::Off,
            drain_timeout: Duration::from_secs(30),
            opaque_drain_timeout: Duration::from_secs(60),
            state: None,
            locality: Locality::default(),
            gateway: None,
            allow_from: Vec::new(),
        }
    }
}

impl Config {
    /// When the last of everything must have ended after SIGTERM.
    pub fn longest_drain(&self) -> Duration {
        self.drain_timeout.max(self.opaque_drain_timeout)
    }

    /// Whether a client of the HTTP proxy listener may come from `addr`.
    pub fn admits(&self, addr: std::net::IpAddr) -> bool {
        addr.to_canonical().is_loopback() || self.allow_from.iter().any(|cidr| cidr.contains(addr))
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, prefix) = text.split_once('/').unwrap_or((text, ""));
        let addr: std::net::IpAddr =
            addr.parse().map_err(|_| format!("{text:?}: not an address or CIDR block"))?;
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            "" if !text.contains('/') => longest,
            digits => digits
                .parse()
                .ok()
                .filter(|prefix| *prefix <= longest)
                .ok_or_else(|| format!("{text:?}: the prefix must be 0 to {longest}"))?,
        };
        Ok(Self { addr, prefix })
    }
}

impl Cidr {
    /// Whether an address lies in the block; IPv4-mapped IPv6 counts as IPv4.
    pub fn contains(&self, addr: std::net::IpAddr) -> bool {
        use std::net::IpAddr::{V4, V6};
        match (self.addr, addr.to_canonical()) {
            (V4(block), V4(addr)) => {
                let shift = 32 - u32::from(self.prefix);
                (u32::from(block) ^ u32::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            (V6(block), V6(addr)) => {
                let shift = 128 - u32::from(self.prefix);
                (u128::from(block) ^ u128::from(addr)).checked_shr(shift).unwrap_or(0) == 0
            }
            (V4(_), V6(_)) | (V6(_), V4(_)) => false,
        }
    }
}
