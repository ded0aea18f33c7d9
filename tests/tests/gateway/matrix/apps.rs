//! Applications of the matrix, each of which speaks one protocol and nothing
//! else.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

pub(super) type AnyBody = BoxBody<Bytes, Infallible>;
pub(super) type Frames = mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body that is sent frame by frame.
pub(super) fn frames() -> (Frames, AnyBody) {
    let (send, receive) = mpsc::channel(1);
    (send, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receive))))
}

/// Answers every connection; an answer that panics ends its own.
pub(super) async fn serve<F>(answer: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    addr
}

/// HTTP/1: `/upgrade` is an echo, `/chunked` answers in chunks with the
/// trailer that it was sent in chunks, `/pieces` in chunks without, all else
/// says which host was meant.
pub(super) async fn http1(mut stream: TcpStream) -> std::io::Result<()> {
    loop {
        let head = until(&mut stream, "\r\n\r\n").await?.to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let path = head.split(' ').nth(1).unwrap_or_default();
        if path.ends_with("/upgrade") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                          upgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await?;
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await?;
            return write.shutdown().await;
        }
        let answer = if path.ends_with("/chunked") {
            let body = until(&mut stream, "\r\n\r\n").await?.to_ascii_lowercase();
            let sum = body.lines().find_map(|line| line.strip_prefix("x-sum: ")).unwrap_or("lost");
            format!(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
                 3\r\nabc\r\n0\r\nx-sum: {sum}\r\n\r\n"
            )
        } else if path.ends_with("/pieces") {
            let chunks = "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}")
        } else {
            let host = field("host: ").unwrap_or("nobody");
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{host}", host.len())
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// Reads up to the first `end`.
pub(super) async fn until(stream: &mut TcpStream, end: &str) -> std::io::Result<String> {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}

/// HTTP/2 alone: every frame comes back as it comes, then the status that the
/// path names, in a trailer.
pub(super) async fn http2() -> SocketAddr {
    serve(|stream| async move {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ended = builder.serve_connection(TokioIo::new(stream), service_fn(echo)).await;
        Ok(())
    })
    .await
}

async fn echo(request: Request<Incoming>) -> Result<Response<AnyBody>, Infallible> {
    let status = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    let (send, body) = frames();
    tokio::spawn(async move {
        let mut frames = BodyStream::new(request.into_body());
        while let Some(Ok(frame)) = frames.next().await {
            if frame.is_data() && send.send(Ok(frame)).await.is_err() {
                return;
            }
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", status.parse().unwrap());
        let _gone = send.send(Ok(Frame::trailers(trailers))).await;
    });
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

/// Opaque bytes: reads to the end, and only then says how many came and their
/// sum.
pub(super) async fn counted(mut stream: TcpStream) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    stream.write_all(summary(&bytes).as_bytes()).await?;
    stream.shutdown().await
}

pub(super) fn summary(bytes: &[u8]) -> String {
    format!("{} {}", bytes.len(), bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>())
}

/// Speaks first, then answers one line and ends.
pub(super) async fn greeting(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(b"220 ready\r\n").await?;
    let line = until(&mut stream, "\r\n").await?;
    stream.write_all(format!("250 {line}").as_bytes()).await?;
    stream.shutdown().await
}

/// Echoes inside TLS that ends here, with a certificate of its own making.
#[derive(Clone)]
pub(super) struct Tls {
    root: CertificateDer<'static>,
    config: Arc<rustls::ServerConfig>,
}

impl Tls {
    pub(super) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["app.example".to_owned()]).unwrap();
        let root = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = builder.with_single_cert(vec![root.clone()], key).unwrap();
        Self { root, config: Arc::new(config) }
    }

    /// What clients believe.
    pub(super) fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub(super) async fn answer(self, stream: TcpStream) -> std::io::Result<()> {
        let stream = tokio_rustls::TlsAcceptor::from(self.config).accept(stream).await?;
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    }
}
