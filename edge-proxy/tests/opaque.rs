//! Opaque bytes between two proxies.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::SocketAddr, time::Duration};

use edge_proxy::config::Config;
use socket2::SockRef;
use support::{
    DOMAIN, Pair, Proxy, Targets, any, inbound_config, orders, orders_endpoints, outbound_config,
    pki::Authority, refusing, snapshot,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// Hands accepted connections to the test.
async fn server() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (give, accepted) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if give.send(stream).await.is_err() {
                return;
            }
        }
    });
    (addr, accepted)
}

async fn connect_through(proxy: SocketAddr, to: &str) -> TcpStream {
    let mut client = TcpStream::connect(proxy).await.unwrap();
    let head = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    client
}

async fn wait<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

/// The doors for opaque bytes.
const DOORS: [&str; 2] = ["listener", "connect"];

async fn client(pair: &Pair, door: &str) -> TcpStream {
    match door {
        "connect" => connect_through(pair.source.http(), "orders.shop:82").await,
        "detected" => TcpStream::connect(pair.port("any")).await.unwrap(),
        _ => TcpStream::connect(pair.port("tcp")).await.unwrap(),
    }
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    for door in DOORS {
        let mut client = client(&pair, door).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = wait(accepted.recv()).await.unwrap();
        let mut asked = String::new();
        wait(server.read_to_string(&mut asked)).await.unwrap();
        assert_eq!(asked, "question");
        server.write_all(b"answer after the end of the question").await.unwrap();
        drop(server);
        let mut answer = String::new();
        wait(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "answer after the end of the question");
    }
}

