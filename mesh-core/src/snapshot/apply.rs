//! Deltas: parsed whole, applied whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    net::SocketAddr,
    sync::Arc,
};

use mesh_api::v1::{self, resource::Resource as Kind};

use super::{Rejected, Revision, Snapshot};
use crate::{
    identity::{Revoked, TrustBundle, TrustBundles},
    name::{EndpointId, ServiceName, SiteName, TrustDomain},
    service::{Endpoint, Gateway, Link, Service},
    wire::{Key, SiteRecord, policy_domains, service},
};

/// The snapshot after a delta. Pure: on an error nothing has changed, and what
/// did not change is shared with the old snapshot.
///
/// Removals are applied before additions, services before endpoints, so one
/// delta may hold both in any order. A delta without `from` is the whole state.
pub fn apply(snapshot: Option<&Snapshot>, delta: &v1::Delta) -> Result<Snapshot, Rejected> {
    let to =
        delta.to.map(Revision::from).ok_or_else(|| invalid("delta", "has no revision `to`"))?;
    let base = base(snapshot, delta, to)?;
    let changes = Changes::read(delta)?;
    let mut next = match base {
        Some(base) => changes.site_over(base)?,
        None => changes.empty_site()?,
    };
    next.revision = to;
    remove(&mut next, &changes.remove);
    let links_changed =
        !changes.links.is_empty() || changes.remove.iter().any(|key| matches!(key, Key::Link(_)));
    upsert_shared(&mut next, &changes)?;
    upsert_services(&mut next, &changes)?;
    upsert_endpoints(&mut next, changes.endpoints)?;
    check_links(&next)?;
    // What depends on links is settled for services that neither changed.
    let settled = base.filter(|_| !links_changed);
    compile_policies(&mut next, settled);
    check_endpoints(&next, settled)?;
    if let Some(old) = snapshot {
        share(&mut next, old);
    }
    Ok(next)
}

fn invalid(resource: impl Display, problem: impl Display) -> Rejected {
    Rejected::Invalid { resource: resource.to_string(), problem: problem.to_string() }
}

/// What the delta applies to: nothing if it is the whole state.
fn base<'s>(
    snapshot: Option<&'s Snapshot>,
    delta: &v1::Delta,
    to: Revision,
) -> Result<Option<&'s Snapshot>, Rejected> {
    let Some(from) = delta.from.map(Revision::from) else { return Ok(None) };
    match snapshot {
        Some(snapshot) if snapshot.revision == from => {
            if to.epoch != from.epoch || to.n < from.n {
                return Err(invalid("delta", format_args!("leads from {from:?} back to {to:?}")));
            }
            Ok(Some(snapshot))
        }
        other => {
            let have = other.map(|snapshot| snapshot.revision).unwrap_or_default();
            Err(Rejected::WrongBase { from, have })
        }
    }
}

/// A delta, parsed but for services: their policies need the final links.
struct Changes<'d> {
    site: Option<SiteRecord>,
    services: Vec<&'d v1::Service>,
    endpoints: Vec<Endpoint>,
    bundles: Vec<TrustBundle>,
    gateways: Vec<Gateway>,
    links: Vec<Link>,
    revoked: Vec<Revoked>,
    remove: Vec<Key>,
}

impl<'d> Changes<'d> {
    fn read(delta: &'d v1::Delta) -> Result<Self, Rejected> {
        let mut changes = Self {
            site: None,
            services: Vec::new(),
            endpoints: Vec::new(),
            bundles: Vec::new(),
            gateways: Vec::new(),
            links: Vec::new(),
            revoked: Vec::new(),
            remove: Vec::new(),
        };
        for resource in &delta.upsert {
            changes.read_resource(resource)?;
        }
        for key in &delta.remove {
            let key = Key::read(key).map_err(|error| invalid("remove", error))?;
            changes.remove.extend(key);
        }
        Ok(changes)
    }

