//! The head of a request (RFC 9112, 2 to 6).

use super::{Body, Head};

/// Headers of one head.
const MAX_HEADERS: usize = 256;

/// What the head of a request may begin with after bytes were missed: the methods of
/// RFC 9110, RFC 5789 and those of WebDAV (RFC 4918, RFC 3253) that are in use.
const METHODS: [&str; 19] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "PURGE",
];

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// Whether a segment with these bytes begins a request.
pub(super) fn begins_request(bytes: &[u8]) -> bool {
    let after = |method: &&str| bytes.strip_prefix(method.as_bytes());
    METHODS.iter().filter_map(after).any(|rest| rest.first() == Some(&b' '))
}

/// Of all lines up to the blank one; `None` if it is none of HTTP/1.
pub(super) fn head(bytes: &[u8]) -> Option<(Head, Framing)> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(without_end);
    let line = std::str::from_utf8(lines.next()?).ok()?;
    let (method, rest) = line.split_once(' ')?;
    let (target, version) = rest.rsplit_once(' ')?;
    let is_http10 = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    let is_target = !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method.as_bytes()) || !is_target {
        return None;
    }
    let mut headers = Vec::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        if headers.len() == MAX_HEADERS {
            return None;
        }
        headers.push(header(line)?);
    }
    let framing = framing(&headers)?;
    let (method, target) = (method.to_owned(), target.to_owned());
    Some((Head { method, target, is_http10, headers, body: Body::Empty }, framing))
}

fn header(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let name = std::str::from_utf8(name).ok().filter(|name| is_token(name.as_bytes()))?;
    Some((name.to_owned(), value.trim_ascii().to_owned()))
}

/// `None` where it is contradictory (RFC 9112, 6.3).
fn framing(headers: &[(String, Vec<u8>)]) -> Option<Framing> {
    let named = |name: &'static str| {
        let named = headers.iter().filter(move |(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice())
    };
    if let Some(codings) = named("transfer-encoding").next_back() {
        let last = codings.rsplit(|byte| *byte == b',').next()?.trim_ascii();
        return last.eq_ignore_ascii_case(b"chunked").then_some(Framing::Chunked);
    }
    let mut length = None;
    for value in named("content-length").flat_map(|value| value.split(|byte| *byte == b',')) {
        let digits = std::str::from_utf8(value.trim_ascii()).ok()?;
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let value: u64 = digits.parse().ok().filter(|_| is_number)?;
        if length.is_some_and(|known| known != value) {
            return None;
        }
        length = Some(value);
    }
    Some(Framing::Length(length.unwrap_or(0)))
}

fn without_end(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn is_token(bytes: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_tchar)
}
