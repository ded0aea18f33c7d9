//! Memory of requests in flight, lent by the worker: a warm request allocates
//! no heads, and an idle connection holds none.

use std::sync::{Mutex, PoisonError};

use mesh_core::message::{RequestHead, ResponseHead};

/// Kept per worker; a burst above this allocates.
const KEEP: usize = 256;
/// Of a head's block of memory that is kept for the next.
const KEEP_BYTES: usize = 4 << 10;

/// What one request needs while it runs.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The request.
    pub head: RequestHead,
    /// The answer.
    pub answer: ResponseHead,
    /// Either of them as it travels to another proxy.
    pub coded: Vec<u8>,
}

/// What no request uses.
#[derive(Debug, Default)]
#[allow(clippy::vec_box, reason = "what is lent does not move")]
pub struct Spare(Mutex<Vec<Box<Scratch>>>);

impl Spare {
    /// Cleared memory.
    pub fn take(&self) -> Box<Scratch> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_default()
    }

    /// Takes memory back; an unusually large head is not kept.
    pub fn give(&self, mut scratch: Box<Scratch>) {
        let Scratch { head, answer, coded } = &mut *scratch;
        head.clear();
        answer.clear();
        coded.clear();
        head.fields.shrink_to(KEEP_BYTES);
        answer.fields.shrink_to(KEEP_BYTES);
        coded.shrink_to(KEEP_BYTES);
        head.authority.shrink_to(KEEP_BYTES);
        head.target.shrink_to(KEEP_BYTES);
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEEP {
            spare.push(scratch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_and_little_of_it() {
        let spare = Spare::default();
        let mut scratch = spare.take();
        scratch.head.target.push_str("/secret");
        scratch.head.fields.push("cookie", &[b'x'; 3000]);
        scratch.coded.extend([0; 100_000]);
        let kept = scratch.head.fields.bytes();
        spare.give(scratch);
        let scratch = spare.take();
        assert_eq!(scratch.head, RequestHead::new());
        assert!(kept >= 3000 && scratch.coded.is_empty() && scratch.coded.capacity() <= KEEP_BYTES);
        for _ in 0..2 * KEEP {
            spare.give(Box::default());
        }
        assert_eq!(spare.0.lock().unwrap().len(), KEEP);
    }
}
