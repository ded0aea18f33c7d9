//! Endpoints that die, and proxies that go away.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use support::{
    DOMAIN, Pair, Proxy, Targets, any,
    apps::{AnyBody, App, empty, fetch, full, get, http1, http2, read},
    caller::wait,
    inbound_config, orders, orders_endpoints, outbound_config,
    pki::Authority,
    refusing,
    script::{Script, answer},
    snapshot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

async fn hello(_request: Request<Incoming>) -> Response<AnyBody> {
    Response::new(full("hello"))
}

/// One source, two destinations with an application each.
struct Trio {
    source: Proxy,
    destinations: Vec<Proxy>,
    apps: Vec<App>,
}

async fn trio() -> Trio {
    let authority = Authority::new(DOMAIN);
    let (mut destinations, mut apps, mut endpoints) = (Vec::new(), Vec::new(), Vec::new());
    for name in ["one", "two"] {
        let app = App::start(hello).await;
        let proxy = Proxy::start(&authority, authority.workload("orders"), inbound_config()).await;
        endpoints.extend(orders_endpoints(name, proxy.inbound(), Targets::all(app.addr)));
        destinations.push(proxy);
        apps.push(app);
    }
    let source = Proxy::start(&authority, authority.workload("checkout"), outbound_config()).await;
    let snapshot = snapshot(&authority, vec![orders()], endpoints);
    for proxy in destinations.iter().chain([&source]) {
        proxy.tell(&snapshot);
    }
    Trio { source, destinations, apps }
}

#[tokio::test]
async fn no_request_fails_when_one_of_two_proxies_dies() {
    let trio = trio().await;
    let mut client = http1(trio.source.http()).await;
    for round in 0..40 {
        if round == 20 {
            trio.destinations[0].kill().await;
        }
        let response = client.send_request(get("http://orders.shop/")).await.unwrap();
        assert_eq!(response.status(), 200, "round {round}");
        assert_eq!(read(response).await, "hello");
        client.ready().await.unwrap();
    }
}

#[tokio::test]
async fn no_request_fails_when_one_of_two_applications_dies() {
    let mut trio = trio().await;
    for round in 0..40 {
        if round == 20 {
            trio.apps.remove(0).kill().await;
        }
        // Nothing was processed where nothing was reached: any method may go on.
        let request = Request::post("http://orders.shop/").body(full("order")).unwrap();
        let response = http1(trio.source.http()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "round {round}");
    }
}

/// Accepts, reads a request, and closes without an answer.
async fn silent() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::<AtomicUsize>::default();
    let seen = count.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            seen.fetch_add(1, Ordering::Relaxed);
            let _read = stream.read(&mut [0; 1024]).await;
        }
    });
    (addr, count)
}

#[tokio::test]
async fn what_may_have_been_processed_is_repeated_once_and_only_if_idempotent() {
    for (method, wanted) in [("GET", 2), ("PUT", 2), ("POST", 1), ("PATCH", 1)] {
        let (addr, seen) = silent().await;
        let pair = Pair::start(Targets::all(addr)).await;
        let request =
            Request::builder().method(method).uri("http://orders.shop/").body(full("x")).unwrap();
        let response = http1(pair.source.http()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 502, "{method}");
        assert_eq!(response.headers()["isthmus-error"], "upstream_reset");
        assert_eq!(seen.load(Ordering::Relaxed), wanted, "{method}");
    }
}

#[tokio::test]
async fn an_application_that_is_gone_is_told_apart() {
    let (_kept, closed) = refusing();
    let pair = Pair::start(Targets::all(closed)).await;
    let (head, body) = fetch(pair.source.http(), "http://orders.shop/").await;
    assert_eq!(head.status, 502);
    assert_eq!(head.headers["isthmus-error"], "app_unreachable");
    let body = String::from_utf8_lossy(&body).into_owned();
    assert!(body.contains("orders.shop") && body.contains(&closed.to_string()), "{body}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_breaks_off_at_the_client_too() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _request = stream.read(&mut [0; 1024]).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    });
    let pair = Pair::start(Targets::all(addr)).await;
    // It may break before the head was passed on; it never looks whole.
    let sent = http1(pair.source.http()).await.send_request(get("http://orders.shop/")).await;
    if let Ok(response) = sent {
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err());
    }
}

/// An application that answers when it is told to.
async fn patient() -> (App, Arc<Notify>, Arc<Notify>) {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, wait) = (asked.clone(), go.clone());
    let app = App::start(move |request: Request<Incoming>| {
        let (seen, wait) = (seen.clone(), wait.clone());
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.notify_one();
            wait.notified().await;
            Response::new(full(Bytes::from([b"done ", &*body].concat())))
        }
    })
    .await;
    (app, asked, go)
}

