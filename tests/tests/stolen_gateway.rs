//! A gateway in the wrong hands can neither read nor impersonate, and a CA can
//! vouch for nobody but its own domain.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use edge_proxy::config::GatewayDoors;
use isthmus_tests::{
    apps::{Answer, request, serve_http},
    mesh::{Addresses, NODE, TwoSites},
    pki::Ca,
    sim::SimNet,
};
use mesh_api::{ALPN_INNER, v1};
use mesh_core::{Allowed, SpiffeId};
use mesh_tunnel::{
    Credentials, Door, Doors, Net, Svid, Trust,
    listen::Arrival,
    session::{IncomingStream, TunnelStream},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::sleep,
};

const MARKER: &str = "marker-5f2c91-nobody-between-may-see-this";
const APP: u16 = 8080;

/// Everything that went through the hostile gateway's hands, both ways.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Seen {
    fn note(&self, bytes: &[u8]) {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").clone()
    }

    fn contains(&self, needle: &str) -> bool {
        self.bytes().windows(needle.len()).any(|window| window == needle.as_bytes())
    }
}

/// Notes what passes.
struct Tee<S>(S, Seen);

impl<S: AsyncRead + Unpin> AsyncRead for Tee<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1.note(&buf.filled()[before..]);
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tee<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// What the thief does with a stream.
#[derive(Clone)]
enum Trick {
    /// Carries it faithfully and reads along.
    ReadAlong(SocketAddr),
    /// Ends the inner TLS itself with this certificate.
    Pretend(Arc<Svid>),
}

fn net() -> Arc<dyn Net> {
    Arc::new(SimNet::default())
}

fn trust(sites: &TwoSites) -> Trust {
    let bundles =
        [&sites.west, &sites.east].map(|ca| (ca.trust_domain.clone(), ca.bundle().into()));
    Trust { bundles: Arc::new(bundles.into_iter().collect()), revocations: Arc::default() }
}

/// A gateway with a genuine SVID and bad intentions.
async fn stolen_gateway(
    svid: Svid,
    trust: Trust,
    trick: Trick,
    seen: Seen,
) -> Result<(), Box<dyn std::error::Error>> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443));
    let own = svid.id.trust_domain().clone();
    let door = Door::open(Doors {
        net: net(),
        credentials: Credentials::new(Some(svid), trust),
        allowed: Allowed::Neighbour(own),
        hello: v1::Hello {
            versions: vec![1],
            role: v1::Role::Gateway.into(),
            site: "east".into(),
            gateway: "gw-1".into(),
            ..Default::default()
        },
        quic: Some(any),
        tls: any,
        turned_away: Default::default(),
    })
    .await?;
    loop {
        let Arrival::Tunnel(session) = door.accept().await? else { continue };
        let (trick, seen) = (trick.clone(), seen.clone());
        tokio::spawn(async move {
            while let Some(stream) = session.accept().await {
                tokio::spawn(play(stream, trick.clone(), seen.clone()));
            }
        });
    }
}

async fn play(stream: IncomingStream, trick: Trick, seen: Seen) {
    let Ok(stream) = stream.accept().await else { return };
    let mut stream = Tee(stream, seen.clone());
    match trick {
        Trick::ReadAlong(endpoint) => {
            let Ok(upstream) = net().dial(endpoint).await else { return };
            let mut upstream = Tee(upstream, seen);
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream).await;
        }
        Trick::Pretend(svid) => pretend(stream, &svid, seen).await,
    }
}

/// An inner TLS server that takes any client and notes the plaintext.
async fn pretend(stream: Tee<TunnelStream>, svid: &Svid, seen: Seen) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(svid.chain.clone(), svid.key.clone_key())
        .expect("a key that fits");
    config.alpn_protocols = vec![ALPN_INNER.to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let Ok(mut tls) = acceptor.accept(stream).await else { return };
    let mut plaintext = [0; 4096];
    while let Ok(n @ 1..) = tls.read(&mut plaintext).await {
        seen.note(&plaintext[..n]);
        let _ = tls.write_all(b"").await;
    }
}

struct Outcome {
    answer: Result<Answer, String>,
    seen: Seen,
}

