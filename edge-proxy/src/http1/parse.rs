//! Heads of requests and responses, and how long their bodies are.
//!
//! `httparse` finds lines and fields. What it lets pass and RFC 9112 does not
//! is refused here: each rule names its section.

use std::mem::MaybeUninit;

use http::{Method, StatusCode, Version};
use httparse::{Error, Header, Status};
use mesh_core::message::{Fields, RequestHead, ResponseHead};

use super::{BadMessage, Body, Limits};
use framing::Framing;

mod framing;
mod target;

pub use framing::length;

/// More fields than this are refused whatever the limit says.
pub const MAX_FIELDS: usize = 128;

/// What a request's head says of the connection and the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Bytes up to the body, empty lines before the head included.
    pub head_len: usize,
    /// 1.0 or 1.1.
    pub version: Version,
    /// How the body ends.
    pub body: Body,
    /// Whether the client will send another request (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// Whether it waits for a 100 (RFC 9110 section 10.1.1).
    pub expect_continue: bool,
    /// Whether it offers another protocol (RFC 9110 section 7.8). An offer
    /// that comes with a body is none: it may be ignored, and an application
    /// that would not read the body first would see it as the new protocol.
    pub upgrade: bool,
}

/// What a response's head says of the connection and the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// Bytes up to the body.
    pub head_len: usize,
    /// 1.0 or 1.1.
    pub version: Version,
    /// How the body ends.
    pub body: Body,
    /// Whether the connection can take another request.
    pub keep_alive: bool,
}

/// What of a request decides how its response is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// HEAD: fields as if, but no body.
    pub head: bool,
    /// CONNECT: a 2xx makes a tunnel.
    pub connect: bool,
    /// An upgrade was offered: a 101 makes a tunnel.
    pub upgrade: bool,
}

impl Asked {
    /// A request by this method; `upgrade`: with an offer to switch.
    pub fn new(method: &Method, upgrade: bool) -> Self {
        Self { head: *method == Method::HEAD, connect: *method == Method::CONNECT, upgrade }
    }
}

/// Reads a request's head from the front of `buf` into `head`, whose content
/// is lost in any case. `None`: more bytes are needed.
///
/// # Errors
///
/// The connection cannot be used any further: where the next request would
/// begin is not known.
pub fn request(
    buf: &[u8],
    limits: &Limits,
    head: &mut RequestHead,
) -> Result<Option<Request>, BadMessage> {
    head.clear();
    let Some(start) = skip_empty_lines(buf)? else { return partial(buf, limits) };
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let space = &mut space[..limits.fields.min(MAX_FIELDS)];
    let mut parsed = httparse::Request::new(&mut []);
    let outcome = parsed.parse_with_uninit_headers(&buf[start..], space);
    if parsed.path.is_some_and(|target| target.len() > limits.target) {
        return Err(BadMessage::TargetTooLong);
    }
    let head_len = match outcome {
        Ok(Status::Complete(length)) => start + length,
        Ok(Status::Partial) => return partial(buf, limits),
        Err(error) => return Err(request_error(error, &buf[start..], parsed.path)),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version)
    else {
        return Err(BadMessage::RequestLine);
    };
    within(head_len, buf, limits)?;
    // The version and its space follow the target.
    expect_line_end(buf, offset(buf, target.as_bytes()) + target.len() + " HTTP/1.1".len())?;
    head.method = Method::from_bytes(method.as_bytes()).map_err(|_| BadMessage::RequestLine)?;
    let mut framing = Framing::default();
    let mut host = None;
    read_fields(&buf[..head_len], parsed.headers, &mut head.fields, &mut framing, Some(&mut host))?;
    expect_line_end(buf, head_len - 2)?;
    let version = version(minor);
    target::read(target, host, version, head)?;
    framing.of_request(head_len, version, &head.method).map(Some)
}

/// Reads a response's head from the front of `buf` into `head`, whose content
/// is lost in any case. `None`: more bytes are needed.
///
/// # Errors
///
/// The connection cannot be used any further, and its application is at fault.
pub fn response(
    buf: &[u8],
    limits: &Limits,
    asked: Asked,
    head: &mut ResponseHead,
) -> Result<Option<Response>, BadMessage> {
    head.clear();
    if matches!(buf.first(), Some(b'\r' | b'\n')) {
        return Err(BadMessage::StatusLine);
    }
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let space = &mut space[..limits.fields.min(MAX_FIELDS)];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let head_len = match config.parse_response_with_uninit_headers(&mut parsed, buf, space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return partial(buf, limits),
        Err(error) => return Err(response_error(error)),
    };
    let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
        return Err(BadMessage::StatusLine);
    };
    within(head_len, buf, limits)?;
    // The reason phrase is not told where it has bytes beyond ASCII.
    let line = buf.iter().position(|&byte| byte == b'\n').unwrap_or(head_len);
    expect_line_end(buf, line.saturating_sub(1))?;
    head.status = StatusCode::from_u16(code).map_err(|_| BadMessage::StatusLine)?;
    let mut framing = Framing::default();
    read_fields(&buf[..head_len], parsed.headers, &mut head.fields, &mut framing, None)?;
    expect_line_end(buf, head_len - 2)?;
    framing.of_response(head_len, version(minor), head.status, asked).map(Some)
}

