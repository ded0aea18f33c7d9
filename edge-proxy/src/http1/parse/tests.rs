use mesh_core::message::{Known, KnownSet};
use proptest::prelude::*;

use super::*;

fn read(text: &[u8]) -> Result<Option<(Request, RequestHead)>, BadMessage> {
    let mut head = RequestHead::new();
    Ok(request(text, &Limits::default(), &mut head)?.map(|parsed| (parsed, head)))
}

fn good(text: &str) -> (Request, RequestHead) {
    let parsed = read(text.as_bytes());
    parsed.unwrap_or_else(|error| panic!("{text:?}: {error}")).expect("a whole head")
}

fn bad(text: &[u8], wanted: BadMessage) {
    match read(text) {
        Err(error) => assert_eq!(error, wanted, "{}", text.escape_ascii()),
        Ok(parsed) => panic!("{}: {parsed:?}", text.escape_ascii()),
    }
}

/// A request with these lines after `Host`.
fn with(lines: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

#[test]
fn a_request_is_read() {
    let text = "\r\nPOST /a?b HTTP/1.1\r\nhOST: orders.shop:80\r\nContent-Length: 5 \r\n\
                X-Empty:\r\nX-Tab:\t a\tb \t\r\nX-One:\tb\r\nx: \u{e9}\r\n\r\nhello";
    let (parsed, head) = good(text);
    assert_eq!(parsed.head_len, text.len() - 5);
    assert_eq!(parsed.body, Body::Length(5));
    assert_eq!(parsed.version, Version::HTTP_11);
    assert!(parsed.keep_alive && !parsed.expect_continue && !parsed.upgrade);
    assert_eq!((head.method.as_str(), &*head.target), ("POST", "/a?b"));
    assert_eq!(head.authority, "orders.shop:80");
    assert_eq!(head.fields.len(), 5);
    assert!(!head.fields.has(Known::Host));
    let mut out = Vec::new();
    head.fields.write_without(KnownSet::EMPTY, &mut out);
    let wanted = "Content-Length: 5\r\nX-Empty: \r\nX-Tab: a\tb\r\nX-One: b\r\nx: \u{e9}\r\n";
    assert_eq!(out, wanted.as_bytes());
    assert_eq!(head.fields.get("x-empty"), Some(&b""[..]));
    assert_eq!(head.fields.get("x-tab"), Some(&b"a\tb"[..]));
    assert_eq!(head.fields.get("x"), Some("\u{e9}".as_bytes()));
}

/// RFC 9112 section 3.2.
#[test]
fn targets_have_four_forms() {
    let cases = [
        ("GET / HTTP/1.1\r\nHost: a", "a", "/"),
        ("GET //b?c HTTP/1.1\r\nHost: a", "a", "//b?c"),
        ("GET / HTTP/1.0", "", "/"),
        ("GET / HTTP/1.0\r\nHost: a", "a", "/"),
        ("OPTIONS * HTTP/1.1\r\nHost: a:1", "a:1", "*"),
        ("GET http://A/b?c HTTP/1.1\r\nHost: a", "A", "/b?c"),
        ("GET HTTP://a:80 HTTP/1.1\r\nHost: a", "a:80", "/"),
        ("GET http://a?b HTTP/1.1\r\nHost: a:80", "a", "/?b"),
        ("GET http://a/ HTTP/1.0", "a", "/"),
        ("OPTIONS http://a HTTP/1.1\r\nHost: a", "a", "*"),
        ("OPTIONS http://a/ HTTP/1.1\r\nHost: a", "a", "/"),
        ("GET http://[::1]:8/ HTTP/1.1\r\nHost: [::1]:8", "[::1]:8", "/"),
        ("CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443", "a.b:443", ""),
        ("CONNECT a.b:443 HTTP/1.1\r\nHost: A.b", "a.b:443", ""),
        ("CONNECT [::1]:1 HTTP/1.0", "[::1]:1", ""),
    ];
    for (text, authority, target) in cases {
        let (_, head) = good(&format!("{text}\r\n\r\n"));
        assert_eq!((&*head.authority, &*head.target), (authority, target), "{text}");
    }
}

#[test]
fn other_targets_are_refused() {
    use BadMessage::{HostDiffers, HostInvalid, HostMissing, HostRepeated, RequestLine, Target};
    let cases: &[(&str, BadMessage)] = &[
        ("GET a HTTP/1.1\r\nHost: a", Target),
        ("GET a:80 HTTP/1.1\r\nHost: a", Target),
        ("GET * HTTP/1.1\r\nHost: a", Target),
        ("OPTIONS ** HTTP/1.1\r\nHost: a", Target),
        ("GET /a#b HTTP/1.1\r\nHost: a", Target),
        ("GET /\u{e9} HTTP/1.1\r\nHost: a", Target),
        ("GET ?a HTTP/1.1\r\nHost: a", Target),
        ("GET ://a/ HTTP/1.1\r\nHost: a", Target),
        ("GET https://a/ HTTP/1.1\r\nHost: a", Target),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a", Target),
        ("GET http:/a HTTP/1.1\r\nHost: a", Target),
        ("GET http:///a HTTP/1.1\r\nHost: a", Target),
        ("GET http://u@a/ HTTP/1.1\r\nHost: a", Target),
        ("GET http://a#b HTTP/1.1\r\nHost: a", Target),
        ("GET http://a/#b HTTP/1.1\r\nHost: a", Target),
        ("GET http://a\\b/ HTTP/1.1\r\nHost: a", Target),
        ("CONNECT / HTTP/1.1\r\nHost: a", Target),
        ("CONNECT * HTTP/1.1\r\nHost: a", Target),
        ("CONNECT a HTTP/1.1\r\nHost: a", Target),
        ("CONNECT a: HTTP/1.1\r\nHost: a", Target),
        ("CONNECT a:0 HTTP/1.1\r\nHost: a", Target),
        ("CONNECT a:+1 HTTP/1.1\r\nHost: a", Target),
        ("CONNECT a:65536 HTTP/1.1\r\nHost: a", Target),
        ("CONNECT :80 HTTP/1.1\r\nHost: a", Target),
        ("CONNECT http://a:80/ HTTP/1.1\r\nHost: a", Target),
        ("CONNECT u@a:80 HTTP/1.1\r\nHost: a", Target),
        ("GET / HTTP/1.1", HostMissing),
        ("GET http://a/ HTTP/1.1", HostMissing),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a", HostRepeated),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b", HostRepeated),
        ("GET / HTTP/1.1\r\nHost:", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a b", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a, b", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: u@a", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a/b", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: a:b", HostInvalid),
        ("GET / HTTP/1.0\r\nHost: http://a", HostInvalid),
        ("GET / HTTP/1.1\r\nHost: \u{e9}", HostInvalid),
        ("GET http://a/ HTTP/1.1\r\nHost: b", HostDiffers),
        ("GET http://a/ HTTP/1.1\r\nHost: a:81", HostDiffers),
        ("GET http://a:81/ HTTP/1.1\r\nHost: a", HostDiffers),
        ("CONNECT a:443 HTTP/1.1\r\nHost: b:443", HostDiffers),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:80", HostDiffers),
        ("GET  / HTTP/1.1\r\nHost: a", RequestLine),
        ("GET /  HTTP/1.1\r\nHost: a", RequestLine),
        ("GET / b HTTP/1.1\r\nHost: a", RequestLine),
        (" GET / HTTP/1.1\r\nHost: a", RequestLine),
        ("GET\t/ HTTP/1.1\r\nHost: a", RequestLine),
        ("G(T / HTTP/1.1\r\nHost: a", RequestLine),
        ("GET /\r\nHost: a", RequestLine),
        ("GET / http/1.1\r\nHost: a", RequestLine),
        ("GET / HTTP/11\r\nHost: a", BadMessage::Version),
        ("GET / HTTP/2.0\r\nHost: a", BadMessage::Version),
        ("GET / HTTP/1.2\r\nHost: a", BadMessage::Version),
        ("GET / HTTP/0.9\r\nHost: a", BadMessage::Version),
        ("GET / HTTP/1.1 \r\nHost: a", BadMessage::LineEnd),
        ("GET / HTTP/1.10\r\nHost: a", BadMessage::LineEnd),
        ("GET / XTTP/1.1\r\nHost: a", RequestLine),
    ];
    for (text, wanted) in cases {
        bad(format!("{text}\r\n\r\n").as_bytes(), *wanted);
    }
}

/// Every way that is known to make two readers see different messages: lines
/// after `Host`, and what is wrong with them.
const AMBIGUOUS: &[(&str, BadMessage)] = &[
    ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", BadMessage::LengthAndEncoding),
    ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", BadMessage::LengthAndEncoding),
    ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", BadMessage::LengthAndEncoding),
    ("Content-Length: 5\r\nTransfer-Encoding: identity\r\n", BadMessage::LengthAndEncoding),
    ("Content-Length: 5\r\nContent-Length: 6\r\n", BadMessage::LengthRepeated),
    ("Content-Length: 5\r\nContent-Length: 5\r\n", BadMessage::LengthRepeated),
    ("Content-Length: 5\r\ncontent-length: 5\r\n", BadMessage::LengthRepeated),
    ("Content-Length: 5, 5\r\n", BadMessage::LengthRepeated),
    ("Content-Length: 5,\r\n", BadMessage::LengthRepeated),
    ("Content-Length: \r\n", BadMessage::LengthInvalid),
    ("Content-Length: +5\r\n", BadMessage::LengthInvalid),
    ("Content-Length: -5\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 0x5\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 5 5\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 5.0\r\n", BadMessage::LengthInvalid),
    ("Content-Length: five\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 1_0\r\n", BadMessage::LengthInvalid),
    ("Content-Length: \u{665}\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 18446744073709551616\r\n", BadMessage::LengthInvalid),
    ("Content-Length: 99999999999999999999999\r\n", BadMessage::LengthInvalid),
    ("Transfer-Encoding: identity\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: gzip\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: gzip, chunked\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: xchunked\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: chunked-x\r\n", BadMessage::EncodingUnknown),
    ("Transfer-Encoding: chunked, chunked\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked\r\nTransfer-Encoding:\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked, gzip\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked, identity\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding:\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: ,chunked\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked,\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked;q=1\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: \"chunked\"\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chun ked\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: chunked\u{a0}\r\n", BadMessage::EncodingInvalid),
    ("Transfer-Encoding: \x0bchunked\r\n", BadMessage::FieldValue),
    ("Transfer-Encoding: chunked\x0c\r\n", BadMessage::FieldValue),
    ("Transfer-Encoding : chunked\r\n", BadMessage::FieldName),
    ("Transfer-Encoding\t: chunked\r\n", BadMessage::FieldName),
    ("Transfer-Encoding\x00: chunked\r\n", BadMessage::FieldName),
    ("Transfer-Encoding\r\n : chunked\r\n", BadMessage::FieldName),
    ("Transfer\u{ad}-Encoding: chunked\r\n", BadMessage::FieldName),
    ("Content-Length 5\r\n", BadMessage::FieldName),
    (" Content-Length: 5\r\n", BadMessage::FieldName),
    ("Transfer-Encoding:\r\n chunked\r\n", BadMessage::FieldName),
    ("X: a\r\n b\r\n", BadMessage::FieldName),
    ("X: a\r\n\tb\r\n", BadMessage::FieldName),
    (": a\r\n", BadMessage::FieldName),
    ("(a): b\r\n", BadMessage::FieldName),
    ("X: a\x00b\r\n", BadMessage::FieldValue),
    ("X: a\x7fb\r\n", BadMessage::FieldValue),
    ("X: a\rb: c\r\n", BadMessage::FieldValue),
    ("X: a\r\r\n", BadMessage::FieldValue),
    ("X: a\nContent-Length: 5\r\n", BadMessage::LineEnd),
    ("X: a \nY: b\r\n", BadMessage::LineEnd),
    ("X:\nY: b\r\n", BadMessage::LineEnd),
    ("X: a\r\n\n", BadMessage::LineEnd),
];

#[test]
fn framing_that_two_could_read_differently_is_refused() {
    for (lines, wanted) in AMBIGUOUS {
        bad(with(lines).as_bytes(), *wanted);
    }
    bad(b"GET / HTTP/1.1\nHost: a\r\n\r\n", BadMessage::LineEnd);
    bad(b"GET / HTTP/1.1\r\nHost: a\n\r\n", BadMessage::LineEnd);
    bad(b"GET / HTTP/1.1\r\nHost: a\r\n\n", BadMessage::LineEnd);
    bad(b"GET / HTTP/1.1\r\nHost: a\n\n", BadMessage::LineEnd);
    bad(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadMessage::LineEnd);
    bad(b"\r\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", BadMessage::LineEnd);
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    bad(old, BadMessage::EncodingTooNew);
    let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n";
    for body in ["Content-Length: 5", "Transfer-Encoding: chunked"] {
        bad(format!("{connect}{body}\r\n\r\n").as_bytes(), BadMessage::ConnectBody);
    }
    assert_eq!(good(&format!("{connect}Content-Length: 0\r\n\r\n")).0.body, Body::Length(0));
}

#[test]
fn bodies_have_three_forms() {
    let cases = [
        ("", Body::None),
        ("Content-Length: 0\r\n", Body::Length(0)),
        ("Content-Length: 0005\r\n", Body::Length(5)),
        ("Content-Length: 18446744073709551615\r\n", Body::Length(u64::MAX)),
        ("Transfer-Encoding: chunked\r\n", Body::Chunked),
        ("TRANSFER-ENCODING: \t CHUNKED \t\r\n", Body::Chunked),
        // Not framing at all.
        ("Content_Length: 5\r\n", Body::None),
        ("X-Content-Length: 5\r\n", Body::None),
    ];
    for (lines, body) in cases {
        assert_eq!(good(&with(lines)).0.body, body, "{lines}");
    }
}

#[test]
fn connections_are_kept_upgraded_and_expected_by_their_rules() {
    // Lines, then keep-alive, expect, upgrade: for 1.1 and for 1.0.
    let body = "Content-Length: 1\r\n";
    let cases = [
        ("", [true, false, false], [false, false, false]),
        ("Connection: close\r\n", [false, false, false], [false, false, false]),
        ("Connection: Keep-Alive\r\n", [true, false, false], [true, false, false]),
        ("Connection: keep-alive, CLOSE\r\n", [false, false, false], [false, false, false]),
        ("Connection: x\r\nConnection: close\r\n", [false, false, false], [false, false, false]),
        ("Connection: closed\r\n", [true, false, false], [false, false, false]),
        ("Expect: 100-Continue\r\nContent-Length: 1\r\n", [true, true, false], [false; 3]),
        ("Expect: 100-continue\r\n", [true, false, false], [false; 3]),
        ("Expect: 100\r\nContent-Length: 1\r\n", [true, false, false], [false; 3]),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", [true, false, true], [false; 3]),
        ("Upgrade: websocket\r\n", [true, false, false], [false; 3]),
        ("Connection: upgrade\r\n", [true, false, false], [false; 3]),
    ];
    for (lines, new, old) in cases {
        let flags = |parsed: Request| [parsed.keep_alive, parsed.expect_continue, parsed.upgrade];
        assert_eq!(flags(good(&with(lines)).0), new, "{lines}");
        assert_eq!(flags(good(&with(lines).replace("/1.1", "/1.0")).0), old, "{lines}");
    }
    let (parsed, _) = good(&with(&format!("Connection: upgrade\r\nUpgrade: h2c\r\n{body}")));
    assert!(!parsed.upgrade);
    let many = |count| format!("Connection: {}\r\n", vec!["x"; count].join(","));
    good(&with(&many(32)));
    bad(with(&many(33)).as_bytes(), BadMessage::ConnectionNames);
    bad(with(&many(17).repeat(2)).as_bytes(), BadMessage::ConnectionNames);
}

#[test]
fn heads_are_limited() {
    let limits = Limits { head: 200, target: 50, fields: 3 };
    let read = |text: &str| request(text.as_bytes(), &limits, &mut RequestHead::new());
    let target =
        |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length - 1));
    assert!(read(&target(50)).unwrap().is_some());
    assert_eq!(read(&target(51)), Err(BadMessage::TargetTooLong));
    assert_eq!(read(&"a".repeat(199)), Ok(None));
    assert_eq!(read(&"a".repeat(200)), Err(BadMessage::TargetTooLong));
    assert_eq!(read(&target(200)[..150]), Ok(None));
    assert_eq!(read(&"\r\n".repeat(100)), Err(BadMessage::TargetTooLong));
    let fields = |count, length| {
        let line = format!("x: {}\r\n", "v".repeat(length));
        format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", line.repeat(count))
    };
    assert!(read(&fields(2, 1)).unwrap().is_some());
    assert_eq!(read(&fields(3, 1)), Err(BadMessage::TooManyFields));
    let rest = 200 - fields(1, 0).len();
    assert!(read(&fields(1, rest)).unwrap().is_some());
    assert_eq!(read(&fields(1, rest + 1)), Err(BadMessage::HeadTooLarge));
    assert_eq!(read(&fields(1, 300)[..200]), Err(BadMessage::HeadTooLarge));
    let most = Limits { fields: 1000, ..Limits::default() };
    let text = fields(128, 1);
    let over = request(text.as_bytes(), &most, &mut RequestHead::new());
    assert_eq!(over, Err(BadMessage::TooManyFields));
}

