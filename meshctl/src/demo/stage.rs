//! From nothing to a mesh that answers: processes started, sites made,
//! machines joined, sites linked. Every command is one a user would type.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::v1;
use mesh_runtime::drain::Drain;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Instant,
};

use super::{
    blackhole::Blackhole,
    child::{Child, Spec},
    load,
    shell::Shell,
    tell::{SITES_VARIABLE, Teller},
    world::{EAST, MACHINES, Site, World},
};
use crate::{endpoint::Run, failure::Failure};

/// What one step of the start may take; a debug build on a busy laptop needs
/// two or three seconds.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(25);
/// How long processes may take to end before they are killed.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// The running mesh.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) children: Vec<Child>,
    pub(crate) blackholes: Vec<Blackhole>,
    /// Ends the blackholes.
    pub(crate) drain: Drain,
}

impl Stage {
    /// Nothing runs yet.
    pub(crate) fn empty() -> Self {
        Self { children: Vec::new(), blackholes: Vec::new(), drain: Drain::new() }
    }

    /// Starts everything; returns when each flow has had one success.
    pub(crate) async fn raise(&mut self, world: &World, teller: &Teller) -> Result<(), Failure> {
        let shell = Shell { teller, sites: world.dir().to_owned() };
        teller.line(&format!("$ export {SITES_VARIABLE}={}", world.dir().display()));
        self.start_sites(world, &shell).await?;
        self.join_machines(world, &shell).await?;
        self.link_sites(&shell).await?;
        self.share_services(world, &shell).await?;
        let failing = load::until_ready(&world.flows(), STEP_TIMEOUT).await;
        if let Some((flow, error)) = failing.first() {
            self.all_alive()?;
            let remedy = "again with --keep-logs, then look at log/ in its directory";
            return Err(Failure::new(format!("flow {flow}: no success within 20 s: {error}"))
                .remedy(remedy));
        }
        teller.done("every flow answers");
        Ok(())
    }

    async fn start_sites(&mut self, world: &World, shell: &Shell<'_>) -> Result<(), Failure> {
        let sites = [super::world::WEST, EAST];
        for site in sites {
            shell.run(&world.site_init(site)).await?;
            self.start(&world.federation(site))?;
            if world.block_udp {
                let hole = Blackhole::open(world.silent(site), &self.drain).await?;
                self.blackholes.push(hole);
            }
        }
        for machine in MACHINES {
            for spec in world.machine(machine) {
                self.start(&spec)?;
            }
        }
        for site in sites {
            self.socket(&world.run_dir(site.name).join("federation.sock")).await?;
            self.start(&world.gateway(site))?;
        }
        shell.teller.done("federation answers in west and east");
        for site in sites {
            self.ready(world.gateway_admin(site), &format!("gateway of {}", site.name)).await?;
        }
        shell.teller.done("gateways are ready");
        Ok(())
    }

    async fn join_machines(&mut self, world: &World, shell: &Shell<'_>) -> Result<(), Failure> {
        for machine in MACHINES {
            self.socket(&world.run_dir(machine.name).join("agent.sock")).await?;
            let (create, join) = world.join(machine);
            shell.pipe(&create, &join).await?;
        }
        for machine in MACHINES {
            self.ready(world.proxy_admin(machine), &format!("proxy of {}", machine.name)).await?;
        }
        shell.teller.done("machines have joined");
        Ok(())
    }

    async fn link_sites(&mut self, shell: &Shell<'_>) -> Result<(), Failure> {
        shell.pipe("--site east link token --site west", "--site west link cluster east -").await?;
        shell.teller.done("west and east are linked");
        Ok(())
    }

    async fn share_services(&mut self, world: &World, shell: &Shell<'_>) -> Result<(), Failure> {
        let shared = [
            (EAST, ["payments.prod", "catalog.shop"]),
            (super::world::WEST, ["orders.shop", "catalog.shop"]),
        ];
        for (site, services) in shared {
            self.registered(world, site, &services).await?;
            for service in services {
                shell.run(&format!("--site {} service export {service}", site.name)).await?;
            }
        }
        shell.teller.done("services are exported");
        Ok(())
    }

    /// Starts a process that must stay.
    pub(crate) fn start(&mut self, spec: &Spec) -> Result<(), Failure> {
        self.children.push(Child::start(spec)?);
        Ok(())
    }

    /// Waits until somebody listens on a Unix socket.
    async fn socket(&mut self, path: &Path) -> Result<(), Failure> {
        let path: PathBuf = path.to_owned();
        let what = path.display().to_string();
        self.until(&what, || async { tokio::net::UnixStream::connect(&path).await.is_ok() }).await
    }

    /// Waits until `/ready` answers 200.
    async fn ready(&mut self, admin: SocketAddr, what: &str) -> Result<(), Failure> {
        self.until(what, || async { is_ready(admin).await.unwrap_or(false) }).await
    }

    /// Waits until federation knows services with a healthy endpoint.
    async fn registered(
        &mut self,
        world: &World,
        site: Site,
        services: &[&str],
    ) -> Result<(), Failure> {
        let run = Run::choose(Some(&world.run_dir(site.name)), None, None)?;
        let what = format!("{} registered in {}", services.join(", "), site.name);
        self.until(&what, || async {
            let known = healthy_services(&run).await.unwrap_or_default();
            services.iter().all(|service| known.iter().any(|name| name == service))
        })
        .await
    }

    async fn until<F, W>(&mut self, what: &str, mut holds: W) -> Result<(), Failure>
    where
        F: Future<Output = bool>,
        W: FnMut() -> F,
    {
        let end = Instant::now() + STEP_TIMEOUT;
        while !holds().await {
            self.all_alive()?;
            if Instant::now() >= end {
                let remedy = "again with --keep-logs, then look at log/ in its directory";
                return Err(Failure::new(format!("{what}: not within 20 s")).remedy(remedy));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Fails if a process has ended that nobody stopped.
    pub(crate) fn all_alive(&mut self) -> Result<(), Failure> {
        for child in &mut self.children {
            if let Some(status) = child.ended() {
                return Err(child.failure(&status.to_string()));
            }
        }
        Ok(())
    }

    /// The process with this name leaves the stage: it may end now.
    pub(crate) fn release(&mut self, prefix: &str) -> Vec<Child> {
        let (released, kept) = std::mem::take(&mut self.children)
            .into_iter()
            .partition(|child| child.name.starts_with(prefix));
        self.children = kept;
        released
    }

    /// Ends everything, politely first.
    pub(crate) async fn lower(&mut self) {
        for child in &self.children {
            child.signal(rustix::process::Signal::TERM);
        }
        let end = Instant::now() + END_TIMEOUT;
        for child in &mut self.children {
            child.end_within(end.saturating_duration_since(Instant::now())).await;
        }
        self.children.clear();
        self.drain.finish(END_TIMEOUT).await;
    }
}

async fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(1024).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

async fn healthy_services(run: &Run) -> Result<Vec<String>, Failure> {
    let answer = run.admin().await?.list_services(v1::ListServicesRequest {}).await?.into_inner();
    let healthy = answer.services.into_iter().filter(|info| info.healthy > 0);
    Ok(healthy.filter_map(|info| Some(info.service?.name)).collect())
}
