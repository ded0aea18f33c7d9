//! One real request through the proxy of this machine.

use std::{fmt, future::Future, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::service::Protocol;
use tokio::{net::TcpStream, time::timeout};

use crate::failure::REASON;

/// For the connection to a proxy on this machine.
const CONNECT: Duration = Duration::from_secs(2);
/// For the answer: longer than a proxy tries.
const ANSWER: Duration = Duration::from_secs(20);
/// What is read of a refusal, in bytes: its text is one line.
const MAX_REFUSAL: usize = 4096;
/// An empty gRPC message: one `HealthCheckRequest` for the whole server.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

/// What to ask.
pub(super) struct Asked {
    pub(super) proxy: SocketAddr,
    /// `<name>.<namespace>:<port>`
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) protocol: Protocol,
}

/// Why the application has not answered.
pub(super) enum Failed {
    /// Nobody listens on this machine.
    NoProxy(String),
    /// A proxy on the way says no, or nothing.
    Refused(String),
}

/// How the application answers. Any answer of its own proves the way.
pub(super) async fn ask(asked: &Asked) -> Result<String, Failed> {
    let stream = match timeout(CONNECT, TcpStream::connect(asked.proxy)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Failed::NoProxy(error.to_string())),
        Err(_) => return Err(Failed::NoProxy(format!("no answer within {CONNECT:?}"))),
    };
    let exchange = async {
        let response = match asked.protocol {
            Protocol::Grpc => grpc(stream, asked).await?,
            Protocol::Http | Protocol::Detect | Protocol::Tcp | Protocol::Tls => {
                http1(stream, asked).await?
            }
        };
        judge(response, asked.protocol).await
    };
    let answered = timeout(ANSWER, exchange).await;
    answered.unwrap_or_else(|_| Err(Failed::Refused(format!("no answer within {ANSWER:?}"))))
}

async fn http1(stream: TcpStream, asked: &Asked) -> Result<Response<Incoming>, Failed> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
    // RFC 9110 section 9.3.6: CONNECT names the port alone.
    let (method, uri) = match asked.protocol {
        Protocol::Tcp | Protocol::Tls => (Method::CONNECT, asked.authority.clone()),
        _ => (Method::GET, format!("http://{}{}", asked.authority, asked.path)),
    };
    let request = Request::builder().method(method).uri(uri).header(header::HOST, &asked.authority);
    let request = request.body(Full::<Bytes>::default()).map_err(lost)?;
    beside(connection, sender.send_request(request)).await
}

/// The health check that gRPC servers share; one that has none says so, which
/// is as good.
async fn grpc(stream: TcpStream, asked: &Asked) -> Result<Response<Incoming>, Failed> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(lost)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}/grpc.health.v1.Health/Check", asked.authority))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(Bytes::from_static(EMPTY_MESSAGE)))
        .map_err(lost)?;
    beside(connection, sender.send_request(request)).await
}

