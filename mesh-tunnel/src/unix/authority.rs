//! The `:authority` of requests on a Unix socket.
//!
//! Many gRPC clients (those on gRPC's C core since 1.57, Java) send the path of
//! the socket there, which is no authority (RFC 3986 section 3.2): our HTTP/2
//! refuses such a request before anybody sees it. Nobody looks at the authority
//! of a local request, so what must not be in one is replaced where it stands, in
//! the frames (RFC 9113) and fields (RFC 7541) that come in. Lengths stay, so that
//! the dynamic tables of both ends stay alike. A value in Huffman's code is left
//! alone: those clients send none.

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Bytes before the payload of a frame.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// The same in the static table.
const INDEX: usize = 1;

/// Reads along with one connection, byte by byte, however it is cut.
#[derive(Debug, Default)]
pub struct Authorities {
    /// Bytes of the preface that have been seen.
    preface: usize,
    head: [u8; HEAD],
    seen: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// Of these, what stands before the fields, and after them.
    before: usize,
    padding: usize,
    has_padding: bool,
    fields: Fields,
}

impl Authorities {
    /// Replaces what must not be in an authority.
    pub fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.preface < PREFACE {
                self.preface += 1;
            } else if self.seen < HEAD {
                self.head[self.seen] = *byte;
                self.seen += 1;
                if self.seen == HEAD {
                    self.begin();
                }
            } else {
                self.payload(byte);
            }
            if self.seen == HEAD && self.left == 0 {
                self.seen = 0;
            }
        }
    }

    fn begin(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let begins = kind == HEADERS;
        self.has_padding = begins && flags & PADDED != 0;
        self.before = if begins && flags & PRIORITY != 0 { 5 } else { 0 };
        self.padding = 0;
        if begins {
            self.fields = Fields::default();
        }
    }

    fn payload(&mut self, byte: &mut u8) {
        self.left -= 1;
        if !matches!(self.head[3], HEADERS | CONTINUATION) {
        } else if std::mem::take(&mut self.has_padding) {
            self.padding = usize::from(*byte);
        } else if self.before > 0 {
            self.before -= 1;
        } else if self.left >= self.padding {
            self.fields.mend(byte);
        }
    }
}

/// What comes next in a block of fields.
#[derive(Debug, Default, Clone, Copy)]
enum Part {
    #[default]
    Field,
    NameLength,
    Name,
    ValueLength,
    Value,
}

#[derive(Debug, Default)]
struct Fields {
    part: Part,
    /// A number of which more bytes follow, and by how much they are shifted.
    number: Option<(usize, u32)>,
    prefix: u32,
    is_literal: bool,
    is_huffman: bool,
    is_authority: bool,
    /// Bytes of the string that are still to come.
    left: usize,
}

impl Fields {
    fn mend(&mut self, byte: &mut u8) {
        match self.part {
            Part::Field => self.field(*byte),
            Part::NameLength => {
                let Some(length) = self.length(*byte) else { return };
                self.is_authority = !self.is_huffman && length == NAME.len();
                self.part = if length == 0 { Part::ValueLength } else { Part::Name };
            }
            Part::Name => {
                let at = NAME.len().checked_sub(self.left);
                self.is_authority &= at.and_then(|at| NAME.get(at)) == Some(byte);
                self.string_goes_on(Part::ValueLength);
            }
            Part::ValueLength => {
                let Some(length) = self.length(*byte) else { return };
                self.part = if length == 0 { Part::Field } else { Part::Value };
            }
            Part::Value => {
                let is_fine = byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
                if self.is_authority && !self.is_huffman && !is_fine {
                    *byte = b'-';
                }
                self.string_goes_on(Part::Field);
            }
        }
    }

    /// How a field is represented (RFC 7541 section 6).
    fn field(&mut self, byte: u8) {
        if self.number.is_none() {
            (self.prefix, self.is_literal) = match byte.leading_zeros() {
                0 => (7, false),
                1 => (6, true),
                2 => (5, false),
                _ => (4, true),
            };
        }
        let Some(index) = self.number(byte, self.prefix) else { return };
        self.is_authority = index == INDEX;
        self.part = match index {
            _ if !self.is_literal => Part::Field,
            0 => Part::NameLength,
            _ => Part::ValueLength,
        };
    }

