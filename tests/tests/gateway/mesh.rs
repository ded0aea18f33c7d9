//! Sites with real gateways on loopback, and neighbours that tests control.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge_proxy::{
    app::{App, Shared},
    config::{Config, GatewayDoors, Role},
    gateway::{Gateway, Tuning},
    own::Own,
    snapshot_cell::Complete,
};
use isthmus_tests::pki::Ca;
use mesh_api::v1::{self, resource::Resource as Kind};
use mesh_core::{
    Allowed, NodeId, Snapshot, SpiffeId, apply, path::Connect, service::LinkTransport,
};
use mesh_tunnel::{
    Credentials, Dialer, GatewayAddresses, RealNet, Session, Svid, Trust, TunnelStream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// No step of a test takes longer unless it hangs.
pub(crate) const STEP: Duration = Duration::from_secs(20);

/// One site: its CA, its services as they are in every snapshot.
pub(crate) struct Site {
    pub(crate) name: &'static str,
    pub(crate) ca: Ca,
}

impl Site {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, ca: Ca::new(&format!("{name}.example")) }
    }

    pub(crate) fn domain(&self) -> String {
        format!("{}.example", self.name)
    }
}

/// A delta that is a whole state.
pub(crate) fn whole(kinds: Vec<Kind>) -> Snapshot {
    let upsert = kinds.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect();
    let to = Some(v1::Revision { epoch: 1, n: 1 });
    apply(None, &v1::Delta { from: None, to, upsert, remove: Vec::new() }).expect("well formed")
}

pub(crate) fn site(site: &Site, federation: Option<SocketAddr>) -> Kind {
    Kind::Site(v1::Site {
        name: site.name.into(),
        trust_domain: site.domain(),
        federation_address: federation.map(|a| a.to_string()).unwrap_or_default(),
    })
}

pub(crate) fn bundle(site: &Site) -> Kind {
    Kind::Bundle((&site.ca.bundle()).into())
}

pub(crate) fn link(to: &Site, dial: bool, transport: LinkTransport) -> Kind {
    Kind::Link(v1::Link {
        site: to.name.into(),
        trust_domain: to.domain(),
        dial,
        transport: v1::LinkTransport::from(transport).into(),
    })
}

pub(crate) fn gateway(site: &Site, id: &str, quic: Option<SocketAddr>, tls: SocketAddr) -> Kind {
    Kind::Gateway(v1::Gateway {
        id: id.into(),
        site: site.name.into(),
        quic_addresses: quic.iter().map(ToString::to_string).collect(),
        tls_addresses: vec![tls.to_string()],
    })
}

/// A service with one port, `http`.
pub(crate) fn service(name: &str, exported_to: &[&str], imported_from: &[&str]) -> Kind {
    let strings = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    Kind::Service(v1::Service {
        name: name.into(),
        ports: vec![v1::Port {
            name: "http".into(),
            number: 80,
            protocol: v1::Protocol::Http.into(),
        }],
        exported_to: strings(exported_to),
        imported_from: strings(imported_from),
        ..v1::Service::default()
    })
}

/// An endpoint of `site`; without an address only a session leads there.
pub(crate) fn endpoint(
    site: &Site,
    service: &str,
    id: &str,
    address: Option<SocketAddr>,
    node: Option<&str>,
) -> Kind {
    Kind::Endpoint(at(site, service, id, address, node))
}

/// The same, to be changed.
pub(crate) fn at(
    site: &Site,
    service: &str,
    id: &str,
    address: Option<SocketAddr>,
    node: Option<&str>,
) -> v1::Endpoint {
    v1::Endpoint {
        id: id.into(),
        service: service.into(),
        port: "http".into(),
        site: site.name.into(),
        spiffe_id: format!("spiffe://{}/ns/shop/sa/web", site.domain()),
        address: address.map(|a| a.to_string()).unwrap_or_default(),
        target_port: 8080,
        weight: 1,
        health: v1::Health::Healthy.into(),
        node: node.unwrap_or_default().into(),
        ..v1::Endpoint::default()
    }
}

/// A running gateway.
pub(crate) struct Running {
    pub(crate) app: App,
    pub(crate) quic: Option<SocketAddr>,
    pub(crate) tls: SocketAddr,
}

pub(crate) fn credentials(svid: Svid, sites: &[&Site]) -> Arc<Credentials> {
    let bundles = sites.iter().map(|site| {
        let bundle = site.ca.bundle();
        (bundle.trust_domain.clone(), Arc::new(bundle))
    });
    let trust = Trust { bundles: Arc::new(bundles.collect()), ..Trust::default() };
    Credentials::new(Some(svid), trust)
}

pub(crate) fn shared(config: Config, credentials: Arc<Credentials>, own: Own) -> Shared {
    let shared = Shared::new(config, Arc::new(RealNet), credentials).unwrap();
    shared.own.store(own);
    shared
}

/// Starts a gateway of `of` that believes `sites`; it has no snapshot yet.
pub(crate) async fn start(
    of: &Site,
    id: &str,
    sites: &[&Site],
    doors: GatewayDoors,
    tuning: Tuning,
) -> Running {
    start_changed(of, id, sites, doors, tuning, |_| ()).await
}

