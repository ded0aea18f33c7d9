//! The seam between the mesh and a network: real sockets, or a simulation.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use quinn::Runtime;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixStream},
};

use crate::{datagrams::Generation, filter, unix::LocalListener};

/// A boxed future that may cross threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A duplex byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The raw descriptor of a real socket, for original-destination lookup
    /// and socket options; `None` in a simulation.
    fn raw_fd(&self) -> Option<RawFd> {
        None
    }

    /// Makes the next close an abort: a TCP RST instead of a FIN.
    fn abort_on_close(&mut self) {}

    /// Where a connection went before the kernel redirected it here
    /// (`SO_ORIGINAL_DST`); `None` if it was not, or in a simulation.
    fn original_destination(&self) -> Option<SocketAddr> {
        None
    }
}

/// A connection of either kind of network.
pub type Stream = Box<dyn Io>;

/// A UDP socket for QUIC.
#[derive(Debug)]
pub struct Datagrams {
    /// What is read and written.
    pub socket: Arc<dyn quinn::AsyncUdpSocket>,
    /// The same socket of the operating system, for filters in the kernel;
    /// `None` where whoever dials has it, and in a simulation.
    pub filtered: Option<OwnedFd>,
}

impl From<Arc<dyn quinn::AsyncUdpSocket>> for Datagrams {
    fn from(socket: Arc<dyn quinn::AsyncUdpSocket>) -> Self {
        Self { socket, filtered: None }
    }
}

impl<T: Io + ?Sized> Io for Box<T> {
    fn raw_fd(&self) -> Option<RawFd> {
        (**self).raw_fd()
    }

    fn abort_on_close(&mut self) {
        (**self).abort_on_close();
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        (**self).original_destination()
    }
}

impl fmt::Debug for dyn Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("fd", &self.raw_fd()).finish()
    }
}

impl Io for UnixStream {
    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.as_raw_fd())
    }
}

/// In-memory pipes, for tests and for joining two layers.
impl Io for tokio::io::DuplexStream {}

impl<T: Io> Io for tokio_rustls::client::TlsStream<T> {
    fn raw_fd(&self) -> Option<RawFd> {
        self.get_ref().0.raw_fd()
    }

    fn abort_on_close(&mut self) {
        self.get_mut().0.abort_on_close();
    }
}

impl<T: Io> Io for tokio_rustls::server::TlsStream<T> {
    fn raw_fd(&self) -> Option<RawFd> {
        self.get_ref().0.raw_fd()
    }

    fn abort_on_close(&mut self) {
        self.get_mut().0.abort_on_close();
    }
}

/// Accepts connections.
pub trait Listener: Send + Sync + 'static {
    /// The next connection and where it came from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>>;
    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
    /// Hears nothing any more of connections that these sources would begin,
    /// where the kernel can do that: addresses of IPv4, networks of 64 bits of
    /// IPv6. What is open goes on.
    fn shun(&self, _sources: &[IpAddr]) {}
}

/// Binds and dials.
pub trait Net: fmt::Debug + Send + Sync + 'static {
    /// Listens for TCP. With `shared`, several listeners of this process may
    /// bind the same address (`SO_REUSEPORT`) and share its connections.
    fn bind(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Box<dyn Listener>>>;
    /// Fails where somebody listens for TCP already. Listens at no time itself: clients
    /// would come in, and be left.
    fn is_free(&self, addr: SocketAddr) -> io::Result<()>;
    /// Opens a TCP connection with `TCP_NODELAY`.
    fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>>;
    /// A UDP socket for QUIC.
    fn udp(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Datagrams>>;
    /// Connects to a Unix socket.
    fn dial_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Stream>>;
    /// Listens on a Unix socket with these permission bits, as
    /// [`mesh_runtime::process::bind_unix`] does.
    fn bind_unix<'a>(
        &'a self,
        path: &'a Path,
        mode: u32,
    ) -> BoxFuture<'a, io::Result<Box<dyn LocalListener>>>;
    /// Whether this host has an address.
    fn has(&self, ip: IpAddr) -> bool;
    /// Makes QUIC's connection ids and timings repeatable in a simulation.
    fn quic_seed(&self) -> Option<[u8; 32]> {
        None
    }
    /// What tells the QUIC connections of this process from those of the one
    /// that had its sockets before; see [`crate::datagrams`].
    fn generation(&self) -> Option<Generation> {
        None
    }
    /// Resolves `host:port`; at most [`MAX_ADDRESSES`] addresses.
    fn resolve<'a>(&'a self, host_port: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;
}

