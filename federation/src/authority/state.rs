//! The fold of all records: what is true of a site at one revision.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::v1::{
    AuthorityRecord, Bundle, EndpointRegistered, Gateway, LinkMade, ManifestApplied, ManifestName,
    NodeJoined, NodeRenewed, NodeResolved, Revocation, ServiceAddressed, ServiceExported,
    SiteCreated, TokenCreated, TokenUsed, authority_record::Event,
};
use mesh_core::{NodeId, Revision, ServiceName, SiteName, TrustDomain};
use mesh_manifest::{Kind, Manifest, ObjectName};

pub use super::entries::{
    ClusterAddress, Export, LinkState, ManifestState, NodeCertificate, NodeState, Registration,
    SiteState, TokenState,
};
use super::rotation::{Leaves, Rotation};

/// A map that is shared until it is changed, and then copied once.
pub type Shared<K, V> = Arc<BTreeMap<K, Arc<V>>>;

/// Everything durable that a site knows, immutable and cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// The newest record that is folded in.
    pub revision: Revision,
    /// Set by the first record of every log.
    pub site: Option<Arc<SiteState>>,
    /// Tokens by id, spent ones included until they are forgotten.
    pub tokens: Shared<String, TokenState>,
    /// Joined machines.
    pub nodes: Shared<NodeId, NodeState>,
    /// Registered instances by node and instance name.
    pub registrations: Shared<(NodeId, Arc<str>), Registration>,
    /// Links by the other site's name.
    pub links: Shared<SiteName, LinkState>,
    /// Which linked sites may call which local service.
    pub exports: Shared<ServiceName, Export>,
    /// Addresses that services have in the site's cluster.
    pub addresses: Arc<BTreeMap<ServiceName, ClusterAddress>>,
    /// When a subject was revoked, Unix seconds. A subject is a SPIFFE ID,
    /// `node:<uuid>` or `serial:<hex>`.
    pub revocations: Arc<BTreeMap<String, i64>>,
    /// Own gateways that have ever said where they are, by id.
    pub gateways: Shared<String, Gateway>,
    /// Documents about traffic.
    pub manifests: Shared<ObjectName, ManifestState>,
    /// The rotation of the root, while there is one.
    pub rotation: Option<Arc<Rotation>>,
    /// Certificates of workloads that may be in use.
    pub leaves: Leaves,
}

/// A record that cannot follow the ones before it. In a log this means that
/// it was written by a newer version, or by something else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {n}: {problem}")]
pub struct FoldError {
    /// Its revision number.
    pub n: u64,
    /// Which rule it breaks.
    pub problem: String,
}

impl State {
    /// The site; every log begins with it.
    ///
    /// # Panics
    /// On a state that was not opened from a log, which [`super::Authority`]
    /// never hands out.
    pub fn site(&self) -> &SiteState {
        self.site.as_deref().expect("Authority opens no log without a site")
    }

    /// Whether a local service is exported to a site.
    pub fn is_exported(&self, service: &ServiceName, to: &SiteName) -> bool {
        self.exports.get(service).is_some_and(|export| export.includes(to))
    }

    /// Registered instances of one node.
    pub fn registrations_of(&self, node: &NodeId) -> impl Iterator<Item = &Arc<Registration>> {
        let first = (node.clone(), Arc::from(""));
        self.registrations
            .range(first..)
            .take_while(move |((owner, _), _)| owner == node)
            .map(|(_, registration)| registration)
    }

    /// The state after one more record. On an error it is unchanged or must be
    /// thrown away.
    pub fn fold(&mut self, record: &AuthorityRecord) -> Result<(), FoldError> {
        let revision = record.revision.unwrap_or_default();
        let fail = |problem: String| FoldError { n: revision.n, problem };
        let event = record.event.as_ref().ok_or_else(|| {
            fail("unknown kind of record: written by a newer version of federation; upgrade".into())
        })?;
        match &self.site {
            None if !matches!(event, Event::SiteCreated(_)) => {
                return Err(fail("the log does not begin with the site's creation".into()));
            }
            Some(_) if revision.epoch != self.revision.epoch => {
                return Err(fail(format!("belongs to another lineage, epoch {}", revision.epoch)));
            }
            Some(_) if !(self.revision.n..=self.revision.n + 1).contains(&revision.n) => {
                return Err(fail(format!("does not follow record {}", self.revision.n)));
            }
            _ => {}
        }
        let at = Moment { n: revision.n, unix_ms: record.at_unix_ms };
        self.apply(event, at).map_err(fail)?;
        self.revision = Revision { epoch: revision.epoch, n: revision.n };
        Ok(())
    }

