//! What a linked site says about itself, and whether it may say so. Pure.
//!
//! A link may speak for its own site and trust domain and for nothing else. A
//! delta with one wrong resource is refused whole, and nothing changes.

use std::collections::BTreeMap;

use mesh_api::v1::{
    Bundle, Delta, Endpoint, Gateway, Health, ResourceKind, Revision, Revocation, Service, resource,
};
use mesh_core::{
    ServiceName, SiteName, SpiffeId, TrustDomain,
    name::{Subject, is_reserved_namespace},
};

use crate::registration::check_ports;

/// Services that one link may bring.
pub const MAX_SERVICES: usize = 10_000;
/// Endpoints that one link may bring.
pub const MAX_ENDPOINTS: usize = 100_000;
/// Identities that one link may have revoked.
pub const MAX_REVOCATIONS: usize = 10_000;
/// Gateways that one site may have.
pub const MAX_GATEWAYS: usize = 32;
/// `host:port`: a DNS name is at most 253 bytes (RFC 1035 section 2.3.4).
const MAX_ADDRESS: usize = 260;
/// As for local endpoints.
const MAX_WEIGHT: u32 = 1_000_000;

/// Everything that one linked site exports to this one, as last accepted.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// The peer's revision; unset before the first delta.
    pub revision: Option<Revision>,
    /// By name: ports only.
    pub services: BTreeMap<ServiceName, Service>,
    /// By id: names only, never addresses.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// By id.
    pub gateways: BTreeMap<String, Gateway>,
    /// The peer's own bundle.
    pub bundle: Option<Bundle>,
    /// By SPIFFE ID: identities of its domain, workloads' and nodes', that it
    /// has revoked.
    pub revocations: BTreeMap<String, Revocation>,
}

/// Whom a link may speak for, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Its site.
    pub site: &'a SiteName,
    /// Its trust domain.
    pub trust_domain: &'a TrustDomain,
    /// Its roots as they are now.
    pub bundle: &'a Bundle,
}

/// Why a delta of a link was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It does not follow the revision that is here.
    #[error("delta does not follow the revision {have}; resynchronise")]
    Revision {
        /// What is here.
        have: String,
    },
    /// A kind of resource that a link must not send.
    #[error("{0} must not come over a link")]
    Kind(&'static str),
    /// A name or field that is not well formed.
    #[error("{what}: {problem}")]
    Invalid {
        /// Which resource.
        what: String,
        /// Which rule it breaks.
        problem: String,
    },
    /// A namespace that is never imported.
    #[error("{0}: its namespace is reserved and never imported")]
    Reserved(String),
    /// A resource of another site.
    #[error("{what}: belongs to site {site:?}; this link speaks only for {own}")]
    ForeignSite {
        /// Which resource.
        what: String,
        /// Whose it claims to be.
        site: String,
        /// The link's site.
        own: SiteName,
    },
    /// An identity of another trust domain.
    #[error("{what}: identity {identity}; this link speaks only for trust domain {own}")]
    ForeignIdentity {
        /// Which resource.
        what: String,
        /// What it claims.
        identity: String,
        /// The link's trust domain.
        own: TrustDomain,
    },
    /// A bundle that does not follow the one that is here.
    #[error("bundle of {trust_domain}: {problem}")]
    Bundle {
        /// Whose.
        trust_domain: String,
        /// Which rule it breaks.
        problem: String,
    },
    /// Too much.
    #[error("more than {limit} {what} over one link")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
}

impl ImportError {
    /// The stable reason, as in logs, the refusal to the peer and `meshctl
    /// links`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Revision { .. } => "import_revision",
            Self::Kind(_) => "import_kind",
            Self::Invalid { .. } => "import_invalid",
            Self::Reserved(_) => "import_reserved_namespace",
            Self::ForeignSite { .. } => "import_foreign_site",
            Self::ForeignIdentity { .. } => "import_foreign_identity",
            Self::Bundle { .. } => "import_bundle",
            Self::Limit { .. } => "import_limit",
        }
    }
}

