//! How an application is asked whether it is well.

use std::{net::SocketAddr, path::Path};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tunnel::{Net, Stream};
use prost::Message;

use crate::machine;

const USER_AGENT: &str = concat!("isthmus-vm-agent/", env!("CARGO_PKG_VERSION"));
/// The longest answer of a gRPC server that is read, in bytes.
const MAX_ANSWER: usize = 4096;
/// Before each message: whether it is compressed, and its length
/// (PROTOCOL-HTTP2.md of gRPC, "Length-Prefixed-Message").
const PREFIX: usize = 5;
/// Codes of gRPC (doc/statuscodes.md).
const OK: &str = "0";
const NOT_FOUND: &str = "5";
const UNIMPLEMENTED: &str = "12";

/// Connects; the error names the address.
pub async fn connect(net: &dyn Net, addr: SocketAddr) -> Result<Stream, String> {
    net.dial(addr).await.map_err(|error| error.to_string())
}

/// `GET`, which has to answer with 200 to 399.
pub async fn http(net: &dyn Net, addr: SocketAddr, path: &str) -> Result<(), String> {
    let named = |problem: String| format!("http://{addr}{path}: {problem}");
    let stream = TokioIo::new(connect(net, addr).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(|error| named(error.to_string()))?;
    let request = Request::get(path)
        .header(header::HOST, addr.to_string())
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| named(error.to_string()))?;
    // The head is enough: the body is dropped with the connection. When the
    // connection ends first, the response has arrived or never will.
    let response = std::pin::pin!(sender.send_request(request));
    let response = match select(response, std::pin::pin!(connection)).await {
        Either::Left((response, _)) => response,
        Either::Right((_, response)) => response.await,
    };
    let status = response.map_err(|error| named(error.to_string()))?.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(named(status.to_string()))
}

/// grpc/health/v1/health.proto, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// `grpc.health.v1.Health/Check`, which has to say that `service` is `SERVING`;
/// an empty name is the whole server.
pub async fn grpc(net: &dyn Net, addr: SocketAddr, service: &str) -> Result<(), String> {
    let named = |problem: String| format!("grpc://{addr}/{service}: {problem}");
    let stream = TokioIo::new(connect(net, addr).await?);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(|error| named(error.to_string()))?;
    let request = Request::post(format!("http://{addr}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(question(service)))
        .map_err(|error| named(error.to_string()))?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        serving(response).await
    };
    // What drives the connection ends after what it carries.
    let (asking, connection) = (std::pin::pin!(asking), std::pin::pin!(connection));
    let answer = match select(asking, connection).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, asking)) => asking.await,
    };
    answer.map_err(named)
}

fn question(service: &str) -> Bytes {
    let message = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    framed.put_u8(0);
    // A name of a service file is short.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// Whether an answer says so.
async fn serving(response: Response<Incoming>) -> Result<(), String> {
    let (parts, body) = response.into_parts();
    if parts.status != http::StatusCode::OK {
        return Err(format!("{}; does it speak gRPC?", parts.status));
    }
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| error.to_string())?;
    // An answer without a message has its status in the head.
    let trailers = body.trailers().unwrap_or(&parts.headers).clone();
    check_status(&trailers)?;
    let mut message = body.to_bytes();
    let whole = message.len() >= PREFIX
        && message.get_u8() == 0
        && usize::try_from(message.get_u32()) == Ok(message.len());
    if !whole {
        return Err("the answer has no message".to_owned());
    }
    let answer = HealthCheckResponse::decode(message).map_err(|error| error.to_string())?;
    match ServingStatus::try_from(answer.status) {
        Ok(ServingStatus::Serving) => Ok(()),
        Ok(status) => Err(format!("says {status:?}")),
        Err(_) => Err(format!("says status {}", answer.status)),
    }
}

fn check_status(trailers: &HeaderMap) -> Result<(), String> {
    let text = |name| trailers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text("grpc-status") {
        Some(OK) => Ok(()),
        Some(NOT_FOUND) => Err("the server knows no service of that name".to_owned()),
        Some(UNIMPLEMENTED) => {
            Err("the server has no grpc.health.v1.Health; check tcp instead".to_owned())
        }
        Some(code) => Err(format!("status {code}: {}", text("grpc-message").unwrap_or_default())),
        None => Err("the answer has no status; does it speak gRPC?".to_owned()),
    }
}

