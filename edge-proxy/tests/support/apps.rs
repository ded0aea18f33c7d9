//! Applications and their clients.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{any, caller::wait};

/// Any body.
pub type AnyBody = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// All of it at once.
pub fn full(data: impl Into<Bytes>) -> AnyBody {
    Full::new(data.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// Nothing.
pub fn empty() -> AnyBody {
    full(Bytes::new())
}

/// An HTTP server; HTTP/1 or HTTP/2 as its clients like.
pub struct App {
    pub addr: SocketAddr,
    /// Connections accepted so far.
    pub connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl App {
    pub async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let listener = TcpListener::bind(any()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                let service = service_fn(move |request| {
                    let answered = answer(request);
                    async move { Ok::<_, Infallible>(answered.await) }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                serving.spawn(async move {
                    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { addr, connections, task }
    }

    /// Closes its listener and every connection.
    pub async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }
}

/// A client of HTTP/1, which says `Host` as all must (RFC 9112 section 3.2).
pub struct Http1(hyper::client::conn::http1::SendRequest<AnyBody>);

impl Http1 {
    /// Sends a request; one that names a host says so in `Host`, too.
    pub fn send_request(
        &mut self,
        mut request: Request<AnyBody>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        let authority = request.uri().authority().map(|authority| authority.to_string());
        if let Some(authority) = authority {
            let host = authority.parse().unwrap();
            request.headers_mut().entry(http::header::HOST).or_insert(host);
        }
        self.0.send_request(request)
    }

    /// Waits until another request may be sent.
    pub async fn ready(&mut self) -> hyper::Result<()> {
        self.0.ready().await
    }

    /// Whether the proxy has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A client's connection over HTTP/1.
pub async fn http1(addr: SocketAddr) -> Http1 {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    Http1(send)
}

/// A client's connection over HTTP/2 with prior knowledge.
pub async fn http2(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<AnyBody> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (send, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    send
}

/// A GET of `uri`.
pub fn get(uri: &str) -> Request<AnyBody> {
    Request::get(uri).body(empty()).unwrap()
}

/// Reads all of a body.
pub async fn read(response: Response<Incoming>) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

/// One GET on a connection of its own.
pub async fn fetch(proxy: SocketAddr, uri: &str) -> (http::response::Parts, Bytes) {
    let mut client = http1(proxy).await;
    let (head, body) = wait(client.send_request(get(uri))).await.unwrap().into_parts();
    let body = wait(body.collect()).await.unwrap().to_bytes();
    (head, body)
}
