//! Clients that have moved and clients that have not, at one port.

use std::{collections::BTreeMap, sync::Arc};

use mesh_tunnel::Svid;
use support::pki::Authority;

use super::*;

fn shows(ca: &Legacy, svid: &Svid) -> ClientConfig {
    let shows = (svid.chain.clone(), svid.key.clone_key());
    ca.client_with(rustls::ALL_VERSIONS, &[], Some(shows))
}

/// A GET in plaintext, or why there was none.
async fn in_plaintext(addr: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n").await?;
    let mut heard = Vec::new();
    wait(stream.read_to_end(&mut heard)).await?;
    Ok(String::from_utf8(heard).unwrap())
}

#[tokio::test]
async fn clients_of_the_mesh_come_in_beside_those_of_the_ca() {
    let app = App::start(told).await;
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let mut tls = tls(&dir, &ca, Some(&clients), FAR);
    tls.mesh_clients = true;
    let pair = Pair::one_hop_with(Targets::all(app.addr), only_first(tls)).await;
    let http = pair.port("http");
    let credentials = &pair.source.app.shared.credentials;
    let old = clients.leaf(&[]);
    for version in [&version::TLS12, &version::TLS13] {
        over_http1(http, ca.client_of(&[version], &[], Some(&old))).await.unwrap();
    }
    counted(&pair, DOOR, "ok", 2).await;
    let moved = pair.authority.workload("moved");
    for version in [&version::TLS12, &version::TLS13] {
        let shows = (moved.chain.clone(), moved.key.clone_key());
        over_http1(http, ca.client_with(&[version], &[], Some(shows))).await.unwrap();
    }
    counted(&pair, DOOR, "mesh", 2).await;
    counted(&pair, DOOR, "ok", 2).await;

    // Of another trust domain, of one that only says to be ours, of no CA at
    // all, and nobody.
    let linked = Authority::new("east.example");
    let false_one = Authority::new(support::DOMAIN);
    let refused = [
        shows(&ca, &linked.workload("moved")),
        shows(&ca, &false_one.workload("moved")),
        ca.client(&[], Some(&Legacy::new().leaf(&[]))),
        ca.client(&[], None),
    ];
    for (n, config) in refused.into_iter().enumerate() {
        over_http1(http, config).await.unwrap_err();
        counted(&pair, DOOR, "certificate", n as u64 + 1).await;
    }
    // In plaintext nobody is.
    assert!(!in_plaintext(http).await.unwrap_or_default().starts_with("HTTP"));

    // Whom the proxy believes is asked at each handshake.
    let mut trust = credentials.trust();
    let mut bundles = BTreeMap::clone(&trust.bundles);
    bundles.extend(BTreeMap::clone(&linked.bundles()));
    trust.bundles = Arc::new(bundles);
    credentials.replace_trust(trust.clone());
    over_http1(http, shows(&ca, &linked.workload("moved"))).await.unwrap();
    counted(&pair, DOOR, "mesh", 3).await;
    trust.bundles = linked.bundles();
    credentials.replace_trust(trust);
    over_http1(http, shows(&ca, &moved)).await.unwrap_err();
    over_http1(http, ca.client(&[], Some(&old))).await.unwrap();
    counted(&pair, DOOR, "ok", 3).await;
}

#[tokio::test]
async fn without_a_ca_only_the_mesh_comes_in() {
    let app = App::start(told).await;
    let (dir, ca) = (Dir::new(), Legacy::new());
    let mut tls = tls(&dir, &ca, None, FAR);
    tls.mesh_clients = true;
    let pair = Pair::one_hop_with(Targets::all(app.addr), only_first(tls)).await;
    let http = pair.port("http");
    over_http1(http, shows(&ca, &pair.authority.workload("moved"))).await.unwrap();
    over_http1(http, ca.client(&[], None)).await.unwrap_err();
    over_http1(http, ca.client(&[], Some(&ca.leaf(&[])))).await.unwrap_err();
    counted(&pair, DOOR, "mesh", 1).await;
    counted(&pair, DOOR, "certificate", 2).await;
}

#[tokio::test]
async fn clients_without_tls_come_in_by_the_same_port_until_the_end() {
    let (app, (bytes, _echo)) = (App::start(told).await, echo().await);
    let (dir, ca, clients) = (Dir::new(), Legacy::new(), Legacy::new());
    let now = mesh_runtime::clock::now_unix().as_secs();
    let tomorrow = mesh_runtime::clock::utc(now + 24 * 3600);
    let mut tls = tls(&dir, &ca, Some(&clients), &tomorrow);
    (tls.plaintext, tls.mesh_clients) = (true, true);
    let targets = Targets { tcp: bytes, ..Targets::all(app.addr) };
    let pair = Pair::one_hop_with(targets, everywhere(tls)).await;
    let http = pair.port("http");
    let shown = clients.leaf(&[]);
    let answer = in_plaintext(http).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && !answer.contains("https"), "{answer}");
    let answer = over_http1(http, ca.client(&[], Some(&shown))).await.unwrap();
    assert_eq!(answer, "HTTP/1.1 https");
    // Who begins TLS shows a certificate.
    over_http1(http, ca.client(&[], None)).await.unwrap_err();
    over_http1(http, shows(&ca, &pair.authority.workload("moved"))).await.unwrap();
    echoes(pair.port("tcp")).await;
    // Who says nothing is not waited for without end.
    let mut silent = TcpStream::connect(http).await.unwrap();
    // It is accepted first.
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    let mut heard = Vec::new();
    wait(silent.read_to_end(&mut heard)).await.unwrap();
    assert_eq!(heard, b"");
    counted(&pair, DOOR, "timeout", 1).await;

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(24 * 3600 + 1)).await;
    tokio::time::resume();
    assert!(!in_plaintext(http).await.unwrap_or_default().starts_with("HTTP"));
    over_http1(http, ca.client(&[], Some(&shown))).await.unwrap_err();
    over_http1(http, shows(&ca, &pair.authority.workload("moved"))).await.unwrap_err();
}
