//! One stream of a session.

use std::{task::Waker, time::Duration};

use mesh_runtime::memory::limit;
use tokio::time::Instant;

use super::rope::Rope;

/// What a stream may send before the receiver says more, on both sides.
pub(super) const WINDOW: u32 = 64 * 1024;

/// What a window may grow to while its reader keeps up: 200 Mbit/s at 40 ms.
const MAX_WINDOW: u32 = 1 << 20;

/// Bytes of one stream that wait to be framed.
const OUT: usize = 64 * 1024;

/// A window that is used up faster than this limits its stream.
const FAST: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) ours: bool,
    /// Somebody holds it, or will accept it.
    pub(super) held: bool,
    /// It stands in `ready`.
    pub(super) queued: bool,

    pub(super) out: Rope,
    /// What the peer has room for.
    pub(super) credit: u32,
    /// The end of our direction.
    pub(super) sending: End,
    pub(super) writer: Option<Waker>,

    pub(super) unread: Rope,
    /// The end of the peer's direction.
    pub(super) receiving: Received,
    /// We want no more bytes.
    pub(super) stop: Told,
    /// What we want to have room for.
    pub(super) window: u32,
    /// Of it, what the peer may still send.
    pub(super) granted: u32,
    pub(super) granted_at: Instant,
    pub(super) reader: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Open,
    FinQueued,
    FinSent,
    ResetQueued,
    ResetSent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    Open,
    Fin,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    No,
    Queued,
    Sent,
}

impl Stream {
    pub(super) fn new(ours: bool, now: Instant) -> Self {
        Self {
            ours,
            held: true,
            queued: false,
            out: Rope::default(),
            credit: WINDOW,
            sending: End::Open,
            writer: None,
            unread: Rope::default(),
            receiving: Received::Open,
            stop: Told::No,
            window: WINDOW,
            granted: WINDOW,
            granted_at: now,
            reader: None,
        }
    }

    /// How many bytes may be added to those that wait.
    pub(super) fn room(&self) -> usize {
        OUT.saturating_sub(self.out.len())
    }

    fn unread_len(&self) -> u32 {
        u32::try_from(self.unread.len()).expect("never more than MAX_WINDOW is granted")
    }

    /// What a `Window` would grant now; 0 unless it is worth a frame.
    pub(super) fn grant(&self) -> u32 {
        let wants_more = self.receiving == Received::Open && self.stop == Told::No;
        let more = self.window - self.granted.saturating_add(self.unread_len()).min(self.window);
        if wants_more && more >= self.window / 2 { more } else { 0 }
    }

    /// Doubles the window if its reader empties it and its sender fills it
    /// quickly; takes the growth from the session's budget.
    pub(super) fn grow(&mut self, budget: &mut u32, now: Instant) {
        let fast = now.duration_since(self.granted_at) < FAST && self.unread.is_empty();
        if fast && !limit::is_short() && self.window < MAX_WINDOW && *budget >= self.window {
            *budget -= self.window;
            self.window *= 2;
        }
    }

    pub(super) fn is_over(&self) -> bool {
        let sent = matches!(self.sending, End::FinSent | End::ResetSent);
        let received = self.receiving != Received::Open || self.stop == Told::Sent;
        !self.held && sent && received
    }

    pub(super) fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}
