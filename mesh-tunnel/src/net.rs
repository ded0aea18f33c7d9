//! The seam between the mesh and a network: real sockets, or a simulation.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc};

use tokio::io::{AsyncRead, AsyncWrite};

/// A boxed future that may cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A duplex byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The raw descriptor of a real socket, for original-destination lookup
    /// and socket options; `None` in a simulation.
    fn raw_fd(&self) -> Option<std::os::fd::RawFd> {
        None
    }

    /// Makes the next close an abort: a TCP RST instead of a FIN.
    fn abort_on_close(&mut self) {}
}

/// A connection of either kind of network.
pub type Stream = Box<dyn Io>;

/// Accepts connections.
pub trait Listener: Send + Sync + 'static {
    /// The next connection and where it came from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>>;
    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Binds and dials.
pub trait Net: fmt::Debug + Send + Sync + 'static {
    /// Listens for TCP. With `shared`, several listeners of this process may
    /// bind the same address (`SO_REUSEPORT`) and share its connections.
    fn bind(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;
    /// Opens a TCP connection with `TCP_NODELAY`.
    fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>>;
    /// A UDP socket for QUIC.
    fn udp(
        &self,
        addr: SocketAddr,
        shared: bool,
    ) -> BoxFuture<'_, io::Result<Arc<dyn quinn::AsyncUdpSocket>>>;
    /// Resolves `host:port`; at most 16 addresses.
    fn resolve<'a>(&'a self, host_port: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// Sockets of the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealNet;
