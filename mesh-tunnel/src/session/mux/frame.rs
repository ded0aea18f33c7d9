//! Frames: 1 byte of kind, 3 of length, 4 of stream, big endian, then the
//! payload.

/// Bytes before each payload.
pub(super) const HEADER: usize = 8;
/// The longest payload of `Data`; a frame fits one TLS record with others.
pub(super) const MAX_DATA: usize = 16 * 1024;
/// The longest reason in `Close`.
pub(super) const MAX_REASON: usize = 256;

const DATA: u8 = 0;
const WINDOW: u8 = 1;
const FIN: u8 = 2;
const RESET: u8 = 3;
const STOP: u8 = 4;
const CLOSE: u8 = 5;

/// What a peer must not do; the text is the reason for the end of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("protocol violation: {0}")]
pub(super) struct Violation(pub(super) &'static str);

/// One frame, or a part of the payload of `Data`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// Bytes of a stream. The first ones open it.
    Data(u32, &'a [u8]),
    /// The receiver has room for so many more bytes.
    Window(u32, u32),
    /// The sender's last byte has been sent.
    Fin(u32),
    /// The sender gives up what it has not delivered.
    Reset(u32),
    /// The receiver wants no more bytes.
    Stop(u32),
    /// The session ends, and why.
    Close(&'a [u8]),
}

impl Frame<'_> {
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let (kind, stream, payload): (u8, u32, &[u8]) = match self {
            Frame::Data(stream, payload) => (DATA, *stream, payload),
            Frame::Window(stream, more) => (WINDOW, *stream, &more.to_be_bytes()),
            Frame::Fin(stream) => (FIN, *stream, &[]),
            Frame::Reset(stream) => (RESET, *stream, &[]),
            Frame::Stop(stream) => (STOP, *stream, &[]),
            Frame::Close(why) => (CLOSE, 0, &why[..why.len().min(MAX_REASON)]),
        };
        header(kind, stream, payload.len(), to);
        to.extend_from_slice(payload);
    }
}

/// Begins a `Data` whose payload follows, for which there is room.
pub(super) fn data_header(stream: u32, length: usize, to: &mut Vec<u8>) {
    header(DATA, stream, length, to);
}

fn header(kind: u8, stream: u32, length: usize, to: &mut Vec<u8>) {
    to.reserve(HEADER + length);
    let length = u32::try_from(length).expect("no payload is longer than MAX_DATA");
    to.extend_from_slice(&(u32::from(kind) << 24 | length).to_be_bytes());
    to.extend_from_slice(&stream.to_be_bytes());
}

/// Finds frames in pieces of any size. Holds at most a header and the payload
/// of a small frame.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The header and, of small frames, the payload as far as they have come.
    partial: Vec<u8>,
    /// Bytes of the `Data` under way that are still to come, and its stream.
    data: Option<(u32, usize)>,
}

impl Decoder {
    /// Hands every frame that `bytes` complete to `sink`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut sink: impl FnMut(Frame<'_>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        while !bytes.is_empty() {
            if let Some((stream, left)) = self.data {
                let (now, rest) = bytes.split_at(left.min(bytes.len()));
                self.data = (now.len() < left).then(|| (stream, left - now.len()));
                bytes = rest;
                sink(Frame::Data(stream, now))?;
                continue;
            }
            bytes = self.take(bytes, HEADER);
            let Some(header) = self.header()? else { return Ok(()) };
            if header.kind == DATA {
                self.data = Some((header.stream, header.length));
                self.partial.clear();
                continue;
            }
            bytes = self.take(bytes, HEADER + header.length);
            if self.partial.len() == HEADER + header.length {
                let frame = small(&header, &self.partial[HEADER..])?;
                sink(frame)?;
                self.partial.clear();
            }
        }
        Ok(())
    }

    /// Moves bytes to `partial` until it holds `wanted`.
    fn take<'a>(&mut self, bytes: &'a [u8], wanted: usize) -> &'a [u8] {
        let missing = wanted.saturating_sub(self.partial.len()).min(bytes.len());
        let (now, rest) = bytes.split_at(missing);
        self.partial.extend_from_slice(now);
        rest
    }

    fn header(&self) -> Result<Option<Header>, Violation> {
        let Some((header, _)) = self.partial.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, a, b, c, stream @ ..] = *header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let allowed = match kind {
            DATA => (1..=MAX_DATA).contains(&length),
            WINDOW => length == 4,
            FIN | RESET | STOP => length == 0,
            CLOSE => length <= MAX_REASON,
            _ => return Err(Violation("a frame of unknown kind")),
        };
        if !allowed {
            return Err(Violation("a frame of impossible length"));
        }
        Ok(Some(Header { kind, length, stream: u32::from_be_bytes(stream) }))
    }
}

