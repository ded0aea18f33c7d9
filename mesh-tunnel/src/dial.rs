//! Towards one gateway: QUIC, raced against TLS/TCP.

use std::{sync::Arc, time::Duration};

use mesh_api::v1::Hello;
use mesh_core::{Allowed, service::LinkTransport};

use crate::{net::Net, session::Session, tls::Credentials};

/// Where one gateway can be reached.
#[derive(Debug, Clone, Default)]
pub struct GatewayAddresses {
    /// `host:port` of QUIC listeners.
    pub quic: Vec<Arc<str>>,
    /// `host:port` of TLS/TCP listeners.
    pub tls: Vec<Arc<str>>,
}

/// Why no tunnel came up; one line per attempt.
#[derive(Debug, Clone, thiserror::Error)]
#[error("no tunnel: {0}")]
pub struct DialError(pub String);

/// Opens tunnels.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed.
    pub credentials: Arc<Credentials>,
    /// What this side says first.
    pub hello: Hello,
}

/// How long TCP waits for QUIC (RFC 8305 section 5 calls this the connection
/// attempt delay).
pub const TCP_DELAY: Duration = Duration::from_millis(250);

impl Dialer {
    /// One tunnel to a gateway that is `allowed`: QUIC first, TLS/TCP 250 ms
    /// later or as soon as QUIC fails, the first whose `Hello` arrives wins.
    pub async fn dial(
        &self,
        _to: &GatewayAddresses,
        _allowed: Allowed,
        _transport: LinkTransport,
        _deadline: Duration,
    ) -> Result<Session, DialError> {
        unimplemented!()
    }
}
