//! What waits to be written: frames in the order in which they leave.

use super::frame::{self, END, HEADER, Kind, MAX_DATA};

/// Bytes up to which streams add data. As many are being written at the same
/// time.
pub(super) const ROOM: usize = 128 << 10;
/// Bytes up to which heads, and the first data of a stream, are added: a small
/// message does not wait for its turn behind bulk.
pub(super) const RESERVE: usize = 1 << 20;
/// Bytes after which the peer is given up: it asks for more than it reads.
pub(super) const TOO_MUCH: usize = 4 << 20;

/// Frames that no write has taken.
#[derive(Debug, Default)]
pub(super) struct Out {
    bytes: Vec<u8>,
    /// The last frame, if more may be added to it.
    tail: Option<Tail>,
    /// Counts what was taken: the number of the batch that is being filled.
    batch: u64,
    /// A `Pong` is in it.
    pong: bool,
}

/// The last frame of `bytes`.
#[derive(Debug, Clone, Copy)]
struct Tail {
    stream: u32,
    at: usize,
    kind: Kind,
}

impl Out {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    /// Any frame.
    pub(super) fn frame(&mut self, kind: Kind, flags: u8, stream: u32, payload: &[&[u8]]) {
        let ended = flags != 0;
        let may_grow = !ended && matches!(kind, Kind::Open | Kind::Head | Kind::Data);
        self.tail = may_grow.then_some(Tail { stream, at: self.bytes.len(), kind });
        frame::encode(&mut self.bytes, kind, flags, stream, payload);
    }

    /// Bytes of a stream; they join those that were added just before.
    pub(super) fn data(&mut self, stream: u32, data: &[u8], end: bool) {
        if let Some(tail) = self.tail
            && tail.stream == stream
            && tail.kind == Kind::Data
            && let payload = self.bytes.len() - tail.at - HEADER
            && payload + data.len() <= MAX_DATA
        {
            self.bytes.extend_from_slice(data);
            let [.., a, b, c] = (payload + data.len()).to_be_bytes();
            self.bytes[tail.at..tail.at + 3].copy_from_slice(&[a, b, c]);
        } else {
            self.frame(Kind::Data, 0, stream, &[data]);
        }
        if end {
            self.end(stream);
        }
    }

    /// The end of a stream's direction; the last frame carries it if it is of
    /// that stream.
    pub(super) fn end(&mut self, stream: u32) {
        match self.tail.take() {
            Some(tail) if tail.stream == stream => self.bytes[tail.at + 4] |= END,
            _ => self.frame(Kind::Data, END, stream, &[]),
        }
    }

    /// Answers a `Ping`; one answer per batch is enough.
    pub(super) fn pong(&mut self, token: u64) {
        if !self.pong {
            self.pong = true;
            self.frame(Kind::Pong, 0, 0, &[&token.to_be_bytes()]);
        }
    }

    /// Everything so far, for `spare`, which is empty.
    pub(super) fn take(&mut self, spare: &mut Vec<u8>) {
        std::mem::swap(&mut self.bytes, spare);
        self.bytes.clear();
        (self.tail, self.pong) = (None, false);
        self.batch += 1;
    }

    /// Nothing is written any more.
    pub(super) fn end_of_session(&mut self) {
        self.bytes = Vec::new();
        self.tail = None;
    }

    /// Gives memory back that an idle session does not need.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.bytes);
    }
}

/// Frees an empty buffer.
pub(super) fn shrink(bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        *bytes = Vec::new();
    }
}

#[cfg(test)]
impl Out {
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}
