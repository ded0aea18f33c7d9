//! `mesh_tunnel::Net` over turmoil: whole meshes in one process, with the
//! network's faults under the test's command.
//!
//! The real code runs unchanged; time is turmoil's. Keep link latency fixed:
//! random latency per datagram looks like loss to QUIC.

use std::{
    fmt, io,
    io::IoSliceMut,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use mesh_runtime::clock;
use mesh_tunnel::{
    net::{BoxFuture, Datagrams, Io, Listener, Net, Stream},
    unix::{LocalListener, UnixPeer},
};
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How far the clocks of a simulation are ahead of the machine's at its start.
/// They can only be set forward: longer than any simulation takes in real time.
const AHEAD: Duration = Duration::from_secs(3600);

/// When a simulation that begins now starts, for turmoil's `epoch`.
pub fn epoch() -> SystemTime {
    clock::now() + AHEAD
}

/// Sets the clocks of this host; first thing after each of its starts, which
/// begin with the machine's time.
pub async fn set_clocks() {
    let now = turmoil::since_epoch().expect("inside a simulation");
    tokio::time::advance(now.saturating_sub(clock::now_unix())).await;
    // Turmoil's own view of this host is right again with its next tick.
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// Unix sockets by name; each is this port of its host plus its place here.
const SOCKETS: [&str; 5] =
    ["federation.sock", "gateway-identity.sock", "agent.sock", "identity.sock", "workload.sock"];
const FIRST_SOCKET: u16 = 100;

/// `…/<host>/run/<name>.sock` is a port of that host: what is one machine in
/// reality may be several hosts here, one per process.
fn socket(path: &Path) -> Option<(&str, u16)> {
    let name = path.file_name()?.to_str()?;
    let host = path.parent()?.parent()?.file_name()?.to_str()?;
    let place = SOCKETS.iter().position(|known| *known == name)?;
    Some((host, FIRST_SOCKET + place as u16))
}

/// The network of the current simulation; usable inside turmoil hosts only.
#[derive(Debug, Clone, Default)]
pub struct SimNet {
    loss: Option<Arc<Loss>>,
}

/// Which datagrams are lost: one by one. (A link of turmoil that fails loses
/// everything that is on its way.)
#[derive(Debug)]
struct Loss {
    rate: f64,
    chance: Mutex<StdRng>,
    lost: AtomicUsize,
}

impl Loss {
    fn takes_this(&self) -> bool {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = chance.random_bool(self.rate);
        self.lost.fetch_add(lost.into(), Ordering::Relaxed);
        lost
    }
}

impl SimNet {
    /// Loses this part of the datagrams that are sent. Not of TCP: turmoil's
    /// is never sent again.
    pub fn losing(rate: f64, seed: u64) -> Self {
        let chance = Mutex::new(StdRng::seed_from_u64(seed));
        Self { loss: Some(Arc::new(Loss { rate, chance, lost: AtomicUsize::new(0) })) }
    }

    /// How many datagrams were lost until now.
    pub fn lost(&self) -> usize {
        self.loss.as_ref().map_or(0, |loss| loss.lost.load(Ordering::Relaxed))
    }
}

impl Net for SimNet {
    fn bind(
        &self,
        addr: SocketAddr,
        _shared: bool,
    ) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = turmoil::net::TcpListener::bind(addr).await?;
            Ok(Box::new(SimListener(listener)) as Box<dyn Listener>)
        })
    }

    /// Each program has a host of its own.
    fn is_free(&self, _addr: SocketAddr) -> io::Result<()> {
        Ok(())
    }

    fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let stream = turmoil::net::TcpStream::connect(addr).await?;
            Ok(Box::new(SimStream(stream)) as Stream)
        })
    }

    fn udp(&self, addr: SocketAddr, _shared: bool) -> BoxFuture<'_, io::Result<Datagrams>> {
        Box::pin(async move {
            let socket = turmoil::net::UdpSocket::bind(addr).await?;
            let loss = self.loss.clone();
            let socket: Arc<dyn AsyncUdpSocket> = Arc::new(SimUdp { socket, loss });
            Ok(socket.into())
        })
    }

    fn dial_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let (host, port) = socket(path).ok_or(io::ErrorKind::NotFound)?;
            self.dial(SocketAddr::new(turmoil::lookup(host), port)).await
        })
    }

    fn bind_unix<'a>(
        &'a self,
        path: &'a Path,
        _mode: u32,
    ) -> BoxFuture<'a, io::Result<Box<dyn LocalListener>>> {
        Box::pin(async move {
            let (_, port) = socket(path).ok_or(io::ErrorKind::InvalidInput)?;
            let listener = self.bind((Ipv4Addr::UNSPECIFIED, port).into(), false).await?;
            Ok(Box::new(SimUnix(listener)) as Box<dyn LocalListener>)
        })
    }

    /// A simulated host has one address besides this, and does not tell.
    fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback()
    }

    /// Names are turmoil's host names.
    fn resolve<'a>(&'a self, host_port: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if let Ok(addr) = host_port.parse() {
                return Ok(vec![addr]);
            }
            let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not host:port");
            let (host, port) = host_port.rsplit_once(':').ok_or_else(invalid)?;
            let port = port.parse().map_err(|_| invalid())?;
            Ok(vec![SocketAddr::new(turmoil::lookup(host), port)])
        })
    }
}

/// Everybody is root.
struct SimUnix(Box<dyn Listener>);

impl LocalListener for SimUnix {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, UnixPeer)>> {
        Box::pin(async move {
            let (stream, _) = self.0.accept().await?;
            Ok((stream, UnixPeer { uid: 0, gid: 0, pid: None, accepted: Duration::ZERO }))
        })
    }
}

struct SimListener(turmoil::net::TcpListener);

impl Listener for SimListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            Ok((Box::new(SimStream(stream)) as Stream, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

struct SimStream(turmoil::net::TcpStream);

impl Io for SimStream {}

impl AsyncRead for SimStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

struct SimUdp {
    socket: turmoil::net::UdpSocket,
    loss: Option<Arc<Loss>>,
}

impl fmt::Debug for SimUdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimUdp")
    }
}

/// Simulated sockets have no send queue.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for SimUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.loss.as_ref().is_some_and(|loss| loss.takes_this()) {
            return Ok(());
        }
        match self.socket.try_send_to(transmit.contents, transmit.destination) {
            Ok(_) => Ok(()),
            // A datagram to a host that is down is lost, like any other.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.socket.try_recv_from(&mut bufs[0]) {
                Ok((len, addr)) => {
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut readable = std::pin::pin!(self.socket.readable());
                    ready!(readable.as_mut().poll(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}
