//! What both sides of one session know: streams, their windows and what waits
//! to be sent. No I/O: the driver feeds frames in and takes frames out,
//! streams read and write.

use std::{
    collections::VecDeque,
    io,
    task::{Context, Poll, Waker},
};

use bytes::{Buf, Bytes};
use rustc_hash::FxHashMap;
use tokio::{io::ReadBuf, time::Instant};

use super::{
    frame::{self, Frame, MAX_DATA, Violation},
    rope::{PIECE, Rope},
    stream::{End, Received, Stream, Told, WINDOW},
};

/// By how much all windows of one session may have grown together.
const GROWTH: u32 = 16 << 20;
/// Bytes that are framed for one write to the connection.
const FLUSH: usize = 64 * 1024;
/// Streams of the peer that were one too many, and wait to be told.
const MAX_ORPHANS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    /// Few enough that a peer who chooses ids to collide gains little.
    streams: FxHashMap<u32, Stream>,
    /// Parity of our ids: even on the side that dialled.
    next_id: u32,
    /// No id of the peer from here on has been seen.
    next_peer: u32,
    /// Streams that each side may have open.
    limit: usize,
    ours: usize,
    theirs: usize,
    /// Streams that have something to send, in turn.
    ready: VecDeque<u32>,
    /// Streams of the peer that nobody has accepted.
    accepting: VecDeque<u32>,
    acceptor: Option<Waker>,
    /// Streams that we refuse.
    orphans: VecDeque<u32>,
    /// Frames on their way to the driver.
    outgoing: Vec<u8>,
    /// The driver has frames that it has not flushed.
    unflushed: bool,
    /// Counts what the driver has flushed.
    flushes: u64,
    flushed: Vec<Waker>,
    driver: Option<Waker>,
    growth: u32,
    pub(super) heard: Instant,
    /// We want it to end.
    pub(super) closing: Option<String>,
    /// It has ended.
    ended: bool,
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "stream reset by the peer")
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the tunnel has ended")
}

impl State {
    pub(super) fn new(dialled: bool, limit: usize, now: Instant) -> Self {
        Self {
            streams: FxHashMap::default(),
            next_id: u32::from(!dialled),
            next_peer: u32::from(dialled),
            limit,
            ours: 0,
            theirs: 0,
            ready: VecDeque::new(),
            accepting: VecDeque::new(),
            acceptor: None,
            orphans: VecDeque::new(),
            outgoing: Vec::new(),
            unflushed: false,
            flushes: 0,
            flushed: Vec::new(),
            driver: None,
            growth: GROWTH,
            heard: now,
            closing: None,
            ended: false,
        }
    }

    // What streams do.

    /// A new stream of ours; `None` if there are too many or it has ended.
    pub(super) fn open(&mut self, now: Instant) -> Option<u32> {
        if self.ended || self.closing.is_some() || self.ours >= self.limit {
            return None;
        }
        let id = self.next_id;
        self.next_id = id.checked_add(2)?;
        self.ours += 1;
        self.streams.insert(id, Stream::new(true, now));
        Some(id)
    }