/// A VM of west posts the marker to `payments.prod` in east, whose gateway is
/// stolen.
fn robbery(trick: impl Fn(&TwoSites, SocketAddr) -> (Svid, Trick) + 'static) -> Outcome {
    let mut sim = turmoil::Builder::new()
        .simulation_duration(Duration::from_secs(120))
        .min_message_latency(Duration::from_millis(2))
        .max_message_latency(Duration::from_millis(2))
        .tcp_capacity(4096)
        .udp_capacity(4096)
        .build();
    let node_inbound = SocketAddr::new(sim.lookup("node"), 4143);
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let sites = Arc::new(TwoSites::new(Addresses {
        west_quic: "west-gw:8443".into(),
        west_tls: "west-gw:8443".into(),
        east_quic: "east-gw:8443".into(),
        east_tls: "east-gw:8443".into(),
        node_inbound,
        payments: local(APP),
        orders: local(APP),
    }));
    let west = sites.clone();
    sim.host("west-gw", move || {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443));
        let app = west.gateway("west", GatewayDoors { quic: Some(any), tls: any }, net());
        async move {
            app.run_in_place().await?;
            std::future::pending::<()>().await;
            Ok(())
        }
    });
    let east = sites.clone();
    sim.host("node", move || {
        let app = east.node(local(4140), net());
        async move {
            app.run_in_place().await?;
            serve_http(net(), local(APP), "payments").await?;
            Ok(())
        }
    });
    let seen = Seen::default();
    let (thief, notes) = (sites.clone(), seen.clone());
    sim.host("east-gw", move || {
        let (svid, trick) = trick(&thief, node_inbound);
        stolen_gateway(svid, trust(&thief), trick, notes.clone())
    });
    let answer = Arc::new(Mutex::new(Err("no answer".to_owned())));
    let result = answer.clone();
    sim.client("vm", async move {
        sites.vm(local(4140), net()).run_in_place().await?;
        sleep(Duration::from_secs(3)).await;
        let url = "http://payments.prod/";
        *result.lock().expect("no panic") = request(&net(), local(4140), "POST", url, MARKER).await;
        Ok(())
    });
    sim.run().expect("the simulation runs");
    let answer = answer.lock().expect("no panic").clone();
    Outcome { answer, seen }
}

fn assert_refused(outcome: &Outcome) {
    let answer = outcome.answer.as_ref().expect("an answer");
    assert_eq!(
        (answer.status, answer.error.as_deref()),
        (503, Some("peer_identity")),
        "{answer:?}"
    );
    assert!(!outcome.seen.bytes().is_empty(), "the thief was never asked");
    assert!(!outcome.seen.contains(MARKER), "the thief has read the request");
}

#[test]
fn reading_along_shows_ciphertext_only() {
    let outcome = robbery(|sites, node| (sites.east.gateway(), Trick::ReadAlong(node)));
    let answer = outcome.answer.as_ref().expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.ends_with(MARKER), "{answer:?}");
    assert!(outcome.seen.bytes().len() > 1000, "the thief carried nothing");
    assert!(!outcome.seen.contains(MARKER), "the thief has read the request");
}

#[test]
fn a_self_made_certificate_is_refused() {
    let outcome = robbery(|sites, _| {
        let own = Ca::new("east.example").workload("prod", "payments", None);
        (sites.east.gateway(), Trick::Pretend(own.into()))
    });
    assert_refused(&outcome);
}

#[test]
fn the_gateways_own_svid_is_refused() {
    let outcome =
        robbery(|sites, _| (sites.east.gateway(), Trick::Pretend(sites.east.gateway().into())));
    assert_refused(&outcome);
}

#[test]
fn another_workloads_valid_svid_is_refused() {
    let outcome = robbery(|sites, _| {
        let node = NODE.parse().expect("a node id");
        let other = sites.east.workload("prod", "reports", Some(&node));
        (sites.east.gateway(), Trick::Pretend(other.into()))
    });
    assert_refused(&outcome);
}

#[test]
fn a_ca_that_signs_for_another_domain_is_refused_inside() {
    let outcome = robbery(|sites, _| {
        let id = SpiffeId::workload(&sites.east.trust_domain, "prod", "payments").expect("an id");
        (sites.east.gateway(), Trick::Pretend(sites.west.sign(&id, None).into()))
    });
    assert_refused(&outcome);
}

#[test]
fn a_ca_that_signs_for_another_domain_gets_no_tunnel() {
    let outcome = robbery(|sites, node| {
        let id = SpiffeId::gateway(&sites.east.trust_domain);
        (sites.west.sign(&id, None), Trick::ReadAlong(node))
    });
    let answer = outcome.answer.as_ref().expect("an answer");
    assert_eq!((answer.status, answer.error.as_deref()), (503, Some("path_refused")), "{answer:?}");
    assert!(outcome.seen.bytes().is_empty(), "a stream reached the false gateway");
}
