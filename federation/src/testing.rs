//! Whole sites in one process, for tests: the real services over in-memory
//! connections whose callers are who the test says they are.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use mesh_api::v1::{
    self, Gateway, GatewaySeen, Grants, NodeJoined, SiteCreated, authority_record::Event,
    discovery_server::DiscoveryServer, join_server, join_server::JoinServer,
    peering_server::PeeringServer, registry_server::RegistryServer,
};
use mesh_core::{NodeId, PeerIdentity, SiteName, SpiffeId, TrustDomain, token::Token};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{Credentials, net::BoxFuture};
use rustls::pki_types::UnixTime;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex},
    time::{Instant, sleep},
};
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::{Channel, Endpoint, Server, Uri, server::Connected},
};

use crate::{
    admin::AdminService,
    authority::{Authority, MemoryStore, State},
    ca::CertificateAuthority,
    clock::Clock,
    consul::Consuls,
    discovery::Discovery,
    kept::Kept,
    leases::Terms,
    links::{Links, Patience},
    paths::Paths,
    peering::Peering,
    registration::OwnPorts,
    registry::Registry,
    replication,
    roles::Roles,
    rotation::RootRotations,
    site::{Site, trust},
    view::{View, ViewConfig},
};

/// Nothing in these tests takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until something holds.
pub(crate) async fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Every line that this process has logged, with its fields, since the first
/// test has asked.
pub(crate) fn logged() -> Vec<String> {
    struct Lines(Mutex<Vec<String>>);

    struct Fields<'a>(&'a mut String);

    impl<'kvs> log::kv::VisitSource<'kvs> for Fields<'_> {
        fn visit_pair(
            &mut self,
            key: log::kv::Key<'kvs>,
            value: log::kv::Value<'kvs>,
        ) -> Result<(), log::kv::Error> {
            self.0.push_str(&format!(" {key}={value}"));
            Ok(())
        }
    }

    impl log::Log for Lines {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let mut line = record.args().to_string();
            let _ = record.key_values().visit(&mut Fields(&mut line));
            self.0.lock().unwrap().push(line);
        }

        fn flush(&self) {}
    }

    static LINES: Lines = Lines(Mutex::new(Vec::new()));
    static BEGIN: std::sync::Once = std::sync::Once::new();
    BEGIN.call_once(|| {
        log::set_logger(&LINES).expect("no other logger in these tests");
        log::set_max_level(log::LevelFilter::Info);
    });
    LINES.0.lock().unwrap().clone()
}

/// Waits for something, but not for ever.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Short terms: silence for a second ends a lease.
pub(crate) fn short() -> Terms {
    Terms { lease: Duration::from_secs(1), start: Duration::from_secs(1), ..Terms::default() }
}

/// Where a test's federation says that it listens: on all addresses of a host
/// that has one.
fn own_ports() -> OwnPorts {
    let listens = ["127.0.0.1:8446", "0.0.0.0:8448"].map(|addr| addr.parse().unwrap());
    let host: std::net::IpAddr = "10.0.0.5".parse().unwrap();
    OwnPorts { listens: Arc::new(listens), has: Arc::new(move |ip| ip == host) }
}

/// Finds other sites by name, instead of through gateways.
#[derive(Default)]
pub(crate) struct Map {
    sites: Mutex<BTreeMap<String, TestSite>>,
}

/// The way from one site to all others.
struct MapPaths {
    from: SpiffeId,
    map: Arc<Map>,
}

impl MapPaths {
    async fn dial(&self, to: &SiteName, identity: Option<SpiffeId>) -> io::Result<Channel> {
        let site = self.map.sites.lock().unwrap().get(to.as_str()).cloned();
        let site = site.filter(|site| site.is_reachable(identity.is_some()));
        let site = site.ok_or_else(|| io::Error::other("refused: no_path"))?;
        Ok(site.channel(identity.map(|id| peer(id, None))).await)
    }
}

