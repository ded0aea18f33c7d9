//! Memory to read the bytes of a connection into, as large as its reads are.

use std::{
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What reading begins with: most connections begin with one small message.
const FIRST_READ: usize = 4 << 10;
/// What a busy connection grows to: bulk is decided by bytes per system call.
pub const LARGEST_READ: usize = 64 << 10;

/// See the module.
#[derive(Debug)]
pub struct Room {
    buffer: BytesMut,
    /// What the next read may take.
    next: usize,
}

impl Default for Room {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), next: FIRST_READ }
    }
}

impl Room {
    /// Reads once; nothing is the end. A read that fills the room makes the
    /// next one larger, one that leaves most of it empty smaller.
    ///
    /// # Errors
    ///
    /// Those of `from`.
    pub fn poll_read<R>(&mut self, from: &mut R, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        self.buffer.reserve(self.next);
        let mut room = (&mut self.buffer).limit(self.next);
        let read = ready!(pin!(from.read_buf(&mut room)).poll(cx))?;
        if read == self.next {
            self.next = (self.next * 2).min(LARGEST_READ);
        } else if read < self.next / 4 {
            self.next = (self.next / 2).max(FIRST_READ);
        }
        Poll::Ready(Ok(self.buffer.split().freeze()))
    }

    /// Gives the memory back; the next read will want as much again.
    pub fn rest(&mut self) {
        self.buffer = BytesMut::new();
    }
}