/// The same with a changed configuration; its admin port, if it has one, is
/// served by nobody.
pub(crate) async fn start_changed(
    of: &Site,
    id: &str,
    sites: &[&Site],
    doors: GatewayDoors,
    tuning: Tuning,
    change: impl FnOnce(&mut Config),
) -> Running {
    let mut config = Config { gateway: Some(doors), ..Config::given(Role::Gateway) };
    change(&mut config);
    let own = Own {
        site: Some(of.name.parse().unwrap()),
        trust_domain: Some(of.ca.trust_domain.clone()),
        gateway: Some(id.parse().unwrap()),
        ..Own::default()
    };
    let shared = shared(config, credentials(of.ca.gateway(), sites), own);
    let gateway = Gateway::tuned(&shared, tuning);
    let app = App { gateway, ..App::new(shared) };
    app.run_in_place().await.unwrap();
    let mut doors = app.gateway.doors();
    let open = timeout(STEP, doors.wait_for(Option::is_some)).await.unwrap().unwrap();
    let (quic, tls) = (*open).unwrap();
    drop(open);
    Running { app, quic, tls }
}

/// Both doors on ports that the kernel chooses.
pub(crate) fn any_doors() -> GatewayDoors {
    let any = "127.0.0.1:0".parse().unwrap();
    GatewayDoors { quic: Some(any), tls: any }
}

impl Running {
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.app.shared.snapshot.store(Arc::new(snapshot), Complete::All);
    }

    pub(crate) async fn stop(self) {
        self.app.shared.drain.finish(Duration::ZERO).await;
    }

    pub(crate) fn addresses(&self) -> GatewayAddresses {
        let text = |addr: SocketAddr| Arc::<str>::from(addr.to_string());
        GatewayAddresses {
            quic: self.quic.into_iter().map(text).collect(),
            tls: vec![text(self.tls)],
        }
    }

    /// Waits until federation would be told what `wanted` says.
    pub(crate) async fn told(
        &self,
        wanted: impl FnMut(&v1::NodeSessions) -> bool,
    ) -> v1::NodeSessions {
        let mut told = self.app.gateway.told();
        let told = timeout(STEP, told.wait_for(wanted)).await.expect("told in time").unwrap();
        told.clone()
    }

    /// Waits until there is a tunnel to `site`.
    pub(crate) async fn linked(&self, site: &str) -> v1::NodeSessions {
        self.told(|told| told.tunnels.iter().any(|tunnel| tunnel.site == site)).await
    }
}

/// A tunnel to a gateway, as somebody with this SVID.
pub(crate) async fn dial(
    to: &Running,
    of: &Site,
    svid: Svid,
    role: v1::Role,
    transport: LinkTransport,
) -> Session {
    try_dial(to, of, svid, role, transport).await.expect("a tunnel")
}

pub(crate) async fn try_dial(
    to: &Running,
    of: &Site,
    svid: Svid,
    role: v1::Role,
    transport: LinkTransport,
) -> Result<Session, mesh_tunnel::DialError> {
    dial_limited(to, of, svid, role, transport, None).await
}

/// The same, and how many streams it takes.
pub(crate) async fn dial_limited(
    to: &Running,
    of: &Site,
    svid: Svid,
    role: v1::Role,
    transport: LinkTransport,
    limits: Option<v1::TunnelLimits>,
) -> Result<Session, mesh_tunnel::DialError> {
    let own_site = svid.id.trust_domain().as_str().split('.').next().unwrap_or_default().to_owned();
    let hello = v1::Hello {
        versions: mesh_api::VERSIONS.to_vec(),
        role: role.into(),
        site: own_site,
        gateway: if role == v1::Role::Gateway { "gw-test".into() } else { String::new() },
        boot_id: "test".into(),
        limits,
        ..v1::Hello::default()
    };
    let dialer = Dialer { net: Arc::new(RealNet), credentials: credentials(svid, &[of]), hello };
    let allowed = Allowed::Exactly(SpiffeId::gateway(&of.ca.trust_domain));
    Box::pin(dialer.dial(&to.addresses(), allowed, transport, STEP)).await
}

pub(crate) fn connect(site: &str, service: &str, endpoint: &str) -> Connect {
    Connect {
        site: site.parse().unwrap(),
        service: service.parse().unwrap(),
        port: "http".parse().unwrap(),
        endpoint: Some(endpoint.parse().unwrap()),
        hops: 0,
        connection_id: "test-1".into(),
    }
}

pub(crate) fn node() -> NodeId {
    "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11".parse().unwrap()
}

/// What an endpoint's proxy of a test does with a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behaviour {
    /// Sends back what comes, then FIN after FIN.
    Echo,
    /// Reads to the end, then says how many bytes came.
    Count,
    /// Reads a byte, then aborts with an RST.
    Abort,
}

/// Stands for an endpoint's proxy; gateways do not read what they carry.
pub(crate) async fn endpoint_proxy(behaviour: Behaviour) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(behave(stream, behaviour));
        }
    });
    addr
}

async fn behave(mut stream: TcpStream, behaviour: Behaviour) {
    match behaviour {
        Behaviour::Echo => {
            let (mut read, mut write) = stream.split();
            let _ended = tokio::io::copy(&mut read, &mut write).await;
            let _ended = write.shutdown().await;
        }
        Behaviour::Count => {
            let mut bytes = Vec::new();
            if stream.read_to_end(&mut bytes).await.is_ok() {
                let _ended = stream.write_all(bytes.len().to_string().as_bytes()).await;
                let _ended = stream.shutdown().await;
            }
        }
        Behaviour::Abort => {
            let _byte = stream.read_u8().await;
            stream.set_zero_linger().unwrap();
        }
    }
}

/// Writes, half-closes, and reads to the end.
pub(crate) async fn exchange(stream: &mut TunnelStream, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let both = async {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut answer = Vec::new();
        let send = async {
            write.write_all(bytes).await?;
            write.shutdown().await
        };
        let (sent, received) = tokio::join!(send, read.read_to_end(&mut answer));
        sent?;
        received?;
        Ok(answer)
    };
    timeout(STEP, both).await.expect("no hang")
}
