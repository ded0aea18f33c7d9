//! The applications that call: they know the name of a service and the
//! listener of their own proxy, nothing else.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    apps::{Answer, GRPC_PATH, PayRequest, PayResponse},
    meter::Outcome,
};

/// A request that takes longer has failed.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The answers of the demo's applications are a few hundred bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// What a TCP connection of the demo carries each way.
const TCP_BYTES: usize = 4 * 1024;

/// How a caller reaches a service.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    /// HTTP/1.1 through the HTTP proxy listener.
    Http { proxy: SocketAddr, service: String },
    /// gRPC over HTTP/2 (prior knowledge) through the same listener.
    Grpc { proxy: SocketAddr, service: String, port: u16 },
    /// A connection to the listener of one service.
    Tcp { listener: SocketAddr },
}

/// One caller with its open connection, if it has one.
#[derive(Debug)]
pub(crate) struct Client {
    call: Call,
    http: Option<SendRequest<Empty<Bytes>>>,
    grpc: Option<Grpc<Channel>>,
}

impl Client {
    pub(crate) fn new(call: Call) -> Self {
        Self { call, http: None, grpc: None }
    }

    /// One request, from its first byte to its last.
    pub(crate) async fn request(&mut self) -> Result<Outcome, String> {
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.try_request()).await;
        let answer =
            answer.unwrap_or_else(|_| Err(format!("no answer within {REQUEST_TIMEOUT:?}")));
        if answer.is_err() {
            self.http = None;
            self.grpc = None;
        }
        answer
    }

    async fn try_request(&mut self) -> Result<Outcome, String> {
        match self.call.clone() {
            Call::Http { proxy, service } => self.http(proxy, &service).await,
            Call::Grpc { proxy, service, port } => self.grpc(proxy, &service, port).await,
            Call::Tcp { listener } => tcp(listener).await,
        }
    }

    async fn http(&mut self, proxy: SocketAddr, service: &str) -> Result<Outcome, String> {
        // Absolute-form, as a client does that was told `http_proxy=`.
        let uri: Uri = format!("http://{service}/").parse().map_err(|e| format!("uri: {e}"))?;
        let request = || Request::get(uri.clone()).header(HOST, service).body(Empty::new());
        let mut sender = match self.http.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => connect(proxy).await?,
        };
        let mut sent = sender.send_request(request().map_err(|e| e.to_string())?).await;
        if sent.as_ref().is_err_and(hyper::Error::is_canceled) {
            // The idle connection closed before the request left: not a try.
            sender = connect(proxy).await?;
            sent = sender.send_request(request().map_err(|e| e.to_string())?).await;
        }
        let response = sent.map_err(|error| format!("connection: {error}"))?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| format!("body: {e}"))?;
        if head.status != StatusCode::OK {
            return Err(refusal(head.status, &head.headers));
        }
        let answer: Answer =
            serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("answer: {error}"))?;
        self.http = Some(sender);
        Ok(Outcome { caller: answer.caller, site: answer.site })
    }

    async fn grpc(
        &mut self,
        proxy: SocketAddr,
        service: &str,
        port: u16,
    ) -> Result<Outcome, String> {
        let mut client = match self.grpc.take() {
            Some(client) => client,
            None => Grpc::new(channel(proxy, service, port)?),
        };
        client.ready().await.map_err(|error| format!("connection: {error}"))?;
        let amount = u64::from(rand::random::<u32>());
        let codec: ProstCodec<PayRequest, PayResponse> = ProstCodec::default();
        let path = http::uri::PathAndQuery::from_static(GRPC_PATH);
        let request = tonic::Request::new(PayRequest { amount });
        // An answer without trailers is an error in tonic: `grpc-status` came.
        let answer = client.unary(request, path, codec).await;
        let answer =
            answer.map_err(|status| format!("grpc {:?}: {}", status.code(), status.message()))?;
        let answer = answer.into_inner();
        if answer.amount != amount {
            return Err("the answer belongs to another request".into());
        }
        self.grpc = Some(client);
        Ok(Outcome { caller: answer.caller, site: answer.site })
    }
}

async fn connect(proxy: SocketAddr) -> Result<SendRequest<Empty<Bytes>>, String> {
    let stream =
        TcpStream::connect(proxy).await.map_err(|error| format!("proxy {proxy}: {error}"))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, connection) =
        handshake(TokioIo::new(stream)).await.map_err(|error| format!("proxy {proxy}: {error}"))?;
    // Ends with the sender; its error is the sender's too.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

fn channel(proxy: SocketAddr, service: &str, port: u16) -> Result<Channel, String> {
    let origin: Uri =
        format!("http://{service}:{port}").parse().map_err(|e| format!("uri: {e}"))?;
    let endpoint = Endpoint::from_shared(format!("http://{proxy}")).map_err(|e| e.to_string())?;
    Ok(endpoint.origin(origin).connect_timeout(REQUEST_TIMEOUT).connect_lazy())
}

fn refusal(status: StatusCode, headers: &http::HeaderMap) -> String {
    match headers.get("isthmus-error").and_then(|code| code.to_str().ok()) {
        Some(code) => format!("{} {code}", status.as_u16()),
        None => format!("status {}", status.as_u16()),
    }
}

/// Sends everything, closes its half, and must get all of it back before the
/// other half ends.
async fn tcp(listener: SocketAddr) -> Result<Outcome, String> {
    let stream = TcpStream::connect(listener)
        .await
        .map_err(|error| format!("listener {listener}: {error}"))?;
    let (mut rx, mut tx) = stream.into_split();
    let sent: Vec<u8> = (0..TCP_BYTES).map(|_| rand::random()).collect();
    let send = async {
        tx.write_all(&sent).await?;
        tx.shutdown().await
    };
    let receive = async {
        let mut received = Vec::with_capacity(TCP_BYTES);
        (&mut rx).take(2 * TCP_BYTES as u64).read_to_end(&mut received).await?;
        Ok::<_, std::io::Error>(received)
    };
    let (sending, received) = tokio::join!(send, receive);
    sending.map_err(|error| format!("sending: {error}"))?;
    let received = received.map_err(|error| format!("receiving: {error}"))?;
    if received != sent {
        return Err(format!("{} bytes came back instead of {}", received.len(), sent.len()));
    }
    Ok(Outcome { caller: String::new(), site: String::new() })
}
