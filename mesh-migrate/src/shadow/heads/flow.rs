//! One flow.

use super::{
    Body, Head, Limits, Seen, Segment,
    body::Chunks,
    parse::{Framing, begins_request, head},
};

/// What lies further back or ahead than this is of another connection whose SYN was
/// missed, in bytes: more than a receive window is in common use.
const WINDOW: u32 = 16 << 20;

/// What is known of a flow.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The sequence number that comes next, once one is known.
    next: Option<u32>,
    /// That of the first byte, where SYN was seen.
    first: Option<u32>,
    reading: Reading,
    is_over: bool,
}

#[derive(Debug, Default)]
enum Reading {
    /// Bytes are missing: nothing can be read until a segment begins with a request.
    #[default]
    Lost,
    /// A head, or what comes before it.
    Head(Partial),
    /// So many bytes of a body that is not kept.
    Skip(u64),
    /// A body that is kept, and how many bytes of it are to come.
    Keep(Box<Head>, Vec<u8>, usize),
    /// A chunked body.
    Chunked(Chunks),
    /// No HTTP/1.
    GivenUp,
}

/// A head that is not complete.
#[derive(Debug, Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Where its last line begins.
    line: usize,
}

/// What the bytes of a flow turn out to be.
enum Kind {
    Tls,
    Http2,
    Other,
}

impl Stream {
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Bytes that wait for more.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        match &self.reading {
            Reading::Head(partial) => partial.bytes.len(),
            Reading::Keep(_, body, _) => body.len(),
            Reading::Lost | Reading::Skip(_) | Reading::Chunked(_) | Reading::GivenUp => 0,
        }
    }

    pub(super) fn take(
        &mut self,
        segment: &Segment<'_>,
        limits: &Limits,
        seen: &mut Seen,
        found: &mut Vec<Head>,
    ) {
        let mut sequence = segment.sequence;
        if segment.syn {
            sequence = sequence.wrapping_add(1);
            if self.first != Some(sequence) {
                let reading = Reading::Head(Partial::default());
                *self =
                    Self { next: Some(sequence), first: Some(sequence), reading, is_over: false };
            }
        }
        if !segment.payload.is_empty()
            && let Some(bytes) = self.unseen(sequence, segment.payload, seen, found)
        {
            self.read(bytes, limits, seen, found);
        }
        if segment.fin || segment.rst {
            // What comes now is sent again, or of another connection.
            self.reading = Reading::Lost;
            self.is_over = true;
        }
    }

    /// What of `payload` comes next; `None` if there is nothing to read in it.
    fn unseen<'a>(
        &mut self,
        at: u32,
        payload: &'a [u8],
        seen: &mut Seen,
        found: &mut Vec<Head>,
    ) -> Option<&'a [u8]> {
        let end = at.wrapping_add(payload.len() as u32);
        let next = self.next.unwrap_or(at);
        let behind = next.wrapping_sub(at);
        let ahead = at.wrapping_sub(next);
        let new = match behind {
            0 => payload,
            1..=WINDOW => payload.get(behind as usize..).filter(|new| !new.is_empty())?,
            _ => {
                self.gap(ahead, seen, found);
                payload
            }
        };
        self.next = Some(end);
        if matches!(self.reading, Reading::Lost) {
            if !begins_request(new) {
                self.note_kind(new, seen);
                return None;
            }
            self.reading = Reading::Head(Partial::default());
            self.is_over = false;
        }
        Some(new)
    }

    /// `ahead` bytes were missed.
    fn gap(&mut self, ahead: u32, seen: &mut Seen, found: &mut Vec<Head>) {
        match &mut self.reading {
            // They were of no interest.
            Reading::Skip(rest) if ahead <= WINDOW && u64::from(ahead) <= *rest => {
                *rest -= u64::from(ahead);
            }
            Reading::Keep(_, _, rest) if ahead <= WINDOW && ahead as usize <= *rest => {
                let rest = (*rest - ahead as usize) as u64;
                let reading = std::mem::replace(&mut self.reading, Reading::Skip(rest));
                if let Reading::Keep(mut head, ..) = reading {
                    head.body = Body::NotKept;
                    found.push(*head);
                }
            }
            Reading::GivenUp if ahead <= WINDOW => {}
            Reading::Lost => {}
            Reading::GivenUp
            | Reading::Skip(_)
            | Reading::Head(_)
            | Reading::Keep(..)
            | Reading::Chunked(_) => {
                seen.gaps += 1;
                self.reading = Reading::Lost;
            }
        }
    }

    /// A flow that was met half-way may never begin a request.
    fn note_kind(&mut self, bytes: &[u8], seen: &mut Seen) {
        if !self.is_over && bytes.len() > 4 && is_tls(bytes) {
            self.give_up(&Kind::Tls, seen);
        }
    }

    fn read(&mut self, mut bytes: &[u8], limits: &Limits, seen: &mut Seen, found: &mut Vec<Head>) {
        while !bytes.is_empty() {
            match &mut self.reading {
                Reading::Lost | Reading::GivenUp => return,
                Reading::Head(partial) => {
                    if partial.bytes.is_empty() && is_tls(bytes) {
                        return self.give_up(&Kind::Tls, seen);
                    }
                    match partial.add(&mut bytes, limits.head) {
                        Ok(None) => {}
                        Ok(Some(whole)) => self.begin(&whole, limits, seen, found),
                        Err(kind) => return self.give_up(&kind, seen),
                    }
                }
                Reading::Skip(rest) => {
                    let taken = usize::try_from(*rest).unwrap_or(usize::MAX).min(bytes.len());
                    *rest -= taken as u64;
                    bytes = &bytes[taken..];
                    if *rest == 0 {
                        self.reading = Reading::Head(Partial::default());
                    }
                }
                Reading::Keep(head, body, rest) => {
                    let (taken, left) = bytes.split_at((*rest).min(bytes.len()));
                    body.extend_from_slice(taken);
                    *rest -= taken.len();
                    bytes = left;
                    if *rest == 0 {
                        head.body = Body::Whole(std::mem::take(body));
                        if let Reading::Keep(head, ..) = std::mem::take(&mut self.reading) {
                            found.push(*head);
                        }
                        self.reading = Reading::Head(Partial::default());
                    }
                }
                Reading::Chunked(chunks) => match chunks.skip(&mut bytes, limits.head) {
                    Ok(false) => {}
                    Ok(true) => self.reading = Reading::Head(Partial::default()),
                    Err(()) => return self.give_up(&Kind::Other, seen),
                },
            }
        }
    }

    /// A head is complete.
    fn begin(&mut self, whole: &[u8], limits: &Limits, seen: &mut Seen, found: &mut Vec<Head>) {
        let Some((mut head, framing)) = head(whole) else {
            let is_http2 = whole.starts_with(b"PRI * HTTP/2.0\r\n");
            return self.give_up(if is_http2 { &Kind::Http2 } else { &Kind::Other }, seen);
        };
        if head.method == "CONNECT" {
            seen.tunnels += 1;
            self.reading = Reading::GivenUp;
            return found.push(head);
        }
        self.reading = match framing {
            Framing::Length(0) => Reading::Head(Partial::default()),
            Framing::Length(length) => match usize::try_from(length) {
                Ok(length) if length <= limits.body => {
                    // Room comes with the bytes: a length alone may be a lie.
                    self.reading = Reading::Keep(Box::new(head), Vec::new(), length);
                    return;
                }
                _ => {
                    head.body = Body::NotKept;
                    Reading::Skip(length)
                }
            },
            Framing::Chunked => {
                head.body = Body::NotKept;
                Reading::Chunked(Chunks::default())
            }
        };
        found.push(head);
    }

    fn give_up(&mut self, kind: &Kind, seen: &mut Seen) {
        let (count, reading) = match kind {
            Kind::Tls => (&mut seen.tls, Reading::GivenUp),
            Kind::Http2 => (&mut seen.http2, Reading::GivenUp),
            // It may be one request that is malformed.
            Kind::Other => (&mut seen.other, Reading::Lost),
        };
        *count += 1;
        self.reading = reading;
    }
}

