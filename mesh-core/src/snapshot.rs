//! The view that one proxy decides from, and how it changes.

mod apply;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc};

use mesh_api::v1::{self, resource::Resource as Kind};

pub use self::apply::apply;
use crate::{
    identity::{Revocations, TrustBundles},
    name::{GatewayId, ServiceName, SiteName, TrustDomain},
    service::{Endpoint, Gateway, Link, Map, Service},
    wire::SiteRecord,
};

/// A point in the history of one store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Revision {
    /// The store's lineage; revisions of different epochs do not compare.
    pub epoch: u64,
    /// Grows by one with every change.
    pub n: u64,
}

/// Services, gateways, links, bundles and revocations at one revision.
/// Cheap to clone: what did not change is shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Which state this is.
    pub revision: Revision,
    /// The site it describes.
    pub site: SiteName,
    /// That site's trust domain.
    pub trust_domain: TrustDomain,
    /// Federation's gRPC listener; known to gateways only.
    pub federation: Option<SocketAddr>,
    /// By name.
    pub services: Map<ServiceName, Service>,
    /// By site and id.
    pub gateways: Map<(SiteName, GatewayId), Gateway>,
    /// By site.
    pub links: Map<SiteName, Link>,
    /// Roots per trust domain.
    pub bundles: Arc<TrustBundles>,
    /// What is no longer accepted.
    pub revocations: Arc<Revocations>,
}

/// Why a delta was refused; the old snapshot stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It applies to another revision.
    #[error("delta from {from:?} does not apply to {have:?}")]
    WrongBase {
        /// What the delta says.
        from: Revision,
        /// What is here.
        have: Revision,
    },
    /// A resource is not well formed.
    #[error("{resource}: {problem}")]
    Invalid {
        /// Kind and name.
        resource: String,
        /// Which rule it breaks.
        problem: String,
    },
}

/// The whole snapshot as one delta without `from`: for disks, for `meshctl`,
/// and for subscribers that begin.
pub fn to_delta(snapshot: &Snapshot) -> v1::Delta {
    let site = SiteRecord {
        name: snapshot.site.clone(),
        trust_domain: snapshot.trust_domain.clone(),
        federation: snapshot.federation,
    };
    let mut upsert = vec![Kind::Site((&site).into())];
    upsert.extend(snapshot.bundles.values().map(|bundle| Kind::Bundle((&**bundle).into())));
    upsert.extend(snapshot.links.values().map(|link| Kind::Link((&**link).into())));
    upsert.extend(snapshot.gateways.values().map(|gateway| Kind::Gateway((&**gateway).into())));
    for service in snapshot.services.values() {
        upsert.push(Kind::Service((&**service).into()));
        upsert.extend(service.endpoints.iter().map(|e| Kind::Endpoint((&**e).into())));
    }
    upsert.extend(snapshot.revocations.iter().map(|revoked| {
        Kind::Revocation(v1::Revocation { subject: revoked.to_string(), revoked_at_unix_s: 0 })
    }));
    v1::Delta {
        from: None,
        to: Some(snapshot.revision.into()),
        upsert: upsert.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect(),
        remove: Vec::new(),
    }
}

impl Snapshot {
    /// One endpoint of a service.
    pub fn endpoint(&self, service: &str, site: &SiteName, id: &str) -> Option<&Arc<Endpoint>> {
        let endpoints = &self.services.get(service)?.endpoints;
        let found = endpoints.binary_search_by(|e| (&e.site, e.id.as_str()).cmp(&(site, id)));
        found.ok().and_then(|at| endpoints.get(at))
    }
}