fn answer(asked: Asked, text: &str) -> Result<Option<(Response, ResponseHead)>, BadMessage> {
    let mut head = ResponseHead::new();
    let parsed = response(text.as_bytes(), &Limits::default(), asked, &mut head)?;
    Ok(parsed.map(|parsed| (parsed, head)))
}

#[test]
fn a_response_is_read() {
    let text = "HTTP/1.1 404 Not Fo\u{fc}nd\r\nContent-Length: 3\r\nHost: x\r\n\r\nabc";
    let (parsed, head) = answer(Asked::default(), text).unwrap().unwrap();
    assert_eq!(parsed.head_len, text.len() - 3);
    assert_eq!((parsed.body, parsed.keep_alive), (Body::Length(3), true));
    assert_eq!(head.status, 404);
    assert_eq!(head.fields.len(), 2);
    for line in ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200 OK", "HTTP/1.1 999 a  b"] {
        let text = format!("{line}\r\n\r\n");
        assert!(answer(Asked::default(), &text).unwrap().is_some(), "{line}");
    }
}

/// RFC 9112 section 6.3.
#[test]
fn a_response_ends_by_what_was_asked() {
    let (get, head) = (Asked::default(), Asked { head: true, ..Asked::default() });
    let connect = Asked { connect: true, ..Asked::default() };
    let upgrade = Asked { upgrade: true, ..Asked::default() };
    let length = "Content-Length: 3\r\n";
    let chunked = "Transfer-Encoding: chunked\r\n";
    let both = "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n";
    let cases = [
        (get, "1.1 200", length, Body::Length(3), true),
        (get, "1.1 200", chunked, Body::Chunked, true),
        (get, "1.1 200", "", Body::Close, false),
        (get, "1.1 500", "Connection: close\r\nContent-Length: 0\r\n", Body::Length(0), false),
        (get, "1.0 200", length, Body::Length(3), false),
        (get, "1.0 200", "Content-Length: 3\r\nConnection: keep-alive\r\n", Body::Length(3), true),
        (get, "1.1 204", "", Body::None, true),
        (get, "1.1 204", "Content-Length: 0\r\n", Body::None, true),
        (get, "1.1 204", length, Body::None, false),
        (get, "1.1 204", chunked, Body::None, false),
        (get, "1.1 304", length, Body::None, true),
        (get, "1.1 304", chunked, Body::None, true),
        (get, "1.1 100", "", Body::None, true),
        (get, "1.1 103", length, Body::None, true),
        (head, "1.1 200", length, Body::None, true),
        (head, "1.1 200", "", Body::None, true),
        (connect, "1.1 200", both, Body::Tunnel, false),
        (connect, "1.1 407", length, Body::Length(3), true),
        (upgrade, "1.1 101", "Upgrade: websocket\r\n", Body::Tunnel, false),
        (upgrade, "1.1 200", length, Body::Length(3), true),
    ];
    for (asked, status, lines, body, keep_alive) in cases {
        let text = format!("HTTP/{status} x\r\n{lines}\r\n");
        let (parsed, _) = answer(asked, &text).unwrap().unwrap();
        assert_eq!((parsed.body, parsed.keep_alive), (body, keep_alive), "{text}");
    }
}

