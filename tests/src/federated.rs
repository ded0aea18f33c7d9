//! Two sites with all their processes, simulated: federations, gateways,
//! agents and proxies, each of the real code. Nothing is given to a proxy: it
//! gets its identity and its snapshot as on a machine.
//!
//! Site `west` has a machine `vm` that only dials out, `east` has `node` and
//! `spare`, which can be dialled. Each machine is a turmoil host, and so are
//! the federations and the gateways, which share a machine otherwise: they
//! fail one by one.

use std::{
    error::Error,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use edge_proxy::{
    app::{App, Shared},
    config::{Config as ProxyConfig, GatewayDoors, IdentitySource, Role, SnapshotSource},
};
use federation::{
    app::{self, Parts},
    authority::{Authority, MemoryStore},
    ca::CertificateAuthority,
    clock::Clock,
    config::{Config, ConfigFile, GatewayFile},
};
use mesh_api::v1::{
    self, admin_client::AdminClient, agent_client::AgentClient, resource::Resource,
};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{Credentials, Net, Trust, unix};
use tonic::transport::Channel;
use turmoil::Sim;

use crate::{
    apps::{serve_echo, serve_http},
    sim::{SimNet, set_clocks},
};

/// What a simulated process may end with.
pub type Failure = Box<dyn Error>;

/// The sites.
pub const SITES: [&str; 2] = ["west", "east"];
/// The machines with their sites, in the order in which they join, and whether
/// they can be dialled.
const MACHINES: [(&str, &str, bool); 3] =
    [("vm", "west", false), ("node", "east", true), ("spare", "east", true)];
/// The HTTP proxy listener of a machine.
const LISTENER: u16 = 4140;
/// The mesh's door of a machine.
const INBOUND: u16 = 4143;
/// The applications of a machine: HTTP, and echo on the port after it.
const APP: u16 = 8080;
/// Leads to `LISTENER`, from outside: [`door`].
const DOOR: u16 = 1;

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn any(port: u16) -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, port).into()
}

fn net() -> Arc<dyn Net> {
    Arc::new(SimNet::default())
}

/// The proxy listener of a machine, for the test's client, which is another
/// simulated host.
pub fn door(machine: &str) -> SocketAddr {
    SocketAddr::new(turmoil::lookup(machine), DOOR)
}

/// Lets other simulated hosts use the loopback listener of this one.
pub async fn open_door(listener: SocketAddr) -> io::Result<()> {
    let door = net().bind(any(DOOR), false).await?;
    loop {
        let (mut outside, _) = door.accept().await?;
        tokio::spawn(async move {
            if let Ok(mut inside) = net().dial(listener).await {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            }
        });
    }
}

/// What is on the disks of both sites. Clones share it.
#[derive(Clone)]
pub struct Disks(Arc<tempfile::TempDir>);

impl Disks {
    fn of(&self, host: &str) -> PathBuf {
        self.0.path().join(host)
    }

    /// A Unix socket of a host.
    fn socket(&self, host: &str, name: &str) -> PathBuf {
        self.of(host).join("run").join(name)
    }

