//! The published view, made from what is durable and what is live. Pure.

mod partial;

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::v1::{
    Bundle, Endpoint, Gateway, Health, Port, Protocol, Resource, ResourceKind, Revocation, Service,
    Site, resource::Resource as R,
};
use mesh_core::{NodeId, ServiceName, SiteName, SpiffeId};
use mesh_manifest::{AccessPolicy, Compiled, Problem};
use sha2::{Digest, Sha256};

use crate::{
    authority::{
        State,
        state::{ClusterAddress, LinkState, Registration},
    },
    feed::{Key, Resources, insert},
    leases::Liveness,
    live::Live,
    manifests::Manifests,
    registration::{ports_differ, union_of_ports},
    virtual_address::VirtualAddresses,
};

pub use partial::{Part, partial};

/// Of the hash that names an endpoint.
const ENDPOINT_BYTES: usize = 12;
/// Of the one that is the same for every port of an instance.
const WORKLOAD_BYTES: usize = 8;

/// What [`render`] makes the view from.
pub struct Sources<'a> {
    /// What is durable.
    pub state: &'a State,
    /// What is live.
    pub live: &'a Live,
    /// Which nodes are alive.
    pub liveness: &'a dyn Fn(&NodeId) -> Liveness,
    /// Where gateways find federation's gRPC listener.
    pub federation_address: &'a str,
    /// Who may call services that no document speaks of.
    pub default_access: AccessPolicy,
}

/// Why a service of a linked site is not merged or imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Whose.
    pub site: SiteName,
    /// Which.
    pub service: ServiceName,
    /// Why, and what to do.
    pub why: String,
}

/// The view and what did not get into it.
#[derive(Debug, Default)]
pub struct Rendered {
    /// The whole view.
    pub resources: Resources,
    /// What was left out.
    pub notes: Vec<Note>,
    /// What of which document about traffic is not in force.
    pub problems: Vec<Problem>,
}

/// The whole view. Virtual addresses are kept from call to call.
pub fn render(sources: &Sources<'_>, addresses: &mut VirtualAddresses) -> Rendered {
    let mut rendered = Rendered::default();
    site_wide(sources, &mut rendered.resources);
    let local = registrations_by_service(sources.state);
    let (services, notes) = merge(sources, &local);
    rendered.notes = notes;
    for registrations in local.values() {
        local_endpoints(sources, registrations, &mut rendered.resources);
    }
    remote_endpoints(sources, &services, &mut rendered.resources);
    addresses.allocate(services.keys());
    let mut manifests = Manifests::of(sources.state);
    let ports = registered_ports(&services);
    for (name, mut merged) in services {
        let Compiled { routes, connection_routes, traffic, balance, policy, protocols, problems } =
            manifests.compile(name.as_str(), &ports, sources.default_access);
        rendered.problems.extend(problems);
        set_protocols(&mut merged.ports, &protocols);
        let (virtual_address, second_address) = virtual_addresses(sources.state, addresses, &name);
        let service = Service {
            policy,
            routes,
            connection_routes,
            traffic,
            balance,
            name: name.to_string(),
            ports: merged.ports,
            exported_to: exported_to(sources.state, &name),
            imported_from: merged.from.iter().map(ToString::to_string).collect(),
            virtual_address,
            second_address,
        };
        insert(&mut rendered.resources, R::Service(service));
    }
    rendered.problems.extend(manifests.unused());
    rendered
}

/// The addresses that the cluster knows a service by, else one of our own.
fn virtual_addresses(
    state: &State,
    addresses: &VirtualAddresses,
    name: &ServiceName,
) -> (String, String) {
    if let Some(ClusterAddress { first, second }) = state.addresses.get(name) {
        return (first.to_string(), second.map(|ip| ip.to_string()).unwrap_or_default());
    }
    (addresses.of(name).map(|ip| ip.to_string()).unwrap_or_default(), String::new())
}

/// (name, number) of the ports of every service.
fn registered_ports(
    services: &BTreeMap<ServiceName, Merged>,
) -> BTreeMap<String, Vec<(String, u16)>> {
    let port = |port: &Port| (port.name.clone(), u16::try_from(port.number).unwrap_or_default());
    let ports = |merged: &Merged| merged.ports.iter().map(port).collect();
    services.iter().map(|(name, merged)| (name.to_string(), ports(merged))).collect()
}

