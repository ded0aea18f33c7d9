//! HTTP between two proxies, over real sockets.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::IpAddr, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use support::{
    Pair, Targets,
    apps::{App, empty, fetch, full, get, http1, read},
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

/// Says what it saw.
async fn echo(request: Request<hyper::body::Incoming>) -> Response<support::apps::AnyBody> {
    let header = |name: &str| {
        let value = request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        value.unwrap_or_default()
    };
    let mut builder = Response::builder()
        .header("x-method", request.method().as_str())
        .header("x-uri", request.uri().to_string())
        .header("x-host", header("host"))
        .header("x-caller", header("x-isthmus-client-id"))
        .header("x-legacy-caller", header("l5d-client-id"))
        .header("x-saw-service", header("isthmus-service"))
        .header("x-saw-hop", header("x-hop"))
        .header("x-saw-dtab", format!("{}{}", header("l5d-ctx-dtab"), header("l5d-dtab")))
        .header("isthmus-error", "forged");
    if request.uri().path() == "/empty" {
        builder = builder.status(204);
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    builder.body(full(body)).unwrap()
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent_and_names_its_caller() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http1(pair.source.http()).await;
    let request = Request::post("http://orders.shop:80/a/b?c=d")
        .header("x-isthmus-client-id", "spiffe://west.example/ns/shop/sa/admin")
        .header("l5d-client-id", "admin")
        .header("isthmus-service", "other.shop")
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .body(full("hello"))
        .unwrap();
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = response.headers().clone();
    assert_eq!(headers["x-method"], "POST");
    assert_eq!(headers["x-uri"], "/a/b?c=d");
    assert_eq!(headers["x-host"], "orders.shop:80");
    assert_eq!(headers["x-caller"], "spiffe://west.example/ns/shop/sa/checkout");
    assert_eq!(headers["x-legacy-caller"], headers["x-caller"]);
    for gone in ["x-saw-service", "x-saw-hop"] {
        assert_eq!(headers[gone], "", "{gone}");
    }
    assert!(!headers.contains_key("isthmus-error"));
    assert_eq!(read(response).await, "hello");
}

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http1(pair.source.http()).await;
    for _ in 0..5 {
        let response = client.send_request(get("http://orders.shop/x")).await.unwrap();
        assert_eq!(response.headers()["x-host"], "orders.shop");
        read(response).await;
        client.ready().await.unwrap();
    }
    assert_eq!(app.connections.load(Ordering::Relaxed), 1);
    let metrics = pair.source.metrics();
    let counted = "isthmus_proxy_request_total{direction=\"outbound\",service=\"orders.shop\",\
                   port=\"http\",path=\"direct\",protocol=\"http\",status_class=\"2xx\",reason=\"\"} 5";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_host_header_names_the_service_and_stays() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    for host in ["orders.shop", "orders.shop.svc.cluster.local:80", "ORDERS.shop"] {
        let request = Request::get("/y").header("host", host).body(empty()).unwrap();
        let response = http1(pair.source.http()).await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200, "{host}");
        assert_eq!(response.headers()["x-host"], host);
    }
    let request = Request::get("/y").header("host", "anything").body(empty()).unwrap();
    let response = http1(pair.port("http")).await.send_request(request).await.unwrap();
    assert_eq!(response.headers()["x-host"], "anything");
}

#[tokio::test]
async fn heads_without_bodies_stay_without() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http1(pair.source.http()).await;
    let head = Request::head("http://orders.shop/x").body(empty()).unwrap();
    let response = client.send_request(head).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-method"], "HEAD");
    assert_eq!(read(response).await, "");
    client.ready().await.unwrap();
    let response = client.send_request(get("http://orders.shop/empty")).await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(read(response).await, "");
    client.ready().await.unwrap();
    let options = Request::builder().method(Method::OPTIONS).uri("http://orders.shop/");
    let response = client.send_request(options.body(empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-method"], "OPTIONS");
}

#[tokio::test]
async fn many_first_requests_open_one_session() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let requests = (0..50).map(|_| fetch(pair.source.http(), "http://orders.shop/x"));
    for (head, _) in futures_util::future::join_all(requests).await {
        assert_eq!(head.status, 200);
    }
    let sessions = "isthmus_proxy_inner_sessions{direction=\"outbound\"} 1\n";
    assert!(pair.source.metrics().contains(sessions), "{}", pair.source.metrics());
}