impl Paths for MapPaths {
    fn linked<'a>(
        &'a self,
        site: &'a SiteName,
        _: &'a TrustDomain,
    ) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(self.dial(site, Some(self.from.clone())))
    }

    fn join_door<'a>(&'a self, token: &'a Token) -> BoxFuture<'a, io::Result<Channel>> {
        Box::pin(self.dial(&token.site, None))
    }
}

/// A site with all services that this crate half serves.
#[derive(Clone)]
pub(crate) struct TestSite {
    pub(crate) site: Site,
    pub(crate) view: View,
    pub(crate) registry: Registry,
    pub(crate) discovery: Discovery,
    pub(crate) peering: Peering,
    pub(crate) links: Links,
    pub(crate) rotation: RootRotations,
    pub(crate) consuls: Consuls,
    pub(crate) drain: Drain,
    unreachable: Arc<Mutex<(bool, bool)>>,
    map: Arc<Map>,
    pub(crate) keys: Arc<tempfile::TempDir>,
}

/// A verified caller.
pub(crate) fn peer(id: SpiffeId, node: Option<&NodeId>) -> PeerIdentity {
    PeerIdentity {
        id,
        node: node.cloned(),
        serial: "01".into(),
        not_after: UnixTime::since_unix_epoch(Duration::from_secs(u32::MAX.into())),
    }
}

impl TestSite {
    pub(crate) fn new(name: &str, map: &Arc<Map>, terms: Terms) -> Self {
        Self::over(name, map, terms, None)
    }

    /// A site that reaches others by ways of its own.
    pub(crate) fn over(
        name: &str,
        map: &Arc<Map>,
        terms: Terms,
        paths: Option<Arc<dyn Paths>>,
    ) -> Self {
        let domain: TrustDomain = format!("{name}.example").parse().unwrap();
        let clock = Clock::system();
        let keys = tempfile::tempdir().unwrap();
        let root = CertificateAuthority::create(keys.path(), &domain, &clock).unwrap();
        let ca = CertificateAuthority::open(keys.path(), &domain, clock.clone()).unwrap();
        let store = MemoryStore::default();
        let trust_domain = domain.to_string();
        let created = SiteCreated { name: name.into(), trust_domain, root, ..Default::default() };
        Authority::create(&store, &clock, created).unwrap();
        let authority = Authority::open(store, clock).unwrap();
        let svid = ca.self_issue(&SpiffeId::federation(&domain)).unwrap();
        let site = Site {
            credentials: Credentials::new(Some(svid), trust(&authority.state())),
            ca: Arc::new(ca),
            address: "127.0.0.1:8446".into(),
            gateway_beside: None,
            authority,
        };
        let keys = Arc::new(keys);
        Self::start(site, keys, map, terms, paths)
    }

    /// Begins the processes of a site.
    fn start(
        site: Site,
        keys: Arc<tempfile::TempDir>,
        map: &Arc<Map>,
        terms: Terms,
        paths: Option<Arc<dyn Paths>>,
    ) -> Self {
        let name = site.authority.state().site().name.to_string();
        let drain = Drain::new();
        let federation_address = "127.0.0.1:8446".into();
        let config = ViewConfig { federation_address, terms, ..ViewConfig::default() };
        let view = View::new(site.authority.clone(), config);
        drain.spawn(view.clone().run(drain.clone()));
        let from = SpiffeId::federation(&site.authority.state().site().trust_domain);
        let paths = paths.unwrap_or_else(|| Arc::new(MapPaths { from, map: map.clone() }));
        let kept = Kept::new(keys.path());
        let discovery = Discovery::new(view.clone(), drain.clone());
        let (follow, ways) = (discovery.clone(), paths.clone());
        drain.spawn(replication::run(view.clone(), follow, ways, kept.clone(), drain.clone()));
        drain.spawn(kept.keep(view.clone(), drain.clone()));
        let peering = Peering::new(view.clone(), drain.clone());
        let patience = Patience {
            prove: Duration::from_secs(2),
            confirm: Duration::from_secs(3),
            come_back: Duration::from_secs(1),
        };
        let registry = Registry::new(view.clone(), own_ports(), drain.clone());
        let rotation = RootRotations::new(
            site.clone(),
            view.clone(),
            registry.clone(),
            discovery.clone(),
            peering.clone(),
        );
        drain.spawn(rotation.clone().run(drain.clone()));
        let test = Self {
            registry,
            rotation,
            consuls: Consuls::default(),
            discovery,
            links: Links::new(site.clone(), view.clone(), peering.clone(), paths, drain.clone())
                .with_patience(patience),
            peering,
            view,
            site,
            drain,
            unreachable: Arc::default(),
            map: map.clone(),
            keys,
        };
        map.sites.lock().unwrap().insert(name, test.clone());
        test
    }