#[test]
fn what_is_no_response_is_refused() {
    use BadMessage::{LineEnd, StatusLine, UnaskedUpgrade, Version};
    let cases = [
        ("HTTP/1.1 099 x\r\n\r\n", StatusLine),
        ("HTTP/1.1 20 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 2000 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1  200 OK\r\n\r\n", StatusLine),
        ("HTTP/1.1 200 O\x00K\r\n\r\n", StatusLine),
        ("HTTP/1.1 200 O\x7fK\r\n\r\n", StatusLine),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", StatusLine),
        ("HTTP/2.0 200 OK\r\n\r\n", Version),
        ("ICY 200 OK\r\n\r\n", Version),
        ("HTTP/1.1 200 OK\n\r\n", LineEnd),
        ("HTTP/1.1 200 \u{e9}\n\r\n", LineEnd),
        ("HTTP/1.1 200 OK\r\nA: b\n\r\n", LineEnd),
        ("HTTP/1.1 200 OK\r\n\n", LineEnd),
        ("HTTP/1.1 101 x\r\n\r\n", UnaskedUpgrade),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            BadMessage::LengthAndEncoding,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\n", BadMessage::LengthRepeated),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", BadMessage::EncodingTooNew),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", BadMessage::EncodingUnknown),
        ("HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\n", BadMessage::FieldName),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", BadMessage::FieldName),
    ];
    for (text, wanted) in cases {
        match answer(Asked::default(), text) {
            Err(error) => assert_eq!(error, wanted, "{text:?}"),
            Ok(parsed) => panic!("{text:?}: {parsed:?}"),
        }
    }
}

