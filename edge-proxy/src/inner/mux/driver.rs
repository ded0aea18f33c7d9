//! Who reads and writes for one session.
//!
//! All frames of a read are looked at under one lock. What streams want to
//! send is collected while other tasks have their turn, then written at once:
//! many streams share a TLS record and a system call.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use mesh_tunnel::Stream;
use tokio::{
    io::{AsyncReadExt, AsyncWrite},
    time::{Sleep, sleep},
};

use super::{
    Shared,
    frame::{self, Decoder, Frame, Step, Violation},
    out::shrink,
    receive::Verdict,
    state::Bye,
    watch::Watch,
};

/// What the first read may take.
const FIRST_READ: usize = 1 << 10;
/// What a read grows to: one TLS record and the rest of a frame before it.
const LARGEST_READ: usize = 17 << 10;
/// Reads before other tasks get their turn, while what was read is still in the
/// processor's cache.
const READS: usize = 4;
/// Traffic between two looks of the watch that needs no buffers at hand.
const QUIET: usize = 4 << 10;
/// How long the last words may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Driver {
    io: Stream,
    shared: Arc<Shared>,
    watch: Watch,
    phase: Phase,
    decoder: Decoder,
    /// What was read and is not yet a frame.
    buf: BytesMut,
    /// What the next read may take.
    chunk: usize,
    /// What it must take for the frame to be whole.
    missing: usize,
    /// Frames that are being written, and how far.
    writing: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// Others have had their turn since something waits to be written.
    yielded: bool,
    /// Bytes read and written since buffers were last looked at.
    traffic: usize,
}

enum Phase {
    Running,
    /// The last words are being written.
    Leaving(Pin<Box<Sleep>>),
    Over,
}

/// How a session ends.
enum End {
    /// We end it; the peer is told, unless everything has been said.
    Ours(Option<Bye>),
    /// There is nobody to tell. Streams above the number were not looked at.
    Theirs(Arc<str>, Option<u32>),
}

impl From<Violation> for End {
    fn from(violation: Violation) -> Self {
        Self::Ours(Some(Bye { code: frame::VIOLATED, why: violation.to_string().into() }))
    }
}

impl Driver {
    pub(super) fn new(io: Stream, shared: Arc<Shared>, watch: Watch) -> Self {
        Self {
            io,
            shared,
            watch,
            phase: Phase::Running,
            decoder: Decoder::default(),
            buf: BytesMut::new(),
            chunk: FIRST_READ,
            missing: 1,
            writing: Vec::new(),
            written: 0,
            unflushed: false,
            yielded: false,
            traffic: 0,
        }
    }

