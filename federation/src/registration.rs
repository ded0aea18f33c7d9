//! Whether a node may register what it asks for. Pure.

pub mod pod;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_api::v1::{
    EndpointDeregistered, EndpointRegistered, Grants, Health, Port, Protocol, Register,
    RegistryError, authority_record::Event,
};
use mesh_core::{
    NodeId, PortName, ServiceName, SpiffeId,
    address::{self, Forbidden, Place},
    name::is_reserved_namespace,
};

use crate::authority::{State, state::Registration};

/// Instances that one node may register.
pub const MAX_INSTANCES: usize = 256;
/// Ports that one instance may have.
pub const MAX_PORTS: usize = 16;
/// The longest instance name and part of a locality, in bytes.
const MAX_TEXT: usize = 64;
/// The largest weight and capacity: sums over a hundred thousand endpoints stay in `u64`.
const MAX_WEIGHT: u32 = 1_000_000;

/// Why a registration is refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The node's grants do not name the service.
    #[error(
        "{service}: not granted to this node (it may register {granted}); join with a token made \
         with --service {service}"
    )]
    NotGranted {
        /// What it asked for.
        service: ServiceName,
        /// What it may.
        granted: String,
    },
    /// The namespace belongs to the mesh or to Kubernetes.
    #[error("{0}: its namespace is reserved; choose one without kube- or isthmus- in front")]
    Reserved(ServiceName),
    /// A field is not well formed.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which field.
        what: String,
        /// Which rule it breaks.
        problem: String,
    },
    /// An address that nobody may be made to dial.
    #[error(
        "address {addr}: {problem}; set `advertise` in agent.yaml to where other machines reach \
         this one's proxy, or leave it out: gateways then use the tunnel that this machine opens"
    )]
    Address {
        /// What it asked for.
        addr: SocketAddr,
        /// Why not.
        problem: Forbidden,
    },
    /// Too many instances.
    #[error("this node has {MAX_INSTANCES} instances already; remove one first")]
    Quota,
    /// Another instance of the service has other ports.
    #[error("{service}: port {port} differs from the one that node {node} registered: {problem}")]
    Conflict {
        /// Which service.
        service: ServiceName,
        /// Which port.
        port: String,
        /// Who registered the other one.
        node: NodeId,
        /// What differs.
        problem: &'static str,
    },
    /// The node is not joined, or held to exist twice.
    #[error("{0}")]
    Node(String),
}

impl RegisterError {
    /// The code on the wire.
    pub fn code(&self) -> RegistryError {
        match self {
            Self::NotGranted { .. } | Self::Node(_) => RegistryError::NotGranted,
            Self::Reserved(_) => RegistryError::ReservedNamespace,
            Self::Invalid { .. } => RegistryError::Invalid,
            Self::Address { .. } => RegistryError::ForbiddenAddress,
            Self::Quota => RegistryError::Quota,
            Self::Conflict { .. } => RegistryError::Conflict,
        }
    }
}

/// The events that make `register` true: none if it is true already.
///
/// The identity comes from the node's grants; nothing in the request can
/// change it.
pub fn decide_register(
    state: &State,
    node: &NodeId,
    register: &Register,
) -> Result<Vec<Event>, RegisterError> {
    let joined = state.nodes.get(node);
    let joined = joined.ok_or_else(|| RegisterError::Node(format!("node {node} is not joined")))?;
    if let Some(reason) = &joined.duplicated {
        let remedy = "`meshctl node resolve` on the site decides which one stays";
        return Err(RegisterError::Node(format!("node {node} exists twice ({reason}); {remedy}")));
    }
    let service = check(register)?;
    check_granted(&service, &joined.grants)?;
    check_address(state, register)?;
    let grants = &joined.grants;
    let identity =
        SpiffeId::workload(&state.site().trust_domain, &grants.namespace, &grants.account)
            .map_err(|error| invalid("grants", error))?;
    // Health is live state and never durable.
    let register = Register { health: Health::Unspecified.into(), ..register.clone() };
    let existing = state.registrations.get(&(node.clone(), register.instance.as_str().into()));
    if existing.is_some_and(|known| known.register == register && known.identity == identity) {
        return Ok(Vec::new());
    }
    if existing.is_none() && state.registrations_of(node).count() >= MAX_INSTANCES {
        return Err(RegisterError::Quota);
    }
    check_ports_agree(state, node, &service, &register)?;
    Ok(vec![Event::Registered(EndpointRegistered {
        node: node.to_string(),
        spiffe_id: identity.to_string(),
        register: Some(register),
        registered_at: 0,
    })])
}

