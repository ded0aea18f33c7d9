//! Gateways with real sockets on loopback: what they carry, what they refuse,
//! and what they do when something breaks.

mod mesh;
mod proxies;

use std::{net::SocketAddr, time::Duration};

use edge_proxy::gateway::{Tuning, quota::Limits};
use mesh::{
    Behaviour, Running, STEP, Site, any_doors, bundle, connect, dial, endpoint, endpoint_proxy,
    exchange, gateway, link, node, service, site, start, try_dial, whole,
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
        let (west, east) = (Site::new("west"), Site::new("east"));
        let both = [&west, &east];
        let west_gateway = start(&west, "gw-w", &both, any_doors(), tuning).await;
        let east_gateway = start(&east, "gw-e", &both, any_doors(), tuning).await;
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
async fn every_refusal_has_its_code_and_names_its_hop() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let (west, east) = (&pair.west, &pair.east);
        let workload = pair.caller(transport).await;
        let as_node = west.ca.sign(&SpiffeId::node(&west.ca.trust_domain, &node()), Some(&node()));
        let machine =
            dial(&pair.west_gateway, west, as_node, v1::Role::Node, transport).await;
        let linked =
            dial(&pair.east_gateway, east, west.ca.gateway(), v1::Role::Gateway, transport).await;
        let hops = |hops| Connect { hops, ..orders() };
        let cases = [
            ("site", &workload, connect("north", "orders.shop", "o-1"), RefusedReason::UnknownSite, "west/gw-w"),
            ("service", &workload, connect("east", "carts.shop", "c-1"), RefusedReason::UnknownService, "west/gw-w"),
            ("endpoint", &workload, connect("east", "orders.shop", "o-9"), RefusedReason::UnknownEndpoint, "west/gw-w"),
            ("hops", &workload, hops(3), RefusedReason::HopLimit, "west/gw-w"),
            ("role", &machine, orders(), RefusedReason::Role, "west/gw-w"),
            ("not exported", &linked, connect("east", "billing.shop", "b-1"), RefusedReason::NotExported, "east/gw-e"),
            ("unknown at the far end", &linked, connect("east", "carts.shop", "c-1"), RefusedReason::UnknownService, "east/gw-e"),
            ("no session", &linked, connect("east", "orders.shop", "o-2"), RefusedReason::NoPath, "east/gw-e"),
        ];
        for (what, session, connect, reason, hop) in cases {
            let got = refusal(session, &connect).await;
            assert_eq!(got, (reason, hop.to_owned()), "{what} over {transport:?}");
        }
        // None of these has cost the tunnels anything.
        let mut stream = workload.open(&orders(), &[]).await.unwrap();
        assert_eq!(exchange(&mut stream, b"still here").await.unwrap(), b"still here");
        pair.stop().await;
    }
}

#[tokio::test]
async fn over_a_link_only_the_gateway_of_the_other_site_is_accepted() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    for transport in BOTH {
        let workload = pair.west.ca.workload("shop", "checkout", None);
        let refused =
            try_dial(&pair.east_gateway, &pair.east, workload, v1::Role::Workload, transport).await;
        refused.expect_err("a workload of west at the door of east");
        // Signed by the CA of west, and says that it is of east.
        let forged = pair.west.ca.sign(&SpiffeId::gateway(&pair.east.ca.trust_domain), None);
        let refused =
            try_dial(&pair.east_gateway, &pair.east, forged, v1::Role::Gateway, transport).await;
        refused.expect_err("a gateway of east that west has made up");
    }
    pair.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_unreachable_at_its_own_gateway() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let pair = Pair::new(LinkTransport::Tls, nobody).await;
    let caller = pair.caller(LinkTransport::Tls).await;
    let got = refusal(&caller, &orders()).await;
    assert_eq!(got, (RefusedReason::Unreachable, "east/gw-e".to_owned()));
    pair.stop().await;
}

