//! Heads between two proxies, as bytes.
//!
//! A request is `flags u8` (bit 0: https), then method, authority and target,
//! each with its length before it, then fields; a response is `status u16`
//! (big-endian), then fields; trailers are fields. Fields are their count, the
//! lengths of each one's name and value, and the block in which [`Fields`]
//! keeps them: `name: value\r\n` of each. Counts and lengths are LEB128, at
//! most 28 bits.
//!
//! The other proxy may be hostile: what is read has the same form as what our
//! own parser lets through.

use http::{Method, StatusCode};

use super::{
    Fields, RequestHead, ResponseHead, Scheme,
    convert::{is_authority, is_target},
    fields::InvalidField,
};

const HTTPS: u8 = 1;
/// Longest LEB128 number, in bytes: 28 bits.
const MAX_NUMBER: usize = 4;

/// Bytes that are no head; the other proxy is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// Too short, or longer than what it says.
    #[error("a head has another length than it says")]
    Length,
    /// A bit that has no meaning.
    #[error("a head has unknown flags")]
    Flags,
    /// Not a token.
    #[error("a head's method is not a token")]
    Method,
    /// Not host and port.
    #[error("a head's authority is not host and port")]
    Authority,
    /// Not origin-form, `*`, or for CONNECT empty.
    #[error("a head's target is not one")]
    Target,
    /// Not between 100 and 999.
    #[error("a head's status is not one")]
    Status,
    /// One of the fields.
    #[error("a head's fields: {0}")]
    Field(#[from] InvalidField),
}

/// Appends a request.
pub fn put_request(head: &RequestHead, out: &mut Vec<u8>) {
    out.push(if head.scheme == Scheme::Https { HTTPS } else { 0 });
    for text in [head.method.as_str(), &head.authority, &head.target] {
        put_number(text.len(), out);
        out.extend_from_slice(text.as_bytes());
    }
    put_fields(&head.fields, out);
}

/// Reads a request into `head`, whose content is lost in any case.
pub fn get_request(code: &[u8], head: &mut RequestHead) -> Result<(), BadCode> {
    head.clear();
    let mut code = Code(code);
    head.scheme = match code.take(1)?[0] {
        0 => Scheme::Http,
        HTTPS => Scheme::Https,
        _ => return Err(BadCode::Flags),
    };
    let method = code.take_counted()?;
    head.method = Method::from_bytes(method).map_err(|_| BadCode::Method)?;
    let authority = code.take_counted()?;
    if !authority.is_empty() && !is_authority(authority) {
        return Err(BadCode::Authority);
    }
    head.authority.push_str(text(authority, BadCode::Authority)?);
    let target = code.take_counted()?;
    let none = target.is_empty() && head.method == Method::CONNECT;
    if !none && !is_target(target) {
        return Err(BadCode::Target);
    }
    head.target.push_str(text(target, BadCode::Target)?);
    get_fields(code.0, &mut head.fields)
}

fn text(bytes: &[u8], error: BadCode) -> Result<&str, BadCode> {
    std::str::from_utf8(bytes).map_err(|_| error)
}

/// Appends a response.
pub fn put_response(head: &ResponseHead, out: &mut Vec<u8>) {
    out.extend_from_slice(&head.status.as_u16().to_be_bytes());
    put_fields(&head.fields, out);
}

/// Reads a response into `head`, whose content is lost in any case.
pub fn get_response(code: &[u8], head: &mut ResponseHead) -> Result<(), BadCode> {
    head.clear();
    let mut code = Code(code);
    let status = code.take(2)?;
    let status = u16::from_be_bytes([status[0], status[1]]);
    head.status = StatusCode::from_u16(status).map_err(|_| BadCode::Status)?;
    get_fields(code.0, &mut head.fields)
}

/// Appends fields, for trailers.
pub fn put_fields(fields: &Fields, out: &mut Vec<u8>) {
    put_number(fields.len(), out);
    for (name, value) in fields.lengths() {
        put_number(name, out);
        put_number(value, out);
    }
    fields.write_without(super::KnownSet::EMPTY, out);
}

/// Reads fields into `fields`, whose content is lost in any case.
pub fn get_fields(code: &[u8], fields: &mut Fields) -> Result<(), BadCode> {
    fields.clear();
    let mut code = Code(code);
    let count = code.number()?;
    let lengths = code.0;
    for _ in 0..count {
        code.number()?;
        code.number()?;
    }
    let mut lengths = Code(lengths);
    let whole = fields.read_block(code.0, || {
        let (name, value) = (lengths.number().ok()?, lengths.number().ok()?);
        (lengths.0.len() >= code.0.len()).then_some((name, value))
    })?;
    if whole { Ok(()) } else { Err(BadCode::Length) }
}

fn put_number(number: usize, out: &mut Vec<u8>) {
    let mut rest = number;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// What has not been read yet.
struct Code<'a>(&'a [u8]);

