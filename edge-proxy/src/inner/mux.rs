//! Streams over one inner TLS connection, with framing of our own.
//!
//! It knows nothing of HTTP: heads and trailers are opaque. Only the source
//! opens streams. A receiver grants credit per stream and there is no credit
//! of the whole session, so that a stream that nobody reads stalls alone. In
//! reading order:
//! - [`frame`]: what goes over the wire.
//! - [`target`]: what streams are for, said once and then by number.
//! - [`error`]: why a stream or a session ends.
//! - [`out`]: what waits to be written.
//! - [`stream`]: one stream.
//! - [`state`] and [`receive`]: all streams of one end; no I/O.
//! - [`driver`] and [`watch`]: who reads, writes and keeps time.
//! - [`session`]: both ends as their owners hold them.
//! - [`exchange`] and [`pipe`]: one stream as its owner holds it.

mod driver;
mod error;
mod exchange;
pub mod frame;
mod hello;
mod out;
mod pipe;
mod receive;
mod session;
mod state;
mod stream;
mod target;
mod watch;

#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Wake,
    time::Duration,
};

pub use error::{OpenError, ResetCode, StreamError};
pub use exchange::{Exchange, HeadKind};
pub use hello::Limits;
pub use pipe::Pipe;
pub use session::{Guardian, Opened, ServerSession, Session};
pub use stream::{MAX_INFORMATIONAL, Received};
pub use target::{Spoken, Target};

use state::State;
use tokio_util::sync::CancellationToken;

/// The longest head and the longest block of trailers.
pub const MAX_HEAD: usize = 64 << 10;
/// Streams open at once on one session, unless the peer wants fewer.
pub const MAX_STREAMS: u32 = 1024;
/// What a new stream may send before the receiver says more.
pub const WINDOW: u32 = 64 << 10;

/// How a session finds out that its peer has fallen silent.
#[derive(Debug, Clone, Copy)]
pub struct Probing {
    /// Between two PINGs.
    pub interval: Duration,
    /// How long a peer may send nothing after a PING.
    pub timeout: Duration,
    /// Whether it probes without open streams, too.
    pub always: bool,
}

impl Probing {
    /// A source towards a destination: a machine that dies says nothing, and
    /// requests without an answer wait to be tried elsewhere.
    pub const SOURCE: Probing = Probing {
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(2),
        always: false,
    };
    /// A destination towards its sources: only to give memory back.
    pub const DESTINATION: Probing = Probing {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(20),
        always: true,
    };
}

/// What the handles, the streams and the driver of one end have in common.
/// All of them run on one worker, so the lock is not contended.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ended: CancellationToken,
}

impl Shared {
    fn new(state: State) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(state), ended: CancellationToken::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the driver for its watch only; see [`watch`].
impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut state = self.state();
        state.watch_due = true;
        state.wake_driver();
    }
}
