//! Authenticated, multiplexed sessions between nodes of the mesh.
//!
//! In reading order:
//! - [`net`]: binding and dialling, real or simulated.
//! - [`datagrams`]: one UDP socket, and the processes that follow each other.
//! - [`tls`]: certificates held, peers verified, configurations made of both.
//! - [`ReadAhead`]: large reads below TLS.
//! - [`session`]: one tunnel; streams opened by either side, each begun by a
//!   `Connect` that names its target.
//! - [`dial`]: QUIC raced against TLS/TCP towards one gateway.
//! - [`admission`]: how many strangers may be busy with us at once.
//! - [`budget`]: how much of a worker's time they get.
//! - [`filter`]: what the kernel keeps away meanwhile.
//! - [`retry`]: what they prove their address by.
//! - [`listen`]: the gateway's door: tunnels, and the join stream.
//! - [`control`]: gRPC to federation, directly or through a gateway.
//! - [`unix`]: gRPC on Unix sockets, with the caller the kernel names.
//!
//! This crate never decides who may do what beyond verifying certificates: it
//! hands `Connect` headers to its caller, who answers yes or no.

pub mod admission;
mod ahead;
pub mod budget;
pub mod control;
pub mod datagrams;
pub mod dial;
pub mod filter;
pub mod listen;
pub mod net;
mod quic;
pub mod retry;
pub mod session;
mod sparing;
pub mod tls;
pub mod unix;

#[cfg(test)]
mod testing;

pub use ahead::ReadAhead;
pub use dial::{DialError, Dialer, GatewayAddresses};
pub use listen::{Arrival, Door, Doors};
pub use net::{Io, Listener, Net, RealNet, Stream};
pub use session::{IncomingStream, OpenError, RefusedHeader, Session, Transport, TunnelStream};
pub use tls::{Credentials, Svid, Trust};
