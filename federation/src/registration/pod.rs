//! What a cluster's controller says of its pods, as events. Pure.
//!
//! The controller is the authority over which service a pod backs and on which
//! ports, as the API server has it: no grant names them. Whom a pod may be is
//! its service account's, as for a machine its token's.

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::v1::{
    ClusterRefusal, EndpointRegistered, Grants, Health, NodeJoined, NodeLeft, Pod, Register,
    RegistryError, authority_record::Event,
};
use mesh_core::{
    NodeId, ServiceName, SpiffeId,
    name::{SYSTEM_NAMESPACE, is_reserved_namespace},
};

use super::{
    MAX_INSTANCES, OwnPorts, RegisterError, check, check_address, decide_deregister, invalid,
    ports_differ,
};
use crate::authority::{State, state::Registration};

/// The service account of `isthmus-system` whose pods are gateways; nobody's
/// where there is no cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GatewayAccount(pub Option<String>);

impl GatewayAccount {
    /// Whether a pod of this account is a gateway.
    pub fn is(&self, namespace: &str, account: &str) -> bool {
        namespace == SYSTEM_NAMESPACE && self.0.as_deref() == Some(account)
    }
}

/// The identity of a pod.
///
/// # Errors
///
/// A name that is none, or a namespace whose identities nobody is given.
pub fn identity_of(
    state: &State,
    namespace: &str,
    account: &str,
    gateways: &GatewayAccount,
) -> Result<SpiffeId, RegisterError> {
    let domain = &state.site().trust_domain;
    if gateways.is(namespace, account) {
        return Ok(SpiffeId::gateway(domain));
    }
    let id = SpiffeId::workload(domain, namespace, account);
    let id = id.map_err(|error| invalid("service account", error))?;
    if is_reserved_namespace(namespace) {
        return Err(RegisterError::Node(format!(
            "{id}: pods of the reserved namespace {namespace} are not of the mesh"
        )));
    }
    Ok(id)
}

/// The event that makes a pod known: none if it is.
///
/// # Errors
///
/// Its identity is none, or a machine, or a pod of somebody else, has its UID.
pub fn decide_known(
    state: &State,
    node: &NodeId,
    pod: &Pod,
    gateways: &GatewayAccount,
) -> Result<Option<Event>, RegisterError> {
    identity_of(state, &pod.namespace, &pod.account, gateways)?;
    let grants = Grants {
        namespace: pod.namespace.clone(),
        account: pod.account.clone(),
        services: Vec::new(),
    };
    match state.nodes.get(node) {
        Some(known) if known.pod && known.grants == grants => return Ok(None),
        Some(_) => {
            let problem = format!("{node} is the id of another machine or pod");
            return Err(RegisterError::Node(problem));
        }
        None => {}
    }
    Ok(Some(Event::NodeJoined(NodeJoined {
        id: node.to_string(),
        grants: Some(grants),
        hostname: crate::join::text(&format!("{}/{}", pod.namespace, pod.name)),
        gateway: gateways.is(&pod.namespace, &pod.account),
        pod: true,
        ..NodeJoined::default()
    })))
}

/// What machines that are no pods have registered, by service.
pub type OfMachines<'a> = BTreeMap<&'a ServiceName, Vec<&'a Registration>>;

/// Looks at every registration: once for all pods of a change.
pub fn of_machines(state: &State) -> OfMachines<'_> {
    let mut of = OfMachines::new();
    for known in state.registrations.values().filter(|known| !known.of_pod) {
        of.entry(&known.service).or_default().push(known);
    }
    of
}

/// What makes true that a pod is as told; instances that are refused are not
/// there afterwards.
pub fn decide_pod(
    state: &State,
    of_machines: &OfMachines<'_>,
    pod: &Pod,
    gateways: &GatewayAccount,
    own_ports: &OwnPorts,
) -> (Vec<Event>, Vec<ClusterRefusal>) {
    let refuse = |service: &str, error: &RegisterError| refusal(&pod.uid, service, error);
    let node = match pod.uid.parse::<NodeId>() {
        Ok(node) => node,
        Err(error) => return (vec![], vec![refuse("", &invalid("uid", error))]),
    };
    let mut events = Vec::new();
    match decide_known(state, &node, pod, gateways) {
        Ok(event) => events.extend(event),
        Err(error) => return (vec![], vec![refuse("", &error)]),
    }
    let mut refused = Vec::new();
    let mut kept = BTreeSet::new();
    for register in &pod.instances {
        let decided = match kept.len() {
            MAX_INSTANCES => Err(RegisterError::Quota),
            _ => own_ports
                .check(register)
                .and_then(|()| decide_instance(state, of_machines, &node, pod, register, gateways)),
        };
        match decided {
            Ok(event) => {
                kept.insert(register.instance.as_str());
                events.extend(event);
            }
            Err(error) => refused.push(refuse(&register.service, &error)),
        }
    }
    for known in state.registrations_of(&node) {
        let instance = known.register.instance.as_str();
        if !kept.contains(instance) {
            events.extend(decide_deregister(state, &node, instance, "asked"));
        }
    }
    (events, refused)
}

/// A refusal as the controller hears it.
pub fn refusal(pod: &str, service: &str, error: &RegisterError) -> ClusterRefusal {
    ClusterRefusal {
        pod: pod.to_owned(),
        service: service.to_owned(),
        error: error.code().into(),
        detail: error.to_string(),
    }
}

/// The events of a pod that is no more. Its certificates end by themselves: a
/// revocation for each pod of a busy cluster is nothing that every proxy could
/// keep.
pub fn decide_gone(state: &State, node: &NodeId) -> Option<Event> {
    let known = state.nodes.get(node).is_some_and(|known| known.pod);
    known.then(|| Event::NodeLeft(NodeLeft { id: node.to_string() }))
}

fn decide_instance(
    state: &State,
    of_machines: &OfMachines<'_>,
    node: &NodeId,
    pod: &Pod,
    register: &Register,
    gateways: &GatewayAccount,
) -> Result<Option<Event>, RegisterError> {
    let service = check(register)?;
    if service.namespace() != pod.namespace {
        return Err(invalid("service", "must be of the pod's namespace"));
    }
    check_address(state, register)?;
    // The Service says for all pods what its ports are; a machine may disagree.
    for other in of_machines.get(&service).into_iter().flatten() {
        if let Some((port, problem)) = ports_differ(&register.ports, &other.register.ports) {
            let node = other.node.clone();
            return Err(RegisterError::Conflict { service, port, node, problem });
        }
    }
    let identity = identity_of(state, &pod.namespace, &pod.account, gateways)?;
    // Health is live state and never durable.
    let register = Register { health: Health::Unspecified.into(), ..register.clone() };
    let existing = state.registrations.get(&(node.clone(), register.instance.as_str().into()));
    if existing.is_some_and(|known| known.register == register && known.identity == identity) {
        return Ok(None);
    }
    Ok(Some(Event::Registered(EndpointRegistered {
        node: node.to_string(),
        spiffe_id: identity.to_string(),
        register: Some(register),
        registered_at: 0,
    })))
}

/// A change that is no pod's.
pub fn invalid_change(service: &str, problem: impl ToString) -> ClusterRefusal {
    ClusterRefusal {
        service: service.to_owned(),
        error: RegistryError::Invalid.into(),
        detail: problem.to_string(),
        ..ClusterRefusal::default()
    }
}