/// What is imported after a delta of the peer.
pub fn apply_import(
    have: &Imported,
    delta: &Delta,
    peer: Peer<'_>,
) -> Result<Imported, ImportError> {
    let mut next = match delta.from {
        None => Imported::default(),
        from if from == have.revision => have.clone(),
        _ => return Err(ImportError::Revision { have: format!("{:?}", have.revision) }),
    };
    if delta.to.is_none() {
        return Err(invalid("delta", "has no revision"));
    }
    for key in &delta.remove {
        match key.kind() {
            ResourceKind::Service => drop(next.services.remove(key.name.as_str())),
            ResourceKind::Endpoint => drop(next.endpoints.remove(id_part(&key.name, peer.site))),
            ResourceKind::Gateway => drop(next.gateways.remove(id_part(&key.name, peer.site))),
            ResourceKind::Revocation => drop(next.revocations.remove(&key.name)),
            // What was never accepted need not be removed; a bundle stays.
            _ => {}
        }
    }
    for resource in &delta.upsert {
        // A kind that this version does not know yet is no concern of it.
        let Some(resource) = &resource.resource else { continue };
        upsert(&mut next, resource, peer)?;
    }
    check_limit("services", next.services.len(), MAX_SERVICES)?;
    check_limit("endpoints", next.endpoints.len(), MAX_ENDPOINTS)?;
    check_limit("gateways", next.gateways.len(), MAX_GATEWAYS)?;
    check_limit("revocations", next.revocations.len(), MAX_REVOCATIONS)?;
    next.revision = delta.to;
    Ok(next)
}

/// The id in `<site>/<id>`; what names another site is in no map.
fn id_part<'a>(name: &'a str, site: &SiteName) -> &'a str {
    name.strip_prefix(site.as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or_default()
}

fn upsert(
    next: &mut Imported,
    resource: &resource::Resource,
    peer: Peer<'_>,
) -> Result<(), ImportError> {
    use resource::Resource as R;
    match resource {
        R::Service(service) => {
            let (name, service) = check_service(service)?;
            next.services.insert(name, service);
        }
        R::Endpoint(endpoint) => {
            let endpoint = check_endpoint(endpoint, peer)?;
            next.endpoints.insert(endpoint.id.clone(), endpoint);
        }
        R::Gateway(gateway) => {
            let gateway = check_gateway(gateway, peer.site)?;
            next.gateways.insert(gateway.id.clone(), gateway);
        }
        R::Bundle(bundle) => {
            check_bundle(bundle, peer.trust_domain)?;
            check_succession(bundle, peer.bundle)?;
            next.bundle = Some(bundle.clone());
        }
        R::Site(_) => return Err(ImportError::Kind("a site")),
        R::Link(_) => return Err(ImportError::Kind("a link")),
        R::Revocation(revocation) => {
            check_revocation(revocation, peer.trust_domain)?;
            next.revocations.insert(revocation.subject.clone(), revocation.clone());
        }
    }
    Ok(())
}

fn check_service(service: &Service) -> Result<(ServiceName, Service), ImportError> {
    let what = || format!("service {}", short(&service.name));
    let name = importable(&service.name, &what())?;
    check_ports(&service.ports).map_err(|error| invalid(what(), error))?;
    // Routes, policy, exports and addresses are the business of each site.
    let service =
        Service { name: service.name.clone(), ports: service.ports.clone(), ..Service::default() };
    Ok((name, service))
}

/// A service name that may be imported.
fn importable(name: &str, what: &str) -> Result<ServiceName, ImportError> {
    let name: ServiceName = name.parse().map_err(|error| invalid(what, error))?;
    if is_reserved_namespace(name.namespace()) {
        return Err(ImportError::Reserved(name.to_string()));
    }
    Ok(name)
}

fn check_endpoint(endpoint: &Endpoint, peer: Peer<'_>) -> Result<Endpoint, ImportError> {
    let what = || format!("endpoint {} of {}", short(&endpoint.id), short(&endpoint.service));
    importable(&endpoint.service, &what())?;
    check_site(&endpoint.site, what, peer.site)?;
    check_identity(&endpoint.spiffe_id, what, peer.trust_domain)?;
    let health = Health::try_from(endpoint.health).unwrap_or(Health::Unknown);
    let kept = Endpoint {
        id: endpoint.id.clone(),
        service: endpoint.service.clone(),
        port: endpoint.port.clone(),
        site: endpoint.site.clone(),
        spiffe_id: endpoint.spiffe_id.clone(),
        locality: endpoint.locality.clone(),
        weight: endpoint.weight.min(MAX_WEIGHT),
        capacity: endpoint.capacity.min(MAX_WEIGHT),
        health: health.into(),
        workload: endpoint.workload.chars().filter(char::is_ascii_hexdigit).take(32).collect(),
        // Names cross a link, addresses do not: whatever was said is dropped.
        ..Endpoint::default()
    };
    mesh_core::Endpoint::try_from(&kept).map_err(|error| invalid(what(), error))?;
    Ok(kept)
}

