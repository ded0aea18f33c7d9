use std::future::poll_fn;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn client(script: Script) -> (ClientConn<Script>, Arc<Mutex<Seen>>) {
    let seen = script.seen();
    (ClientConn::new(script, Limits::default(), Buffers::new()), seen)
}

fn get() -> RequestHead {
    RequestHead { authority: "a".into(), target: "/".into(), ..RequestHead::new() }
}

async fn body<S: Io>(conn: &mut ClientConn<S>) -> Result<Vec<u8>, ConnError> {
    let mut body = Vec::new();
    while let Some(data) = conn.data().await? {
        let count = data.len();
        body.extend_from_slice(data);
        conn.consume(count);
    }
    Ok(body)
}

/// The answer to a GET: its status and body.
async fn exchange<S: Io>(conn: &mut ClientConn<S>) -> Result<(u16, Vec<u8>), ConnError> {
    conn.send_request(&get(), Body::None);
    let mut head = ResponseHead::new();
    conn.response(&mut head).await?;
    Ok((head.status.as_u16(), body(conn).await?))
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let first = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";
    let second =
        b"HTTP/1.1 201 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\nt: 1\r\n\r\n";
    let (mut conn, seen) = client(Script::new(&[first, &second[..20], &second[20..]]).open());
    assert!(!conn.is_stale() && conn.is_reusable());
    assert_eq!(exchange(&mut conn).await.unwrap(), (200, b"one".to_vec()));
    assert!(conn.is_body_end() && conn.has_answered() && conn.is_reusable());
    assert_eq!(conn.wire.memory(), 0);
    assert_eq!(exchange(&mut conn).await.unwrap(), (201, b"two".to_vec()));
    assert_eq!(conn.take_trailers().unwrap().get("t"), Some(&b"1"[..]));
    assert!(conn.is_reusable() && !conn.is_stale());
    let sent = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(text(&seen), sent.repeat(2));
    assert_eq!(seen.lock().unwrap().writes, 2);
}

