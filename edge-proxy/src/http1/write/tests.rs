use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn fields(pairs: Pairs<'_>) -> Fields {
    pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
}

#[test]
fn requests() {
    let write = |method: &str, target: &str, pairs: Pairs<'_>, body| {
        let head = RequestHead {
            method: method.parse().unwrap(),
            authority: "a:1".into(),
            target: target.into(),
            fields: fields(pairs),
            ..RequestHead::new()
        };
        let mut out = Vec::new();
        request(&head, body, &mut out);
        String::from_utf8(out).unwrap()
    };
    let old: Pairs<'_> = &[
        ("X-A", "b"),
        ("content-length", "9"),
        ("transfer-encoding", "x"),
        ("connection", "x"),
        ("host", "x"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
    ];
    let cases = [
        (write("GET", "/b?c", old, Body::None), "GET /b?c HTTP/1.1\r\nHost: a:1\r\nX-A: b\r\n\r\n"),
        (
            write("GET", "/", &[], Body::Length(7)),
            "GET / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 7\r\n\r\n",
        ),
        (
            write("POST", "/", &[], Body::None),
            "POST / HTTP/1.1\r\nHost: a:1\r\nContent-Length: 0\r\n\r\n",
        ),
        (
            write("POST", "/", old, Body::Chunked),
            "POST / HTTP/1.1\r\nHost: a:1\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (
            write("PUT", "/", &[], Body::Close),
            "PUT / HTTP/1.1\r\nHost: a:1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        (write("OPTIONS", "*", &[], Body::None), "OPTIONS * HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        (write("GET", "", &[], Body::None), "GET / HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        (write("CONNECT", "", &[], Body::None), "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        (
            write("GET", "/", &[("upgrade", "websocket"), ("te", "trailers")], Body::None),
            "GET / HTTP/1.1\r\nHost: a:1\r\nupgrade: websocket\r\nte: trailers\r\n\
             Connection: upgrade, te\r\n\r\n",
        ),
    ];
    for (written, wanted) in cases {
        assert_eq!(written, wanted);
    }
}

/// How a response to `asked` over `version` is written: its framing lines,
/// how its body goes on, and whether the connection stays.
fn framed(
    status: u16,
    body: Body,
    asked: Asked,
    version: Version,
    pairs: Pairs<'_>,
) -> (String, Encoder, bool) {
    let status = StatusCode::from_u16(status).unwrap();
    let head = ResponseHead { status, fields: fields(pairs) };
    let mut out = Vec::new();
    let reader = Reader { asked, version, keep_alive: true };
    let (encoder, keep_alive) = response(&head, body, reader, &mut out);
    let text = String::from_utf8(out).unwrap();
    let lines = text.strip_suffix("\r\n\r\n").unwrap().split("\r\n").skip(1);
    (lines.collect::<Vec<_>>().join("|"), encoder, keep_alive)
}

/// RFC 9112 sections 6.1 to 6.3, RFC 9110 section 8.6.
#[test]
fn responses_are_framed_for_who_reads_them() {
    let (get, head) = (Asked::default(), Asked { head: true, ..Asked::default() });
    let connect = Asked { connect: true, ..Asked::default() };
    let upgrade = Asked { upgrade: true, ..Asked::default() };
    let (new, old) = (Version::HTTP_11, Version::HTTP_10);
    let length: Pairs<'_> = &[("content-length", "9")];
    let cases: &[(_, Encoder, bool, &str)] = &[
        ((200, Body::Length(3), get, new, length), Encoder::Length(3), true, "Content-Length: 3"),
        ((200, Body::None, get, new, length), Encoder::Length(0), true, "Content-Length: 0"),
        (
            (200, Body::Chunked, get, new, length),
            Encoder::Chunked,
            true,
            "Transfer-Encoding: chunked",
        ),
        ((200, Body::Close, get, new, &[]), Encoder::Chunked, true, "Transfer-Encoding: chunked"),
        ((200, Body::Chunked, get, old, length), Encoder::Close, false, "Connection: close"),
        ((200, Body::Close, get, old, &[]), Encoder::Close, false, "Connection: close"),
        (
            (200, Body::Length(3), get, old, &[]),
            Encoder::Length(3),
            true,
            "Connection: keep-alive|Content-Length: 3",
        ),
        ((204, Body::None, get, new, length), Encoder::Done, true, ""),
        ((204, Body::Length(3), get, new, length), Encoder::Done, true, ""),
        ((304, Body::None, get, new, length), Encoder::Done, true, "content-length: 9"),
        ((304, Body::None, get, new, &[]), Encoder::Done, true, ""),
        ((200, Body::None, head, new, length), Encoder::Done, true, "content-length: 9"),
        ((204, Body::None, head, new, length), Encoder::Done, true, ""),
        ((200, Body::Chunked, head, new, &[]), Encoder::Done, true, ""),
        ((205, Body::None, get, new, &[]), Encoder::Length(0), true, "Content-Length: 0"),
        ((200, Body::Tunnel, connect, new, length), Encoder::Tunnel, false, ""),
        ((403, Body::Length(3), connect, new, &[]), Encoder::Length(3), true, "Content-Length: 3"),
        (
            (101, Body::Tunnel, upgrade, new, &[("Upgrade", "websocket")]),
            Encoder::Tunnel,
            false,
            "Upgrade: websocket|Connection: upgrade",
        ),
        (
            (426, Body::None, get, new, &[("Upgrade", "h2c")]),
            Encoder::Length(0),
            true,
            "Upgrade: h2c|Connection: upgrade|Content-Length: 0",
        ),
        (
            (426, Body::Close, get, old, &[("Upgrade", "h2c")]),
            Encoder::Close,
            false,
            "Upgrade: h2c|Connection: close, upgrade",
        ),
    ];
    for &((status, body, asked, version, pairs), encoder, keep_alive, lines) in cases {
        let wanted = (lines.to_owned(), encoder, keep_alive);
        let name = format!("{status} {body:?} {asked:?} {version:?}");
        assert_eq!(framed(status, body, asked, version, pairs), wanted, "{name}");
    }
}

#[test]
fn status_lines() {
    let line = |status| {
        let mut out = Vec::new();
        let head = ResponseHead {
            status: StatusCode::from_u16(status).unwrap(),
            fields: fields(&[("Connection", "x"), ("link", "y")]),
        };
        informational(&head, &mut out);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line(103), "HTTP/1.1 103 Early Hints\r\nlink: y\r\n\r\n");
    assert_eq!(line(599), "HTTP/1.1 599 \r\nlink: y\r\n\r\n");
}

#[test]
fn numbers_are_written_in_decimal() {
    for number in [0, 9, 10, 1_234_567_890, u64::MAX] {
        let mut out = Vec::new();
        put_decimal(number, &mut out);
        assert_eq!(out, number.to_string().as_bytes());
    }
}