struct Header {
    kind: u8,
    length: usize,
    stream: u32,
}

fn small<'a>(header: &Header, payload: &'a [u8]) -> Result<Frame<'a>, Violation> {
    let stream = header.stream;
    Ok(match (header.kind, payload) {
        (WINDOW, &[a, b, c, d]) => Frame::Window(stream, u32::from_be_bytes([a, b, c, d])),
        (FIN, _) => Frame::Fin(stream),
        (RESET, _) => Frame::Reset(stream),
        (STOP, _) => Frame::Stop(stream),
        (CLOSE, why) => Frame::Close(why),
        _ => return Err(Violation("a frame of impossible length")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame that owns its payload.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Owned {
        Data(u32, Vec<u8>),
        Window(u32, u32),
        Fin(u32),
        Reset(u32),
        Stop(u32),
        Close(Vec<u8>),
    }

    fn borrowed(frame: &Owned) -> Frame<'_> {
        match frame {
            Owned::Data(stream, payload) => Frame::Data(*stream, payload),
            Owned::Window(stream, more) => Frame::Window(*stream, *more),
            Owned::Fin(stream) => Frame::Fin(*stream),
            Owned::Reset(stream) => Frame::Reset(*stream),
            Owned::Stop(stream) => Frame::Stop(*stream),
            Owned::Close(why) => Frame::Close(why),
        }
    }

    /// Joins the parts of one `Data` again.
    fn collect(into: &mut Vec<Owned>, whole: &mut usize, frame: &Frame<'_>) {
        match (into.last_mut(), frame) {
            (Some(Owned::Data(_, payload)), Frame::Data(_, more)) if *whole > payload.len() => {
                payload.extend_from_slice(more);
            }
            _ => into.push(match frame {
                Frame::Data(stream, payload) => Owned::Data(*stream, payload.to_vec()),
                Frame::Window(stream, more) => Owned::Window(*stream, *more),
                Frame::Fin(stream) => Owned::Fin(*stream),
                Frame::Reset(stream) => Owned::Reset(*stream),
                Frame::Stop(stream) => Owned::Stop(*stream),
                Frame::Close(why) => Owned::Close(why.to_vec()),
            }),
        }
    }

    fn frame() -> impl Strategy<Value = Owned> {
        let payload = proptest::collection::vec(any::<u8>(), 1..400);
        prop_oneof![
            (any::<u32>(), payload).prop_map(|(stream, payload)| Owned::Data(stream, payload)),
            (any::<u32>(), any::<u32>()).prop_map(|(stream, more)| Owned::Window(stream, more)),
            any::<u32>().prop_map(Owned::Fin),
            any::<u32>().prop_map(Owned::Reset),
            any::<u32>().prop_map(Owned::Stop),
            proptest::collection::vec(any::<u8>(), 0..MAX_REASON).prop_map(Owned::Close),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in proptest::collection::vec(frame(), 0..20),
            cuts in proptest::collection::vec(1..50usize, 1..100),
        ) {
            let mut cuts = cuts.into_iter().cycle();
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for frame in &frames {
                let mut bytes = Vec::new();
                borrowed(frame).encode(&mut bytes);
                let mut whole = if let Owned::Data(_, payload) = frame { payload.len() } else { 0 };
                let mut of_one = Vec::new();
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                    decoder
                        .feed(now, |frame| {
                            collect(&mut of_one, &mut whole, &frame);
                            Ok(())
                        })
                        .unwrap();
                    rest = later;
                }
                got.extend(of_one);
            }
            prop_assert_eq!(got, frames);
        }

        #[test]
        fn bytes_of_strangers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::default();
            let _ = decoder.feed(&bytes, |_| Ok(()));
            assert!(decoder.partial.len() <= HEADER + MAX_REASON);
        }
    }

    #[test]
    fn impossible_headers_are_violations() {
        let cases: [&[u8]; 6] = [
            &[DATA, 0, 0, 0, 0, 0, 0, 1],    // empty
            &[DATA, 0, 0x40, 1, 0, 0, 0, 1], // one byte too long
            &[WINDOW, 0, 0, 3, 0, 0, 0, 1],  // short
            &[FIN, 0, 0, 1, 0, 0, 0, 1],     // with payload
            &[CLOSE, 0, 1, 1, 0, 0, 0, 0],   // too long
            &[6, 0, 0, 0, 0, 0, 0, 1],       // unknown
        ];
        for case in cases {
            assert!(Decoder::default().feed(case, |_| Ok(())).is_err(), "{case:?}");
        }
    }
}
