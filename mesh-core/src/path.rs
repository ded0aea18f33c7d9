//! How bytes get to an endpoint: the source's choice, and a gateway's.

use std::net::{IpAddr, SocketAddr};

use mesh_api::FEDERATION_SERVICE;

use crate::{
    address::{self, Forbidden},
    identity::PeerIdentity,
    name::{
        EndpointId, GatewayId, NodeId, PortName, ServiceName, SiteName, SpiffeId, Subject,
        is_reserved_namespace,
    },
    service::{Endpoint, Link},
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
pub fn path_to(snapshot: &Snapshot, endpoint: &Endpoint) -> Result<Path, NoPath> {
    let no_path = |problem| {
        let (endpoint, site) = (endpoint.id.clone(), endpoint.site.clone());
        Err(NoPath { endpoint, site, problem })
    };
    let own = snapshot.gateways.keys().filter(|(site, _)| *site == snapshot.site);
    if endpoint.site != snapshot.site {
        if !snapshot.links.contains_key(&endpoint.site) {
            return no_path("its site is not linked to this one");
        }
        let gateways: Vec<GatewayId> = own.map(|(_, id)| id.clone()).collect();
        if gateways.is_empty() {
            return no_path("this site has no gateway");
        }
        return Ok(Path::ViaGateway(gateways));
    }
    if let Some(addr) = endpoint.address {
        return Ok(Path::Direct(addr));
    }
    // A gateway without the session hands on to one that has it.
    let (mut holders, others): (Vec<GatewayId>, Vec<GatewayId>) =
        own.map(|(_, id)| id.clone()).partition(|id| endpoint.via.contains(id));
    if holders.is_empty() {
        return no_path("it has no address, and no gateway holds a session of its node");
    }
    holders.extend(others);
    Ok(Path::Reverse(holders))
}

/// Whether [`path_to`] finds one, without making it.
pub fn is_reachable(snapshot: &Snapshot, endpoint: &Endpoint) -> bool {
    let own = |(site, _): &&(SiteName, GatewayId)| *site == snapshot.site;
    let mut gateways = snapshot.gateways.keys().filter(own);
    if endpoint.site != snapshot.site {
        return snapshot.links.contains_key(&endpoint.site) && gateways.next().is_some();
    }
    endpoint.address.is_some() || gateways.any(|(_, id)| endpoint.via.contains(id))
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

/// Word of a traced request in a stream, for the gateways of its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// Of the stream.
    pub connection_id: String,
    /// The whole trace.
    pub trace: [u8; 16],
    /// The source's span, by which the request is known.
    pub request: [u8; 8],
    /// The span of the hop before.
    pub parent: [u8; 8],
    /// Whether it has ended, or begins.
    pub ended: bool,
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
    /// An address, or an endpoint whose address must not be dialled.
    #[error("forbidden_target")]
    ForbiddenTarget,
}

/// What a gateway knows of itself.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// Its name in its site.
    pub id: &'a GatewayId,
    /// Where it listens, whatever for.
    pub listens: &'a [SocketAddr],
    /// Whether its host has this address.
    pub has: &'a dyn Fn(IpAddr) -> bool,
    /// Whether it holds a session of this node.
    pub holds: &'a dyn Fn(&NodeId) -> bool,
}

/// A gateway's whole decision on one stream.
///
/// From its own site the neighbour must be a node, workload or gateway of its
/// trust domain, and the target local or imported. From a link the neighbour
/// must be that link's gateway, the target of this site, and exported to it.
/// What is dialled is never the mesh itself or this host ([`address`]).
///
/// The caller passes `connect` on with one hop more.
pub fn forward(
    snapshot: &Snapshot,
    own: Own<'_>,
    neighbour: &PeerIdentity,
    connect: &Connect,
) -> Result<NextHop, RefusedReason> {
    if connect.hops >= MAX_HOPS {
        return Err(RefusedReason::HopLimit);
    }
    let neighbour = Neighbour::of(snapshot, &neighbour.id)?;
    if connect.service.as_str() == FEDERATION_SERVICE {
        return forward_to_federation(snapshot, neighbour, &connect.site);
    }
    let endpoint = match neighbour {
        Neighbour::Node | Neighbour::Federation => return Err(RefusedReason::Role),
        Neighbour::Link(link) => exported(snapshot, link, connect)?,
        Neighbour::Workload | Neighbour::Sibling => named(snapshot, connect)?,
    };
    if endpoint.site != snapshot.site {
        return match neighbour {
            Neighbour::Workload => Ok(NextHop::Link(endpoint.site.clone())),
            // A sibling has tunnels of its own.
            _ => Err(RefusedReason::Role),
        };
    }
    let Some(identity) = &endpoint.identity else { return Err(RefusedReason::UnknownEndpoint) };
    if let Some(addr) = endpoint.address {
        check_dialled(snapshot, own, addr).map_err(|_| RefusedReason::ForbiddenTarget)?;
        return Ok(NextHop::Dial { addr, identity: identity.clone() });
    }
    let from_sibling = matches!(neighbour, Neighbour::Sibling);
    forward_to_session(snapshot, endpoint, own, from_sibling)
}

/// Who opened the stream, by identity alone.
#[derive(Clone, Copy)]
enum Neighbour<'s> {
    /// A machine of this site.
    Node,
    /// A workload of this site.
    Workload,
    /// This site's federation.
    Federation,
    /// A gateway of this site.
    Sibling,
    /// The gateway of a linked site.
    Link(&'s Link),
}

