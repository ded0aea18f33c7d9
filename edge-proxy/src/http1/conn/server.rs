//! Connections of clients.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Version;
use mesh_core::message::{Fields, RequestHead, ResponseHead};
use mesh_tunnel::{Io, Stream};

use super::{
    Buffers, ConnError, Incoming,
    buffer::LARGE,
    wire::{Room, Wire},
};
use crate::http1::{
    BadMessage, Body, Limits, Request,
    body::Encoder,
    parse::{self, Asked},
    write::{self, Reader},
};

/// What is read of a request whose answer does not need it, to save the
/// connection for the next.
const MAX_DISCARDED: u64 = 64 << 10;
/// How long a client that does not read is waited for when a connection is
/// closed.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that still sends has to read the answer: closing at once
/// would reset the connection and destroy it (RFC 9112 section 9.6).
const LINGER: Duration = Duration::from_secs(2);
/// What is read of it meanwhile, at most. More is left to the kernel, which
/// lets the client send until its window is full.
const MAX_LINGERED: usize = 16 << 20;

/// A client's connection: one request after the other.
#[derive(Debug)]
pub struct ServerConn<S = Stream> {
    pub(super) wire: Wire<S>,
    limits: Limits,
    /// The request's body.
    incoming: Incoming,
    /// What of it was read though nobody needs it.
    discarded: u64,
    /// Bytes of the next head that have been looked at.
    seen: usize,
    /// The client waits for a 100, and may send no body without it.
    continue_wanted: bool,
    /// The client said that it sends no other request.
    last: bool,
    /// The answer.
    reader: Reader,
    encoder: Encoder,
    stage: Stage,
    /// The answer has no body, whatever is given for one.
    bodiless: bool,
    /// What was received is no message.
    failed: bool,
}

/// How far the answer to the last request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// There is no request.
    Idle,
    /// Nothing final has been sent.
    Asked,
    /// Its head has been sent.
    Answering,
}

/// What a client does while it waits for its answer.
#[derive(Debug)]
pub enum Peer {
    /// It has ended its direction, and may still read.
    HalfClosed,
    /// It is gone.
    Gone(io::Error),
}

const NO_READER: Reader = Reader {
    asked: Asked { head: false, connect: false, upgrade: false },
    version: Version::HTTP_11,
    keep_alive: true,
};

impl<S: Io> ServerConn<S> {
    /// A connection on which nothing has been read.
    pub fn new(io: S, limits: Limits, buffers: Arc<Buffers>) -> Self {
        Self {
            wire: Wire::new(io, buffers),
            limits: Limits { head: limits.head.min(LARGE), ..limits },
            incoming: Incoming::new(Body::None),
            discarded: 0,
            seen: 0,
            continue_wanted: false,
            last: false,
            reader: NO_READER,
            encoder: Encoder::Done,
            stage: Stage::Idle,
            bodiless: false,
            failed: false,
        }
    }

    /// A connection on which `bytes` have been read.
    #[must_use]
    pub fn with_read(mut self, bytes: &[u8]) -> Self {
        self.wire.prepend(bytes);
        self
    }

