//! A federation from top to bottom: what it opens, in which order, and how it
//! ends.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use mesh_api::v1::{
    GatewaySeen, admin_server::AdminServer, authority_record::Event, cluster_server::ClusterServer,
    discovery_server::DiscoveryServer, join_server::JoinServer,
    node_identity_server::NodeIdentityServer, peering_server::PeeringServer,
    registry_server::RegistryServer, workload_identity_server::WorkloadIdentityServer,
};
use mesh_core::NodeId;
use mesh_runtime::{
    admin::{Admin, Readiness},
    config::ConfigError,
    drain::Drain,
    process,
};
use mesh_tunnel::{Credentials, Net, RealNet, unix};
use prometheus_client::registry::Registry as Metrics;
use tokio::net::TcpListener;
use tonic::transport::Server;

use crate::{
    admin::AdminService,
    authority::{Authority, LogStore, State, Store},
    ca::CertificateAuthority,
    clock::Clock,
    cluster::Cluster,
    config::Config,
    consul::{self, Consuls},
    discovery::Discovery,
    door,
    join::JoinService,
    jwt,
    kept::Kept,
    leases::Terms,
    links::Links,
    local_identity::LocalIdentityService,
    metrics,
    node_identity::NodeIdentityService,
    own_identity,
    paths::{GatewayPaths, Paths},
    peering::Peering,
    pod_identity::{PodIdentityService, Reviewer},
    refusal::Never,
    registration::OwnPorts,
    registry::Registry,
    replication,
    rotation::RootRotations,
    services::{JoinServices, Services},
    site::{Site, trust},
    view::{View, ViewConfig},
};

/// How long running calls may take to end after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// A unary call that takes longer has lost its way.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// The longest message of somebody without a certificate, in bytes.
const MAX_JOIN_MESSAGE: usize = 256 * 1024;
/// The longest message of a node, in bytes.
const MAX_MESSAGE: usize = 1 << 20;
/// The longest message of the cluster's controller, in bytes.
const MAX_CLUSTER_MESSAGE: usize = 8 << 20;
/// Calls that one connection may have open.
const MAX_STREAMS: u32 = 256;
/// A connection that does not answer a ping sent this often ...
const KEEPALIVE: Duration = Duration::from_secs(10);
/// ... within this time is dead.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a federation is made of, besides its configuration.
pub struct Parts<S> {
    /// Holds the log.
    pub store: S,
    /// Directory of the keys.
    pub keys: std::path::PathBuf,
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// The wall clock.
    pub clock: Clock,
}

/// A federation that runs.
pub struct Running {
    /// What operators can do with it.
    pub admin: AdminService,
    /// What the controller of the site's cluster talks to, if there is one.
    pub cluster: Option<Cluster>,
    /// The gRPC listener.
    pub grpc: SocketAddr,
    /// What it counts.
    pub metrics: Metrics,
}

/// Runs until SIGTERM, then drains.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let drain = Drain::new();
    let net = Arc::new(RealNet);
    let parts = Parts {
        store: LogStore::open(&config.state)?,
        keys: config.state.join("keys"),
        net: net.clone(),
        clock: Clock::system(),
    };
    let running = start(&config, parts, &drain).await?;
    let listener = TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("admin: cannot listen on {}; is it in use?", config.admin))?;
    local_doors(&running.admin, &config, &*net, &drain).await?;
    if let Some(cluster) = running.cluster {
        cluster_door(cluster, &config, &*net, &drain).await?;
    }
    let admin = Admin { registry: Arc::new(running.metrics), readiness: Readiness::new() };
    drain.spawn_beside(mesh_runtime::admin::serve(listener, admin, drain.clone()));
    log::info!(site = config.site.as_str(), trust_domain = config.trust_domain.as_str(),
        grpc:% = running.grpc, admin:% = config.admin; "federation is up");
    process::until_terminated(&drain).await?;
    let cut = drain.finish(DRAIN_DEADLINE).await;
    log::info!(cut; "federation ends");
    Ok(())
}

