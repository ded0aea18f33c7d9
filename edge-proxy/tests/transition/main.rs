//! Peers that still speak TLS with certificates of another CA.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod applications;
mod certificates;
mod listeners;
mod mixed;

use std::{net::SocketAddr, time::Duration};

use edge_proxy::{
    app::{App as ProxyApp, Shared},
    config::{AccessLogTarget, Config, Forwarded, ListenerTls},
    transition::origin::{Expected, OriginTls},
};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tunnel::{Credentials, RealNet, Trust};
use rustls::{ClientConfig, version};
use support::{
    Pair, Targets,
    apps::{AnyBody, App, empty, fetch, full, get, http2, read},
    caller::wait,
    legacy::{Dir, Legacy, TlsApp, handshake, set_mode},
    outbound_config,
    process::{Running, command},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const NAME: &str = "orders.example.com";
const FAR: &str = "2999-01-01";
/// Of a listener that asks for any port.
const DOOR: &str = "listener=\"127.0.0.1:0\"";

/// Says what the application was told.
async fn told(request: Request<Incoming>) -> Response<AnyBody> {
    let proto = request.headers().get("x-forwarded-proto");
    let proto = proto.and_then(|value| value.to_str().ok()).unwrap_or("-");
    Response::new(full(format!("{:?} {proto}", request.version())))
}

/// Says back what it hears.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(support::any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut serving = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            serving.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _ended = write.shutdown().await;
            });
        }
    });
    (addr, task)
}

/// A listener's TLS, with its files in `dir`.
fn tls(dir: &Dir, ca: &Legacy, client_ca: Option<&Legacy>, until: &str) -> ListenerTls {
    let leaf = ca.leaf(&[NAME]);
    ListenerTls {
        certificate: dir.write("tls.pem", &(leaf.certificate_pem + &leaf.key_pem)),
        key: None,
        client_ca: client_ca.map(|ca| dir.write("clients.pem", &ca.pem())),
        until: until.parse().unwrap(),
        names: Vec::new(),
        certificates: Vec::new(),
        versions: None,
        alpn: None,
        only_known_names: false,
        client_names: Vec::new(),
        crl: None,
        mesh_clients: false,
        plaintext: false,
    }
}

/// All listeners have it.
fn everywhere(tls: ListenerTls) -> impl FnOnce(&mut Config) {
    move |config| {
        config.forwarded = Forwarded::Replace;
        for listener in &mut config.listeners {
            listener.tls = Some(tls.clone());
        }
    }
}

/// There is one listener, and it has it.
fn only_first(tls: ListenerTls) -> impl FnOnce(&mut Config) {
    move |config| {
        config.listeners.truncate(1);
        everywhere(tls)(config);
    }
}

/// A GET over HTTP/1, or why there was none.
async fn over_http1(addr: SocketAddr, config: ClientConfig) -> std::io::Result<String> {
    let stream = handshake(addr, NAME, config).await?;
    let broken = std::io::Error::other;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::get("/").header("host", NAME).body(empty()).unwrap();
    let response = wait(send.send_request(request)).await.map_err(broken)?;
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

async fn over_http2(addr: SocketAddr, config: ClientConfig) -> String {
    let stream = handshake(addr, NAME, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut send, connection) =
        builder.handshake::<_, AnyBody>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = wait(send.send_request(get(&format!("https://{NAME}/")))).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Bytes come back of who speaks plaintext.
async fn echoes(port: SocketAddr) {
    let mut stream = TcpStream::connect(port).await.unwrap();
    stream.write_all(b"PING\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    wait(stream.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"PING\r\n");
}

/// Waits until so many handshakes of this peer (`listener` or `service`) have
/// come to this.
async fn counted(pair: &Pair, peer: &str, outcome: &str, count: u64) {
    let wanted = format!(
        "isthmus_transition_tls_handshakes_total{{{peer},outcome=\"{outcome}\"}} {count}\n"
    );
    let until = async {
        while !pair.source.metrics().contains(&wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), until).await;
    assert!(waited.is_ok(), "{wanted}{}", pair.source.metrics());
}