    /// Reads until it can be told whether `preface`, which no request begins
    /// with, comes instead of one.
    pub fn poll_begins_with(
        &mut self,
        cx: &mut Context<'_>,
        preface: &[u8],
    ) -> Poll<io::Result<bool>> {
        loop {
            let filled = self.wire.filled();
            let shared = filled.len().min(preface.len());
            if shared == preface.len() || filled[..shared] != preface[..shared] {
                return Poll::Ready(Ok(filled.starts_with(preface)));
            }
            if ready!(self.wire.poll_fill(cx, Room::Small))? == 0 {
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// The stream.
    pub fn io(&self) -> &S {
        self.wire.io()
    }

    /// Whether no byte of the next request has come.
    pub fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.wire.filled().is_empty()
    }

    /// Whether another request may follow the answer given so far.
    pub fn is_keep_alive(&self) -> bool {
        self.reader.keep_alive && !self.failed
    }

    /// Makes the answer whose head is not sent yet the last one.
    pub fn close_after(&mut self) {
        self.reader.keep_alive = false;
    }

    /// Waits for the next request, after writing what is unsent of the last
    /// answer and reading what is left of the last request. `None`: there will
    /// be none; close the connection.
    ///
    /// # Errors
    ///
    /// After `Bad` an answer may still be sent, then the connection must be
    /// closed.
    pub fn poll_request(
        &mut self,
        cx: &mut Context<'_>,
        head: &mut RequestHead,
    ) -> Poll<Result<Option<Request>, ConnError>> {
        ready!(self.wire.poll_flush(cx))?;
        let over = self.stage != Stage::Asked && self.encoder.is_end();
        if !over || !self.is_keep_alive() || !ready!(self.poll_discard(cx))? {
            return Poll::Ready(Ok(None));
        }
        self.stage = Stage::Idle;
        loop {
            if let Some(request) = self.parse(head)? {
                return Poll::Ready(Ok(Some(request)));
            }
            if ready!(self.wire.poll_fill(cx, Room::Large))? == 0 {
                let clean = self.wire.filled().trim_ascii().is_empty();
                let end = if clean { Ok(None) } else { Err(BadMessage::Truncated.into()) };
                self.reader.keep_alive = false;
                return Poll::Ready(end);
            }
        }
    }

    /// [`ServerConn::poll_request`].
    pub async fn request(&mut self, head: &mut RequestHead) -> Result<Option<Request>, ConnError> {
        poll_fn(|cx| self.poll_request(cx, head)).await
    }

    /// Reads what is left of the last request; whether that was little.
    fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, ConnError>> {
        while !self.incoming.is_end() {
            let left = self.incoming.decoder.expected().saturating_add(self.discarded);
            if left > MAX_DISCARDED {
                return Poll::Ready(Ok(false));
            }
            if ready!(self.incoming.poll(cx, &mut self.wire))? {
                let count = self.incoming.data;
                self.incoming.consume(count, &mut self.wire);
                self.discarded += count as u64;
            }
        }
        Poll::Ready(Ok(true))
    }

    /// The next request, if all of its head is there. A head that comes in
    /// drops is looked at once per line.
    fn parse(&mut self, head: &mut RequestHead) -> Result<Option<Request>, ConnError> {
        // Empty lines between requests are nothing (RFC 9112 section 2.2), not
        // even the beginning of one.
        while self.wire.filled().starts_with(b"\r\n") {
            self.wire.consume(2);
            self.seen = 0;
        }
        let filled = self.wire.filled();
        let new = &filled[self.seen.min(filled.len())..];
        let full = filled.len() >= self.limits.head;
        if filled.is_empty() || !(self.seen == 0 || full || new.contains(&b'\n')) {
            self.seen = filled.len();
            return Ok(None);
        }
        self.seen = filled.len();
        let parsed = parse::request(filled, &self.limits, head);
        let request = match parsed {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.reader = NO_READER;
                self.fail();
                return Err(error.into());
            }
        };
        self.wire.consume(request.head_len);
        self.wire.begin_message();
        self.seen = 0;
        self.incoming = Incoming::new(request.body);
        self.discarded = 0;
        self.continue_wanted = request.expect_continue;
        self.reader = Reader {
            asked: Asked::new(&head.method, request.upgrade),
            version: request.version,
            keep_alive: request.keep_alive,
        };
        self.last = !request.keep_alive;
        self.stage = Stage::Asked;
        Ok(Some(request))
    }

    fn fail(&mut self) {
        self.reader.keep_alive = false;
        self.failed = true;
    }

    /// Waits for more of the request's body; `None` at its end. What is not
    /// consumed is returned again. Asks the client for the body if it waits
    /// to be asked.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<&[u8]>, ConnError>> {
        if self.continue_wanted {
            ready!(self.poll_continue(cx))?;
        }
        match ready!(self.incoming.poll(cx, &mut self.wire)) {
            Ok(true) => Poll::Ready(Ok(Some(self.incoming.data(&self.wire)))),
            Ok(false) => Poll::Ready(Ok(None)),
            Err(error) => {
                self.fail();
                Poll::Ready(Err(error))
            }
        }
    }

    /// 100, unless the body is coming already or an answer was given (RFC 9110
    /// section 10.1.1).
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnError>> {
        if self.stage == Stage::Asked && self.wire.filled().is_empty() {
            self.wire.out().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if self.stage == Stage::Asked {
            self.continue_wanted = false;
        }
        // What cannot be written now is written with what follows.
        match self.wire.poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(Ok(flushed?)),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    /// [`ServerConn::poll_data`].
    pub async fn data(&mut self) -> Result<Option<&[u8]>, ConnError> {
        let any = poll_fn(|cx| self.poll_data(cx).map_ok(|data| data.is_some())).await?;
        Ok(any.then(|| self.incoming.data(&self.wire)))
    }

    /// So much of what [`ServerConn::poll_data`] returned is done with.
    pub fn consume(&mut self, count: usize) {
        self.incoming.consume(count, &mut self.wire);
    }

    /// Whether all of the request's body has been consumed.
    pub fn is_body_end(&self) -> bool {
        self.incoming.is_end()
    }

    /// Bytes of the request's body to come, if its head has said so.
    pub fn body_length(&self) -> Option<u64> {
        self.incoming.length()
    }

    /// Whether there are trailers to be taken.
    pub fn has_trailers(&self) -> bool {
        self.incoming.has_trailers()
    }

    /// What followed the request's body, once.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.incoming.take_trailers()
    }

    /// Waits until the client leaves. For when it has sent its request and
    /// waits for the answer; what it sends ahead is kept, up to one small
    /// buffer, and more is left to the kernel.
    pub fn poll_peer(&mut self, cx: &mut Context<'_>) -> Poll<Peer> {
        if self.wire.is_eof() {
            return Poll::Pending;
        }
        loop {
            match ready!(self.wire.poll_fill(cx, Room::Small)) {
                Ok(0) => return Poll::Ready(Peer::HalfClosed),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Peer::Gone(error)),
            }
        }
    }

