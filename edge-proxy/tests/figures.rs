//! What is counted by the names that Linkerd's proxies have, over real sockets.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use support::{
    Pair, Proxy, Targets,
    apps::{AnyBody, App, empty, fetch, http2},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// One line of `/metrics`.
#[derive(Debug)]
struct Sample {
    labels: BTreeMap<String, String>,
    value: f64,
}

/// The samples of one name that have these labels.
fn samples(proxy: &Proxy, name: &str, wanted: &[(&str, &str)]) -> Vec<Sample> {
    let text = proxy.metrics();
    let of_name = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
    let read = of_name.map(|line| {
        let (labels, value) = line.rsplit_once("} ").unwrap();
        let labels = labels.strip_suffix('"').unwrap().split("\",");
        let labels = labels.map(|one| one.split_once("=\"").unwrap());
        let labels = labels.map(|(k, v)| (k.to_owned(), v.to_owned()));
        Sample { labels: labels.collect(), value: value.parse().unwrap() }
    });
    let has =
        |sample: &Sample| wanted.iter().all(|(k, v)| sample.labels.get(*k).is_some_and(|x| x == v));
    read.filter(has).collect()
}

/// Their sum, as Prometheus would say.
fn sum(proxy: &Proxy, name: &str, wanted: &[(&str, &str)]) -> f64 {
    samples(proxy, name, wanted).iter().map(|sample| sample.value).sum()
}