/// What one name may resolve to; a hostile zone file must not make us dial
/// hundreds of hosts.
pub const MAX_ADDRESSES: usize = 16;
/// Connections that the kernel queues before they are accepted (capped by
/// `net.core.somaxconn`).
const BACKLOG: i32 = 1024;
/// Asked of the kernel for each UDP socket: at 1 Gbit/s a 2 MiB buffer covers
/// 16 ms in which the process is not scheduled.
const UDP_BUFFER: usize = 2 << 20;
/// A safety net under the callers' own deadlines.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// The resolver of the operating system has no deadline of its own.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long `accept` rests when the process has no descriptors left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Sockets of the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealNet;

impl RealNet {
    /// As [`Net::bind`], the socket itself.
    ///
    /// # Errors
    ///
    /// The address is not to be had; the error says which, and what to do.
    pub fn listen(&self, addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
        bind_tcp(addr, shared).map_err(|e| named(&e, "TCP", addr))
    }

    /// As [`Net::udp`], the socket itself.
    ///
    /// # Errors
    ///
    /// As [`RealNet::listen`].
    pub fn datagrams(&self, addr: SocketAddr, shared: bool) -> io::Result<std::net::UdpSocket> {
        bind_udp(addr, shared).map_err(|e| named(&e, "UDP", addr))
    }
}

impl Net for RealNet {
    fn bind(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = RealListener(Arc::new(self.listen(addr, shared)?));
            Ok(Box::new(listener) as Box<dyn Listener>)
        })
    }

    fn is_free(&self, addr: SocketAddr) -> io::Result<()> {
        bound_tcp(addr, false).map(drop).map_err(|e| named(&e, "TCP", addr))
    }

    fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let stream = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(addr))
                .await
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{addr}: no answer")))?
                .map_err(|e| io::Error::new(e.kind(), format!("{addr}: {e}")))?;
            stream.set_nodelay(true)?;
            Ok(Box::new(RealStream(stream)) as Stream)
        })
    }

    fn udp(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Datagrams>> {
        Box::pin(async move {
            let socket = self.datagrams(addr, shared)?;
            let filtered = shared.then(|| socket.try_clone()).transpose()?.map(OwnedFd::from);
            Ok(Datagrams { socket: quinn::TokioRuntime.wrap_udp_socket(socket)?, filtered })
        })
    }

    fn dial_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = UnixStream::connect(path).await?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn bind_unix<'a>(
        &'a self,
        path: &'a Path,
        mode: u32,
    ) -> BoxFuture<'a, io::Result<Box<dyn LocalListener>>> {
        Box::pin(async move {
            let listener = mesh_runtime::process::bind_unix(path, mode).await?;
            Ok(Box::new(listener) as Box<dyn LocalListener>)
        })
    }

    /// Only what is its own can be bound.
    fn has(&self, ip: IpAddr) -> bool {
        std::net::UdpSocket::bind((ip, 0)).is_ok()
    }

    fn resolve<'a>(&'a self, host_port: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if let Ok(addr) = host_port.parse() {
                return Ok(vec![addr]);
            }
            let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host(host_port))
                .await
                .map_err(|_| {
                    let text = format!("{host_port}: the resolver did not answer");
                    io::Error::new(io::ErrorKind::TimedOut, text)
                })?
                .map_err(|e| io::Error::new(e.kind(), format!("{host_port}: {e}")))?;
            Ok(found.take(MAX_ADDRESSES).collect())
        })
    }
}

/// Names the address: "Address already in use" alone helps nobody.
fn named(error: &io::Error, kind: &str, addr: SocketAddr) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "; stop what listens there or configure another address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        io::ErrorKind::AddrNotAvailable => "; this host has no such address",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot listen on {kind} {addr}: {error}{remedy}"))
}

fn bind_tcp(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = bound_tcp(addr, shared)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Nobody can connect to it yet.
fn bound_tcp(addr: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket)
}

