use std::future::poll_fn;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn server(script: Script) -> (ServerConn<Script>, Arc<Mutex<Seen>>) {
    let seen = script.seen();
    (ServerConn::new(script, Limits::default(), Buffers::new()), seen)
}

fn ok() -> ResponseHead {
    ResponseHead::new()
}

/// All that is left of the request's body.
async fn body<S: Io>(conn: &mut ServerConn<S>) -> Result<Vec<u8>, ConnError> {
    let mut body = Vec::new();
    while let Some(data) = conn.data().await? {
        let count = data.len().div_ceil(2);
        body.extend_from_slice(&data[..count]);
        conn.consume(count);
    }
    Ok(body)
}

async fn answer<S: Io>(conn: &mut ServerConn<S>, data: &[u8]) {
    conn.send_head(&ok(), Body::Length(data.len() as u64));
    conn.send(data).await.unwrap();
    conn.finish(None).unwrap();
}

const GET: &[u8] = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn pipelined_requests_are_answered_one_by_one() {
    let second =
        b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\r\nGET /3 HTTP/1.0\r\n\r\n";
    let (mut conn, seen) = server(Script::new(&[&[GET, second].concat()]));
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    assert_eq!(head.target, "/1");
    answer(&mut conn, b"one").await;
    assert_eq!(text(&seen), "");
    conn.request(&mut head).await.unwrap().unwrap();
    assert_eq!(text(&seen), "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none");
    assert_eq!(seen.lock().unwrap().writes, 1);
    assert_eq!((&*head.target, body(&mut conn).await.unwrap()), ("/2", b"abc".to_vec()));
    answer(&mut conn, b"").await;
    assert!(conn.is_keep_alive());
    conn.request(&mut head).await.unwrap().unwrap();
    assert_eq!(head.target, "/3");
    answer(&mut conn, b"").await;
    assert!(!conn.is_keep_alive());
    assert!(conn.request(&mut head).await.unwrap().is_none());
    assert!(text(&seen).ends_with("Connection: close\r\nContent-Length: 0\r\n\r\n"));
}

