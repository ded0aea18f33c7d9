//! Frames: 3 bytes of length, 1 of kind, 1 of flags, 4 of stream, big endian,
//! then the payload. `docs/inner-session.md` has the whole table.

use std::borrow::Cow;

use bytes::{Buf, Bytes, BytesMut};

use super::{MAX_HEAD, ResetCode};

/// Bytes before each payload.
pub const HEADER: usize = 9;
/// The longest payload of `Data`.
pub const MAX_DATA: usize = 64 << 10;
/// The longest reason in `Reset` and `GoAway`.
pub const MAX_REASON: usize = 256;
/// The longest `Hello` and the longest `Target`.
pub const MAX_MESSAGE: usize = 4 << 10;

/// Nothing of the sender follows on this stream.
pub const END: u8 = 1;
/// On `Head`: another one follows (1xx).
pub const INFORMATIONAL: u8 = 2;

/// Kinds from here on may be skipped by those who do not know them.
const SKIPPABLE: u8 = 0x80;

/// What a peer must not do; the text is the reason for the end of the session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: {0}")]
pub struct Violation(pub Cow<'static, str>);

impl Violation {
    pub(super) const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

/// Closed set of kinds, with the numbers of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Target = 2,
    Open = 3,
    Head = 4,
    Data = 5,
    Trailers = 6,
    Reset = 7,
    Window = 8,
    Ping = 9,
    Pong = 10,
    GoAway = 11,
    /// The first that peers may not know.
    Proof = SKIPPABLE,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hello,
        Self::Target,
        Self::Open,
        Self::Head,
        Self::Data,
        Self::Trailers,
        Self::Reset,
        Self::Window,
        Self::Ping,
        Self::Pong,
        Self::GoAway,
    ];

    fn from_wire(byte: u8) -> Option<Self> {
        if byte == SKIPPABLE {
            return Some(Self::Proof);
        }
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// Shortest and longest payload.
    fn lengths(self) -> (usize, usize) {
        match self {
            Self::Hello | Self::Proof => (0, MAX_MESSAGE),
            Self::Target => (2, 2 + MAX_MESSAGE),
            Self::Open => (2, 2 + MAX_HEAD),
            Self::Head | Self::Trailers => (0, MAX_HEAD),
            Self::Data => (0, MAX_DATA),
            Self::Reset => (1, 1 + MAX_REASON),
            Self::Window => (4, 4),
            Self::Ping | Self::Pong => (8, 8),
            Self::GoAway => (5, 5 + MAX_REASON),
        }
    }

    fn flags(self) -> u8 {
        match self {
            Self::Open | Self::Data => END,
            Self::Head => END | INFORMATIONAL,
            _ => 0,
        }
    }

    /// Whether it is about the session, not about one stream.
    fn is_of_session(self) -> bool {
        use Kind::{GoAway, Hello, Ping, Pong, Proof, Target};
        matches!(self, Hello | Target | Ping | Pong | GoAway | Proof)
    }
}

/// One frame, or a part of the payload of `Data`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The first of each side: `InnerHello`.
    Hello(Bytes),
    /// What a target id means from here on: `InnerTarget`.
    Target(u16, Bytes),
    /// A stream begins.
    Open { stream: u32, target: u16, head: Bytes, end: bool },
    /// An answer's head.
    Head { stream: u32, head: Bytes, informational: bool, end: bool },
    /// Bytes of a stream.
    Data { stream: u32, data: Bytes, end: bool },
    /// What follows the bytes; ends the direction.
    Trailers { stream: u32, block: Bytes },
    /// Both directions are given up.
    Reset { stream: u32, code: ResetCode, reason: Bytes },
    /// The receiver has room for so many more bytes.
    Window { stream: u32, more: u32 },
    /// Asks for a `Pong` with the same number.
    Ping(u64),
    /// Answers a `Ping`.
    Pong(u64),
    /// No stream above `last` was or will be looked at. With a `code` other
    /// than [`GOING`] the session ends here.
    GoAway { last: u32, code: u8, reason: Bytes },
    /// A renewed certificate: `Proof`.
    Proof(Bytes),
}

/// `GoAway`: streams up to the last one go on.
pub(super) const GOING: u8 = 0;
/// `GoAway`: the session ends; nobody is to blame.
pub(super) const CLOSING: u8 = 1;
/// `GoAway`: the session ends, because the peer broke a rule.
pub(super) const VIOLATED: u8 = 2;

