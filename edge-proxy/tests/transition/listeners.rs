//! Clients of listeners, of one CA and with one certificate.

use std::path::Path;

use edge_proxy::config::{
    ListenerCertificate,
    transition::{AlpnProtocol, TlsVersion},
};

use super::*;

/// A list without extensions, as `openssl ca -gencrl` makes it by itself.
const VERSION_1: &str = "\
    -----BEGIN X509 CRL-----\n\
    MIGSMDkwCgYIKoZIzj0EAwIwDTELMAkGA1UEAwwCY2EXDTI2MTEzMDE4MzMzMFoX\n\
    DTI2MTIzMDE4MzMzMFowCgYIKoZIzj0EAwIDSQAwRgIhAL5Rmu+1+uqBY1JGUrw7\n\
    jhkx/onVMWE5dryRLiP7ZudYAiEA7Yay6o2l8JtOejwoOdObFfTrHVA4wK+mXDFt\n\
    wqy3rAE=\n\
    -----END X509 CRL-----\n";

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
async fn versions_and_protocols_are_those_that_are_written() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    for (spoken, alpn) in [
        (TlsVersion::Tls12, vec![AlpnProtocol::Http1]),
        (TlsVersion::Tls13, vec![AlpnProtocol::H2]),
        (TlsVersion::Tls13, vec![]),
    ] {
        let tls = ListenerTls {
            versions: Some(vec![spoken]),
            alpn: Some(alpn.clone()),
            ..tls(&dir, &ca, None, FAR)
        };
        let pair = Pair::one_hop_with(Targets::all(app.addr), only_first(tls)).await;
        let http = pair.port("http");
        for (version, is_spoken) in [
            (&version::TLS12, spoken == TlsVersion::Tls12),
            (&version::TLS13, spoken == TlsVersion::Tls13),
        ] {
            let answer = over_http1(http, ca.client_of(&[version], &[], None)).await;
            assert_eq!(answer.is_ok(), is_spoken, "{version:?} {spoken:?}");
        }
        let chosen = async |offered: &[&str]| {
            let stream = handshake(http, NAME, ca.client(offered, None)).await.ok()?;
            Some(stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec))
        };
        let own = match alpn.first() {
            None => None,
            Some(AlpnProtocol::H2) => Some(b"h2".to_vec()),
            Some(AlpnProtocol::Http1) => Some(b"http/1.1".to_vec()),
        };
        assert_eq!(chosen(&["h2", "http/1.1"]).await, Some(own), "{alpn:?}");
        // Where none is offered, others are as if there were none.
        let other = chosen(&["spdy/3"]).await;
        assert_eq!(other, alpn.is_empty().then_some(None), "{alpn:?}");
    }
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
    let empty = dir.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let first = dir.write("first.crl", VERSION_1);
    let more = |certificate: &Path| ListenerCertificate {
        certificate: certificate.to_owned(),
        key: None,
        names: Vec::new(),
    };
    let cases = [
        (ListenerTls { certificate: dir.path("gone.pem"), ..good.clone() }, "gone.pem"),
        (ListenerTls { certificate: open, ..good.clone() }, "chmod o-rwx"),
        (ListenerTls { key: Some(none.clone()), ..good.clone() }, "no PEM private key"),
        (ListenerTls { client_ca: Some(none.clone()), ..good.clone() }, "no PEM certificate"),
        (ListenerTls { crl: Some(none), ..good.clone() }, "holds no PEM list of revoked"),
        (ListenerTls { crl: Some(dir.path("gone.crl")), ..good.clone() }, "gone.crl"),
        (ListenerTls { crl: Some(first), ..good.clone() }, "lists are read of version 2"),
        (ListenerTls { certificates: vec![more(&empty)], ..good.clone() }, "no file is in it"),
        (ListenerTls { certificates: vec![more(&good.client_ca.clone().unwrap())], ..good }, "key"),
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
