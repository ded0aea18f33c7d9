//! What one proxy does, checked. [`written`] is the file, [`flags`] what was
//! said beside it, [`file`] what both mean.

pub mod file;
pub mod flags;
pub mod forwarded;
pub mod manner;
pub mod sni;
pub mod tracing;
pub mod transition;
pub mod written;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

pub use flags::Flags;
pub use forwarded::Forwarded;
pub use manner::{Errors, Manner};
use mesh_core::{Cidr, GatewayId, Locality, PortName, ServiceName, TrustDomain};
use mesh_runtime::config::Setting;
pub use sni::SniListener;
pub use tracing::Tracing;
pub use transition::{ListenerCertificate, ListenerTls};
pub use written::Probe;

pub use crate::outbound::dtab::Allowed as DtabOverride;
use crate::{access_log::AccessLogFormat, files::IdentityFiles};

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
    /// One own service each, for clients that are not of the mesh.
    pub inbound_plaintext: Vec<ServiceListener>,
    /// One service each.
    pub listeners: Vec<ServiceListener>,
    /// Any service each, by the name that TLS clients ask for.
    pub sni_listeners: Vec<SniListener>,
    /// What applications are told of clients.
    pub forwarded: Forwarded,
    /// Clients are let go before the end.
    pub has_successor: bool,
    /// Whether applications are told of callers' certificates, too.
    pub forwarded_client_cert: bool,
    /// /metrics /live /ready.
    pub admin: Option<SocketAddr>,
    /// Where access-log lines go.
    pub access_log: AccessLogTarget,
    /// How they are written.
    pub access_log_format: AccessLogFormat,
    /// Where spans go; `None` leaves traces alone.
    pub tracing: Option<Tracing>,
    /// Where figures go as statsd has them.
    pub statsd: Option<SocketAddr>,
    /// Where operators of this machine look at requests.
    pub control_socket: Option<PathBuf>,
    /// Where names and virtual addresses are kept for who resolves names.
    pub names_file: Option<PathBuf>,
    /// Bytes that this process may hold before it takes in nobody new; `None`
    /// is a part of what the machine has.
    pub memory_limit: Option<u64>,
    /// How long requests may finish after SIGTERM.
    pub drain_timeout: Duration,
    /// How long opaque connections may go on after SIGTERM.
    pub opaque_drain_timeout: Duration,
    /// How long connections may go on after a successor has taken over.
    pub handover_timeout: Duration,
    /// Holds the last snapshot and the last identity.
    pub state: Option<PathBuf>,
    /// Region, zone, host.
    pub locality: Locality,
    /// The doors, for role gateway only.
    pub gateway: Option<GatewayDoors>,
    /// Where captured traffic to applications of this host arrives.
    pub inbound_transparent: Option<SocketAddr>,
    /// What the platform asks applications to see how they do.
    pub inbound_probes: Vec<Probe>,
    /// A gateway's name in its site; `None` if the identity source knows it.
    pub gateway_id: Option<GatewayId>,
    /// Clients of `http_listener` and `sni_listeners` off loopback.
    pub allow_from: Vec<Cidr>,
    /// Services that requests may choose by `l5d-dtab`.
    pub dtab_overrides: Vec<DtabOverride>,
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
    /// Federation, to whom a token of the platform tells who this is.
    Attest(Attest),
    /// PEM files.
    Files(IdentityFiles),
    /// There is none: only endpoints in plaintext can be called.
    None,
    /// The caller of [`crate::app::App::new`] has filled the credentials.
    Given,
}

/// How this proxy proves who it is where no agent vouches for it.
#[derive(Debug, Clone)]
pub struct Attest {
    /// Holds the token; read anew each time.
    pub token: PathBuf,
    /// Roots of the own trust domain, PEM; read anew each time.
    pub roots: PathBuf,
    /// `host:port` of federation's gRPC listener.
    pub federation: Arc<str>,
    /// The own trust domain.
    pub trust_domain: TrustDomain,
}

impl IdentitySource {
    /// Whether somebody issues certificates to this proxy, and may say no.
    pub fn is_issued(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Attest(_))
    }
}

/// Where the snapshot comes from.
#[derive(Debug, Clone)]
pub enum SnapshotSource {
    /// A YAML file, read once.
    File {
        /// Which.
        path: PathBuf,
        /// What was set beside it.
        set: Vec<Setting>,
    },
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
    /// With a certificate that is not of the mesh; `None` is plaintext.
    pub tls: Option<ListenerTls>,
    /// How requests are taken.
    pub manner: Manner,
}

/// Where access-log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
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
            inbound_plaintext: Vec::new(),
            listeners: Vec::new(),
            sni_listeners: Vec::new(),
            forwarded: Forwarded::Auto,
            has_successor: false,
            forwarded_client_cert: false,
            admin: None,
            access_log: AccessLogTarget::Off,
            access_log_format: AccessLogFormat::Json,
            tracing: None,
            statsd: None,
            control_socket: None,
            names_file: None,
            memory_limit: None,
            drain_timeout: Duration::from_secs(30),
            opaque_drain_timeout: Duration::from_secs(60),
            handover_timeout: Duration::from_secs(60),
            state: None,
            locality: Locality::default(),
            gateway: None,
            inbound_transparent: None,
            inbound_probes: Vec::new(),
            gateway_id: None,
            allow_from: Vec::new(),
            dtab_overrides: Vec::new(),
        }
    }
}

impl Config {
    /// When the last of everything must have ended after SIGTERM.
    pub fn longest_drain(&self) -> Duration {
        self.drain_timeout.max(self.opaque_drain_timeout)
    }

    /// Whether a client who names its service itself may come from `addr`.
    pub fn admits(&self, addr: std::net::IpAddr) -> bool {
        addr.to_canonical().is_loopback() || self.allow_from.iter().any(|cidr| cidr.contains(addr))
    }
}