#[tokio::test]
async fn a_request_in_drops_is_a_request() {
    let text = [GET, b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
    let (mut conn, _) = server(Script::split(&text, &[1]));
    let mut head = RequestHead::new();
    assert!(conn.is_idle());
    for target in ["/1", "/2"] {
        conn.request(&mut head).await.unwrap().unwrap();
        assert_eq!(head.target, target);
        assert!(!conn.is_idle());
        answer(&mut conn, b"").await;
    }
    assert!(conn.request(&mut head).await.unwrap().is_none());
}

#[tokio::test]
async fn empty_lines_are_not_the_beginning_of_a_request() {
    let lines = b"\r\n".repeat(100_000);
    let (mut conn, _) = server(Script::new(&[&lines, GET, b"\r\n\r", b"\n"]).open());
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    answer(&mut conn, b"").await;
    for _ in 0..10 {
        assert!(waits(conn.request(&mut head)));
    }
    assert!(conn.is_idle());
    assert_eq!(conn.wire.memory(), 0);
}

#[tokio::test]
async fn what_sniffing_read_comes_first() {
    let (mut conn, _) = server(Script::new(&[&GET[5..]]));
    conn = conn.with_read(&GET[..5]);
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    assert_eq!(head.target, "/1");
}

#[tokio::test]
async fn the_end_is_clean_only_between_requests() {
    let mut head = RequestHead::new();
    for clean in [&b""[..], b"\r\n"] {
        let (mut conn, _) = server(Script::new(&[clean]));
        assert!(conn.request(&mut head).await.unwrap().is_none());
    }
    let (mut conn, _) = server(Script::new(&[&GET[..10]]));
    let end = conn.request(&mut head).await.unwrap_err();
    assert!(matches!(end, ConnError::Bad(BadMessage::Truncated)), "{end}");
    let (mut conn, _) =
        server(Script::new(&[b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc"]));
    conn.request(&mut head).await.unwrap().unwrap();
    let end = body(&mut conn).await.unwrap_err();
    assert!(matches!(end, ConnError::Bad(BadMessage::Truncated)), "{end}");
}

const EXPECTING: &[u8] =
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_client_that_waits_is_asked_for_its_body() {
    let mut head = RequestHead::new();
    let (mut conn, seen) = server(Script::new(&[EXPECTING, b"abc"]));
    assert!(conn.request(&mut head).await.unwrap().unwrap().expect_continue);
    assert_eq!(body(&mut conn).await.unwrap(), b"abc");
    assert_eq!(text(&seen), "HTTP/1.1 100 Continue\r\n\r\n");
    answer(&mut conn, b"").await;
    assert!(conn.is_keep_alive());

    // The body is there already: nobody waits.
    let (mut conn, seen) = server(Script::new(&[&[EXPECTING, b"abc"].concat()]));
    conn.request(&mut head).await.unwrap();
    assert_eq!(body(&mut conn).await.unwrap(), b"abc");
    assert_eq!(text(&seen), "");

    // The application said so.
    let (mut conn, seen) = server(Script::new(&[EXPECTING, b"abc"]));
    conn.request(&mut head).await.unwrap();
    conn.send_informational(&ResponseHead { status: StatusCode::CONTINUE, ..ok() });
    conn.send_informational(&ResponseHead { status: StatusCode::EARLY_HINTS, ..ok() });
    assert_eq!(body(&mut conn).await.unwrap(), b"abc");
    answer(&mut conn, b"").await;
    assert!(conn.is_keep_alive());
    conn.flush().await.unwrap();
    assert_eq!(text(&seen).matches("HTTP/1.1 1").count(), 2);
}

#[tokio::test]
async fn a_client_that_was_not_asked_may_not_send_its_body() {
    let (mut conn, seen) = server(Script::new(&[EXPECTING, GET]));
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap();
    answer(&mut conn, b"no").await;
    assert!(!conn.is_keep_alive());
    assert!(conn.request(&mut head).await.unwrap().is_none());
    let wanted = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(text(&seen), wanted);
}

#[tokio::test]
async fn informational_answers_are_not_for_old_clients() {
    let (mut conn, seen) = server(Script::new(&[b"GET / HTTP/1.0\r\n\r\n"]));
    conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
    conn.send_informational(&ResponseHead { status: StatusCode::EARLY_HINTS, ..ok() });
    conn.flush().await.unwrap();
    assert_eq!(text(&seen), "");
}

#[tokio::test]
async fn an_early_answer_keeps_the_connection_if_little_is_left() {
    let mut head = RequestHead::new();
    let post = |length: usize| {
        format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    for (length, kept) in [(10, true), (60 << 10, true), (100 << 10, false)] {
        let (mut conn, _) = server(Script::new(&[&post(length), &vec![b'x'; length], GET]));
        conn.request(&mut head).await.unwrap();
        answer(&mut conn, b"early").await;
        assert_eq!(conn.request(&mut head).await.unwrap().is_some(), kept, "{length}");
    }
    // How much is left of chunks is not known in advance.
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    for (chunks, kept) in [(1, true), (10, false)] {
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        let text = [post, chunk.repeat(chunks).as_bytes(), b"0\r\n\r\n", GET].concat();
        let (mut conn, seen) = server(Script::split(&text, &[1000]));
        conn.request(&mut head).await.unwrap();
        answer(&mut conn, b"early").await;
        assert_eq!(conn.request(&mut head).await.unwrap().is_some(), kept, "{chunks}");
        assert!(seen.lock().unwrap().read < 200_000);
    }
}

#[tokio::test]
async fn what_is_no_request_is_answered_and_ends_the_connection() {
    let (mut conn, seen) = server(Script::new(&[b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"G(T /"]));
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    conn.send_head(&ok(), Body::Length(3));
    // A response to HEAD has no body, and takes none.
    conn.send(b"abc").await.unwrap();
    conn.finish(None).unwrap();
    let error = conn.request(&mut head).await.unwrap_err();
    let ConnError::Bad(error) = error else { panic!("{error}") };
    conn.send_head(&ResponseHead { status: error.status(), ..ok() }, Body::Length(2));
    conn.send(b"no").await.unwrap();
    conn.finish(None).unwrap();
    assert!(!conn.is_keep_alive());
    assert!(conn.request(&mut head).await.unwrap().is_none());
    let wanted = "HTTP/1.1 200 OK\r\n\r\n\
                  HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(text(&seen), wanted);
}

#[tokio::test]
async fn an_answer_that_is_not_whole_ends_the_connection() {
    let (mut conn, _) = server(Script::new(&[&[GET, GET].concat()]));
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    // Not answered at all.
    assert!(conn.request(&mut head).await.unwrap().is_none());
    conn.send_head(&ok(), Body::Chunked);
    conn.send(b"part").await.unwrap();
    assert!(conn.request(&mut head).await.unwrap().is_none());

    let (mut conn, seen) = server(Script::new(&[GET]));
    conn.request(&mut head).await.unwrap().unwrap();
    conn.send_head(&ok(), Body::Length(5));
    conn.send(b"four").await.unwrap();
    assert!(matches!(conn.finish(None), Err(ConnError::Body(_))));
    assert!(matches!(conn.send(b"twelve").await, Err(ConnError::Body(_))));
    conn.abort();
    assert!(seen.lock().unwrap().aborted);
}

#[tokio::test]
async fn a_draining_proxy_says_so() {
    let (mut conn, seen) = server(Script::new(&[GET, GET]));
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    conn.close_after();
    answer(&mut conn, b"").await;
    assert!(conn.request(&mut head).await.unwrap().is_none());
    assert!(text(&seen).contains("Connection: close\r\n"));
}

#[tokio::test]
async fn a_client_that_leaves_or_speaks_ahead_is_noticed() {
    let (mut conn, _) = server(Script::new(&[GET]));
    conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
    let peer = poll_fn(|cx| conn.poll_peer(cx)).await;
    assert!(matches!(peer, Peer::HalfClosed));
    // Once is enough, and it may still be answered.
    assert!(waits(poll_fn(|cx| conn.poll_peer(cx))));
    answer(&mut conn, b"").await;
    conn.flush().await.unwrap();

    let ahead = vec![b'\r'; 100_000];
    let (mut conn, seen) = server(Script::new(&[GET, GET, &ahead]).open());
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    for _ in 0..10 {
        assert!(waits(poll_fn(|cx| conn.poll_peer(cx))));
    }
    let read = seen.lock().unwrap().read;
    assert!((GET.len() * 2..=GET.len() + 4096).contains(&read), "{read}");
    answer(&mut conn, b"").await;
    conn.request(&mut head).await.unwrap().unwrap();
    assert_eq!(head.target, "/1");
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffers() {
    let (mut conn, _) = server(Script::new(&[GET]).open());
    let mut head = RequestHead::new();
    conn.request(&mut head).await.unwrap().unwrap();
    answer(&mut conn, b"body").await;
    assert!(waits(conn.request(&mut head)));
    assert!(conn.is_idle());
    assert_eq!(conn.wire.memory(), 0);
    assert!(size_of_val(&conn) <= 512, "{}", size_of_val(&conn));
}

#[tokio::test]
async fn a_client_that_does_not_read_makes_the_sender_wait() {
    let (mut conn, _) = server(Script::new(&[GET]).accepting(0));
    conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
    conn.send_head(&ok(), Body::Chunked);
    for size in [1000, 20_000] {
        let mut taken = 0;
        while !waits(conn.send(&vec![b'x'; size])) {
            taken += size;
            assert!(taken < 200_000);
        }
    }
    assert!(conn.wire.memory() < 300_000, "{}", conn.wire.memory());
}

#[tokio::test]
async fn what_a_slow_client_has_read_is_not_kept() {
    for size in [900, 10_000] {
        let (mut conn, seen) = server(Script::new(&[GET]).accepting(size).pausing());
        conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
        conn.send_head(&ok(), Body::Chunked);
        for _ in 0..2000 {
            conn.send(&vec![b'x'; size]).await.unwrap();
            // Something is always unsent.
            let _either = waits(conn.flush());
        }
        assert!(conn.wire.memory() < 300_000, "{}", conn.wire.memory());
        conn.finish(None).unwrap();
        conn.flush().await.unwrap();
        let written = &seen.lock().unwrap().written;
        assert!(written.len() > 2000 * size && written.ends_with(b"x\r\n0\r\n\r\n"));
    }
}

#[tokio::test]
async fn head_and_body_are_one_write() {
    for size in [10, 100_000] {
        let (mut conn, seen) = server(Script::new(&[GET]));
        conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
        let data = vec![b'x'; size];
        conn.send_head(&ok(), Body::Chunked);
        conn.send(&data).await.unwrap();
        conn.flush().await.unwrap();
        assert_eq!(seen.lock().unwrap().writes, 1, "{size}");
        conn.finish(None).unwrap();
        conn.flush().await.unwrap();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let wanted = format!("{head}{size:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(size));
        assert!(text(&seen) == wanted, "{size}");
    }
}

#[tokio::test]
async fn a_tunnel_begins_where_the_request_ended() {
    let text = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nfirst";
    let (mut conn, seen) = server(Script::new(&[text]));
    assert!(conn.request(&mut RequestHead::new()).await.unwrap().unwrap().upgrade);
    let switched = ResponseHead { status: StatusCode::SWITCHING_PROTOCOLS, ..ok() };
    conn.send_head(&switched, Body::Tunnel);
    assert!(!conn.is_keep_alive());
    conn.flush().await.unwrap();
    assert!(seen.lock().unwrap().written.starts_with(b"HTTP/1.1 101"));
    let (_, read) = conn.into_tunnel();
    assert_eq!(read, b"first");
}

/// A client that sends `lines` and its body, then on and on, and reads its
/// answer: how long the connection lives after that.
async fn lingers(lines: &str, close: bool) -> u64 {
    let (mut client, served) = tokio::io::duplex(1024);
    let mut conn = ServerConn::new(served, Limits::default(), Buffers::new());
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let begin = tokio::time::Instant::now();
    let serve = async {
        conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
        if close {
            conn.close_after();
        }
        answer(&mut conn, b"no").await;
        conn.close().await;
        begin.elapsed().as_secs()
    };
    let call = async {
        // More than fits between the two.
        let sent = client.write_all(&vec![b'x'; 50_000]).await;
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("\r\n\r\nno"), "{text}");
        // It does not end its direction: the proxy does.
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert!(client.write_all(b"x").await.is_err());
        sent
    };
    let (lived, _sent) = tokio::join!(serve, call);
    lived
}

#[tokio::test(start_paused = true)]
async fn a_client_that_still_sends_can_read_its_answer() {
    // It has not sent all, or may send another request.
    assert_eq!(lingers("Connection: close\r\nContent-Length: 100000\r\n", false).await, 2);
    assert_eq!(lingers("", true).await, 2);
    // It has said that it sends no more.
    assert_eq!(lingers("Connection: close\r\n", false).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_without_end_can_read_its_answer() {
    let (mut client, served) = tokio::io::duplex(64 << 10);
    let mut conn = ServerConn::new(served, Limits::default(), Buffers::new());
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
    client.write_all(head).await.unwrap();
    let serve = async {
        conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
        answer(&mut conn, b"no").await;
        conn.close().await;
    };
    let call = async {
        let chunk = vec![b'x'; 1 << 20];
        let sending = async {
            loop {
                client.write_all(&chunk).await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(1), sending).await.unwrap_err();
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(text.ends_with("\r\n\r\nno"), "{text}");
    };
    tokio::join!(serve, call);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_not_waited_for() {
    let (mut conn, seen) = server(Script::new(&[GET]).accepting(0));
    conn.request(&mut RequestHead::new()).await.unwrap().unwrap();
    answer(&mut conn, b"").await;
    let begin = tokio::time::Instant::now();
    conn.close().await;
    assert_eq!((begin.elapsed().as_secs(), seen.lock().unwrap().shut), (10, false));
}

/// All requests of a connection: targets and bodies, and how it ended.
async fn transcript(script: Script) -> (Vec<(String, Vec<u8>)>, String) {
    let (mut conn, _) = server(script);
    let (mut requests, mut head) = (Vec::new(), RequestHead::new());
    loop {
        match conn.request(&mut head).await {
            Ok(Some(_)) => {}
            Ok(None) => return (requests, "end".into()),
            Err(error) => return (requests, error.to_string()),
        }
        match body(&mut conn).await {
            Ok(body) => requests.push((head.target.clone(), body)),
            Err(error) => return (requests, error.to_string()),
        }
        let trailers = conn.take_trailers().map_or(0, |trailers| trailers.len());
        answer(&mut conn, format!("{trailers}").as_bytes()).await;
    }
}

proptest! {
    #[test]
    fn how_bytes_arrive_does_not_matter(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            GET,
            b"POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            b"POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"4\r\nGET \r\n",
            b"0\r\n\r\n",
            b"0\r\nx-t: 1\r\n\r\n",
            b"\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"G",
            b"Content-Length: 1\r\n",
        ]), 1..8),
        sizes in proptest::collection::vec(1_usize..50, 1..5),
    ) {
        let text = pieces.concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let whole = runtime.block_on(transcript(Script::new(&[&text])));
        let split = runtime.block_on(transcript(Script::split(&text, &sizes)));
        prop_assert_eq!(split, whole);
    }
}