    fn read_resource(&mut self, resource: &'d v1::Resource) -> Result<(), Rejected> {
        match &resource.resource {
            Some(Kind::Site(site)) => {
                let site = read("site", &site.name, SiteRecord::try_from(site))?;
                if self.site.replace(site).is_some() {
                    return Err(invalid("site", "is there twice"));
                }
            }
            Some(Kind::Service(service)) => self.services.push(service),
            Some(Kind::Endpoint(e)) => {
                self.endpoints.push(read("endpoint", &e.id, Endpoint::try_from(e))?);
            }
            Some(Kind::Bundle(bundle)) => {
                let read = read("bundle", &bundle.trust_domain, TrustBundle::try_from(bundle))?;
                self.bundles.push(read);
            }
            Some(Kind::Gateway(gateway)) => {
                self.gateways.push(read("gateway", &gateway.id, Gateway::try_from(gateway))?);
            }
            Some(Kind::Link(link)) => {
                self.links.push(read("link", &link.site, Link::try_from(link))?);
            }
            Some(Kind::Revocation(revocation)) => {
                let subject = &revocation.subject;
                self.revoked.push(read("revocation", subject, subject.parse())?);
            }
            // A kind of a later version: not critical, or it would have been
            // negotiated.
            None => {}
        }
        Ok(())
    }

    /// The start of a whole state.
    fn empty_site(&self) -> Result<Snapshot, Rejected> {
        let site = self.site.as_ref().ok_or_else(|| invalid("site", "is missing"))?;
        Ok(Snapshot {
            revision: Revision::default(),
            site: site.name.clone(),
            trust_domain: site.trust_domain.clone(),
            federation: site.federation,
            services: BTreeMap::new(),
            gateways: BTreeMap::new(),
            links: BTreeMap::new(),
            bundles: Arc::default(),
            revocations: Arc::default(),
        })
    }

    /// The start of a change: a site may move its federation, nothing else.
    fn site_over(&self, base: &Snapshot) -> Result<Snapshot, Rejected> {
        let federation: Option<SocketAddr> = match &self.site {
            None => base.federation,
            Some(site) if site.name == base.site && site.trust_domain == base.trust_domain => {
                site.federation
            }
            Some(site) => {
                let problem = "a site keeps its name and trust domain; send the whole state";
                return Err(invalid(format_args!("site {}", site.name), problem));
            }
        };
        Ok(Snapshot { federation, ..base.clone() })
    }
}

fn read<T>(kind: &str, name: &str, result: Result<T, impl Display>) -> Result<T, Rejected> {
    // The name may be what is wrong: keep the message short.
    let name: String = name.chars().take(80).collect();
    result.map_err(|error| invalid(format_args!("{kind} {name}"), error))
}

fn remove(next: &mut Snapshot, keys: &[Key]) {
    let mut endpoints = BTreeSet::new();
    for key in keys {
        match key {
            Key::Service(name) => drop(next.services.remove(name)),
            Key::Endpoint(site, id) => drop(endpoints.insert((site.clone(), id.clone()))),
            Key::Bundle(domain) => {
                if next.bundles.contains_key(domain) {
                    Arc::make_mut(&mut next.bundles).remove(domain);
                }
            }
            Key::Gateway(site, id) => drop(next.gateways.remove(&(site.clone(), id.clone()))),
            Key::Link(site) => drop(next.links.remove(site)),
            Key::Revocation(revoked) => drop(Arc::make_mut(&mut next.revocations).remove(revoked)),
        }
    }
    remove_endpoints(next, &endpoints, |_| false);
}

/// Takes the endpoints out of every service but those that `keep` names.
fn remove_endpoints(
    next: &mut Snapshot,
    keys: &BTreeSet<(SiteName, EndpointId)>,
    keep: impl Fn(&Endpoint) -> bool,
) {
    if keys.is_empty() {
        return;
    }
    let gone = |e: &Endpoint| keys.contains(&(e.site.clone(), e.id.clone())) && !keep(e);
    for service in next.services.values_mut() {
        let touched = if keys.len() < service.endpoints.len() {
            keys.iter().any(|key| find(service, key).is_some_and(|e| !keep(e)))
        } else {
            service.endpoints.iter().any(|e| gone(e))
        };
        if touched {
            Arc::make_mut(service).endpoints.retain(|e| !gone(e));
        }
    }
}

