//! A destination, its caller's streams and its application's bytes.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{future::poll_fn, time::Duration};

use edge_proxy::inner::mux::{Exchange, MAX_INFORMATIONAL, Received, ResetCode, StreamError};
use mesh_core::message::Fields;
use support::{
    Pair, Targets,
    caller::{Caller, read_answer, read_head, read_rest, request, wait},
    script::{Script, answer, read_until},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn start() -> (Pair, Script, Caller) {
    let app = Script::start().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let caller = Caller::of(&pair).await;
    (pair, app, caller)
}

/// Whether the proxy closes the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    wait(stream.read_to_end(&mut rest)).await.is_ok_and(|count| count == 0) || rest.is_empty()
}

fn trailer(fields: &Fields) -> Option<&[u8]> {
    fields.get("t")
}

#[tokio::test]
async fn every_way_to_end_an_answer_ends_the_stream() {
    let (_pair, mut app, caller) = start().await;
    let chunked = "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n\
                   3\r\nhel\r\n2\r\nlo\r\n0\r\nt: 1\r\n\r\n";
    // Method, answer, status, body, trailer, whether the connection is kept.
    let cases: &[(&str, &str, u16, &str, bool, bool)] = &[
        ("GET", "HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", false, true),
        ("HEAD", "HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\n", 200, "", false, true),
        ("DELETE", "HTTP/1.1 204 x\r\n\r\n", 204, "", false, true),
        ("GET", "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", 304, "", false, true),
        ("GET", chunked, 200, "hello", true, true),
        (
            "GET",
            "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            200,
            "",
            false,
            true,
        ),
        (
            "GET",
            "HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
            200,
            "hello",
            false,
            false,
        ),
        ("GET", "HTTP/1.0 200 x\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", false, false),
        ("GET", "HTTP/1.0 200 x\r\n\r\nhello", 200, "hello", false, false),
        ("GET", "HTTP/1.1 200 x\r\n\r\nhello", 200, "hello", false, false),
    ];
    let mut kept: Option<TcpStream> = None;
    for (method, text, status, body, has_trailer, keeps) in cases {
        let mut stream = caller.ask(&request(method, &[]), true);
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => app.accept().await,
        };
        let asked = answer(&mut connection, text).await;
        assert!(asked.starts_with(&format!("{method} /x HTTP/1.1\r\nHost: orders.shop\r\n")));
        if !text.contains("ength") && !text.contains("chunked") && *status == 200 {
            connection.shutdown().await.unwrap();
        }
        let answer = read_answer(&mut stream).await.unwrap();
        let got = (answer.head.status.as_u16(), &*String::from_utf8(answer.body).unwrap());
        assert_eq!(got, (*status, *body), "{text}");
        let trailer = answer.trailers.as_ref().and_then(trailer);
        assert_eq!(trailer, has_trailer.then_some(&b"1"[..]), "{text}");
        for hop in ["connection", "transfer-encoding"] {
            assert_eq!(answer.head.fields.get(hop), None, "{text}");
        }
        if *keeps {
            kept = Some(connection);
        } else {
            assert!(is_closed(&mut connection).await, "{text}");
        }
    }
    assert!(app.is_unused() && caller.is_usable());
}

#[tokio::test]
async fn a_request_body_goes_on_with_its_trailers() {
    let (_pair, mut app, caller) = start().await;
    let mut stream = caller.ask(&request("POST", &[]), false);
    stream.send(b"hello", false).await.unwrap();
    let mut connection = app.accept().await;
    let begun = read_until(&mut connection, "hello").await;
    assert!(begun.contains("\r\nTransfer-Encoding: chunked\r\n"), "{begun}");
    let mut fields = Fields::new();
    fields.push("t", b"1");
    fields.push("x-isthmus-client-id", b"forged");
    let mut block = Vec::new();
    mesh_core::message::codec::put_fields(&fields, &mut block);
    stream.send_trailers(&block).await.unwrap();
    let ended = read_until(&mut connection, "0\r\nt: 1\r\n\r\n").await;
    assert!(!ended.contains("forged"), "{ended}");
    connection.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
    assert_eq!(read_answer(&mut stream).await.unwrap().head.status, 200);
}