/// Waits for a figure: connections end after their last byte.
async fn until(proxy: &Proxy, name: &str, wanted: &[(&str, &str)], value: f64) {
    for _ in 0..200 {
        if sum(proxy, name, wanted) == value {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{name} {wanted:?} is not {value}: {}", proxy.metrics());
}

async fn by_path(request: Request<hyper::body::Incoming>) -> Response<AnyBody> {
    let status = request.uri().path().trim_start_matches('/').parse::<u16>().unwrap();
    Response::builder().status(status).body(empty()).unwrap()
}

const CHECKOUT: &str = "spiffe://west.example/ns/shop/sa/checkout";
const ORDERS: &str = "spiffe://west.example/ns/shop/sa/orders";

#[tokio::test]
async fn requests_have_linkerds_names_and_labels_at_both_ends() {
    let app = App::start(by_path).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    for path in ["200", "200", "404", "503"] {
        fetch(pair.source.http(), &format!("http://orders.shop/{path}")).await;
    }
    let classes = [("success", "200", 2.0), ("success", "404", 1.0), ("failure", "503", 1.0)];
    let address = pair.destination.inbound().to_string();
    let outbound = [
        ("direction", "outbound"),
        ("authority", "orders.shop:80"),
        ("target_addr", &address),
        ("tls", "true"),
        ("server_id", ORDERS),
        ("dst_namespace", "shop"),
        ("dst_service", "orders"),
        ("dst_deployment", "orders"),
        ("dst_pod", "one-http"),
        ("src_site", "west"),
        ("dst_site", "west"),
        ("namespace", "shop"),
        ("deployment", "checkout"),
    ];
    let application = app.addr.to_string();
    let inbound = [
        ("direction", "inbound"),
        ("target_addr", &application),
        ("tls", "true"),
        ("client_id", CHECKOUT),
        ("srv_name", "orders.shop"),
        ("srv_port", "80"),
        ("src_site", "west"),
        ("namespace", "shop"),
        ("deployment", "orders"),
    ];
    for (proxy, labels) in [(&pair.source, &outbound[..]), (&pair.destination, &inbound[..])] {
        until(proxy, "request_total", labels, 4.0).await;
        for (class, status, count) in classes {
            let answered = [("classification", class), ("status_code", status)];
            let wanted = [labels, &answered].concat();
            assert_eq!(sum(proxy, "response_total", &wanted), count, "{wanted:?}");
            let wanted = [labels, &[("status_code", status), ("le", "50000.0")]].concat();
            assert_eq!(sum(proxy, "response_latency_ms_bucket", &wanted), count, "{wanted:?}");
        }
        let start = samples(proxy, "process_start_time_seconds", &[("namespace", "shop")]);
        assert_eq!(start.len(), 1, "{}", proxy.metrics());
        let left = sum(proxy, "isthmus_proxy_svid_seconds_left", &[("namespace", "shop")]);
        assert!((60.0..90_000.0).contains(&left), "{left}");
        assert_eq!(sum(proxy, "isthmus_proxy_snapshot_revision", &[]), 1.0);
        let age = sum(proxy, "isthmus_proxy_snapshot_age_seconds", &[]);
        assert!((0.0..60.0).contains(&age), "{age}");
    }
    let per_status = samples(&pair.source, "response_latency_ms_bucket", &[("status_code", "200")]);
    assert_eq!(per_status.len(), 26, "Linkerd's buckets, and the rest");
}

#[tokio::test]
async fn what_nobody_could_answer_is_a_failure_and_names_no_endpoint() {
    let authority = support::pki::Authority::new(support::DOMAIN);
    let source =
        Proxy::start(&authority, authority.workload("checkout"), support::outbound_config()).await;
    source.tell(&support::snapshot(&authority, vec![support::orders()], vec![]));
    let (head, _) = fetch(source.http(), "http://orders.shop/x").await;
    assert_eq!(head.status, 503);
    let told = head.headers["l5d-proxy-error"].to_str().unwrap();
    assert!(told.starts_with("no_endpoint: service orders.shop"), "{told}");
    let (head, _) = fetch(source.http(), "http://made-up.shop/x").await;
    assert_eq!(head.status, 404);
    let failed = [("classification", "failure"), ("error", "no_endpoint"), ("status_code", "503")];
    until(&source, "response_total", &failed, 1.0).await;
    assert!(!samples(&source, "response_total", &failed)[0].labels.contains_key("dst_pod"));
    assert!(!source.metrics().contains("made-up"), "clients do not choose labels");
}

/// Answers with what the path says as its gRPC status, after a message.
async fn grpc(request: Request<hyper::body::Incoming>) -> Response<AnyBody> {
    let status = request.uri().path().trim_start_matches("/s/").to_owned();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let frames = [
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(http_body::Frame::data(
            Bytes::from_static(b"\0\0\0\0\0"),
        )),
        Ok(http_body::Frame::trailers(trailers)),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let builder = Response::builder().header("content-type", "application/grpc");
    builder.body(BodyExt::boxed(body)).unwrap()
}

#[tokio::test]
async fn grpc_is_judged_by_its_status() {
    let app = App::start(grpc).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut client = http2(pair.port("grpc")).await;
    for status in ["0", "5", "14"] {
        let request = Request::post(format!("http://orders.shop/s/{status}"))
            .header("content-type", "application/grpc")
            .body(empty())
            .unwrap();
        let response = client.send_request(request).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], status);
    }
    for proxy in [&pair.source, &pair.destination] {
        for (status, class) in [("0", "success"), ("5", "success"), ("14", "failure")] {
            let wanted = [("grpc_status", status), ("classification", class)];
            until(proxy, "response_total", &wanted, 1.0).await;
        }
    }
}

const PROFILE: &str = "\
apiVersion: linkerd.io/v1alpha2
kind: ServiceProfile
metadata: { name: orders.shop.svc.cluster.local, namespace: shop }
spec:
  routes:
  - { name: GET /flaky, condition: { method: GET, pathRegex: /flaky }, isRetryable: true }
";

#[tokio::test]
async fn routes_count_what_clients_see_and_what_attempts_got() {
    let asked = Arc::<AtomicUsize>::default();
    let app = App::start(move |_| {
        let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let status = if first { 503 } else { 200 };
            Response::builder().status(status).body(empty()).unwrap()
        }
    })
    .await;
    let mut pair = Pair::start(Targets::all(app.addr)).await;
    let manifests = mesh_manifest::manifest::read(PROFILE, "profile.yaml").unwrap();
    let registry = BTreeMap::from([("orders.shop".to_owned(), vec![("http".to_owned(), 80)])]);
    let compiled = mesh_manifest::compile("orders.shop", &manifests, &registry);
    let mut service = support::orders();
    (service.routes, service.traffic) = (compiled.routes, compiled.traffic);
    let proxy = pair.destination.inbound();
    let endpoints = support::orders_endpoints("one", proxy, Targets::all(app.addr));
    pair.snapshot = support::snapshot(&pair.authority, vec![service], endpoints);
    pair.source.tell(&pair.snapshot);
    let (head, _) = fetch(pair.source.http(), "http://orders.shop/flaky").await;
    assert_eq!(head.status, 200);
    let route = [("direction", "outbound"), ("dst", "orders.shop:80"), ("rt_route", "GET /flaky")];
    until(&pair.source, "route_request_total", &route, 1.0).await;
    let with = |more: (&'static str, &'static str)| [&route[..], &[more]].concat();
    let (success, failure) = (("classification", "success"), ("classification", "failure"));
    for (name, class, count) in [
        ("route_response_total", success, 1.0),
        ("route_response_total", failure, 0.0),
        ("route_actual_response_total", success, 1.0),
        ("route_actual_response_total", failure, 1.0),
        ("route_actual_request_total", route[0], 2.0),
        ("route_response_latency_ms_count", route[0], 1.0),
    ] {
        assert_eq!(sum(&pair.source, name, &with(class)), count, "{name} {class:?}");
    }
    // What federation is told.
    let told = pair.source.app.shared.stats.take_routes();
    assert_eq!(told.len(), 1);
    let told = (&*told[0].authority, &*told[0].route, told[0].success, told[0].repeated_attempts);
    assert_eq!(told, ("orders.shop:80", "GET /flaky", 1, 1));
    assert!(pair.destination.app.shared.stats.take_routes().is_empty(), "callers tell of routes");
}