/// Reads a trailer section that ends with an empty line into `fields`.
/// `None`: more bytes are needed.
pub fn trailers(buf: &[u8], fields: &mut Fields) -> Result<Option<usize>, BadMessage> {
    let mut space = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let (length, headers) = match httparse::parse_headers(buf, &mut space) {
        Ok(Status::Complete(complete)) => complete,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(field_error(error)),
    };
    read_fields(&buf[..length], headers, fields, &mut Framing::default(), None)?;
    expect_line_end(buf, length - 2)?;
    Ok(Some(length))
}

/// Empty lines before a request line are ignored (RFC 9112 section 2.2).
/// `None`: nothing else has come yet.
fn skip_empty_lines(buf: &[u8]) -> Result<Option<usize>, BadMessage> {
    let mut start = 0;
    while buf[start..].starts_with(b"\r\n") {
        start += 2;
    }
    match &buf[start..] {
        [] | b"\r" => Ok(None),
        [b'\r' | b'\n', ..] => Err(BadMessage::LineEnd),
        _ => Ok(Some(start)),
    }
}

fn partial<T>(buf: &[u8], limits: &Limits) -> Result<Option<T>, BadMessage> {
    if buf.len() < limits.head {
        return Ok(None);
    }
    Err(too_large(buf, limits))
}

fn within(head_len: usize, buf: &[u8], limits: &Limits) -> Result<(), BadMessage> {
    if head_len <= limits.head { Ok(()) } else { Err(too_large(buf, limits)) }
}

fn too_large(buf: &[u8], limits: &Limits) -> BadMessage {
    let buf = &buf[..buf.len().min(limits.head)];
    let has_first_line = buf.trim_ascii_start().contains(&b'\n');
    if has_first_line { BadMessage::HeadTooLarge } else { BadMessage::TargetTooLong }
}

fn version(minor: u8) -> Version {
    if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// Where `part` begins in `buf`, of which it is a part.
fn offset(buf: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).wrapping_sub(buf.as_ptr() as usize)
}

/// `httparse` takes LF alone for a line's end (RFC 9112 section 2.2 lets us,
/// but others do not see a line there); a CR it has seen is followed by LF.
fn expect_line_end(buf: &[u8], at: usize) -> Result<(), BadMessage> {
    if buf.get(at) == Some(&b'\r') { Ok(()) } else { Err(BadMessage::LineEnd) }
}

/// Copies fields, `Host` aside if the message is a request: all at once, then
/// those again that are not written as we write them.
fn read_fields<'b>(
    head: &'b [u8],
    headers: &[Header<'b>],
    fields: &mut Fields,
    framing: &mut Framing,
    mut host: Option<&mut Option<&'b [u8]>>,
) -> Result<(), BadMessage> {
    let Some(first) = headers.first() else { return Ok(()) };
    let section = &head[offset(head, first.name.as_bytes())..];
    let copied = fields.copy_section(section);
    for Header { name, value } in headers {
        let name_at = offset(section, name.as_bytes());
        let value_at = offset(section, value);
        let mut end = value_at + value.len();
        let plain = value_at == name_at + name.len() + ": ".len()
            && section.get(value_at - 1) == Some(&b' ')
            && section.get(end) == Some(&b'\r');
        while matches!(section.get(end), Some(b' ' | b'\t')) {
            end += 1;
        }
        expect_line_end(section, end)?;
        if let Some(host) = host.as_deref_mut()
            && name.eq_ignore_ascii_case("host")
        {
            // RFC 9112 section 3.2.
            if host.replace(value).is_some() {
                return Err(BadMessage::HostRepeated);
            }
            continue;
        }
        let known = if plain {
            fields.push_copied(copied, name_at, name.len(), value.len())
        } else {
            fields.push(name, value)
        };
        if let Some(known) = known {
            framing.note(known, value)?;
        }
    }
    Ok(())
}

fn request_error(error: Error, buf: &[u8], target: Option<&str>) -> BadMessage {
    match error {
        Error::Version => {
            let version =
                target.map_or(0, |target| offset(buf, target.as_bytes()) + target.len() + 1);
            let is_version = match buf.get(version..) {
                Some([b'H', b'T', b'T', b'P', b'/', major, ..]) => major.is_ascii_digit(),
                _ => false,
            };
            if is_version { BadMessage::Version } else { BadMessage::RequestLine }
        }
        Error::Token | Error::Status => BadMessage::RequestLine,
        Error::NewLine if target.is_none() => BadMessage::RequestLine,
        error => field_error(error),
    }
}

fn response_error(error: Error) -> BadMessage {
    match error {
        Error::Version => BadMessage::Version,
        Error::Token | Error::Status => BadMessage::StatusLine,
        error => field_error(error),
    }
}

fn field_error(error: Error) -> BadMessage {
    match error {
        Error::HeaderName => BadMessage::FieldName,
        Error::HeaderValue => BadMessage::FieldValue,
        Error::TooManyHeaders => BadMessage::TooManyFields,
        Error::NewLine | Error::Status | Error::Token | Error::Version => BadMessage::LineEnd,
    }
}

#[cfg(test)]
mod tests;