/// The events that end one registration: none if there is none.
pub fn decide_deregister(state: &State, node: &NodeId, instance: &str, why: &str) -> Vec<Event> {
    let known = state.registrations.contains_key(&(node.clone(), instance.into()));
    let event = || {
        Event::Deregistered(EndpointDeregistered {
            node: node.to_string(),
            instance: instance.to_owned(),
            reason: why.to_owned(),
        })
    };
    known.then(event).into_iter().collect()
}

/// The events that end all registrations of a node.
pub fn decide_deregister_all(state: &State, node: &NodeId, why: &str) -> Vec<Event> {
    state
        .registrations_of(node)
        .flat_map(|known| decide_deregister(state, node, &known.register.instance, why))
        .collect()
}

fn invalid(what: impl Into<String>, problem: impl ToString) -> RegisterError {
    RegisterError::Invalid { what: what.into(), problem: problem.to_string() }
}

/// Checks form; returns the parsed service name.
fn check(register: &Register) -> Result<ServiceName, RegisterError> {
    check_instance(&register.instance)?;
    let service: ServiceName =
        register.service.parse().map_err(|error| invalid("service", error))?;
    if is_reserved_namespace(service.namespace()) {
        return Err(RegisterError::Reserved(service));
    }
    check_ports(&register.ports)?;
    if register.target_ports.len() != register.ports.len() {
        return Err(invalid("target_ports", "must be one for each port"));
    }
    for target in &register.target_ports {
        check_port_number("target_ports", *target)?;
    }
    check_target_address(register)?;
    if register.weight > MAX_WEIGHT {
        return Err(invalid("weight", format!("must be at most {MAX_WEIGHT}")));
    }
    if register.capacity > MAX_WEIGHT {
        return Err(invalid("capacity", format!("must be at most {MAX_WEIGHT}")));
    }
    let locality = register.locality.clone().unwrap_or_default();
    for part in [&locality.region, &locality.zone, &locality.host] {
        if part.len() > MAX_TEXT || !part.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(invalid("locality", "parts must be at most 64 printable ASCII bytes"));
        }
    }
    Ok(service)
}

fn check_instance(instance: &str) -> Result<(), RegisterError> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if instance.is_empty() || instance.len() > MAX_TEXT || !instance.bytes().all(ok) {
        return Err(invalid("instance", "must be 1 to 64 of a-z, A-Z, 0-9, '.', '-' and '_'"));
    }
    Ok(())
}

/// Checks the ports of one service: also used for what a link sends.
pub fn check_ports(ports: &[Port]) -> Result<(), RegisterError> {
    if ports.is_empty() || ports.len() > MAX_PORTS {
        return Err(invalid("ports", format!("must be 1 to {MAX_PORTS}")));
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for port in ports {
        port.name.parse::<PortName>().map_err(|error| invalid("ports", error))?;
        check_port_number("ports", port.number)?;
        if Protocol::try_from(port.protocol).is_err() {
            return Err(invalid("ports", format!("{}: unknown protocol", port.name)));
        }
        if !names.insert(&port.name) || !numbers.insert(port.number) {
            return Err(invalid("ports", format!("{}: named or numbered twice", port.name)));
        }
    }
    Ok(())
}

fn check_port_number(what: &str, number: u32) -> Result<(), RegisterError> {
    if (1..=65535).contains(&number) {
        return Ok(());
    }
    Err(invalid(what, format!("{number} is no port number; it must be 1 to 65535")))
}

fn check_target_address(register: &Register) -> Result<(), RegisterError> {
    if !register.target_address.is_empty() {
        let ip: IpAddr = register
            .target_address
            .parse()
            .map_err(|_| invalid("target_address", "must be an IP address"))?;
        if ip.is_multicast() || ip.is_unspecified() {
            return Err(invalid("target_address", "must be the address of one host"));
        }
    }
    Ok(())
}

/// Where others dial this instance; `None` if through its tunnel alone.
fn address(register: &Register) -> Result<Option<SocketAddr>, RegisterError> {
    match register.address.as_str() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| invalid("address", "must be ip:port")),
    }
}

/// Gateways dial it for others: neither a host that is none of the site's nor
/// a gateway.
fn check_address(state: &State, register: &Register) -> Result<(), RegisterError> {
    let Some(addr) = address(register)? else { return Ok(()) };
    check_dialled(state, addr).map_err(|problem| RegisterError::Address { addr, problem })
}

