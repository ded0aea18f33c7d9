//! Applications that have no proxy.

use super::*;

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
    echoes(pair.port("tcp")).await;
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