    /// The next stream of the peer; `None` when it has ended.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<u32>> {
        if let Some(id) = self.accepting.pop_front() {
            return Poll::Ready(Some(id));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        self.acceptor = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(super) fn poll_read(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let ended = self.ended;
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if stream.unread.is_empty() {
            return match stream.receiving {
                Received::Reset => Poll::Ready(Err(reset())),
                Received::Fin => Poll::Ready(Ok(())),
                Received::Open if ended || stream.stop != Told::No => Poll::Ready(Err(gone())),
                Received::Open => {
                    stream.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        stream.unread.read(buf);
        if stream.grant() > 0 {
            self.queue(id);
        }
        Poll::Ready(Ok(()))
    }

    /// The next bytes that have come, as they are kept here; none at the end.
    pub(super) fn poll_take(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.unread.is_empty() => {
                let piece = stream.unread.take(PIECE);
                if stream.grant() > 0 {
                    self.queue(id);
                }
                Poll::Ready(Ok(piece))
            }
            // It says what there is instead.
            _ => self.poll_read(id, cx, &mut ReadBuf::new(&mut [0])).map_ok(|()| Bytes::new()),
        }
    }

    pub(super) fn poll_write(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let now = self.write_now(id, buf)?;
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        let rest = &buf[now..];
        let later = rest.len().min(stream.room());
        if later > 0 {
            stream.out.push(&rest[..later]);
            self.queue(id);
        } else if now == 0 && !buf.is_empty() {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(now + later))
    }

    /// Takes bytes off the front of `bytes`, without a copy if they have to
    /// wait.
    pub(super) fn poll_give(
        &mut self,
        id: u32,
        cx: &mut Context<'_>,
        bytes: &mut Bytes,
    ) -> Poll<io::Result<()>> {
        let now = self.write_now(id, bytes)?;
        bytes.advance(now);
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(gone())) };
        let later = bytes.len().min(stream.room());
        if later > 0 {
            stream.out.give(bytes.split_to(later));
            self.queue(id);
        } else if now == 0 && !bytes.is_empty() {
            stream.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    /// What can go straight into the next write, because nobody waits for a
    /// turn.
    fn write_now(&mut self, id: u32, buf: &[u8]) -> io::Result<usize> {
        let nobody = self.ready.is_empty();
        let stream = self.streams.get_mut(&id).ok_or_else(gone)?;
        if self.ended {
            return Err(gone());
        }
        match stream.sending {
            End::Open => {}
            End::FinQueued | End::FinSent => return Err(io::ErrorKind::BrokenPipe.into()),
            End::ResetQueued | End::ResetSent => return Err(reset()),
        }
        let mut rest = buf;
        if nobody && stream.out.is_empty() {
            while !rest.is_empty() && stream.credit > 0 && self.outgoing.len() < FLUSH {
                let n = rest.len().min(MAX_DATA).min(as_usize(stream.credit));
                let (now, later) = rest.split_at(n);
                stream.credit -= as_u32(n);
                Frame::Data(id, now).encode(&mut self.outgoing);
                rest = later;
            }
        }
        let written = buf.len() - rest.len();
        if written > 0 {
            self.wake_driver();
        }
        Ok(written)
    }

    /// Nothing follows what has been written.
    pub(super) fn finish(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.sending == End::Open
        {
            stream.sending = End::FinQueued;
            self.queue(id);
        }
    }

    /// Gives up what has been written and not yet sent.
    pub(super) fn reset(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !matches!(stream.sending, End::FinSent | End::ResetSent)
        {
            stream.sending = End::ResetQueued;
            stream.out = Rope::default();
            self.queue(id);
        }
    }

    /// Asks the peer to send nothing more.
    pub(super) fn stop(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.stop == Told::No
        {
            stream.unread = Rope::default();
            // A direction that has ended needs no stopping.
            if stream.receiving == Received::Open {
                stream.stop = Told::Queued;
                self.queue(id);
            }
        }
    }

    /// Nobody holds it any more.
    pub(super) fn release(&mut self, id: u32) {
        self.reset_unless_finished(id);
        self.stop(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.held = false;
        }
        self.forget_if_over(id);
    }

    fn reset_unless_finished(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|stream| stream.sending == End::Open) {
            self.reset(id);
        }
    }

    /// Ready once everything that a finished stream had written, and its end,
    /// have been handed to the connection. `since` is `None` at first.
    pub(super) fn poll_flushed(
        &mut self,
        id: u32,
        since: &mut Option<u64>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let waiting = |stream: &Stream| stream.sending == End::FinQueued;
        if self.ended {
            return Poll::Ready(());
        }
        if !self.streams.get(&id).is_some_and(waiting) {
            let all = self.outgoing.is_empty() && !self.unflushed;
            let since = since.get_or_insert(self.flushes);
            if all || self.flushes > *since {
                return Poll::Ready(());
            }
        }
        self.flushed.push(cx.waker().clone());
        Poll::Pending
    }

    // What the driver does.

    /// A frame, or a part of one, has come in.
    pub(super) fn receive(&mut self, frame: &Frame<'_>, now: Instant) -> Result<(), Violation> {
        match *frame {
            Frame::Data(id, payload) => {
                if self.known(id, true, now)? {
                    self.receive_data(id, payload)?;
                }
            }
            Frame::Fin(id) => {
                if self.known(id, true, now)? {
                    self.receive_end(id, Received::Fin)?;
                }
            }
            Frame::Reset(id) => {
                if self.known(id, false, now)? {
                    self.receive_end(id, Received::Reset)?;
                }
            }
            Frame::Stop(id) => {
                if self.known(id, false, now)? {
                    self.reset(id);
                    if let Some(stream) = self.streams.get_mut(&id) {
                        stream.wake();
                    }
                }
            }
            Frame::Window(id, more) => {
                if self.known(id, false, now)? {
                    self.receive_window(id, more)?;
                }
            }
            Frame::Close(_) => {}
        }
        Ok(())
    }

    /// Whether a stream is there. One that has ended is not, and frames that
    /// were under way for it mean nothing. `opens` makes a new one of the peer.
    fn known(&mut self, id: u32, opens: bool, now: Instant) -> Result<bool, Violation> {
        if self.streams.contains_key(&id) {
            return Ok(true);
        }
        if id % 2 == self.next_id % 2 {
            return if id < self.next_id {
                Ok(false)
            } else {
                Err(Violation("a stream of ours that we have not opened"))
            };
        }
        if id < self.next_peer {
            return Ok(false);
        }
        self.next_peer = id.checked_add(2).ok_or(Violation("stream ids are used up"))?;
        if !opens {
            // Opened and given up before a byte was sent.
            return Ok(false);
        }
        if self.theirs >= self.limit {
            if self.orphans.len() >= MAX_ORPHANS {
                return Err(Violation("far too many streams"));
            }
            self.orphans.push_back(id);
            self.wake_driver();
            return Ok(false);
        }
        self.theirs += 1;
        self.streams.insert(id, Stream::new(false, now));
        self.accepting.push_back(id);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
        Ok(true)
    }

    fn receive_data(&mut self, id: u32, payload: &[u8]) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.receiving != Received::Open {
            return Err(Violation("bytes after the end of a stream"));
        }
        let length = u32::try_from(payload.len()).map_err(|_| Violation("a frame too long"))?;
        let left = stream.granted.checked_sub(length);
        stream.granted = left.ok_or(Violation("more bytes than the window allows"))?;
        if stream.stop == Told::No {
            stream.unread.push(payload);
            if let Some(reader) = stream.reader.take() {
                reader.wake();
            }
        }
        Ok(())
    }

    fn receive_end(&mut self, id: u32, end: Received) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match (stream.receiving, end) {
            // A reset may cross its own answer to our stop.
            (Received::Open | Received::Fin, Received::Reset) => stream.unread = Rope::default(),
            (Received::Open, Received::Fin) => {}
            _ => return Err(Violation("a second end of a stream")),
        }
        stream.receiving = end;
        if let Some(reader) = stream.reader.take() {
            reader.wake();
        }
        self.forget_if_over(id);
        Ok(())
    }