    /// Describes a service of a machine, as its operator would: HTTP on port
    /// 80, TCP on port 9000.
    pub fn describe(&self, machine: &str, service: &str, namespace: &str) {
        let text = format!(
            "service: {service}\nnamespace: {namespace}\nports:\n\
             - {{ name: http, port: 80, target: {APP}, protocol: http }}\n\
             - {{ name: tcp, port: 9000, target: {}, protocol: tcp }}\n",
            APP + 1
        );
        let dir = self.of(machine).join("services.d");
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join(format!("{service}.yaml")), text).expect("a file");
    }

    /// The machine offers this service no longer.
    pub fn withdraw(&self, machine: &str, service: &str) {
        let file = self.of(machine).join(format!("services.d/{service}.yaml"));
        fs::remove_file(file).expect("it was described");
    }

    /// As an operator on federation's host.
    pub async fn admin(&self, site: &str) -> Result<AdminClient<Channel>, Failure> {
        let socket = self.socket(&format!("{site}-fed"), "federation.sock");
        Ok(AdminClient::new(unix::channel_over(net(), &socket).await?))
    }

    /// Endpoints of a service, as every proxy of the site is told of them.
    pub async fn endpoints(&self, site: &str, service: &str) -> Result<Vec<v1::Endpoint>, Failure> {
        let mut admin = self.admin(site).await?;
        let snapshot = admin.read_snapshot(v1::ReadSnapshotRequest {}).await?.into_inner();
        let endpoint = |resource: v1::Resource| match resource.resource {
            Some(Resource::Endpoint(endpoint)) if endpoint.service == service => Some(endpoint),
            _ => None,
        };
        Ok(snapshot.upsert.into_iter().filter_map(endpoint).collect())
    }

    /// Makes the machine a node of its site; its workloads are
    /// `<namespace>/<account>`.
    pub async fn join(&self, machine: &str, namespace: &str, account: &str) -> Result<(), Failure> {
        let (_, site, _) = MACHINES.iter().find(|(name, ..)| *name == machine).expect("known");
        let request = v1::CreateTokenRequest {
            namespace: namespace.into(),
            account: account.into(),
            services: vec![format!("*.{namespace}")],
            uses: 1,
            ttl_s: 900,
            gateway: false,
        };
        let token = self.admin(site).await?.create_token(request).await?.into_inner().token;
        let socket = self.socket(machine, "agent.sock");
        let mut agent = AgentClient::new(unix::channel_over(net(), &socket).await?);
        let request = v1::JoinSiteRequest { token };
        let mut progress = agent.join_site(request).await?.into_inner();
        while let Some(step) = progress.message().await? {
            log::info!("join {machine}: {}", step.step);
        }
        Ok(())
    }

    /// Links west with east; west dials.
    pub async fn link(&self) -> Result<(), Failure> {
        let request = v1::CreateLinkTokenRequest { site: "west".into(), ttl_s: 900 };
        let token = self.admin("east").await?.create_link_token(request).await?.into_inner().token;
        let request = v1::LinkClusterRequest { site: "east".into(), token, ..Default::default() };
        let mut progress = self.admin("west").await?.link_cluster(request).await?.into_inner();
        while let Some(step) = progress.message().await? {
            log::info!("link: {}", step.step);
        }
        Ok(())
    }

    /// Exports a service to every linked site.
    pub async fn export(&self, site: &str, service: &str) -> Result<(), Failure> {
        let request = v1::ExportServiceRequest { service: service.into(), sites: Vec::new() };
        self.admin(site).await?.export_service(request).await?;
        Ok(())
    }
}

/// Adds every host of both sites. The sites are new: nobody has joined, and
/// they are not linked.
pub fn add_sites(sim: &mut Sim<'static>) -> Disks {
    let disks = Disks(Arc::new(tempfile::tempdir().expect("a directory")));
    for site in SITES {
        let store = MemoryStore::default();
        let config = make_site(sim, &disks, site, &store);
        let host = format!("{site}-fed");
        sim.host(host, move || federation(config.clone(), store.clone()));
        let kept = disks.clone();
        sim.host(format!("{site}-gw"), move || gateway(kept.clone(), site));
    }
    for (machine, _, dialled) in MACHINES {
        let address = dialled.then(|| sim.lookup(machine));
        let kept = disks.clone();
        sim.host(machine, move || self::machine(kept.clone(), machine, address));
    }
    disks
}

/// What `federation init` does, with the log in memory.
fn make_site(sim: &Sim<'_>, disks: &Disks, site: &str, store: &MemoryStore) -> Config {
    let host = format!("{site}-fed");
    let gateway = format!("{site}-gw:8443");
    let written = ConfigFile {
        state: disks.of(&host),
        run: disks.of(&host).join("run"),
        listen: any(8446),
        address: Some(SocketAddr::new(sim.lookup(host.as_str()), 8446)),
        gateways: vec![GatewayFile {
            id: "gw-1".into(),
            quic: vec![gateway.clone()],
            tls: vec![gateway],
        }],
        ..ConfigFile::new(site.into(), format!("{site}.example"))
    };
    let config = Config::check(written, "federation.yaml").expect("a configuration");
    let (keys, clock) = (config.state.join("keys"), Clock::system());
    fs::create_dir_all(&keys).expect("a directory");
    let root = CertificateAuthority::create(&keys, &config.trust_domain, &clock).expect("keys");
    let created = v1::SiteCreated {
        name: config.site.to_string(),
        trust_domain: config.trust_domain.to_string(),
        root,
        restored: None,
    };
    Authority::create(store, &clock, created).expect("memory does not fail");
    config
}

