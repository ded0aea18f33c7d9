//! A UDP socket that one process leaves to the next while QUIC connections of
//! both go on.
//!
//! Both have the same socket, and the kernel gives a datagram to whoever reads
//! first. From the hand-over on only the later process reads. The first byte of
//! every connection id that a process makes is its [`Generation`]; what carries
//! another one is passed on to the process before, over a pair of Unix sockets,
//! and sent by it directly.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram as StdUnixDatagram,
    },
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use quinn::{
    AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Runtime, TokioRuntime, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{io::ReadBuf, net::UnixDatagram};

/// Which of the processes that follow each other at one address; neighbours
/// differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(pub u8);

/// Bytes of a connection id, of which the first is the generation.
pub(crate) const CID_LEN: usize = 8;
/// The longest datagram, or several in one (UDP GRO), with what is added to it.
const MAX_PASSED: usize = 65_536 + MAX_TRAILER;
/// Two addresses in text, a length, ECN, and the size of each part.
const MAX_TRAILER: usize = 128 + TRAILER_END;
const TRAILER_END: usize = 4;

/// Makes the connection ids of one process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cids(pub(crate) Generation);

impl ConnectionIdGenerator for Cids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id: [u8; CID_LEN] = rand::random();
        id[0] = self.0.0;
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Whether a datagram belongs to a connection of this generation, or begins a
/// new one (RFC 9000 section 17: the destination's connection id is all that a
/// short header has; in long ones it follows the version).
pub fn is_of(generation: Generation, datagram: &[u8]) -> bool {
    const LONG: u8 = 0x80;
    const TYPE: u8 = 0x30;
    const INITIAL: u8 = 0x00;
    let id = match datagram {
        [first, _, _, _, _, len, id @ ..] if first & LONG != 0 => {
            // A client chooses the first one itself.
            if first & TYPE == INITIAL || usize::from(*len) != CID_LEN {
                return true;
            }
            id
        }
        [first, id @ ..] if first & LONG == 0 => id,
        _ => return true,
    };
    id.first().is_none_or(|first| *first == generation.0)
}

/// See the module.
pub struct SharedDatagrams {
    inner: Arc<dyn AsyncUdpSocket>,
    socket: std::net::UdpSocket,
    generation: Generation,
    /// To the process that had the socket before this one.
    earlier: Option<UnixDatagram>,
    /// From the process that has it after this one.
    later: Mutex<Option<Arc<UnixDatagram>>>,
    has_later: AtomicBool,
    is_open: AtomicBool,
    has_left: AtomicBool,
    reader: AtomicWaker,
    passed: Mutex<Vec<u8>>,
}

impl fmt::Debug for SharedDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedDatagrams").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl AsFd for SharedDatagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl SharedDatagrams {
    /// A socket that is not read before [`SharedDatagrams::open`]; `earlier`
    /// leads to the process that had it before. Call it in the runtime that
    /// will read.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn new(
        socket: std::net::UdpSocket,
        generation: Generation,
        earlier: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let inner = TokioRuntime.wrap_udp_socket(socket.try_clone()?)?;
        Ok(Self {
            inner,
            socket,
            generation,
            earlier: earlier.map(unix).transpose()?,
            later: Mutex::default(),
            has_later: AtomicBool::new(false),
            is_open: AtomicBool::new(false),
            has_left: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            passed: Mutex::default(),
        })
    }

    /// Reads from now on.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// The socket, and a way for the next process to pass on what is ours. The
    /// last that was given counts. Call it in a runtime.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn give(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        // Bounded in bytes, not in datagrams as SOCK_DGRAM (unix(7)).
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (ours, theirs) = socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        let socket = self.socket.try_clone()?;
        let later = Arc::new(unix(ours)?);
        *self.later.lock().unwrap_or_else(PoisonError::into_inner) = Some(later);
        self.has_later.store(true, Ordering::Release);
        self.reader.wake();
        Ok((socket.into(), theirs))
    }

    /// The next process reads; this one has what it passes on.
    pub fn leave(&self) {
        self.has_left.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// What is another process's goes there; the rest stays.
    fn pass_on(&self, bufs: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let Some(earlier) = &self.earlier else { return };
        for (buf, meta) in bufs.iter().zip(metas) {
            let Some(datagrams) = buf.get(..meta.len) else { continue };
            if is_of(self.generation, datagrams) {
                continue;
            }
            let mut passed = Vec::with_capacity(meta.len + MAX_TRAILER);
            passed.extend_from_slice(datagrams);
            put_trailer(&mut passed, meta);
            // A full socket loses a datagram, as networks do.
            let _ = earlier.try_send(&passed);
            // Nothing is left in it for us.
            meta.len = 0;
        }
    }

    /// What the later process passes on.
    fn poll_passed(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let later = self.later.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(later) = later else { return Poll::Pending };
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.resize(MAX_PASSED, 0);
        loop {
            let mut buf = ReadBuf::new(&mut passed);
            if ready!(later.poll_recv(cx, &mut buf)).is_err() || buf.filled().is_empty() {
                // The later process has gone: nothing comes any more.
                self.has_later.store(false, Ordering::Release);
                return Poll::Pending;
            }
            let Some((meta, datagrams)) = read_passed(buf.filled()) else { continue };
            let Some(place) = bufs[0].get_mut(..datagrams.len()) else { continue };
            place.copy_from_slice(datagrams);
            metas[0] = meta;
            // It may be of one that was here before us.
            self.pass_on(bufs, &mut metas[..1]);
            return Poll::Ready(Ok(1));
        }
    }
}

