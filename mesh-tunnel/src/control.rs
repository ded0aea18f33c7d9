//! gRPC to federation: directly, or inside a stream of a tunnel. Either way
//! the (inner) TLS ends at federation.

use std::sync::Arc;

use mesh_core::{PeerIdentity, SiteName, TrustDomain};
use tonic::transport::Channel;

use crate::{
    net::{Net, Stream},
    session::Session,
    tls::Credentials,
};

/// How to get to federation.
#[derive(Clone)]
pub enum Route {
    /// Its gRPC listener, `ip:port`.
    Direct(Arc<dyn Net>, std::net::SocketAddr),
    /// A stream to `federation.isthmus-system` of this site through a gateway.
    Through(Session),
    /// A gateway's join door: outer and inner TLS pinned to a root.
    JoinDoor {
        /// Real or simulated.
        net: Arc<dyn Net>,
        /// `host:port` of the gateway's TLS/TCP listener.
        gateway: Arc<str>,
        /// From the token.
        root_spki_sha256: [u8; 32],
    },
}

/// A channel to the federation of `site`, whose identity is that of
/// `trust_domain`'s federation. One connection; the caller dials again.
pub async fn channel(
    _route: Route,
    _credentials: &Arc<Credentials>,
    _site: &SiteName,
    _trust_domain: &TrustDomain,
) -> std::io::Result<Channel> {
    unimplemented!()
}

/// A connection that federation accepted, for tonic's `serve_with_incoming`.
/// `peer` is `None` behind the join door.
pub struct ServerConn {
    /// Bytes inside TLS.
    pub stream: Stream,
    /// The verified caller.
    pub peer: Option<PeerIdentity>,
}
