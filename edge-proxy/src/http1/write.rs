//! Heads, with the framing that fits the other side.
//!
//! Whatever a head says of framing and connection is left out: what is written
//! follows from the body and from who reads it.

use http::{Method, StatusCode, Version};
use mesh_core::message::{Fields, Known, KnownSet, RequestHead, ResponseHead};

use super::{Body, body::Encoder, parse::Asked};

/// Written by this module, if at all.
const OURS: KnownSet = KnownSet::of(&[
    Known::Connection,
    Known::ContentLength,
    Known::Host,
    Known::KeepAlive,
    Known::ProxyConnection,
    Known::TransferEncoding,
]);

/// What a response is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// What was asked.
    pub asked: Asked,
    /// The client's version.
    pub version: Version,
    /// Whether the connection shall stay open.
    pub keep_alive: bool,
}

/// Appends a request's head. `Upgrade` and `TE` among its fields are offered
/// on this connection (RFC 9110 sections 7.8, 10.1.4).
///
/// A body that ends with the connection cannot be sent: it is sent in chunks.
pub fn request(head: &RequestHead, body: Body, out: &mut Vec<u8>) -> Encoder {
    let target = match head.target.as_str() {
        "" if head.method == Method::CONNECT => &head.authority,
        "" => "/",
        target => target,
    };
    for part in [head.method.as_str(), " ", target, " HTTP/1.1\r\nHost: ", &head.authority, "\r\n"]
    {
        out.extend_from_slice(part.as_bytes());
    }
    head.fields.write_without(OURS, out);
    put_connection(&head.fields, None, out);
    let encoder = match body {
        Body::None if is_without_body(&head.method) => Encoder::Done,
        // RFC 9110 section 8.6: nobody shall wait for one.
        Body::None => Encoder::Length(0),
        Body::Length(length) => Encoder::Length(length),
        Body::Chunked | Body::Close => Encoder::Chunked,
        Body::Tunnel => Encoder::Tunnel,
    };
    put_framing(encoder, out);
    out.extend_from_slice(b"\r\n");
    encoder
}

/// Methods whose requests have no body unless they say so.
fn is_without_body(method: &Method) -> bool {
    ![Method::POST, Method::PUT, Method::PATCH].contains(method)
}

/// Appends a final response's head, and says whether the connection stays
/// open.
pub fn response(
    head: &ResponseHead,
    body: Body,
    reader: Reader,
    out: &mut Vec<u8>,
) -> (Encoder, bool) {
    let (encoder, keep_alive) = response_framing(head.status, body, reader);
    put_status(head.status, out);
    // RFC 9110 section 8.6: what a GET would have had; never in a 204.
    let told = encoder == Encoder::Done && head.status != StatusCode::NO_CONTENT;
    let ours = if told { OURS.without(KnownSet::of(&[Known::ContentLength])) } else { OURS };
    head.fields.write_without(ours, out);
    let connection = match (keep_alive, reader.version) {
        _ if encoder == Encoder::Tunnel => None,
        (false, _) => Some("close"),
        (true, Version::HTTP_10) => Some("keep-alive"),
        (true, _) => None,
    };
    put_connection(&head.fields, connection, out);
    put_framing(encoder, out);
    out.extend_from_slice(b"\r\n");
    (encoder, keep_alive)
}

/// RFC 9112 section 6.3, from the other end.
fn response_framing(status: StatusCode, body: Body, reader: Reader) -> (Encoder, bool) {
    let Reader { asked, version, keep_alive } = reader;
    let tunnel = (asked.connect && status.is_success())
        || (asked.upgrade && status == StatusCode::SWITCHING_PROTOCOLS);
    if tunnel {
        return (Encoder::Tunnel, false);
    }
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if asked.head || bodiless {
        return (Encoder::Done, keep_alive);
    }
    match body {
        Body::None | Body::Tunnel => (Encoder::Length(0), keep_alive),
        Body::Length(length) => (Encoder::Length(length), keep_alive),
        // RFC 9112 section 6.1: HTTP/1.0 does not know chunks.
        Body::Chunked | Body::Close if version == Version::HTTP_10 => (Encoder::Close, false),
        // In chunks a client sees whether the body is whole.
        Body::Chunked | Body::Close => (Encoder::Chunked, keep_alive),
    }
}

/// Appends an informational response (RFC 9110 section 15.2); not for clients
/// of HTTP/1.0, and not 101.
pub fn informational(head: &ResponseHead, out: &mut Vec<u8>) {
    put_status(head.status, out);
    head.fields.write_without(OURS, out);
    out.extend_from_slice(b"\r\n");
}

/// The status line (RFC 9112 section 4), with the reason that everybody gives.
fn put_status(status: StatusCode, out: &mut Vec<u8>) {
    let reason = status.canonical_reason().unwrap_or_default();
    for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// `Connection`, if it has anything to say.
fn put_connection(fields: &Fields, option: Option<&'static str>, out: &mut Vec<u8>) {
    let upgrade = fields.has(Known::Upgrade).then_some("upgrade");
    let te = fields.has(Known::Te).then_some("te");
    let mut before = "Connection: ";
    for option in [option, upgrade, te].into_iter().flatten() {
        out.extend_from_slice(before.as_bytes());
        out.extend_from_slice(option.as_bytes());
        before = ", ";
    }
    if before == ", " {
        out.extend_from_slice(b"\r\n");
    }
}

fn put_framing(encoder: Encoder, out: &mut Vec<u8>) {
    match encoder {
        Encoder::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            put_decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Encoder::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Encoder::Close | Encoder::Tunnel | Encoder::Done => {}
    }
}

/// Without the machinery of `fmt`.
fn put_decimal(number: u64, out: &mut Vec<u8>) {
    // 20 digits hold any 64 bits.
    let (mut digits, mut at, mut rest) = ([0; 20], 20, number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests;