fn unix(socket: OwnedFd) -> io::Result<UnixDatagram> {
    let socket = StdUnixDatagram::from(socket);
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)
}

/// Where a datagram came from and went to, after its bytes.
fn put_trailer(passed: &mut Vec<u8>, meta: &RecvMeta) {
    let to = meta.dst_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let text = format!("{} {to}", meta.addr);
    passed.extend_from_slice(text.as_bytes());
    let stride = u16::try_from(meta.stride).unwrap_or(u16::MAX);
    passed.extend_from_slice(&stride.to_be_bytes());
    passed.push(meta.ecn.map_or(0, |ecn| ecn as u8));
    passed.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
}

/// Datagrams of one source that another process has passed on, and where they
/// came from; `None` if it is anything else.
pub fn read_passed(passed: &[u8]) -> Option<(RecvMeta, &[u8])> {
    let (rest, end) = passed.split_last_chunk::<TRAILER_END>()?;
    let [high, low, ecn, len] = *end;
    let (datagrams, text) = rest.split_at_checked(rest.len().checked_sub(len.into())?)?;
    let (from, to) = str::from_utf8(text).ok()?.split_once(' ')?;
    let stride = usize::from(u16::from_be_bytes([high, low]));
    // Of pieces without a length there would be no end.
    if stride == 0 && !datagrams.is_empty() {
        return None;
    }
    let meta = RecvMeta {
        addr: from.parse::<SocketAddr>().ok()?,
        dst_ip: to.parse::<IpAddr>().ok(),
        ecn: EcnCodepoint::from_bits(ecn),
        len: datagrams.len(),
        stride,
    };
    Some((meta, datagrams))
}

impl AsyncUdpSocket for SharedDatagrams {
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
        self.reader.register(cx.waker());
        if !self.is_open.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        if !self.has_left.load(Ordering::Acquire)
            && let Poll::Ready(received) = self.inner.poll_recv(cx, bufs, metas)
        {
            let count = received?;
            self.pass_on(bufs, &mut metas[..count]);
            return Poll::Ready(Ok(count));
        }
        if self.has_later.load(Ordering::Acquire) {
            return self.poll_passed(cx, bufs, metas);
        }
        Poll::Pending
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
    use std::future::poll_fn;

    use super::*;

    const OLD: Generation = Generation(7);
    const NEW: Generation = Generation(8);

    fn short(generation: Generation) -> Vec<u8> {
        let mut datagram = vec![0x41, generation.0];
        datagram.extend_from_slice(&[0x55; 30]);
        datagram
    }

    fn long(kind: u8, id: &[u8]) -> Vec<u8> {
        let mut datagram = vec![0xc0 | kind << 4, 0, 0, 0, 1, id.len() as u8];
        datagram.extend_from_slice(id);
        datagram.extend_from_slice(&[0x55; 30]);
        datagram
    }