impl<'a> Code<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadCode> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BadCode::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, BadCode> {
        let mut number = 0;
        for (index, &byte) in self.0.iter().take(MAX_NUMBER).enumerate() {
            number |= usize::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(number);
            }
        }
        Err(BadCode::Length)
    }

    fn take_counted(&mut self) -> Result<&'a [u8], BadCode> {
        let count = self.number()?;
        self.take(count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> RequestHead {
        let mut head = RequestHead {
            method: Method::from_bytes(b"M-SEARCH").unwrap(),
            scheme: Scheme::Https,
            authority: "orders.shop:80".into(),
            target: "/a?b".into(),
            fields: Fields::new(),
            ..RequestHead::new()
        };
        head.fields.push("Content-Length", b"5");
        head.fields.push("x-empty", b"");
        head.fields.push("x-long", &[b'v'; 300]);
        head
    }

    fn coded(head: &RequestHead) -> Vec<u8> {
        let mut out = Vec::new();
        put_request(head, &mut out);
        out
    }

    #[test]
    fn numbers_are_leb128() {
        let cases: [(usize, &[u8]); 8] = [
            (0, b"\x00"),
            (0x7f, b"\x7f"),
            (0x80, b"\x80\x01"),
            (0xff, b"\xff\x01"),
            (0x3fff, b"\xff\x7f"),
            (0x4000, b"\x80\x80\x01"),
            (0x8000, b"\x80\x80\x02"),
            (0x0fff_ffff, b"\xff\xff\xff\x7f"),
        ];
        for (number, code) in cases {
            let mut out = Vec::new();
            put_number(number, &mut out);
            assert_eq!(out, code, "{number:#x}");
            let mut code = Code(&out);
            assert_eq!(code.number(), Ok(number));
            assert!(code.0.is_empty());
        }
    }

    #[test]
    fn a_request_survives() {
        let mut again = RequestHead::new();
        get_request(&coded(&request()), &mut again).unwrap();
        assert_eq!(again, request());
        assert!(again.fields.has(super::super::Known::ContentLength));
        let connect =
            RequestHead { method: Method::CONNECT, authority: "a:1".into(), ..RequestHead::new() };
        get_request(&coded(&connect), &mut again).unwrap();
        assert_eq!(again, connect);
    }

    #[test]
    fn a_response_survives_what_was_removed_does_not() {
        let mut head = ResponseHead { status: StatusCode::NOT_FOUND, fields: request().fields };
        head.fields.set("x-empty", b"set");
        head.fields.remove("x-long");
        let (mut out, mut again) = (Vec::new(), ResponseHead::new());
        put_response(&head, &mut out);
        get_response(&out, &mut again).unwrap();
        assert_eq!(again, head);
        assert_eq!(out.len(), 2 + 1 + 4 + "Content-Length: 5\r\nx-empty: set\r\n".len());
    }

    #[test]
    fn every_truncation_and_addition_is_refused() {
        let code = coded(&request());
        let mut head = RequestHead::new();
        for end in 0..code.len() {
            assert!(get_request(&code[..end], &mut head).is_err(), "{end}");
        }
        let longer = [&code[..], b"x"].concat();
        assert_eq!(get_request(&longer, &mut head), Err(BadCode::Length));
    }

    #[test]
    fn what_no_parser_lets_through_is_refused() {
        let cases: &[(&[u8], BadCode)] = &[
            (b"\x02\x03GET\x01a\x01/\x00", BadCode::Flags),
            (b"\x00\x03G T\x01a\x01/\x00", BadCode::Method),
            (b"\x00\x00\x01a\x01/\x00", BadCode::Method),
            (b"\x00\x03GET\x03a b\x01/\x00", BadCode::Authority),
            (b"\x00\x03GET\x01a\x03/ b\x00", BadCode::Target),
            (b"\x00\x03GET\x01a\x00\x00", BadCode::Target),
            (b"\x00\x03GET\x01a\x01/\x01\x02\x01a : b\r\n", BadCode::Field(InvalidField::Name)),
            (b"\x00\x03GET\x01a\x01/\x01\x00\x01: b\r\n", BadCode::Field(InvalidField::Name)),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x03a: b\r\n\r\n", BadCode::Field(InvalidField::Value)),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x02a: b\0\r\n", BadCode::Field(InvalidField::Value)),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x02a:  b\r\n", BadCode::Field(InvalidField::Value)),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x01a: b\r\nx", BadCode::Length),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x01a; b\r\n", BadCode::Length),
            (b"\x00\x03GET\x01a\x01/\x01\x01\x01a: b\n\n", BadCode::Length),
            (b"\x00\x03GET\x01a\x01/\xff\xff\xff\xff\x00", BadCode::Length),
            (b"\x00\x03GET\x01a\x01/\xff\xff\xff\x7f", BadCode::Length),
        ];
        for (code, wanted) in cases {
            let mut head = RequestHead::new();
            assert_eq!(get_request(code, &mut head), Err(*wanted), "{}", code.escape_ascii());
        }
        let status = get_response(b"\x00\x63\x00", &mut ResponseHead::new());
        assert_eq!(status, Err(BadCode::Status));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_not(code in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut head = RequestHead::new();
            if get_request(&code, &mut head).is_ok() {
                let mut again = RequestHead::new();
                get_request(&coded(&head), &mut again).unwrap();
                prop_assert_eq!(again, head);
            }
        }

        #[test]
        fn any_changed_byte_gives_a_head_or_an_error(at in 0_usize..300, byte in any::<u8>()) {
            let mut code = coded(&request());
            let at = at % code.len();
            code[at] = byte;
            let mut head = RequestHead::new();
            if get_request(&code, &mut head).is_ok() {
                for (name, value) in head.fields.iter() {
                    prop_assert!(super::super::fields::is_name(name.as_bytes()));
                    prop_assert!(super::super::fields::is_value(value));
                }
            }
        }
    }
}