#[tokio::test]
async fn clients_may_speak_http2_where_the_application_does_not() {
    let app = App::start(|request: Request<hyper::body::Incoming>| async move {
        assert_eq!(request.version(), http::Version::HTTP_11);
        Response::new(full("hello"))
    })
    .await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = support::apps::http2(pair.source.http()).await;
    let response = client.send_request(get("http://orders.shop/x")).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
    assert_eq!(read(response).await, "hello");
}

#[tokio::test]
async fn big_bodies_pass_both_ways() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let data: Bytes = (0..10_u32 << 20).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let request = Request::put("http://orders.shop/big").body(full(data.clone())).unwrap();
    let response = http1(pair.source.http()).await.send_request(request).await.unwrap();
    assert!(read(response).await == data);
}

#[tokio::test]
async fn what_is_not_a_service_is_refused_with_its_reason() {
    let app = App::start(echo).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let cases = [
        ("http://127.0.0.1:80/", 403, "forbidden_target"),
        ("http://169.254.169.254/latest/meta-data", 403, "forbidden_target"),
        ("http://localhost:4191/metrics", 403, "forbidden_target"),
        ("http://nobody.shop/", 404, "no_such_service"),
        ("http://example.com/", 404, "no_such_service"),
        ("http://orders.shop:9999/", 404, "no_such_port"),
    ];
    for (uri, status, code) in cases {
        let (head, body) = fetch(pair.source.http(), uri).await;
        assert_eq!(head.status, status, "{uri}");
        assert_eq!(head.headers["isthmus-error"], code, "{uri}");
        assert_eq!(body.iter().filter(|byte| **byte == b'\n').count(), 1, "{body:?}");
    }
}

/// What the application sees of `X-Forwarded-For`, and `Forwarded`.
async fn forwarded(policy: edge_proxy::config::Forwarded) -> Vec<Option<String>> {
    let app = App::start(|request| {
        let field = |name: &str| {
            let value = request.headers().get(name).map(|value| value.to_str().unwrap());
            value.unwrap_or("none").to_owned()
        };
        let told = ["x-forwarded-for", "forwarded", "x-forwarded-host"].map(field).join("\n");
        std::future::ready(Response::new(full(told)))
    })
    .await;
    let pair = Pair::start_with(Targets::all(app.addr), |config| config.forwarded = policy).await;
    let mut client = http1(pair.source.http()).await;
    let request = Request::get("http://orders.shop/")
        // Nobody removes what is written for him by naming it.
        .header("connection", "x-forwarded-host")
        .header("x-forwarded-for", "10.0.0.1")
        .header("forwarded", "for=10.0.0.1")
        .body(empty())
        .unwrap();
    let told = read(client.send_request(request).await.unwrap()).await;
    let told = std::str::from_utf8(&told).unwrap().lines();
    told.map(|line| (line != "none").then(|| line.to_owned())).collect()
}

#[tokio::test]
async fn applications_are_told_of_clients_as_it_is_configured() {
    use edge_proxy::config::Forwarded::{Append, Auto, Keep, Remove, Replace};
    let text = |text: &str| Some(text.to_owned());
    let element = "for=127.0.0.1;host=orders.shop;proto=http";
    let kept = [text("10.0.0.1"), text("for=10.0.0.1"), None];
    for policy in [Auto, Keep] {
        assert_eq!(forwarded(policy).await, kept, "{policy:?}");
    }
    let host = text("orders.shop");
    let appended =
        [text("10.0.0.1, 127.0.0.1"), text(&format!("for=10.0.0.1, {element}")), host.clone()];
    assert_eq!(forwarded(Append).await, appended);
    assert_eq!(forwarded(Replace).await, [text("127.0.0.1"), text(element), host]);
    assert_eq!(forwarded(Remove).await, [None, None, None]);
}

/// An address of this machine that is not loopback; no packet is sent.
fn elsewhere() -> std::net::IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.1:9").expect("a machine with a network interface beside loopback");
    socket.local_addr().unwrap().ip()
}

