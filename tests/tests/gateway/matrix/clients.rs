//! Clients of the matrix. Each panics if anything differs from what it would
//! see without a mesh.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Frame, body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::apps::{AnyBody, frames, summary, until};

/// Where a client goes.
pub(super) struct Door {
    /// The HTTP proxy listener.
    pub(super) http: SocketAddr,
    /// The listener of this service and port.
    pub(super) listener: SocketAddr,
    /// Service and port.
    pub(super) host: String,
    /// Who vouches for the application of TLS.
    pub(super) root: CertificateDer<'static>,
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut read = String::new();
    stream.read_to_string(&mut read).await.unwrap();
    read
}

/// Two requests on one connection, of which the second ends it.
pub(super) async fn http11(door: Door) {
    let mut stream = TcpStream::connect(door.http).await.unwrap();
    let host = &door.host;
    say(&mut stream, &format!("GET http://{host}/a HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
    let head = until(&mut stream, "\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut body = vec![0; host.len()];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(body, host.as_bytes());
    let last = format!("GET /b HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    say(&mut stream, &last).await;
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(host), "{answer}");
}

pub(super) async fn chunked(door: Door) {
    let mut stream = TcpStream::connect(door.listener).await.unwrap();
    let host = &door.host;
    let head = format!(
        "POST /chunked HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Sum\r\nTE: trailers\r\nConnection: TE\r\n\r\n"
    );
    say(&mut stream, &head).await;
    say(&mut stream, "5\r\nhello\r\n0\r\nX-Sum: 17\r\n\r\n").await;
    let head = until(&mut stream, "\r\n\r\n").await.unwrap().to_ascii_lowercase();
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    let body = until(&mut stream, "\r\n\r\n").await.unwrap().to_ascii_lowercase();
    assert_eq!(body, "3\r\nabc\r\n0\r\nx-sum: 17\r\n\r\n");
}

/// Who knows no chunks gets none: the end of the connection ends the answer.
pub(super) async fn http10(door: Door) {
    let mut stream = TcpStream::connect(door.listener).await.unwrap();
    say(&mut stream, &format!("GET /pieces HTTP/1.0\r\nHost: {}\r\n\r\n", door.host)).await;
    let answer = rest(&mut stream).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{head}");
    assert_eq!(body, "abcde");
}

pub(super) async fn web_socket(door: Door) {
    let mut stream = TcpStream::connect(door.http).await.unwrap();
    let head = format!(
        "GET /upgrade HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        door.host
    );
    say(&mut stream, &head).await;
    let head = until(&mut stream, "\r\n\r\n").await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // Not HTTP, whatever it is.
    for ping in [&b"\x81\x85\0\0\0\0hello"[..], b"\0\r\n\r\nGET "] {
        stream.write_all(ping).await.unwrap();
        let mut pong = vec![0; ping.len()];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(pong, ping);
    }
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "");
}

async fn http2_to(addr: SocketAddr) -> SendRequest<AnyBody> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (send, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    send
}

fn full(text: &str) -> AnyBody {
    Full::new(Bytes::copy_from_slice(text.as_bytes())).boxed()
}

/// A call that ends with `status`.
fn call(door: &Door, status: u32, body: AnyBody) -> Request<AnyBody> {
    let uri = format!("http://{}/orders.Orders/{status}", door.host);
    let builder = Request::post(uri).header("te", "trailers");
    builder.header("content-type", "application/grpc").body(body).unwrap()
}

async fn answered(response: Response<Incoming>, body: &[u8], status: &str) {
    assert_eq!(response.status(), 200);
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().expect("trailers")["grpc-status"], status);
    assert_eq!(collected.to_bytes(), body);
}

/// Twenty requests at once on one connection, from one byte to 100 KB.
pub(super) async fn http2(door: Door) {
    let send = http2_to(door.http).await;
    let requests = (0..20_usize).map(|n| {
        let (mut send, door) = (send.clone(), &door);
        async move {
            let text = "x".repeat(1 + n * 5000);
            let uri = format!("http://{}/0", door.host);
            let request = Request::put(uri).body(full(&text)).unwrap();
            answered(send.send_request(request).await.unwrap(), text.as_bytes(), "0").await;
        }
    });
    futures_util::future::join_all(requests).await;
}

pub(super) async fn http2_to_http1(door: Door) {
    let request = Request::get(format!("http://{}/a", door.host)).body(full("")).unwrap();
    let response = http2_to(door.http).await.send_request(request).await.unwrap();
    assert_eq!(response.version(), http::Version::HTTP_2);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), door.host);
}

/// One that succeeds and one that fails, which only the trailers tell.
pub(super) async fn unary(door: Door) {
    let mut send = http2_to(door.http).await;
    for (status, text) in [(0, "0"), (9, "9")] {
        let message = "\0\0\0\0\u{5}hello";
        let response = send.send_request(call(&door, status, full(message))).await.unwrap();
        answered(response, message.as_bytes(), text).await;
    }
}

/// The next message is sent only after the last was answered.
pub(super) async fn bidi(door: Door) {
    let (messages, body) = frames();
    let mut send = http2_to(door.listener).await;
    let response = send.send_request(call(&door, 0, body)).await.unwrap();
    let mut answer = response.into_body();
    for message in ["one", "two", "three"] {
        messages.send(Ok(Frame::data(message.into()))).await.unwrap();
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), message);
    }
    drop(messages);
    let trailers = answer.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

/// The answer can only be made after our FIN has arrived.
pub(super) async fn half_closed(door: Door) {
    let mut stream = TcpStream::connect(door.listener).await.unwrap();
    let bytes: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    stream.write_all(&bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, summary(&bytes));
}

pub(super) async fn greeted(door: Door) {
    let mut stream = TcpStream::connect(door.listener).await.unwrap();
    assert_eq!(until(&mut stream, "\r\n").await.unwrap(), "220 ready\r\n");
    say(&mut stream, "EHLO\r\n").await;
    assert_eq!(rest(&mut stream).await, "250 EHLO\r\n");
}

/// End to end: the certificate is the application's own.
pub(super) async fn tls(door: Door) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(door.root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let tcp = TcpStream::connect(door.listener).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("app.example".try_into().unwrap(), tcp).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    assert_eq!(shown, door.root);
    stream.write_all(b"secret").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "secret");
}
