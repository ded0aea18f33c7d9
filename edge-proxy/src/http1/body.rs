//! Bodies, to and from their framing (RFC 9112 sections 6 and 7).

use std::ops::Range;

use mesh_core::message::{Fields, KnownSet, hop};

use super::{BadMessage, Body, parse};

/// Bytes of a trailer section.
const MAX_TRAILERS: usize = 16 << 10;
/// Bytes of all chunk extensions of one body that has yet to bring data for
/// them; each byte of data allows one more.
const MAX_EXTENSIONS: u64 = 4 << 10;
/// Digits of a chunk's size: 64 bits.
const MAX_DIGITS: u8 = 16;

/// What the bytes at the front of a buffer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// These are data, and what is before them is none; the decoder has
    /// passed them.
    Data(Range<usize>),
    /// All are passed, and none are data: more are needed.
    More,
    /// So many are passed, and the body is over.
    End(usize),
}

/// Finds the data in a body's bytes.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Data bytes still allowed for extensions.
    extensions: u64,
    /// Bytes of the trailer section so far, then what it says.
    section: Vec<u8>,
    trailers: Option<Fields>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of data to come.
    Length(u64),
    /// Data until the connection ends.
    Close,
    /// Before or within the digits of a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    /// White space after the digits.
    Blank {
        size: u64,
    },
    /// An extension, which means nothing here.
    Extension {
        size: u64,
    },
    /// CR of the size's line has been seen.
    SizeEnd {
        size: u64,
    },
    /// Within a chunk's data.
    Data {
        left: u64,
    },
    /// CR LF after a chunk's data.
    DataCr,
    DataLf,
    /// After the last chunk.
    Trailers,
    /// Over.
    Done,
}

impl Decoder {
    /// A decoder of what follows the head.
    pub fn new(body: Body) -> Self {
        let state = match body {
            Body::None | Body::Tunnel | Body::Length(0) => State::Done,
            Body::Length(length) => State::Length(length),
            Body::Chunked => State::Size { size: 0, digits: 0 },
            Body::Close => State::Close,
        };
        Self { state, extensions: MAX_EXTENSIONS, section: Vec::new(), trailers: None }
    }

