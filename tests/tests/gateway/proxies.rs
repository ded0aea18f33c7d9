//! Real proxies behind real gateways: requests across two sites, in reverse,
//! and through the loss of a gateway.

use std::sync::Arc;

use edge_proxy::{
    app::App,
    config::{Config, Role},
    inner::OpenFailure,
    own::Own,
    snapshot_cell::Complete,
    tap::Filter,
    worker::Bound,
};
use mesh_api::v1::{resource::Resource as Kind, tap_event::Event};
use mesh_core::{NodeId, Snapshot};
use mesh_tunnel::Transport;
use tokio::net::{TcpListener, TcpStream};

use super::{mesh::at, *};

/// A proxy of a workload, with its own listeners.
pub(crate) struct Proxy {
    pub(crate) app: App,
    pub(crate) bound: Bound,
}

impl Proxy {
    async fn start(of: &Site, account: &str, sites: &[&Site], config: Config) -> Self {
        Self::start_on(node(), of, account, sites, config).await
    }

    /// On a machine of its own.
    pub(crate) async fn start_on(
        node: NodeId,
        of: &Site,
        account: &str,
        sites: &[&Site],
        config: Config,
    ) -> Self {
        let svid = of.ca.workload("shop", account, Some(&node));
        let own = Own {
            site: Some(of.name.parse().unwrap()),
            trust_domain: Some(of.ca.trust_domain.clone()),
            node: Some(node),
            locality: config.locality.clone(),
            ..Own::default()
        };
        let app = App::new(mesh::shared(config, mesh::credentials(svid, sites), own));
        let bound = app.run_in_place().await.unwrap();
        Self { app, bound }
    }

    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.app.shared.snapshot.store(Arc::new(snapshot), Complete::All);
    }

    /// Waits until a tunnel over `transport` is up.
    pub(crate) async fn has_tunnel(&self, transport: Transport) {
        let mut changed = self.app.tunnels.changed();
        let up = async {
            while !self.app.tunnels.transports().iter().any(|(_, got)| *got == transport) {
                changed.changed().await.unwrap();
            }
        };
        timeout(STEP, up).await.expect("a tunnel in time");
    }

    /// One request to `orders.shop`: status and body.
    pub(crate) async fn get(&self) -> (u16, String) {
        self.get_with("").await
    }

    /// The same with more lines in its head.
    pub(crate) async fn get_with(&self, lines: &str) -> (u16, String) {
        let exchange = async {
            let mut stream = TcpStream::connect(self.bound.http.unwrap()).await.unwrap();
            let request = format!(
                "GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\n{lines}connection: \
                 close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            let status = response.split(' ').nth(1).unwrap().parse().unwrap();
            let body = response.split("\r\n\r\n").nth(1).unwrap_or_default();
            (status, body.to_owned())
        };
        timeout(STEP, exchange).await.expect("an answer in time")
    }

    pub(crate) async fn stop(self) {
        self.app.shared.drain.finish(Duration::ZERO).await;
    }
}

/// Answers every request with the identity of its caller.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    addr
}

async fn answer(mut stream: TcpStream) {
    let mut head = Vec::new();
    loop {
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let text = String::from_utf8_lossy(&head).to_lowercase();
        let caller = text.lines().find_map(|line| line.strip_prefix("x-isthmus-client-id: "));
        let caller = caller.unwrap_or("nobody");
        let response =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{caller}", caller.len());
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
        head.clear();
    }
}

pub(crate) const CHECKOUT: &str = "spiffe://west.example/ns/shop/sa/checkout";

/// Both sites with a proxy each; `orders.shop` of `east` is behind its proxy.
pub(crate) struct Mesh {
    pub(crate) pair: Pair,
    pub(crate) source: Proxy,
    pub(crate) destination: Proxy,
}

impl Mesh {
    pub(crate) async fn new(transport: LinkTransport, reverse: bool) -> Self {
        Self::made(transport, reverse, |_| ()).await
    }

    /// With something else in all configurations.
    pub(crate) async fn made(
        transport: LinkTransport,
        reverse: bool,
        change: impl Fn(&mut Config),
    ) -> Self {
        let target = application().await;
        let pair = Pair::made(transport, target, Tuning::default(), &change).await;
        let any = Some("127.0.0.1:0".parse().unwrap());
        let sites = [&pair.west, &pair.east];
        let mut config = Config { http_listener: any, ..Config::given(Role::Node) };
        change(&mut config);
        let source = Proxy::start(&pair.west, "checkout", &sites, config).await;
        let mut config = Config { inbound: any, ..Config::given(Role::Node) };
        change(&mut config);
        let destination = Proxy::start(&pair.east, "web", &sites, config).await;
        let mesh = Self { pair, source, destination };
        mesh.publish(transport, target, reverse);
        mesh
    }

