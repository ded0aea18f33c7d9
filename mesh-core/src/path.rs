//! How bytes get to an endpoint: the source's choice, and a gateway's.

use std::net::SocketAddr;

use crate::{
    identity::PeerIdentity,
    name::{EndpointId, GatewayId, NodeId, PortName, ServiceName, SiteName, SpiffeId},
    service::Endpoint,
    snapshot::Snapshot,
};

/// How a source reaches an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// Dial its proxy.
    Direct(SocketAddr),
    /// Through a gateway of the own site to another site; any of these.
    ViaGateway(Vec<GatewayId>),
    /// Through a gateway of the own site and a session that the endpoint's
    /// node dialled; those that hold one first.
    Reverse(Vec<GatewayId>),
}

impl Path {
    /// `direct`, `via gateway` or `reverse`.
    pub fn describe(&self) -> &'static str {
        match self {
            Path::Direct(_) => "direct",
            Path::ViaGateway(_) => "via gateway",
            Path::Reverse(_) => "reverse",
        }
    }
}

/// Nothing leads there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint {endpoint} in {site}: {problem}")]
pub struct NoPath {
    /// Which endpoint.
    pub endpoint: EndpointId,
    /// Where it runs.
    pub site: SiteName,
    /// What is missing.
    pub problem: &'static str,
}

/// How to reach `endpoint` from a proxy of the snapshot's site.
pub fn path_to(_snapshot: &Snapshot, endpoint: &Endpoint) -> Result<Path, NoPath> {
    endpoint.address.map(Path::Direct).ok_or(NoPath {
        endpoint: endpoint.id.clone(),
        site: endpoint.site.clone(),
        problem: "it has no address",
    })
}

/// The header of one tunnel stream, parsed. Names, never addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Where the endpoint runs.
    pub site: SiteName,
    /// What it backs.
    pub service: ServiceName,
    /// Which port.
    pub port: PortName,
    /// Which endpoint; `None` only towards `federation.isthmus-system`.
    pub endpoint: Option<EndpointId>,
    /// Gateways passed so far.
    pub hops: u8,
    /// Joins log lines; at most 64 printable ASCII bytes.
    pub connection_id: String,
}

/// More gateways than this on one path are refused.
pub const MAX_HOPS: u8 = 3;

/// Where a gateway sends a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextHop {
    /// The inbound listener of an endpoint's proxy.
    Dial {
        /// Its address.
        addr: SocketAddr,
        /// Who must answer (checked by the inner session, not by the gateway).
        identity: SpiffeId,
    },
    /// A stream of the session that this node dialled.
    Session(NodeId),
    /// A gateway of this site that holds the node's session.
    Sibling(Vec<GatewayId>, NodeId),
    /// A tunnel of the link to this site.
    Link(SiteName),
    /// This site's federation.
    Federation(SocketAddr),
}

/// Why a gateway refuses a stream; the codes of `Refused` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RefusedReason {
    /// The header could not be read or lacks a part.
    #[error("malformed")]
    Malformed,
    /// Neither this site nor a linked one.
    #[error("unknown_site")]
    UnknownSite,
    /// Not in this gateway's snapshot.
    #[error("unknown_service")]
    UnknownService,
    /// Not in this gateway's snapshot.
    #[error("unknown_endpoint")]
    UnknownEndpoint,
    /// The neighbour's site may not see it.
    #[error("not_exported")]
    NotExported,
    /// Too many gateways.
    #[error("hop_limit")]
    HopLimit,
    /// The neighbour's role does not allow it.
    #[error("role")]
    Role,
    /// A quota of the neighbour is used up.
    #[error("quota")]
    Quota,
    /// No tunnel or session leads on.
    #[error("no_path")]
    NoPath,
    /// The endpoint's proxy did not answer.
    #[error("unreachable")]
    Unreachable,
    /// Going away.
    #[error("draining")]
    Draining,
    /// A critical extension is not understood.
    #[error("unsupported")]
    Unsupported,
    /// The next hop took too long.
    #[error("timeout")]
    Timeout,
}

/// A gateway's whole decision on one stream.
///
/// From its own site the neighbour must be a node, workload or gateway of its
/// trust domain, and the target local or imported. From a link the neighbour
/// must be that link's gateway, the target of this site, and exported to it.
/// `sessions` says whether this gateway holds a session of a node.
pub fn forward(
    _snapshot: &Snapshot,
    _own: &GatewayId,
    _neighbour: &PeerIdentity,
    _connect: &Connect,
    _sessions: impl Fn(&NodeId) -> bool,
) -> Result<NextHop, RefusedReason> {
    Err(RefusedReason::UnknownSite)
}
