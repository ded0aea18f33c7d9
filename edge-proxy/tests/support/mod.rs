//! Two proxies, a certificate authority and applications, in one process on
//! real sockets of the loopback.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its own part, and may panic"
)]

pub mod apps;
pub mod caller;
pub mod legacy;
pub mod pki;
pub mod process;
pub mod rules;
pub mod script;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge_proxy::{
    app::{App, Shared},
    config::{Config, Manner, Role, ServiceListener},
    snapshot_cell::Complete,
    worker::Bound,
};
use mesh_api::v1;
use mesh_core::{Snapshot, TrustDomain, apply};
use mesh_tunnel::{Credentials, RealNet, Svid, Trust};
use pki::Authority;
use tokio::net::TcpSocket;

/// The only site.
pub const SITE: &str = "west";
/// Its trust domain.
pub const DOMAIN: &str = "west.example";

/// Any free port of the loopback.
pub fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A port that refuses, and that nobody else has while the socket is kept.
pub fn refusing() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(any()).unwrap();
    let addr = socket.local_addr().unwrap();
    (socket, addr)
}

/// One endpoint of `service` on `port`.
pub fn endpoint(
    id: &str,
    service: &str,
    port: &str,
    account: &str,
    proxy: SocketAddr,
    target: SocketAddr,
) -> v1::Endpoint {
    v1::Endpoint {
        id: id.into(),
        service: service.into(),
        port: port.into(),
        site: SITE.into(),
        spiffe_id: format!("spiffe://{DOMAIN}/ns/shop/sa/{account}"),
        address: proxy.to_string(),
        target_port: target.port().into(),
        target_address: target.ip().to_string(),
        weight: 1,
        health: v1::Health::Healthy.into(),
        ..v1::Endpoint::default()
    }
}

/// A service with these ports.
pub fn service(name: &str, ports: &[(&str, u32, v1::Protocol)]) -> v1::Service {
    let port = |(name, number, protocol): &(&str, u32, v1::Protocol)| v1::Port {
        name: (*name).into(),
        number: *number,
        protocol: (*protocol).into(),
    };
    v1::Service {
        name: name.into(),
        ports: ports.iter().map(port).collect(),
        ..v1::Service::default()
    }
}

/// The state of the site.
pub fn snapshot(
    authority: &Authority,
    services: Vec<v1::Service>,
    endpoints: Vec<v1::Endpoint>,
) -> Snapshot {
    use v1::resource::Resource as Kind;
    let site = v1::Site {
        name: SITE.into(),
        trust_domain: DOMAIN.into(),
        federation_address: String::new(),
    };
    let bundle = v1::Bundle {
        trust_domain: DOMAIN.into(),
        sequence: 1,
        roots: vec![authority.root().to_vec()],
        ..v1::Bundle::default()
    };
    let mut upsert = vec![Kind::Site(site), Kind::Bundle(bundle)];
    upsert.extend(services.into_iter().map(Kind::Service));
    upsert.extend(endpoints.into_iter().map(Kind::Endpoint));
    let upsert = upsert.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect();
    let to = Some(v1::Revision { epoch: 1, n: 1 });
    apply(None, &v1::Delta { from: None, to, upsert, remove: Vec::new() }).unwrap()
}

/// A proxy that runs in the runtime of its test.
pub struct Proxy {
    pub app: App,
    pub bound: Bound,
}

impl Proxy {
    /// Starts with `svid`, believing `authority`; it has no snapshot yet.
    pub async fn start(authority: &Authority, svid: Svid, config: Config) -> Self {
        let trust = Trust { bundles: authority.bundles(), ..Trust::default() };
        let credentials = Credentials::new(Some(svid), trust);
        let shared = Shared::new(config, Arc::new(RealNet), credentials).unwrap();
        let app = App::new(shared);
        let bound = app.run_in_place().await.unwrap();
        Self { app, bound }
    }

    /// Decides from this from now on.
    pub fn tell(&self, snapshot: &Snapshot) {
        self.app.shared.snapshot.store(Arc::new(snapshot.clone()), Complete::All);
    }

    /// Where applications send HTTP for any service.
    pub fn http(&self) -> SocketAddr {
        self.bound.http.unwrap()
    }

    /// Where the mesh calls.
    pub fn inbound(&self) -> SocketAddr {
        self.bound.inbound.unwrap()
    }

