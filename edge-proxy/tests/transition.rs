//! Peers that still speak TLS with certificates of another CA.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{net::SocketAddr, time::Duration};

use edge_proxy::{
    app::{App as ProxyApp, Shared},
    config::{AccessLogTarget, Config, Forwarded, ListenerTls},
    transition::origin::{Expected, OriginTls},
};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tunnel::{Credentials, RealNet, Trust};
use rustls::{ClientConfig, version};
use support::{
    Pair, Targets,
    apps::{AnyBody, App, empty, fetch, full, get, http2, read},
    caller::wait,
    legacy::{Dir, Legacy, TlsApp, handshake, set_mode},
    outbound_config,
    process::{Running, command},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const NAME: &str = "orders.example.com";
const FAR: &str = "2999-01-01";
/// Of a listener that asks for any port.
const DOOR: &str = "listener=\"127.0.0.1:0\"";

/// Says what the application was told.
async fn told(request: Request<Incoming>) -> Response<AnyBody> {
    let proto = request.headers().get("x-forwarded-proto");
    let proto = proto.and_then(|value| value.to_str().ok()).unwrap_or("-");
    Response::new(full(format!("{:?} {proto}", request.version())))
}

/// Says back what it hears.
async fn echo() -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(support::any()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut serving = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            serving.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ended = tokio::io::copy(&mut read, &mut write).await;
                let _ended = write.shutdown().await;
            });
        }
    });
    (addr, task)
}

/// A listener's TLS, with its files in `dir`.
fn tls(dir: &Dir, ca: &Legacy, client_ca: Option<&Legacy>, until: &str) -> ListenerTls {
    let leaf = ca.leaf(&[NAME]);
    ListenerTls {
        certificate: dir.write("tls.pem", &(leaf.certificate_pem + &leaf.key_pem)),
        key: None,
        client_ca: client_ca.map(|ca| dir.write("clients.pem", &ca.pem())),
        until: until.parse().unwrap(),
    }
}

/// All listeners have it.
fn everywhere(tls: ListenerTls) -> impl FnOnce(&mut Config) {
    move |config| {
        config.forwarded = Forwarded::Replace;
        for listener in &mut config.listeners {
            listener.tls = Some(tls.clone());
        }
    }
}

/// There is one listener, and it has it.
fn only_first(tls: ListenerTls) -> impl FnOnce(&mut Config) {
    move |config| {
        config.listeners.truncate(1);
        everywhere(tls)(config);
    }
}