#[tokio::test]
async fn a_connection_is_used_again_only_after_whole_messages() {
    let cases: &[(&str, bool)] = &[
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 204 OK\r\n\r\n", true),
        ("HTTP/1.1 204 OK\r\nContent-Length: 3\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
    ];
    for (text, reusable) in cases {
        let (mut conn, _) = client(Script::new(&[text.as_bytes()]).open());
        exchange(&mut conn).await.unwrap();
        assert_eq!(conn.is_reusable(), *reusable, "{text}");
    }
    // Answered before all was sent.
    let (mut conn, _) = client(Script::new(&[cases[0].0.as_bytes()]).open());
    conn.send_request(&get(), Body::Length(5));
    conn.response(&mut ResponseHead::new()).await.unwrap();
    assert!(conn.is_body_end() && !conn.is_reusable());
    conn.send(b"hello").await.unwrap();
    conn.finish(None).unwrap();
    assert!(!conn.is_reusable());
    conn.flush().await.unwrap();
    assert!(conn.is_reusable());
    // Body not read yet.
    let (mut conn, _) = client(Script::new(&[b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]));
    conn.send_request(&get(), Body::None);
    assert!(!conn.is_reusable());
    conn.response(&mut ResponseHead::new()).await.unwrap();
    assert!(!conn.is_reusable() && !conn.is_body_end());
}

#[tokio::test]
async fn a_body_may_end_with_the_connection() {
    let (mut conn, _) = client(Script::new(&[b"HTTP/1.1 200 OK\r\n\r\nto", b" the end"]));
    assert_eq!(exchange(&mut conn).await.unwrap(), (200, b"to the end".to_vec()));
    assert!(conn.is_body_end() && !conn.is_reusable());
}

#[tokio::test]
async fn informational_answers_come_before_the_answer() {
    let hints = b"HTTP/1.1 103 x\r\nLink: y\r\n\r\n";
    let last = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let (mut conn, _) = client(Script::new(&[&[hints, &hints[..], last].concat()]).open());
    conn.send_request(&get(), Body::None);
    let (mut statuses, mut head) = (Vec::new(), ResponseHead::new());
    while statuses.last() != Some(&200) {
        conn.response(&mut head).await.unwrap();
        statuses.push(head.status.as_u16());
        assert_eq!(conn.is_body_end(), head.status == 200);
    }
    assert_eq!(statuses, [103, 103, 200]);
    assert!(conn.is_reusable());
    let (mut conn, _) = client(Script::new(&[&hints.repeat(40)]));
    conn.send_request(&get(), Body::None);
    let error = loop {
        if let Err(error) = conn.response(&mut head).await {
            break error;
        }
    };
    assert!(matches!(error, ConnError::Bad(BadMessage::Informational)), "{error}");
}

#[tokio::test]
async fn whether_anything_was_answered_is_known() {
    let (mut conn, _) = client(Script::new(&[]));
    let error = exchange(&mut conn).await.unwrap_err();
    assert!(matches!(error, ConnError::Closed) && !conn.has_answered(), "{error}");
    let (mut conn, _) = client(Script::new(&[b"HTTP/1.1 2"]));
    let error = exchange(&mut conn).await.unwrap_err();
    let truncated = matches!(error, ConnError::Bad(BadMessage::Truncated));
    assert!(truncated && conn.has_answered(), "{error}");
    let (mut conn, _) = client(Script::new(&[b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"]));
    let error = exchange(&mut conn).await.unwrap_err();
    assert!(matches!(error, ConnError::Bad(BadMessage::Truncated)), "{error}");
    let (mut conn, _) = client(Script::new(&[b"SSH-2.0-x\r\n"]));
    let error = exchange(&mut conn).await.unwrap_err();
    assert!(matches!(error, ConnError::Bad(BadMessage::Version)), "{error}");
    assert!(!conn.is_reusable());
}

#[tokio::test]
async fn a_connection_that_was_closed_or_spoke_is_stale() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    for then in [None, Some(b"HTTP/1.1 408 late\r\n\r\n")] {
        let (mut far, near) = tokio::io::duplex(1024);
        let mut conn = ClientConn::new(near, Limits::default(), Buffers::new());
        far.write_all(answer).await.unwrap();
        exchange(&mut conn).await.unwrap();
        assert!(conn.is_reusable() && !conn.is_stale());
        assert!(waits(poll_fn(|cx| conn.poll_idle(cx))));
        match then {
            Some(text) => far.write_all(text).await.unwrap(),
            None => drop(far),
        }
        poll_fn(|cx| conn.poll_idle(cx)).await;
        assert!(conn.is_stale() && !conn.is_reusable());
    }
}

#[tokio::test]
async fn an_answer_comes_through_though_the_rest_is_refused() {
    let (mut far, near) = tokio::io::duplex(256);
    let mut conn = ClientConn::new(near, Limits::default(), Buffers::new());
    let upload = RequestHead { method: Method::PUT, ..get() };
    conn.send_request(&upload, Body::Length(1 << 20));
    let refuse = async {
        let mut head = [0; 40];
        far.read_exact(&mut head).await.unwrap();
        far.write_all(b"HTTP/1.1 413 x\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
        drop(far);
    };
    let send = async {
        // Until the application has gone.
        while conn.send(&[b'x'; 10_000]).await.is_ok() {}
        let mut head = ResponseHead::new();
        conn.response(&mut head).await.unwrap();
        assert_eq!(head.status, 413);
        assert_eq!(body(&mut conn).await.unwrap(), b"no");
        assert!(!conn.is_reusable());
    };
    tokio::join!(refuse, send);
}

#[tokio::test]
async fn a_tunnel_begins_where_the_answer_ended() {
    let text = b"HTTP/1.1 101 x\r\nUpgrade: y\r\nConnection: upgrade\r\n\r\nfirst";
    let (mut conn, seen) = client(Script::new(&[text]));
    let mut head = get();
    head.fields.push("upgrade", b"y");
    conn.send_request(&head, Body::None);
    let mut head = ResponseHead::new();
    assert_eq!(conn.response(&mut head).await.unwrap().body, Body::Tunnel);
    assert!(!conn.is_reusable());
    assert!(seen.lock().unwrap().written.ends_with(b"upgrade: y\r\nConnection: upgrade\r\n\r\n"));
    assert_eq!(conn.into_tunnel().1, b"first");
    // Nobody had asked.
    let (mut conn, _) = client(Script::new(&[text]));
    let error = exchange(&mut conn).await.unwrap_err();
    assert!(matches!(error, ConnError::Bad(BadMessage::UnaskedUpgrade)), "{error}");
}

#[tokio::test]
async fn no_body_follows_an_answer_to_head() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n";
    let (mut conn, _) = client(Script::new(&[answer, answer]).open());
    for _ in 0..2 {
        conn.send_request(&RequestHead { method: Method::HEAD, ..get() }, Body::None);
        let mut head = ResponseHead::new();
        assert_eq!(conn.response(&mut head).await.unwrap().body, Body::None);
        assert_eq!(head.fields.get("content-length"), Some(&b"30"[..]));
        assert!(conn.is_reusable());
    }
}