    fn publish(&self, transport: LinkTransport, target: SocketAddr, reverse: bool) {
        let (west, east) = (&self.pair.west, &self.pair.east);
        let address = self.destination.bound.inbound.filter(|_| !reverse);
        let local = mesh_api::v1::Endpoint {
            target_port: target.port().into(),
            target_address: target.ip().to_string(),
            via: if reverse { vec!["gw-e".into()] } else { Vec::new() },
            ..at(east, "orders.shop", "o-1", address, Some(node().as_str()))
        };
        let west_gateway = &self.pair.west_gateway;
        let east_gateway = &self.pair.east_gateway;
        let in_west = whole(vec![
            site(west, None),
            bundle(west),
            bundle(east),
            link(east, true, transport),
            gateway(west, "gw-w", west_gateway.quic, west_gateway.tls),
            gateway(east, "gw-e", east_gateway.quic, east_gateway.tls),
            service("orders.shop", &[], &["east"]),
            endpoint(east, "orders.shop", "o-1", None, None),
        ]);
        let in_east = whole(vec![
            site(east, None),
            bundle(west),
            bundle(east),
            link(west, false, transport),
            gateway(east, "gw-e", east_gateway.quic, east_gateway.tls),
            service("orders.shop", &["west"], &[]),
            Kind::Endpoint(local),
        ]);
        west_gateway.publish(in_west.clone());
        self.source.publish(in_west);
        east_gateway.publish(in_east.clone());
        self.destination.publish(in_east);
    }

    pub(crate) async fn stop(self) {
        self.source.stop().await;
        self.destination.stop().await;
        self.pair.stop().await;
    }
}

#[tokio::test]
async fn a_request_crosses_two_sites_with_its_callers_identity() {
    for transport in BOTH {
        let mesh = Mesh::new(transport, false).await;
        assert_eq!(mesh.source.get().await, (200, CHECKOUT.to_owned()), "{transport:?}");
        mesh.stop().await;
    }
}

#[tokio::test]
async fn both_ends_name_one_connection_and_both_sites() {
    for (transport, reverse) in [(LinkTransport::Quic, false), (LinkTransport::Tls, true)] {
        let mesh = Mesh::new(transport, reverse).await;
        if reverse {
            let holds = |told: &v1::NodeSessions| told.nodes == [node().to_string()];
            mesh.pair.east_gateway.told(holds).await;
        }
        let mut seen = Vec::new();
        let ends = [&mesh.source, &mesh.destination];
        let mut watching = ends.map(|end| end.app.shared.tap.watch(Filter::default(), 0).unwrap());
        assert_eq!(mesh.source.get().await.0, 200);
        for watching in &mut watching {
            let event = timeout(STEP, watching.next()).await.unwrap().unwrap().event;
            let Some(Event::Seen(event)) = event else { panic!("{event:?}") };
            let site = |end: &Option<v1::TapEnd>| end.as_ref().unwrap().site.clone();
            assert_eq!(
                (site(&event.source), site(&event.destination)),
                ("west".into(), "east".into())
            );
            seen.push(event.connection);
        }
        assert!(seen[0].len() >= 16 && seen[0] == seen[1], "{seen:?}");
        for end in ends {
            let metrics = end.metrics();
            let counted = |line: &&str| {
                line.starts_with("response_total{")
                    && line.contains("src_site=\"west\"")
                    && line.contains("dst_site=\"east\"")
            };
            assert_eq!(metrics.lines().filter(counted).count(), 1, "{metrics}");
        }
        mesh.stop().await;
    }
}

#[tokio::test]
async fn a_request_reaches_a_node_in_reverse() {
    for transport in BOTH {
        let mesh = Mesh::new(transport, true).await;
        let holds = |told: &v1::NodeSessions| told.nodes == [node().to_string()];
        mesh.pair.east_gateway.told(holds).await;
        assert_eq!(mesh.source.get().await, (200, CHECKOUT.to_owned()), "{transport:?}");
        mesh.stop().await;
    }
}

impl Proxy {
    /// An inner session to endpoint `o-1` of `orders.shop`.
    pub(crate) async fn open(&self) -> Result<edge_proxy::inner::Session, OpenFailure> {
        let app = &self.app;
        let snapshot = app.shared.snapshot.load().unwrap();
        let site = "east".parse().unwrap();
        let endpoint = snapshot.endpoint("orders.shop", &site, "o-1").unwrap();
        let opening = edge_proxy::inner::open(&app.shared, &app.tunnels, &snapshot, endpoint);
        timeout(STEP, opening).await.expect("an outcome in time")
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = &self.app.shared.metrics.registry;
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }
}

