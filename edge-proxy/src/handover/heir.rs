//! The network of a process that may have a predecessor, and a successor.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use mesh_tunnel::{
    Listener, Net, RealNet, Stream,
    datagrams::{Generation, SharedDatagrams},
    net::{BoxFuture, Datagrams, RealListener},
    unix::LocalListener,
};
use rustix::fd::{AsFd, OwnedFd};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::sockets::{Kind, Sockets, Wanted};

/// Listens at the sockets that a predecessor has left, and elsewhere at new
/// ones; nothing is accepted before [`HeirNet::open`].
#[derive(Debug, Clone)]
pub struct HeirNet {
    sockets: Sockets,
    open: CancellationToken,
}

impl HeirNet {
    /// Still closed.
    pub fn new(sockets: Sockets) -> Self {
        Self { sockets, open: CancellationToken::new() }
    }

    /// Accepts from now on.
    pub fn open(&self) {
        self.open.cancel();
        self.sockets.open();
    }

    /// Waits for [`HeirNet::open`].
    pub async fn opened(&self) {
        self.open.cancelled().await;
    }

    /// A socket for an address, by inheritance or new.
    ///
    /// # Errors
    ///
    /// As [`RealNet::listen`].
    pub fn listen(&self, addr: SocketAddr, shared: bool) -> io::Result<Arc<TcpListener>> {
        let wanted = Wanted { kind: Kind::Tcp, addr };
        let listener = match self.sockets.take(wanted) {
            Some(left) => TcpListener::from_std(one(left)?.into())?,
            None => RealNet.listen(addr, shared)?,
        };
        let listener = Arc::new(listener);
        self.sockets.hold(wanted, &listener);
        Ok(listener)
    }

    /// As [`HeirNet::listen`].
    fn datagrams(&self, addr: SocketAddr) -> io::Result<Datagrams> {
        let wanted = Wanted { kind: Kind::Udp, addr };
        let (socket, earlier) = match self.sockets.take(wanted) {
            Some(left) => {
                let mut left = left.into_iter();
                let socket = left.next().ok_or(io::ErrorKind::InvalidData)?;
                (socket.into(), left.next())
            }
            None => (RealNet.datagrams(addr, true)?, None),
        };
        let generation = self.sockets.generation();
        let datagrams = Arc::new(SharedDatagrams::new(socket, generation, earlier)?);
        if self.open.is_cancelled() {
            datagrams.open();
        }
        self.sockets.hold(wanted, &datagrams);
        let filtered = Some(datagrams.as_fd().try_clone_to_owned()?);
        Ok(Datagrams { socket: datagrams, filtered })
    }
}

impl Net for HeirNet {
    fn bind(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = RealListener(self.listen(addr, shared)?);
            Ok(Box::new(Gated { listener, open: self.open.clone() }) as Box<dyn Listener>)
        })
    }

    fn is_free(&self, addr: SocketAddr) -> io::Result<()> {
        RealNet.is_free(addr)
    }

    fn dial(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        RealNet.dial(addr)
    }

    fn udp(&self, addr: SocketAddr, shared: bool) -> BoxFuture<'_, io::Result<Datagrams>> {
        // Others are dialled from, and stay with who dials.
        if !shared {
            return RealNet.udp(addr, shared);
        }
        Box::pin(async move { self.datagrams(addr) })
    }

    fn dial_unix<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, io::Result<Stream>> {
        RealNet.dial_unix(path)
    }

    fn bind_unix<'a>(
        &'a self,
        path: &'a Path,
        mode: u32,
    ) -> BoxFuture<'a, io::Result<Box<dyn LocalListener>>> {
        RealNet.bind_unix(path, mode)
    }

    fn has(&self, ip: IpAddr) -> bool {
        RealNet.has(ip)
    }

    fn generation(&self) -> Option<Generation> {
        Some(self.sockets.generation())
    }

    fn resolve<'a>(&'a self, host_port: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        RealNet.resolve(host_port)
    }
}

fn one(mut left: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    left.pop().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

struct Gated {
    listener: RealListener,
    open: CancellationToken,
}

impl Listener for Gated {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        if self.open.is_cancelled() {
            return self.listener.accept();
        }
        Box::pin(async move {
            self.open.cancelled().await;
            self.listener.accept().await
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn shun(&self, sources: &[IpAddr]) {
        self.listener.shun(sources);
    }
}