    /// A new process on the same log.
    pub(crate) fn restart(&self) -> Self {
        self.restart_over(None)
    }

    /// The same, with ways of its own.
    pub(crate) fn restart_over(&self, paths: Option<Arc<dyn Paths>>) -> Self {
        self.drain.start();
        Self::start(self.site.clone(), self.keys.clone(), &self.map, Terms::default(), paths)
    }

    /// A site that no other knows, with one gateway.
    pub(crate) async fn alone() -> Self {
        let site = Self::new("west", &Arc::default(), short());
        site.add_gateway("gw-1").await;
        site
    }

    /// The same, and nodes do not lapse while the test runs.
    pub(crate) async fn lasting() -> Self {
        let site = Self::new("west", &Arc::default(), Terms::default());
        site.add_gateway("gw-1").await;
        site
    }

    fn is_reachable(&self, linked: bool) -> bool {
        let unreachable = self.unreachable.lock().unwrap();
        !(unreachable.0 || linked && unreachable.1)
    }

    /// Whether others find any way here.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        self.unreachable.lock().unwrap().0 = !reachable;
    }

    /// Whether they do through the gateways.
    pub(crate) fn set_reachable_when_linked(&self, reachable: bool) {
        self.unreachable.lock().unwrap().1 = !reachable;
    }

    pub(crate) async fn commit(&self, events: Vec<Event>) {
        let decide = |_: &State| Ok::<_, Infallible>((events, ()));
        self.site.authority.commit("test", decide).await.unwrap();
    }

    pub(crate) fn state(&self) -> Arc<State> {
        self.site.authority.state()
    }

    pub(crate) fn domain(&self) -> TrustDomain {
        self.state().site().trust_domain.clone()
    }

    pub(crate) async fn add_gateway(&self, id: &str) {
        let gateway = Gateway {
            id: id.into(),
            site: self.state().site().name.to_string(),
            quic_addresses: vec!["gw.example:8443".into()],
            tls_addresses: vec!["gw.example:8443".into()],
        };
        self.commit(vec![Event::GatewaySeen(GatewaySeen { gateway: Some(gateway) })]).await;
    }

    /// Joins a machine whose workloads are `shop/orders`.
    pub(crate) async fn join(&self, i: u32) -> NodeId {
        let node: NodeId = format!("00000000-0000-4000-8000-{i:012x}").parse().unwrap();
        let grants = Grants {
            namespace: "shop".into(),
            account: "orders".into(),
            services: vec!["*.shop".into()],
        };
        let id = node.to_string();
        let joined = NodeJoined { id, grants: Some(grants), ..NodeJoined::default() };
        self.commit(vec![Event::NodeJoined(joined)]).await;
        node
    }

    /// A connection as the agent of a node.
    pub(crate) async fn as_agent(&self, node: &NodeId) -> Channel {
        self.channel(Some(peer(SpiffeId::node(&self.domain(), node), Some(node)))).await
    }

    /// A connection as the proxy of a node.
    pub(crate) async fn as_proxy(&self, node: &NodeId) -> Channel {
        let id = SpiffeId::workload(&self.domain(), "shop", "orders").unwrap();
        self.channel(Some(peer(id, Some(node)))).await
    }

    /// The value of a figure that operators scrape, with its labels.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let admin = AdminService {
            site: self.site.clone(),
            view: self.view.clone(),
            registry: self.registry.clone(),
            discovery: self.discovery.clone(),
            links: self.links.clone(),
            rotation: self.rotation.clone(),
            roles: Roles::default(),
            consuls: self.consuls.clone(),
        };
        let (mut registry, mut text) =
            (prometheus_client::registry::Registry::default(), String::new());
        crate::metrics::register(&mut registry, &admin, &Default::default());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find_map(|line| {
            line.strip_prefix("isthmus_federation_")?.strip_prefix(name)?.strip_prefix(' ')
        });
        line.map(|value| value.parse().unwrap())
    }

    /// A connection as a gateway.
    pub(crate) async fn as_gateway(&self) -> Channel {
        self.channel(Some(peer(SpiffeId::gateway(&self.domain()), None))).await
    }

    /// A connection as anybody, or nobody.
    pub(crate) async fn channel(&self, caller: Option<PeerIdentity>) -> Channel {
        connect(Services {
            caller,
            registry: RegistryServer::new(self.registry.clone()),
            discovery: DiscoveryServer::new(self.discovery.clone()),
            peering: PeeringServer::new(self.peering.clone()),
            join: JoinServer::new(LinkDoor(self.links.clone())),
        })
        .await
    }
}

