//! Connections: HTTP/1 over a byte stream, either way round.
//!
//! Nothing here sets a timer (but a closing connection's): deadlines belong to
//! whoever knows what is being waited for. A connection that waits for its
//! next message holds no buffers.
//!
//! - [`buffer`]: memory for reading and writing, lent by the worker.
//! - [`wire`]: a byte stream with what was read from it and what is to be
//!   written to it.
//! - [`server`]: towards clients.
//! - [`client`]: towards applications.

mod buffer;
mod client;
mod server;
mod wire;

pub use buffer::Buffers;
pub use client::ClientConn;
pub use server::{Peer, ServerConn};

use std::{
    io,
    task::{Context, Poll, ready},
};

use mesh_core::message::Fields;
use mesh_tunnel::Io;

use super::{
    BadMessage, Body,
    body::{Decoder, Mismatch, Step},
};
use wire::{Room, Wire};

/// Why a connection cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum ConnError {
    /// The other side sent what is no message.
    #[error(transparent)]
    Bad(#[from] BadMessage),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// An application closed it before it answered anything.
    #[error("the connection was closed before an answer")]
    Closed,
    /// The caller's body is not what its head has announced: the message
    /// cannot be completed.
    #[error(transparent)]
    Body(#[from] Mismatch),
}

/// The body that is being received.
#[derive(Debug)]
struct Incoming {
    decoder: Decoder,
    /// Bytes at the front of what was read that are data.
    data: usize,
}

impl Incoming {
    fn new(body: Body) -> Self {
        Self { decoder: Decoder::new(body), data: 0 }
    }

    fn is_end(&self) -> bool {
        self.data == 0 && self.decoder.is_end()
    }

    /// Bytes to come, if the head has said so.
    fn length(&self) -> Option<u64> {
        self.decoder.length().map(|left| left + self.data as u64)
    }

    fn data<'w, S>(&self, wire: &'w Wire<S>) -> &'w [u8] {
        &wire.filled()[..self.data]
    }

    fn consume<S>(&mut self, count: usize, wire: &mut Wire<S>) {
        let count = count.min(self.data);
        self.data -= count;
        wire.consume(count);
    }

    fn has_trailers(&self) -> bool {
        self.decoder.has_trailers()
    }

    fn take_trailers(&mut self) -> Option<Fields> {
        self.decoder.take_trailers()
    }

    /// Finds data among what was read; whether there is any.
    fn find<S>(&mut self, wire: &mut Wire<S>) -> Result<Found, BadMessage> {
        if self.data > 0 {
            return Ok(Found::Data);
        }
        match self.decoder.decode(wire.filled())? {
            Step::Data(range) => {
                wire.consume(range.start);
                self.data = range.len();
                Ok(Found::Data)
            }
            Step::More => {
                wire.consume(wire.filled().len());
                Ok(Found::Nothing)
            }
            Step::End(passed) => {
                wire.consume(passed);
                Ok(Found::End)
            }
        }
    }

    /// Waits for data or the body's end; whether there is data.
    fn poll<S: Io>(
        &mut self,
        cx: &mut Context<'_>,
        wire: &mut Wire<S>,
    ) -> Poll<Result<bool, ConnError>> {
        loop {
            match self.find(wire)? {
                Found::Data => return Poll::Ready(Ok(true)),
                Found::End => return Poll::Ready(Ok(false)),
                Found::Nothing => {}
            }
            if ready!(wire.poll_fill(cx, Room::Large))? == 0 {
                self.decoder.eof()?;
            }
        }
    }
}

/// What of a body has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Data,
    Nothing,
    End,
}

#[cfg(test)]
mod tests;