fn find<'s>(service: &'s Service, key: &(SiteName, EndpointId)) -> Option<&'s Endpoint> {
    let at = service.endpoints.binary_search_by(|e| (&e.site, &e.id).cmp(&(&key.0, &key.1)));
    at.ok().and_then(|at| service.endpoints.get(at)).map(|e| &**e)
}

/// Links, gateways, bundles and revocations.
fn upsert_shared(next: &mut Snapshot, changes: &Changes<'_>) -> Result<(), Rejected> {
    for link in &changes.links {
        next.links.insert(link.site.clone(), Arc::new(link.clone()));
    }
    for gateway in &changes.gateways {
        let key = (gateway.site.clone(), gateway.id.clone());
        next.gateways.insert(key, Arc::new(gateway.clone()));
    }
    for bundle in &changes.bundles {
        check_bundle(&next.bundles, bundle)?;
        Arc::make_mut(&mut next.bundles)
            .insert(bundle.trust_domain.clone(), Arc::new(bundle.clone()));
    }
    for revoked in &changes.revoked {
        Arc::make_mut(&mut next.revocations).insert(revoked.clone());
    }
    Ok(())
}

/// An old bundle would bring back roots that were retired.
fn check_bundle(bundles: &TrustBundles, new: &TrustBundle) -> Result<(), Rejected> {
    let Some(old) = bundles.get(&new.trust_domain) else { return Ok(()) };
    let stale = new.sequence < old.sequence;
    let forked = new.sequence == old.sequence && new != &**old;
    if stale || forked {
        let problem =
            format_args!("sequence {} is not after {}", new.sequence, old.sequence).to_string();
        return Err(invalid(format_args!("bundle {}", new.trust_domain), problem));
    }
    Ok(())
}

fn upsert_services(next: &mut Snapshot, changes: &Changes<'_>) -> Result<(), Rejected> {
    for message in &changes.services {
        let mut new = read("service", &message.name, service(message, &next.trust_domain))?;
        if let Some(old) = next.services.get(&new.name) {
            new.endpoints.clone_from(&old.endpoints);
        }
        next.services.insert(new.name.clone(), Arc::new(new));
    }
    Ok(())
}

/// Groups endpoints into their services. An endpoint that now backs another
/// service leaves the one it backed.
fn upsert_endpoints(next: &mut Snapshot, endpoints: Vec<Endpoint>) -> Result<(), Rejected> {
    type Group = BTreeMap<(SiteName, EndpointId), Arc<Endpoint>>;
    let mut home: BTreeMap<(SiteName, EndpointId), ServiceName> = BTreeMap::new();
    let mut groups: BTreeMap<ServiceName, Group> = BTreeMap::new();
    for endpoint in endpoints {
        let key = (endpoint.site.clone(), endpoint.id.clone());
        let resource = || format!("endpoint {}/{}", endpoint.site, endpoint.id);
        if !next.services.contains_key(&endpoint.service) {
            let problem = format_args!("service {} is not known", endpoint.service).to_string();
            return Err(invalid(resource(), problem));
        }
        if home.insert(key.clone(), endpoint.service.clone()).is_some() {
            return Err(invalid(resource(), "is there twice"));
        }
        groups.entry(endpoint.service.clone()).or_default().insert(key, Arc::new(endpoint));
    }
    let keys: BTreeSet<_> = home.keys().cloned().collect();
    remove_endpoints(next, &keys, |e| {
        home.get(&(e.site.clone(), e.id.clone())) == Some(&e.service)
    });
    for (name, mut group) in groups {
        let Some(service) = next.services.get_mut(&name) else { continue };
        let service = Arc::make_mut(service);
        for endpoint in &mut service.endpoints {
            if let Some(new) = group.remove(&(endpoint.site.clone(), endpoint.id.clone()))
                && new != *endpoint
            {
                *endpoint = new;
            }
        }
        service.endpoints.extend(group.into_values());
        service.endpoints.sort_by(|a, b| (&a.site, &a.id).cmp(&(&b.site, &b.id)));
    }
    Ok(())
}