/// Bytes that come close to being requests.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&[u8]> = vec![
        b"GET ",
        b"POST ",
        b"CONNECT ",
        b"/",
        b"*",
        b"http://a",
        b"a:1",
        b" ",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/1.2",
        b"\r\n",
        b"\n",
        b"\r",
        b"Host: a\r\n",
        b"Content-Length: 1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"X: y\r\n",
        b": ",
        b"\0",
        b"\xff",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"POST / HTTP/1.1\r\n",
    ];
    let piece = proptest::sample::select(pieces);
    proptest::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn more_bytes_never_change_an_answer(text in nearly()) {
        let whole = read(&text);
        for end in 0..text.len() {
            match read(&text[..end]) {
                Ok(None) => {}
                early => prop_assert_eq!(&early, &whole, "{} of {}", end, text.escape_ascii()),
            }
        }
        let asked = Asked { upgrade: true, ..Asked::default() };
        let answer = |text: &[u8]| {
            let mut head = ResponseHead::new();
            let parsed = response(text, &Limits::default(), asked, &mut head)?;
            Ok::<_, BadMessage>(parsed.map(|parsed| (parsed, head)))
        };
        let text = [b"HTTP/1.1 200 ", &text[..]].concat();
        let whole = answer(&text);
        for end in 0..text.len() {
            match answer(&text[..end]) {
                Ok(None) => {}
                early => prop_assert_eq!(&early, &whole, "{} of {}", end, text.escape_ascii()),
            }
        }
    }

    #[test]
    fn what_is_read_is_written_the_same(
        names in proptest::collection::vec("[A-Za-z][a-z0-9_-]{0,8}", 0..10),
        value in "[ -~]{0,20}",
        target in "/[a-z?/=&%0-9]{0,20}",
    ) {
        let mut head = RequestHead { authority: "a.b:80".into(), target, ..RequestHead::new() };
        for name in &names {
            // What a head says of framing and connection is written anew.
            if Known::of(name.as_bytes()).is_none() {
                head.fields.push(name, value.trim().as_bytes());
            }
        }
        let mut out = Vec::new();
        crate::http1::write::request(&head, Body::None, &mut out);
        let mut again = RequestHead::new();
        let parsed = request(&out, &Limits::default(), &mut again).unwrap().unwrap();
        prop_assert_eq!(parsed.head_len, out.len());
        prop_assert_eq!(again, head);
    }
}