/// Opens log and keys and starts everything but the local doors.
pub async fn start<S: Store>(
    config: &Config,
    parts: Parts<S>,
    drain: &Drain,
) -> anyhow::Result<Running> {
    let authority = Authority::open(parts.store, parts.clock.clone())?;
    check_site(config, &authority.state())?;
    let ca = CertificateAuthority::open(&parts.keys, &config.trust_domain, parts.clock)?
        .with_workload_life(config.workload_life);
    {
        // Where a rotation was when this process ended, or before it began.
        let state = authority.state();
        ca.sign_under(state.signing_root())?;
        ca.keep_only(&state.site().bundle.roots)?;
    }
    if let Err(error) = ca.renew_issuing() {
        log::error!(error:%; "the issuing CA is due and cannot be renewed");
    }
    publish_gateways(&authority, config).await?;
    let site = Site {
        credentials: Credentials::new(None, trust(&authority.state())),
        authority,
        ca: Arc::new(ca),
        address: config.address.to_string().into(),
        gateway_beside: config.gateway_beside(),
    };
    if let Err(error) = jwt::follow(&site).await {
        log::error!(error:%; "no key for JWT-SVIDs is made or published");
    }
    own_identity::refresh(&site)?;
    drain.spawn(own_identity::keep(site.clone(), drain.clone()));
    drain.spawn(jwt::keep(site.clone(), drain.clone()));
    let listener =
        parts.net.bind(config.listen, false).await.with_context(|| {
            format!("listen: cannot listen on {}; is it in use?", config.listen)
        })?;
    let grpc = listener.local_addr()?;
    let own_ports = own_ports(config, grpc, parts.net.clone());
    let reviewer = config.cluster.as_ref();
    let reviewer =
        reviewer.map(|_| Reviewer::new(parts.net.clone(), config.run.join("reviewer.sock")));
    let pods = PodIdentityService::new(site.clone(), reviewer, config.gateway_account());
    let admin = publish(&site, config, parts.net, own_ports.clone(), drain);
    let cluster = config.cluster.as_ref().map(|_| {
        Cluster::new(admin.view.clone(), own_ports, config.gateway_account(), drain.clone())
    });
    let own = config.trust_domain.clone();
    let at_door = metrics::Refused::default();
    let incoming = door::open(listener, site.credentials.clone(), own, at_door.clone(), drain);
    serve(&admin, pods, incoming, drain);
    let mut registry = Metrics::default();
    metrics::register(&mut registry, &admin, &at_door);
    Ok(Running { admin, cluster, grpc, metrics: registry })
}

fn own_ports(config: &Config, grpc: SocketAddr, net: Arc<dyn Net>) -> OwnPorts {
    let listens = Arc::new([grpc, config.listen, config.address, config.admin]);
    OwnPorts { listens, has: Arc::new(move |ip| net.has(ip)) }
}

/// The view, who writes to it and who reads it.
fn publish(
    site: &Site,
    config: &Config,
    net: Arc<dyn Net>,
    own_ports: OwnPorts,
    drain: &Drain,
) -> AdminService {
    let view = View::new(
        site.authority.clone(),
        ViewConfig {
            federation_address: site.address.to_string(),
            virtual_range: config.virtual_range,
            terms: Terms::default(),
            default_access: config.default_access,
        },
    );
    let paths: Arc<dyn Paths> = Arc::new(GatewayPaths::new(site.clone(), net));
    let peering = Peering::new(view.clone(), drain.clone());
    drain.spawn(view.clone().run(drain.clone()));
    let kept = Kept::new(&config.state);
    let discovery = Discovery::new(view.clone(), drain.clone());
    let (follow, ways) = (discovery.clone(), paths.clone());
    drain.spawn(replication::run(view.clone(), follow, ways, kept.clone(), drain.clone()));
    drain.spawn(kept.keep(view.clone(), drain.clone()));
    let consuls = Consuls::new(&config.consul);
    drain.spawn(consul::run(consuls.clone(), view.clone(), own_ports.clone(), drain.clone()));
    let registry = Registry::new(view.clone(), own_ports, drain.clone());
    let rotation = RootRotations::new(
        site.clone(),
        view.clone(),
        registry.clone(),
        discovery.clone(),
        peering.clone(),
    );
    drain.spawn(rotation.clone().run(drain.clone()));
    AdminService {
        site: site.clone(),
        registry,
        rotation,
        discovery,
        roles: config.roles.clone(),
        consuls,
        links: Links::new(site.clone(), view.clone(), peering, paths, drain.clone()),
        view,
    }
}

/// The log is the truth; a configuration for another site is a mistake.
fn check_site(config: &Config, state: &State) -> Result<(), ConfigError> {
    let (site, place) = (state.site(), config.state.display());
    let wrong = |key, written: &str, found: &str| {
        let problem = format!("says {written}, and {place} is {found}'s; correct it, or `state`");
        Err(ConfigError::meaning(&config.file, key, problem))
    };
    if site.name != config.site {
        return wrong("site", config.site.as_str(), site.name.as_str());
    }
    if site.trust_domain != config.trust_domain {
        return wrong("trust_domain", config.trust_domain.as_str(), site.trust_domain.as_str());
    }
    Ok(())
}