impl<'s> Neighbour<'s> {
    fn of(snapshot: &'s Snapshot, id: &SpiffeId) -> Result<Self, RefusedReason> {
        if *id.trust_domain() != snapshot.trust_domain {
            let mut links = snapshot.links.values();
            let link = links.find(|link| link.trust_domain == *id.trust_domain());
            return match link {
                Some(link) if id.is_gateway() => Ok(Self::Link(link)),
                _ => Err(RefusedReason::Role),
            };
        }
        Ok(match id.subject() {
            Subject::Node(_) => Self::Node,
            Subject::Workload { .. } if id.is_gateway() => Self::Sibling,
            Subject::Workload { .. } if id.is_federation() => Self::Federation,
            Subject::Workload { .. } => Self::Workload,
        })
    }
}

/// Control traffic: everybody of the own site to the own federation, a linked
/// site's gateway to it too, and only federation itself to another's.
fn forward_to_federation(
    snapshot: &Snapshot,
    neighbour: Neighbour<'_>,
    site: &SiteName,
) -> Result<NextHop, RefusedReason> {
    if *site == snapshot.site {
        return match neighbour {
            // Every gateway reaches its own federation itself.
            Neighbour::Sibling => Err(RefusedReason::Role),
            _ => snapshot.federation.map(NextHop::Federation).ok_or(RefusedReason::NoPath),
        };
    }
    match neighbour {
        Neighbour::Link(_) => Err(transit(snapshot, site)),
        _ if !snapshot.links.contains_key(site) => Err(RefusedReason::UnknownSite),
        Neighbour::Federation => Ok(NextHop::Link(site.clone())),
        _ => Err(RefusedReason::Role),
    }
}

/// From one link to another: reserved.
fn transit(snapshot: &Snapshot, site: &SiteName) -> RefusedReason {
    if snapshot.links.contains_key(site) {
        RefusedReason::Unsupported
    } else {
        RefusedReason::UnknownSite
    }
}

/// The endpoint that a stream from a link names.
fn exported<'s>(
    snapshot: &'s Snapshot,
    link: &Link,
    connect: &Connect,
) -> Result<&'s Endpoint, RefusedReason> {
    if connect.site != snapshot.site {
        return Err(transit(snapshot, &connect.site));
    }
    let service = snapshot.services.get(&connect.service).ok_or(RefusedReason::UnknownService)?;
    // What keeps the mesh itself is never exported, whatever a record says.
    let reserved = is_reserved_namespace(service.name.namespace());
    if reserved || !service.exported_to.contains(&link.site) {
        return Err(RefusedReason::NotExported);
    }
    named(snapshot, connect)
}

/// The endpoint that a stream names.
fn named<'s>(snapshot: &'s Snapshot, connect: &Connect) -> Result<&'s Endpoint, RefusedReason> {
    let Connect { site, service, port, endpoint, .. } = connect;
    if *site != snapshot.site && !snapshot.links.contains_key(site) {
        return Err(RefusedReason::UnknownSite);
    }
    if !snapshot.services.contains_key(service) {
        return Err(RefusedReason::UnknownService);
    }
    let id = endpoint.as_ref().ok_or(RefusedReason::Malformed)?;
    let found = snapshot.endpoint(service.as_str(), site, id.as_str());
    match found {
        Some(endpoint) if endpoint.port == *port => Ok(endpoint),
        _ => Err(RefusedReason::UnknownEndpoint),
    }
}

/// Whether the gateway that is `own` may dial the address of an endpoint:
/// besides its own ports, those of federation and of every gateway are no
/// endpoint's.
pub fn check_dialled(snapshot: &Snapshot, own: Own<'_>, addr: SocketAddr) -> Result<(), Forbidden> {
    let gateways = || snapshot.gateways.values();
    let of_site = gateways().filter(|gateway| gateway.site == snapshot.site);
    let loopback = address::is_on_loopback(of_site.flat_map(|gateway| gateway.addresses()));
    let doors = gateways().flat_map(|gateway| gateway.addresses());
    let doors = doors.filter_map(|text| text.parse().ok());
    let own_ports = own.listens.iter().copied().chain(snapshot.federation);
    let listens: Vec<SocketAddr> = own_ports.chain(doors).collect();
    address::check(addr, address::Place { loopback, listens: &listens, has: own.has })
}

/// Uses the session of its node: here, or at a gateway beside `own`, unless
/// the stream comes from there: it is handed on only once.
fn forward_to_session(
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    own: Own<'_>,
    from_sibling: bool,
) -> Result<NextHop, RefusedReason> {
    let node = endpoint.node.as_ref().ok_or(RefusedReason::NoPath)?;
    if (own.holds)(node) {
        return Ok(NextHop::Session(node.clone()));
    }
    if from_sibling {
        return Err(RefusedReason::NoPath);
    }
    let known = |id: &GatewayId| {
        id != own.id && snapshot.gateways.contains_key(&(snapshot.site.clone(), id.clone()))
    };
    let holders: Vec<GatewayId> = endpoint.via.iter().filter(|id| known(id)).cloned().collect();
    if holders.is_empty() {
        return Err(RefusedReason::NoPath);
    }
    Ok(NextHop::Sibling(holders, node.clone()))
}

#[cfg(test)]
mod tests;