/// Whether `settled` has this very service.
fn is_settled(settled: Option<&Snapshot>, service: &Arc<Service>) -> bool {
    let old = settled.and_then(|settled| settled.services.get(&service.name));
    old.is_some_and(|old| Arc::ptr_eq(old, service))
}

/// The names of sites in export lists become trust domains.
fn compile_policies(next: &mut Snapshot, settled: Option<&Snapshot>) {
    for service in next.services.values_mut().filter(|service| !is_settled(settled, service)) {
        let domains = policy_domains(&service.exported_to, &next.links);
        if service.policy.exported_to != domains {
            Arc::make_mut(service).policy.exported_to = domains;
        }
    }
}

/// One trust domain, one link: otherwise a caller's site would be a guess.
fn check_links(next: &Snapshot) -> Result<(), Rejected> {
    let mut domains: BTreeSet<&TrustDomain> = BTreeSet::from([&next.trust_domain]);
    for link in next.links.values() {
        let resource = format_args!("link {}", link.site).to_string();
        if link.site == next.site {
            return Err(invalid(resource, "leads to this very site"));
        }
        if !domains.insert(&link.trust_domain) {
            let problem = format_args!("trust domain {} is taken", link.trust_domain).to_string();
            return Err(invalid(resource, problem));
        }
    }
    Ok(())
}

/// An endpoint's identity lies in its site's trust domain; a local one says
/// where its application listens.
fn check_endpoints(next: &Snapshot, settled: Option<&Snapshot>) -> Result<(), Rejected> {
    for service in next.services.values().filter(|service| !is_settled(settled, service)) {
        for endpoint in &service.endpoints {
            let resource = || format!("endpoint {}/{}", endpoint.site, endpoint.id);
            let local = endpoint.site == next.site;
            let domain = match next.links.get(&endpoint.site) {
                _ if local => &next.trust_domain,
                Some(link) => &link.trust_domain,
                // Nothing leads there until it is linked.
                None => continue,
            };
            if let Some(identity) = &endpoint.identity
                && identity.trust_domain() != domain
            {
                let problem = format!("{identity} is not of {domain}");
                return Err(invalid(resource(), problem));
            }
            if local && endpoint.target.port() == 0 {
                return Err(invalid(resource(), "target_port: must be 1 to 65535"));
            }
        }
    }
    Ok(())
}

/// Puts back what is equal to the old, so that whoever compares pointers (and
/// memory) sees what really changed.
fn share(next: &mut Snapshot, old: &Snapshot) {
    share_map(&mut next.services, &old.services, share_endpoints);
    share_map(&mut next.gateways, &old.gateways, |_, _| {});
    share_map(&mut next.links, &old.links, |_, _| {});
    if !Arc::ptr_eq(&next.bundles, &old.bundles) {
        share_map(Arc::make_mut(&mut next.bundles), &old.bundles, |_, _| {});
        if next.bundles == old.bundles {
            next.bundles = old.bundles.clone();
        }
    }
    if next.revocations == old.revocations {
        next.revocations = old.revocations.clone();
    }
}

fn share_map<K: Ord, V: PartialEq>(
    next: &mut BTreeMap<K, Arc<V>>,
    old: &BTreeMap<K, Arc<V>>,
    parts: impl Fn(&mut Arc<V>, &V),
) {
    for (key, value) in next {
        let Some(old) = old.get(key) else { continue };
        if Arc::ptr_eq(value, old) {
            continue;
        }
        if **value == **old {
            *value = old.clone();
        } else {
            parts(value, old);
        }
    }
}

fn share_endpoints(service: &mut Arc<Service>, old: &Service) {
    for endpoint in &mut Arc::make_mut(service).endpoints {
        let at = old
            .endpoints
            .binary_search_by(|e| (&e.site, &e.id).cmp(&(&endpoint.site, &endpoint.id)));
        if let Some(old) = at.ok().and_then(|at| old.endpoints.get(at))
            && old == endpoint
        {
            *endpoint = old.clone();
        }
    }
}
