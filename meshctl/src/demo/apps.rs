//! The applications of the demo: real servers, each a process of its own so
//! that it can be stopped and killed. They know nothing of the mesh but the
//! header that tells who called.

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::Pin, time::Duration};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_runtime::drain::{Drain, terminated};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{Status, server::UnaryService};
use tonic_prost::ProstCodec;

use crate::failure::Failure;

/// Who the destination's proxy says has called.
const CALLER_HEADER: &str = "x-isthmus-client-id";
/// What a request of the demo may take inside the application.
const DRAIN: Duration = Duration::from_secs(2);
/// One read of the echo server.
const ECHO_BUFFER: usize = 16 * 1024;
/// The gRPC method of the demo.
pub(crate) const GRPC_PATH: &str = "/isthmus.demo.Payments/Pay";

/// Arguments of one application.
#[derive(Debug, Args)]
pub struct App {
    /// What it speaks
    kind: Kind,
    /// Where it listens
    #[arg(long)]
    listen: SocketAddr,
    /// What it calls itself
    #[arg(long)]
    name: String,
    /// Where it says it is
    #[arg(long)]
    site: String,
}

/// What an application speaks.
#[derive(Debug, Clone, Copy, ValueEnum, PartialEq, Eq)]
pub(crate) enum Kind {
    /// HTTP/1.1
    Http,
    /// gRPC: HTTP/2 with trailers
    Grpc,
    /// TCP: sends back what it gets
    Echo,
}

/// What an application answers: who it is and whom it saw.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) app: String,
    pub(crate) site: String,
    /// SPIFFE ID of the caller; empty if its proxy named none.
    pub(crate) caller: String,
}

/// The request of the gRPC method.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PayRequest {
    #[prost(uint64, tag = "1")]
    pub(crate) amount: u64,
}

/// The response of the gRPC method.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PayResponse {
    #[prost(string, tag = "1")]
    pub(crate) app: String,
    #[prost(string, tag = "2")]
    pub(crate) site: String,
    #[prost(string, tag = "3")]
    pub(crate) caller: String,
    #[prost(uint64, tag = "4")]
    pub(crate) amount: u64,
}

impl App {
    /// Serves until SIGTERM, then finishes what runs.
    pub async fn run(self) -> Result<(), Failure> {
        let listener = TcpListener::bind(self.listen).await?;
        let drain = Drain::new();
        let me = Answer { app: self.name, site: self.site, caller: String::new() };
        let accepting = accept(&listener, self.kind, &me, &drain);
        tokio::select! {
            result = accepting => result?,
            result = terminated() => result?,
        }
        drop(listener);
        drain.finish(DRAIN).await;
        Ok(())
    }
}

pub(crate) async fn accept(
    listener: &TcpListener,
    kind: Kind,
    me: &Answer,
    drain: &Drain,
) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (me, drain) = (me.clone(), drain.clone());
        drain.clone().spawn(async move {
            match kind {
                Kind::Http => serve_http(stream, me, drain).await,
                Kind::Grpc => serve_grpc(stream, me, drain).await,
                Kind::Echo => drop(echo(stream).await),
            }
        });
    }
}

async fn serve_http(stream: TcpStream, me: Answer, drain: Drain) {
    let service = service_fn(move |request| {
        let response = respond(&me, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    // An error here is the client's goodbye; there is nobody left to tell.
    let _ = connection.await;
}

fn respond(me: &Answer, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.uri().path() == "/healthz" {
        return Response::new(Full::new(Bytes::from_static(b"ok\n")));
    }
    let answer = Answer { caller: caller(request.headers()), ..me.clone() };
    let mut response = match serde_json::to_vec(&answer) {
        Ok(body) => Response::new(Full::new(body.into())),
        Err(error) => {
            let mut response = Response::new(Full::new(error.to_string().into()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    };
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn caller(headers: &http::HeaderMap) -> String {
    let value = headers.get(CALLER_HEADER).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

#[derive(Clone)]
struct Pay(Answer);

impl UnaryService<PayRequest> for Pay {
    type Response = PayResponse;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<PayResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<PayRequest>) -> Self::Future {
        let caller = caller(request.metadata().as_ref());
        let response = PayResponse {
            app: self.0.app.clone(),
            site: self.0.site.clone(),
            caller,
            amount: request.get_ref().amount,
        };
        Box::pin(async move { Ok(tonic::Response::new(response)) })
    }
}

async fn serve_grpc(stream: TcpStream, me: Answer, drain: Drain) {
    let service = service_fn(move |request: Request<Incoming>| {
        let me = me.clone();
        async move {
            let response = if request.uri().path() == GRPC_PATH {
                let codec: ProstCodec<PayResponse, PayRequest> = ProstCodec::default();
                tonic::server::Grpc::new(codec).unary(Pay(me), request).await
            } else {
                Status::unimplemented(request.uri().path().to_owned()).into_http()
            };
            Ok::<_, Infallible>(response)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = drain.draining() => connection.as_mut().graceful_shutdown(),
    }
    // As above: the client has gone.
    let _ = connection.await;
}

/// Sends everything back; the client's half-close ends it.
async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; ECHO_BUFFER];
    loop {
        let len = stream.read(&mut buffer).await?;
        if len == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..len]).await?;
    }
}
