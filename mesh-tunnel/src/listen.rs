//! The gateway's door: one UDP and one TCP address.

use std::{io, net::SocketAddr, sync::Arc};

use mesh_api::v1::Hello;
use mesh_core::Allowed;

use crate::{
    net::{Net, Stream},
    session::Session,
    tls::Credentials,
};

/// Where and as whom to listen.
#[derive(Debug, Clone)]
pub struct Doors {
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed.
    pub credentials: Arc<Credentials>,
    /// Who may have a tunnel.
    pub allowed: Allowed,
    /// What this side says first.
    pub hello: Hello,
    /// UDP, if QUIC is offered.
    pub quic: Option<SocketAddr>,
    /// TCP.
    pub tls: SocketAddr,
}

/// Listens; one per worker, sharing the addresses.
#[derive(Debug)]
pub struct Door {}

/// What came in.
pub enum Arrival {
    /// A verified neighbour whose `Hello` has been read.
    Tunnel(Session),
    /// Somebody without a certificate who wants to talk to federation: the
    /// bytes inside the outer TLS, to be copied there and never read.
    Join(Stream, SocketAddr),
}

impl Door {
    /// Binds both listeners.
    pub async fn open(_doors: Doors) -> io::Result<Self> {
        unimplemented!()
    }

    /// The next arrival; handshakes run beside it, bounded in number and time.
    pub async fn accept(&self) -> io::Result<Arrival> {
        unimplemented!()
    }

    /// Where it listens: (UDP, TCP).
    pub fn local_addrs(&self) -> (Option<SocketAddr>, SocketAddr) {
        unimplemented!()
    }

    /// Accepts nothing new; tunnels go on.
    pub fn close(&self) {
        unimplemented!()
    }
}