/// What systemd says of a unit, which has to be active.
pub async fn unit(systemctl: &Path, unit: &str) -> Result<(), String> {
    let question = ["show", "--property=LoadState,ActiveState,SubState", "--", unit];
    let output = machine::said(systemctl, &question)
        .await
        .map_err(|error| format!("systemctl cannot be asked: {error}"))?;
    if !output.status.success() {
        return Err(machine::unclear(&output));
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let of = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    match (of("LoadState="), of("ActiveState=")) {
        (_, "active" | "reloading") => Ok(()),
        ("not-found", _) => Err(format!("{unit}: there is no such unit")),
        (_, state) => Err(format!("{unit}: {state} ({})", of("SubState="))),
    }
}

#[cfg(test)]
mod tests {
    use mesh_runtime::process::current_thread;
    use mesh_tunnel::RealNet;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::machine::tests::played;

    /// Answers every connection with these bytes and closes it.
    async fn server(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let n = stream.read(&mut request).await.unwrap();
                assert!(request[..n].starts_with(b"GET /healthz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        addr
    }

    #[test]
    fn http_is_judged_by_its_status() {
        current_thread().unwrap().block_on(async {
            let cases = [
                ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(())),
                ("HTTP/1.1 204 No Content\r\n\r\n", Ok(())),
                ("HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", Ok(())),
                ("HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n", Ok(())),
                ("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n", Err("500")),
                ("HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n", Err("404")),
                ("garbage\r\n\r\n", Err("http://127.0.0.1")),
                ("", Err("http://127.0.0.1")),
            ];
            for (answer, expected) in cases {
                let addr = server(answer).await;
                let result = http(&RealNet, addr, "/healthz").await;
                match (&result, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(shown), Err(part)) if shown.contains(part) => {}
                    _ => panic!("{answer:?}: {result:?}"),
                }
            }
        });
    }

    /// Answers the health question for `service` with these fields, this body
    /// and these trailers.
    async fn grpc_server(
        service: &'static str,
        head: &'static [(&'static str, &'static str)],
        body: &'static [u8],
        trailers: &'static [(&'static str, &'static str)],
    ) -> SocketAddr {
        use http_body_util::StreamBody;
        use hyper::body::Frame;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let map = |fields: &[(&'static str, &'static str)]| {
            let fields = fields.iter().map(|&(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            fields.collect::<HeaderMap>()
        };
        let answer = hyper::service::service_fn(move |request: Request<Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()[header::CONTENT_TYPE], "application/grpc");
            let asked = request.into_body().collect().await?.to_bytes();
            let expected = HealthCheckRequest { service: service.into() }.encode_to_vec();
            assert_eq!(asked[PREFIX..], expected);
            let mut frames = Vec::new();
            if !body.is_empty() {
                frames.push(Frame::data(Bytes::from_static(body)));
            }
            if !trailers.is_empty() {
                frames.push(Frame::trailers(map(trailers)));
            }
            let frames = frames.into_iter().map(Ok::<_, hyper::Error>);
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let mut response = Response::new(body);
            response.headers_mut().extend(map(head));
            Ok::<_, hyper::Error>(response)
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), answer);
                let _closed_by_client = serving.await;
            }
        });
        addr
    }

    #[test]
    fn grpc_says_whether_a_service_serves() {
        const WELL: &[(&str, &str)] = &[("grpc-status", "0")];
        const UNKNOWN: &[(&str, &str)] = &[("grpc-status", "5")];
        const NONE: &[(&str, &str)] = &[("grpc-status", "12")];
        const BUSY: &[(&str, &str)] = &[("grpc-status", "14"), ("grpc-message", "warming up")];
        current_thread().unwrap().block_on(async {
            let cases: [(_, &[u8], _, _); 10] = [
                (&[][..], b"\0\0\0\0\x02\x08\x01", WELL, Ok(())),
                (&[], b"\0\0\0\0\x02\x08\x02", WELL, Err("says NotServing")),
                (&[], b"\0\0\0\0\0", WELL, Err("says Unknown")),
                (&[], b"\0\0\0\0\x02\x08\x09", WELL, Err("says status 9")),
                (&[], b"\x01\0\0\0\x02\x08\x01", WELL, Err("no message")),
                (&[], b"", WELL, Err("no message")),
                (&[], b"hello", &[], Err("no status")),
                (UNKNOWN, b"", &[], Err("knows no service")),
                (NONE, b"", &[], Err("check tcp instead")),
                (BUSY, b"", &[], Err("status 14: warming up")),
            ];
            for (head, body, trailers, expected) in cases {
                let addr = grpc_server("shop.Orders", head, body, trailers).await;
                let result = grpc(&RealNet, addr, "shop.Orders").await;
                match (&result, expected) {
                    (Ok(()), Ok(())) => {}
                    (Err(shown), Err(part)) if shown.contains(part) => {
                        assert!(shown.starts_with(&format!("grpc://{addr}/shop.Orders: ")));
                    }
                    _ => panic!("{body:?} {trailers:?}: {result:?}"),
                }
            }
        });
    }

    #[test]
    fn an_endless_answer_is_not_read() {
        static LONG: [u8; MAX_ANSWER + 1] = [0; MAX_ANSWER + 1];
        current_thread().unwrap().block_on(async {
            let addr = grpc_server("", &[], &LONG, &[("grpc-status", "0")]).await;
            let shown = grpc(&RealNet, addr, "").await.unwrap_err();
            assert!(shown.contains("limit"), "{shown}");
        });
    }

    #[tokio::test]
    async fn a_unit_is_well_while_systemd_says_that_it_is_active() {
        let show = |load, active, sub| {
            format!("echo LoadState={load}; echo ActiveState={active}; echo SubState={sub}")
        };
        for (said, expected) in [
            (show("loaded", "active", "running"), Ok(())),
            (show("loaded", "reloading", "reload"), Ok(())),
            (show("loaded", "activating", "start"), Err("web.service: activating (start)")),
            (show("loaded", "failed", "failed"), Err("web.service: failed (failed)")),
            (show("loaded", "inactive", "dead"), Err("web.service: inactive (dead)")),
            (show("not-found", "inactive", "dead"), Err("there is no such unit")),
            ("echo no bus >&2; exit 1".to_owned(), Err("no bus")),
        ] {
            let (_dir, systemctl) = played(&[&said]);
            match (unit(&systemctl, "web.service").await, expected) {
                (Ok(()), Ok(())) => {}
                (Err(shown), Err(part)) if shown.contains(part) => {}
                (result, _) => panic!("{said}: {result:?}"),
            }
        }
        let shown = unit(Path::new("/nowhere/systemctl"), "web.service").await.unwrap_err();
        assert!(shown.contains("cannot be asked"), "{shown}");
    }
}
