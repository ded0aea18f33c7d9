//! What waits to be written to one client of HTTP/2.
//!
//! `h2` bounds it for each stream alone: a client that opens many and reads
//! nothing would hold as many times that.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// Pieces of all streams of one connection; most are 16 KiB.
const MAX_UNSENT: usize = 256;

/// Places of one connection. Clones share them, and each waits in turn.
#[derive(Debug, Clone)]
pub struct Unsent(PollSemaphore);

/// A place for a piece.
#[derive(Debug)]
pub struct Room {
    _place: OwnedSemaphorePermit,
}

/// A piece of a body, which keeps its place until it is written or given up.
#[derive(Debug)]
pub struct Piece {
    data: Bytes,
    _room: Option<Room>,
}

impl Unsent {
    /// Nothing waits.
    pub fn new() -> Self {
        Self(PollSemaphore::new(Arc::new(Semaphore::new(MAX_UNSENT))))
    }

    /// Waits for a place. It must be given back while there is no piece.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Room> {
        let place = ready!(self.0.poll_acquire(cx)).expect("never closed");
        Poll::Ready(Room { _place: place })
    }
}

impl Default for Unsent {
    fn default() -> Self {
        Self::new()
    }
}

impl Piece {
    /// One with a place.
    pub fn new(data: Bytes, room: Room) -> Self {
        Self { data, _room: Some(room) }
    }

    /// Bytes of it that are not written.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether all of it is written.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }
}

/// A whole answer of ours, which is short.
impl From<Bytes> for Piece {
    fn from(data: Bytes) -> Self {
        Self { data, _room: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.data.copy_to_bytes(length)
    }
}