    fn receive_window(&mut self, id: u32, more: u32) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let credit = stream.credit.checked_add(more);
        stream.credit = credit.ok_or(Violation("a window beyond all measure"))?;
        if !stream.out.is_empty() {
            self.queue(id);
        }
        Ok(())
    }

    /// The frames of the next write; empty if there is nothing to say. Every
    /// stream that has something gets a turn of one frame.
    pub(super) fn take_outgoing(&mut self, spare: Vec<u8>, now: Instant) -> Vec<u8> {
        while let Some(id) = self.orphans.pop_front() {
            Frame::Reset(id).encode(&mut self.outgoing);
            Frame::Stop(id).encode(&mut self.outgoing);
        }
        while self.outgoing.len() < FLUSH {
            let Some(id) = self.ready.pop_front() else { break };
            self.take_turn(id, now);
        }
        let taken = std::mem::replace(&mut self.outgoing, spare);
        self.unflushed |= !taken.is_empty();
        taken
    }

    fn take_turn(&mut self, id: u32, now: Instant) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let outgoing = &mut self.outgoing;
        stream.queued = false;
        if stream.stop == Told::Queued {
            stream.stop = Told::Sent;
            Frame::Stop(id).encode(outgoing);
        }
        if stream.grant() > 0 {
            stream.grow(&mut self.growth, now);
            let more = stream.grant();
            stream.granted += more;
            stream.granted_at = now;
            Frame::Window(id, more).encode(outgoing);
        }
        let n = stream.out.len().min(MAX_DATA).min(as_usize(stream.credit));
        if n > 0 {
            frame::data_header(id, n, outgoing);
            stream.out.append_to(outgoing, n);
            stream.credit -= as_u32(n);
            if let Some(writer) = stream.writer.take() {
                writer.wake();
            }
        }
        if stream.out.is_empty() {
            if stream.sending == End::FinQueued {
                stream.sending = End::FinSent;
                Frame::Fin(id).encode(outgoing);
            }
        } else if stream.credit > 0 {
            stream.queued = true;
            self.ready.push_back(id);
        }
        if stream.sending == End::ResetQueued {
            stream.sending = End::ResetSent;
            Frame::Reset(id).encode(outgoing);
        }
        self.forget_if_over(id);
    }

    /// Everything taken before has been handed to the connection.
    pub(super) fn flushed(&mut self) {
        self.unflushed = false;
        self.flushes += 1;
        self.flushed.drain(..).for_each(Waker::wake);
    }

    pub(super) fn set_driver(&mut self, waker: &Waker) {
        if !self.driver.as_ref().is_some_and(|old| old.will_wake(waker)) {
            self.driver = Some(waker.clone());
        }
    }

    pub(super) fn wake_driver(&mut self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    /// The connection is gone: nobody waits any longer.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.outgoing = Vec::new();
        self.ready.clear();
        self.streams.values_mut().for_each(Stream::wake);
        self.flushed.drain(..).for_each(Waker::wake);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
        self.driver = None;
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(id);
            self.wake_driver();
        }
    }

    fn forget_if_over(&mut self, id: u32) {
        let ended = self.ended;
        let over = |stream: &Stream| stream.is_over() || (ended && !stream.held);
        if !self.streams.get(&id).is_some_and(over) {
            return;
        }
        if let Some(stream) = self.streams.remove(&id) {
            self.growth += stream.window - WINDOW;
            *(if stream.ours { &mut self.ours } else { &mut self.theirs }) -= 1;
        }
    }
}

fn as_usize(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn as_u32(n: usize) -> u32 {
    u32::try_from(n).expect("a part of a frame")
}

#[cfg(test)]
impl State {
    /// Whether nothing of any stream is left.
    pub(super) fn is_clean(&self) -> bool {
        let counts = self.ours + self.theirs + self.streams.len() + self.accepting.len();
        counts == 0 && self.growth == GROWTH
    }

    /// By how much windows have grown.
    pub(super) fn grown(&self) -> u32 {
        GROWTH - self.growth
    }
}