/// Whether somebody of the site may dial an address that somebody else has chosen.
///
/// # Errors
///
/// If it leads to a gateway, or to what is none of the site's.
pub fn check_dialled(state: &State, addr: SocketAddr) -> Result<(), Forbidden> {
    let of_site = || {
        let of_it = state.gateways.values();
        of_it.flat_map(|gateway| gateway.quic_addresses.iter().chain(&gateway.tls_addresses))
    };
    let linked = state.links.values().flat_map(|link| &link.gateways);
    let linked =
        linked.flat_map(|gateway| gateway.quic_addresses.iter().chain(&gateway.tls_addresses));
    let listens: Vec<SocketAddr> =
        of_site().chain(linked).filter_map(|text| text.parse().ok()).collect();
    let loopback = address::is_on_loopback(of_site().map(String::as_str));
    let place = Place { loopback, listens: &listens, has: &|_| false };
    address::check(addr, place)
}

/// Where this federation itself listens. Clones share it.
#[derive(Clone)]
pub struct OwnPorts {
    /// gRPC, as bound and as gateways reach it, and admin.
    pub listens: Arc<[SocketAddr]>,
    /// Whether its host has an address.
    pub has: Arc<dyn Fn(IpAddr) -> bool + Send + Sync>,
}

impl fmt::Debug for OwnPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnPorts").field("listens", &self.listens).finish_non_exhaustive()
    }
}

impl OwnPorts {
    /// An instance that would be there is none. Not pure, and so apart from
    /// [`decide_register`]: addresses of a host come and go.
    pub fn check(&self, register: &Register) -> Result<(), RegisterError> {
        let Some(addr) = address(register)? else { return Ok(()) };
        // What else the address may be is decided from the state.
        let place = Place { loopback: true, listens: &self.listens, has: &*self.has };
        match address::check(addr, place) {
            Err(problem @ Forbidden::Own) => Err(RegisterError::Address { addr, problem }),
            _ => Ok(()),
        }
    }
}

fn check_granted(service: &ServiceName, grants: &Grants) -> Result<(), RegisterError> {
    let granted = |grant: &String| match grant.strip_prefix("*.") {
        Some(namespace) => namespace == service.namespace(),
        None => grant == service.as_str(),
    };
    if grants.services.iter().any(granted) {
        return Ok(());
    }
    let granted = match grants.services.as_slice() {
        [] => "no service".to_owned(),
        services => services.join(", "),
    };
    Err(RegisterError::NotGranted { service: service.clone(), granted })
}

/// All instances of a service agree on its ports.
fn check_ports_agree(
    state: &State,
    node: &NodeId,
    service: &ServiceName,
    register: &Register,
) -> Result<(), RegisterError> {
    let others = state.registrations.values().filter(|other| {
        other.service == *service
            && !(other.node == *node && other.register.instance == register.instance)
    });
    for other in others {
        if let Some((port, problem)) = ports_differ(&register.ports, &other.register.ports) {
            let (service, node) = (service.clone(), other.node.clone());
            return Err(RegisterError::Conflict { service, port, node, problem });
        }
    }
    Ok(())
}

/// The first port on which two lists disagree, and how. A port that only one
/// of them has is no disagreement, nor is a protocol that one leaves open.
pub fn ports_differ(a: &[Port], b: &[Port]) -> Option<(String, &'static str)> {
    let open = i32::from(Protocol::Unspecified);
    for port in a {
        for other in b {
            let problem = match (port.name == other.name, port.number == other.number) {
                (true, false) => "another number",
                (false, true) => "the same number under another name",
                (true, true) if port.protocol == other.protocol => continue,
                (true, true) if port.protocol == open || other.protocol == open => continue,
                (true, true) => "another protocol",
                (false, false) => continue,
            };
            return Some((port.name.clone(), problem));
        }
    }
    None
}

/// The ports of a service: those of all its instances, a declared protocol
/// before an open one, by number.
pub fn union_of_ports<'a>(lists: impl Iterator<Item = &'a [Port]>) -> Vec<Port> {
    let mut union: Vec<Port> = Vec::new();
    for port in lists.flatten() {
        match union.iter_mut().find(|known| known.name == port.name) {
            Some(known) if known.protocol() == Protocol::Unspecified => {
                known.protocol = port.protocol;
            }
            Some(_) => {}
            None => union.push(port.clone()),
        }
    }
    union.sort_by_key(|port| port.number);
    union.truncate(mesh_core::wire::MAX_PORTS);
    union
}

/// Whether two registrations are the same but for their health.
pub fn is_same(known: &Registration, register: &Register) -> bool {
    known.register == Register { health: known.register.health, ..register.clone() }
}

#[cfg(test)]
mod tests;