#[tokio::test]
async fn early_hints_are_passed_on_and_not_too_many() {
    let (_pair, mut app, caller) = start().await;
    for (hints, wanted) in [(1, 1), (30, usize::from(MAX_INFORMATIONAL))] {
        let mut stream = caller.ask(&request("GET", &[]), true);
        let mut connection = app.accept().await;
        let hint = "HTTP/1.1 103 x\r\nLink: y\r\nisthmus-error: forged\r\n\r\n".repeat(hints);
        let rest = "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 x\r\nConnection: close\r\n\
                    Content-Length: 2\r\n\r\nok";
        answer(&mut connection, &format!("{hint}{rest}")).await;
        let answer = read_answer(&mut stream).await.unwrap();
        assert_eq!((answer.head.status.as_u16(), &*answer.body), (200, &b"ok"[..]));
        assert_eq!(answer.hints.len(), wanted);
        for hint in answer.hints {
            assert_eq!((hint.status.as_u16(), hint.fields.get("link")), (103, Some(&b"y"[..])));
            assert_eq!(hint.fields.len(), 1);
        }
    }
    assert!(caller.is_usable());
}

#[tokio::test]
async fn an_answer_may_begin_and_end_before_the_request() {
    let (_pair, mut app, caller) = start().await;
    // It begins before.
    let mut stream = caller.ask(&request("POST", &[("content-length", "10")]), false);
    let mut connection = app.accept().await;
    answer(&mut connection, "HTTP/1.1 200 x\r\nContent-Length: 10\r\n\r\nfirst").await;
    let mut answered = read_head(&mut stream).await.unwrap();
    for half in [b"hello", b"world"] {
        stream.send(half, half == b"world").await.unwrap();
        read_until(&mut connection, std::str::from_utf8(half).unwrap()).await;
    }
    connection.write_all(b"again").await.unwrap();
    read_rest(&mut stream, &mut answered).await.unwrap();
    assert_eq!(answered.body, b"firstagain");
    // It ends before: the connection is of no use any more.
    let mut stream = caller.ask(&request("POST", &[("content-length", "10")]), false);
    stream.send(b"hello", false).await.unwrap();
    read_until(&mut connection, "hello").await;
    connection.write_all(b"HTTP/1.1 413 x\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let answered = read_answer(&mut stream).await.unwrap();
    assert_eq!((answered.head.status.as_u16(), &*answered.body), (413, &b"no"[..]));
    let fault = wait(poll_fn(|cx| stream.poll_reset(cx))).await;
    assert!(matches!(fault, StreamError::Reset { code: ResetCode::Enough, .. }), "{fault}");
    assert!(is_closed(&mut connection).await);
}

const BULK: usize = 8 << 20;

fn bulk() -> Vec<u8> {
    (0..BULK).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn bulk_passes_both_ways_at_once() {
    let (_pair, mut app, caller) = start().await;
    let length = BULK.to_string();
    let mut stream = caller.ask(&request("POST", &[("content-length", &length)]), false);
    let connection = app.accept().await;
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = connection.into_split();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(read.read_u8().await.unwrap());
        }
        write.write_all(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n").await.unwrap();
        let mut buffer = vec![0; 40_000];
        let mut left = BULK;
        while left > 0 {
            let count = read.read(&mut buffer).await.unwrap();
            write.write_all(format!("{count:x}\r\n").as_bytes()).await.unwrap();
            write.write_all(&buffer[..count]).await.unwrap();
            write.write_all(b"\r\n").await.unwrap();
            left -= count;
        }
        write.write_all(b"0\r\n\r\n").await.unwrap();
    });
    let data = bulk();
    let (mut sent, mut got) = (0, Vec::new());
    wait(poll_fn(|cx| {
        use std::task::Poll;
        while sent < BULK {
            match stream.poll_send(cx, &data[sent..], true) {
                Poll::Ready(count) => sent += count.unwrap(),
                Poll::Pending => break,
            }
        }
        loop {
            match stream.poll_recv(cx) {
                Poll::Ready(Ok(Some(Received::Data(data)))) => got.extend_from_slice(&data),
                Poll::Ready(Ok(Some(Received::Head(_)))) => {}
                Poll::Ready(Ok(None)) => return Poll::Ready(()),
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => return Poll::Pending,
            }
        }
    }))
    .await;
    assert!(got == data);
    echo.await.unwrap();
}

#[tokio::test]
async fn a_caller_that_does_not_read_slows_the_application_down() {
    let (_pair, mut app, caller) = start().await;
    let mut stream = caller.ask(&request("GET", &[]), true);
    let mut connection = app.accept().await;
    let length = 64 << 20;
    let head = format!("HTTP/1.1 200 x\r\nContent-Length: {length}\r\n\r\n");
    answer(&mut connection, &head).await;
    read_head(&mut stream).await.unwrap();
    let (chunk, mut written) = (vec![b'x'; 64 << 10], 0);
    while written < length {
        let write = connection.write_all(&chunk);
        match tokio::time::timeout(Duration::from_millis(300), write).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        written += chunk.len();
    }
    // What the kernel and two windows hold, not all of it.
    assert!(written < length / 2, "{written}");
    // The caller gives up: the application sees it.
    drop(stream);
    let ended = wait(async { while connection.write_all(&chunk).await.is_ok() {} });
    ended.await;
}

