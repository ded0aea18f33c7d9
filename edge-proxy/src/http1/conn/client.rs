//! Connections to applications.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use http::StatusCode;
use mesh_core::message::{Fields, Known, RequestHead, ResponseHead};
use mesh_tunnel::{Io, Stream};

use super::{
    Buffers, ConnError, Incoming,
    buffer::LARGE,
    wire::{Room, Wire},
};
use crate::http1::{
    BadMessage, Body, Limits, Response,
    body::Encoder,
    parse::{self, Asked},
    write,
};

/// More 1xx than this before an answer are none.
const MAX_INFORMATIONAL: u32 = 32;

/// A connection to an application: one request after the other.
#[derive(Debug)]
pub struct ClientConn<S = Stream> {
    pub(super) wire: Wire<S>,
    limits: Limits,
    asked: Asked,
    encoder: Encoder,
    /// The response's body.
    incoming: Incoming,
    /// Bytes of the next head that have been looked at.
    seen: usize,
    informational: u32,
    /// Bytes of the answer have come.
    answered: bool,
    stage: Stage,
    keep_alive: bool,
}

/// How far the answer to the last request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing was asked.
    Idle,
    /// No final head has come.
    Waiting,
    /// It has.
    Answered,
}

impl<S: Io> ClientConn<S> {
    /// A connection on which nothing has been sent.
    pub fn new(io: S, limits: Limits, buffers: Arc<Buffers>) -> Self {
        Self {
            wire: Wire::new(io, buffers),
            limits: Limits { head: limits.head.min(LARGE), ..limits },
            asked: Asked::default(),
            encoder: Encoder::Done,
            incoming: Incoming::new(Body::None),
            seen: 0,
            informational: 0,
            answered: false,
            stage: Stage::Idle,
            keep_alive: true,
        }
    }

    /// The stream.
    pub fn io(&self) -> &S {
        self.wire.io()
    }

    /// Appends a request's head; `Upgrade` among its fields is an offer. Only
    /// on a new connection, or on one that is reusable. A body without length
    /// is sent in chunks.
    pub fn send_request(&mut self, head: &RequestHead, body: Body) {
        debug_assert!(self.stage == Stage::Idle, "one request after the other");
        self.asked = Asked::new(&head.method, head.fields.has(Known::Upgrade));
        self.encoder = write::request(head, body, self.wire.out());
        self.wire.begin_message();
        self.seen = 0;
        self.informational = 0;
        self.answered = false;
        self.stage = Stage::Waiting;
    }

    /// Takes all of `data`, more of the request's body; waits while much is
    /// unsent.
    ///
    /// # Errors
    ///
    /// `Io` does not exclude that there is an answer: the application may have
    /// refused the rest. Ask [`ClientConn::poll_response`].
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, ConnError>> {
        ready!(self.wire.poll_send(cx, &mut self.encoder, data))?;
        Poll::Ready(Ok(data.len()))
    }

    /// [`ClientConn::poll_send`].
    pub async fn send(&mut self, data: &[u8]) -> Result<usize, ConnError> {
        poll_fn(|cx| self.poll_send(cx, data)).await
    }