/// A GET over HTTP/1, or why there was none.
async fn over_http1(addr: SocketAddr, config: ClientConfig) -> std::io::Result<String> {
    let stream = handshake(addr, NAME, config).await?;
    let broken = std::io::Error::other;
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let request = Request::get("/").header("host", NAME).body(empty()).unwrap();
    let response = wait(send.send_request(request)).await.map_err(broken)?;
    let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

async fn over_http2(addr: SocketAddr, config: ClientConfig) -> String {
    let stream = handshake(addr, NAME, config).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut send, connection) =
        builder.handshake::<_, AnyBody>(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = wait(send.send_request(get(&format!("https://{NAME}/")))).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Waits until so many handshakes of this peer (`listener` or `service`) have
/// come to this.
async fn counted(pair: &Pair, peer: &str, outcome: &str, count: u64) {
    let wanted = format!(
        "isthmus_transition_tls_handshakes_total{{{peer},outcome=\"{outcome}\"}} {count}\n"
    );
    let until = async {
        while !pair.source.metrics().contains(&wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), until).await;
    assert!(waited.is_ok(), "{wanted}{}", pair.source.metrics());
}

#[tokio::test]
async fn clients_of_another_ca_are_carried_into_the_mesh() {
    let (app, (bytes, _echo)) = (App::start(told).await, echo().await);
    let (dir, ca) = (Dir::new(), Legacy::new());
    let targets = Targets { tcp: bytes, ..Targets::all(app.addr) };
    let pair = Pair::start_with(targets, everywhere(tls(&dir, &ca, None, FAR))).await;
    let http = pair.port("http");
    for version in [&version::TLS12, &version::TLS13] {
        for alpn in [&[][..], &["http/1.1"]] {
            let answer = over_http1(http, ca.client_of(&[version], alpn, None)).await.unwrap();
            assert_eq!(answer, "HTTP/1.1 https");
        }
        let client = ca.client_of(&[version], &["h2", "http/1.1"], None);
        assert!(over_http2(http, client).await.ends_with(" https"));
    }
    let grpc = over_http2(pair.port("grpc"), ca.client(&["h2"], None)).await;
    assert_eq!(grpc, "HTTP/2.0 https");
    // What is no HTTP has no protocol to choose, whatever the client offers.
    for (port, alpn) in [("tcp", "h2"), ("any", "redis"), ("any", "")] {
        let alpn: &[&str] = if alpn.is_empty() { &[] } else { &[alpn] };
        let mut stream = handshake(pair.port(port), NAME, ca.client(alpn, None)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), None);
        stream.write_all(b"PING\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut heard = Vec::new();
        wait(stream.read_to_end(&mut heard)).await.unwrap();
        assert_eq!(heard, b"PING\r\n", "{port}");
    }
    let until = "isthmus_transition_tls_until_seconds{listener=\"127.0.0.1:0\"} 32472144000";
    assert!(pair.source.metrics().contains(until), "{}", pair.source.metrics());
}

#[tokio::test]
async fn who_is_not_believed_is_refused() {
    let app = App::start(told).await;
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let change = only_first(tls(&dir, &ca, Some(&clients), FAR));
    let pair = Pair::one_hop_with(Targets::all(app.addr), change).await;
    let http = pair.port("http");
    let good = clients.leaf(&[]);
    let answer = over_http1(http, ca.client(&[], Some(&good))).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 https");
    counted(&pair, DOOR, "ok", 1).await;
    over_http1(http, ca.client(&[], None)).await.unwrap_err();
    counted(&pair, DOOR, "certificate", 1).await;
    // The listener's own CA is not the clients'.
    over_http1(http, ca.client(&[], Some(&ca.leaf(&[])))).await.unwrap_err();
    counted(&pair, DOOR, "certificate", 2).await;
    // Nor does the client have to believe the listener.
    over_http1(http, Legacy::new().client(&[], Some(&good))).await.unwrap_err();
    counted(&pair, DOOR, "certificate", 3).await;
    // In plaintext nothing is heard.
    let mut plain = TcpStream::connect(http).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _reset = wait(plain.read_to_end(&mut heard)).await;
    assert!(!heard.starts_with(b"HTTP"), "{heard:?}");
    counted(&pair, DOOR, "failed", 1).await;
    counted(&pair, DOOR, "ok", 1).await;
}

#[tokio::test]
async fn from_its_end_on_nothing_is_accepted() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    let now = mesh_runtime::clock::now_unix().as_secs();
    let tomorrow = mesh_runtime::clock::utc(now + 24 * 3600);
    let change = only_first(tls(&dir, &ca, None, &tomorrow));
    let pair = Pair::one_hop_with(Targets::all(app.addr), change).await;
    let http = pair.port("http");
    over_http1(http, ca.client(&[], None)).await.unwrap();
    counted(&pair, DOOR, "ok", 1).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(24 * 3600 + 1)).await;
    tokio::time::resume();
    over_http1(http, ca.client(&[], None)).await.unwrap_err();
    counted(&pair, DOOR, "ended", 1).await;
}

#[tokio::test]
async fn an_end_in_the_past_is_one() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    let change = only_first(tls(&dir, &ca, None, "2020-01-01"));
    let pair = Pair::one_hop_with(Targets::all(app.addr), change).await;
    over_http1(pair.port("http"), ca.client(&[], None)).await.unwrap_err();
    counted(&pair, DOOR, "ended", 1).await;
}