#[tokio::test]
async fn a_refusal_at_the_far_gateway_is_no_failed_handshake() {
    for transport in BOTH {
        let mesh = Mesh::new(transport, false).await;
        let (west, east) = (&mesh.pair.west, &mesh.pair.east);
        mesh.pair.east_gateway.publish(whole(vec![
            site(east, None),
            bundle(west),
            bundle(east),
            link(west, false, transport),
            service("orders.shop", &[], &[]),
            endpoint(east, "orders.shop", "o-1", mesh.destination.bound.inbound, None),
        ]));
        match mesh.source.open().await.unwrap_err() {
            OpenFailure::Refused { reason, hop, .. } => {
                assert_eq!((reason, hop.as_str()), (RefusedReason::NotExported, "east/gw-e"));
            }
            other => panic!("{transport:?}: {other}"),
        }
        let metrics = mesh.source.metrics();
        assert!(!metrics.contains("handshake_failure_total{"), "{metrics}");
        mesh.stop().await;
    }
}

#[tokio::test]
async fn a_path_that_is_silent_is_no_failed_handshake() {
    let Mesh { pair, source, destination } = Mesh::new(LinkTransport::Raced, true).await;
    destination.stop().await;
    pair.east_gateway.told(|told| told.nodes.is_empty()).await;
    let silent = pair.reverse_proxy(LinkTransport::Raced).await;
    let holding = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(incoming) = silent.accept().await {
            held.push(incoming);
        }
        held.len()
    });
    let failure = source.open().await.unwrap_err();
    assert!(matches!(failure, OpenFailure::Path(_)), "{failure}");
    assert!(!source.metrics().contains("handshake_failure_total{"));
    source.stop().await;
    pair.stop().await;
    assert_eq!(holding.await.unwrap(), 1);
}

#[tokio::test]
async fn a_proxy_finds_its_gateway_again_after_a_restart() {
    let mesh = Mesh::new(LinkTransport::Raced, true).await;
    mesh.source.has_tunnel(Transport::Quic).await;
    let Mesh { pair, source, destination } = mesh;
    let Pair { west, east, west_gateway, east_gateway } = pair;
    let doors = edge_proxy::config::GatewayDoors { quic: west_gateway.quic, tls: west_gateway.tls };
    let snapshot = west_gateway.app.shared.snapshot.load().unwrap();
    west_gateway.stop().await;
    let west_gateway = start(&west, "gw-w", &[&west, &east], doors, Tuning::default()).await;
    west_gateway.publish(Snapshot::clone(&snapshot));
    west_gateway.linked("east").await;
    let pair = Pair { west, east, west_gateway, east_gateway };
    let mesh = Mesh { pair, source, destination };
    let answered = async {
        while mesh.source.get().await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(STEP, answered).await.expect("requests work again");
    mesh.stop().await;
}

#[tokio::test]
async fn a_draining_gateway_is_left_for_another_one() {
    let mesh = Mesh::new(LinkTransport::Raced, false).await;
    let (west, east) = (&mesh.pair.west, &mesh.pair.east);
    let second = start(west, "gw-x", &[west, east], any_doors(), Tuning::default()).await;
    let before = mesh.source.app.shared.snapshot.load().unwrap();
    let mut both = Snapshot::clone(&before);
    let id: mesh_core::GatewayId = "gw-x".parse().unwrap();
    let known = mesh_core::Gateway {
        id: id.clone(),
        site: west.name.parse().unwrap(),
        quic_addresses: second.addresses().quic,
        tls_addresses: second.addresses().tls,
    };
    both.gateways.insert((known.site.clone(), id.clone()), Arc::new(known));
    second.publish(both.clone());
    second.linked("east").await;
    mesh.source.publish(both);
    assert_eq!(mesh.source.get().await.0, 200);
    let mut changed = mesh.source.app.tunnels.changed();
    let has_second = async {
        while !mesh.source.app.tunnels.transports().iter().any(|(gateway, _)| gateway == &id) {
            changed.changed().await.unwrap();
        }
    };
    timeout(STEP, has_second).await.expect("a tunnel to the second gateway");
    mesh.pair.west_gateway.app.shared.drain.start();
    // Not one request fails, from the moment the drain begins.
    for _ in 0..50 {
        assert_eq!(mesh.source.get().await, (200, CHECKOUT.to_owned()));
    }
    second.stop().await;
    mesh.stop().await;
}

#[tokio::test]
async fn a_revoked_node_loses_its_tunnel_at_once() {
    let mesh = Mesh::new(LinkTransport::Raced, true).await;
    let gateway = &mesh.pair.east_gateway;
    gateway.told(|told| told.nodes.len() == 1).await;
    let mut trust = gateway.app.shared.credentials.trust();
    let mut revocations = mesh_core::identity::Revocations::default();
    revocations.nodes.insert(node());
    trust.revocations = Arc::new(revocations);
    gateway.app.shared.credentials.replace_trust(trust);
    gateway.told(|told| told.nodes.is_empty()).await;
    mesh.stop().await;
}
