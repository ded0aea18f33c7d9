//! What a change makes of the endpoints of few services, where everything else
//! of the view stays as it was. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{NodeId, ServiceName};

use super::{Resources, Sources, endpoint_key, local_endpoints};
use crate::{
    authority::{State, differences, state::Registration},
    feed::Key,
    registration::union_of_ports,
};

/// More services than this are rendered with everything else.
const MAX_SERVICES: usize = 256;

/// The local endpoints of one service.
#[derive(Debug)]
pub struct Part {
    /// Which.
    pub service: ServiceName,
    /// Those that were, published or not, and those that are.
    pub keys: BTreeSet<Key>,
    /// Those that are published now.
    pub endpoints: Resources,
}

/// The services whose endpoints may differ since `before` was rendered, for
/// what became of registrations and for what is live of these nodes; `None` if
/// more than that may differ.
pub fn partial(
    before: &State,
    sources: &Sources<'_>,
    nodes: &BTreeSet<NodeId>,
) -> Option<Vec<Part>> {
    let now = sources.state;
    if !same_but_registrations(before, now) {
        return None;
    }
    let mut services = BTreeSet::new();
    for (_, [old, new]) in differences(&before.registrations, &now.registrations) {
        services.extend([old, new].into_iter().flatten().map(|known| known.service.clone()));
        if services.len() > MAX_SERVICES {
            return None;
        }
    }
    for node in nodes {
        services.extend(now.registrations_of(node).map(|known| known.service.clone()));
    }
    if services.len() > MAX_SERVICES {
        return None;
    }
    let (old, new) = (of_services(before, &services), of_services(now, &services));
    let part = |service: ServiceName| {
        let (old, new) = (old.get(&service)?, new.get(&service)?);
        if ports_of(old) != ports_of(new) {
            return None;
        }
        let mut endpoints = Resources::new();
        local_endpoints(sources, new, &mut endpoints);
        let keys = old.iter().chain(new).flat_map(|known| keys_of(now, known)).collect();
        Some(Part { service, keys, endpoints })
    };
    services.into_iter().map(part).collect()
}

/// Whether all that is rendered, but endpoints, is made of the same.
fn same_but_registrations(before: &State, now: &State) -> bool {
    let State {
        // No part of the view.
        revision: _,
        tokens: _,
        nodes: _,
        rotation: _,
        leaves: _,
        registrations: _,
        site,
        links,
        exports,
        addresses,
        revocations,
        gateways,
        manifests,
    } = now;
    before.site == *site
        && Arc::ptr_eq(&before.links, links)
        && Arc::ptr_eq(&before.exports, exports)
        && Arc::ptr_eq(&before.addresses, addresses)
        && Arc::ptr_eq(&before.revocations, revocations)
        && Arc::ptr_eq(&before.gateways, gateways)
        && Arc::ptr_eq(&before.manifests, manifests)
}

type OfServices<'a> = BTreeMap<ServiceName, Vec<&'a Registration>>;

fn of_services<'a>(state: &'a State, services: &BTreeSet<ServiceName>) -> OfServices<'a> {
    let mut of = OfServices::new();
    if !services.is_empty() {
        for known in state.registrations.values().filter(|r| services.contains(&r.service)) {
            of.entry(known.service.clone()).or_default().push(known);
        }
    }
    of
}

fn ports_of(registrations: &[&Registration]) -> Vec<mesh_api::v1::Port> {
    union_of_ports(registrations.iter().map(|known| known.register.ports.as_slice()))
}

fn keys_of(state: &State, registration: &Registration) -> impl Iterator<Item = Key> {
    let site = &state.site().name;
    registration.register.ports.iter().map(move |port| endpoint_key(site, registration, &port.name))
}