#[tokio::test]
async fn changed_files_are_taken_and_broken_ones_are_not() {
    let app = App::start(told).await;
    let (dir, old, new) = (Dir::new(), Legacy::new(), Legacy::new());
    let change = everywhere(tls(&dir, &old, None, FAR));
    let pair = Pair::one_hop_with(Targets::all(app.addr), change).await;
    let http = pair.port("http");
    let transition = &pair.source.app.shared.transition;
    over_http1(http, old.client(&[], None)).await.unwrap();
    let (leaf, other) = (new.leaf(&[NAME]), new.leaf(&[NAME]));
    let broken = [
        "not PEM at all".to_owned(),
        leaf.certificate_pem.clone(),
        // The key is not this certificate's.
        leaf.certificate_pem.clone() + &other.key_pem,
    ];
    for text in broken {
        dir.write("tls.pem", &text);
        transition.look_again();
        over_http1(http, old.client(&[], None)).await.unwrap();
    }
    let path = dir.write("tls.pem", &(leaf.certificate_pem + &leaf.key_pem));
    set_mode(&path, 0o644);
    transition.look_again();
    over_http1(http, old.client(&[], None)).await.unwrap();
    set_mode(&path, 0o600);
    transition.look_again();
    over_http1(http, new.client(&[], None)).await.unwrap();
    over_http1(http, old.client(&[], None)).await.unwrap_err();
}