fn set_protocols(ports: &mut [Port], protocols: &[(u16, Protocol)]) {
    for port in ports {
        let said = protocols.iter().find(|(number, _)| u32::from(*number) == port.number);
        if let Some((_, protocol)) = said {
            port.set_protocol(*protocol);
        }
    }
}

/// Site, bundles, gateways, links and revocations.
fn site_wide(sources: &Sources<'_>, into: &mut Resources) {
    let (state, site) = (sources.state, sources.state.site());
    let name = site.name.to_string();
    let trust_domain = site.trust_domain.to_string();
    let federation_address = sources.federation_address.to_owned();
    insert(into, R::Site(Site { name, trust_domain, federation_address }));
    insert(into, R::Bundle(roots_alone(&site.bundle)));
    for gateway in state.gateways.values() {
        insert(into, R::Gateway(own_gateway(gateway, &site.name)));
    }
    for (peer, link) in state.links.iter() {
        insert(into, R::Link(link.link.clone()));
        insert(into, R::Bundle(roots_alone(&link.bundle)));
        for gateway in link_gateways(sources.live, peer, link) {
            insert(into, R::Gateway(gateway));
        }
        for revocation in link_revocations(sources.live, peer, link) {
            insert(into, R::Revocation(revocation.clone()));
        }
    }
    for (subject, at) in state.revocations.iter() {
        let revocation = Revocation { subject: subject.clone(), revoked_at_unix_s: *at };
        insert(into, R::Revocation(revocation));
    }
}

fn own_gateway(gateway: &Gateway, site: &SiteName) -> Gateway {
    Gateway { site: site.to_string(), ..gateway.clone() }
}

/// A linked site's gateways: as it says now, else as they were when the link
/// was made.
fn link_gateways(live: &Live, peer: &SiteName, link: &LinkState) -> Vec<Gateway> {
    match live.links.get(peer) {
        Some(live) if !live.imported.gateways.is_empty() => {
            live.imported.gateways.values().cloned().collect()
        }
        _ => link.gateways.clone(),
    }
}

/// What a linked site has revoked of its own domain; as it said last, however
/// long ago.
fn link_revocations<'a>(
    live: &'a Live,
    peer: &SiteName,
    link: &LinkState,
) -> impl Iterator<Item = &'a Revocation> {
    // Checked when it came in; here once more against the link as it is.
    let domain = format!("spiffe://{}/", link.trust_domain);
    let all = live.links.get(peer).into_iter().flat_map(|link| link.imported.revocations.values());
    all.filter(move |revocation| revocation.subject.starts_with(&domain))
}

/// Registrations of every local service.
type Local<'a> = BTreeMap<ServiceName, Vec<&'a Registration>>;

fn registrations_by_service(state: &State) -> Local<'_> {
    let mut local = Local::new();
    for registration in state.registrations.values() {
        local.entry(registration.service.clone()).or_default().push(registration);
    }
    local
}

/// A service after merging: its ports and where its endpoints come from.
#[derive(Debug, Default)]
struct Merged {
    ports: Vec<Port>,
    from: BTreeSet<SiteName>,
}

/// Decides for every imported name whether it stands alone, is merged with the
/// local service of that name, or is left out.
fn merge(sources: &Sources<'_>, local: &Local<'_>) -> (BTreeMap<ServiceName, Merged>, Vec<Note>) {
    let mut services: BTreeMap<ServiceName, Merged> = BTreeMap::new();
    for (name, registrations) in local {
        let ports = union_of_ports(registrations.iter().map(|r| r.register.ports.as_slice()));
        services.insert(name.clone(), Merged { ports, from: BTreeSet::new() });
    }
    let mut notes = Vec::new();
    for (site, _) in links_by_age(sources.state) {
        let Some(live) = sources.live.links.get(site) else { continue };
        for (name, remote) in &live.imported.services {
            let exported = sources.state.is_exported(name, site);
            let known = services.get(name);
            let refusal = known.and_then(|known| {
                why_not_merged(name, site, known, &remote.ports, local.contains_key(name), exported)
            });
            if let Some(why) = refusal {
                notes.push(Note { site: site.clone(), service: name.clone(), why });
                continue;
            }
            let merged = services.entry(name.clone()).or_default();
            merged.ports = union_of_ports([merged.ports.as_slice(), &remote.ports].into_iter());
            merged.from.insert(site.clone());
        }
    }
    (services, notes)
}

