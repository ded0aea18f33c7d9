//! Memory for reading and writing, lent to connections while they need it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Holds almost every head; what a connection takes first.
pub(super) const SMALL: usize = 4 << 10;
/// Holds the largest head; bulk is decided by bytes per system call.
pub(super) const LARGE: usize = 64 << 10;
/// Buffers of each kind that a worker keeps: 256 KiB, 512 KiB, 256 KiB. A
/// burst above this allocates.
const KEEP_SMALL: usize = 64;
const KEEP_LARGE: usize = 8;
const KEEP_OUT: usize = 64;

/// The buffers of one worker that no connection uses.
#[derive(Debug, Default)]
pub struct Buffers {
    spare: Mutex<Spare>,
}

#[derive(Debug, Default)]
struct Spare {
    /// Each as long as its kind says: a reader needs bytes, not capacity.
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    /// Empty, with some capacity.
    out: Vec<Vec<u8>>,
}

impl Buffers {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    fn spare(&self) -> MutexGuard<'_, Spare> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn small(&self) -> Vec<u8> {
        let spare = self.spare().small.pop();
        spare.unwrap_or_else(|| vec![0; SMALL])
    }

    fn large(&self) -> Vec<u8> {
        let spare = self.spare().large.pop();
        spare.unwrap_or_else(|| vec![0; LARGE])
    }

    /// An empty buffer to write to.
    pub(super) fn out(&self) -> Vec<u8> {
        let spare = self.spare().out.pop();
        spare.unwrap_or_else(|| Vec::with_capacity(SMALL))
    }

    pub(super) fn give_out(&self, mut out: Vec<u8>) {
        out.clear();
        if out.capacity() <= SMALL {
            keep(&mut self.spare().out, out, KEEP_OUT);
        }
    }

    fn give(&self, memory: Vec<u8>) {
        match memory.len() {
            SMALL => keep(&mut self.spare().small, memory, KEEP_SMALL),
            LARGE => keep(&mut self.spare().large, memory, KEEP_LARGE),
            _ => {}
        }
    }
}

fn keep(spare: &mut Vec<Vec<u8>>, memory: Vec<u8>, most: usize) {
    if spare.len() < most {
        spare.push(memory);
    }
}

/// Bytes that were read and not yet consumed, and room for more.
#[derive(Debug, Default)]
pub(super) struct ReadBuffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl ReadBuffer {
    pub(super) fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// So many bytes of [`ReadBuffer::space`] have been read.
    pub(super) fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.memory.len());
    }

    /// Where the next bytes are read to; empty if it is full.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.memory[self.end..]
    }

    /// Makes room; in a large buffer if that is `wanted`, or if it must
    /// because a small one is full and `allowed`.
    pub(super) fn make_room(&mut self, wanted: bool, allowed: bool, buffers: &Buffers) {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if wanted && self.memory.len() < LARGE {
                buffers.give(std::mem::replace(&mut self.memory, buffers.large()));
            } else if self.memory.is_empty() {
                self.memory = buffers.small();
            }
        } else if self.end == self.memory.len() {
            if self.start > 0 {
                self.memory.copy_within(self.start..self.end, 0);
            } else if allowed && self.memory.len() < LARGE {
                let mut large = buffers.large();
                large[..self.end].copy_from_slice(&self.memory);
                buffers.give(std::mem::replace(&mut self.memory, large));
            }
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Gives the memory back if there is nothing in it.
    pub(super) fn release(&mut self, buffers: &Buffers) {
        if self.is_empty() && !self.memory.is_empty() {
            (self.start, self.end) = (0, 0);
            buffers.give(std::mem::take(&mut self.memory));
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.memory.len()
    }

    /// Puts bytes in front that were read elsewhere.
    pub(super) fn prepend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut memory = [bytes, self.filled()].concat();
        (self.start, self.end) = (0, memory.len());
        // Of a size that is lent and given back, if it is not larger.
        let size = if memory.len() <= SMALL { SMALL } else { LARGE };
        memory.resize(size.max(self.end), 0);
        self.memory = memory;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_by_moving_then_by_growing() {
        let (buffers, mut read) = (Buffers::default(), ReadBuffer::default());
        read.make_room(false, true, &buffers);
        assert_eq!(read.space().len(), SMALL);
        read.space().fill(b'a');
        read.advance(SMALL);
        read.consume(1);
        read.make_room(false, true, &buffers);
        assert_eq!((read.space().len(), read.filled().len()), (1, SMALL - 1));
        read.advance(1);
        read.make_room(false, false, &buffers);
        assert!(read.space().is_empty());
        read.make_room(false, true, &buffers);
        assert_eq!((read.space().len(), read.filled().len()), (LARGE - SMALL, SMALL));
        assert!(read.filled().iter().all(|&byte| byte == b'a'));
        read.consume(SMALL);
        read.release(&buffers);
        assert!(read.memory.is_empty());
        let spare = buffers.spare();
        assert_eq!((spare.small.len(), spare.large.len()), (1, 1));
    }

    #[test]
    fn spare_buffers_are_few() {
        let buffers = Buffers::default();
        for _ in 0..1000 {
            buffers.give(vec![0; SMALL]);
            buffers.give(vec![0; LARGE]);
            buffers.give(vec![0; 3 * LARGE]);
            buffers.give_out(Vec::with_capacity(SMALL));
            buffers.give_out(Vec::with_capacity(SMALL + 1));
        }
        let spare = buffers.spare();
        let kept = (spare.small.len(), spare.large.len(), spare.out.len());
        assert_eq!(kept, (KEEP_SMALL, KEEP_LARGE, KEEP_OUT));
    }

    #[test]
    fn bytes_are_put_in_front() {
        let (buffers, mut read) = (Buffers::default(), ReadBuffer::default());
        read.prepend(b"");
        read.prepend(b"cd");
        read.prepend(b"ab");
        assert_eq!(read.filled(), b"abcd");
        read.prepend(&vec![b'x'; 2 * LARGE]);
        assert_eq!(read.filled().len(), 2 * LARGE + 4);
        read.consume(2 * LARGE + 4);
        read.release(&buffers);
        assert!(buffers.spare().large.is_empty());
    }
}
