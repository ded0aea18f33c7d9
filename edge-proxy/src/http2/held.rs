//! Clients that ask for more than can be begun.
//!
//! A request that `h2` has looked at costs a third of its answer, whatever
//! becomes of it. So while requests wait at the worker's gate, what a connection
//! has sent is kept as bytes from its next request on, a fiftieth of a request's
//! size, and handed on when it is nearly that connection's turn, with the time
//! at which it came. What belongs to requests that have begun goes on until
//! then. Clients are slowed down by what they may leave unanswered, and by TCP.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use mesh_runtime::clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::frames::{Frames, HEADERS};
use crate::{
    gate::{self, Gate, lane::Lane},
    outbound::sniff::PREFACE,
};

/// Bytes that are held of one connection; the kernel holds what comes after.
const MAX_HELD: usize = 32 << 10;
/// Bytes of one read.
const READ: usize = 4 << 10;
/// What comes within it counts as come together, so that little is kept of when.
const TOGETHER: Duration = Duration::from_millis(10);

/// A client's connection whose requests wait in turn.
#[derive(Debug)]
pub struct Held<S> {
    io: S,
    gate: Arc<Gate>,
    lane: Arc<Lane>,
    frames: Frames,
    /// What is next is a request, but for the header of its frame.
    asks: bool,
    bytes: BytesMut,
    /// When they came, and how many of them together.
    came: VecDeque<(Instant, usize)>,
}

impl<S> Held<S> {
    /// A connection on which nothing was read, and whose requests stand in
    /// `lane`.
    pub fn new(io: S, gate: Arc<Gate>, lane: Arc<Lane>) -> Self {
        let (frames, asks) = (Frames::after(PREFACE.len()), false);
        let (bytes, came) = (BytesMut::new(), VecDeque::new());
        Self { io, gate, lane, frames, asks, bytes, came }
    }

    /// Whether the next request may be looked at, which came at `since`; who
    /// calls is woken when that is worth another look.
    fn may_ask(&self, cx: &Context<'_>, since: Instant) -> bool {
        let late = gate::is_late(since);
        if self.lane.since().is_some_and(|looked| gate::is_late(looked) != late) {
            // What is not late is not refused with what is.
            cx.waker().wake_by_ref();
            return false;
        }
        if late || !self.gate.is_closed() || self.gate.has_room(&self.lane) {
            return true;
        }
        match self.lane.since() {
            // What was handed on stands in line by the next look.
            Some(_) => cx.waker().wake_by_ref(),
            None => self.lane.call(cx.waker()),
        }
        false
    }

    /// How many of the bytes are handed on.
    fn hand_on(&mut self, cx: &Context<'_>, room: usize) -> usize {
        let Some(&(since, count)) = self.came.front() else { return 0 };
        if self.asks {
            if !self.may_ask(cx, since) {
                return 0;
            }
            self.asks = false;
            self.lane.look(since);
        }
        let all = count.min(room);
        let mut rest = &self.bytes[..all];
        self.asks = self.frames.next(&mut rest) == Some(HEADERS);
        all - rest.len()
    }

    fn consume(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some((_, left)) = self.came.front_mut() {
            *left -= count;
            if *left == 0 {
                self.came.pop_front();
            }
        }
    }

    fn note_read(&mut self, count: usize) {
        let now = clock::monotonic();
        match self.came.back_mut() {
            Some((since, before)) if now - *since < TOGETHER => *before += count,
            _ => self.came.push_back((now, count)),
        }
    }
}