#[tokio::test]
async fn files_are_read_before_anything_is_bound() {
    let (dir, ca) = (Dir::new(), Legacy::new());
    let good = tls(&dir, &ca, Some(&ca), FAR);
    let open = dir.write("open.pem", &std::fs::read_to_string(&good.certificate).unwrap());
    set_mode(&open, 0o644);
    let none = dir.write("none.pem", "# nothing yet\n");
    let cases = [
        (ListenerTls { certificate: dir.path("gone.pem"), ..good.clone() }, "gone.pem"),
        (ListenerTls { certificate: open, ..good.clone() }, "chmod o-rwx"),
        (ListenerTls { key: Some(none.clone()), ..good.clone() }, "no PEM private key"),
        (ListenerTls { client_ca: Some(none), ..good }, "holds no PEM certificate"),
    ];
    for (tls, wanted) in cases {
        let mut config = outbound_config();
        config.listeners = vec![support::listener("orders.shop", "http")];
        everywhere(tls)(&mut config);
        let credentials = Credentials::new(None, Trust::default());
        let shared = Shared::new(config, std::sync::Arc::new(RealNet), credentials).unwrap();
        let error = ProxyApp::new(shared).run_in_place().await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// TLS towards all endpoints of `orders.shop` at these addresses.
fn origin(targets: &[SocketAddr], expected: Expected) -> OriginTls {
    OriginTls {
        service: "orders.shop".parse().unwrap(),
        targets: targets.to_vec(),
        expected,
        shown: None,
        until: FAR.parse().unwrap(),
    }
}

fn named(dir: &Dir, ca: &Legacy, name: &'static str) -> Expected {
    Expected::Named { ca: dir.write("ca.pem", &ca.pem()), name: name.try_into().unwrap() }
}

/// Of an endpoint of `orders.shop`.
const ORIGIN: &str = "service=\"orders.shop\"";

/// Status, code and text of one GET.
async fn asked(pair: &Pair) -> (u16, String, String) {
    let (head, body) = fetch(pair.port("http"), "http://orders.shop/").await;
    let code = head.headers.get("isthmus-error").map(|code| code.to_str().unwrap().to_owned());
    let body = String::from_utf8(body.to_vec()).unwrap();
    (head.status.as_u16(), code.unwrap_or_default(), body)
}

#[tokio::test]
async fn applications_without_a_proxy_are_spoken_to_in_tls() {
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let leaf = ca.leaf(&[NAME]);
    let http = TlsApp::start(&leaf, &["h2", "http/1.1"], Some(&clients)).await;
    let bytes = TlsApp::start(&leaf, &[], Some(&clients)).await;
    let targets = Targets { tcp: bytes.addr, ..Targets::all(http.addr) };
    let pair = Pair::one_hop(targets).await;
    let shown = clients.leaf(&[]);
    let shown = dir.write("shown.pem", &(shown.certificate_pem + &shown.key_pem));
    let wanted = OriginTls {
        shown: Some((shown.clone(), shown)),
        ..origin(&[http.addr, bytes.addr], named(&dir, &ca, NAME))
    };
    pair.source.app.shared.transition.load_origins(vec![wanted]).unwrap();
    for _ in 0..3 {
        let told = format!("HTTP/1.1 http/1.1 {NAME}");
        assert_eq!(asked(&pair).await, (200, String::new(), told));
    }
    // Kept connections are kept inside TLS.
    counted(&pair, ORIGIN, "ok", 1).await;
    let mut client = http2(pair.port("grpc")).await;
    let response = wait(client.send_request(get("http://orders.shop/"))).await.unwrap();
    assert_eq!(read(response).await, format!("HTTP/2.0 h2 {NAME}"));
    let mut stream = TcpStream::connect(pair.port("tcp")).await.unwrap();
    stream.write_all(b"PING\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    wait(stream.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"PING\r\n");
    counted(&pair, ORIGIN, "ok", 3).await;
    let until = format!("isthmus_transition_tls_until_seconds{{{ORIGIN}}} 32472144000");
    assert!(pair.source.metrics().contains(&until), "{}", pair.source.metrics());
}

#[tokio::test]
async fn an_application_that_is_somebody_else_is_told_nothing() {
    let (dir, ca) = (Dir::new(), Legacy::new());
    let app = TlsApp::start(&ca.leaf(&["other.example.com"]), &["http/1.1"], None).await;
    let (other_dir, other_ca) = (Dir::new(), Legacy::new());
    let anybody = |name| Expected::Anybody { name };
    let cases = [
        (named(&dir, &ca, NAME), Some("not valid for name")),
        (named(&dir, &ca, "other.example.com"), None),
        (anybody(None), None),
        (anybody(Some(NAME.try_into().unwrap())), None),
        (named(&other_dir, &other_ca, "other.example.com"), Some("invalid peer certificate")),
    ];
    for (expected, refused) in cases {
        let log = dir.path("access.log");
        let change = |config: &mut Config| config.access_log = AccessLogTarget::File(log.clone());
        let pair = Pair::one_hop_with(Targets::all(app.addr), change).await;
        let wanted = origin(&[app.addr], expected.clone());
        pair.source.app.shared.transition.load_origins(vec![wanted]).unwrap();
        let (status, code, body) = asked(&pair).await;
        let Some(refused) = refused else {
            assert_eq!((status, &*code), (200, ""), "{expected:?}: {body}");
            continue;
        };
        assert_eq!((status, &*code), (503, "peer_identity"), "{body}");
        assert!(body.contains(refused), "{body}");
        counted_some(&pair, "certificate");
        pair.source.app.shared.access_log.flush(Duration::from_secs(10));
        let line = std::fs::read_to_string(&log).unwrap();
        assert!(line.contains("\"reason\":\"peer_identity\""), "{line}");
        std::fs::remove_file(&log).unwrap();
    }
}

/// Who could not be reached is tried again and again.
fn counted_some(pair: &Pair, outcome: &str) {
    let metrics = pair.source.metrics();
    let line = format!("handshakes_total{{{ORIGIN},outcome=\"{outcome}\"}} ");
    let (_, count) = metrics.split_once(&line).unwrap();
    assert!(!count.starts_with('0'), "{metrics}");
}

#[tokio::test]
async fn what_chooses_no_http2_gets_none() {
    let (dir, ca) = (Dir::new(), Legacy::new());
    let app = TlsApp::start(&ca.leaf(&[NAME]), &[], None).await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let wanted = origin(&[app.addr], named(&dir, &ca, NAME));
    pair.source.app.shared.transition.load_origins(vec![wanted]).unwrap();
    let mut client = http2(pair.port("grpc")).await;
    let response = wait(client.send_request(get("http://orders.shop/"))).await.unwrap();
    assert_eq!(response.status(), 502);
    counted_some(&pair, "failed");
}

#[tokio::test]
async fn from_its_end_on_no_application_is_dialled() {
    let (dir, ca) = (Dir::new(), Legacy::new());
    let app = TlsApp::start(&ca.leaf(&[NAME]), &["http/1.1"], None).await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let ended = OriginTls {
        until: "2020-01-01".parse().unwrap(),
        ..origin(&[app.addr], named(&dir, &ca, NAME))
    };
    pair.source.app.shared.transition.load_origins(vec![ended]).unwrap();
    let (status, code, _) = asked(&pair).await;
    assert_eq!((status, &*code), (502, "app_unreachable"));
    counted_some(&pair, "ended");
}

#[tokio::test]
async fn another_ca_of_applications_is_taken() {
    let (dir, old, new) = (Dir::new(), Legacy::new(), Legacy::new());
    let app = TlsApp::start(&new.leaf(&[NAME]), &["http/1.1"], None).await;
    let pair = Pair::one_hop(Targets::all(app.addr)).await;
    let transition = &pair.source.app.shared.transition;
    transition.load_origins(vec![origin(&[app.addr], named(&dir, &old, NAME))]).unwrap();
    assert_ne!(asked(&pair).await.0, 200);
    dir.write("ca.pem", "");
    transition.look_again();
    assert_ne!(asked(&pair).await.0, 200);
    dir.write("ca.pem", &(old.pem() + &new.pem()));
    transition.look_again();
    // It was left alone for what it had shown, and is tried again.
    let until = async {
        while asked(&pair).await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until).await.unwrap();
}

/// A host as it is moved: TLS in, TLS out, both with files beside the
/// configuration.
#[tokio::test]
async fn a_proxy_without_a_mesh_stands_between_two_old_ones() {
    let (dir, ca) = (Dir::new(), Legacy::new());
    let app = TlsApp::start(&ca.leaf(&["app.example.com"]), &["h2", "http/1.1"], None).await;
    dir.write("ca.pem", &ca.pem());
    let leaf = ca.leaf(&[NAME]);
    dir.write("tls.pem", &leaf.certificate_pem);
    dir.write("tls.key", &leaf.key_pem);
    dir.write(
        "site.yaml",
        &format!(
            "site: west\ntrust_domain: west.example\nservices:\n- name: orders.shop\n  ports: [{{ \
             name: http, port: 443, protocol: http }}]\n  tls: {{ ca: ca.pem, name: \
             app.example.com, until: {FAR} }}\n  endpoints: [{{ port: http, plaintext: true, \
             target: '{}' }}]\n",
            app.addr
        ),
    );
    let config = dir.write(
        "proxy.yaml",
        &format!(
            "snapshot: {{ file: site.yaml }}\nhttp_listener: off\nadmin: off\naccess_log: \
             off\nlisteners: [{{ listen: '127.0.0.1:0', service: orders.shop, port: http, tls: {{ \
             certificate: tls.pem, key: tls.key, client_ca: ca.pem, until: {FAR} }} }}]\n"
        ),
    );
    let mut running = Running::start(&config).await;
    let addr = running.listeners["service"];
    let shown = ca.leaf(&[]);
    let answer = over_http1(addr, ca.client(&["http/1.1"], Some(&shown))).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 http/1.1 app.example.com");
    over_http1(addr, ca.client(&["http/1.1"], None)).await.unwrap_err();
    assert!(running.log().contains("2999-01-01T00:00:00Z"), "{}", running.log());
    running.signal(rustix::process::Signal::TERM);
    running.ended().await;
    std::fs::remove_file(dir.path("ca.pem")).unwrap();
    let output = wait(command(&config).output()).await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().contains("ca.pem"));
}
