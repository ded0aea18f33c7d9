//! A door's UDP socket that leaves a worker time for the connections that it
//! has: what belongs to handshakes is dropped when there is no time for it, as
//! networks do, and whoever means it sends it again. What comes until there is
//! time again the kernel drops.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use crate::{admission::Tally, budget::Budget, filter, net::Datagrams};

/// What one datagram of a handshake is taken to cost: keys are made of what a
/// client has said before anything can be known of it.
const COST: Duration = Duration::from_micros(40);

/// How long the kernel drops them at least: to begin and to end that costs it a
/// few of them.
const SIFTED: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Sparing {
    inner: Arc<dyn AsyncUdpSocket>,
    sieve: Option<Arc<Sieve>>,
    budget: Budget,
    turned_away: Tally,
}

impl fmt::Debug for Sparing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sparing").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// The socket that the kernel filters.
struct Sieve {
    socket: OwnedFd,
    is_set: AtomicBool,
}

impl Sieve {
    /// A process before this one may have left its own.
    fn new(socket: OwnedFd) -> Arc<Self> {
        told(filter::keep_all(&socket));
        Arc::new(Self { socket, is_set: AtomicBool::new(false) })
    }

    /// Drops handshakes until there is time for one.
    fn set(self: &Arc<Self>, budget: &Budget) {
        if self.is_set.swap(true, Ordering::Relaxed) {
            return;
        }
        told(filter::drop_handshakes(&self.socket));
        let (sieve, budget) = (self.clone(), budget.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SIFTED).await;
            budget.turn().await;
            sieve.is_set.store(false, Ordering::Relaxed);
            told(filter::keep_all(&sieve.socket));
        });
    }
}

/// The runtime may end before there is time again, and a successor has the same
/// socket.
impl Drop for Sieve {
    fn drop(&mut self) {
        if *self.is_set.get_mut() {
            told(filter::keep_all(&self.socket));
        }
    }
}

fn told(done: io::Result<()>) {
    if let Err(error) = done {
        log::debug!(error:% = error; "datagrams are not dropped by the kernel");
    }
}

/// Only handshakes have long headers (RFC 9000 section 17).
fn is_of_handshake(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0x80 != 0)
}

impl Sparing {
    pub(crate) fn new(inner: Datagrams, budget: Budget, turned_away: Tally) -> Self {
        let Datagrams { socket: inner, filtered } = inner;
        Self { inner, sieve: filtered.map(Sieve::new), budget, turned_away }
    }

    /// Whether what was received together, from one source, can be read.
    fn admits(&self, datagrams: &[u8], meta: &RecvMeta) -> bool {
        let all = datagrams.chunks(meta.stride.max(1));
        let count = all.filter(|datagram| is_of_handshake(datagram)).count();
        let Ok(count @ 1..) = u32::try_from(count) else { return true };
        if !self.budget.has_left() {
            self.turned_away.count("door_busy");
            if let Some(sieve) = &self.sieve {
                sieve.set(&self.budget);
            }
            return false;
        }
        self.budget.spend(COST * count);
        true
    }
}

impl AsyncUdpSocket for Sparing {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.inner.poll_recv(cx, bufs, metas))?;
        for (buf, meta) in bufs.iter().zip(&mut metas[..count]) {
            if buf.get(..meta.len).is_some_and(|datagrams| !self.admits(datagrams, meta)) {
                // Nothing is left in it.
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}
