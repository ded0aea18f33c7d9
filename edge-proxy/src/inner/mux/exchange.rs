//! One stream as its owner holds it.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::ReadBuf;

use super::{
    Pipe, Received, ResetCode, Shared, StreamError,
    state::Slot,
    stream::{Receiving, Sending},
};

/// What a head of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// Another one follows (1xx).
    Informational,
    /// Bytes, trailers or the end follow.
    Final,
    /// Nothing follows.
    FinalEnd,
}

/// Both directions of one stream, for one task. Dropped before both have
/// ended, it is reset.
pub struct Exchange {
    shared: Arc<Shared>,
    slot: Slot,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("slot", &self.slot).finish_non_exhaustive()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.shared.state().release(self.slot);
    }
}

impl Exchange {
    pub(super) fn new(shared: Arc<Shared>, slot: Slot) -> Self {
        Self { shared, slot }
    }

    /// Sends the answer's head; once, and only from the destination. Waits
    /// only while a megabyte waits to be written.
    pub async fn send_head(&mut self, head: &[u8], end: bool) -> Result<(), StreamError> {
        let kind = if end { HeadKind::FinalEnd } else { HeadKind::Final };
        poll_fn(|cx| self.poll_send_head(cx, head, kind)).await
    }

    /// Sends a head before the head (1xx).
    pub async fn send_informational(&mut self, head: &[u8]) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_send_head(cx, head, HeadKind::Informational)).await
    }

    /// As [`Exchange::send_head`].
    pub fn poll_send_head(
        &mut self,
        cx: &mut Context<'_>,
        head: &[u8],
        kind: HeadKind,
    ) -> Poll<Result<(), StreamError>> {
        self.shared.state().poll_send_head(self.slot, cx, head, kind)
    }

    /// How many bytes may be sent now; never 0.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        self.shared.state().poll_ready(self.slot, cx)
    }

    /// Sends part of `data`, as much as there is room for, and says how much.
    /// `end` counts if that was all of it.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, StreamError>> {
        self.shared.state().poll_send(self.slot, cx, data, end)
    }

    /// Sends all of `data`. Dropped early, part of it may have been sent.
    pub async fn send(&mut self, data: &[u8], end: bool) -> Result<(), StreamError> {
        let mut sent = 0;
        poll_fn(|cx| {
            loop {
                sent += ready!(self.poll_send(cx, &data[sent..], end))?;
                if sent == data.len() {
                    return Poll::Ready(Ok(()));
                }
            }
        })
        .await
    }

    /// Sends what follows the bytes, and the end.
    pub async fn send_trailers(&mut self, block: &[u8]) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_send_trailers(cx, block)).await
    }

    /// As [`Exchange::send_trailers`].
    pub fn poll_send_trailers(
        &mut self,
        cx: &mut Context<'_>,
        block: &[u8],
    ) -> Poll<Result<(), StreamError>> {
        self.shared.state().poll_send_trailers(self.slot, cx, block)
    }

    /// Nothing follows what was sent.
    pub fn finish(&mut self) {
        self.shared.state().finish(self.slot);
    }

    /// Gives up both directions, unless both have ended.
    pub fn reset(&mut self, code: ResetCode, reason: &str) {
        self.shared.state().reset(self.slot, code, reason);
    }

    /// What comes next; `None` is the end. What came before a reset can still
    /// be taken. Room for more is given to the peer as bytes are taken.
    pub fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Received>, StreamError>> {
        self.shared.state().poll_recv(self.slot, cx)
    }

    /// As [`Exchange::poll_recv`]; nothing is lost if the future is dropped.
    pub async fn recv(&mut self) -> Result<Option<Received>, StreamError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Waits for the peer to give up, or for the session's loss. Does not see
    /// an orderly end.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.shared.state().poll_reset(self.slot, cx)
    }

    /// Whether everything that will ever come was taken.
    pub fn is_recv_end(&self) -> bool {
        let state = self.shared.state();
        let stream = &state.slots[self.slot];
        stream.receiving == Receiving::Ended && stream.is_empty()
    }

    /// Whether nothing more can be sent: it has ended, or was reset.
    pub fn is_send_end(&self) -> bool {
        let state = self.shared.state();
        let stream = &state.slots[self.slot];
        stream.sending == Sending::Ended || stream.fault.is_some()
    }

    /// Its bytes as a pipe, once heads have passed.
    pub fn into_pipe(self) -> Pipe {
        Pipe::new(self)
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), StreamError>> {
        self.shared.state().poll_read(self.slot, cx, buf)
    }
}
