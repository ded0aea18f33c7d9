//! Exchanges with applications that do as their scripts say.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use mesh_core::message::{RequestHead, ResponseHead};
use mesh_tunnel::RealNet;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

mod warm;

/// Longer than anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

fn apps() -> Arc<Apps> {
    Apps::new(Arc::new(RealNet), Drain::new(), Buffers::new(), Transition::default())
}

/// An application: what it does with its `n`th connection.
struct App {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl App {
    async fn start<F, R>(serve: F) -> Self
    where
        F: Fn(usize, TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (addr, connections) = (listener.local_addr().unwrap(), Arc::default());
        let count: Arc<AtomicUsize> = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(count.fetch_add(1, Ordering::Relaxed), stream));
            }
        });
        Self { addr, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Reads a head, and what came with it.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    while !text.windows(4).any(|window| window == b"\r\n\r\n") {
        if stream.read_buf(&mut text).await.unwrap_or(0) == 0 {
            return None;
        }
    }
    Some(String::from_utf8(text).unwrap())
}

/// Reads until `text` has come.
async fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(text) {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{read:?}");
    }
    String::from_utf8(read).unwrap()
}

/// Answers every request of every connection with this.
async fn always(answer: &'static str) -> App {
    App::start(move |_, mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

/// A body in pieces; waits for ever after them if it is `open`.
#[derive(Debug, Default)]
struct Pieces {
    pieces: Vec<&'static [u8]>,
    open: bool,
    fails: bool,
}

impl Pieces {
    fn of(pieces: &[&'static [u8]]) -> Self {
        let pieces = pieces.iter().rev().copied().collect();
        Self { pieces, ..Self::default() }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        match self.pieces.pop() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(piece))))),
            None if self.fails => Poll::Ready(Some(Err("failed"))),
            None if self.open => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && !self.open && !self.fails
    }
}

fn request(method: Method) -> RequestHead {
    RequestHead { method, authority: "a".into(), target: "/x".into(), ..RequestHead::new() }
}

/// The whole answer: status, body, trailers.
type Whole = (u16, Vec<u8>, Option<Vec<u8>>);

async fn whole(apps: &Arc<Apps>, app: &App, head: &RequestHead, body: Pieces) -> Whole {
    let mut answer = ResponseHead::new();
    let mut exchange = Exchange::new(apps, app.addr, head, body);
    exchange.final_head(&mut answer).await.unwrap();
    let body = AnswerBody::new(exchange.into_answer().unwrap()).collect();
    let body = tokio::time::timeout(PATIENCE, body).await.unwrap().unwrap();
    let trailers = body.trailers().map(|map| map["t"].as_bytes().to_vec());
    (answer.status.as_u16(), body.to_bytes().to_vec(), trailers)
}

#[tokio::test]
async fn every_way_to_end_an_answer_is_understood() {
    let cases: &[(&str, Method, Whole, usize)] = &[
        (
            "HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok",
            Method::GET,
            (200, b"ok".to_vec(), None),
            1,
        ),
        ("HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\n", Method::HEAD, (200, vec![], None), 1),
        ("HTTP/1.1 204 x\r\n\r\n", Method::GET, (204, vec![], None), 1),
        ("HTTP/1.1 304 x\r\nContent-Length: 7\r\n\r\n", Method::GET, (304, vec![], None), 1),
        (
            "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nt: 1\r\n\r\n",
            Method::GET,
            (200, b"ok".to_vec(), Some(b"1".to_vec())),
            1,
        ),
        (
            "HTTP/1.1 103 x\r\nLink: y\r\n\r\nHTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 x\r\n\
             Content-Length: 0\r\n\r\n",
            Method::GET,
            (200, vec![], None),
            1,
        ),
        (
            "HTTP/1.1 200 x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
            Method::GET,
            (200, b"ok".to_vec(), None),
            2,
        ),
        (
            "HTTP/1.0 200 x\r\nContent-Length: 2\r\n\r\nok",
            Method::GET,
            (200, b"ok".to_vec(), None),
            2,
        ),
    ];
    for (answer, method, wanted, connections) in cases {
        let (apps, app) = (apps(), always(answer).await);
        for _ in 0..2 {
            let got = whole(&apps, &app, &request(method.clone()), Pieces::default()).await;
            assert_eq!(&got, wanted, "{answer}");
        }
        assert_eq!(app.connections(), *connections, "{answer}");
    }
}

#[tokio::test]
async fn an_answer_may_end_with_its_connection() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.0 200 x\r\n\r\nto the").await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(b" end").await.unwrap();
    })
    .await;
    let apps = apps();
    for n in 1..3 {
        let got = whole(&apps, &app, &request(Method::GET), Pieces::default()).await;
        assert_eq!(got, (200, b"to the end".to_vec(), None));
        assert_eq!(app.connections(), n);
    }
}