fn bind_udp(addr: SocketAddr, shared: bool) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    // The kernel grants what its limits allow; less only costs throughput.
    for result in [socket.set_recv_buffer_size(UDP_BUFFER), socket.set_send_buffer_size(UDP_BUFFER)]
    {
        if let Err(error) = result {
            log::debug!(addr:% = addr, error:% = error; "UDP buffer not enlarged");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// A listening socket of the operating system.
#[derive(Debug, Clone)]
pub struct RealListener(pub Arc<TcpListener>);

impl Listener for RealListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async move {
            loop {
                match self.0.accept().await {
                    Ok((stream, from)) => {
                        // Fails only on a connection that is already gone.
                        let _ = stream.set_nodelay(true);
                        return Ok((Box::new(RealStream(stream)) as Stream, from));
                    }
                    Err(error) if is_of_one_connection(&error) => {}
                    Err(error) if is_exhaustion(&error) => {
                        log::warn!(error:% = error; "cannot accept connections: raise the limit of open files");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn shun(&self, sources: &[IpAddr]) {
        if let Err(error) = filter::drop_beginnings(&self.0, sources) {
            log::debug!(error:% = error; "sources are not kept away by the kernel");
        }
    }
}

/// accept(2): errors of a connection that ended while it was queued.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted
            | Kind::ConnectionReset
            | Kind::ConnectionRefused
            | Kind::Interrupted
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::HostUnreachable
            | Kind::PermissionDenied
            | Kind::TimedOut
    )
}

/// accept(2): EMFILE, ENFILE, ENOBUFS, ENOMEM (Linux numbers).
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(24 | 23 | 105 | 12))
}

struct RealStream(TcpStream);

impl Io for RealStream {
    fn raw_fd(&self) -> Option<RawFd> {
        Some(self.0.as_raw_fd())
    }

    fn abort_on_close(&mut self) {
        // Zero linger turns close(2) into a RST. It fails only on a socket
        // that has no connection left to reset.
        let _ = SockRef::from(&self.0).set_linger(Some(Duration::ZERO));
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        let socket = SockRef::from(&self.0);
        // A dual-stack listener has IPv4 connections too: ask for both.
        socket.original_dst_v4().or_else(|_| socket.original_dst_v6()).ok()?.as_socket()
    }
}

impl AsyncRead for RealStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for RealStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn any() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    async fn pair() -> (Stream, Stream) {
        let listener = RealNet.bind(any(), false).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (dialled, accepted) = tokio::join!(RealNet.dial(addr), listener.accept());
        (dialled.unwrap(), accepted.unwrap().0)
    }

    #[tokio::test]
    async fn shared_addresses_can_be_bound_twice_and_others_not() {
        for shared in [true, false] {
            let first = RealNet.bind(any(), shared).await.unwrap();
            let second = RealNet.bind(first.local_addr().unwrap(), shared).await;
            assert_eq!(second.is_ok(), shared);
            assert!(RealNet.is_free(first.local_addr().unwrap()).is_err(), "{shared}");
            let first = RealNet.udp(any(), shared).await.unwrap();
            let second = RealNet.udp(first.socket.local_addr().unwrap(), shared).await;
            assert_eq!(second.is_ok(), shared);
        }
    }

    #[tokio::test]
    async fn nobody_comes_in_while_an_address_is_looked_at() {
        let looked = bound_tcp(any(), false).unwrap();
        let addr = looked.local_addr().unwrap().as_socket().unwrap();
        assert!(RealNet.dial(addr).await.is_err());
        drop(looked);
        RealNet.is_free(addr).unwrap();
    }

    #[test]
    fn a_host_knows_its_addresses() {
        // RFC 5737: nobody's.
        let cases = [("127.0.0.1", true), ("127.8.8.8", true), ("192.0.2.1", false)];
        for (ip, has) in cases {
            assert_eq!(RealNet.has(ip.parse().unwrap()), has, "{ip}");
        }
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_its_remedy() {
        let first = RealNet.bind(any(), false).await.unwrap();
        let addr = first.local_addr().unwrap();
        let error = RealNet.bind(addr, false).await.err().unwrap().to_string();
        assert!(error.contains(&addr.to_string()), "{error}");
        assert!(error.contains("another address"), "{error}");
    }

    #[tokio::test]
    async fn half_close_and_abort_reach_the_other_side() {
        let (mut a, mut b) = pair().await;
        a.write_all(b"ping").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"ping");
        b.write_all(b"pong").await.unwrap();
        let mut buf = [0; 4];
        a.read_exact(&mut buf).await.unwrap();
        b.abort_on_close();
        drop(b);
        let error = a.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn names_and_addresses_resolve() {
        assert_eq!(RealNet.resolve("127.0.0.1:7").await.unwrap(), [([127, 0, 0, 1], 7).into()]);
        let found = RealNet.resolve("localhost:7").await.unwrap();
        assert!(found.iter().all(|addr| addr.ip().is_loopback()), "{found:?}");
        assert!(RealNet.resolve("no port").await.is_err());
    }
}
