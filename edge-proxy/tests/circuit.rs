//! What a caller has at one service at most: connections, and requests that
//! wait for one.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::body::Incoming;
use mesh_core::rule::CircuitBreaker;
use support::{
    Pair, Targets,
    apps::{App, empty, full, get, http1, http2, read},
    caller::wait,
    script::{Script, answer, read_until},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const URI: &str = "http://orders.shop/";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Two proxies, or one in front of applications without.
async fn pair(hops: usize, app: SocketAddr) -> Pair {
    match hops {
        1 => Pair::one_hop(Targets::all(app)).await,
        _ => Pair::start(Targets::all(app)).await,
    }
}

fn breaker(connections: u32, pending: u32) -> CircuitBreaker {
    let limit = |limit: u32| (limit > 0).then_some(limit);
    CircuitBreaker {
        max_connections: limit(connections),
        max_pending: limit(pending),
        ..CircuitBreaker::default()
    }
}

/// The source decides by this from now on.
fn tell(pair: &mut Pair, breaker: CircuitBreaker) {
    for service in pair.snapshot.services.values_mut() {
        Arc::make_mut(service).traffic.circuit_breaker = breaker;
    }
    pair.source.tell(&pair.snapshot);
}

/// Opens a connection to the port `tcp`; `None` if it is reset.
async fn opaque(pair: &Pair) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(pair.port("tcp")).await.unwrap();
    stream.write_all(b"x").await.ok()?;
    let echoed = wait(stream.read_u8()).await.ok()?;
    assert_eq!(echoed, b'x');
    Some(stream)
}

/// Sends back what comes.
async fn echo() -> SocketAddr {
    let mut script = Script::start().await;
    let addr = script.addr;
    tokio::spawn(async move {
        loop {
            let mut stream = script.accept().await;
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

fn refused(pair: &Pair) -> bool {
    pair.source.metrics().contains("reason=\"circuit_open\"")
}

#[tokio::test]
async fn opaque_connections_are_limited_until_they_end() {
    for hops in [1, 2] {
        let mut pair = pair(hops, echo().await).await;
        tell(&mut pair, breaker(2, 0));
        let (first, second) = (opaque(&pair).await, opaque(&pair).await);
        assert!(first.is_some() && second.is_some(), "{hops}");
        assert!(!refused(&pair), "{hops}");
        assert!(opaque(&pair).await.is_none(), "{hops}: a third one");
        assert!(refused(&pair), "{hops}");
        drop(first);
        let again = async {
            while opaque(&pair).await.is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        wait(again).await;
    }
}

async fn ask(proxy: SocketAddr) -> (u16, String) {
    let response = wait(http1(proxy).await.send_request(get(URI))).await.unwrap();
    let status = response.status().as_u16();
    let error = response.headers().get("isthmus-error").cloned();
    wait(read(response)).await;
    (status, error.map(|code| code.to_str().unwrap().to_owned()).unwrap_or_default())
}

fn circuit_open() -> (u16, String) {
    (503, "circuit_open".to_owned())
}

/// Of three requests one has the only connection, one waits for it, and one
/// may not.
#[tokio::test]
async fn a_plain_connection_is_waited_for() {
    let mut app = Script::start().await;
    let mut pair = pair(1, app.addr).await;
    tell(&mut pair, breaker(1, 1));
    let proxy = pair.source.http();
    let first = tokio::spawn(ask(proxy));
    let mut connection = app.accept().await;
    read_until(&mut connection, "\r\n\r\n").await;
    let second = tokio::spawn(ask(proxy));
    // One waits by now, or will be refused instead.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ask(proxy).await, circuit_open());
    assert!(!second.is_finished() && app.is_unused(), "it waits, and has no connection");
    connection.write_all(OK.as_bytes()).await.unwrap();
    assert_eq!(wait(first).await.unwrap().0, 200);
    answer(&mut connection, OK).await;
    assert_eq!(wait(second).await.unwrap().0, 200);
    assert!(app.is_unused());
    // Nobody waits: the circuit is closed.
    let third = tokio::spawn(ask(proxy));
    answer(&mut connection, OK).await;
    assert_eq!(wait(third).await.unwrap().0, 200);
}

/// The endpoint's proxy accepts and says nothing: whoever comes waits for a
/// session.
#[tokio::test]
async fn who_waits_for_a_session_is_limited() {
    let mut silent = Script::start().await;
    let mut pair = pair(2, silent.addr).await;
    for endpoint in
        &mut Arc::make_mut(pair.snapshot.services.values_mut().next().unwrap()).endpoints
    {
        Arc::make_mut(endpoint).address = Some(silent.addr);
    }
    tell(&mut pair, breaker(0, 2));
    let proxy = pair.source.http();
    let waiting = [tokio::spawn(ask(proxy)), tokio::spawn(ask(proxy))];
    let _held = silent.accept().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ask(proxy).await, circuit_open());
    assert!(waiting.iter().all(|one| !one.is_finished()));
    for one in waiting {
        assert_eq!(wait(one).await.unwrap().1, "endpoint_unreachable");
    }
}

/// An application that answers when it is told to.
async fn patient() -> (App, Arc<Notify>) {
    let go = Arc::<Notify>::default();
    let told = go.clone();
    let app = App::start(move |_request: Request<Incoming>| {
        let told = told.clone();
        async move {
            told.notified().await;
            Response::new(full("done"))
        }
    })
    .await;
    (app, go)
}

/// So many that a second session or connection would be opened for them.
const CROWD: usize = 180;

/// Sessions of the source, or connections to the application, that a crowd of
/// calls shares.
async fn shared_by_a_crowd(pair: &Pair, (app, go): &(App, Arc<Notify>), hops: usize) -> usize {
    let client = http2(pair.port("grpc")).await;
    let calls: Vec<_> = (0..CROWD)
        .map(|_| {
            let mut client = client.clone();
            let request = Request::post("http://orders.shop:81/s/M")
                .header("content-type", "application/grpc")
                .body(empty());
            tokio::spawn(async move { client.send_request(request.unwrap()).await.unwrap() })
        })
        .collect();
    // All of them have found their place by then.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let shared = match hops {
        1 => app.connections.load(std::sync::atomic::Ordering::Relaxed),
        _ => sessions(pair),
    };
    let release = async {
        loop {
            go.notify_waiters();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let all = async {
        for call in calls {
            assert_eq!(call.await.unwrap().status(), 200);
        }
    };
    tokio::select! {
        () = wait(all) => shared,
        () = release => unreachable!("it never ends"),
    }
}

fn sessions(pair: &Pair) -> usize {
    let metrics = pair.source.metrics();
    let gauge = "isthmus_proxy_inner_sessions{direction=\"outbound\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(gauge)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn shared_connections_to_an_endpoint_are_limited() {
    for hops in [1, 2] {
        let patient = patient().await;
        let mut pair = pair(hops, patient.0.addr).await;
        tell(&mut pair, breaker(1, 0));
        assert_eq!(shared_by_a_crowd(&pair, &patient, hops).await, 1, "{hops}");
        tell(&mut pair, breaker(0, 0));
        assert!(shared_by_a_crowd(&pair, &patient, hops).await > 1, "{hops}: without a limit");
    }
}
