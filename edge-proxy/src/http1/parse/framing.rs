//! The fields that say how long a body is and what becomes of the connection.

use http::{Method, StatusCode, Version};
use mesh_core::message::{
    Known,
    fields::is_name,
    hop::{MAX_CONNECTION_NAMES, elements, lists},
};

use super::{Asked, Request, Response};
use crate::http1::{BadMessage, Body};

/// What the fields seen so far say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Framing {
    length: Option<u64>,
    encoding: Option<Encoding>,
    close: bool,
    keep_alive: bool,
    connection_upgrade: bool,
    upgrade: bool,
    expect_continue: bool,
    connection_names: usize,
}

/// A `Transfer-Encoding`, all its fields together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    /// Exactly this.
    Chunked,
    /// Others before it, or alone.
    Unknown,
}

impl Framing {
    /// Takes note of a field.
    pub(super) fn note(&mut self, known: Known, value: &[u8]) -> Result<(), BadMessage> {
        match known {
            // RFC 9112 section 6.3, rule 5; equal values too: the next reader
            // may not have seen that they are.
            Known::ContentLength => match self.length.replace(length(value)?) {
                None => {}
                Some(_) => return Err(BadMessage::LengthRepeated),
            },
            Known::TransferEncoding => self.encoding = Some(self.encoding(value)?),
            Known::Connection => self.connection(value)?,
            Known::Upgrade => self.upgrade = true,
            Known::Expect => self.expect_continue |= lists(value, "100-continue"),
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112 section 6.1: `chunked` once, and last. Anything but names and
    /// commas (`chunked;a=b`, `"chunked"`, empty elements) reads as chunked to
    /// some and not to others.
    fn encoding(&self, value: &[u8]) -> Result<Encoding, BadMessage> {
        let mut encoding = self.encoding;
        for name in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            encoding = match encoding {
                _ if !is_name(name) => return Err(BadMessage::EncodingInvalid),
                // Whatever follows, chunked is not last or not once.
                Some(Encoding::Chunked) => return Err(BadMessage::EncodingInvalid),
                None if name.eq_ignore_ascii_case(b"chunked") => Some(Encoding::Chunked),
                None | Some(Encoding::Unknown) => Some(Encoding::Unknown),
            };
        }
        encoding.ok_or(BadMessage::EncodingInvalid)
    }

    /// RFC 9110 section 7.6.1.
    fn connection(&mut self, value: &[u8]) -> Result<(), BadMessage> {
        for name in elements(value) {
            self.close |= name.eq_ignore_ascii_case(b"close");
            self.keep_alive |= name.eq_ignore_ascii_case(b"keep-alive");
            self.connection_upgrade |= name.eq_ignore_ascii_case(b"upgrade");
            self.connection_names += 1;
        }
        if self.connection_names > MAX_CONNECTION_NAMES {
            return Err(BadMessage::ConnectionNames);
        }
        Ok(())
    }

    /// What a request's fields say together (RFC 9112 section 6.3).
    pub(super) fn of_request(
        self,
        head_len: usize,
        version: Version,
        method: &Method,
    ) -> Result<Request, BadMessage> {
        self.check(version)?;
        let body = match (self.encoding, self.length) {
            (Some(_), _) => Body::Chunked,
            (None, Some(length)) => Body::Length(length),
            (None, None) => Body::None,
        };
        // RFC 9110 section 9.3.6: what it would mean is not defined.
        if *method == Method::CONNECT && !body.is_empty() {
            return Err(BadMessage::ConnectBody);
        }
        let new = version == Version::HTTP_11;
        Ok(Request {
            head_len,
            version,
            body,
            keep_alive: self.is_kept(version),
            // RFC 9110 sections 10.1.1, 7.8: not from HTTP/1.0.
            expect_continue: self.expect_continue && new && !body.is_empty(),
            upgrade: self.upgrade && self.connection_upgrade && new && body.is_empty(),
        })
    }

    /// What a response's fields say together (RFC 9112 section 6.3).
    pub(super) fn of_response(
        self,
        head_len: usize,
        version: Version,
        status: StatusCode,
        asked: Asked,
    ) -> Result<Response, BadMessage> {
        let mut keep_alive = self.is_kept(version);
        let body = if asked.connect && status.is_success() {
            // Rule 2: whatever the fields say, which need not make sense.
            Body::Tunnel
        } else if status == StatusCode::SWITCHING_PROTOCOLS {
            if !asked.upgrade {
                return Err(BadMessage::UnaskedUpgrade);
            }
            Body::Tunnel
        } else {
            self.check(version)?;
            if asked.head || status.is_informational() || is_bodiless(status) {
                // An application that sends a body nevertheless would be
                // understood to send the next response.
                keep_alive &= status != StatusCode::NO_CONTENT
                    || (self.encoding.is_none() && self.length.unwrap_or(0) == 0);
                Body::None
            } else {
                match (self.encoding, self.length) {
                    (Some(_), _) => Body::Chunked,
                    (None, Some(length)) => Body::Length(length),
                    (None, None) => Body::Close,
                }
            }
        };
        keep_alive &= !matches!(body, Body::Close | Body::Tunnel);
        Ok(Response { head_len, version, body, keep_alive })
    }

    /// What no message may say.
    fn check(self, version: Version) -> Result<(), BadMessage> {
        let Some(encoding) = self.encoding else { return Ok(()) };
        // RFC 9112 section 6.1, in the order of what it threatens.
        if self.length.is_some() {
            Err(BadMessage::LengthAndEncoding)
        } else if version == Version::HTTP_10 {
            Err(BadMessage::EncodingTooNew)
        } else if encoding == Encoding::Unknown {
            Err(BadMessage::EncodingUnknown)
        } else {
            Ok(())
        }
    }

    /// RFC 9112 section 9.3.
    fn is_kept(self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }
}

fn is_bodiless(status: StatusCode) -> bool {
    matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// `1*DIGIT` (RFC 9110 section 8.6); no sign, no white space, no list, and no
/// more than 64 bits hold.
pub fn length(value: &[u8]) -> Result<u64, BadMessage> {
    if value.is_empty() {
        return Err(BadMessage::LengthInvalid);
    }
    let digit = |number: u64, &byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    value.iter().try_fold(0, digit).ok_or(if value.contains(&b',') {
        BadMessage::LengthRepeated
    } else {
        BadMessage::LengthInvalid
    })
}