    /// All of its metrics.
    pub fn metrics(&self) -> String {
        let mut text = String::new();
        let registry = &self.app.shared.metrics.registry;
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    /// Ends everything at once.
    pub async fn kill(&self) {
        self.app.shared.drain.finish(Duration::ZERO).await;
    }
}

/// A proxy of callers.
pub fn outbound_config() -> Config {
    Config { http_listener: Some(any()), ..Config::given(Role::Node) }
}

/// A proxy of applications.
pub fn inbound_config() -> Config {
    Config { inbound: Some(any()), ..Config::given(Role::Node) }
}

/// A listener for one port of one service.
pub fn listener(service: &str, port: &str) -> ServiceListener {
    ServiceListener {
        listen: any(),
        service: service.parse().unwrap(),
        port: port.parse().unwrap(),
        tls: None,
        manner: Manner::default(),
    }
}

/// The usual pair: `checkout` calls `orders.shop`, which has the ports `http`
/// (80), `grpc` (81), `tcp` (82) and `any` (83), all backed by the given
/// applications through one proxy.
pub struct Pair {
    pub authority: Authority,
    pub source: Proxy,
    pub destination: Proxy,
    pub snapshot: Snapshot,
}

/// Where the applications of a [`Pair`] listen.
#[derive(Debug, Clone, Copy)]
pub struct Targets {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub tcp: SocketAddr,
}

impl Targets {
    /// The same application everywhere.
    pub fn all(addr: SocketAddr) -> Self {
        Self { http: addr, grpc: addr, tcp: addr }
    }
}

/// The services of a [`Pair`].
pub fn orders() -> v1::Service {
    use v1::Protocol::{Grpc, Http, Tcp, Unspecified};
    let ports =
        [("http", 80, Http), ("grpc", 81, Grpc), ("tcp", 82, Tcp), ("any", 83, Unspecified)];
    service("orders.shop", &ports)
}

/// One endpoint for each port of [`orders`].
pub fn orders_endpoints(id: &str, proxy: SocketAddr, targets: Targets) -> Vec<v1::Endpoint> {
    let of = |port: &str, target| {
        endpoint(&format!("{id}-{port}"), "orders.shop", port, "orders", proxy, target)
    };
    vec![
        of("http", targets.http),
        of("grpc", targets.grpc),
        of("tcp", targets.tcp),
        of("any", targets.tcp),
    ]
}

impl Pair {
    pub async fn start(targets: Targets) -> Self {
        Self::start_with(targets, |_| ()).await
    }

    /// With a changed configuration of the source.
    pub async fn start_with(targets: Targets, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_both(targets, change, |_| ()).await
    }

    /// With changed configurations of source and destination.
    pub async fn start_both(
        targets: Targets,
        change: impl FnOnce(&mut Config),
        change_destination: impl FnOnce(&mut Config),
    ) -> Self {
        let authority = Authority::new(DOMAIN);
        let mut inbound = inbound_config();
        change_destination(&mut inbound);
        let destination = Proxy::start(&authority, authority.workload("orders"), inbound).await;
        let mut config = outbound_config();
        config.listeners = vec![
            listener("orders.shop", "http"),
            listener("orders.shop", "grpc"),
            listener("orders.shop", "tcp"),
            listener("orders.shop", "any"),
        ];
        change(&mut config);
        let source = Proxy::start(&authority, authority.workload("checkout"), config).await;
        let endpoints = orders_endpoints("one", destination.inbound(), targets);
        let snapshot = snapshot(&authority, vec![orders()], endpoints);
        source.tell(&snapshot);
        destination.tell(&snapshot);
        Self { authority, source, destination, snapshot }
    }

    /// The source alone: its snapshot says that the applications have no
    /// proxy. The destination is there and gets nothing.
    pub async fn one_hop(targets: Targets) -> Self {
        Self::one_hop_with(targets, |_| ()).await
    }

    /// The same with a changed configuration.
    pub async fn one_hop_with(targets: Targets, change: impl FnOnce(&mut Config)) -> Self {
        let mut pair = Self::start_with(targets, change).await;
        for service in pair.snapshot.services.values_mut() {
            for endpoint in &mut Arc::make_mut(service).endpoints {
                let endpoint = Arc::make_mut(endpoint);
                endpoint.identity = None;
                endpoint.address = Some(endpoint.target);
            }
        }
        pair.source.tell(&pair.snapshot);
        pair.destination.kill().await;
        pair
    }

    /// The explicit listener for a port of `orders.shop`.
    pub fn port(&self, name: &str) -> SocketAddr {
        let at = ["http", "grpc", "tcp", "any"].iter().position(|port| *port == name).unwrap();
        self.source.bound.listeners[at]
    }
}

/// Trust domains are parsed everywhere.
pub fn domain() -> TrustDomain {
    DOMAIN.parse().unwrap()
}