/// Where a caller may give up.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Request,
    Head,
    Answer,
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_the_request() {
    let (_pair, mut app, caller) = start().await;
    for stage in [Stage::Request, Stage::Head, Stage::Answer] {
        let mut stream = caller.ask(&request("POST", &[]), false);
        stream.send(b"hello", stage != Stage::Request).await.unwrap();
        let mut connection = app.accept().await;
        let last = if stage == Stage::Request { "hello" } else { "0\r\n\r\n" };
        read_until(&mut connection, last).await;
        if stage == Stage::Answer {
            connection.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 5\r\n\r\n").await.unwrap();
            read_head(&mut stream).await.unwrap();
        }
        drop(stream);
        assert!(is_closed(&mut connection).await, "{stage:?}");
    }
    assert!(caller.is_usable());
}

async fn refused(stream: &mut Exchange) -> (u16, String) {
    let answer = read_answer(stream).await.unwrap();
    let code = answer.head.fields.get("isthmus-error").unwrap_or_default();
    (answer.head.status.as_u16(), String::from_utf8_lossy(code).into_owned())
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_a_refusal() {
    let (_pair, mut app, caller) = start().await;
    let many = format!("HTTP/1.1 200 x\r\na: {}\r\n\r\n", "x".repeat(70_000));
    let long =
        format!("HTTP/1.1 200 x\r\n{}\r\n", format!("a: {}\r\n", "x".repeat(520)).repeat(126));
    let long = long.replace("a: xxx", "a: x");
    let cases =
        ["SSH-2.0-x\r\n", "HTTP/1.1 2", "", &many, "HTTP/1.1 101 x\r\nUpgrade: y\r\n\r\n", &long];
    for text in cases {
        let mut stream = caller.ask(&request("GET", &[]), true);
        let mut connection = app.accept().await;
        // A head that is refused early is not read to its end.
        read_until(&mut connection, "\r\n\r\n").await;
        let _refused = connection.write_all(text.as_bytes()).await;
        drop(connection);
        assert_eq!(refused(&mut stream).await, (502, "upstream_reset".into()), "{text}");
    }
    let deadline = request("GET", &[("x-isthmus-timeout", "50")]);
    let mut stream = caller.ask(&deadline, true);
    let mut connection = app.accept().await;
    let seen = read_until(&mut connection, "\r\n\r\n").await;
    assert!(seen.contains("x-isthmus-timeout: 50\r\n"), "{seen}");
    assert_eq!(refused(&mut stream).await, (504, "timeout".into()));
    assert!(is_closed(&mut connection).await);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_reset() {
    let (_pair, mut app, caller) = start().await;
    let broken = [
        "HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nxyz\r\n",
    ];
    for text in broken {
        let mut stream = caller.ask(&request("GET", &[]), true);
        let mut connection = app.accept().await;
        answer(&mut connection, text).await;
        drop(connection);
        let fault = read_answer(&mut stream).await.unwrap_err();
        assert!(matches!(fault, StreamError::Reset { code: ResetCode::Failed, .. }), "{fault}");
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_told_as_a_refusal() {
    let (_pair, mut app, caller) = start().await;
    let mut connect = request("CONNECT", &[]);
    connect.target.clear();
    assert_eq!(refused(&mut caller.ask(&connect, true)).await.1, "unsupported");
    let announced = request("PUT", &[("content-length", "5")]);
    assert_eq!(refused(&mut caller.ask(&announced, true)).await, (400, "bad_request".into()));
    let mut stream = caller.ask(&announced, false);
    stream.send(b"123456", true).await.unwrap();
    assert_eq!(refused(&mut stream).await, (400, "bad_request".into()));
    // Nothing of them is a request of somebody else's.
    let mut stream = caller.ask(&request("GET", &[]), true);
    let mut seen = loop {
        let mut connection = app.accept().await;
        let mut first = [0; 3];
        if wait(connection.read_exact(&mut first)).await.is_ok() && &first == b"GET" {
            break connection;
        }
    };
    answer(&mut seen, "HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(read_answer(&mut stream).await.unwrap().head.status, 200);
}

const UPGRADE: &[(&str, &str)] =
    &[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "a2V5")];

#[tokio::test]
async fn a_stream_becomes_a_websocket() {
    let (pair, mut app, caller) = start().await;
    // Some source says something before it knows; it must not arrive early.
    for eager in [true, false] {
        let mut stream = caller.ask(&request("GET", UPGRADE), false);
        if eager {
            stream.send(b"ping ", false).await.unwrap();
        }
        let mut connection = app.accept().await;
        let asked = read_until(&mut connection, "\r\n\r\n").await;
        assert!(asked.contains("upgrade: websocket\r\n"), "{asked}");
        assert!(asked.ends_with("\r\nConnection: upgrade\r\n\r\n"), "{asked}");
        assert!(asked.contains("sec-websocket-key: a2V5\r\n"), "{asked}");
        let switch = "HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: z\r\n\r\nearly ";
        connection.write_all(switch.as_bytes()).await.unwrap();
        let mut answered = read_head(&mut stream).await.unwrap();
        assert_eq!(answered.head.status, 101);
        let field = |name| answered.head.fields.get(name).map(<[u8]>::to_ascii_lowercase);
        assert_eq!(field("upgrade").unwrap(), b"websocket");
        assert_eq!(field("sec-websocket-accept").unwrap(), b"z");
        stream.send(b"pong", false).await.unwrap();
        let heard = read_until(&mut connection, "pong").await;
        assert_eq!(heard, if eager { "ping pong" } else { "pong" });
        // Each direction ends by itself.
        stream.finish();
        assert!(is_closed(&mut connection).await);
        connection.write_all(b"and late").await.unwrap();
        drop(connection);
        read_rest(&mut stream, &mut answered).await.unwrap();
        assert_eq!(answered.body, b"early and late");
    }
    // An abort is one on the other side.
    let mut stream = caller.ask(&request("GET", UPGRADE), false);
    let mut connection = app.accept().await;
    answer(&mut connection, "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").await;
    read_head(&mut stream).await.unwrap();
    drop(stream);
    let ended = wait(connection.read(&mut [0; 1])).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = pair.destination.metrics();
    assert!(metrics.contains("direction=\"inbound\",service=\"orders.shop\",port=\"http\",path=\"direct\",protocol=\"http\",status_class=\"1xx\""), "{metrics}");
}

#[tokio::test]
async fn an_offer_may_be_declined() {
    let (_pair, mut app, caller) = start().await;
    let mut stream = caller.ask(&request("GET", UPGRADE), false);
    stream.send(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", false).await.unwrap();
    let mut connection = app.accept().await;
    answer(&mut connection, "HTTP/1.1 426 x\r\nUpgrade: other\r\nContent-Length: 2\r\n\r\nno")
        .await;
    let answered = read_answer(&mut stream).await.unwrap();
    assert_eq!((answered.head.status.as_u16(), &*answered.body), (426, &b"no"[..]));
    assert_eq!(answered.head.fields.get("upgrade"), Some(&b"other"[..]));
    let fault = wait(poll_fn(|cx| stream.poll_reset(cx))).await;
    assert!(matches!(fault, StreamError::Reset { code: ResetCode::Enough, .. }), "{fault}");
    // What was meant for the other protocol has not become a request, and the
    // connection is used again.
    let mut stream = caller.ask(&request("GET", &[]), true);
    let asked = answer(&mut connection, "HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n").await;
    assert!(asked.starts_with("GET /x HTTP/1.1\r\n"), "{asked}");
    assert_eq!(read_answer(&mut stream).await.unwrap().head.status, 200);
}

#[tokio::test]
async fn what_is_no_offer_is_not_passed_on() {
    let (_pair, mut app, caller) = start().await;
    let http = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")];
    let body = [("connection", "Upgrade"), ("upgrade", "websocket"), ("content-length", "2")];
    let cases: [(&[_], bool, &str); 3] =
        [(&http, false, "\r\n\r\n"), (UPGRADE, true, "\r\n\r\n"), (&body, false, "\r\n\r\nok")];
    for (fields, end, last) in cases {
        let mut stream = caller.ask(&request("GET", fields), end);
        if !end {
            stream.send(b"ok", false).await.unwrap();
        }
        let mut connection = app.accept().await;
        let asked = read_until(&mut connection, last).await.to_ascii_lowercase();
        let offers = ["upgrade:", "connection:", "transfer-encoding:"];
        assert!(asked.ends_with(last) && !offers.iter().any(|it| asked.contains(it)), "{asked}");
        let text = b"HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        connection.write_all(text).await.unwrap();
        assert_eq!(read_answer(&mut stream).await.unwrap().head.status, 200);
    }
}