    /// Moves what can be moved; ready when the session has ended.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(self.phase, Phase::Running) {
            let end = ready!(self.poll_running(cx));
            self.leave(end);
        }
        if let Phase::Leaving(patience) = &mut self.phase {
            // The peer may be gone or stuck; it finds out by itself.
            let late = patience.as_mut().poll(cx).is_ready();
            if !late && self.poll_last_words(cx).is_pending() {
                return Poll::Pending;
            }
            self.phase = Phase::Over;
        }
        Poll::Ready(())
    }

    fn poll_running(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let (watch_due, cut) = {
            let mut state = self.shared.state();
            state.set_driver(cx);
            (std::mem::take(&mut state.watch_due), state.cut.take())
        };
        if let Some(bye) = cut {
            return Poll::Ready(End::Ours(Some(bye)));
        }
        if watch_due && let Poll::Ready(bye) = self.watch.poll() {
            return Poll::Ready(End::Ours(Some(bye)));
        }
        if let Err(end) = self.read(cx) {
            return Poll::Ready(end);
        }
        match self.poll_write(cx) {
            Poll::Ready(Ok(())) if self.shared.state().is_finished() => {
                return Poll::Ready(End::Ours(None));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(End::Theirs(lost(&error), None)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        self.give_back();
        Poll::Pending
    }

    /// Reads until there is nothing more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        for _ in 0..READS {
            let room = self.make_room();
            let Poll::Ready(read) = pin!(self.io.read_buf(&mut self.buf)).poll(cx) else {
                return Ok(());
            };
            let n = read.map_err(|error| self.lost(&error))?;
            if n == 0 {
                return Err(self.closed());
            }
            self.traffic += n;
            if n >= room.min(self.chunk) {
                self.chunk = (self.chunk * 2).min(LARGEST_READ);
            }
            self.receive()?;
        }
        // There may be more, but it is the others' turn.
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Room for the next read. What others still hold of the buffer stays
    /// theirs; the last quarter of it is not worth a new one.
    fn make_room(&mut self) -> usize {
        let room = self.buf.capacity() - self.buf.len();
        if room < self.missing.max(self.chunk / 4) {
            self.buf.reserve(self.missing.max(self.chunk));
        }
        self.buf.capacity() - self.buf.len()
    }

    /// Takes note of all frames in the buffer.
    fn receive(&mut self) -> Result<(), End> {
        let mut state = self.shared.state();
        state.heard = true;
        if state.probed {
            state.watch_due = true;
            state.wake_driver();
        }
        loop {
            let frame = match self.decoder.next(&mut self.buf)? {
                Step::Frame(frame) => frame,
                Step::Missing(n) => {
                    self.missing = n;
                    return Ok(());
                }
            };
            if let Verdict::Closed(bye, last) = state.receive(frame)? {
                return Err(End::Theirs(bye.why, Some(last)));
            }
        }
    }

    /// Writes what there is, in batches; ready when all of it is written.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_batch(cx))?;
            let mut state = self.shared.state();
            if state.call_waiting() {
                state.scheduled = true;
                cx.waker().wake_by_ref();
            }
            if state.out.is_empty() {
                return Poll::Ready(Ok(()));
            }
            // Nobody but one stream would have anything to add.
            if !self.yielded && state.open > 1 {
                self.yielded = true;
                state.scheduled = true;
                drop(state);
                return pin!(tokio::task::yield_now()).poll(cx).map(Ok);
            }
            self.yielded = false;
            state.out.take(&mut self.writing);
            self.traffic += self.writing.len();
        }
    }

    /// Writes and flushes what was taken last.
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.writing.len() {
            let rest = &self.writing[self.written..];
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        self.writing.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    /// Frees what was not needed lately.
    fn give_back(&mut self) {
        let mut state = self.shared.state();
        if !std::mem::take(&mut state.give_back) {
            return;
        }
        if std::mem::take(&mut self.traffic) < QUIET {
            state.shrink();
            shrink(&mut self.writing);
            self.chunk = FIRST_READ;
            if self.buf.is_empty() {
                self.buf = BytesMut::new();
            }
        }
    }

    /// Everybody who waits is told; then come the last words.
    fn leave(&mut self, end: End) {
        let (why, last) = match &end {
            End::Ours(bye) => {
                (bye.as_ref().map_or_else(|| "it was over".into(), |bye| bye.why.clone()), None)
            }
            End::Theirs(why, last) => (why.clone(), *last),
        };
        let seen = {
            let mut state = self.shared.state();
            state.end(&why, last);
            state.violated = matches!(&end, End::Ours(Some(bye)) if bye.code == frame::VIOLATED);
            state.going.unwrap_or(state.next_id - 1)
        };
        self.shared.ended.cancel();
        if let End::Ours(Some(_)) | End::Theirs(..) = &end {
            log::debug!(reason = &*why; "inner session ended");
        }
        self.buf = BytesMut::new();
        let End::Ours(bye) = end else {
            self.phase = Phase::Over;
            return;
        };
        if let Some(Bye { code, why }) = bye {
            let reason = frame::shortened(&why).to_vec().into();
            Frame::GoAway { last: seen, code, reason }.encode(&mut self.writing);
        }
        self.phase = Phase::Leaving(Box::pin(sleep(FAREWELL)));
    }

    /// Says them, and waits for the peer to close, too: closing before it
    /// could lose them on their way.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_batch(cx))?;
        ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
        for _ in 0..READS {
            self.buf.clear();
            self.make_room();
            if ready!(pin!(self.io.read_buf(&mut self.buf)).poll(cx))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn closed(&self) -> End {
        let whole = self.decoder.is_between_frames(self.buf.len());
        let why = if whole { "closed by the peer" } else { "cut off within a frame" };
        End::Theirs(why.into(), None)
    }

    /// Before its hello a peer that refuses our certificate has looked at no
    /// stream (RFC 8446 section 4.4.2.4: the alert ends its handshake).
    fn lost(&self, error: &io::Error) -> End {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        let refused = matches!(inner, Some(rustls::Error::AlertReceived(_)));
        let unseen = refused && !self.shared.state().greeted;
        End::Theirs(lost(error), unseen.then_some(0))
    }
}

/// Whoever holds a stream of a session that nobody drives is told.
impl Drop for Driver {
    fn drop(&mut self) {
        if matches!(self.phase, Phase::Running) {
            self.shared.state().end(&"nobody drives it any more".into(), None);
            self.shared.ended.cancel();
        }
    }
}

fn lost(error: &io::Error) -> Arc<str> {
    format!("connection lost: {error}").into()
}