async fn federation(config: Config, store: MemoryStore) -> Result<(), Failure> {
    set_clocks().await;
    let drain = Drain::new();
    let (keys, clock) = (config.state.join("keys"), Clock::system());
    let parts = Parts { store, keys, net: net(), clock };
    let running = app::start(&config, parts, &drain).await?;
    app::local_doors(&running.admin, &config, &SimNet::default(), &drain).await?;
    std::future::pending().await
}

async fn gateway(disks: Disks, site: &str) -> Result<(), Failure> {
    set_clocks().await;
    let socket = disks.socket(&format!("{site}-fed"), "gateway-identity.sock");
    let doors = GatewayDoors { quic: Some(any(8443)), tls: any(8443) };
    let config = ProxyConfig { gateway: Some(doors), ..proxy_config(Role::Gateway, socket) };
    start_proxy(config).await?;
    std::future::pending().await
}

/// Agent, proxy and applications of one machine.
async fn machine(disks: Disks, name: &'static str, address: Option<IpAddr>) -> Result<(), Failure> {
    set_clocks().await;
    let dir = disks.of(name);
    let flags = vm_agent::config::Flags {
        state: Some(dir.join("state")),
        run: Some(dir.join("run")),
        services: Some(dir.join("services.d")),
        advertise: address.map(|ip| SocketAddr::new(ip, INBOUND)),
        ..Default::default()
    };
    // Without a machine-id each of them gets one of its own.
    let config = vm_agent::config::Config {
        machine_id_file: dir.join("no-machine-id"),
        ..vm_agent::config::Config::load(&flags)?
    };
    let agent = vm_agent::app::App::start(config, net(), Drain::new()).await?;
    start_proxy(ProxyConfig {
        http_listener: Some(local(LISTENER)),
        inbound: address.map(|_| any(INBOUND)),
        state: Some(dir.join("proxy")),
        ..proxy_config(Role::Node, disks.socket(name, "identity.sock"))
    })
    .await?;
    tokio::spawn(serve_http(net(), local(APP), name));
    tokio::spawn(serve_echo(net(), local(APP + 1)));
    tokio::spawn(open_door(local(LISTENER)));
    std::future::pending::<()>().await;
    drop(agent);
    Ok(())
}

fn proxy_config(role: Role, identity: PathBuf) -> ProxyConfig {
    ProxyConfig {
        identity: IdentitySource::Socket(identity),
        snapshot: SnapshotSource::Federation,
        ..ProxyConfig::given(role)
    }
}

async fn start_proxy(config: ProxyConfig) -> io::Result<()> {
    let credentials = Credentials::new(None, Trust::default());
    App::new(Shared::new(config, net(), credentials)?).run_in_place().await?;
    Ok(())
}

/// What most tests begin with: both sites, linked; `orders.shop` on `vm` and
/// `payments.prod` on `node`, each exported to the other; `spare` has joined
/// and offers nothing. Takes less than a minute of virtual time.
pub async fn bring_up(disks: &Disks) -> Result<(), Failure> {
    disks.describe("vm", "orders", "shop");
    disks.describe("node", "payments", "prod");
    let up = async {
        while disks.admin("west").await.is_err() || disks.admin("east").await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Machines join through gateways, which get their identities first.
        tokio::time::sleep(Duration::from_secs(3)).await;
        disks.join("vm", "shop", "orders").await?;
        disks.join("node", "prod", "payments").await?;
        disks.join("spare", "prod", "payments").await?;
        disks.link().await?;
        disks.export("west", "orders.shop").await?;
        disks.export("east", "payments.prod").await
    };
    tokio::time::timeout(Duration::from_secs(60), up).await?
}
