//! What the connections lead to: whatever is sent comes back, as it comes.

use std::{convert::Infallible, io, net::SocketAddr};

use hyper::{Request, Response, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::connections::{Head, read_head};

/// Serves every connection to an address as long as the runtime lives.
pub(crate) async fn serve<F>(addr: SocketAddr, each: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(each(stream));
        }
    });
}

/// HTTP/1: bodies come back; an `Upgrade` becomes an echo.
pub(crate) async fn http1(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Head { first, fields } = read_head(&mut stream).await?;
        if fields.contains_key("upgrade") {
            let agreed = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                          Upgrade: websocket\r\n\r\n";
            stream.get_mut().write_all(agreed.as_bytes()).await?;
            return echo(stream.into_inner()).await;
        }
        let len = fields.get("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes();
        let head = answer.len();
        assert!(len <= 4096, "no client of this test sends more: {first}");
        answer.resize(head + len, 0);
        stream.read_exact(&mut answer[head..]).await?;
        stream.get_mut().write_all(&answer).await?;
    }
}

/// HTTP/2: each piece of a body comes back at once.
pub(crate) async fn http2(stream: TcpStream) -> io::Result<()> {
    let echo = |request: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    };
    let builder = http2::Builder::new(TokioExecutor::new());
    builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await.map_err(io::Error::other)
}

/// Opaque bytes.
pub(crate) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}
