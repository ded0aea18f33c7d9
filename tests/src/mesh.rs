//! Two linked sites without a control plane: proxies of the real code, given
//! their certificates and snapshots.
//!
//! Site `west` has a gateway and one machine (`vm`) that only dials out: it
//! runs `orders.shop`. Site `east` has a gateway and one machine (`node`) that
//! can be dialled: it runs `payments.prod`. West dials the link.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use edge_proxy::{
    app::{App, Shared},
    config::{Config, GatewayDoors, Role},
    own::{Own, OwnCell},
    snapshot_cell::SnapshotCell,
};
use mesh_api::v1::{self, resource::Resource as Kind};
use mesh_core::{NodeId, Snapshot, apply};
use mesh_tunnel::{Credentials, Net, Svid, Trust};

use crate::pki::Ca;

/// The machine of west.
pub const VM: &str = "0b5a7d0e-1111-4f4c-9b7e-3d2d8a1c0001";
/// The machine of east.
pub const NODE: &str = "0b5a7d0e-2222-4f4c-9b7e-3d2d8a1c0002";

/// Where the parts of the two sites listen; `host:port` or `ip:port`.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// UDP of west's gateway.
    pub west_quic: String,
    /// TCP of west's gateway.
    pub west_tls: String,
    /// UDP of east's gateway.
    pub east_quic: String,
    /// TCP of east's gateway.
    pub east_tls: String,
    /// The inbound listener of east's machine.
    pub node_inbound: SocketAddr,
    /// Where `payments.prod` listens, as its own proxy dials it.
    pub payments: SocketAddr,
    /// Where `orders.shop` listens, as its own proxy dials it.
    pub orders: SocketAddr,
}

/// Both CAs and everybody's addresses.
pub struct TwoSites {
    /// CA of west.
    pub west: Ca,
    /// CA of east.
    pub east: Ca,
    /// Where everything listens.
    pub addresses: Addresses,
    /// What the link may use.
    pub transport: v1::LinkTransport,
}

fn service(name: &str, exported_to: &str, imported_from: &str) -> v1::Service {
    let list = |site: &str| if site.is_empty() { Vec::new() } else { vec![site.to_owned()] };
    let port = |name: &str, number, protocol: v1::Protocol| v1::Port {
        name: name.into(),
        number,
        protocol: protocol.into(),
    };
    v1::Service {
        name: name.into(),
        ports: vec![port("http", 80, v1::Protocol::Http), port("tcp", 9000, v1::Protocol::Tcp)],
        exported_to: list(exported_to),
        imported_from: list(imported_from),
        ..Default::default()
    }
}

impl TwoSites {
    /// Fresh CAs `west.example` and `east.example`.
    pub fn new(addresses: Addresses) -> Self {
        let transport = v1::LinkTransport::Unspecified;
        Self { west: Ca::new("west.example"), east: Ca::new("east.example"), addresses, transport }
    }

    fn gateways(&self) -> [Kind; 2] {
        let a = &self.addresses;
        let gateway = |site: &str, quic: &str, tls: &str| {
            Kind::Gateway(v1::Gateway {
                id: "gw-1".into(),
                site: site.into(),
                quic_addresses: vec![quic.into()],
                tls_addresses: vec![tls.into()],
            })
        };
        [gateway("west", &a.west_quic, &a.west_tls), gateway("east", &a.east_quic, &a.east_tls)]
    }

    fn bundles(&self) -> [Kind; 2] {
        [&self.west, &self.east].map(|ca| {
            Kind::Bundle(v1::Bundle {
                trust_domain: ca.trust_domain.to_string(),
                sequence: 1,
                roots: vec![ca.root.to_vec()],
                ..v1::Bundle::default()
            })
        })
    }

    /// Endpoints of the http and tcp ports of `orders.shop` on west's machine.
    fn orders(&self, local: bool) -> Vec<Kind> {
        let id = "spiffe://west.example/ns/shop/sa/orders";
        self.endpoints("orders", "orders.shop", "west", id, VM, "", self.addresses.orders, local)
    }

    /// Endpoints of the http and tcp ports of `payments.prod` on east's machine.
    fn payments(&self, local: bool) -> Vec<Kind> {
        let id = "spiffe://east.example/ns/prod/sa/payments";
        let address = self.addresses.node_inbound.to_string();
        let target = self.addresses.payments;
        self.endpoints("payments", "payments.prod", "east", id, NODE, &address, target, local)
    }

