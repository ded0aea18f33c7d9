//! A door's UDP socket that leaves a worker time for the connections that it
//! has: what belongs to handshakes is dropped when there is no time for it, as
//! networks do, and whoever means it sends it again. What comes until there is
//! time again the kernel drops. While strangers have to prove their address
//! first, their first packets are answered here.

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

use crate::{
    admission::{Strangers, Tally},
    budget::Budget,
    datagrams::Generation,
    filter,
    net::Datagrams,
    retry::{self, First, TokenKey},
};

/// What one datagram of a handshake is taken to cost: keys are made of what a
/// client has said before anything can be known of it.
const COST: Duration = Duration::from_micros(40);
/// The same for one that is answered here: above all the kernel's part in it.
const COST_HERE: Duration = Duration::from_micros(15);

/// How long the kernel drops them at least: to begin and to end that costs it a
/// few of them.
const SIFTED: Duration = Duration::from_millis(100);

/// See the module.
pub(crate) struct Sparing {
    inner: Arc<dyn AsyncUdpSocket>,
    sieve: Option<Arc<Sieve>>,
    budget: Budget,
    strangers: Arc<Strangers>,
    turned_away: Tally,
    tokens: Arc<TokenKey>,
    generation: Option<Generation>,
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
    pub(crate) fn new(
        inner: Datagrams,
        (budget, strangers, turned_away): (Budget, Arc<Strangers>, Tally),
        generation: Option<Generation>,
    ) -> Self {
        let Datagrams { socket: inner, filtered } = inner;
        let (sieve, tokens) = (filtered.map(Sieve::new), TokenKey::of_process());
        Self { inner, sieve, budget, strangers, turned_away, tokens, generation }
    }

    /// How much is left for the endpoint of what was received together, from
    /// one source.
    fn sift(&self, datagrams: &mut [u8], meta: &RecvMeta) -> usize {
        let all = datagrams.chunks(meta.stride.max(1));
        let count = all.filter(|datagram| is_of_handshake(datagram)).count();
        let Ok(count @ 1..) = u32::try_from(count) else { return datagrams.len() };
        if !self.budget.has_left() {
            self.turned_away.count("door_busy");
            if let Some(sieve) = &self.sieve {
                sieve.set(&self.budget);
            }
            return 0;
        }
        let (mut here, mut left) = (0, datagrams.len());
        if self.strangers.must_retry(meta.addr) {
            left = retain(datagrams, meta.stride, |datagram| {
                let is_left = !self.answers(datagram, meta);
                here += u32::from(!is_left);
                is_left
            });
        }
        self.budget.spend(COST * (count - here) + COST_HERE * here);
        left
    }

    /// Whether nothing more is to be done about a datagram of somebody who has
    /// to prove their address.
    fn answers(&self, datagram: &[u8], meta: &RecvMeta) -> bool {
        let initial = match retry::first_of(datagram) {
            First::Initial(initial) if self.tokens.has_made(initial.token) => return false,
            // Somebody else's token is none (RFC 9000 section 8.1.3).
            First::Initial(initial) => initial,
            First::Broken => return true,
            First::Other => return false,
        };
        let packet = retry::Packet::new(&initial, meta.addr, self.generation, &self.tokens);
        let transmit = Transmit {
            destination: meta.addr,
            ecn: None,
            contents: packet.as_bytes(),
            segment_size: None,
            src_ip: meta.dst_ip,
        };
        // What the kernel has no room for is lost, as networks lose it.
        let _ = self.inner.try_send(&transmit);
        self.turned_away.count("quic_retry");
        true
    }
}

/// Moves together those of several datagrams in one buffer that are kept, all of
/// one size but the last; how much they are.
fn retain(datagrams: &mut [u8], stride: usize, mut keeps: impl FnMut(&[u8]) -> bool) -> usize {
    let (mut left, mut at) = (0, 0);
    while at < datagrams.len() {
        let end = datagrams.len().min(at + stride.max(1));
        if keeps(&datagrams[at..end]) {
            datagrams.copy_within(at..end, left);
            left += end - at;
        }
        at = end;
    }
    left
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
        for (buf, meta) in bufs.iter_mut().zip(&mut metas[..count]) {
            if let Some(datagrams) = buf.get_mut(..meta.len) {
                meta.len = self.sift(datagrams, meta);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_of_several_datagrams_stays_in_their_order() {
        let cases: [(&[u8], &[u8]); 6] = [
            (b"aabbc", b"aabbc"),
            (b"xxaabbc", b"aabbc"),
            (b"aaxxbbxxc", b"aabbc"),
            (b"aaxxbbx", b"aabb"),
            (b"xxx", b""),
            (b"", b""),
        ];
        for (datagrams, kept) in cases {
            let mut buf = datagrams.to_vec();
            let left = retain(&mut buf, 2, |datagram| !datagram.contains(&b'x'));
            assert_eq!(&buf[..left], kept, "{datagrams:?}");
        }
    }
}
