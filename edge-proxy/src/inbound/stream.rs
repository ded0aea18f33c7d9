//! A caller's stream, in the hands of one task: what it asks, and the way back
//! of the answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use mesh_core::message::{ResponseHead, codec};

use crate::inner::{
    mux::{Exchange, HeadKind, MAX_HEAD, Received, ResetCode, StreamError},
    request::{Part, frame, trailers},
};

/// The stream of one request. As a body it is what the caller sends.
#[derive(Debug)]
pub(super) struct CallerStream {
    exchange: Exchange,
    /// Bytes of the request's body read so far.
    received: u64,
    /// It was asked for more and had nothing.
    waiting: bool,
    /// Nothing more is to be read.
    ended: bool,
    failed: bool,
}

/// The caller gave up, or its session is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gone;

/// Why a head was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadError {
    /// [`Gone`].
    Gone,
    /// It is longer than [`MAX_HEAD`]; another one can be sent.
    TooLong,
}

impl CallerStream {
    /// Nothing has been read or answered.
    pub(super) fn new(exchange: Exchange) -> Self {
        Self { exchange, received: 0, waiting: false, ended: false, failed: false }
    }

    /// Bytes of the request's body read so far.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Whether reading the request's body has failed.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Takes the request's body for ended.
    pub(super) fn read_no_further(&mut self) {
        self.ended = true;
    }

    /// Waits until nobody wants the answer any more.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waiting {
            // Whoever reads the body waits already, and sees it.
            return Poll::Pending;
        }
        self.exchange.poll_reset(cx).map(drop)
    }

    /// Sends a head, coded in memory that is lent for it.
    pub(super) async fn send_head(
        &mut self,
        head: &ResponseHead,
        kind: HeadKind,
        coded: &mut Vec<u8>,
    ) -> Result<(), HeadError> {
        coded.clear();
        codec::put_response(head, coded);
        if coded.len() > MAX_HEAD {
            return Err(HeadError::TooLong);
        }
        let sent = std::future::poll_fn(|cx| self.exchange.poll_send_head(cx, coded, kind));
        sent.await.map_err(|_| HeadError::Gone)
    }

    /// Sends part of `data`; `end` counts if that was all of it.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        data: &[u8],
        end: bool,
    ) -> Poll<Result<usize, Gone>> {
        self.exchange.poll_send(cx, data, end).map_err(|_| Gone)
    }

    /// Sends what follows the body, and the end.
    pub(super) fn poll_send_trailers(
        &mut self,
        cx: &mut Context<'_>,
        block: &[u8],
    ) -> Poll<Result<(), Gone>> {
        self.exchange.poll_send_trailers(cx, block).map_err(|_| Gone)
    }

    /// Nothing follows what was sent.
    pub(super) fn finish(&mut self) {
        self.exchange.finish();
    }

    /// Breaks the answer off.
    pub(super) fn reset(&mut self, code: ResetCode, reason: &str) {
        self.exchange.reset(code, reason);
    }

    /// The stream for bytes, once a head has passed.
    pub(super) fn into_inner(self) -> Exchange {
        self.exchange
    }

    fn end(&mut self, error: Option<StreamError>) -> Option<Result<Frame<Bytes>, StreamError>> {
        self.ended = true;
        self.failed = error.is_some();
        error.map(Err)
    }
}

impl Body for CallerStream {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.waiting = true;
        let received = ready!(self.exchange.poll_recv(cx));
        self.waiting = false;
        Poll::Ready(match received {
            Ok(Some(Received::Data(data))) => {
                self.received += data.len() as u64;
                Some(Ok(Frame::data(data)))
            }
            Ok(Some(Received::Trailers(block))) => match trailers(&block) {
                Ok(fields) => {
                    self.ended = true;
                    Some(Ok(frame(Part::Trailers(fields))))
                }
                Err(error) => self.end(Some(error)),
            },
            // Sources send no heads.
            Ok(Some(Received::Head(_) | Received::Informational(_)) | None) => self.end(None),
            Err(error) => self.end(Some(error)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.exchange.is_recv_end()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
