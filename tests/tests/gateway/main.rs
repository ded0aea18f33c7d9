//! Gateways with real sockets on loopback: what they carry, what they refuse,
//! and what they do when something breaks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod addresses;
mod changes;
mod early;
mod locality;
mod matrix;
mod mesh;
mod proxies;
mod refusals;
mod restarts;
mod traces;

use std::{net::SocketAddr, time::Duration};

use edge_proxy::{
    config::Config,
    gateway::{Tuning, quota::Limits},
};
use isthmus_tests::ports::free;
use mesh::{
    Behaviour, Running, STEP, Site, any_doors, bundle, configured, connect, dial, dial_limited,
    endpoint, endpoint_proxy, exchange, gateway, link, node, service, site, start, start_as,
    try_dial, whole,
};
use mesh_api::v1;
use mesh_core::{
    SpiffeId,
    path::{Connect, RefusedReason},
    service::LinkTransport,
};
use mesh_tunnel::{OpenError, Session, Transport, TunnelStream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

/// Two linked sites with a gateway each. `west` dials. `orders.shop` runs in
/// `east` behind `address` and is exported to `west`; `billing.shop` runs
/// there and is not.
struct Pair {
    west: Site,
    east: Site,
    west_gateway: Running,
    east_gateway: Running,
}

impl Pair {
    async fn new(transport: LinkTransport, address: SocketAddr) -> Self {
        Self::tuned(transport, address, Tuning::default()).await
    }

    async fn tuned(transport: LinkTransport, address: SocketAddr, tuning: Tuning) -> Self {
        Self::made(transport, address, tuning, |_| ()).await
    }

    /// With a changed configuration of the gateway of `east`.
    async fn changed(
        transport: LinkTransport,
        address: SocketAddr,
        change: impl Fn(&mut Config),
    ) -> Self {
        let change = |config: &mut Config| {
            if config.gateway_id.as_ref().is_some_and(|id| id.as_str() == "gw-e") {
                change(config);
            }
        };
        Self::made(transport, address, Tuning::default(), change).await
    }

    /// With something else in the configurations of both gateways.
    async fn made(
        transport: LinkTransport,
        address: SocketAddr,
        tuning: Tuning,
        change: impl Fn(&mut Config),
    ) -> Self {
        let (west, east) = (Site::new("west"), Site::new("east"));
        let both = [&west, &east];
        let config = |id: &str| {
            let gateway_id = Some(id.parse().unwrap());
            let mut config = Config { gateway_id, ..configured(any_doors()) };
            change(&mut config);
            config
        };
        let west_gateway = start_as(&west, "gw-w", &both, config("gw-w"), tuning).await;
        let east_gateway = start_as(&east, "gw-e", &both, config("gw-e"), tuning).await;
        let pair = Self { west, east, west_gateway, east_gateway };
        let seen = (pair.east_gateway.quic, pair.east_gateway.tls);
        pair.publish(transport, address, seen);
        pair.west_gateway.linked("east").await;
        pair.east_gateway.linked("west").await;
        pair
    }

    /// What both gateways know; `seen` is where `west` believes that the
    /// gateway of `east` listens.
    fn publish(
        &self,
        transport: LinkTransport,
        address: SocketAddr,
        seen: (Option<SocketAddr>, SocketAddr),
    ) {
        let (west, east) = (&self.west, &self.east);
        self.west_gateway.publish(whole(vec![
            site(west, None),
            bundle(west),
            bundle(east),
            link(east, true, transport),
            gateway(west, "gw-w", self.west_gateway.quic, self.west_gateway.tls),
            gateway(east, "gw-e", seen.0, seen.1),
            service("orders.shop", &[], &["east"]),
            endpoint(east, "orders.shop", "o-1", None, None),
        ]));
        self.east_gateway.publish(whole(vec![
            site(east, None),
            bundle(west),
            bundle(east),
            link(west, false, transport),
            gateway(east, "gw-e", self.east_gateway.quic, self.east_gateway.tls),
            service("orders.shop", &["west"], &[]),
            service("billing.shop", &[], &[]),
            endpoint(east, "orders.shop", "o-1", Some(address), None),
            endpoint(east, "orders.shop", "o-2", None, Some(node().as_str())),
            endpoint(east, "billing.shop", "b-1", Some(address), None),
        ]));
    }

    /// A tunnel of a workload of `west` to its gateway.
    async fn caller(&self, transport: LinkTransport) -> Session {
        let svid = self.west.ca.workload("shop", "checkout", None);
        dial(&self.west_gateway, &self.west, svid, v1::Role::Workload, transport).await
    }

    /// The proxy of the node of `east` that only a session leads to.
    async fn reverse_proxy(&self, transport: LinkTransport) -> Session {
        let svid = self.east.ca.workload("shop", "web", Some(&node()));
        let session =
            dial(&self.east_gateway, &self.east, svid, v1::Role::Workload, transport).await;
        self.east_gateway.told(|told| told.nodes == [node().to_string()]).await;
        session
    }

    async fn stop(self) {
        self.west_gateway.stop().await;
        self.east_gateway.stop().await;
    }
}

const BOTH: [LinkTransport; 2] = [LinkTransport::Quic, LinkTransport::Tls];

fn orders() -> Connect {
    connect("east", "orders.shop", "o-1")
}

/// The refusal of a stream, as its source sees it.
async fn refusal(session: &Session, connect: &Connect) -> (RefusedReason, String) {
    match session.open(connect, &[]).await {
        Err(OpenError::Refused { reason, hop, .. }) => (reason, hop),
        Err(other) => panic!("{connect:?}: {other}"),
        Ok(_) => panic!("{connect:?}: accepted"),
    }
}

#[tokio::test]
async fn bytes_cross_two_gateways_with_half_close_on_both_transports() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let counting = endpoint_proxy(Behaviour::Count).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        for size in [0, 1, 70_000, bytes.len()] {
            let mut stream = caller.open(&orders(), &[]).await.unwrap();
            let answer = exchange(&mut stream, &bytes[..size]).await.unwrap();
            assert!(answer == bytes[..size], "{transport:?} {size}");
        }
        let seen = (pair.east_gateway.quic, pair.east_gateway.tls);
        pair.publish(transport, counting, seen);
        // The answer can only be made after the FIN has arrived at the far end.
        let mut stream = caller.open(&orders(), &[]).await.unwrap();
        assert_eq!(exchange(&mut stream, &bytes[..12_345]).await.unwrap(), b"12345");
        pair.stop().await;
    }
}