/// A link revokes only identities of its own domain. Serial numbers and bare
/// node numbers could be anybody's.
fn check_revocation(revocation: &Revocation, own: &TrustDomain) -> Result<(), ImportError> {
    let what = || format!("revocation of {}", short(&revocation.subject));
    let id: SpiffeId = revocation.subject.parse().map_err(|error| invalid(what(), error))?;
    if id.trust_domain() == own {
        return Ok(());
    }
    let identity = short(&revocation.subject);
    Err(ImportError::ForeignIdentity { what: what(), identity, own: own.clone() })
}

fn check_site(site: &str, what: impl Fn() -> String, own: &SiteName) -> Result<(), ImportError> {
    if site == own.as_str() {
        return Ok(());
    }
    Err(ImportError::ForeignSite { what: what(), site: short(site), own: own.clone() })
}

/// The identity is an application's, of this trust domain.
fn check_identity(
    identity: &str,
    what: impl Fn() -> String,
    own: &TrustDomain,
) -> Result<(), ImportError> {
    let id: SpiffeId = identity.parse().map_err(|error| invalid(what(), error))?;
    if id.trust_domain() != own {
        let identity = short(identity);
        return Err(ImportError::ForeignIdentity { what: what(), identity, own: own.clone() });
    }
    match id.subject() {
        Subject::Workload { namespace, .. } if !is_reserved_namespace(namespace) => Ok(()),
        Subject::Workload { .. } => Err(ImportError::Reserved(short(identity))),
        Subject::Node(_) => Err(invalid(what(), "a node backs no service")),
    }
}

/// A gateway of this site, well formed.
pub fn check_gateway(gateway: &Gateway, site: &SiteName) -> Result<Gateway, ImportError> {
    let what = || format!("gateway {}", short(&gateway.id));
    check_site(&gateway.site, what, site)?;
    mesh_core::Gateway::try_from(gateway).map_err(|error| invalid(what(), error))?;
    let mut addresses = gateway.quic_addresses.iter().chain(&gateway.tls_addresses);
    if !addresses.all(|address| is_host_port(address)) {
        return Err(invalid(what(), "addresses must be host:port"));
    }
    Ok(gateway.clone())
}

fn is_host_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let host_ok = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    address.len() <= MAX_ADDRESS && host_ok && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A bundle of this trust domain, well formed.
pub fn check_bundle(bundle: &Bundle, trust_domain: &TrustDomain) -> Result<(), ImportError> {
    let fail = |problem: &str| bundle_error(bundle, problem);
    if bundle.trust_domain != trust_domain.as_str() {
        return Err(fail(&format!("a CA can vouch only for its own domain, {trust_domain}")));
    }
    mesh_core::TrustBundle::try_from(bundle).map_err(|error| fail(&error.to_string()))?;
    for root in &bundle.roots {
        match x509_parser::parse_x509_certificate(root) {
            Ok(([], certificate)) if certificate.is_ca() => {}
            Ok(_) => return Err(fail("a root is not one CA certificate")),
            Err(_) => return Err(fail("a root is no X.509 certificate")),
        }
    }
    Ok(())
}

/// A bundle changes only along its own lineage: a higher sequence, and at
/// least one root that was there before.
fn check_succession(new: &Bundle, known: &Bundle) -> Result<(), ImportError> {
    if new == known || differs_by_version(new, known) {
        return Ok(());
    }
    if new.sequence <= known.sequence {
        let (new_n, known_n) = (new.sequence, known.sequence);
        return Err(bundle_error(new, &format!("sequence {new_n} does not follow {known_n}")));
    }
    if !new.roots.iter().any(|root| known.roots.contains(root)) {
        let problem = "shares no root with the one that is known; unlink and link again if the \
                       site was really made anew";
        return Err(bundle_error(new, problem));
    }
    Ok(())
}

/// Whether they are the same but for the keys for JWT-SVIDs, which an earlier
/// version does not know: here before, or there now.
fn differs_by_version(new: &Bundle, known: &Bundle) -> bool {
    let without = new.jwt_keys.is_empty() || known.jwt_keys.is_empty();
    without && *new == Bundle { jwt_keys: new.jwt_keys.clone(), ..known.clone() }
}

fn bundle_error(bundle: &Bundle, problem: &str) -> ImportError {
    ImportError::Bundle { trust_domain: short(&bundle.trust_domain), problem: problem.to_owned() }
}

fn check_limit(what: &'static str, count: usize, limit: usize) -> Result<(), ImportError> {
    if count > limit { Err(ImportError::Limit { what, limit }) } else { Ok(()) }
}

fn invalid(what: impl Into<String>, problem: impl ToString) -> ImportError {
    ImportError::Invalid { what: what.into(), problem: problem.to_string() }
}

/// A hostile peer chooses names: messages stay short.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

#[cfg(test)]
mod tests;
