//! HTTP/2 (RFC 9113) at the level of streams, towards applications.
//!
//! `h2` is used directly: resets, refusals and GOAWAY keep their meaning, and
//! a request costs no task of its own at the source.

mod client;
mod frames;
pub mod held;
pub mod unsent;
mod upload;
pub mod watched;

pub use client::{Client, ExchangeError, Lease};
pub use upload::{Upload, UploadEnd};

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};

/// What a peer may send on one stream before it is read.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// What a peer may send on all streams together before it is read. Wide, so
/// that a few streams that nobody reads do not stall the others.
pub const CONNECTION_WINDOW: u32 = 8 << 20;
/// Streams open at once on one connection.
pub const MAX_STREAMS: u32 = 1024;
/// Decoded header bytes of one message.
pub const MAX_HEADER_LIST: u32 = 64 << 10;
/// Bytes of one stream that wait to be written.
pub const SEND_BUFFER: usize = 256 << 10;

/// The receiving half of a stream as a body; capacity goes back to the peer as
/// frames are taken, so a slow reader slows the sender.
#[derive(Debug)]
pub struct RecvBody {
    stream: RecvStream,
    data_ended: bool,
}

impl RecvBody {
    /// Reads what follows a head.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, data_ended: false }
    }
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    self.stream.flow_control().release_capacity(data.len())?;
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}