#[tokio::test]
async fn a_neighbour_over_its_quota_is_refused_and_others_are_not() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let limits = Limits { per_neighbour: 2, ..Limits::default() };
    let tuning = Tuning { limits, ..Tuning::default() };
    let pair = Pair::tuned(LinkTransport::Quic, address, tuning).await;
    let one = pair.caller(LinkTransport::Quic).await;
    // A second tunnel of the same neighbour does not double what it may open.
    let again = pair.caller(LinkTransport::Tls).await;
    let first = one.open(&orders(), &[]).await.unwrap();
    let _second = again.open(&orders(), &[]).await.unwrap();
    for session in [&one, &again] {
        assert_eq!(refusal(session, &orders()).await.0, RefusedReason::Quota);
    }
    let svid = pair.west.ca.workload("shop", "other", None);
    let other =
        dial(&pair.west_gateway, &pair.west, svid, v1::Role::Workload, LinkTransport::Quic).await;
    let _third = other.open(&orders(), &[]).await.unwrap();
    // What has ended makes room.
    let mut first = first;
    exchange(&mut first, b"done").await.unwrap();
    drop(first);
    let room = async {
        while one.open(&orders(), &[]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(STEP, room).await.unwrap();
    pair.stop().await;
}

#[tokio::test]
async fn where_udp_is_blocked_tls_carries_the_link_until_quic_works() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let tuning = Tuning { quic_retry: Duration::from_millis(300), ..Tuning::default() };
    let (west, east) = (Site::new("west"), Site::new("east"));
    let both = [&west, &east];
    let west_gateway = start(&west, "gw-w", &both, any_doors(), tuning).await;
    let east_gateway = start(&east, "gw-e", &both, any_doors(), tuning).await;
    let pair = Pair { west, east, west_gateway, east_gateway };
    // Datagrams to this socket go nowhere.
    let hole = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let blocked = (Some(hole.local_addr().unwrap()), pair.east_gateway.tls);
    pair.publish(LinkTransport::Raced, address, blocked);
    let told = pair.west_gateway.linked("east").await;
    assert_eq!(told.tunnels[0].transport, "tls");
    assert_ne!(told.tunnels[0].reason, "");
    let caller = pair.caller(LinkTransport::Quic).await;
    let mut old = caller.open(&orders(), &[]).await.unwrap();

    pair.publish(LinkTransport::Raced, address, (pair.east_gateway.quic, pair.east_gateway.tls));
    pair.west_gateway
        .told(|told| told.tunnels.iter().any(|tunnel| tunnel.transport == "quic"))
        .await;
    // What runs in the old tunnel goes on, and new streams work.
    assert_eq!(exchange(&mut old, b"old").await.unwrap(), b"old");
    let mut new = caller.open(&orders(), &[]).await.unwrap();
    assert_eq!(exchange(&mut new, b"new").await.unwrap(), b"new");
    drop((old, new));
    // The old tunnel goes with its last stream.
    pair.west_gateway
        .told(|told| told.tunnels.iter().all(|tunnel| tunnel.transport == "quic"))
        .await;
    pair.stop().await;
}

#[tokio::test]
async fn a_gateway_that_comes_back_is_dialled_again() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let Pair { west, east, west_gateway, east_gateway } =
        Pair::new(LinkTransport::Raced, address).await;
    let doors = edge_proxy::config::GatewayDoors {
        quic: east_gateway.quic,
        tls: east_gateway.tls,
    };
    let snapshot = east_gateway.app.shared.snapshot.load().unwrap();
    east_gateway.stop().await;
    west_gateway.told(|told| told.tunnels.is_empty()).await;
    let east_gateway = start(&east, "gw-e", &[&west, &east], doors, Tuning::default()).await;
    east_gateway.publish(mesh_core::Snapshot::clone(&snapshot));
    let pair = Pair { west, east, west_gateway, east_gateway };
    pair.west_gateway.linked("east").await;
    let caller = pair.caller(LinkTransport::Raced).await;
    let mut stream = caller.open(&orders(), &[]).await.unwrap();
    assert_eq!(exchange(&mut stream, b"back").await.unwrap(), b"back");
    pair.stop().await;
}