impl<S: AsyncRead + Unpin> Held<S> {
    /// Takes what has come, as much as may be held. Ready when the client has
    /// gone: what is held is for nobody then.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.bytes.len() < MAX_HELD {
            self.bytes.reserve(READ);
            let mut piece = (&mut self.bytes).limit(READ);
            match ready!(pin!(self.io.read_buf(&mut piece)).poll(cx)) {
                Ok(count) if count > 0 => self.note_read(count),
                end => return Poll::Ready(end.map(drop)),
            }
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Held<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.bytes.is_empty() && !this.gate.is_closed() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
            let mut read = &buf.filled()[before..];
            while this.frames.next(&mut read).is_some() {}
            this.asks = false;
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(end) = this.poll_fill(cx) {
            (this.bytes, this.came) = (BytesMut::new(), VecDeque::new());
            return Poll::Ready(end);
        }
        let count = this.hand_on(cx, buf.remaining());
        buf.put_slice(&this.bytes[..count]);
        this.consume(count);
        if this.bytes.is_empty() {
            this.bytes = BytesMut::new();
        }
        if count == 0 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Held<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        task::{Wake, Waker},
    };

    use gate::lane::AHEAD;
    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::{
        super::frames::{DATA, tests::frame},
        *,
    };

    /// Bytes of a request's frame.
    const ASKED: usize = 30;
    /// The same with the header of the frame that follows.
    const ONE: usize = ASKED + 9;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection at a closed gate, in whose lane nobody has room.
    struct World {
        gate: Arc<Gate>,
        lane: Arc<Lane>,
        line: Vec<gate::Place>,
        client: DuplexStream,
        held: Held<DuplexStream>,
        woken: Arc<Woken>,
    }

    impl World {
        /// What the client has said so far is handed on up to its first request.
        async fn new(said: &[u8]) -> Self {
            let (gate, lane) = (Arc::new(Gate::default()), Arc::new(Lane::default()));
            gate.close();
            let (mut client, server) = tokio::io::duplex(4 * MAX_HELD);
            client.write_all(PREFACE).await.unwrap();
            client.write_all(said).await.unwrap();
            let held = Held::new(server, gate.clone(), lane.clone());
            let mut world =
                Self { gate, lane, line: Vec::new(), client, held, woken: Arc::default() };
            world.line_up(AHEAD);
            world
        }

        fn line_up(&mut self, count: usize) {
            let place = || self.gate.line_up(Some(&self.lane), clock::monotonic()).unwrap();
            self.line.extend(std::iter::repeat_with(place).take(count));
        }

        fn poll_read(&mut self) -> Poll<usize> {
            let waker = Waker::from(self.woken.clone());
            let mut memory = [0; 16 << 10];
            let mut buf = ReadBuf::new(&mut memory);
            let cx = &mut Context::from_waker(&waker);
            Pin::new(&mut self.held).poll_read(cx, &mut buf).map(|read| {
                read.unwrap();
                buf.filled().len()
            })
        }

        /// How much is handed on at one look.
        fn look(&mut self) -> usize {
            self.lane.begin();
            let mut sum = 0;
            while let Poll::Ready(count) = self.poll_read() {
                assert!(count > 0, "it has ended");
                sum += count;
            }
            sum
        }

        fn woken(&self) -> usize {
            self.woken.0.swap(0, Ordering::Relaxed)
        }
    }

    fn requests(count: usize) -> Vec<u8> {
        frame(HEADERS, ASKED).repeat(count)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_held_and_what_has_begun_goes_on() {
        let came = clock::monotonic();
        let said = [frame(DATA, 100), requests(1), frame(DATA, 100)].concat();
        let mut world = World::new(&said).await;
        assert_eq!(world.look(), PREFACE.len() + 109 + 9, "up to the request");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((world.look(), world.woken()), (0, 0));
        world.gate.let_in(AHEAD);
        assert_eq!(world.woken(), 1, "its reader was called");
        assert_eq!(world.look(), ASKED + 109);
        assert_eq!(world.lane.since(), Some(came), "it counts from when it came");
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_hands_on_as_many_as_have_room() {
        let mut world = World::new(&requests(30)).await;
        world.look();
        world.gate.let_in(AHEAD - 6);
        assert_eq!(world.woken(), 1);
        assert_eq!((world.look(), world.woken()), (10 * ONE, 1), "it looks again by itself");
        world.line_up(10);
        assert_eq!((world.look(), world.woken()), (0, 0), "and waits to be called");
        world.line.clear();
        world.gate.let_in(1);
        assert_eq!((world.look(), world.woken()), (16 * ONE, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_late_is_handed_on_by_itself() {
        let mut world = World::new(&requests(2)).await;
        assert_eq!(world.look(), PREFACE.len() + 9);
        tokio::time::sleep(Duration::from_secs(2)).await;
        world.client.write_all(&requests(1)).await.unwrap();
        assert_eq!((world.look(), world.woken()), (0, 1), "it is taken from the kernel");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!((world.look(), world.woken()), (2 * ONE, 1));
        assert!(world.lane.since().is_some_and(gate::is_late));
        world.gate.let_in(AHEAD);
        assert_eq!(world.look(), ASKED, "what is not late is not refused with it");
        assert!(!world.lane.since().is_some_and(gate::is_late));
    }

    #[tokio::test(start_paused = true)]
    async fn little_is_held_and_nothing_at_an_open_gate_or_of_who_has_gone() {
        let flood = requests(2 * MAX_HELD / ONE);
        let mut world = World::new(&flood).await;
        world.look();
        assert!((MAX_HELD..MAX_HELD + READ).contains(&world.held.bytes.len()));
        assert_eq!(world.held.came.len(), 1);
        world.gate.let_in(AHEAD);
        world.line.clear();
        let mut left = flood.len() - 9;
        for _ in 0..1000 {
            left -= world.look();
        }
        assert_eq!((left, world.held.bytes.capacity()), (0, 0));
        world.client.write_all(&requests(5)).await.unwrap();
        world.line_up(AHEAD);
        assert_eq!(world.look(), 9);
        drop(std::mem::replace(&mut world.client, tokio::io::duplex(1).0));
        assert_eq!(world.poll_read(), Poll::Ready(0));
        assert_eq!(world.held.bytes.capacity(), 0);
    }
}