/// Waits until nobody listens.
async fn closed(door: std::net::SocketAddr) {
    while TcpStream::connect(door).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_runs_may_finish_and_the_rest_is_refused_while_draining() {
    for drained in ["source", "destination"] {
        let (app, asked, go) = patient().await;
        let pair = Pair::start(Targets::all(app.addr)).await;
        let mut client = http2(pair.source.http()).await;
        let request = Request::post("http://orders.shop/").body(full("order")).unwrap();
        let mut running_client = client.clone();
        let running = tokio::spawn(async move { running_client.send_request(request).await });
        wait(asked.notified()).await;
        let proxy = if drained == "source" { &pair.source } else { &pair.destination };
        let drain = proxy.app.shared.drain.clone();
        let finished = tokio::spawn(async move { drain.finish(Duration::from_secs(10)).await });
        wait(proxy.app.shared.drain.draining()).await;
        if drained == "source" {
            // Its listeners close at once.
            wait(closed(proxy.http())).await;
            // GOAWAY, or a refusal if it was faster.
            let request = get("http://orders.shop/new");
            if let Ok(response) = wait(client.send_request(request)).await {
                assert_eq!(response.headers()["isthmus-error"], "draining");
            }
        }
        go.notify_one();
        let response = wait(running).await.unwrap().unwrap();
        assert_eq!(wait(read(response)).await, "done order", "{drained}");
        drop((client, pair.source.app.shared.snapshot.clone()));
        assert_eq!(wait(finished).await.unwrap(), 0, "{drained}: something had to be cut");
    }
}

#[tokio::test]
async fn the_deadline_of_a_drain_ends_what_does_not_finish() {
    let (app, asked, _go) = patient().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http1(pair.source.http()).await;
    let request = Request::get("http://orders.shop/").body(empty()).unwrap();
    let running = tokio::spawn(async move { client.send_request(request).await });
    wait(asked.notified()).await;
    pair.source.app.shared.drain.finish(Duration::from_millis(50)).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), running).await;
    // A refusal, if there was still time for one.
    if let Ok(response) = ended.unwrap().unwrap() {
        assert_eq!(response.status(), 502);
    }
}

#[tokio::test]
async fn a_route_deadline_is_a_timeout() {
    let (app, _asked, _go) = patient().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let route = mesh_api::v1::Route {
        name: "quick".into(),
        request_timeout_ms: 50,
        backends: vec![mesh_api::v1::Backend {
            service: "orders.shop".into(),
            port: String::new(),
            weight: 1,
            ..Default::default()
        }],
        ..mesh_api::v1::Route::default()
    };
    let service = mesh_api::v1::Service { routes: vec![route], ..orders() };
    let endpoints = orders_endpoints("one", pair.destination.inbound(), Targets::all(app.addr));
    pair.source.tell(&snapshot(&pair.authority, vec![service], endpoints));
    let (head, _) = fetch(pair.source.http(), "http://orders.shop/").await;
    assert_eq!(head.status, 504);
    assert_eq!(head.headers["isthmus-error"], "timeout");
}

/// An answer, if no HTTP: asking again would give no better one.
#[tokio::test]
async fn what_is_no_http_is_not_asked_for_again() {
    let mut app = Script::start().await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let asked = tokio::spawn(fetch(pair.source.http(), "http://orders.shop/"));
    let mut connection = app.accept().await;
    answer(&mut connection, "SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
    let (head, _) = wait(asked).await.unwrap();
    assert_eq!((head.status.as_u16(), &head.headers["isthmus-error"]), (502, &upstream_reset()));
    assert!(app.is_unused(), "it is asked once");
    // One that dies over its answer may have been unlucky.
    let asked = tokio::spawn(fetch(pair.source.http(), "http://orders.shop/"));
    let mut connection = app.accept().await;
    answer(&mut connection, "HTTP/1.1 200 OK\r\ncontent-len").await;
    drop(connection);
    let mut connection = app.accept().await;
    answer(&mut connection, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    assert_eq!(wait(asked).await.unwrap().0.status, 200);
}

fn upstream_reset() -> http::HeaderValue {
    http::HeaderValue::from_static("upstream_reset")
}

/// Leaves the runtime of a test next to no time for anything else until it is
/// dropped.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..100 {
            let stop = stop.clone();
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                    tokio::task::yield_now().await;
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_worker_that_cannot_keep_up_refuses_who_has_waited_for_too_long() {
    let app = App::start(hello).await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = http2(pair.source.http()).await;
        let answer = client.send_request(get("http://orders.shop/")).await.unwrap();
        assert_eq!(read(answer).await, "hello");
        clients.push(client);
    }
    let busy = Busy::start();
    // It is looked at while there are requests.
    fetch(pair.source.http(), "http://orders.shop/").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ask = |number: usize| {
        let mut client = clients[number % clients.len()].clone();
        tokio::spawn(async move {
            let answer = client.send_request(get("http://orders.shop/")).await.unwrap();
            let reason = answer.headers().get("isthmus-error").cloned();
            (answer.status().as_u16(), reason)
        })
    };
    let asked: Vec<_> = (0..600).map(ask).collect();
    let (mut answered, mut refused) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            (200, None) => answered += 1,
            (503, Some(reason)) if reason == "overloaded" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(answered >= 20 && refused >= 20, "{answered} answered, {refused} refused");
    drop(busy);
    assert_eq!(fetch(pair.source.http(), "http://orders.shop/").await.1, "hello");
    let metrics = pair.source.metrics();
    assert!(metrics.contains("reason=\"overloaded\""), "{metrics}");
}