#[tokio::test]
async fn a_draining_gateway_refuses_new_streams_and_finishes_old_ones() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let mut old = caller.open(&orders(), &[]).await.unwrap();
        old.write_all(b"begun ").await.unwrap();
        old.flush().await.unwrap();
        let drain = pair.west_gateway.app.shared.drain.clone();
        drain.start();
        timeout(STEP, caller.ending()).await.expect("the drain is told");
        assert!(matches!(caller.open(&orders(), &[]).await, Err(OpenError::Closed)));
        assert_eq!(exchange(&mut old, b"and ended").await.unwrap(), b"begun and ended");
        drop(old);
        // Nothing is left to wait for.
        assert_eq!(timeout(STEP, drain.finish(STEP)).await.unwrap(), 0);
        pair.stop().await;
    }
}

#[tokio::test]
async fn the_source_hears_of_a_drain_at_the_far_gateway() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    for transport in BOTH {
        let pair = Pair::new(transport, address).await;
        let caller = pair.caller(transport).await;
        let mut drained = caller.drained_streams();
        let mut open = caller.open(&orders(), &[]).await.unwrap();
        pair.east_gateway.app.shared.drain.start();
        let ids = timeout(STEP, drained.recv()).await.expect("it is told").unwrap();
        assert_eq!(*ids, ["test-1".to_owned()]);
        // Its own gateway stays, and what runs goes on.
        assert!(caller.is_open());
        assert_eq!(exchange(&mut open, b"to the end").await.unwrap(), b"to the end");
        let got = refusal(&caller, &orders()).await;
        assert_eq!(got.0, RefusedReason::NoPath);
        pair.stop().await;
    }
}

#[tokio::test]
async fn a_link_that_ends_takes_its_tunnels_along() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    let caller = pair.caller(LinkTransport::Raced).await;
    let mut open = caller.open(&orders(), &[]).await.unwrap();
    pair.east_gateway.publish(whole(vec![site(&pair.east, None), bundle(&pair.east)]));
    pair.east_gateway.told(|told| told.tunnels.is_empty()).await;
    let error = timeout(STEP, open.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    pair.stop().await;
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

#[tokio::test]
async fn the_transport_of_a_tunnel_is_the_one_that_was_asked_for() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Raced, address).await;
    for (asked, got) in [
        (LinkTransport::Quic, Transport::Quic),
        (LinkTransport::Tls, Transport::Tls),
        (LinkTransport::Raced, Transport::Quic),
    ] {
        assert_eq!(pair.caller(asked).await.transport(), got);
    }
    let told = pair.west_gateway.linked("east").await;
    assert_eq!((told.tunnels[0].transport.as_str(), told.tunnels[0].count), ("quic", 1));
    pair.stop().await;
}

#[tokio::test]
async fn what_was_carried_and_what_was_refused_is_counted() {
    let address = endpoint_proxy(Behaviour::Echo).await;
    let pair = Pair::new(LinkTransport::Quic, address).await;
    let caller = pair.caller(LinkTransport::Quic).await;
    let mut stream = caller.open(&orders(), &[]).await.unwrap();
    exchange(&mut stream, b"12345").await.unwrap();
    refusal(&caller, &connect("north", "orders.shop", "o-1")).await;
    let wanted = [
        "isthmus_proxy_gateway_tunnels{neighbour=\"link\",site=\"east\",transport=\"quic\"} 1",
        "isthmus_proxy_gateway_bytes_total{neighbour=\"client\",site=\"\",direction=\"sent\"} 5",
        "isthmus_proxy_gateway_streams_refused_total{neighbour=\"client\",site=\"\",\
         reason=\"unknown_site\"} 1",
        "isthmus_proxy_gateway_streams{neighbour=\"client\",site=\"\"} 0",
    ];
    let counted = async {
        loop {
            let mut text = String::new();
            let registry = &pair.west_gateway.app.shared.metrics.registry;
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            match wanted.iter().find(|line| !text.contains(**line)) {
                None => return,
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    timeout(STEP, counted).await.expect("every line");
    pair.stop().await;
}