    #[test]
    fn connection_ids_say_whose_they_are() {
        let mut cids = Cids(OLD);
        let (one, other) = (cids.generate_cid(), cids.generate_cid());
        assert_ne!(one, other);
        for id in [one, other] {
            let handshake = long(2, &id);
            assert!(is_of(OLD, &handshake) && !is_of(NEW, &handshake));
        }
        assert!(is_of(OLD, &short(OLD)) && !is_of(NEW, &short(OLD)));
    }

    #[test]
    fn what_begins_a_connection_is_everybodys() {
        for datagram in [long(0, &[OLD.0; 8]), long(0, &[1; 20]), long(2, &[OLD.0; 4])] {
            assert!(is_of(NEW, &datagram));
        }
        for nonsense in [&[][..], &[0x40], &[0xc0], &[0xff; 5]] {
            assert!(is_of(NEW, nonsense));
        }
    }

    async fn receive(socket: &SharedDatagrams) -> (Vec<u8>, SocketAddr) {
        let mut buf = vec![0; 2048];
        loop {
            let mut metas = [RecvMeta::default()];
            let mut bufs = [IoSliceMut::new(&mut buf)];
            let got = poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut metas)).await;
            assert_eq!(got.unwrap(), 1);
            let [meta] = metas;
            if meta.len > 0 {
                return (buf[..meta.len].to_vec(), meta.addr);
            }
        }
    }

    #[tokio::test]
    async fn each_process_has_its_own_datagrams_over_two_hand_overs() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = client.local_addr().unwrap();
        let first = SharedDatagrams::new(socket, OLD, None).unwrap();
        first.open();
        client.send_to(&short(OLD), to).unwrap();
        assert_eq!(receive(&first).await, (short(OLD), from));

        let after = |earlier: &SharedDatagrams, generation| {
            let (socket, passing) = earlier.give().unwrap();
            SharedDatagrams::new(socket.into(), generation, Some(passing)).unwrap()
        };
        let second = after(&first, NEW);
        first.leave();
        second.open();
        let newest = Generation(9);
        let third = after(&second, newest);
        second.leave();
        third.open();
        for generation in [newest, OLD, NEW, OLD] {
            client.send_to(&short(generation), to).unwrap();
        }
        // Who has its own goes on and passes on the rest.
        let own_and_rest = |socket| async move {
            let own = receive(socket).await;
            let quiet = tokio::time::timeout(Duration::from_millis(200), receive(socket)).await;
            assert!(quiet.is_err());
            own
        };
        let all = async {
            tokio::join!(
                async { [receive(&first).await, receive(&first).await] },
                own_and_rest(&second),
                own_and_rest(&third),
            )
        };
        let (a, b, c) = tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
        assert_eq!(a, [(short(OLD), from), (short(OLD), from)]);
        assert_eq!(b, (short(NEW), from));
        assert_eq!(c, (short(newest), from));
    }

    #[tokio::test]
    async fn without_its_successor_a_process_goes_on() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = socket.local_addr().unwrap();
        let first = SharedDatagrams::new(socket, OLD, None).unwrap();
        first.open();
        drop(first.give().unwrap());
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            client.send_to(&short(NEW), to).unwrap();
            assert_eq!(receive(&first).await.0, short(NEW));
        }
    }

    #[test]
    fn trailers_say_the_same_afterwards() {
        let meta = RecvMeta {
            addr: "[fe80::1%7]:4433".parse().unwrap(),
            dst_ip: Some("10.0.0.1".parse().unwrap()),
            ecn: EcnCodepoint::from_bits(2),
            len: 5,
            stride: 1200,
        };
        let mut passed = b"bytes".to_vec();
        put_trailer(&mut passed, &meta);
        let (same, bytes) = read_passed(&passed).unwrap();
        assert_eq!(bytes, b"bytes");
        assert_eq!((same.addr, same.dst_ip, same.ecn), (meta.addr, meta.dst_ip, meta.ecn));
        assert_eq!((same.len, same.stride), (meta.len, meta.stride));
        for len in 0..passed.len() {
            let _no_panic = read_passed(&passed[..len]);
        }
    }
}