impl Partial {
    /// Takes what belongs to the head off `rest`; the head, once it is complete.
    fn add(&mut self, rest: &mut &[u8], most: usize) -> Result<Option<Vec<u8>>, Kind> {
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').map(|end| end + 1);
            let (taken, left) = rest.split_at(end.unwrap_or(rest.len()));
            if self.bytes.len() + taken.len() > most {
                return Err(Kind::Other);
            }
            self.bytes.extend_from_slice(taken);
            *rest = left;
            if self.bytes.first().is_some_and(|first| !first.is_ascii_graphic() && !is_end(*first))
            {
                return Err(Kind::Other);
            }
            if end.is_none() {
                break;
            }
            let is_blank = self.bytes[self.line..].iter().all(|byte| is_end(*byte));
            // Blank lines before a request are passed over (RFC 9112, 2.2).
            if is_blank && self.line == 0 {
                self.bytes.clear();
            } else if is_blank {
                return Ok(Some(std::mem::take(&mut self.bytes)));
            }
            self.line = self.bytes.len();
        }
        Ok(None)
    }
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// A record of TLS (RFC 8446, 5.1), as far as there are bytes to tell.
fn is_tls(bytes: &[u8]) -> bool {
    let is_like = |at: usize, known: std::ops::RangeInclusive<u8>| {
        bytes.get(at).is_none_or(|byte| known.contains(byte))
    };
    // A record has at most 2^14 + 256 bytes.
    !bytes.is_empty() && is_like(0, 0x14..=0x17) && is_like(1, 3..=3) && is_like(3, 0..=0x41)
}