    fn apply(&mut self, event: &Event, at: Moment) -> Result<(), String> {
        match event {
            Event::SiteCreated(site) => self.site_created(site, at),
            Event::TokenCreated(token) => self.token_created(token),
            Event::TokenUsed(used) => self.token_used(used),
            Event::TokenRevoked(token) => self.change_token(&token.id, |t| t.revoked = true),
            Event::NodeJoined(node) => self.node_joined(node, at),
            Event::NodeRenewed(renewed) => self.node_renewed(renewed, at),
            Event::NodeDuplicated(twice) => {
                self.change_node(&twice.id, |node| node.duplicated = Some(twice.reason.clone()))
            }
            Event::NodeResolved(resolved) => self.node_resolved(resolved),
            Event::NodeLeft(left) => self.node_left(&left.id),
            Event::WorkloadIssued(issued) => self.workload_issued(issued, at.unix_ms / 1000),
            Event::Registered(registered) => self.registered(registered, at),
            Event::Deregistered(gone) => {
                let key = (parse(&gone.node)?, Arc::from(gone.instance.as_str()));
                Arc::make_mut(&mut self.registrations).remove(&key);
                Ok(())
            }
            Event::LinkMade(made) => self.link_made(made, at),
            Event::LinkEnded(ended) => {
                let site: SiteName = parse(&ended.site)?;
                Arc::make_mut(&mut self.links).remove(&site);
                Ok(())
            }
            Event::BundleUpdated(update) => self.bundle_updated(update.bundle.as_ref()),
            Event::ServiceExported(exported) => self.exported(exported),
            Event::ServiceAddressed(addressed) => self.addressed(addressed),
            Event::Revoked(revocation) => {
                self.revoke(revocation);
                Ok(())
            }
            Event::Reinstated(reinstated) => {
                Arc::make_mut(&mut self.revocations).remove(&reinstated.subject);
                Ok(())
            }
            Event::GatewaySeen(seen) => {
                let gateway = seen.gateway.clone().ok_or("without a gateway")?;
                self.gateway_seen(gateway);
                Ok(())
            }
            Event::RootRotation(rotation) => {
                self.root_rotation(rotation);
                Ok(())
            }
            Event::BundleHeld(held) => self.bundle_held(held),
            Event::CertificatesShown(shown) => {
                self.certificates_shown(&shown.serials);
                Ok(())
            }
            Event::ManifestApplied(applied) => self.manifest_applied(applied),
            Event::ManifestDeleted(deleted) => {
                let name = object_name(deleted.name.as_ref())?;
                Arc::make_mut(&mut self.manifests).remove(&name);
                Ok(())
            }
        }
    }

    fn site_created(&mut self, site: &SiteCreated, at: Moment) -> Result<(), String> {
        if self.site.is_some() {
            return Err("the site is created a second time".into());
        }
        self.site = Some(Arc::new(SiteState {
            name: parse(&site.name)?,
            trust_domain: parse(&site.trust_domain)?,
            bundle: Bundle {
                trust_domain: site.trust_domain.clone(),
                sequence: 1,
                roots: vec![site.root.clone()],
                ..Bundle::default()
            },
            created_at_ms: at.unix_ms,
            restored: site.restored,
        }));
        Ok(())
    }

    fn token_created(&mut self, token: &TokenCreated) -> Result<(), String> {
        let secret_sha256 = token.secret_sha256.as_slice().try_into();
        let state = TokenState {
            id: token.id.clone(),
            purpose: token.purpose(),
            secret_sha256: secret_sha256.map_err(|_| "the hash of the secret is not 32 bytes")?,
            grants: token.grants.clone().unwrap_or_default(),
            uses: token.uses,
            used_by: Vec::new(),
            expires_unix_s: token.expires_unix_s,
            revoked: false,
            gateway: token.gateway,
            site: token.site.clone(),
            root: self.root_of(&token.root),
        };
        Arc::make_mut(&mut self.tokens).insert(token.id.clone(), Arc::new(state));
        Ok(())
    }

