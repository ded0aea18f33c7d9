//! A request's body on its way to an application.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body;
use mesh_core::message::{Fields, hop};
use mesh_tunnel::Stream;

use crate::http1::{ClientConn, ConnError, body::Mismatch};

/// A body on its way into a connection, driven by whoever owns both. Nothing
/// is read from the body before the connection has taken what was read last.
#[derive(Debug)]
pub(super) struct Upload<B> {
    body: B,
    pending: Bytes,
    state: State,
    /// Something was taken from the body: it cannot begin again here.
    touched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Its bytes are another protocol's, should the application switch to it.
    Held,
    Running,
    /// All is with the connection.
    Flushing,
    Ended(UploadEnd),
}

/// How an upload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadEnd {
    /// All of it has been written.
    Sent,
    /// The application takes no more; its answer may say why.
    Stopped,
    /// The body failed, or is not what its head has announced: the request
    /// cannot be completed.
    BodyFailed,
}

impl<B> Upload<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    /// Nothing is sent before the first poll.
    pub(super) fn new(body: B) -> Self {
        Self { body, pending: Bytes::new(), state: State::Running, touched: false }
    }

    /// The request has no body, and what `body` has is not read here.
    pub(super) fn held(body: B) -> Self {
        Self { body, pending: Bytes::new(), state: State::Held, touched: false }
    }

    pub(super) fn body(&mut self) -> &mut B {
        &mut self.body
    }

    pub(super) fn into_body(self) -> B {
        self.body
    }

    /// Whether the whole body is still to come.
    pub(super) fn is_untouched(&self) -> bool {
        !self.touched
    }

    /// Moves what can be moved, and writes it.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut ClientConn<Stream>,
    ) -> Poll<UploadEnd> {
        loop {
            let end = match self.state {
                State::Ended(end) => return Poll::Ready(end),
                State::Held => return Poll::Pending,
                State::Flushing => match ready!(conn.poll_flush(cx)) {
                    Ok(()) => UploadEnd::Sent,
                    Err(_) => UploadEnd::Stopped,
                },
                State::Running => match ready!(self.poll_frames(cx, conn)) {
                    Ok(()) => {
                        self.state = State::Flushing;
                        continue;
                    }
                    Err(ConnError::Body(_)) => UploadEnd::BodyFailed,
                    Err(_) => UploadEnd::Stopped,
                },
            };
            self.state = State::Ended(end);
        }
    }

    /// Everything up to the body's end. An error of the body itself reads as
    /// one that is too short.
    fn poll_frames(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut ClientConn<Stream>,
    ) -> Poll<Result<(), ConnError>> {
        loop {
            if !self.pending.is_empty() {
                let sent = ready!(conn.poll_send(cx, &self.pending))?;
                self.pending.advance(sent);
            }
            if self.body.is_end_stream() {
                return Poll::Ready(conn.finish(None));
            }
            let frame = match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    // What cannot be written now wakes us, too.
                    if let Poll::Ready(Err(error)) = conn.poll_flush(cx) {
                        return Poll::Ready(Err(error));
                    }
                    return Poll::Pending;
                }
            };
            self.touched = true;
            let Some(frame) = frame else { return Poll::Ready(conn.finish(None)) };
            let Ok(frame) = frame else {
                return Poll::Ready(Err(Mismatch::TooShort.into()));
            };
            match frame.into_data() {
                Ok(data) => self.pending = data,
                Err(frame) => {
                    let trailers = frame.into_trailers().ok().map(|map| trailers(&map));
                    return Poll::Ready(conn.finish(trailers.as_ref()));
                }
            }
        }
    }
}

/// What an application may be told after a body.
fn trailers(map: &HeaderMap) -> Fields {
    let mut fields = Fields::new();
    fields.read_map(map);
    hop::remove_from_trailers(&mut fields);
    fields
}