#[tokio::test]
async fn a_reset_travels_both_ways_on_both_transports() {
    for transport in BOTH {
        let (address, mut aborted) = watched_endpoint().await;
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let mut stream = caller.open(&orders(), &[]).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        let first = timeout(STEP, aborted.recv()).await.unwrap().unwrap();
        assert_eq!(first, Ok(b'x'));
        stream.reset();
        drop(stream);
        let then = timeout(STEP, aborted.recv()).await.unwrap().unwrap();
        assert_eq!(then, Err(std::io::ErrorKind::ConnectionReset), "{transport:?}");

        let aborting = endpoint_proxy(Behaviour::Abort).await;
        let seen = (pair.east_gateway.quic, pair.east_gateway.tls);
        pair.publish(transport, aborting, seen);
        let mut stream = caller.open(&orders(), &[]).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        let error = timeout(STEP, stream.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{transport:?}");
        pair.stop().await;
    }
}

type Seen = tokio::sync::mpsc::Receiver<Result<u8, std::io::ErrorKind>>;

/// An endpoint's proxy that tells every byte, and how its connection ends.
async fn watched_endpoint() -> (SocketAddr, Seen) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        loop {
            let byte = stream.read_u8().await.map_err(|error| error.kind());
            if tx.send(byte).await.is_err() || byte.is_err() {
                return;
            }
        }
    });
    (addr, rx)
}

#[tokio::test]
async fn a_node_that_dialled_out_is_reached_in_reverse() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let to_node = connect("east", "orders.shop", "o-2");
        // Not in the snapshot of west, so that is where it ends.
        assert_eq!(refusal(&caller, &to_node).await.0, RefusedReason::UnknownEndpoint);
        pair.west_gateway.publish(whole(vec![
            site(&pair.west, None),
            bundle(&pair.west),
            bundle(&pair.east),
            link(&pair.east, true, transport),
            gateway(&pair.east, "gw-e", pair.east_gateway.quic, pair.east_gateway.tls),
            service("orders.shop", &[], &["east"]),
            endpoint(&pair.east, "orders.shop", "o-2", None, None),
        ]));
        // Nobody holds a session yet: the far gateway says so.
        let (reason, hop) = refusal(&caller, &to_node).await;
        assert_eq!((reason, hop.as_str()), (RefusedReason::NoPath, "east/gw-e"));

        let proxy = pair.reverse_proxy(transport).await;
        let serving = proxy.clone();
        tokio::spawn(async move {
            while let Some(incoming) = serving.accept().await {
                assert_eq!(incoming.connect.endpoint.as_ref().unwrap().as_str(), "o-2");
                assert_eq!(incoming.connect.hops, 2);
                tokio::spawn(echo(incoming.accept().await.unwrap()));
            }
        });
        // Newer, and by the same identity on the same node; it takes no streams.
        let svid = pair.east.ca.workload("shop", "web", Some(&node()));
        let (to, role) = (&pair.east_gateway, v1::Role::Workload);
        let none = Some(v1::TunnelLimits { streams: 0 });
        let only_asks = dial_limited(to, &pair.east, svid, role, transport, none).await.unwrap();
        let nothing = connect("east", "orders.shop", "o-9");
        assert_eq!(refusal(&only_asks, &nothing).await.0, RefusedReason::UnknownEndpoint);
        let mut stream = caller.open(&to_node, &[]).await.unwrap();
        assert_eq!(exchange(&mut stream, b"backwards").await.unwrap(), b"backwards");

        proxy.close("the test ends it");
        pair.east_gateway.told(|told| told.nodes.is_empty()).await;
        assert_eq!(refusal(&caller, &to_node).await.0, RefusedReason::NoPath);
        pair.stop().await;
    }
}