#[tokio::test]
async fn who_comes_from_elsewhere_must_be_allowed() {
    let app = App::start(echo).await;
    let here = elsewhere();
    assert!(!here.is_loopback(), "{here} is where this machine would send from");
    for (allowed, answered) in [(Some(format!("{here}/32")), true), (None, false)] {
        let pair = Pair::start_with(Targets::all(app.addr), |config| {
            config.http_listener = Some((here, 0).into());
            config.allow_from = allowed.iter().map(|block| block.parse().unwrap()).collect();
        })
        .await;
        let mut client = http1(pair.source.http()).await;
        let response = client.send_request(get("http://orders.shop/x")).await;
        assert_eq!(
            response.is_ok_and(|response| response.status() == 200),
            answered,
            "{allowed:?}"
        );
    }
}

/// As nginx has it (`listen 80; listen [::]:80;`, `listen 80; listen
/// 127.0.0.1:80;`), with one worker, too.
#[tokio::test]
async fn all_addresses_and_single_ones_are_listened_at() {
    let app = App::start(echo).await;
    for (workers, other) in [(1, "::"), (2, "::"), (1, "127.0.0.1"), (2, "127.0.0.1")] {
        let other: IpAddr = other.parse().unwrap();
        let any = std::net::TcpListener::bind((other, 0)).unwrap().local_addr().unwrap();
        let pair = Pair::one_hop_with(Targets::all(app.addr), |config| {
            config.workers = workers;
            config.listeners.truncate(2);
            config.listeners[0].listen = ([0; 4], any.port()).into();
            config.listeners[1] = config.listeners[0].clone();
            config.listeners[1].listen = any;
        })
        .await;
        assert_eq!(pair.source.bound.listeners.len(), 2);
        for ip in ["127.0.0.1", if other.is_ipv6() { "::1" } else { "127.0.0.2" }] {
            let (head, _) =
                fetch((ip.parse::<IpAddr>().unwrap(), any.port()).into(), "http://orders.shop/x")
                    .await;
            assert_eq!(head.status, 200, "{ip}");
        }
    }
}

#[tokio::test]
async fn a_request_goes_where_its_dtab_leads_if_that_is_allowed() {
    let app = App::start(echo).await;
    let dtab = "/svc/web.old => /svc/orders.shop";
    for (allowed, wanted) in [(vec!["*.shop"], 200), (vec!["*.prod"], 403), (vec![], 404)] {
        let pair = Pair::start_with(Targets::all(app.addr), |config| {
            config.dtab_overrides = allowed.iter().map(|one| one.parse().unwrap()).collect();
        })
        .await;
        let mut client = http1(pair.source.http()).await;
        let asked =
            |target: &str| Request::get(target).header("l5d-dtab", dtab).body(empty()).unwrap();
        let response = client.send_request(asked("http://web.old/x")).await.unwrap();
        assert_eq!(response.status(), wanted, "{allowed:?}");
        if wanted == 200 {
            assert_eq!(response.headers()["x-saw-dtab"], dtab);
            assert_eq!(response.headers()["x-host"], "web.old");
        }
        // It does not concern this one.
        let mut client = http1(pair.source.http()).await;
        let response = client.send_request(asked("http://orders.shop/x")).await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["x-saw-dtab"]),
            (StatusCode::OK, &dtab.parse().unwrap())
        );
    }
}

/// In virtual time: who sends a line of its head each second is no better off
/// than who sends nothing.
#[tokio::test]
async fn a_head_that_does_not_end_is_waited_for_75_seconds() {
    let app = App::start(echo).await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let mut slow = TcpStream::connect(pair.source.http()).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let is_open = |slow: &TcpStream| {
        let read = slow.try_read(&mut [0]);
        matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    while is_open(&slow) {
        assert!(began.elapsed() < Duration::from_secs(90), "it is still waited for");
        let _cut = slow.write_all(b"a: b\r\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(74), "{:?}", began.elapsed());
    let counted = "connections_cut_total{direction=\"outbound\",reason=\"slow_head\"} 1";
    assert!(pair.source.metrics().contains(counted), "{}", pair.source.metrics());
}