    #[allow(clippy::too_many_arguments, reason = "a table row, used twice")]
    fn endpoints(
        &self,
        prefix: &str,
        service: &str,
        site: &str,
        spiffe_id: &str,
        node: &str,
        address: &str,
        target: SocketAddr,
        local: bool,
    ) -> Vec<Kind> {
        let endpoint = |port: &str, target_port: u16| {
            Kind::Endpoint(v1::Endpoint {
                id: format!("{prefix}-{port}"),
                service: service.into(),
                port: port.into(),
                site: site.into(),
                spiffe_id: spiffe_id.into(),
                address: if local { address.into() } else { String::new() },
                target_port: u32::from(target_port),
                target_address: if local { target.ip().to_string() } else { String::new() },
                weight: 1,
                health: v1::Health::Healthy.into(),
                node: if local { node.into() } else { String::new() },
                via: if local && address.is_empty() { vec!["gw-1".into()] } else { Vec::new() },
                ..Default::default()
            })
        };
        vec![endpoint("http", target.port()), endpoint("tcp", target.port() + 1)]
    }

    /// What the proxies of west see; edit and [`apply`] it.
    pub fn west_view(&self) -> v1::Delta {
        let mut resources = self.common("west", &self.west, "east", &self.east, true);
        resources.push(Kind::Service(service("orders.shop", "east", "")));
        resources.push(Kind::Service(service("payments.prod", "", "east")));
        resources.extend(self.orders(true));
        resources.extend(self.payments(false));
        full(resources)
    }

    /// What the proxies of east see.
    pub fn east_view(&self) -> v1::Delta {
        let mut resources = self.common("east", &self.east, "west", &self.west, false);
        resources.push(Kind::Service(service("payments.prod", "west", "")));
        resources.push(Kind::Service(service("orders.shop", "", "west")));
        resources.extend(self.payments(true));
        resources.extend(self.orders(false));
        full(resources)
    }

    fn common(&self, site: &str, own: &Ca, peer: &str, other: &Ca, dial: bool) -> Vec<Kind> {
        let mut resources = vec![
            Kind::Site(v1::Site {
                name: site.into(),
                trust_domain: own.trust_domain.to_string(),
                federation_address: String::new(),
            }),
            Kind::Link(v1::Link {
                site: peer.into(),
                trust_domain: other.trust_domain.to_string(),
                dial,
                transport: self.transport.into(),
            }),
        ];
        resources.extend(self.gateways());
        resources.extend(self.bundles());
        resources
    }

    /// The gateway of `west` or `east` on these doors.
    pub fn gateway(&self, site: &str, doors: GatewayDoors, net: Arc<dyn Net>) -> App {
        let (ca, view) = self.side(site);
        let config = Config { gateway: Some(doors), ..Config::given(Role::Gateway) };
        proxy(config, ca.gateway(), &view, None, net)
    }

    /// West's machine; it serves `orders.shop` through a session it dials.
    pub fn vm(&self, http: SocketAddr, net: Arc<dyn Net>) -> App {
        let node = VM.parse().expect("a node id");
        let svid = self.west.workload("shop", "orders", Some(&node));
        let config = Config { http_listener: Some(http), ..Config::given(Role::Node) };
        proxy(config, svid, &self.west_view(), Some(node), net)
    }

    /// East's machine; it serves `payments.prod` on its inbound listener.
    pub fn node(&self, http: SocketAddr, net: Arc<dyn Net>) -> App {
        let node = NODE.parse().expect("a node id");
        let svid = self.east.workload("prod", "payments", Some(&node));
        let config = Config {
            http_listener: Some(http),
            // A simulated host binds loopback or everything.
            inbound: Some((Ipv4Addr::UNSPECIFIED, self.addresses.node_inbound.port()).into()),
            ..Config::given(Role::Node)
        };
        proxy(config, svid, &self.east_view(), Some(node), net)
    }

    /// CA and view of one site.
    pub fn side(&self, site: &str) -> (&Ca, v1::Delta) {
        match site {
            "west" => (&self.west, self.west_view()),
            "east" => (&self.east, self.east_view()),
            other => panic!("no site {other}"),
        }
    }
}

fn full(resources: Vec<Kind>) -> v1::Delta {
    let wrap = |kind| v1::Resource { resource: Some(kind) };
    v1::Delta {
        from: None,
        to: Some(v1::Revision { epoch: 1, n: 1 }),
        upsert: resources.into_iter().map(wrap).collect(),
        remove: Vec::new(),
    }
}

/// A proxy of the real code with everything given; nothing runs yet.
pub fn proxy(
    config: Config,
    svid: Svid,
    view: &v1::Delta,
    node: Option<NodeId>,
    net: Arc<dyn Net>,
) -> App {
    let snapshot: Snapshot = apply(None, view).expect("the view is well formed");
    let trust =
        Trust { bundles: snapshot.bundles.clone(), revocations: snapshot.revocations.clone() };
    let gateway = (config.role == Role::Gateway).then(|| "gw-1".parse().expect("a gateway id"));
    let own = Own {
        site: Some(snapshot.site.clone()),
        trust_domain: Some(snapshot.trust_domain.clone()),
        node,
        gateway,
        ..Own::default()
    };
    let credentials = Credentials::new(Some(svid), trust);
    let shared = Shared::new(config, net, credentials).expect("no access log to open");
    App::new(Shared { snapshot: SnapshotCell::fixed(snapshot), own: OwnCell::new(own), ..shared })
}