    /// Ends the request's body.
    ///
    /// # Errors
    ///
    /// `Body` if it is shorter than announced: drop the connection.
    pub fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), ConnError> {
        Ok(self.encoder.finish(trailers, self.wire.out())?)
    }

    /// Writes what is unsent. Errors as of [`ClientConn::poll_send`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnError>> {
        self.wire.poll_flush(cx).map_err(ConnError::Io)
    }

    /// [`ClientConn::poll_flush`].
    pub async fn flush(&mut self) -> Result<(), ConnError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for the response's head, while writing what is unsent. A head
    /// with a 1xx status but 101 is informational: call again.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<Response, ConnError>> {
        // An application that reads no more may have answered before: its
        // answer, or the end of the connection, is still to be read.
        let broken = match self.wire.poll_flush(cx) {
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        };
        loop {
            if let Some(response) = self.parse(head)? {
                return Poll::Ready(Ok(response));
            }
            match ready!(self.wire.poll_fill(cx, Room::Large)) {
                Ok(0) if self.answered => return Poll::Ready(Err(BadMessage::Truncated.into())),
                Ok(0) => return Poll::Ready(Err(broken.map_or(ConnError::Closed, ConnError::Io))),
                Ok(_) => self.answered = true,
                Err(error) => return Poll::Ready(Err(broken.unwrap_or(error).into())),
            }
        }
    }

    /// [`ClientConn::poll_response`].
    pub async fn response(&mut self, head: &mut ResponseHead) -> Result<Response, ConnError> {
        poll_fn(|cx| self.poll_response(cx, head)).await
    }

    /// The next head, if all of it is there.
    fn parse(&mut self, head: &mut ResponseHead) -> Result<Option<Response>, ConnError> {
        let filled = self.wire.filled();
        let new = &filled[self.seen.min(filled.len())..];
        let full = filled.len() >= self.limits.head;
        if filled.is_empty() || !(self.seen == 0 || full || new.contains(&b'\n')) {
            self.seen = filled.len();
            return Ok(None);
        }
        self.seen = filled.len();
        let parsed = parse::response(filled, &self.limits, self.asked, head);
        let Some(response) = parsed.inspect_err(|_| self.keep_alive = false)? else {
            return Ok(None);
        };
        self.wire.consume(response.head_len);
        self.seen = 0;
        if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
            self.informational += 1;
            if self.informational > MAX_INFORMATIONAL {
                return Err(BadMessage::Informational.into());
            }
            return Ok(Some(response));
        }
        self.incoming = Incoming::new(response.body);
        self.stage = Stage::Answered;
        self.keep_alive &= response.keep_alive;
        Ok(Some(response))
    }

    /// Waits for more of the response's body; `None` at its end. What is not
    /// consumed is returned again.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<&[u8]>, ConnError>> {
        match ready!(self.incoming.poll(cx, &mut self.wire)) {
            Ok(true) => Poll::Ready(Ok(Some(self.incoming.data(&self.wire)))),
            Ok(false) => Poll::Ready(Ok(None)),
            Err(error) => {
                self.keep_alive = false;
                Poll::Ready(Err(error))
            }
        }
    }

    /// [`ClientConn::poll_data`].
    pub async fn data(&mut self) -> Result<Option<&[u8]>, ConnError> {
        let any = poll_fn(|cx| self.poll_data(cx).map_ok(|data| data.is_some())).await?;
        Ok(any.then(|| self.incoming.data(&self.wire)))
    }

    /// What [`ClientConn::poll_data`] returned last and was not consumed.
    pub fn unread(&self) -> &[u8] {
        self.incoming.data(&self.wire)
    }

    /// Whether [`ClientConn::unread`] is all that is left of the response's
    /// body. Known in advance only where the body has a length.
    pub fn is_last(&self) -> bool {
        self.incoming.decoder.is_end()
    }

    /// So much of what [`ClientConn::poll_data`] returned is done with.
    pub fn consume(&mut self, count: usize) {
        self.incoming.consume(count, &mut self.wire);
    }

    /// Whether all of the response's body has been consumed.
    pub fn is_body_end(&self) -> bool {
        self.stage == Stage::Answered && self.incoming.is_end()
    }

    /// Whether there are trailers to be taken.
    pub fn has_trailers(&self) -> bool {
        self.incoming.has_trailers()
    }

    /// What followed the response's body, once.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.incoming.take_trailers()
    }

    /// Whether anything of the request has left: if not, it may be repeated
    /// whatever it is.
    pub fn has_written(&self) -> bool {
        self.wire.has_written()
    }

    /// Whether anything of an answer has come: if not, the request may be
    /// repeated where its method allows that.
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// Whether another request can be sent: both messages are over, and the
    /// application has sent nothing beyond. Gives buffers back.
    pub fn is_reusable(&mut self) -> bool {
        let over = match self.stage {
            Stage::Idle => true,
            Stage::Waiting => false,
            Stage::Answered => self.incoming.is_end() && self.encoder.is_end(),
        };
        let clean = self.wire.is_flushed() && self.wire.filled().is_empty();
        if !(over && clean && self.keep_alive) || self.wire.is_eof() {
            return false;
        }
        self.wire.release();
        self.stage = Stage::Idle;
        true
    }

    /// Waits until an idle connection is of no use any more: the application
    /// has closed it, or said something that nobody had asked for.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let _whatever_it_is = ready!(self.wire.poll_fill(cx, Room::Small));
        self.keep_alive = false;
        Poll::Ready(())
    }

    /// Whether an idle connection is of no use any more, as far as is known
    /// now. Costs no system call where nothing has come.
    pub fn is_stale(&mut self) -> bool {
        !self.keep_alive || self.poll_idle(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    /// The stream, and what was read from it behind the response: for after a
    /// 101, or a 2xx to CONNECT.
    pub fn into_tunnel(self) -> (S, Vec<u8>) {
        self.wire.into_parts()
    }
}
