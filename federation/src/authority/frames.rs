//! The log on disk: frames of records, each frame whole or refused.
//!
//! A file begins with [`MAGIC`]. A frame is one batch of a group commit:
//!
//! ```text
//! mark u32 | length u32 | CRC-32 of the payload u32 | CRC-32 of these 12 bytes u32 | payload
//! ```
//!
//! all little-endian; the payload is a sequence of length-delimited
//! `AuthorityRecord`s. The header has its own checksum so that a flipped bit in
//! `length` cannot make the rest of the file look like an unfinished write.

use mesh_api::v1::AuthorityRecord;
use prost::Message;

/// The first bytes of every log; the last one is the version of the format.
pub const MAGIC: &[u8; 16] = b"isthmus log\r\n\x1a\n\x01";
/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 16 << 20;

const MARK: [u8; 4] = *b"\xa5frm";
const HEADER: usize = 16;
/// What a disk writes at once: a hole left by a power loss is at least this.
const SECTOR: u64 = 512;
/// Fewer zeros than this may be part of a record.
const MIN_HOLE: usize = 8;

/// One frame that holds these records.
pub fn frame(records: &[AuthorityRecord]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    for record in records {
        record.encode_length_delimited(&mut bytes).expect("a Vec grows");
    }
    let payload = &bytes[HEADER..];
    let length = u32::try_from(payload.len()).expect("batches are bounded by MAX_PAYLOAD");
    let checksum = crc32fast::hash(payload);
    bytes[..4].copy_from_slice(&MARK);
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    let header_checksum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&header_checksum.to_le_bytes());
    bytes
}

/// What is found at one place of a log.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// A whole frame, `length` bytes long, header included.
    Frame {
        /// Its records, in order.
        records: Vec<AuthorityRecord>,
        /// How far to go on.
        length: usize,
    },
    /// Nothing more.
    End,
    /// The beginning of a frame whose write was never finished, up to the end
    /// of the file.
    Torn,
    /// Something that no crash of ours leaves behind.
    Damaged(String),
}

/// Reads one frame from `rest`, which begins at `offset` of the file and ends
/// with it.
pub fn read_frame(rest: &[u8], offset: u64) -> Found {
    if rest.is_empty() {
        return Found::End;
    }
    let Some((header, body)) = rest.split_at_checked(HEADER) else {
        return if is_prefix_of_header(rest) || all_zero(rest) {
            Found::Torn
        } else {
            Found::Damaged("not the beginning of a frame".into())
        };
    };
    if !is_header(header) {
        return damaged_or_hole(
            rest,
            offset,
            "the header of the frame does not match its checksum",
        );
    }
    let length = word(header, 4) as usize;
    if length > MAX_PAYLOAD {
        return Found::Damaged(format!("a frame of {length} bytes, more than {MAX_PAYLOAD}"));
    }
    let Some(payload) = body.get(..length) else {
        return Found::Torn;
    };
    if crc32fast::hash(payload) != word(header, 8) {
        if body[length..].get(..HEADER).is_some_and(is_header) {
            return Found::Damaged("the records do not match their checksum".into());
        }
        return damaged_or_hole(rest, offset, "the records do not match their checksum");
    }
    match records(payload) {
        Ok(records) => Found::Frame { records, length: HEADER + length },
        Err(error) => Found::Damaged(format!("a record does not decode: {error}")),
    }
}

impl Found {
    /// Whether something was read.
    pub fn is_frame(&self) -> bool {
        matches!(self, Found::Frame { .. })
    }
}

fn word(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn is_header(header: &[u8]) -> bool {
    header[..4] == MARK && word(header, 12) == crc32fast::hash(&header[..12])
}

fn records(mut payload: &[u8]) -> Result<Vec<AuthorityRecord>, prost::DecodeError> {
    let mut records = Vec::new();
    while !payload.is_empty() {
        records.push(AuthorityRecord::decode_length_delimited(&mut payload)?);
    }
    Ok(records)
}

fn is_prefix_of_header(rest: &[u8]) -> bool {
    rest.iter().zip(MARK).all(|(byte, mark)| *byte == mark)
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// A power loss may leave a file at its full length with sectors that were
/// never written, which read as zeros. Without such a hole it is damage.
fn damaged_or_hole(rest: &[u8], offset: u64, problem: &str) -> Found {
    let to_boundary = (SECTOR - offset % SECTOR) as usize;
    let (first, others) = rest.split_at(to_boundary.min(rest.len()));
    let hole = |part: &[u8]| part.len() >= MIN_HOLE && all_zero(part);
    if hole(first) || others.chunks(SECTOR as usize).any(hole) {
        Found::Torn
    } else {
        Found::Damaged(problem.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{NodeLeft, authority_record::Event};
    use proptest::prelude::*;

    use super::*;

    fn record(text: String) -> AuthorityRecord {
        let event = Some(Event::NodeLeft(NodeLeft { id: text }));
        AuthorityRecord { event, ..Default::default() }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2000), offset in any::<u32>()) {
            let found = read_frame(&bytes, offset.into());
            prop_assert!(!found.is_frame());
        }

        #[test]
        fn whatever_was_written_is_read(texts in prop::collection::vec(".*", 0..5), rest in any::<Vec<u8>>()) {
            let records: Vec<_> = texts.into_iter().map(record).collect();
            let bytes = frame(&records);
            let length = bytes.len();
            let bytes = [bytes, rest].concat();
            prop_assert_eq!(read_frame(&bytes, 16), Found::Frame { records, length });
        }

        #[test]
        fn a_changed_byte_is_never_read(at in any::<prop::sample::Index>(), to in any::<u8>(), n in 1usize..5) {
            let records: Vec<_> = (0..n).map(|i| record(i.to_string())).collect();
            let mut bytes = frame(&records);
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != to);
            bytes[at] = to;
            let read = read_frame(&bytes, 16);
            prop_assert!(matches!(read, Found::Damaged(_)), "{:?}", read);
        }
    }

    #[test]
    fn a_length_that_nobody_writes_is_not_believed() {
        let mut bytes = frame(&[]);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert!(matches!(read_frame(&bytes, 16), Found::Damaged(_)));
    }
}