/// Drives the connection until the answer is there, and for what is read of
/// its body afterwards.
async fn beside(
    connection: impl Future<Output = hyper::Result<()>> + Send + 'static,
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<Response<Incoming>, Failed> {
    // Ends with its connection, which ends with this command.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    answer.await.map_err(lost)
}

async fn judge(response: Response<Incoming>, protocol: Protocol) -> Result<String, Failed> {
    let (head, body) = response.into_parts();
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let status = head.status.as_u16();
    if let Some(code) = text(REASON) {
        let said = match text("grpc-message") {
            Some(message) => message.to_owned(),
            None => first_line(body).await,
        };
        return Err(Failed::Refused(format!("{code}: {said} (HTTP {status})")));
    }
    match protocol {
        Protocol::Tcp | Protocol::Tls if head.status.is_success() => Ok("connected".to_owned()),
        Protocol::Tcp | Protocol::Tls => {
            Err(Failed::Refused(format!("CONNECT is answered with HTTP {status}")))
        }
        Protocol::Grpc => Ok(match text("grpc-status") {
            Some(status) => format!("gRPC status {status}"),
            None => format!("gRPC over HTTP {status}"),
        }),
        Protocol::Http | Protocol::Detect => Ok(format!("HTTP {status}")),
    }
}

async fn first_line(body: Incoming) -> String {
    let read = Limited::new(body, MAX_REFUSAL).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned()
}

fn lost(error: impl fmt::Display) -> Failed {
    Failed::Refused(format!("the proxy of this machine gave no answer: {error}"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::service::service_fn;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn told(proxy: SocketAddr, protocol: Protocol) -> Result<String, String> {
        let authority = "orders.shop:80".to_owned();
        let asked = Asked { proxy, authority, path: "/x".to_owned(), protocol };
        ask(&asked).await.map_err(|failed| match failed {
            Failed::NoProxy(why) => format!("no proxy: {why}"),
            Failed::Refused(why) => why,
        })
    }

    /// A proxy that answers the first head with these bytes; and that head.
    async fn canned(protocol: Protocol, answer: &str) -> (Result<String, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.expect("a head");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
            (String::from_utf8_lossy(&head[..n]).into_owned(), stream)
        };
        let (told, (head, _open)) = tokio::join!(told(addr, protocol), serve);
        (told, head)
    }

    #[tokio::test]
    async fn any_answer_of_the_application_proves_the_way_and_a_refusal_does_not() {
        let refused = "HTTP/1.1 403 Forbidden\r\nisthmus-error: denied_no_rule\r\n\
                       content-length: 9\r\n\r\nno: rule\n";
        for (protocol, answer, expected) in [
            (Protocol::Http, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok("HTTP 200")),
            (Protocol::Http, "HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", Ok("HTTP 500")),
            (Protocol::Http, refused, Err("denied_no_rule: no: rule (HTTP 403)")),
            (Protocol::Tcp, "HTTP/1.1 200 OK\r\n\r\n", Ok("connected")),
            (Protocol::Tcp, refused, Err("denied_no_rule: no: rule (HTTP 403)")),
            (Protocol::Tcp, "HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", Err("CONNECT is ans")),
            (Protocol::Http, "SSH-2.0-x\r\n\r\n", Err("the proxy of this machine gave no answer")),
        ] {
            let (told, head) = canned(protocol, answer).await;
            let line = match protocol {
                Protocol::Tcp => "CONNECT orders.shop:80 HTTP/1.1\r\n",
                _ => "GET http://orders.shop:80/x HTTP/1.1\r\n",
            };
            assert!(head.starts_with(line), "{head}");
            match (told, expected) {
                (Ok(told), Ok(expected)) => assert_eq!(told, expected),
                (Err(told), Err(expected)) => assert!(told.starts_with(expected), "{told}"),
                (told, expected) => panic!("{answer}: {told:?}, not {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn nobody_listening_is_no_proxy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        drop(listener);
        let told = told(addr, Protocol::Http).await;
        assert!(told.as_ref().is_err_and(|why| why.starts_with("no proxy: ")), "{told:?}");
    }

    #[tokio::test]
    async fn grpc_is_asked_over_http2() {
        for (code, expected) in [
            (None, Ok("gRPC status 12".to_owned())),
            (Some("no_endpoint"), Err("no_endpoint: none (HTTP 200)".to_owned())),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let addr = listener.local_addr().expect("an address");
            let serve = async move {
                let (stream, _) = listener.accept().await.expect("a client");
                let service = service_fn(move |request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut response = Response::builder().header("grpc-status", "12");
                    if let Some(code) = code {
                        response = response.header(REASON, code).header("grpc-message", "none");
                    }
                    Ok::<_, Infallible>(
                        response.body(Full::<Bytes>::default()).expect("a response"),
                    )
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            };
            let told = tokio::select! {
                told = told(addr, Protocol::Grpc) => told,
                () = serve => panic!("the server ended first"),
            };
            assert_eq!(told, expected);
        }
    }
}