#[tokio::test]
async fn a_request_arrives_in_the_framing_that_fits() {
    let app = App::start(|_, mut stream| async move {
        let request = read_until(&mut stream, "end").await;
        let answer =
            format!("HTTP/1.1 200 x\r\nContent-Length: {}\r\n\r\n{request}", request.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let apps = apps();
    let mut head = request(Method::POST);
    let pieces = || Pieces::of(&[b"the ", b"end"]);
    let (_, seen, _) = whole(&apps, &app, &head, pieces()).await;
    let chunked = "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
                   4\r\nthe \r\n3\r\nend";
    assert!(String::from_utf8_lossy(&seen).starts_with(chunked), "{}", seen.escape_ascii());
    head.fields.push("content-length", b"7");
    let (_, seen, _) = whole(&apps, &app, &head, pieces()).await;
    let counted = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\nthe end";
    assert_eq!(String::from_utf8_lossy(&seen), counted);
}

#[tokio::test]
async fn a_body_that_fails_or_is_not_as_announced_ends_the_request() {
    let app = always("HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n").await;
    let bodies: [fn() -> Pieces; 4] = [
        Pieces::default,
        || Pieces::of(&[b"1234"]),
        || Pieces::of(&[b"123", b"456"]),
        || Pieces { fails: true, ..Pieces::of(&[b"1"]) },
    ];
    for body in bodies {
        let apps = apps();
        let mut head = request(Method::PUT);
        head.fields.push("content-length", b"5");
        let mut exchange = Exchange::new(&apps, app.addr, &head, body());
        let error = exchange.final_head(&mut ResponseHead::new()).await.unwrap_err();
        assert!(matches!(error, ExchangeError::BodyFailed), "{error}");
    }
}

#[tokio::test]
async fn who_is_not_there_is_told_apart() {
    // Nobody listens there, and nobody else can meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let nobody = socket.local_addr().unwrap();
    let (apps, head) = (apps(), request(Method::POST));
    let mut exchange = Exchange::new(&apps, nobody, &head, Pieces::of(&[b"kept"]));
    let error = exchange.final_head(&mut ResponseHead::new()).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NotConnected(_)), "{error}");
    assert_eq!(exchange.into_body().pieces, [b"kept"]);
}

/// Keeps its first connection for one answer, and closes it upon the second
/// request; later ones answer for ever.
async fn forgetful() -> App {
    App::start(|n, mut stream| async move {
        let mut answered = 0;
        while read_head(&mut stream).await.is_some() {
            if n == 0 && answered == 1 {
                return;
            }
            stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            answered += 1;
        }
    })
    .await
}

#[tokio::test]
async fn an_idle_connection_that_was_closed_is_replaced_where_that_is_safe() {
    let cases: &[(Method, &[&[u8]], bool)] = &[
        (Method::GET, &[], true),
        (Method::PUT, &[], true),
        (Method::POST, &[], false),
        // Part of it is gone.
        (Method::PUT, &[b"body"], false),
    ];
    for (method, body, repeated) in cases {
        let (apps, app) = (apps(), forgetful().await);
        whole(&apps, &app, &request(Method::GET), Pieces::default()).await;
        let head = request(method.clone());
        let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::of(body));
        let mut answer = ResponseHead::new();
        match exchange.final_head(&mut answer).await {
            Ok(_) => assert!(*repeated, "{method}"),
            Err(ExchangeError::Broken(_)) => assert!(!*repeated, "{method}"),
            Err(error) => panic!("{method}: {error}"),
        }
        assert_eq!(app.connections(), if *repeated { 2 } else { 1 }, "{method}");
    }
}

#[tokio::test]
async fn a_new_connection_that_is_closed_is_not_replaced() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
    })
    .await;
    let (apps, head) = (apps(), request(Method::GET));
    let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::default());
    let error = exchange.final_head(&mut ResponseHead::new()).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Broken(_)), "{error}");
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_never_used() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let apps = apps();
    for n in 1..4 {
        // Not idempotent: nothing would be repeated.
        whole(&apps, &app, &request(Method::POST), Pieces::default()).await;
        assert_eq!(app.connections(), n);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    apps.sweep();
    assert!(apps.idle().is_empty());
}

#[tokio::test]
async fn an_application_says_how_long_its_connections_may_be_idle() {
    let cases: &[(&[&str], u64)] = &[
        (&[], 60_000),
        (&["timeout=5, max=100"], 4_000),
        (&["max=100", "Timeout=\"3\""], 2_000),
        (&["timeout=1"], 500),
        (&["timeout=0"], 0),
        (&["timeout=86400"], 60_000),
        (&["timeout=-1"], 60_000),
        (&["timeout"], 60_000),
    ];
    for (values, millis) in cases {
        let mut fields = Fields::new();
        values.iter().for_each(|value| fields.push_known(Known::KeepAlive, value.as_bytes()));
        assert_eq!(idle_for(&fields), Duration::from_millis(*millis), "{values:?}");
    }
    for (timeout, connections) in [(0, 3), (5, 1)] {
        let app = App::start(move |_, mut stream| async move {
            let answer = format!(
                "HTTP/1.1 200 x\r\nKeep-Alive: timeout={timeout}\r\nContent-Length: 0\r\n\r\n"
            );
            while read_head(&mut stream).await.is_some() {
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let apps = apps();
        for _ in 0..3 {
            whole(&apps, &app, &request(Method::GET), Pieces::default()).await;
        }
        assert_eq!(app.connections(), connections, "{timeout}");
    }
}

#[tokio::test]
async fn who_has_gone_is_not_answered() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        // The end of the connection is what it waits for.
        let _ended = stream.read(&mut [0; 1]).await;
    })
    .await;
    let (apps, head) = (apps(), request(Method::GET));
    let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::default());
    let (mut asked, mut answer) = (0, ResponseHead::new());
    let error = exchange.head(&mut answer, |cx, _| {
        asked += 1;
        cx.waker().wake_by_ref();
        if asked < 100 { Poll::Pending } else { Poll::Ready(()) }
    });
    let error = tokio::time::timeout(PATIENCE, error).await.unwrap().unwrap_err();
    assert!(matches!(error, ExchangeError::Gone), "{error}");
}

