//! What this proxy knows of itself, besides its SVID.

use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_core::{Gateway, GatewayId, Locality, NodeId, SiteName, TrustDomain};

/// What this proxy knows of itself. Parts are unknown until the identity
/// source or the snapshot has told.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// The site it belongs to.
    pub site: Option<SiteName>,
    /// That site's trust domain.
    pub trust_domain: Option<TrustDomain>,
    /// The machine it runs on; `None` for a gateway beside federation and with
    /// identity from files.
    pub node: Option<NodeId>,
    /// Its id, if it is a gateway.
    pub gateway: Option<GatewayId>,
    /// Gateways of its site as the identity source knows them; the snapshot's
    /// are newer once there is one.
    pub gateways: Vec<Gateway>,
    /// Federation's gRPC listener, as the identity source of a gateway knows it.
    pub federation: Option<std::net::SocketAddr>,
    /// Region, zone, host.
    pub locality: Locality,
}

/// Shared and replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct OwnCell(Arc<ArcSwap<Own>>);

impl OwnCell {
    /// Starts with what the configuration says.
    pub fn new(own: Own) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(own)))
    }

    /// What is known now.
    pub fn load(&self) -> Arc<Own> {
        self.0.load_full()
    }

    /// Replaces it.
    pub fn store(&self, own: Own) {
        self.0.store(Arc::new(own));
    }
}