#[tokio::test]
async fn both_ends_tell_whom_they_have_to_do_with() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Pair::start(Targets::all(app.local_addr().unwrap())).await;
    let mut client = TcpStream::connect(pair.port("tcp")).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    for (proxy, direction, other) in [
        (&pair.source, "outbound", &pair.destination),
        (&pair.destination, "inbound", &pair.source),
    ] {
        let id = other.app.shared.credentials.svid().unwrap().id.to_string();
        for connections in [1, 0] {
            let told = proxy.app.shared.stats.take_edges();
            assert_eq!(told.len(), 1, "as long as the connection is open: {told:?}");
            let edge = &told[0];
            assert_eq!((&*edge.direction, &*edge.spiffe_id), (direction, &*id));
            assert_eq!((&*edge.service, &*edge.site), ("orders.shop", "west"));
            assert_eq!(edge.connections, connections);
        }
    }
}

#[tokio::test]
async fn connections_and_their_bytes_are_counted_while_they_last() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = Pair::start(Targets::all(app.local_addr().unwrap())).await;
    let mut client = TcpStream::connect(pair.port("tcp")).await.unwrap();
    client.write_all(&[1; 1000]).await.unwrap();
    let (mut server, _) = app.accept().await.unwrap();
    server.read_exact(&mut [0; 1000]).await.unwrap();
    server.write_all(&[2; 30]).await.unwrap();
    client.read_exact(&mut [0; 30]).await.unwrap();
    let there = [("direction", "outbound"), ("peer", "dst"), ("dst_service", "orders")];
    let here = [("direction", "inbound"), ("peer", "src"), ("client_id", CHECKOUT)];
    let ends =
        [(&pair.source, &there[..], 30.0, 1000.0), (&pair.destination, &here[..], 1000.0, 30.0)];
    for (proxy, labels, read, written) in ends {
        until(proxy, "tcp_open_connections", labels, 1.0).await;
        until(proxy, "tcp_read_bytes_total", labels, read).await;
        until(proxy, "tcp_write_bytes_total", labels, written).await;
        assert_eq!(sum(proxy, "tcp_close_total", labels), 0.0);
    }
    let accepted = [("direction", "outbound"), ("peer", "src")];
    assert_eq!(sum(&pair.source, "tcp_open_connections", &accepted), 1.0);
    drop((client, server));
    for (proxy, labels, ..) in ends {
        until(proxy, "tcp_open_connections", labels, 0.0).await;
        assert_eq!(sum(proxy, "tcp_close_total", labels), 1.0);
        assert_eq!(sum(proxy, "tcp_open_total", labels), 1.0);
    }
    until(&pair.source, "tcp_open_connections", &accepted, 0.0).await;
}

#[tokio::test]
async fn a_session_that_carries_requests_is_one_connection() {
    let app = App::start(by_path).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    for _ in 0..5 {
        fetch(pair.source.http(), "http://orders.shop/200").await;
    }
    let edge =
        [("direction", "outbound"), ("deployment", "checkout"), ("dst_deployment", "orders")];
    until(&pair.source, "tcp_open_connections", &edge, 1.0).await;
    until(&pair.destination, "tcp_open_connections", &[("client_id", CHECKOUT)], 1.0).await;
    pair.source.kill().await;
    until(&pair.destination, "tcp_open_connections", &[("client_id", CHECKOUT)], 0.0).await;
}
