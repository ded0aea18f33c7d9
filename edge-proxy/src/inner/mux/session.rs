//! Both ends of a session as their owners hold them.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use mesh_api::v1;
use mesh_runtime::drain::Drain;
use mesh_tunnel::{Stream, tls::Standing};
use prost::Message;

use super::{
    Exchange, Limits, OpenError, Probing, Shared, Target,
    driver::Driver,
    frame,
    state::{Role, State},
    watch::Watch,
};

/// The source's end; cheap to clone. It ends when every clone and every
/// exchange is dropped.
#[derive(Debug, Clone)]
pub struct Session(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.state().retire();
    }
}

impl Session {
    /// Begins a session over `io`, which is secured, in a task of `drain`.
    /// Nothing is waited for: the first stream travels with the hello.
    pub fn start(io: Stream, probing: Probing, drain: &Drain) -> (Self, Guardian) {
        let limits = Limits { max_streams: 0, ..Limits::default() };
        let shared = Shared::new(State::new(Role::Source(Default::default()), limits));
        let mut driver = Driver::new(io, shared.clone(), Watch::new(&shared, probing, drain));
        drain.spawn(async move { poll_fn(|cx| driver.poll(cx)).await });
        let guardian = Guardian(shared.clone());
        (Self(Arc::new(Handle(shared))), guardian)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0.0
    }

    /// Opens a stream. With `end` nothing follows the head.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    pub fn open(
        &self,
        target: &Arc<Target>,
        head: &[u8],
        end: bool,
    ) -> Result<Exchange, OpenError> {
        let slot = self.shared().state().open(target, head, end)?;
        Ok(Exchange::new(self.shared().clone(), slot))
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared().state().open
    }

    /// Whether a stream could be opened now.
    pub fn has_room(&self) -> bool {
        self.shared().state().has_room()
    }

    /// Whether new streams may be opened at all.
    pub fn is_usable(&self) -> bool {
        self.shared().state().is_usable()
    }

    /// Opens nothing new on it; open streams go on, then it ends.
    pub fn retire(&self) {
        self.shared().state().retire();
    }

    /// How long it has had no stream; zero while it has one.
    pub fn idle_for(&self) -> Duration {
        let state = self.shared().state();
        if state.open > 0 { Duration::ZERO } else { state.idle_since.elapsed() }
    }
}

/// The end of a session, in the hands of somebody who does not keep it open.
#[derive(Debug)]
pub struct Guardian(pub(super) Arc<Shared>);

impl Guardian {
    /// Waits for the end.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Nothing new is opened on it (the destination tells the source so); open
    /// streams go on, then it ends.
    pub fn retire(&self) {
        self.0.state().retire();
    }

    /// Shows the peer our certificate whenever it is renewed, and looks at what
    /// it shows of its own.
    pub async fn keep_proving(&self, standing: &Standing) -> ! {
        let ours = standing.keep_proving(|proof| self.0.state().prove(&proof.encode_to_vec()));
        let theirs = async {
            loop {
                let shown = poll_fn(|cx| self.0.state().poll_proof(cx)).await;
                match v1::Proof::decode(shown) {
                    Ok(proof) => standing.receive(proof),
                    Err(error) => log::warn!(error:% = error; "a proof that does not decode"),
                }
            }
        };
        tokio::select! {
            never = ours => never,
            never = theirs => never,
        }
    }

    /// The newest stream; 0 before there was one.
    pub fn newest(&self) -> u32 {
        self.0.state().newest()
    }

    /// Breaks off the open ones of all streams up to this one; returns how many
    /// those were.
    pub fn reset_up_to(&self, newest: u32, why: &str) -> usize {
        self.0.state().reset_up_to(newest, why)
    }

    /// Ends it now; open streams fail.
    pub fn cut(&self) {
        self.0.state().cut(frame::CLOSING, "it was cut");
    }
}

/// A stream that the source has opened.
#[derive(Debug)]
pub struct Opened {
    /// What it is for; the same `Arc` for as long as the source means the same
    /// by `target_id`.
    pub target: Arc<Target>,
    /// The source's number for it, below 256; numbers are used again.
    pub target_id: u16,
    /// The source's head.
    pub head: Bytes,
    /// The stream; an answer has to begin with a head.
    pub exchange: Exchange,
}

/// The destination's end. It has no task of its own: whoever accepts drives
/// it, so accepting must not stop while it is to live.
pub struct ServerSession {
    driver: Driver,
    shared: Arc<Shared>,
}

impl fmt::Debug for ServerSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSession").finish_non_exhaustive()
    }
}

impl ServerSession {
    /// Begins a session over `io`, which is secured. It retires when `drain`
    /// refuses and ends when it stops.
    pub fn start(io: Stream, probing: Probing, limits: Limits, drain: &Drain) -> (Self, Guardian) {
        let shared = Shared::new(State::new(Role::Destination(Default::default()), limits));
        let driver = Driver::new(io, shared.clone(), Watch::new(&shared, probing, drain));
        let guardian = Guardian(shared.clone());
        (Self { driver, shared }, guardian)
    }

    /// The next stream; `None` when the session has ended. Nothing is lost if
    /// the future is dropped.
    pub async fn accept(&mut self) -> Option<Opened> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Whether the source has done what it must not; that has ended it.
    pub fn is_violated(&self) -> bool {
        self.shared.state().violated
    }

    /// As [`ServerSession::accept`].
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Opened>> {
        if let Some(opened) = self.next() {
            return Poll::Ready(Some(opened));
        }
        let ended = self.driver.poll(cx).is_ready();
        match self.next() {
            Some(opened) => Poll::Ready(Some(opened)),
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn next(&mut self) -> Option<Opened> {
        let opening = self.shared.state().accept()?;
        let exchange = Exchange::new(self.shared.clone(), opening.slot);
        let super::state::Opening { target, target_id, head, .. } = opening;
        Some(Opened { target, target_id, head, exchange })
    }
}
