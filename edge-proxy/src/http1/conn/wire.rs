//! A byte stream with what was read from it and what is to be written to it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use mesh_tunnel::Io;
use tokio::io::ReadBuf;

use super::{
    ConnError,
    buffer::{Buffers, LARGE, ReadBuffer, SMALL},
};
use crate::http1::body::Encoder;

/// From this much on data is written from where it is instead of copied.
const DIRECT: usize = 2 * SMALL;
/// With this much unsent, whoever has more waits.
const FULL: usize = LARGE;

/// How much may be read before it is consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// What one small buffer holds: nobody has asked for it yet.
    Small,
    /// What a large one holds.
    Large,
}

/// A byte stream and its buffers.
#[derive(Debug)]
pub(super) struct Wire<S> {
    io: S,
    buffers: Arc<Buffers>,
    read: ReadBuffer,
    /// What is to be written, of which `sent` bytes have been.
    out: Vec<u8>,
    sent: usize,
    /// The last read filled its buffer: there is more to come.
    busy: bool,
    eof: bool,
    /// The stream has taken bytes since the message began.
    written: bool,
}

impl<S> Wire<S> {
    pub(super) fn new(io: S, buffers: Arc<Buffers>) -> Self {
        Self {
            io,
            buffers,
            read: ReadBuffer::default(),
            out: Vec::new(),
            sent: 0,
            busy: false,
            eof: false,
            written: false,
        }
    }

    pub(super) fn io(&self) -> &S {
        &self.io
    }

    pub(super) fn io_mut(&mut self) -> &mut S {
        &mut self.io
    }

    /// The stream, and what was read from it.
    pub(super) fn into_parts(self) -> (S, Vec<u8>) {
        let read = self.read.filled().to_vec();
        (self.io, read)
    }

    pub(super) fn prepend(&mut self, bytes: &[u8]) {
        self.read.prepend(bytes);
    }

    /// What was read and not consumed.
    pub(super) fn filled(&self) -> &[u8] {
        self.read.filled()
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.read.consume(count);
    }

    /// Whether the other side has ended its direction.
    pub(super) fn is_eof(&self) -> bool {
        self.eof
    }

    /// Whether all has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.sent == self.out.len()
    }

    /// Where to put what is to be written.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = self.buffers.out();
        } else if self.sent >= FULL {
            // A slow reader must not make us keep what it has read.
            self.out.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.out
    }

    /// What is held for this connection alone.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.read.memory() + self.out.capacity()
    }

    /// Whether any byte of the message that has begun has left.
    pub(super) fn has_written(&self) -> bool {
        self.written
    }

    /// Nothing says that the next message is as large as the last.
    pub(super) fn begin_message(&mut self) {
        self.busy = false;
        self.written = false;
    }

    /// Gives back the memory that holds nothing.
    pub(super) fn release(&mut self) {
        self.read.release(&self.buffers);
        if self.is_flushed() && self.out.capacity() > 0 {
            self.sent = 0;
            self.buffers.give_out(std::mem::take(&mut self.out));
        }
    }
}

impl<S: Io> Wire<S> {
    /// Reads once; 0 at the other side's end. Waits for ever where there is
    /// no room.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        room: Room,
    ) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        let may_grow = room == Room::Large;
        self.read.make_room(self.busy && may_grow, may_grow, &self.buffers);
        let mut space = ReadBuf::new(self.read.space());
        let size = space.remaining();
        if size == 0 {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut space);
        let count = space.filled().len();
        if polled.is_pending() {
            self.read.release(&self.buffers);
        }
        ready!(polled)?;
        self.read.advance(count);
        self.busy = count == size;
        self.eof = count == 0;
        Poll::Ready(Ok(count))
    }

    /// Takes all of `data`, with its framing: copied if it is little, else
    /// written together with what is unsent. Waits while much is.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        encoder: &mut Encoder,
        data: &[u8],
    ) -> Poll<Result<(), ConnError>> {
        if self.out.len() - self.sent >= FULL {
            ready!(self.poll_flush(cx))?;
        }
        if data.len() < DIRECT || !self.io.is_write_vectored() {
            encoder.put(data, self.out())?;
        } else {
            self.send_direct(cx, encoder, data)?;
        }
        Poll::Ready(Ok(()))
    }

    /// What the stream does not take at once is copied.
    fn send_direct(
        &mut self,
        cx: &mut Context<'_>,
        encoder: &mut Encoder,
        data: &[u8],
    ) -> Result<(), ConnError> {
        encoder.begin(data.len(), self.out())?;
        let after = encoder.after();
        let unsent = &self.out[self.sent..];
        let slices = [IoSlice::new(unsent), IoSlice::new(data), IoSlice::new(after)];
        let written = match Pin::new(&mut self.io).poll_write_vectored(cx, &slices) {
            Poll::Ready(written) => written_some(written)?,
            Poll::Pending => 0,
        };
        self.written |= written > 0;
        let of_out = written.min(unsent.len());
        let of_data = (written - of_out).min(data.len());
        self.sent += of_out;
        self.out.extend_from_slice(&data[of_data..]);
        self.out.extend_from_slice(&after[written - of_out - of_data..]);
        Ok(())
    }

    /// Writes all.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.is_flushed() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.sent..]));
            self.sent += written_some(written)?;
            self.written = true;
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.sent = 0;
        self.buffers.give_out(std::mem::take(&mut self.out));
        Poll::Ready(Ok(()))
    }

    /// Ends our direction.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn written_some(written: io::Result<usize>) -> io::Result<usize> {
    match written? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}