/// Appends a frame.
pub(super) fn encode(to: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, payload: &[&[u8]]) {
    let length = payload.iter().map(|part| part.len()).sum();
    to.reserve(HEADER + length);
    to.extend_from_slice(&header(kind, flags, stream, length));
    payload.iter().for_each(|part| to.extend_from_slice(part));
}

fn header(kind: Kind, flags: u8, stream: u32, length: usize) -> [u8; HEADER] {
    let [.., a, b, c] = length.to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [a, b, c, kind as u8, flags, d, e, f, g]
}

/// The text as far as a frame carries it.
pub(super) fn shortened(reason: &str) -> &[u8] {
    &reason.as_bytes()[..reason.len().min(MAX_REASON)]
}

impl Frame {
    /// Appends it; the counterpart of [`Decoder::next`].
    pub fn encode(&self, to: &mut Vec<u8>) {
        let end = |end: bool| u8::from(end) * END;
        match self {
            Self::Hello(message) => encode(to, Kind::Hello, 0, 0, &[message]),
            Self::Target(id, message) => {
                encode(to, Kind::Target, 0, 0, &[&id.to_be_bytes(), message]);
            }
            Self::Open { stream, target, head, end: last } => {
                encode(to, Kind::Open, end(*last), *stream, &[&target.to_be_bytes(), head]);
            }
            Self::Head { stream, head, informational, end: last } => {
                let flags = end(*last) | (u8::from(*informational) * INFORMATIONAL);
                encode(to, Kind::Head, flags, *stream, &[head]);
            }
            Self::Data { stream, data, end: last } => {
                encode(to, Kind::Data, end(*last), *stream, &[data]);
            }
            Self::Trailers { stream, block } => encode(to, Kind::Trailers, 0, *stream, &[block]),
            Self::Reset { stream, code, reason } => {
                encode(to, Kind::Reset, 0, *stream, &[&[*code as u8], reason]);
            }
            Self::Window { stream, more } => {
                encode(to, Kind::Window, 0, *stream, &[&more.to_be_bytes()]);
            }
            Self::Ping(token) => encode(to, Kind::Ping, 0, 0, &[&token.to_be_bytes()]),
            Self::Pong(token) => encode(to, Kind::Pong, 0, 0, &[&token.to_be_bytes()]),
            Self::GoAway { last, code, reason } => {
                encode(to, Kind::GoAway, 0, 0, &[&last.to_be_bytes(), &[*code], reason]);
            }
            Self::Proof(message) => encode(to, Kind::Proof, 0, 0, &[message]),
        }
    }
}

/// What a look at the read buffer finds.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A frame; its payload shares the buffer's memory.
    Frame(Frame),
    /// Nothing before so many bytes have come.
    Missing(usize),
}

/// Finds frames at the beginning of a buffer that is read into. `Data` is not
/// waited for: what has come of it is handed out at once.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Of the payload under way, what is still to come.
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone, Copy)]
enum UnderWay {
    Data { stream: u32, left: usize, end: bool },
    Skipped { left: usize },
}

struct Header {
    kind: Kind,
    flags: u8,
    stream: u32,
    length: usize,
}

impl Decoder {
    /// The next frame at the beginning of `buf`, which is removed from it.
    ///
    /// # Errors
    ///
    /// What it holds is not a frame; the session has to end.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Step, Violation> {
        loop {
            if let Some(under_way) = self.under_way {
                match self.go_on(under_way, buf) {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            let Some(bytes) = buf.first_chunk::<HEADER>() else {
                return Ok(Step::Missing(HEADER - buf.len()));
            };
            let Some(header) = read_header(bytes)? else {
                let left = length_of(bytes);
                buf.advance(HEADER);
                self.under_way = Some(UnderWay::Skipped { left });
                continue;
            };
            if header.kind == Kind::Data {
                buf.advance(HEADER);
                let Header { stream, length: left, .. } = header;
                let end = header.flags & END != 0;
                self.under_way = Some(UnderWay::Data { stream, left, end });
                continue;
            }
            let whole = HEADER + header.length;
            if buf.len() < whole {
                return Ok(Step::Missing(whole - buf.len()));
            }
            buf.advance(HEADER);
            return read_payload(&header, buf).map(Step::Frame);
        }
    }

    /// Goes on with a payload whose header has passed; `None` when it was
    /// skipped to its end.
    fn go_on(&mut self, under_way: UnderWay, buf: &mut BytesMut) -> Option<Step> {
        match under_way {
            UnderWay::Data { stream, left, end } => {
                let now = left.min(buf.len());
                if now == 0 && left > 0 {
                    return Some(Step::Missing(1));
                }
                let left = left - now;
                self.under_way = (left > 0).then_some(UnderWay::Data { stream, left, end });
                let data = buf.split_to(now).freeze();
                Some(Step::Frame(Frame::Data { stream, data, end: end && left == 0 }))
            }
            UnderWay::Skipped { left } => {
                let now = left.min(buf.len());
                buf.advance(now);
                let left = left - now;
                self.under_way = (left > 0).then_some(UnderWay::Skipped { left });
                (left > 0).then_some(Step::Missing(1))
            }
        }
    }

    /// Whether a frame has begun and not ended, given what is left unread.
    pub(super) fn is_between_frames(&self, unread: usize) -> bool {
        self.under_way.is_none() && unread == 0
    }
}

fn length_of(header: &[u8; HEADER]) -> usize {
    usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2])
}