    /// Appends an informational response (1xx but 101). Clients of HTTP/1.0
    /// do not get it (RFC 9110 section 15.2).
    pub fn send_informational(&mut self, head: &ResponseHead) {
        if self.reader.version == Version::HTTP_11 && self.stage == Stage::Asked {
            self.continue_wanted &= head.status != http::StatusCode::CONTINUE;
            write::informational(head, self.wire.out());
        }
    }

    /// Appends the head of the final response, framed for this client.
    pub fn send_head(&mut self, head: &ResponseHead, body: Body) {
        // A client that has not been told to go on may or may not send its body.
        self.reader.keep_alive &= !self.continue_wanted;
        let (encoder, keep_alive) = write::response(head, body, self.reader, self.wire.out());
        (self.encoder, self.reader.keep_alive) = (encoder, keep_alive);
        self.bodiless = encoder == Encoder::Done;
        self.stage = Stage::Answering;
    }

    /// Takes all of `data`, more of the response's body; waits while much is
    /// unsent.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, ConnError>> {
        if !self.bodiless {
            ready!(self.wire.poll_send(cx, &mut self.encoder, data))?;
        }
        Poll::Ready(Ok(data.len()))
    }

    /// [`ServerConn::poll_send`].
    pub async fn send(&mut self, data: &[u8]) -> Result<usize, ConnError> {
        poll_fn(|cx| self.poll_send(cx, data)).await
    }

    /// Ends the response's body.
    ///
    /// # Errors
    ///
    /// `Body` if it is shorter than announced: drop the connection.
    pub fn finish(&mut self, trailers: Option<&Fields>) -> Result<(), ConnError> {
        Ok(self.encoder.finish(trailers, self.wire.out())?)
    }

    /// Writes what is unsent.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnError>> {
        self.wire.poll_flush(cx).map_err(ConnError::Io)
    }

    /// [`ServerConn::poll_flush`].
    pub async fn flush(&mut self) -> Result<(), ConnError> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Ends the connection so that the client can read all that was sent to
    /// it. Dropping ends it at once.
    pub async fn close(mut self) {
        let ended = poll_fn(|cx| {
            ready!(self.wire.poll_flush(cx))?;
            self.wire.poll_shutdown(cx)
        });
        let ended = tokio::time::timeout(FLUSH_TIMEOUT, ended).await;
        if matches!(ended, Ok(Ok(()))) && self.may_still_send() {
            let mut left = MAX_LINGERED;
            // Ending because it sent too much would be the reset.
            let drained = poll_fn(|cx| self.poll_drain(cx, &mut left));
            // Late or not, it has had its time.
            let _late = tokio::time::timeout(LINGER, drained).await;
        }
    }

    /// Whether bytes may arrive that nobody will read.
    fn may_still_send(&self) -> bool {
        let unread = !self.incoming.is_end() || !self.wire.filled().is_empty();
        let asking = !self.last && self.stage != Stage::Idle;
        !self.wire.is_eof() && (unread || asking || self.failed)
    }

    /// Reads what nobody needs until the client ends or `left` is used up,
    /// after which nothing wakes.
    fn poll_drain(&mut self, cx: &mut Context<'_>, left: &mut usize) -> Poll<()> {
        loop {
            let unread = self.wire.filled().len();
            self.wire.consume(unread);
            *left = left.saturating_sub(unread);
            if *left == 0 {
                return Poll::Pending;
            }
            if matches!(ready!(self.wire.poll_fill(cx, Room::Large)), Ok(0) | Err(_)) {
                return Poll::Ready(());
            }
        }
    }

    /// Ends the connection so that the client sees that what it was sent is
    /// not whole: with a reset.
    pub fn abort(mut self) {
        self.wire.io_mut().abort_on_close();
    }

    /// The stream, and what was read from it behind the last request: for
    /// after the flush of a 101, or of a 2xx to CONNECT.
    pub fn into_tunnel(self) -> (S, Vec<u8>) {
        self.wire.into_parts()
    }
}