/// A connection to services of its own.
pub(crate) async fn connect<S>(services: S) -> Channel
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let (near, far) = duplex(1 << 16);
    let incoming = tokio_stream::once(Ok::<_, io::Error>(Far(far)));
    tokio::spawn(Server::builder().serve_with_incoming(services, incoming));
    let connector = Once(Arc::new(Mutex::new(Some(near))));
    Endpoint::from_static("http://federation").connect_with_connector(connector).await.unwrap()
}

/// Only the part of `Join` that links use.
struct LinkDoor(Links);

#[tonic::async_trait]
impl join_server::Join for LinkDoor {
    async fn join_node(
        &self,
        _: Request<v1::JoinNodeRequest>,
    ) -> Result<Response<v1::JoinNodeResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn redeem_link(
        &self,
        request: Request<v1::RedeemLinkRequest>,
    ) -> Result<Response<v1::RedeemLinkResponse>, Status> {
        self.0.redeem(request.into_inner()).await.map(Response::new)
    }
}

#[derive(Clone)]
struct Services {
    caller: Option<PeerIdentity>,
    registry: RegistryServer<Registry>,
    discovery: DiscoveryServer<Discovery>,
    peering: PeeringServer<Peering>,
    join: JoinServer<LinkDoor>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = tonic::codegen::BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(caller) = &self.caller {
            request.extensions_mut().insert(caller.clone());
        }
        let path = request.uri().path().to_owned();
        let name = path.split('/').nth(1).unwrap_or_default();
        match (name, &self.caller) {
            (RegistryServer::<Registry>::NAME, Some(_)) => self.registry.call(request),
            (DiscoveryServer::<Discovery>::NAME, Some(_)) => self.discovery.call(request),
            (PeeringServer::<Peering>::NAME, Some(_)) => self.peering.call(request),
            (JoinServer::<LinkDoor>::NAME, None) => self.join.call(request),
            _ => Box::pin(async { Ok(Status::unimplemented("no such service").into_http()) }),
        }
    }
}

/// The server's end of a connection.
struct Far(DuplexStream);

impl Connected for Far {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Far {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Far {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A connector that has one connection to give.
#[derive(Clone)]
struct Once(Arc<Mutex<Option<DuplexStream>>>);

impl Service<Uri> for Once {
    type Response = TokioIo<DuplexStream>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let near = self.0.lock().unwrap().take();
        std::future::ready(near.map(TokioIo::new).ok_or_else(|| io::Error::other("gone")))
    }
}
