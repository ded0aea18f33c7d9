//! Memory for heads: a warm worker takes none from the allocator.

use std::sync::{Mutex, PoisonError};

use mesh_core::message::{RequestHead, ResponseHead};

/// What a worker keeps; a burst above this allocates.
const KEEP: usize = 64;
/// What one of them may keep: almost every head is shorter.
const KEEP_BYTES: usize = 4 << 10;

/// The heads of one request.
#[derive(Debug, Default)]
pub struct Heads {
    /// What is asked.
    pub request: RequestHead,
    /// What the application answers.
    pub answer: ResponseHead,
    /// The answer's as it travels.
    pub coded: Vec<u8>,
}

/// Those of one worker that no request uses.
#[derive(Debug, Default)]
pub struct SpareHeads(Mutex<Vec<Box<Heads>>>);

impl SpareHeads {
    /// Empty heads.
    pub fn take(&self) -> Box<Heads> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_default()
    }

    /// Keeps their memory for the next request.
    pub fn give(&self, mut heads: Box<Heads>) {
        let Heads { request, answer, coded } = &mut *heads;
        request.clear();
        answer.clear();
        coded.clear();
        request.fields.shrink_to(KEEP_BYTES);
        answer.fields.shrink_to(KEEP_BYTES);
        coded.shrink_to(KEEP_BYTES);
        for text in [&mut request.authority, &mut request.target] {
            text.shrink_to(KEEP_BYTES);
        }
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < KEEP {
            spare.push(heads);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_and_little_of_it() {
        let spare = SpareHeads::default();
        let mut heads = spare.take();
        heads.request.target.push_str("/secret");
        heads.request.fields.push("cookie", &[b'x'; 3000]);
        heads.coded.extend([0; 100_000]);
        let kept = heads.request.fields.bytes();
        spare.give(heads);
        let heads = spare.take();
        assert_eq!(heads.request, RequestHead::new());
        assert!(kept >= 3000 && heads.coded.is_empty() && heads.coded.capacity() <= KEEP_BYTES);
        for _ in 0..2 * KEEP {
            spare.give(Box::default());
        }
        assert_eq!(spare.0.lock().unwrap().len(), KEEP);
    }
}
