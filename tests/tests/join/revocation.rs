//! An identity that one site revokes is of no use in any other: across a link,
//! and for who has its key.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use isthmus_tests::ports::free;
use mesh_api::{
    ALPN_INNER,
    v1::{self, resource::Resource},
};
use mesh_core::{Allowed, TrustBundle};
use mesh_tunnel::{
    Credentials, Svid, Trust,
    tls::{connect, new_key_and_csr},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};

use crate::world::{Agent, Proxy, World, run, until};

/// From the command until nothing passes, on a busy machine. What ends for
/// silence lives longer.
const WITHIN: Duration = Duration::from_secs(8);
const PORT: &str = "orders.shop:9000";
const REVOKED: &str = "spiffe://west.example/ns/shop/sa/checkout";

async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

/// A machine of `site` whose applications have this identity.
async fn caller(site: &World, account: &str) -> (Agent, Proxy, SocketAddr) {
    let listener = free();
    let mut agent = Agent::start_unreachable(site, account).await;
    let proxy = agent.proxy(&format!("http_listener: {listener}\nadmin: off\naccess_log: off\n"));
    agent.join(&site.token_of(account).await).await.unwrap();
    (agent, proxy, listener)
}

/// A connection of bytes through a proxy.
async fn open(proxy: SocketAddr) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await.ok()?;
    let head = format!("CONNECT {PORT} HTTP/1.1\r\nHost: {PORT}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.ok()?);
    }
    answer.starts_with(b"HTTP/1.1 200").then_some(stream)
}

async fn echoes(stream: &mut TcpStream) -> bool {
    let exchange = async {
        stream.write_all(b"ping").await?;
        let mut back = [0; 4];
        stream.read_exact(&mut back).await?;
        Ok::<_, std::io::Error>(&back == b"ping")
    };
    timeout(WITHIN, exchange).await.is_ok_and(|echoed| echoed.is_ok_and(|same| same))
}

/// What a thief has who took a machine's key: a certificate that is still good,
/// and no need of any gateway of its site.
async fn stolen(from: &Agent, site: &World) -> Arc<Credentials> {
    let (key, csr) = new_key_and_csr().unwrap();
    let issued =
        from.identity().await.issue(v1::IssueRequest { csr, ..Default::default() }).await.unwrap();
    let chain = issued.into_inner().chain.into_iter().map(Into::into).collect();
    let snapshot = site.admin().await.read_snapshot(v1::ReadSnapshotRequest {}).await.unwrap();
    let bundles = snapshot.into_inner().upsert.into_iter().filter_map(|one| match one.resource {
        Some(Resource::Bundle(bundle)) => {
            let bundle = TrustBundle::try_from(&bundle).unwrap();
            Some((bundle.trust_domain.clone(), Arc::new(bundle)))
        }
        _ => None,
    });
    let trust = Trust { bundles: Arc::new(bundles.collect()), ..Trust::default() };
    Credentials::new(Some(Svid::from_der(chain, key).unwrap()), trust)
}

/// Reads until the other end has closed.
async fn closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}

#[test]
fn a_revoked_identity_is_cut_in_every_linked_site_within_seconds() {
    run(async {
        let (west, east) = (World::start().await, World::start_site("east", "").await);
        let token = east.meshctl(&["link", "token", "--site", "west"]);
        west.meshctl(&["link", "cluster", "east", &token]);
        let inbound = free();
        let mut served =
            Agent::start_advertising(&east, "vm1", &format!("advertise: {inbound}\n")).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        served.describe_ports("orders", listener.local_addr().unwrap().port(), &[(9000, "tcp")]);
        tokio::spawn(echo(listener));
        let _serving = served.proxy(&format!(
            "inbound: {inbound}\nhttp_listener: off\nadmin: off\naccess_log: off\n"
        ));
        served.join(&east.token_of("orders").await).await.unwrap();
        east.meshctl(&["service", "export", "orders.shop"]);
        let (thief_of, _checkout, checkout) = caller(&west, "checkout").await;
        let (_other, _billing, billing) = caller(&west, "billing").await;
        for proxy in [checkout, billing] {
            until("bytes pass between the sites", || async { open(proxy).await.is_some() }).await;
        }
        let (mut revoked, mut other) =
            (open(checkout).await.unwrap(), open(billing).await.unwrap());
        assert!(echoes(&mut revoked).await && echoes(&mut other).await);
        let credentials = stolen(&thief_of, &west).await;
        let dial = async || {
            let config = credentials.client(ALPN_INNER, Allowed::Known);
            connect(config, TcpStream::connect(inbound).await?).await
        };
        let mut session = dial().await.unwrap();
        let mut byte = [0; 1];
        let ended = timeout(Duration::from_millis(500), session.read(&mut byte)).await;
        assert!(!matches!(ended, Ok(Ok(0) | Err(_))), "it is believed: {ended:?}");

        west.meshctl(&["identity", "revoke", REVOKED]);
        let began = Instant::now();
        timeout(WITHIN, closed(&mut session)).await.expect("the thief's session is cut");
        timeout(WITHIN, closed(&mut revoked)).await.expect("its connection is cut");
        assert!(began.elapsed() < WITHIN);
        // TLS 1.3: a client learns that it is refused when it reads.
        if let Ok(mut again) = dial().await {
            let read = timeout(WITHIN, again.read(&mut byte)).await.expect("refused at once");
            assert!(!matches!(read, Ok(1..)), "{read:?}");
        }
        assert!(open(checkout).await.is_none());
        assert!(echoes(&mut other).await, "nobody else is cut");
        assert!(open(billing).await.is_some());

        west.meshctl(&["identity", "reinstate", REVOKED]);
        until("it is believed again", || async { open(checkout).await.is_some() }).await;
    });
}