#[tokio::test]
async fn servers_may_speak_first_also_where_the_protocol_is_detected() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    for door in ["listener", "connect", "detected"] {
        let mut client = client(&pair, door).await;
        let mut server = wait(accepted.recv()).await.unwrap();
        server.write_all(b"220 hello\r\n").await.unwrap();
        let mut greeting = [0; 11];
        wait(client.read_exact(&mut greeting)).await.unwrap();
        assert_eq!(&greeting, b"220 hello\r\n");
        client.write_all(b"EHLO\r\n").await.unwrap();
        let mut said = [0; 6];
        wait(server.read_exact(&mut said)).await.unwrap();
        assert_eq!(&said, b"EHLO\r\n");
    }
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_at_the_client() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    for door in DOORS {
        let mut client = client(&pair, door).await;
        client.write_all(b"x").await.unwrap();
        let mut server = wait(accepted.recv()).await.unwrap();
        wait(server.read_u8()).await.unwrap();
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let error = wait(client.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_at_the_server() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    for door in DOORS {
        let mut client = client(&pair, door).await;
        client.write_all(b"x").await.unwrap();
        let mut server = wait(accepted.recv()).await.unwrap();
        wait(server.read_u8()).await.unwrap();
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        let error = wait(server.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn bulk_passes_whole_both_ways_at_once() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    let data: Vec<u8> = (0..10u32 << 20).map(|n| n.to_le_bytes()[(n % 3) as usize]).collect();
    let client = TcpStream::connect(pair.port("tcp")).await.unwrap();
    let server = wait(accepted.recv()).await.unwrap();
    let exchange = |stream: TcpStream| {
        let (data, (mut read, mut write)) = (data.clone(), stream.into_split());
        tokio::spawn(async move {
            let sent = data.clone();
            let writer = tokio::spawn(async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.unwrap();
            writer.await.unwrap();
            received == data
        })
    };
    let (one, two) = (exchange(client), exchange(server));
    assert!(wait(one).await.unwrap() && wait(two).await.unwrap());
}

#[tokio::test]
async fn a_reader_that_rests_stalls_only_its_own_sender() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    let mut stalled = TcpStream::connect(pair.port("tcp")).await.unwrap();
    stalled.write_all(b"x").await.unwrap();
    let resting = wait(accepted.recv()).await.unwrap();
    // More than all windows and socket buffers hold: the sender is stopped.
    let flood = tokio::spawn(async move {
        let piece = vec![0; 1 << 20];
        for _ in 0..64 {
            stalled.write_all(&piece).await.unwrap();
        }
    });
    for _ in 0..20 {
        let mut other = TcpStream::connect(pair.port("tcp")).await.unwrap();
        other.write_all(b"ping").await.unwrap();
        let mut server = wait(accepted.recv()).await.unwrap();
        let mut said = [0; 4];
        wait(server.read_exact(&mut said)).await.unwrap();
    }
    assert!(!flood.is_finished(), "nothing held the sender back");
    drop(resting);
}

#[tokio::test]
async fn http_inside_connect_is_carried_request_by_request() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    let mut client = connect_through(pair.source.http(), "orders.shop:80").await;
    client.write_all(b"GET /inside HTTP/1.1\r\nHost: a.b\r\n\r\n").await.unwrap();
    let mut server = wait(accepted.recv()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(wait(server.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /inside http/1.1\r\n"), "{head}");
    assert!(head.contains("x-isthmus-client-id: spiffe://west.example/ns/shop/sa/checkout"));
    assert!(head.contains("host: a.b\r\n"));
}

#[tokio::test]
async fn an_application_that_is_gone_resets_the_client() {
    let (addr, accepted) = server().await;
    drop(accepted);
    let (_kept, closed) = refusing();
    assert_ne!(closed, addr);
    let pair = Pair::start(Targets::all(closed)).await;
    let mut client = TcpStream::connect(pair.port("tcp")).await.unwrap();
    let error = wait(client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = pair.source.metrics();
    assert!(metrics.contains("reason=\"app_unreachable\""), "{metrics}");
}

/// A port that is not declared: `number` of `orders.shop`, as the source sees
/// it.
async fn undeclared(pair: &Pair, number: u32) -> TcpStream {
    let mut orders = support::orders();
    orders.ports[3].number = number;
    let targets = pair.snapshot.services["orders.shop"].endpoints[0].target;
    let endpoints =
        support::orders_endpoints("one", pair.destination.inbound(), Targets::all(targets));
    let snapshot = support::snapshot(&pair.authority, vec![orders], endpoints);
    pair.source.tell(&snapshot);
    TcpStream::connect(pair.port("any")).await.unwrap()
}

/// What looks like HTTP is not even looked at on the usual ports of others.
#[tokio::test]
async fn some_ports_are_opaque_unless_they_are_declared() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for number in mesh_core::carriage::OPAQUE_PORTS {
        let mut client = undeclared(&pair, number.into()).await;
        let mut server = wait(accepted.recv()).await.unwrap();
        server.write_all(b"first").await.unwrap();
        let mut said = [0; 5];
        wait(client.read_exact(&mut said)).await.unwrap();
        client.write_all(request).await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = Vec::new();
        wait(server.read_to_end(&mut asked)).await.unwrap();
        assert_eq!(asked, request, "{number}");
    }
    let detections = "isthmus_proxy_protocol_detection_ms_count{";
    assert!(!pair.source.metrics().contains(detections), "nothing was looked for");
    // On other ports the same is a request, however slowly it comes.
    let mut client = undeclared(&pair, 83).await;
    client.write_all(&request[..5]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.write_all(&request[5..]).await.unwrap();
    let mut server = wait(accepted.recv()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(wait(server.read_u8()).await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("x-isthmus-client-id"), "{head}");
    let metrics = pair.source.metrics();
    assert!(metrics.contains(&format!("{detections}protocol=\"http1\"}} 1")), "{metrics}");
}

/// Commands that begin like requests, of protocols that are not HTTP.
#[tokio::test]
async fn a_wrong_guess_changes_no_byte() {
    let (addr, mut accepted) = server().await;
    let pair = Pair::start(Targets::all(addr)).await;
    for said in [
        &b"GET key\r\n"[..],
        b"GET /key\r\n",
        b"PUT /a b HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"DELETE ",
        b"\x16",
        b"\x16\x03\x01 is no hello at all",
    ] {
        let mut client = client(&pair, "detected").await;
        client.write_all(said).await.unwrap();
        client.shutdown().await.unwrap();
        let mut server = wait(accepted.recv()).await.unwrap();
        let mut asked = Vec::new();
        wait(server.read_to_end(&mut asked)).await.unwrap();
        assert_eq!(asked, said);
        server.write_all(b"what?").await.unwrap();
        drop(server);
        let mut answer = String::new();
        wait(client.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, "what?");
    }
    // What is a request until its head turns out to be none reaches nobody.
    let mut client = client(&pair, "detected").await;
    client.write_all(b"GET / HTTP/1.1\r\n\x00\x01\x02\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    wait(client.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(accepted.try_recv().is_err(), "an application was called");
}

/// Whether a connection lives on after the certificates with which its session
/// was begun have ended.
async fn outlives_certificates(renewed: bool) -> bool {
    let authority = Authority::new(DOMAIN);
    let short = |account| authority.workload_for(account, Duration::from_secs(4));
    let (addr, mut accepted) = server().await;
    let late = Duration::from_millis(500);
    let config = Config { drain_timeout: late, opaque_drain_timeout: late, ..inbound_config() };
    let destination = Proxy::start(&authority, short("orders"), config).await;
    let source = Proxy::start(&authority, short("checkout"), outbound_config()).await;
    let endpoints = orders_endpoints("one", destination.inbound(), Targets::all(addr));
    let snapshot = snapshot(&authority, vec![orders()], endpoints);
    source.tell(&snapshot);
    destination.tell(&snapshot);
    let mut client = connect_through(source.http(), "orders.shop:82").await;
    let mut server = wait(accepted.recv()).await.unwrap();
    if renewed {
        for (proxy, account) in [(&source, "checkout"), (&destination, "orders")] {
            proxy.app.shared.credentials.replace_svid(authority.workload(account));
        }
    }
    tokio::time::sleep(Duration::from_secs(6)).await;
    // The first may only find out.
    for _ in 0..2 {
        if client.write_all(b"x").await.is_err() || wait(server.read_u8()).await.is_err() {
            return false;
        }
    }
    server.write_all(b"y").await.is_ok() && wait(client.read_u8()).await.is_ok()
}

#[tokio::test]
async fn connections_outlive_certificates_that_are_renewed_in_time() {
    let lives = tokio::join!(outlives_certificates(true), outlives_certificates(false));
    assert_eq!(lives, (true, false));
}