    fn token_used(&mut self, used: &TokenUsed) -> Result<(), String> {
        self.change_token(&used.id, |token| token.used_by.push(used.by.clone()))
    }

    fn change_token(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut TokenState),
    ) -> Result<(), String> {
        let token = Arc::make_mut(&mut self.tokens).get_mut(id);
        change(Arc::make_mut(token.ok_or_else(|| format!("no token {id}"))?));
        Ok(())
    }

    fn node_joined(&mut self, joined: &NodeJoined, at: Moment) -> Result<(), String> {
        let id: NodeId = parse(&joined.id)?;
        let state = NodeState {
            id: id.clone(),
            grants: joined.grants.clone().unwrap_or_default(),
            hostname: joined.hostname.clone(),
            machine_id: joined.machine_id.clone(),
            boot_id: joined.boot_id.clone(),
            token: joined.token.clone(),
            current: NodeCertificate {
                serial: joined.serial.clone(),
                not_after_unix_s: joined.not_after_unix_s,
                root: self.root_of(&joined.root),
            },
            previous: None,
            retired: Vec::new(),
            duplicated: None,
            restored: joined.restored,
            gateway: joined.gateway,
            pod: joined.pod,
            key_sha256: joined.key_sha256.clone(),
            joined_at_ms: at.unix_ms,
        };
        Arc::make_mut(&mut self.nodes).insert(id, Arc::new(state));
        Ok(())
    }

    fn node_renewed(&mut self, renewed: &NodeRenewed, at: Moment) -> Result<(), String> {
        let now = at.unix_ms / 1000;
        let certificate = NodeCertificate {
            serial: renewed.serial.clone(),
            not_after_unix_s: renewed.not_after_unix_s,
            root: self.root_of(&renewed.root),
        };
        self.change_node(&renewed.id, |node| {
            node.boot_id.clone_from(&renewed.boot_id);
            node.renew(certificate, &renewed.with_serial, now);
            node.restored = renewed.restored;
        })
    }

    fn node_resolved(&mut self, resolved: &NodeResolved) -> Result<(), String> {
        self.change_node(&resolved.id, |node| {
            node.duplicated = None;
            node.keep_only(&resolved.keep_serial);
        })
    }

    fn change_node(&mut self, id: &str, change: impl FnOnce(&mut NodeState)) -> Result<(), String> {
        let node = Arc::make_mut(&mut self.nodes).get_mut(id);
        change(Arc::make_mut(node.ok_or_else(|| format!("no node {id}"))?));
        Ok(())
    }

    fn node_left(&mut self, id: &str) -> Result<(), String> {
        let id: NodeId = parse(id)?;
        Arc::make_mut(&mut self.nodes).remove(&id);
        if self.registrations_of(&id).next().is_some() {
            Arc::make_mut(&mut self.registrations).retain(|(node, _), _| *node != id);
        }
        Ok(())
    }

    fn registered(&mut self, registered: &EndpointRegistered, at: Moment) -> Result<(), String> {
        let register = registered.register.clone().ok_or("without what is registered")?;
        let node: NodeId = parse(&registered.node)?;
        let key = (node.clone(), Arc::from(register.instance.as_str()));
        let known = self.registrations.get(&key).map(|known| known.registered_at);
        let rewritten = Some(registered.registered_at).filter(|n| *n > 0);
        let state = Registration {
            of_pod: self.nodes.get(&node).is_some_and(|known| known.pod),
            node,
            identity: parse(&registered.spiffe_id)?,
            service: parse(&register.service)?,
            register,
            registered_at: rewritten.or(known).unwrap_or(at.n),
        };
        Arc::make_mut(&mut self.registrations).insert(key, Arc::new(state));
        Ok(())
    }

    fn link_made(&mut self, made: &LinkMade, at: Moment) -> Result<(), String> {
        let link = made.link.clone().ok_or("without a link")?;
        let state = LinkState {
            trust_domain: parse(&link.trust_domain)?,
            bundle: made.bundle.clone().ok_or("without a bundle")?,
            gateways: made.gateways.clone(),
            made_at_ms: at.unix_ms,
            link,
        };
        let site: SiteName = parse(&state.link.site)?;
        Arc::make_mut(&mut self.links).insert(site, Arc::new(state));
        Ok(())
    }

    fn bundle_updated(&mut self, bundle: Option<&Bundle>) -> Result<(), String> {
        let bundle = bundle.ok_or("without a bundle")?;
        let domain: TrustDomain = parse(&bundle.trust_domain)?;
        if let Some(site) = &mut self.site
            && site.trust_domain == domain
        {
            Arc::make_mut(site).bundle = bundle.clone();
            return Ok(());
        }
        let links = Arc::make_mut(&mut self.links);
        let link = links.values_mut().find(|link| link.trust_domain == domain);
        let link = link.ok_or_else(|| format!("no link to trust domain {domain}"))?;
        Arc::make_mut(link).bundle = bundle.clone();
        Ok(())
    }

    fn exported(&mut self, exported: &ServiceExported) -> Result<(), String> {
        let service: ServiceName = parse(&exported.service)?;
        let sites: Result<BTreeSet<SiteName>, _> =
            exported.sites.iter().map(|s| parse(s)).collect();
        let export = Export { all: exported.all, sites: sites?, by_cluster: exported.by_cluster };
        let exports = Arc::make_mut(&mut self.exports);
        if !export.all && export.sites.is_empty() {
            exports.remove(&service);
        } else {
            exports.insert(service, Arc::new(export));
        }
        Ok(())
    }

    fn addressed(&mut self, addressed: &ServiceAddressed) -> Result<(), String> {
        let service: ServiceName = parse(&addressed.service)?;
        let addresses = Arc::make_mut(&mut self.addresses);
        match addressed.address.as_str() {
            "" => addresses.remove(&service),
            address => {
                let second = match addressed.second_address.as_str() {
                    "" => None,
                    second => Some(parse(second)?),
                };
                addresses.insert(service, ClusterAddress { first: parse(address)?, second })
            }
        };
        Ok(())
    }

    /// One without any address is gone.
    fn gateway_seen(&mut self, gateway: Gateway) {
        let gateways = Arc::make_mut(&mut self.gateways);
        if gateway.quic_addresses.is_empty() && gateway.tls_addresses.is_empty() {
            gateways.remove(&gateway.id);
        } else {
            gateways.insert(gateway.id.clone(), Arc::new(gateway));
        }
    }

    fn manifest_applied(&mut self, applied: &ManifestApplied) -> Result<(), String> {
        let name = object_name(applied.name.as_ref())?;
        let read = serde_json::from_str(&applied.document)
            .map_err(|error| error.to_string())
            .and_then(|value| {
                let read = Manifest::from_value(value, &name.to_string());
                read.map_err(|error| error.to_string())
            })
            .map(|read| Manifest { created: applied.created_unix_s.max(0).unsigned_abs(), ..read });
        let state = ManifestState {
            document: applied.document.clone(),
            created_unix_s: applied.created_unix_s,
            read,
        };
        Arc::make_mut(&mut self.manifests).insert(name, Arc::new(state));
        Ok(())
    }

    fn revoke(&mut self, revocation: &Revocation) {
        Arc::make_mut(&mut self.revocations)
            .insert(revocation.subject.clone(), revocation.revoked_at_unix_s);
    }
}

/// When a record was made.
#[derive(Clone, Copy)]
struct Moment {
    n: u64,
    unix_ms: i64,
}

fn object_name(name: Option<&ManifestName>) -> Result<ObjectName, String> {
    let name = name.ok_or("without a name")?;
    let kind = Kind::from_typed(&name.kind).ok_or_else(|| {
        format!("unknown kind {:?}: written by a newer version of federation; upgrade", name.kind)
    })?;
    Ok(ObjectName { kind, namespace: name.namespace.clone(), name: name.name.clone() })
}

pub(super) fn parse<T>(value: &str) -> Result<T, String>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error: T::Err| error.to_string())
}