/// `None`: to be skipped.
fn read_header(bytes: &[u8; HEADER]) -> Result<Option<Header>, Violation> {
    let length = length_of(bytes);
    let [_, _, _, kind, flags, stream @ ..] = *bytes;
    let Some(kind) = Kind::from_wire(kind) else {
        if kind < SKIPPABLE {
            return Err(Violation::new("a frame of unknown kind"));
        }
        return Ok(None);
    };
    let (shortest, longest) = kind.lengths();
    if length < shortest || length > longest {
        return Err(Violation::new("a frame of impossible length"));
    }
    if flags & !kind.flags() != 0 || flags == (END | INFORMATIONAL) {
        return Err(Violation::new("a frame with impossible flags"));
    }
    let stream = u32::from_be_bytes(stream);
    if kind.is_of_session() != (stream == 0) {
        return Err(Violation::new("a frame on the wrong stream"));
    }
    Ok(Some(Header { kind, flags, stream, length }))
}

/// `buf` holds all of the payload.
fn read_payload(header: &Header, buf: &mut BytesMut) -> Result<Frame, Violation> {
    let (stream, length) = (header.stream, header.length);
    let end = header.flags & END != 0;
    let rest = |used: usize, buf: &mut BytesMut| buf.split_to(length - used).freeze();
    Ok(match header.kind {
        Kind::Hello => Frame::Hello(rest(0, buf)),
        Kind::Target => Frame::Target(buf.get_u16(), rest(2, buf)),
        Kind::Open => {
            let target = buf.get_u16();
            Frame::Open { stream, target, head: rest(2, buf), end }
        }
        Kind::Head => {
            let informational = header.flags & INFORMATIONAL != 0;
            Frame::Head { stream, head: rest(0, buf), informational, end }
        }
        Kind::Data => Frame::Data { stream, data: rest(0, buf), end },
        Kind::Trailers => Frame::Trailers { stream, block: rest(0, buf) },
        Kind::Reset => {
            let code = ResetCode::from_wire(buf.get_u8());
            Frame::Reset { stream, code, reason: rest(1, buf) }
        }
        Kind::Window => Frame::Window { stream, more: buf.get_u32() },
        Kind::Proof => Frame::Proof(rest(0, buf)),
        Kind::Ping => Frame::Ping(buf.get_u64()),
        Kind::Pong => Frame::Pong(buf.get_u64()),
        Kind::GoAway => {
            let (last, code) = (buf.get_u32(), buf.get_u8());
            Frame::GoAway { last, code, reason: rest(5, buf) }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(longest: usize) -> impl Strategy<Value = Bytes> {
        let short = proptest::collection::vec(any::<u8>(), 0..20);
        let long = (0..=longest).prop_map(|length| vec![length.to_be_bytes()[7]; length]);
        prop_oneof![3 => short, 1 => long].prop_map(Bytes::from)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        let stream = || 1..=u32::MAX;
        let end = any::<bool>;
        let code = (0..5u8).prop_map(ResetCode::from_wire);
        prop_oneof![
            payload(MAX_MESSAGE).prop_map(Frame::Hello),
            (any::<u16>(), payload(MAX_MESSAGE)).prop_map(|(id, m)| Frame::Target(id, m)),
            (stream(), any::<u16>(), payload(MAX_HEAD), end())
                .prop_map(|(stream, target, head, end)| Frame::Open { stream, target, head, end }),
            (stream(), payload(MAX_HEAD), 0..3u8).prop_map(|(stream, head, kind)| {
                Frame::Head { stream, head, informational: kind == 1, end: kind == 2 }
            }),
            (stream(), payload(MAX_DATA), end()).prop_map(|(stream, data, end)| Frame::Data {
                stream,
                data,
                end
            }),
            (stream(), payload(MAX_HEAD))
                .prop_map(|(stream, block)| Frame::Trailers { stream, block }),
            (stream(), code, payload(MAX_REASON)).prop_map(|(stream, code, reason)| Frame::Reset {
                stream,
                code,
                reason
            }),
            (stream(), any::<u32>()).prop_map(|(stream, more)| Frame::Window { stream, more }),
            any::<u64>().prop_map(Frame::Ping),
            any::<u64>().prop_map(Frame::Pong),
            (any::<u32>(), any::<u8>(), payload(MAX_REASON))
                .prop_map(|(last, code, reason)| Frame::GoAway { last, code, reason }),
            payload(MAX_MESSAGE).prop_map(Frame::Proof),
        ]
    }

    /// Puts the parts of one `Data` together again.
    fn collect(got: &mut Vec<Frame>, parts: &mut Option<BytesMut>, frame: Frame, whole: usize) {
        let Frame::Data { stream, data, end } = frame else { return got.push(frame) };
        let joined = parts.get_or_insert_default();
        joined.extend_from_slice(&data);
        if joined.len() == whole {
            let data = parts.take().unwrap_or_default().freeze();
            got.push(Frame::Data { stream, data, end });
        } else {
            assert!(!end, "an end before the last part");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn frames_survive_any_cutting(
            frames in proptest::collection::vec(frame(), 0..12),
            cuts in proptest::collection::vec(prop_oneof![1..12usize, 1..20_000usize], 1..50),
        ) {
            let mut cuts = cuts.into_iter().cycle();
            let (mut decoder, mut buf) = (Decoder::default(), BytesMut::new());
            let mut got = Vec::new();
            for frame in &frames {
                let mut bytes = Vec::new();
                frame.encode(&mut bytes);
                let whole = bytes.len() - HEADER;
                let mut parts = None;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                    buf.extend_from_slice(now);
                    rest = later;
                    while let Step::Frame(frame) = decoder.next(&mut buf).unwrap() {
                        collect(&mut got, &mut parts, frame, whole);
                    }
                }
                prop_assert!(decoder.is_between_frames(buf.len()));
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn strange_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let mut buf = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::default();
            while let Ok(Step::Frame(_)) = decoder.next(&mut buf) {}
        }
    }

    #[test]
    fn impossible_headers_are_violations() {
        let cases: [(&[u8; HEADER], &str); 13] = [
            (&[0, 0, 0, 0, 0, 0, 0, 0, 1], "kind"),
            (&[0, 0, 0, 12, 0, 0, 0, 0, 1], "kind"),
            (&[0, 0, 0, 0x7f, 0, 0, 0, 0, 1], "kind"),
            (&[0, 0, 1, Kind::Open as u8, 0, 0, 0, 0, 1], "length"),
            (&[1, 0, 3, Kind::Open as u8, 0, 0, 0, 0, 1], "length"),
            (&[1, 0, 1, Kind::Data as u8, 0, 0, 0, 0, 1], "length"),
            (&[0, 0, 5, Kind::Window as u8, 0, 0, 0, 0, 1], "length"),
            (&[0, 1, 2, Kind::Reset as u8, 0, 0, 0, 0, 1], "length"),
            (&[0, 0, 0, Kind::Trailers as u8, END, 0, 0, 0, 1], "flags"),
            (&[0, 0, 0, Kind::Head as u8, 3, 0, 0, 0, 1], "flags"),
            (&[0, 0, 8, Kind::Ping as u8, 0, 0, 0, 0, 1], "stream"),
            (&[0, 16, 1, Kind::Proof as u8, 0, 0, 0, 0, 0], "length"),
            (&[0, 0, 8, Kind::Proof as u8, 0, 0, 0, 0, 1], "stream"),
        ];
        for (header, named) in cases {
            let mut buf = BytesMut::from(&header[..]);
            let error = Decoder::default().next(&mut buf).unwrap_err().to_string();
            assert!(error.contains(named), "{named}: {error}");
        }
        let mut buf = BytesMut::from(&[0, 0, 0, Kind::Data as u8, 0, 0, 0, 0, 0][..]);
        assert!(Decoder::default().next(&mut buf).is_err(), "data of no stream");
    }

    #[test]
    fn texts_are_shortened() {
        assert_eq!(shortened("why"), b"why");
        assert_eq!(shortened(&"x".repeat(1000)).len(), MAX_REASON);
    }
}