/// Links in the order in which they were made: an older link's names are not
/// taken over by a newer one.
fn links_by_age(state: &State) -> Vec<(&SiteName, &LinkState)> {
    let mut links: Vec<_> = state.links.iter().map(|(site, link)| (site, &**link)).collect();
    links.sort_by_key(|(site, link)| (link.made_at_ms, (*site).clone()));
    links
}

fn why_not_merged(
    name: &ServiceName,
    site: &SiteName,
    known: &Merged,
    remote: &[Port],
    is_local: bool,
    exported: bool,
) -> Option<String> {
    if is_local && !exported {
        return Some(format!(
            "exists here too and is not exported to {site}; `meshctl service export {name}` \
             makes both one service"
        ));
    }
    if !is_local && let Some(first) = known.from.first() {
        return Some(format!("is imported from {first} already, whose link is older"));
    }
    let (port, problem) = ports_differ(&known.ports, remote)?;
    Some(format!("port {port} has {problem} in {site}; make both sites agree"))
}

/// Linked sites to which a service is exported.
fn exported_to(state: &State, name: &ServiceName) -> Vec<String> {
    let Some(export) = state.exports.get(name) else { return Vec::new() };
    state.links.keys().filter(|site| export.includes(site)).map(ToString::to_string).collect()
}

fn local_endpoints(sources: &Sources<'_>, registrations: &[&Registration], into: &mut Resources) {
    let site = &sources.state.site().name;
    for registration in registrations {
        let liveness = (sources.liveness)(&registration.node);
        if !liveness.is_published() || is_revoked(sources.state, registration) {
            continue;
        }
        let health = health_of(sources.live, registration, liveness);
        let via: Vec<String> = sources
            .live
            .gateways
            .iter()
            .filter(|(_, gateway)| gateway.nodes.contains(&registration.node))
            .map(|(id, _)| id.clone())
            .take(mesh_core::wire::MAX_VIA)
            .collect();
        let register = &registration.register;
        let workload = if registration.of_pod {
            String::new()
        } else {
            hex(&[site.as_str(), registration.node.as_str(), &register.instance], WORKLOAD_BYTES)
        };
        for (port, target_port) in register.ports.iter().zip(&register.target_ports) {
            let endpoint = Endpoint {
                id: endpoint_id(site, registration, &port.name),
                service: register.service.clone(),
                port: port.name.clone(),
                site: site.to_string(),
                spiffe_id: registration.identity.to_string(),
                address: register.address.clone(),
                target_port: *target_port,
                locality: register.locality.clone(),
                weight: register.weight,
                capacity: register.capacity,
                // Who registers does not say it.
                priority: 0,
                health: health.into(),
                node: registration.node.to_string(),
                via: via.clone(),
                target_address: register.target_address.clone(),
                workload: workload.clone(),
            };
            insert(into, R::Endpoint(endpoint));
        }
    }
}

/// Nobody would believe the endpoint: it is not published.
fn is_revoked(state: &State, registration: &Registration) -> bool {
    state.revocations.contains_key(registration.identity.as_str())
        || state.revocations.contains_key(&format!("node:{}", registration.node))
}

/// Only a speaking agent vouches for health.
fn health_of(live: &Live, registration: &Registration, liveness: Liveness) -> Health {
    if !matches!(liveness, Liveness::Alive | Liveness::Leaving) {
        return Health::Unknown;
    }
    let key = (registration.node.clone(), registration.register.instance.as_str().into());
    live.health.get(&key).map_or(Health::Unknown, |reported| reported.health)
}

/// What an endpoint of a registration is published under.
fn endpoint_key(site: &SiteName, registration: &Registration, port: &str) -> Key {
    let name = format!("{site}/{}", endpoint_id(site, registration, port)).into();
    Key { kind: ResourceKind::Endpoint, name }
}

