//! What a change of the cluster does to a site. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use mesh_api::v1::{
    ClusterChange, ClusterRefusal, ClusterService, ServiceAddressed, ServiceExported,
    authority_record::Event,
};
use mesh_core::{NodeId, ServiceName, SiteName, name::is_reserved_namespace};

use crate::{
    authority::{
        State,
        state::{ClusterAddress, Export},
    },
    registration::{
        OwnPorts,
        pod::{GatewayAccount, decide_gone, decide_pod, invalid_change, of_machines},
    },
};

/// The events of a change, and what of it is refused.
pub(super) fn decide_change(
    state: &State,
    change: &ClusterChange,
    gateways: &GatewayAccount,
    own_ports: &OwnPorts,
) -> (Vec<Event>, Vec<ClusterRefusal>) {
    let (mut events, mut refused) = (Vec::new(), Vec::new());
    let of_machines = of_machines(state);
    for pod in &change.pods {
        let (of_pod, not) = decide_pod(state, &of_machines, pod, gateways, own_ports);
        events.extend(of_pod);
        refused.extend(not);
    }
    let gone = change.gone.iter().filter_map(|uid| uid.parse().ok());
    events.extend(gone.filter_map(|node| decide_gone(state, &node)));
    for service in &change.services {
        match decide_service(state, service) {
            Ok(of_service) => events.extend(of_service),
            Err(problem) => refused.push(invalid_change(&service.name, problem)),
        }
    }
    for name in change.gone_services.iter().filter_map(|name| name.parse().ok()) {
        events.extend(decide_service_gone(state, &name));
    }
    (events, refused)
}

/// The events that end what the cluster has not told of, when it has told all.
pub(super) fn forgotten(
    state: &State,
    pods: &BTreeSet<NodeId>,
    services: &BTreeSet<ServiceName>,
) -> Vec<Event> {
    let gone = state.nodes.keys().filter(|node| !pods.contains(*node));
    let mut events: Vec<Event> = gone.filter_map(|node| decide_gone(state, node)).collect();
    let by_cluster = state.exports.iter().filter(|(_, export)| export.by_cluster);
    let known: BTreeSet<&ServiceName> =
        by_cluster.map(|(name, _)| name).chain(state.addresses.keys()).collect();
    for name in known.into_iter().filter(|name| !services.contains(*name)) {
        events.extend(decide_service_gone(state, name));
    }
    events
}

fn decide_service(state: &State, service: &ClusterService) -> Result<Vec<Event>, String> {
    let name: ServiceName = service.name.parse().map_err(text)?;
    if is_reserved_namespace(name.namespace()) {
        return Err(format!("{name}: its namespace is reserved"));
    }
    let ip = |ip: &str| match ip {
        "" => Ok(None),
        ip => ip.parse::<IpAddr>().map(Some).map_err(text),
    };
    let second = ip(&service.second_address)?;
    let address = ip(&service.address)?.map(|first| ClusterAddress { first, second });
    let sites: Result<BTreeSet<SiteName>, _> =
        service.exported_to.iter().map(|site| site.parse()).collect();
    let wanted =
        Export { all: service.exported_to_all, sites: sites.map_err(text)?, by_cluster: true };
    let mut events = Vec::new();
    if state.addresses.get(&name).copied() != address {
        events.push(addressed(&name, address));
    }
    events.extend(export(state, &name, wanted));
    Ok(events)
}

/// What an operator exported stays; what the cluster did is its own.
fn export(state: &State, name: &ServiceName, wanted: Export) -> Option<Event> {
    let known = state.exports.get(name);
    if known.is_some_and(|known| !known.by_cluster || **known == wanted) {
        return None;
    }
    if known.is_none() && !wanted.all && wanted.sites.is_empty() {
        return None;
    }
    Some(Event::ServiceExported(ServiceExported {
        service: name.to_string(),
        sites: wanted.sites.iter().map(ToString::to_string).collect(),
        all: wanted.all,
        by_cluster: true,
    }))
}

fn decide_service_gone(state: &State, name: &ServiceName) -> Vec<Event> {
    let known = state.addresses.contains_key(name);
    let address = known.then(|| addressed(name, None));
    let nothing = Export { by_cluster: true, ..Export::default() };
    address.into_iter().chain(export(state, name, nothing)).collect()
}

fn addressed(name: &ServiceName, address: Option<ClusterAddress>) -> Event {
    let none = || ServiceAddressed { service: name.to_string(), ..ServiceAddressed::default() };
    Event::ServiceAddressed(address.map_or_else(none, |address| address.event(name)))
}

fn text(error: impl ToString) -> String {
    error.to_string()
}
