//! A proxy that is started again, and is the only one of its service.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge_proxy::config::Config;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_api::v1;
use support::{
    Pair, Proxy, Targets, any,
    apps::{AnyBody, App, fetch, full, get, http1, read},
    caller::wait,
    inbound_config, orders, orders_endpoints, outbound_config, refusing, snapshot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
    time::Instant,
};

/// Answers with what it got; `/slow` when it is told to.
async fn app() -> (App, Arc<Notify>, Arc<Notify>) {
    let (asked, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, wait) = (asked.clone(), go.clone());
    let answer = move |request: Request<Incoming>| {
        let (seen, wait) = (seen.clone(), wait.clone());
        async move {
            if request.uri().path() == "/slow" {
                seen.notify_one();
                wait.notified().await;
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::<AnyBody>::new(full(body))
        }
    };
    (App::start(answer).await, asked, go)
}

async fn post(http: SocketAddr, path: &str) -> (u16, String) {
    let request = Request::post(format!("http://orders.shop{path}")).body(full("order")).unwrap();
    let response = http1(http).await.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, String::from_utf8_lossy(&read(response).await).into_owned())
}

fn answered() -> (u16, String) {
    (200, "order".to_owned())
}

/// The proxy of the applications ends, and has no successor.
async fn stop(pair: &Pair) {
    let drain = pair.destination.app.shared.drain.clone();
    assert_eq!(wait(drain.finish(Duration::from_secs(10))).await, 0);
}

/// The process after it, at the same place.
async fn start_again(pair: &Pair) -> Proxy {
    let config = Config { inbound: pair.destination.bound.inbound, ..inbound_config() };
    let svid = pair.authority.workload("orders");
    let proxy = Proxy::start(&pair.authority, svid, config).await;
    proxy.tell(&pair.snapshot);
    proxy
}

fn counted(proxy: &Proxy, result: &str) -> u64 {
    let metrics = proxy.metrics();
    let line = format!("isthmus_proxy_held_total{{result=\"{result}\"}} ");
    let found = metrics.lines().find_map(|one| one.strip_prefix(&line));
    found.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn who_has_nowhere_else_to_go_is_served_until_nothing_lingers() {
    let (app, asked, go) = app().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let http = pair.source.http();
    let slow = tokio::spawn(async move { post(http, "/slow").await });
    wait(asked.notified()).await;
    let drain = pair.destination.app.shared.drain.clone();
    drain.part();
    let finishing = drain.clone();
    let finished = tokio::spawn(async move { finishing.finish(Duration::from_secs(30)).await });
    wait(drain.draining()).await;
    // In the session that is there, and in one that is not yet.
    let config = outbound_config();
    let other = Proxy::start(&pair.authority, pair.authority.workload("checkout"), config).await;
    other.tell(&pair.snapshot);
    for source in [&pair.source, &other] {
        for _ in 0..20 {
            assert_eq!(wait(post(source.http(), "/")).await, answered());
        }
    }
    assert!(!drain.is_refusing());
    go.notify_one();
    assert_eq!(wait(slow).await.unwrap(), answered());
    assert_eq!(wait(finished).await.unwrap(), 0, "something was cut");
    assert!(TcpStream::connect(pair.destination.inbound()).await.is_err());
    for source in [&pair.source, &other] {
        assert!(!source.metrics().contains("reason=\"upstream_reset\""));
        assert_eq!(counted(source, "resumed") + counted(source, "late"), 0);
    }
}

#[tokio::test]
async fn what_outlasts_the_drain_is_broken_off_and_nothing_else() {
    let (app, asked, go) = app().await;
    let drain_timeout = Duration::from_secs(6);
    let shortly = move |config: &mut Config| {
        (config.drain_timeout, config.opaque_drain_timeout) = (drain_timeout, drain_timeout);
    };
    let pair = Pair::start_both(Targets::all(app.addr), |_| (), shortly).await;
    let http = pair.source.http();
    let slow = tokio::spawn(async move { post(http, "/slow").await });
    wait(asked.notified()).await;
    let drain = pair.destination.app.shared.drain.clone();
    let finishing = drain.clone();
    let finished = tokio::spawn(async move { finishing.finish(drain_timeout).await });
    tokio::time::sleep(drain_timeout - Duration::from_secs(2)).await;
    assert_eq!(post(http, "/").await, answered());
    // It has begun late, in the same session, and has its time.
    let late = tokio::spawn(async move { post(http, "/slow").await });
    wait(asked.notified()).await;
    assert_eq!(wait(slow).await.unwrap().0, 502);
    wait(drain.refusing()).await;
    go.notify_waiters();
    assert_eq!(wait(late).await.unwrap(), answered());
    assert_eq!(wait(finished).await.unwrap(), 0, "it waits for all that it has taken");
    assert_eq!(pair.destination.app.shared.metrics.cut_stopping(), 1);
}

#[tokio::test]
async fn requests_wait_for_the_process_after_this_one() {
    let (app, _asked, _go) = app().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let http = pair.source.http();
    assert_eq!(post(http, "/").await, answered());
    stop(&pair).await;
    for round in 1..3 {
        let waiting: Vec<JoinHandle<_>> =
            (0..20).map(|_| tokio::spawn(async move { post(http, "/").await })).collect();
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(!waiting.iter().any(JoinHandle::is_finished));
        let began = Instant::now();
        let after = start_again(&pair).await;
        for waiting in waiting {
            assert_eq!(wait(waiting).await.unwrap(), answered());
        }
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(counted(&pair.source, "resumed"), 20 * round);
        assert_eq!(counted(&pair.source, "late") + counted(&pair.source, "refused"), 0);
        // The next time without a word.
        after.kill().await;
    }
}

#[tokio::test]
async fn connections_wait_like_requests() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let echo = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let pair = Pair::start(Targets::all(echo)).await;
    let tcp = pair.port("tcp");
    let is_echoed = |mut stream: TcpStream| async move {
        stream.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        stream.read_exact(&mut buf).await.is_ok() && buf == *b"ping"
    };
    assert!(is_echoed(TcpStream::connect(tcp).await.unwrap()).await);
    stop(&pair).await;
    let waiting = tokio::spawn(is_echoed(TcpStream::connect(tcp).await.unwrap()));
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!waiting.is_finished());
    let _after = start_again(&pair).await;
    assert!(wait(waiting).await.unwrap());
    assert_eq!(counted(&pair.source, "resumed"), 1);
}

