//! `POST /mutate` over TLS: HTTP/2, as API servers speak it, and HTTP/1.1.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto::Builder,
        graceful::{GracefulShutdown, Watcher},
    },
};
use mesh_runtime::{clock, drain::Drain};
use rustls::{ServerConfig, server::ResolvesServerCert};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{cluster::Cluster, metrics::Admissions, review::Review};

/// An API server has a few; more wait in the backlog.
const MAX_CONNECTIONS: usize = 256;
/// Reviews that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// What a pod with all its status and managed fields may be, and twice that:
/// etcd takes 1.5 MiB.
const MAX_BODY: usize = 3 << 20;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// API servers wait 10 s by default, and 30 s at most.
const REQUEST: Duration = Duration::from_secs(10);
/// After SIGTERM, until no API server sends anything new: it takes a while until
/// all have heard that this endpoint is going.
const LINGER: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What requests are answered with.
#[derive(Debug, Clone)]
pub(super) struct Webhook {
    pub(super) cluster: Cluster,
    pub(super) admissions: Admissions,
}

/// TLS with whatever certificate there is at the moment.
pub(super) fn tls(certificate: Arc<dyn ResolvesServerCert>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Serves until some time after the drain has begun, and finishes what is
/// under way.
pub(super) async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    webhook: Webhook,
    drain: Drain,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let ends = async {
        drain.draining().await;
        tokio::time::sleep(LINGER).await;
    };
    tokio::pin!(ends);
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("never closed"),
            () = &mut ends => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ends => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::warn!(error:%; "the webhook's port: cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, webhook, watcher) = (acceptor.clone(), webhook.clone(), graceful.watcher());
        drain.spawn(async move {
            connection(stream, acceptor, webhook, watcher).await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, webhook: Webhook, watcher: Watcher) {
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            // An API server that does not trust us says so here, and nowhere else.
            log::warn!(error:%; "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(REQUEST);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let service = service_fn(move |request| {
        let webhook = webhook.clone();
        async move { Ok::<_, Infallible>(webhook.respond(request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        log::debug!(error:%; "a connection has ended");
    }
}

impl Webhook {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/mutate" {
            return text(StatusCode::NOT_FOUND, "not here; try /mutate\n");
        }
        if request.method() != Method::POST {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
            refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("POST"));
            return refused;
        }
        let began = clock::monotonic();
        let answered = timeout(REQUEST, self.review(request.into_body())).await;
        self.admissions.took(began.elapsed());
        answered.unwrap_or_else(|_| text(StatusCode::REQUEST_TIMEOUT, "the body did not come\n"))
    }

    async fn review(&self, body: Incoming) -> Response<Full<Bytes>> {
        let body = match Limited::new(body, MAX_BODY).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return text(StatusCode::PAYLOAD_TOO_LARGE, "longer than 3 MiB\n");
            }
            Err(_) => return text(StatusCode::BAD_REQUEST, "the body ends too early\n"),
        };
        let review = match Review::read(&body) {
            Ok(review) => review,
            Err(error) => {
                self.admissions.count("invalid", "");
                return text(StatusCode::BAD_REQUEST, &format!("{error}\n"));
            }
        };
        let namespace = review.namespace.clone();
        let settings = self.cluster.settings(&namespace).await;
        let answer = review.answer(&settings);
        self.admissions.count(answer.outcome, answer.reason);
        match answer.told {
            Some(told) => {
                log::info!(namespace:%, outcome = answer.outcome, reason = answer.reason; "a pod: {told}");
            }
            None => log::debug!(namespace:%, outcome = answer.outcome; "a pod"),
        }
        let body = Bytes::from(answer.review.to_string());
        response(StatusCode::OK, "application/json", body)
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(text.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use hyper::client::conn::{http1, http2};
    use mesh_inject::Settings;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    };
    use serde_json::{Value, json};
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::{
        super::{certificate, cluster, keep},
        *,
    };
    use crate::testing::paused;

    const HOST: &str = "isthmus-injector.isthmus-system.svc";

    struct Running {
        addr: std::net::SocketAddr,
        bundle: String,
        admissions: Admissions,
        drain: Drain,
    }

    async fn start() -> Running {
        let (served, bundle) = keep::tests::served(&certificate::tests::names());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, drain) = (listener.local_addr().unwrap(), Drain::new());
        let settings = Settings::new("east.example".parse().unwrap());
        let (cluster, admissions) = (cluster::tests::cluster(None, settings), Admissions::new());
        let webhook = Webhook { cluster, admissions: admissions.clone() };
        drain.spawn(serve(listener, tls(served), webhook, drain.clone()));
        Running { addr, bundle, admissions, drain }
    }

    async fn connect(to: &Running, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(to.bundle.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TcpStream::connect(to.addr).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn));
        stream
    }

    fn post(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(path).header("host", HOST).body(Full::new(body.into())).unwrap()
    }

    fn review() -> String {
        let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "web"}]}});
        let resource = json!({"group": "", "version": "v1", "resource": "pods"});
        let request = json!({"uid": "u", "operation": "CREATE", "namespace": "shop", "resource": resource, "object": pod});
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
            .to_string()
    }

    async fn read(response: Response<Incoming>) -> (u16, Bytes) {
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    }

    #[test]
    fn it_speaks_http2_as_api_servers_do() {
        paused(async {
            let running = start().await;
            let stream = TokioIo::new(connect(&running, b"h2").await);
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            running.drain.spawn_beside(async { drop(connection.await) });
            let (status, body) =
                read(client.send_request(post("/mutate", review())).await.unwrap()).await;
            let answer: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((status, &answer["response"]["allowed"]), (200, &json!(true)));
            assert!(answer["response"]["patch"].is_string());
            let mut registry = prometheus_client::registry::Registry::default();
            super::super::metrics::register(
                &mut registry,
                &running.admissions,
                &Default::default(),
                &Default::default(),
            );
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            let line = "isthmus_injector_admissions_total{outcome=\"injected\",reason=\"\"} 1";
            assert!(text.contains(line), "{text}");
        });
    }

    #[test]
    fn what_is_none_of_its_own_is_refused() {
        paused(async {
            let running = start().await;
            let long = Bytes::from(vec![b' '; MAX_BODY + 1]);
            let get = Request::get("/mutate").header("host", HOST).body(Full::default()).unwrap();
            let cases = [
                (post("/validate", ""), 404),
                (get, 405),
                (post("/mutate", "{"), 400),
                (post("/mutate", "[]"), 400),
                (post("/mutate", long), 413),
            ];
            for (request, expected) in cases {
                let stream = TokioIo::new(connect(&running, b"http/1.1").await);
                let (mut client, connection) = http1::handshake(stream).await.unwrap();
                running.drain.spawn_beside(async { drop(connection.await) });
                let (status, body) = read(client.send_request(request).await.unwrap()).await;
                assert_eq!(status, expected, "{body:?}");
            }
        });
    }

    /// Until all API servers have heard that it goes.
    #[test]
    fn it_goes_on_for_a_while_after_sigterm() {
        paused(async {
            let running = start().await;
            let stream = TokioIo::new(connect(&running, b"h2").await);
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            running.drain.spawn_beside(async { drop(connection.await) });
            running.drain.start();
            tokio::time::sleep(LINGER / 2).await;
            connect(&running, b"h2").await;
            assert_eq!(client.send_request(post("/mutate", review())).await.unwrap().status(), 200);
            assert_eq!(running.drain.finish(Duration::from_secs(60)).await, 0);
            assert!(TcpStream::connect(running.addr).await.is_err());
        });
    }
}