    fn length(&mut self, byte: u8) -> Option<usize> {
        if self.number.is_none() {
            self.is_huffman = byte & 0x80 != 0;
        }
        self.left = self.number(byte, 7)?;
        Some(self.left)
    }

    fn string_goes_on(&mut self, then: Part) {
        self.left -= 1;
        if self.left == 0 {
            self.part = then;
        }
    }

    /// RFC 7541 section 5.1. One that is too large is refused by who reads it.
    fn number(&mut self, byte: u8, prefix: u32) -> Option<usize> {
        let Some((value, shift)) = self.number.take() else {
            let all = (1 << prefix) - 1;
            let value = usize::from(byte) & all;
            self.number = (value == all).then_some((value, 0));
            return (value < all).then_some(value);
        };
        let more = usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(usize::MAX);
        let value = value.saturating_add(more);
        self.number = (byte & 0x80 != 0).then_some((value, shift.saturating_add(7)));
        self.number.is_none().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn mended(bytes: &[u8], cut: usize) -> Vec<u8> {
        let (mut authorities, mut bytes) = (Authorities::default(), bytes.to_vec());
        bytes.chunks_mut(cut).for_each(|chunk| authorities.mend(chunk));
        bytes
    }

    /// One block in frames, in every way.
    fn framed(block: &[u8]) -> [Vec<u8>; 4] {
        let padded = [&[3, 1, 1, 1, 1, 1], block, b"A\x01/"].concat();
        let (first, second) = block.split_at(block.len() / 2);
        [
            frame(HEADERS, 4, block),
            [frame(HEADERS, 4, block), frame(0, 0, b"A\x01/"), frame(HEADERS, 5, block)].concat(),
            frame(HEADERS, 4 | PADDED | PRIORITY, &padded),
            [frame(HEADERS, 0, first), frame(CONTINUATION, 4, second)].concat(),
        ]
    }

    /// Field blocks as gRPC's C core, Java's Netty and others write them.
    #[test]
    fn a_path_becomes_an_authority_of_the_same_length() {
        let long = |byte| [&b"\x01\x7f\x09"[..], &[byte; 136], b"\x00\x01x\x01/"].concat();
        let (long, long_mended) = (long(b'/'), long(b'-'));
        for (block, expected) in [
            (
                &b"@\x05:path\x02/a@\n:authority\x0ftmp%2Fd%2Fd.soc\x83\x86\x00\x01x\x03a/b"[..],
                &b"@\x05:path\x02/a@\n:authority\x0ftmp-2Fd-2Fd.soc\x83\x86\x00\x01x\x03a/b"[..],
            ),
            (b"\x83A\x0d/run/d_d.sock\x86", b"\x83A\x0d-run-d-d.sock\x86"),
            (&long, &long_mended),
        ] {
            for (sent, expected) in framed(block).into_iter().zip(framed(expected)) {
                let (sent, expected) = ([START, &sent].concat(), [START, &expected].concat());
                for cut in (1..20).chain([sent.len()]) {
                    assert_eq!(mended(&sent, cut), expected, "in pieces of {cut}");
                }
            }
        }
    }

    #[test]
    fn what_is_an_authority_and_every_other_field_stays() {
        for block in [
            &b"\x83\x86A\tlocalhost@\x05:path\x04/a/b"[..],
            b"@\n:authoritx\x01/",
            b"A\x81\x2f",
            b"\x3f\x80\x01\x81\xff\x00\x50\x01/",
        ] {
            let sent = [START, &frame(HEADERS, 4, block)].concat();
            assert_eq!(mended(&sent, 7), sent);
        }
    }

    proptest! {
        #[test]
        fn nonsense_is_survived_however_it_is_cut(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            flags in any::<u8>(),
            cut in 1usize..50,
        ) {
            let sent = [START, &frame(HEADERS, flags, &bytes), &bytes].concat();
            prop_assert_eq!(mended(&sent, cut), mended(&sent, sent.len()));
        }
    }
}
