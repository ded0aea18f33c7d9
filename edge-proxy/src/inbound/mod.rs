//! From the mesh to the application.

use std::sync::Arc;

use mesh_tunnel::Stream;

use crate::worker::Worker;

/// How a caller's bytes reached this proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// A TCP connection from this address.
    Tcp(std::net::SocketAddr),
    /// A stream that a gateway opened in a tunnel that this proxy dialled;
    /// the connection id of its `Connect`.
    Reverse {
        /// `<site>/<gateway>`.
        gateway: String,
        /// Joins the log lines of every hop.
        connection_id: String,
    },
}

/// Serves one caller: inner TLS, then requests, each authorized. Returns when
/// the connection has ended.
pub async fn serve_stream(_worker: Arc<Worker>, _stream: Stream, _via: Via) {}
