//! One stream: where each direction stands, its windows and what has come.

use std::{
    collections::VecDeque,
    task::{Context, Waker},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{io::ReadBuf, time::Instant};

use super::{error::StreamError, frame::Violation, hello::MAX_WINDOW};

/// A window that is used up faster than this limits its stream.
const FAST: Duration = Duration::from_millis(500);
/// Informational heads of one stream that may wait to be taken.
pub const MAX_INFORMATIONAL: u8 = 8;
/// Places for what has come that a stream's successor finds ready.
const KEPT: usize = 8;

/// Bytes that are worth the memory that they were read into.
const LARGE: usize = 4 << 10;

/// What comes on a stream, in this order. Small pieces share the memory that
/// they were read into: copy what is to be kept for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A head before the head (1xx).
    Informational(Bytes),
    /// The answer's head; the source sees exactly one.
    Head(Bytes),
    /// Bytes; never empty.
    Data(Bytes),
    /// What follows the bytes; the end follows it.
    Trailers(Bytes),
}

/// Where our direction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    /// The destination has not answered.
    Head,
    Open,
    Ended,
}

/// Where the peer's direction stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    /// The source waits for the answer's head.
    Head,
    Open,
    Ended,
}

/// What a reader waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Awaits {
    Anything,
    Fault,
}

/// See the module. Slots of streams are used again, with what they hold.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    /// Somebody holds it, or will accept it.
    pub(super) held: bool,
    pub(super) sending: Sending,
    pub(super) receiving: Receiving,
    /// Why it goes no further.
    pub(super) fault: Option<StreamError>,
    /// The batch that has its opening.
    pub(super) batch: u64,

    /// What the peer has room for.
    pub(super) credit: u32,
    /// Bytes sent, up to the point where it no longer matters.
    pub(super) sent: usize,
    /// It stands in line for room in the out buffer.
    pub(super) queued: bool,
    /// It has stood in line and may add something now.
    pub(super) turn: bool,
    pub(super) writer: Bell,

    /// What we want to have room for.
    window: u32,
    /// Of it, what the peer may still send.
    granted: u32,
    /// Of it, what nobody has taken.
    unread: u32,
    granted_at: Option<Instant>,
    pub(super) awaits: Awaits,
    pub(super) reader: Bell,
    inbox: VecDeque<Received>,
    /// Bytes after everything in `inbox`.
    tail: BytesMut,
    informational: u8,
}

impl Stream {
    /// A slot that no stream has used.
    pub(super) fn unused() -> Self {
        Self {
            id: 0,
            held: false,
            sending: Sending::Ended,
            receiving: Receiving::Ended,
            fault: None,
            batch: 0,
            credit: 0,
            sent: 0,
            queued: false,
            turn: false,
            writer: Bell::default(),
            window: 0,
            granted: 0,
            unread: 0,
            granted_at: None,
            awaits: Awaits::Anything,
            reader: Bell::default(),
            inbox: VecDeque::new(),
            tail: BytesMut::new(),
            informational: 0,
        }
    }

    /// Takes a free slot into use.
    pub(super) fn begin(&mut self, id: u32, credit: u32, window: u32, batch: u64) {
        self.id = id;
        self.held = true;
        self.sending = Sending::Open;
        self.receiving = Receiving::Open;
        self.batch = batch;
        self.credit = credit;
        self.sent = 0;
        (self.window, self.granted, self.unread) = (window, window, 0);
        self.granted_at = None;
    }

    /// Gives up everything that it holds; returns by how much its window has
    /// grown beyond `window`.
    pub(super) fn free(&mut self, window: u32) -> u32 {
        let grown = self.window - window;
        self.held = false;
        self.fault = None;
        (self.queued, self.turn) = (false, false);
        self.writer = Bell::default();
        self.reader = Bell::default();
        self.clear_inbox();
        grown
    }

    fn clear_inbox(&mut self) {
        self.inbox.clear();
        if self.inbox.capacity() > KEPT {
            self.inbox = VecDeque::new();
        }
        self.tail = BytesMut::new();
        self.informational = 0;
    }

    /// Whether neither side sends anything on it any more.
    pub(super) fn is_over(&self) -> bool {
        let ended = self.sending == Sending::Ended && self.receiving == Receiving::Ended;
        self.fault.is_some() || ended
    }

    /// Gives it up; what has come is discarded.
    pub(super) fn discard(&mut self, fault: StreamError) {
        self.fault = Some(fault);
        self.unread = 0;
        self.clear_inbox();
    }

    /// The peer, or the session, gives it up; what has come can be taken.
    pub(super) fn fail(&mut self, fault: StreamError) {
        self.fault = Some(fault);
        self.reader.ring();
        self.writer.ring();
    }