#[tokio::test]
async fn nobody_waits_for_long() {
    let (app, _asked, _go) = app().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let http = pair.source.http();
    assert_eq!(post(http, "/").await, answered());
    stop(&pair).await;
    let began = Instant::now();
    let unhurried = tokio::spawn(fetch(http, "http://orders.shop/"));
    // It hears why in time.
    let mut hurried = get("http://orders.shop/");
    hurried.headers_mut().insert("x-isthmus-timeout", "1000".parse().unwrap());
    let answer = wait(http1(http).await.send_request(hurried)).await.unwrap();
    assert_eq!(answer.headers()["isthmus-error"], "endpoint_unreachable");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let (head, _) = wait(unhurried).await.unwrap();
    assert_eq!(head.headers["isthmus-error"], "endpoint_unreachable");
    let took = began.elapsed().as_secs_f64();
    assert!((4.0..7.0).contains(&took), "{took}");
    assert_eq!(counted(&pair.source, "late"), 2);
    // From now on it is known to be away.
    let began = Instant::now();
    assert_eq!(fetch(http, "http://orders.shop/").await.0.status, 503);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn nobody_waits_for_who_was_never_there() {
    let (_kept, closed) = refusing();
    let pair = Pair::start(Targets::all(closed)).await;
    let endpoints = orders_endpoints("never", closed, Targets::all(closed));
    pair.source.tell(&snapshot(&pair.authority, vec![orders()], endpoints));
    let began = Instant::now();
    for _ in 0..3 {
        let (head, _) = fetch(pair.source.http(), "http://orders.shop/").await;
        assert_eq!(head.headers["isthmus-error"], "endpoint_unreachable");
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(counted(&pair.source, "late"), 0);
}

#[tokio::test]
async fn who_is_reported_to_drain_is_the_last_resort() {
    let (app, _asked, _go) = app().await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut endpoints = orders_endpoints("one", pair.destination.inbound(), Targets::all(app.addr));
    endpoints.iter_mut().for_each(|one| one.health = v1::Health::Draining.into());
    let draining = snapshot(&pair.authority, vec![orders()], endpoints);
    pair.source.tell(&draining);
    assert_eq!(post(pair.source.http(), "/").await, answered());
}