#[tokio::test]
async fn informational_heads_are_offered() {
    let hints = "HTTP/1.1 103 x\r\nLink: y\r\n\r\nHTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 x\r\n\
                 Content-Length: 0\r\n\r\n";
    let (apps, app, head) = (apps(), always(hints).await, request(Method::GET));
    let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::default());
    let (mut answer, mut seen) = (ResponseHead::new(), Vec::new());
    while seen.last() != Some(&200) {
        exchange.head(&mut answer, |_, _| Poll::Pending).await.unwrap();
        seen.push(answer.status.as_u16());
        assert_eq!(is_final(answer.status), seen.len() == 2);
    }
    assert_eq!(seen, [103, 200]);
}

#[tokio::test]
async fn an_early_answer_is_carried_while_the_request_goes_on() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
        read_until(&mut stream, "end").await;
        stream.write_all(b"cd").await.unwrap();
    })
    .await;
    let (apps, mut head) = (apps(), request(Method::POST));
    head.fields.push("content-length", b"9");
    let body = Pieces { open: true, ..Pieces::default() };
    let mut exchange = Exchange::new(&apps, app.addr, &head, body);
    exchange.final_head(&mut ResponseHead::new()).await.unwrap();
    *exchange.body() = Pieces::of(&[b"to the", b"end"]);
    let body = AnswerBody::new(exchange.into_answer().unwrap()).collect();
    let got = tokio::time::timeout(PATIENCE, body).await.unwrap().unwrap();
    assert_eq!(got.to_bytes(), "abcd");
    assert_eq!(apps.idle().len(), 1);
}

#[tokio::test]
async fn an_answer_to_half_a_request_ends_its_connection() {
    let app = always("HTTP/1.1 413 x\r\nContent-Length: 2\r\n\r\nno").await;
    let (apps, head) = (apps(), request(Method::POST));
    let body = Pieces { open: true, ..Pieces::of(&[b"begun"]) };
    let got = whole(&apps, &app, &head, body).await;
    assert_eq!(got, (413, b"no".to_vec(), None));
    assert!(apps.idle().is_empty());
}

#[tokio::test]
async fn an_answer_dropped_early_ends_its_connection() {
    let app = always("HTTP/1.1 200 x\r\nContent-Length: 4\r\n\r\nhalf").await;
    let (apps, head) = (apps(), request(Method::GET));
    let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::default());
    exchange.final_head(&mut ResponseHead::new()).await.unwrap();
    let mut answer = exchange.into_answer().unwrap();
    poll_fn(|cx| answer.poll_data(cx).map_ok(|data| assert!(data.is_some()))).await.unwrap();
    answer.consume(1);
    drop(AnswerBody::new(answer));
    assert!(apps.idle().is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error() {
    let app = App::start(|_, mut stream| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let (apps, head) = (apps(), request(Method::GET));
    let mut exchange = Exchange::new(&apps, app.addr, &head, Pieces::default());
    exchange.final_head(&mut ResponseHead::new()).await.unwrap();
    assert!(AnswerBody::new(exchange.into_answer().unwrap()).collect().await.is_err());
}

#[tokio::test]
async fn an_upgrade_is_offered_without_its_body() {
    let app = App::start(|n, mut stream| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.ends_with("upgrade: echo\r\nConnection: upgrade\r\n\r\n"), "{head}");
        if n > 0 {
            stream.write_all(b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            return;
        }
        let text = b"HTTP/1.1 101 x\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nfirst ";
        stream.write_all(text).await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.unwrap();
    })
    .await;
    let (apps, mut head, mut answer) = (apps(), request(Method::GET), ResponseHead::new());
    head.fields.push("upgrade", b"echo");
    let mut exchange = Exchange::offer(&apps, app.addr, &head, Pieces::of(&[b"kept"]));
    exchange.final_head(&mut answer).await.unwrap();
    assert_eq!(answer.status, 101);
    let (mut stream, body) = exchange.into_tunnel().unwrap();
    assert_eq!(body.pieces, [b"kept"]);
    stream.write_all(b"second").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "first second");
    // The application does not want to.
    let mut exchange = Exchange::offer(&apps, app.addr, &head, Pieces::of(&[b"kept"]));
    exchange.final_head(&mut answer).await.unwrap();
    assert_eq!((answer.status.as_u16(), exchange.into_body().pieces.len()), (200, 1));
}