/// Makes the log say what the configuration says of the site's gateways.
async fn publish_gateways(authority: &Authority, config: &Config) -> anyhow::Result<()> {
    let decide = |state: &State| -> Result<_, Never> {
        let gone = state
            .gateways
            .values()
            .filter(|known| config.gateways.iter().all(|g| g.id != known.id));
        let gone = gone.map(|known| mesh_api::v1::Gateway {
            id: known.id.clone(),
            site: known.site.clone(),
            ..Default::default()
        });
        let is_known = |gateway: &&mesh_api::v1::Gateway| {
            state.gateways.get(&gateway.id).is_some_and(|known| **known == **gateway)
        };
        let new = config.gateways.iter().filter(|gateway| !is_known(gateway)).cloned();
        let seen = new.chain(gone).map(|g| Event::GatewaySeen(GatewaySeen { gateway: Some(g) }));
        Ok((seen.collect(), ()))
    };
    authority.commit("federation", decide).await?;
    Ok(())
}

/// Serves gRPC: one server for those who can prove who they are, one for those
/// who want to join.
fn serve(admin: &AdminService, pods: PodIdentityService, incoming: door::Incoming, drain: &Drain) {
    let (site, registry) = (&admin.site, admin.registry.clone());
    let boots = {
        let registry = registry.clone();
        Arc::new(move |node: &NodeId| registry.live_boot(node))
    };
    let node_identity = NodeIdentityService::new(site.clone(), boots);
    let services = Services {
        node_identity: NodeIdentityServer::new(node_identity)
            .max_decoding_message_size(MAX_MESSAGE),
        registry: RegistryServer::new(registry).max_decoding_message_size(MAX_MESSAGE),
        discovery: DiscoveryServer::new(admin.discovery.clone())
            .max_decoding_message_size(MAX_MESSAGE),
        peering: PeeringServer::new(admin.links.peering().clone())
            .max_decoding_message_size(MAX_MESSAGE),
        admin: AdminServer::new(admin.clone()).max_decoding_message_size(MAX_MESSAGE),
    };
    let proved = server().serve_with_incoming_shutdown(services, incoming.proved, draining(drain));
    let join = JoinServer::new(JoinService::new(site.clone(), admin.links.clone()))
        .max_decoding_message_size(MAX_JOIN_MESSAGE);
    let pods = WorkloadIdentityServer::new(pods).max_decoding_message_size(MAX_JOIN_MESSAGE);
    let services = JoinServices { join, pods };
    let joining =
        server().serve_with_incoming_shutdown(services, incoming.joining, draining(drain));
    drain.spawn(ended("gRPC", proved));
    drain.spawn(ended("joining", joining));
}

fn server() -> Server {
    Server::builder()
        .timeout(CALL_DEADLINE)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// The Unix sockets: `Admin` for operators, `WorkloadIdentity` for a gateway
/// on this host, who is told from others by its uid.
pub async fn local_doors(
    admin: &AdminService,
    config: &Config,
    net: &dyn Net,
    drain: &Drain,
) -> anyhow::Result<()> {
    let identity = net.bind_unix(&config.run.join("gateway-identity.sock"), 0o666).await?;
    let operators = net.bind_unix(&config.run.join("federation.sock"), 0o600).await?;
    let service = LocalIdentityService::new(admin.site.clone(), &config.gateway_uids);
    let identity = server().serve_with_incoming_shutdown(
        WorkloadIdentityServer::new(service).max_decoding_message_size(MAX_JOIN_MESSAGE),
        unix::incoming(identity),
        draining(drain),
    );
    let operators = server().serve_with_incoming_shutdown(
        AdminServer::new(admin.clone()).max_decoding_message_size(MAX_MESSAGE),
        unix::incoming(operators),
        draining(drain),
    );
    drain.spawn(ended("gateway identity", identity));
    drain.spawn(ended("admin", operators));
    Ok(())
}

/// The Unix socket of the cluster's controller, which is of our own user.
pub async fn cluster_door(
    cluster: Cluster,
    config: &Config,
    net: &dyn Net,
    drain: &Drain,
) -> anyhow::Result<()> {
    let socket = net.bind_unix(&config.run.join("cluster.sock"), 0o600).await?;
    let service = ClusterServer::new(cluster).max_decoding_message_size(MAX_CLUSTER_MESSAGE);
    let server =
        server().serve_with_incoming_shutdown(service, unix::incoming(socket), draining(drain));
    drain.spawn(ended("cluster", server));
    Ok(())
}

fn draining(drain: &Drain) -> impl Future<Output = ()> + Send + use<> {
    let drain = drain.clone();
    async move { drain.draining().await }
}

async fn ended<F>(what: &'static str, server: F)
where
    F: Future<Output = Result<(), tonic::transport::Error>> + Send,
{
    if let Err(error) = server.await {
        log::error!(server = what, error:% = error; "a server has ended");
    }
}
