//! Bytes in pieces that change hands without being copied.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::ReadBuf;

/// What a piece is made for once there is more than one.
pub(super) const PIECE: usize = 64 * 1024;
/// Pieces from here on stay as they are; what is shorter is put together.
const WORTH: usize = 4 * 1024;

/// See the module. Empty it holds no memory.
#[derive(Debug, Default)]
pub(super) struct Rope {
    whole: VecDeque<Bytes>,
    /// The end, if more may be added to it.
    last: BytesMut,
    len: usize,
}

impl Rope {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a copy.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.last.capacity() - self.last.len() < bytes.len() {
            if self.last.len() >= WORTH {
                self.close_last();
            }
            let more = if self.is_empty() { bytes.len() } else { PIECE.max(bytes.len()) };
            self.last.reserve(more);
        }
        self.last.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Adds the bytes themselves.
    pub(super) fn give(&mut self, bytes: Bytes) {
        if bytes.len() < WORTH {
            return self.push(&bytes);
        }
        self.close_last();
        self.len += bytes.len();
        self.whole.push_back(bytes);
    }

    fn close_last(&mut self) {
        if !self.last.is_empty() {
            self.whole.push_back(std::mem::take(&mut self.last).freeze());
        }
    }

    /// Takes the first piece, or `most` bytes of it; empty if there is none.
    pub(super) fn take(&mut self, most: usize) -> Bytes {
        let piece = match self.whole.front_mut() {
            Some(first) if first.len() > most => first.split_to(most),
            Some(_) => self.whole.pop_front().unwrap_or_default(),
            None if self.last.len() > most => self.last.split_to(most).freeze(),
            None => std::mem::take(&mut self.last).freeze(),
        };
        self.gone(piece.len());
        piece
    }

    /// Moves what fits into `buf`.
    pub(super) fn read(&mut self, buf: &mut ReadBuf<'_>) {
        while buf.remaining() > 0 && !self.is_empty() {
            let piece = self.take(buf.remaining());
            buf.put_slice(&piece);
        }
    }

    /// Moves up to `most` bytes to the end of `to`.
    pub(super) fn append_to(&mut self, to: &mut Vec<u8>, mut most: usize) {
        while most > 0
            && let piece = self.take(most)
            && piece.has_remaining()
        {
            most -= piece.len();
            to.extend_from_slice(&piece);
        }
    }

    fn gone(&mut self, n: usize) {
        self.len -= n;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Give(usize),
        Take(usize),
        Read(usize),
        Append(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let size = || prop_oneof![0..20usize, 0..40_000usize];
        prop_oneof![
            size().prop_map(Step::Push),
            size().prop_map(Step::Give),
            (1..50_000usize).prop_map(Step::Take),
            size().prop_map(Step::Read),
            size().prop_map(Step::Append),
        ]
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(steps in proptest::collection::vec(step(), 1..40)) {
            let (mut rope, mut model, mut next) = (Rope::default(), VecDeque::new(), 0u8);
            let mut fresh = |n: usize| -> Vec<u8> {
                (0..n).map(|_| { next = next.wrapping_add(1); next }).collect()
            };
            for step in steps {
                let got = match step {
                    Step::Push(n) => {
                        let bytes = fresh(n);
                        rope.push(&bytes);
                        model.extend(bytes);
                        continue;
                    }
                    Step::Give(n) => {
                        let bytes = fresh(n);
                        model.extend(bytes.iter().copied());
                        rope.give(bytes.into());
                        continue;
                    }
                    Step::Take(most) => {
                        let piece = rope.take(most);
                        prop_assert!(piece.len() <= most && piece.is_empty() == model.is_empty());
                        piece.to_vec()
                    }
                    Step::Read(n) => {
                        let mut space = vec![0; n];
                        let mut buf = ReadBuf::new(&mut space);
                        rope.read(&mut buf);
                        prop_assert_eq!(buf.filled().len(), n.min(model.len()));
                        buf.filled().to_vec()
                    }
                    Step::Append(n) => {
                        let mut to = Vec::new();
                        rope.append_to(&mut to, n);
                        prop_assert_eq!(to.len(), n.min(model.len()));
                        to
                    }
                };
                let expected: Vec<u8> = model.drain(..got.len()).collect();
                prop_assert!(got == expected);
                prop_assert_eq!(rope.len(), model.len());
            }
        }
    }

    #[test]
    fn many_small_pieces_become_few() {
        let mut rope = Rope::default();
        (0..40_000).for_each(|_| rope.give(Bytes::from_static(b"ab")));
        assert!(rope.whole.len() < 4, "{}", rope.whole.len());
        rope.append_to(&mut Vec::new(), usize::MAX);
        assert_eq!((rope.whole.capacity(), rope.last.capacity()), (0, 0));
    }
}
