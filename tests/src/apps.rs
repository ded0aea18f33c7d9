//! Applications and clients that know nothing of the mesh, over any `Net`.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use mesh_tunnel::{Net, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The header in which the mesh tells an application who called.
pub const CALLER: &str = "x-isthmus-client-id";
/// The header with the code of a refusal.
pub const ERROR: &str = "isthmus-error";

/// An HTTP/1 application that answers `<name> heard <caller>: <body>`.
pub async fn serve_http(net: Arc<dyn Net>, addr: SocketAddr, name: &'static str) -> io::Result<()> {
    let listener = net.bind(addr, false).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(name, request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    name: &'static str,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let caller = request.headers().get(CALLER).and_then(|value| value.to_str().ok());
    let caller = caller.unwrap_or("nobody").to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = format!("{name} heard {caller}: {}", String::from_utf8_lossy(&body));
    Ok(Response::new(Full::from(text)))
}

/// A TCP application that sends everything back and closes when it is told.
pub async fn serve_echo(net: Arc<dyn Net>, addr: SocketAddr) -> io::Result<()> {
    let listener = net.bind(addr, false).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut rx, mut tx) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut rx, &mut tx).await;
            let _ = tx.shutdown().await;
        });
    }
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `isthmus-error`, if there was one.
    pub error: Option<String>,
    /// As text.
    pub body: String,
}

/// One request on a connection of its own through an HTTP proxy listener.
pub async fn request(
    net: &Arc<dyn Net>,
    proxy: SocketAddr,
    method: &str,
    url: &str,
    body: &str,
) -> Result<Answer, String> {
    let exchange = async {
        let stream = net.dial(proxy).await.map_err(|error| format!("dial: {error}"))?;
        exchange(stream, method, url, body).await
    };
    let deadline = Duration::from_secs(20);
    tokio::time::timeout(deadline, exchange).await.map_err(|_| "no answer in 20 s".to_owned())?
}

async fn exchange(stream: Stream, method: &str, url: &str, body: &str) -> Result<Answer, String> {
    let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or("");
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("handshake: {error}"))?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(url)
        .header("host", host)
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .map_err(|error| error.to_string())?;
    let response = client.send_request(request).await.map_err(|error| format!("{error:?}"))?;
    let status = response.status().as_u16();
    let header = response.headers().get(ERROR).and_then(|value| value.to_str().ok());
    let error = header.map(str::to_owned);
    let body = response.into_body().collect().await.map_err(|error| format!("body: {error:?}"))?;
    driver.abort();
    Ok(Answer { status, error, body: String::from_utf8_lossy(&body.to_bytes()).into_owned() })
}

/// Opens `authority` by `CONNECT`; the bytes of the far application follow.
pub async fn connect(
    net: &Arc<dyn Net>,
    proxy: SocketAddr,
    authority: &str,
) -> Result<Stream, String> {
    let open = async {
        let mut stream = net.dial(proxy).await.map_err(|error| format!("dial: {error}"))?;
        let head = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let byte = stream.read_u8().await.map_err(|error| error.to_string())?;
            answer.push(byte);
            if answer.len() > 4096 {
                return Err("the answer to CONNECT does not end".to_owned());
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.starts_with("HTTP/1.1 200") { Ok(stream) } else { Err(answer) }
    };
    let deadline = Duration::from_secs(20);
    tokio::time::timeout(deadline, open).await.map_err(|_| "no answer in 20 s".to_owned())?
}