    /// Whether the body is over.
    pub fn is_end(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of data to come, if the head has said so.
    pub fn length(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Bytes of data that are sure to come next.
    pub fn expected(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data { left } => left,
            State::Close => u64::MAX,
            _ => 0,
        }
    }

    /// What the connection's end means.
    pub fn eof(&mut self) -> Result<(), BadMessage> {
        if matches!(self.state, State::Close | State::Done) {
            self.state = State::Done;
            return Ok(());
        }
        Err(BadMessage::Truncated)
    }

    /// Whether there are trailers to be taken.
    pub fn has_trailers(&self) -> bool {
        self.trailers.is_some()
    }

    /// The trailers, once; `None` without any.
    pub fn take_trailers(&mut self) -> Option<Fields> {
        self.trailers.take()
    }

    /// Looks at the bytes that follow those passed so far.
    ///
    /// # Errors
    ///
    /// The connection cannot be used any further.
    pub fn decode(&mut self, buf: &[u8]) -> Result<Step, BadMessage> {
        let mut at = 0;
        while at < buf.len() {
            match self.state {
                State::Done => return Ok(Step::End(at)),
                State::Close => return Ok(Step::Data(at..buf.len())),
                State::Length(left) => {
                    let (data, left) = take(at, buf.len(), left);
                    self.state = if left == 0 { State::Done } else { State::Length(left) };
                    return Ok(Step::Data(data));
                }
                State::Data { left } => {
                    let (data, left) = take(at, buf.len(), left);
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    self.extensions = self.extensions.saturating_add(data.len() as u64);
                    return Ok(Step::Data(data));
                }
                State::Trailers => match self.trailer(&buf[at..])? {
                    Some(length) => at += length,
                    None => return Ok(Step::More),
                },
                state => {
                    self.state = self.framing(state, buf[at])?;
                    at += 1;
                }
            }
        }
        Ok(if self.is_end() { Step::End(at) } else { Step::More })
    }

    /// One byte between the data of two chunks (section 7.1).
    fn framing(&mut self, state: State, byte: u8) -> Result<State, BadMessage> {
        Ok(match (state, byte) {
            (State::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(BadMessage::Chunk);
                }
                let digit = char::from(byte).to_digit(16).map_or(0, u64::from);
                State::Size { size: size << 4 | digit, digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(BadMessage::Chunk),
            (State::Size { size, .. } | State::Blank { size }, b' ' | b'\t') => {
                // Old servers pad sizes; it changes nothing.
                self.spend_extension()?;
                State::Blank { size }
            }
            (State::Size { size, .. } | State::Blank { size }, b';') => State::Extension { size },
            (
                State::Size { size, .. } | State::Blank { size } | State::Extension { size },
                b'\r',
            ) => State::SizeEnd { size },
            // A LF within would be the line's end to some.
            (State::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.spend_extension()?;
                State::Extension { size }
            }
            (State::SizeEnd { size: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            _ => return Err(BadMessage::Chunk),
        })
    }

    fn spend_extension(&mut self) -> Result<(), BadMessage> {
        self.extensions = self.extensions.checked_sub(1).ok_or(BadMessage::ChunkExtensions)?;
        Ok(())
    }

    /// Collects the trailer section (section 7.1.2); how much of `buf` was its
    /// rest.
    fn trailer(&mut self, buf: &[u8]) -> Result<Option<usize>, BadMessage> {
        if self.section.is_empty() && buf.starts_with(b"\r\n") {
            self.state = State::Done;
            return Ok(Some(2));
        }
        for (index, &byte) in buf.iter().enumerate() {
            if self.section.len() == MAX_TRAILERS {
                return Err(BadMessage::TrailersTooLarge);
            }
            if byte == b'\n' && self.section.last() != Some(&b'\r') {
                return Err(BadMessage::LineEnd);
            }
            self.section.push(byte);
            if byte == b'\n' && (self.section.ends_with(b"\r\n\r\n") || self.section == b"\r\n") {
                self.read_trailers()?;
                self.state = State::Done;
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    fn read_trailers(&mut self) -> Result<(), BadMessage> {
        let section = std::mem::take(&mut self.section);
        let mut fields = Fields::new();
        if parse::trailers(&section, &mut fields)? != Some(section.len()) {
            return Err(BadMessage::LineEnd);
        }
        hop::remove_from_trailers(&mut fields);
        self.trailers = (!fields.is_empty()).then_some(fields);
        Ok(())
    }
}

/// The data of `at..end` where `left` bytes of data are to come, and what is
/// to come after it.
fn take(at: usize, end: usize, left: u64) -> (Range<usize>, u64) {
    let length = usize::try_from(left).unwrap_or(usize::MAX).min(end - at);
    (at..at + length, left - length as u64)
}

/// A body that is not what its head has announced. Nothing can be sent after
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// More bytes than its `Content-Length`, or any where there is no body.
    #[error("the body is longer than announced")]
    TooLong,
    /// Fewer.
    #[error("the body is shorter than announced")]
    TooShort,
}

/// Puts data into its framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoder {
    /// So many bytes to come.
    Length(u64),
    /// Chunks.
    Chunked,
    /// As it is, until the connection is closed.
    Close,
    /// As it is: not a body.
    Tunnel,
    /// Over.
    Done,
}

impl Encoder {
    /// Whether all has been sent.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Length(0))
    }

    /// Appends `data` with its framing; nothing if it is empty.
    pub fn put(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), Mismatch> {
        if data.is_empty() {
            return Ok(());
        }
        self.begin(data.len(), out)?;
        out.extend_from_slice(data);
        out.extend_from_slice(self.after());
        Ok(())
    }

    /// Appends what is before `length` bytes of data, at least one, which are
    /// sent next, and then [`Encoder::after`].
    pub fn begin(&mut self, length: usize, out: &mut Vec<u8>) -> Result<(), Mismatch> {
        match self {
            Self::Length(left) => {
                *left = left.checked_sub(length as u64).ok_or(Mismatch::TooLong)?;
            }
            Self::Chunked => put_size(length, out),
            Self::Close | Self::Tunnel => {}
            Self::Done => return Err(Mismatch::TooLong),
        }
        Ok(())
    }

    /// What is after the data.
    pub fn after(self) -> &'static [u8] {
        if self == Self::Chunked { b"\r\n" } else { b"" }
    }

    /// Appends what ends the body. Trailers are sent where there is a place
    /// for them: in chunks.
    pub fn finish(&mut self, trailers: Option<&Fields>, out: &mut Vec<u8>) -> Result<(), Mismatch> {
        match *self {
            Self::Length(1..) => return Err(Mismatch::TooShort),
            Self::Chunked => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    trailers.write_without(KnownSet::EMPTY, out);
                }
                out.extend_from_slice(b"\r\n");
            }
            Self::Length(0) | Self::Close | Self::Tunnel | Self::Done => {}
        }
        *self = Self::Done;
        Ok(())
    }
}

/// `chunk-size CRLF`, in as few digits as it takes.
fn put_size(length: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - length.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        let nibble = (length >> (4 * digit)) & 0xf;
        out.push(b"0123456789abcdef"[nibble]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