    /// Takes note of what has come, and wakes the reader.
    pub(super) fn receive(&mut self, item: Received) -> Result<(), Violation> {
        match (&item, self.receiving) {
            (_, Receiving::Ended) => return Err(Violation::new("a frame after a stream's end")),
            (Received::Informational(_), Receiving::Head) => {
                self.informational += 1;
                if self.informational > MAX_INFORMATIONAL {
                    return Err(Violation::new("too many informational heads"));
                }
            }
            (Received::Head(_), Receiving::Head) => self.receiving = Receiving::Open,
            (Received::Head(_) | Received::Informational(_), Receiving::Open) => {
                return Err(Violation::new("a head after the head"));
            }
            (Received::Data(_) | Received::Trailers(_), Receiving::Head) => {
                return Err(Violation::new("bytes before the head"));
            }
            (Received::Data(data), Receiving::Open) => return self.receive_data(data),
            (Received::Trailers(_), Receiving::Open) => {}
        }
        self.flush_tail();
        self.inbox.push_back(item);
        self.wake_reader();
        Ok(())
    }

    /// The first piece and large ones keep the memory that they were read into;
    /// more pieces are put together, so that many small ones cannot hold many
    /// large buffers.
    fn receive_data(&mut self, data: &Bytes) -> Result<(), Violation> {
        let Ok(length) = u32::try_from(data.len()) else {
            return Err(Violation::new("a frame of impossible length"));
        };
        let left = self.granted.checked_sub(length);
        self.granted = left.ok_or(Violation::new("more bytes than the window allows"))?;
        self.unread += length;
        if data.is_empty() {
            return Ok(());
        }
        let first = self.unread == length && self.inbox.len() < KEPT;
        if first || data.len() >= LARGE {
            self.flush_tail();
            self.inbox.push_back(Received::Data(data.clone()));
        } else {
            self.tail.extend_from_slice(data);
        }
        self.wake_reader();
        Ok(())
    }

    fn flush_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = std::mem::take(&mut self.tail);
            self.inbox.push_back(Received::Data(tail.freeze()));
        }
    }

    /// Nothing follows what has come.
    pub(super) fn receive_end(&mut self) -> Result<(), Violation> {
        if self.receiving != Receiving::Open {
            return Err(Violation::new("an end before the head, or a second one"));
        }
        self.receiving = Receiving::Ended;
        self.wake_reader();
        Ok(())
    }

    fn wake_reader(&mut self) {
        if self.awaits == Awaits::Anything {
            self.reader.ring();
        }
    }

    /// The next of what has come.
    pub(super) fn take(&mut self) -> Option<Received> {
        if self.inbox.is_empty() {
            self.flush_tail();
        }
        let item = self.inbox.pop_front()?;
        match &item {
            Received::Data(data) => {
                self.unread -= u32::try_from(data.len()).expect("it was granted");
            }
            Received::Informational(_) => self.informational -= 1,
            Received::Head(_) | Received::Trailers(_) => {}
        }
        Some(item)
    }

    /// Moves bytes that have come into `buf`; heads and trailers are passed
    /// over.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>) {
        while buf.remaining() > 0 {
            match self.inbox.front_mut() {
                Some(Received::Data(data)) => {
                    let n = data.len().min(buf.remaining());
                    buf.put_slice(&data[..n]);
                    data.advance(n);
                    self.unread -= u32::try_from(n).expect("it was granted");
                    if data.is_empty() {
                        self.inbox.pop_front();
                    }
                }
                Some(_) => {
                    self.take();
                }
                None if self.tail.is_empty() => return,
                None => self.flush_tail(),
            }
        }
    }

    /// Whether nothing has come that was not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.inbox.is_empty() && self.tail.is_empty()
    }

    /// What a `Window` is to grant now; 0 unless it is worth a frame. Doubles
    /// the window, out of the session's `budget`, while its reader empties it
    /// and its sender fills it quickly.
    pub(super) fn grant(&mut self, budget: &mut u32) -> u32 {
        if self.receiving == Receiving::Ended || self.fault.is_some() {
            return 0;
        }
        let free = self.window - self.granted - self.unread;
        let due = free >= self.window / 2;
        let keeps_up = self.is_empty() && free >= self.window / 4;
        if !due && !keeps_up {
            return 0;
        }
        let now = Instant::now();
        let fast = self.granted_at.is_none_or(|at| now.duration_since(at) < FAST);
        if fast && keeps_up && self.window * 2 <= MAX_WINDOW && *budget >= self.window {
            *budget -= self.window;
            self.window *= 2;
        } else if !due {
            return 0;
        }
        self.granted_at = Some(now);
        let more = self.window - self.granted - self.unread;
        self.granted += more;
        more
    }
}

/// Somebody who waits.
#[derive(Debug, Default)]
pub(super) struct Bell {
    waker: Option<Waker>,
    armed: bool,
}

impl Bell {
    pub(super) fn arm(&mut self, cx: &Context<'_>) {
        self.armed = true;
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
    }

    /// Keeps the waker: who has waited once will likely do so again.
    pub(super) fn ring(&mut self) {
        if std::mem::take(&mut self.armed)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }
}
