//! `GET /metrics /live /ready` over plain HTTP/1.1, and what makes a process
//! ready.

use std::{
    collections::{BTreeMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::drain::Drain;

/// Scrapers and probes are few; more connections wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for its request head, and be idle between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one connection may last, so that slow readers free their place.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// A request head longer than this is not for us. hyper's least is 8192.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// <https://prometheus.io/docs/specs/om/open_metrics_spec/>
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>, for those who
/// understand nothing else.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Named conditions that must all hold before a process is ready. Cheap to
/// clone; several parts of a process each own one [`Condition`].
#[derive(Debug, Clone)]
pub struct Readiness {
    /// By name; `None` holds, `Some` says why not.
    reasons: watch::Sender<BTreeMap<&'static str, Option<String>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Without conditions: ready.
    pub fn new() -> Self {
        Self { reasons: watch::Sender::new(BTreeMap::new()) }
    }

    /// Adds a condition that does not hold yet.
    pub fn condition(&self, name: &'static str) -> Condition {
        let condition = Condition { name, readiness: self.clone() };
        condition.fails("starting");
        condition
    }

    /// Whether all hold; else one line `<name>: <why>` for each that does not.
    pub fn check(&self) -> Result<(), String> {
        let reasons = self.reasons.borrow();
        let lines: Vec<String> = reasons
            .iter()
            .filter_map(|(name, reason)| reason.as_ref().map(|why| format!("{name}: {why}")))
            .collect();
        if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
    }

    /// Waits until all hold.
    pub async fn ready(&self) {
        let mut changes = self.reasons.subscribe();
        // Cannot fail: `self` holds the sender.
        let _ = changes.wait_for(|reasons| reasons.values().all(Option::is_none)).await;
    }
}

/// One named condition of a [`Readiness`].
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

impl Condition {
    /// It holds from now on.
    pub fn holds(&self) {
        self.set(None);
    }

    /// It does not hold; `why` is shown to people. Returns whether that is
    /// news.
    pub fn fails(&self, why: impl Into<String>) -> bool {
        self.set(Some(why.into()))
    }

    fn set(&self, reason: Option<String>) -> bool {
        self.readiness.reasons.send_if_modified(|reasons| {
            let changed = reasons.get(self.name) != Some(&reason);
            reasons.insert(self.name, reason);
            changed
        })
    }
}

/// What the admin port shows.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Encoded at every scrape.
    pub registry: Arc<Registry>,
    /// `/ready`.
    pub readiness: Readiness,
}

/// Serves until `drain` stops, so that the last figures can still be read
/// while the process drains; run it with [`Drain::spawn_beside`].
pub async fn serve(listener: impl Into<Arc<TcpListener>>, admin: Admin, drain: Drain) {
    let listener = listener.into();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place.expect("never closed"),
            () = drain.stopping() => return,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.stopping() => return,
        };
        while connections.try_join_next().is_some() {}
        let (stream, _) = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!(error = error.to_string().as_str(); "admin port: cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (admin, drain) = (admin.clone(), drain.clone());
        connections.spawn(async move {
            let _ =
                tokio::time::timeout(CONNECTION_LIFETIME, connection(stream, admin, drain)).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, admin: Admin, drain: Drain) {
    let service = service_fn(|request: Request<Incoming>| {
        let response = respond(&admin, drain.is_draining(), &request);
        async { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        log::debug!(error = error.to_string().as_str(); "admin port: connection ended");
    }
}

fn respond<B>(admin: &Admin, draining: bool, request: &Request<B>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (method, path) = (request.method(), request.uri().path());
    if !matches!(path, "/metrics" | "/live" | "/ready") {
        let body = "not here; try /metrics, /live or /ready\n";
        return response(StatusCode::NOT_FOUND, TEXT, body.to_owned());
    }
    if method != Method::GET && method != Method::HEAD {
        let body = "only GET and HEAD\n";
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, body.to_owned());
        refused.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => metrics(&admin.registry, is_classic(request)),
        "/ready" if draining => {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".to_owned())
        }
        "/ready" => match admin.readiness.check() {
            Ok(()) => response(StatusCode::OK, TEXT, "ready\n".to_owned()),
            Err(reasons) => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, reasons + "\n"),
        },
        _ => response(StatusCode::OK, TEXT, "live\n".to_owned()),
    }
}

/// Whether the client takes plain text and no OpenMetrics.
fn is_classic<B>(request: &Request<B>) -> bool {
    let accepted = request.headers().get_all(header::ACCEPT);
    let has = |kind: &[u8]| {
        accepted.iter().any(|value| value.as_bytes().windows(kind.len()).any(|part| part == kind))
    };
    has(b"text/plain") && !has(b"application/openmetrics-text")
}

/// The same as Prometheus had it before OpenMetrics: a counter's family is
/// called as its samples are, and there is no mark at the end.
fn classic(text: &str) -> String {
    let counter = |line: &str| -> Option<String> {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        (kind == "counter").then(|| name.to_owned())
    };
    let counters: HashSet<String> = text.lines().filter_map(counter).collect();
    let mut classic = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let about = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        match about.and_then(|(what, rest)| Some((what, rest.split_once(' ')?))) {
            Some((what, (name, rest))) if counters.contains(name) => {
                classic.push_str(&format!("# {what} {name}_total {rest}"));
            }
            _ => classic.push_str(line),
        }
        classic.push('\n');
    }
    classic
}

fn metrics(registry: &Registry, plain: bool) -> Response<Full<Bytes>> {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) if plain => response(StatusCode::OK, CLASSIC, classic(&text)),
        Ok(()) => response(StatusCode::OK, OPENMETRICS, text),
        Err(error) => {
            let body = format!("metrics cannot be encoded: {error}\n");
            response(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", body)
        }
    }
}

fn response(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn admin() -> (Admin, Condition) {
        let mut registry = Registry::default();
        let counter = <Counter>::default();
        counter.inc_by(7);
        registry.register("things", "Things counted", counter);
        let readiness = Readiness::new();
        let condition = readiness.condition("snapshot");
        (Admin { registry: Arc::new(registry), readiness }, condition)
    }

    async fn ask(addr: std::net::SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(addr: std::net::SocketAddr, path: &str) -> String {
        ask(addr, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await
    }

    #[test]
    fn answers_over_http_until_it_stops() {
        crate::process::current_thread().unwrap().block_on(async {
            let (admin, condition) = admin();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap();
            let drain = Drain::new();
            let server = tokio::spawn(serve(listener, admin, drain.clone()));

            let answer = get(addr, "/ready").await;
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.ends_with("snapshot: starting\n"), "{answer}");
            condition.holds();
            assert!(get(addr, "/ready").await.starts_with("HTTP/1.1 200"));
            assert!(get(addr, "/live").await.starts_with("HTTP/1.1 200"));
            let answer = get(addr, "/metrics").await;
            assert!(answer.contains(OPENMETRICS), "{answer}");
            assert!(answer.contains("things_total 7\n"), "{answer}");
            assert!(answer.ends_with("# EOF\n"), "{answer}");
            let answer = ask(addr, "HEAD /metrics HTTP/1.1\r\nconnection: close\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
            assert!(ask(addr, "\u{1}garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));

            drain.start();
            let answer = get(addr, "/ready").await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"));
            assert!(get(addr, "/metrics").await.starts_with("HTTP/1.1 200"));
            drain.finish(Duration::ZERO).await;
            server.await.unwrap();
            assert!(TcpStream::connect(addr).await.is_err());
        });
    }

    #[test]
    fn who_takes_nothing_but_plain_text_gets_it() {
        let (admin, _condition) = admin();
        let ask = |accept: &str| {
            let request = Request::get("/metrics").header(header::ACCEPT, accept).body(()).unwrap();
            respond(&admin, false, &request).headers()[header::CONTENT_TYPE].clone()
        };
        assert_eq!(ask("text/plain;version=0.0.4"), CLASSIC);
        for accept in ["*/*", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"] {
            assert_eq!(ask(accept), OPENMETRICS, "{accept}");
        }
        let open = "# HELP a Things a.\n# TYPE a counter\na_total{x=\"# \"} 1\n# HELP b B.\n\
                    # TYPE b gauge\nb 2\n# EOF\n";
        let plain = "# HELP a_total Things a.\n# TYPE a_total counter\na_total{x=\"# \"} 1\n\
                     # HELP b B.\n# TYPE b gauge\nb 2\n";
        assert_eq!(classic(open), plain);
    }

    #[test]
    fn everything_else_is_refused() {
        let (admin, _condition) = admin();
        let cases = [
            (Method::GET, "/", 404),
            (Method::GET, "/metrics/", 404),
            (Method::POST, "/other", 404),
            (Method::POST, "/metrics", 405),
            (Method::DELETE, "/live", 405),
            (Method::CONNECT, "/ready", 405),
        ];
        for (method, path, status) in cases {
            let request = Request::builder().method(&method).uri(path).body(()).unwrap();
            let answer = respond(&admin, false, &request);
            assert_eq!(answer.status().as_u16(), status, "{method} {path}");
            assert_eq!(answer.headers().contains_key(header::ALLOW), status == 405);
        }
    }

    #[test]
    fn readiness_needs_every_condition() {
        let readiness = Readiness::new();
        assert_eq!(readiness.check(), Ok(()));
        let (a, b) = (readiness.condition("a"), readiness.condition("b"));
        a.holds();
        assert_eq!(readiness.check(), Err("b: starting".into()));
        a.fails("lost");
        b.fails("no gateway");
        assert_eq!(readiness.check(), Err("a: lost\nb: no gateway".into()));
        crate::process::current_thread().unwrap().block_on(async {
            let wait = tokio::spawn({
                let readiness = readiness.clone();
                async move { readiness.ready().await }
            });
            tokio::task::yield_now().await;
            a.holds();
            assert!(!wait.is_finished());
            b.holds();
            wait.await.unwrap();
        });
    }
}
