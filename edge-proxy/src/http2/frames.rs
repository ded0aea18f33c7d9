//! Where frames begin in bytes that go by (RFC 9113 section 4.1).

const HEADER: usize = 9;

/// Kinds of frames.
pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const CONTINUATION: u8 = 9;

/// Finds the headers of frames, however their bytes come.
#[derive(Debug)]
pub(super) struct Frames {
    header: [u8; HEADER],
    filled: usize,
    /// Bytes to pass over.
    skip: usize,
}

impl Frames {
    /// Of a direction that begins with a preface so long.
    pub(super) fn after(preface: usize) -> Self {
        Self { header: [0; HEADER], filled: 0, skip: preface }
    }

    /// Passes over `bytes`, up to the end of the next frame's header if that is
    /// among them. The kind of that frame.
    pub(super) fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        let taken = (HEADER - self.filled).min(bytes.len());
        self.header[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        *bytes = &bytes[taken..];
        if self.filled < HEADER {
            return None;
        }
        self.filled = 0;
        let [a, b, c, kind, ..] = self.header;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(kind)
    }

    /// Whether the frame that was found last carries nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.skip == 0
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let [.., a, b, c] = payload.to_be_bytes();
        let mut frame = vec![a, b, c, kind, 0, 0, 0, 0, 1];
        frame.resize(HEADER + payload, 7);
        frame
    }

    #[test]
    fn the_next_frame_begins_where_the_last_one_ends() {
        let bytes =
            [vec![9; 24], frame(HEADERS, 30), frame(CONTINUATION, 0), frame(DATA, 70_000)].concat();
        for size in [1, 7, 9, 10, 4096, bytes.len()] {
            let (mut frames, mut found, mut at) = (Frames::after(24), Vec::new(), 0);
            for mut piece in bytes.chunks(size) {
                at += piece.len();
                while let Some(kind) = frames.next(&mut piece) {
                    found.push((kind, at - piece.len(), frames.is_empty()));
                }
            }
            let there = [(HEADERS, 33, false), (CONTINUATION, 72, true), (DATA, 81, false)];
            assert_eq!(found, there, "{size}");
        }
    }
}