/// Opaque, stable over restarts, and never used again: a later registration of
/// the same instance has another `registered_at`.
/// The ids of the endpoints of a registration, one for each port.
pub(crate) fn endpoint_ids<'a>(
    site: &'a SiteName,
    registration: &'a Registration,
) -> impl Iterator<Item = String> + 'a {
    let ports = registration.register.ports.iter();
    ports.map(move |port| endpoint_id(site, registration, &port.name))
}

fn endpoint_id(site: &SiteName, registration: &Registration, port: &str) -> String {
    let n = registration.registered_at.to_string();
    let instance = &registration.register.instance;
    hex(&[site.as_str(), registration.node.as_str(), instance, port, &n], ENDPOINT_BYTES)
}

/// So many bytes of a hash of all parts.
fn hex(parts: &[&str], bytes: usize) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize()[..bytes].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Endpoints of linked sites, where their service was merged or imported.
fn remote_endpoints(
    sources: &Sources<'_>,
    services: &BTreeMap<ServiceName, Merged>,
    into: &mut Resources,
) {
    for (site, link) in sources.state.links.iter() {
        let Some(live) = sources.live.links.get(site) else { continue };
        // Checked when it came in; here once more against the link as it is.
        let domain = format!("spiffe://{}/", link.trust_domain);
        let own = |endpoint: &&Endpoint| endpoint.spiffe_id.starts_with(&domain);
        for endpoint in live.imported.endpoints.values().filter(own) {
            let known = services.get(endpoint.service.as_str()).is_some_and(|merged| {
                merged.from.contains(site) && merged.ports.iter().any(|p| p.name == endpoint.port)
            });
            if known {
                insert(into, R::Endpoint(endpoint.clone()));
            }
        }
    }
}

/// Proxies verify no JWT-SVIDs.
fn roots_alone(bundle: &Bundle) -> Bundle {
    Bundle { jwt_keys: Vec::new(), ..bundle.clone() }
}

/// What a linked site gets: exported services with their local endpoints, our
/// gateways, our own bundle and what we have revoked; names, never addresses.
pub fn render_export(state: &State, view: &Resources, to: &SiteName) -> Resources {
    let mut out = Resources::new();
    let own = state.site();
    let mut exported = registrations_by_service(state);
    exported.retain(|service, _| state.is_exported(service, to));
    for resource in view.values() {
        match resource.resource.as_ref() {
            // Imports are never exported again.
            Some(R::Endpoint(endpoint))
                if endpoint.site == own.name.as_str()
                    && exported.contains_key(endpoint.service.as_str()) =>
            {
                export_endpoint(resource, &mut out);
            }
            Some(R::Gateway(gateway)) if gateway.site == own.name.as_str() => {
                insert(&mut out, R::Gateway(gateway.clone()));
            }
            _ => {}
        }
    }
    for (name, registrations) in exported {
        // The ports that local instances declare, without those of imports.
        let ports = union_of_ports(registrations.iter().map(|r| r.register.ports.as_slice()));
        insert(
            &mut out,
            R::Service(Service { name: name.to_string(), ports, ..Service::default() }),
        );
    }
    insert(&mut out, R::Bundle(own.bundle.clone()));
    for revocation in own_revocations(state) {
        insert(&mut out, R::Revocation(revocation));
    }
    out
}

/// Revoked identities and nodes of the own domain, as SPIFFE IDs. Serial
/// numbers are nobody's but the own site's.
fn own_revocations(state: &State) -> impl Iterator<Item = Revocation> {
    let domain = &state.site().trust_domain;
    state.revocations.iter().filter_map(move |(subject, at)| {
        let id: SpiffeId = match subject.strip_prefix("node:") {
            Some(node) => SpiffeId::node(domain, &node.parse().ok()?),
            None => subject.parse().ok()?,
        };
        let own = id.trust_domain() == domain;
        own.then(|| Revocation { subject: id.to_string(), revoked_at_unix_s: *at })
    })
}

/// Puts an endpoint into what a linked site gets: without its addresses.
pub fn export_endpoint(resource: &Resource, into: &mut Resources) {
    let Some(R::Endpoint(endpoint)) = &resource.resource else { return };
    let endpoint = Endpoint {
        address: String::new(),
        target_port: 0,
        target_address: String::new(),
        node: String::new(),
        via: Vec::new(),
        ..endpoint.clone()
    };
    insert(into, R::Endpoint(endpoint));
}

#[cfg(test)]
mod tests;