async fn echo(stream: TunnelStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ended = tokio::io::copy(&mut read, &mut write).await;
    let _ended = write.shutdown().await;
}

#[tokio::test]
async fn a_sibling_hands_on_to_the_gateway_that_holds_the_session() {
    let (west, east) = (Site::new("west"), Site::new("east"));
    let both = [&west, &east];
    let first = start(&east, "gw-1", &both, any_doors(), Tuning::default()).await;
    let second = start(&east, "gw-2", &both, any_doors(), Tuning::default()).await;
    let holding = v1::Endpoint { via: vec!["gw-2".into()], ..reverse_endpoint() };
    let snapshot = whole(vec![
        site(&east, None),
        bundle(&east),
        gateway(&east, "gw-1", first.quic, first.tls),
        gateway(&east, "gw-2", second.quic, second.tls),
        service("orders.shop", &[], &[]),
        v1::resource::Resource::Endpoint(holding),
    ]);
    first.publish(snapshot.clone());
    second.publish(snapshot);
    let svid = east.ca.workload("shop", "web", Some(&node()));
    let proxy = dial(&second, &east, svid, v1::Role::Workload, LinkTransport::Raced).await;
    second.told(|told| told.nodes.len() == 1).await;
    let svid = east.ca.workload("shop", "checkout", None);
    let caller = dial(&first, &east, svid, v1::Role::Workload, LinkTransport::Raced).await;
    tokio::spawn(async move {
        while let Some(incoming) = proxy.accept().await {
            tokio::spawn(echo(incoming.accept().await.unwrap()));
        }
    });
    let reached = async {
        loop {
            // Until the siblings have found each other, there is no path.
            match caller.open(&connect("east", "orders.shop", "o-2"), &[]).await {
                Ok(stream) => return stream,
                Err(OpenError::Refused { reason: RefusedReason::NoPath, .. }) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
    };
    let mut stream = timeout(STEP, reached).await.unwrap();
    assert_eq!(exchange(&mut stream, b"sideways").await.unwrap(), b"sideways");
    first.stop().await;
    second.stop().await;
}

fn reverse_endpoint() -> v1::Endpoint {
    v1::Endpoint {
        id: "o-2".into(),
        service: "orders.shop".into(),
        port: "http".into(),
        site: "east".into(),
        spiffe_id: "spiffe://east.example/ns/shop/sa/web".into(),
        target_port: 8080,
        weight: 1,
        health: v1::Health::Healthy.into(),
        node: node().to_string(),
        ..v1::Endpoint::default()
    }
}

#[tokio::test]
async fn what_a_stranger_says_at_the_join_door_goes_to_federation_unread() {
    let east = Site::new("east");
    let running = start(&east, "gw-e", &[&east], any_doors(), Tuning::default()).await;
    let federation = endpoint_proxy(Behaviour::Echo).await;
    running.publish(whole(vec![site(&east, Some(federation)), bundle(&east)]));
    let pin = east.ca.root_spki_sha256;
    let allowed = mesh_core::Allowed::Exactly(SpiffeId::gateway(&east.ca.trust_domain));
    let config = mesh_tunnel::tls::pinned_client(mesh_api::ALPN_JOIN, pin, allowed);
    let tcp = tokio::net::TcpStream::connect(running.tls).await.unwrap();
    let mut stream = mesh_tunnel::tls::connect(config, tcp).await.unwrap();
    stream.write_all(b"let me in").await.unwrap();
    let mut answer = [0; 9];
    timeout(STEP, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"let me in");
    running.stop().await;
}
