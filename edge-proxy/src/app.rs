//! Wires the process: one control runtime on the main thread, and data workers
//! with a runtime, listeners and pools of their own.

use std::{io, sync::Arc, thread, time::Duration};

use anyhow::Context;
use mesh_core::Reason;
use mesh_runtime::{
    admin::{self, Admin, Condition, Readiness},
    clock,
    drain::Drain,
    memory::limit,
    process,
    pulse::Pulses,
    systemd::{self, State},
    usage::Usage,
};
use mesh_tunnel::{Credentials, Net, Trust};
use prometheus_client::collector::Collector;
use tokio::sync::{mpsc, oneshot};

use crate::{
    access_log::AccessLog,
    audit::Audit,
    config::{Config, IdentitySource, Role, SnapshotSource},
    control, discovery,
    files::snapshot,
    gateway::Gateway,
    handover::{HeirNet, Kind, Predecessor, Requests, Sockets, Wanted},
    identity,
    inbound::limits::Limits,
    metrics::{Metrics, Taken, itself::Itself, traffic},
    names,
    outbound::hold::Reached,
    own::{Own, OwnCell},
    refusal::Refusal,
    snapshot_cell::{Complete, SnapshotCell},
    stats::Stats,
    statsd::Statsd,
    tap::Tap,
    trace::{self, Tracer},
    transition::{self, Transition},
    tunnels::Tunnels,
    worker::{Bound, Worker},
};

/// How long the last access-log lines may take to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long workers may take to end once everything was told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a successor may take until it is ready; its predecessor serves
/// meanwhile.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer it waits for its tunnels.
const TUNNELS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long connections that have waited for this process wait until it is
/// ready, too: the identity on disk is used after less.
const RESTARTED_TIMEOUT: Duration = Duration::from_secs(3);
/// How long clients may take to hear that they should come anew, where new
/// connections wait for the process after this one: an idle one hears with its
/// next request.
const PARTING: Duration = Duration::from_secs(5);
/// How often that is looked at.
const STOP_POLL: Duration = Duration::from_millis(5);

/// What every part of the process shares; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shared {
    /// As checked at the start; it never changes.
    pub config: Arc<Config>,
    /// Real or simulated.
    pub net: Arc<dyn Net>,
    /// Presented and believed; replaced by [`identity`] and [`discovery`].
    pub credentials: Arc<Credentials>,
    /// Decided from; replaced by [`discovery`].
    pub snapshot: SnapshotCell,
    /// Site, node, gateway id; replaced by [`identity`].
    pub own: OwnCell,
    /// What must hold before this proxy is ready.
    pub readiness: Readiness,
    /// What federation is told of the traffic.
    pub stats: Stats,
    /// Stop accepting, then stop.
    pub drain: Drain,
    /// Whether the workers run.
    pub pulses: Pulses,
    /// Which endpoints could be reached.
    pub reached: Reached,
    /// What services allow their callers, counted over all workers.
    pub limits: Limits,
    /// What audited ports would have refused.
    pub audit: Audit,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// One line per request.
    pub access_log: AccessLog,
    /// Spans, if traces are wanted.
    pub tracer: Option<Tracer>,
    /// Figures as statsd has them, if they are wanted.
    pub statsd: Option<Statsd>,
    /// Requests as they end, for those who watch.
    pub tap: Tap,
    /// TLS with certificates that are not of the mesh.
    pub transition: Transition,
}

impl Shared {
    /// Whether there is memory for one more `what`; none is counted.
    pub fn has_memory(&self, what: Taken) -> bool {
        let is_short = limit::is_short();
        if is_short {
            self.metrics.memory_refused(what);
        }
        !is_short
    }

    /// Whether there is memory for one more request.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn check_memory(&self) -> Result<(), Refusal> {
        let text = "this proxy holds as much memory as it may";
        let has_memory = self.has_memory(Taken::Request);
        has_memory.then_some(()).ok_or_else(|| Refusal::new(Reason::Overloaded, text))
    }

    /// Without identity or snapshot yet; opens the access log.
    pub fn new(
        config: Config,
        net: Arc<dyn Net>,
        credentials: Arc<Credentials>,
    ) -> io::Result<Self> {
        let shown = credentials.clone();
        let usage = Usage::new(move || traffic::workload(&shown));
        let snapshot = SnapshotCell::new();
        let itself = Itself { credentials: credentials.clone(), snapshot: snapshot.clone() };
        let transition = Transition::default();
        let read: Vec<Box<dyn Collector>> =
            vec![Box::new(usage), Box::new(itself), Box::new(transition.clone())];
        let metrics = Arc::new(Metrics::new(read));
        let dropped = metrics.access_log_dropped.clone();
        let access_log = AccessLog::open(&config.access_log, config.access_log_format, dropped)?;
        let spans_dropped = metrics.spans_dropped.clone();
        let tracer = config.tracing.as_ref().map(|tracing| Tracer::new(tracing, spans_dropped));
        let lines_dropped = metrics.statsd_dropped.clone();
        let statsd = config.statsd.map(|to| Statsd::open(to, lines_dropped)).transpose()?;
        let gateway = config.gateway_id.clone();
        let own = Own { locality: config.locality.clone(), gateway, ..Own::default() };
        Ok(Self {
            config: Arc::new(config),
            net,
            credentials,
            snapshot,
            own: OwnCell::new(own),
            readiness: Readiness::new(),
            stats: Stats::default(),
            drain: Drain::new(),
            pulses: Pulses::default(),
            reached: Reached::default(),
            limits: Limits::default(),
            audit: Audit::default(),
            metrics,
            access_log,
            tracer,
            statsd,
            tap: Tap::default(),
            transition,
        })
    }
}

/// One proxy.
#[derive(Debug, Clone)]
pub struct App {
    /// What every part shares.
    pub shared: Shared,
    /// Tunnels to the gateways of the own site.
    pub tunnels: Tunnels,
    /// What the workers share in role gateway.
    pub gateway: Gateway,
}

/// Runs a whole process until it is told to stop.
///
/// # Errors
///
/// Something cannot be read or bound; nothing runs then.
pub fn run(config: Config) -> anyhow::Result<()> {
    process::current_thread()?.block_on(async {
        let (sockets, predecessor) = Predecessor::of_process()
            .context("cannot take over from the process that started this one")?;
        let successors = Requests::listen()?;
        let credentials = Credentials::new(None, Trust::default());
        let net = HeirNet::new(sockets.clone());
        let app = App::new(Shared::new(config, Arc::new(net.clone()), credentials)?);
        // Whoever asks before the other conditions are there is not told yes.
        let staying = app.shared.readiness.condition("staying");
        app.load_files()?;
        app.serve_admin(&net)?;
        if predecessor.is_none() {
            app.check_ports(&sockets).await?;
            control::start(&app.shared).await?;
        }
        let connections_wait = sockets.are_left();
        let (died, mut deaths) = mpsc::channel(1);
        let workers = app.start_workers(&died).await?;
        app.start_control(predecessor.is_some());
        app.keep_memory();
        app.report_draining(staying);
        if let Some(predecessor) = &predecessor {
            app.take_over(predecessor).await?;
            control::take_over(&app.shared).await;
        } else if connections_wait {
            // Who is not ready then says so to each of them.
            let _late = tokio::time::timeout(RESTARTED_TIMEOUT, app.shared.readiness.ready()).await;
        }
        net.open();
        app.shared.drain.spawn_beside(keep(
            app.shared.readiness.clone(),
            sockets.clone(),
            predecessor,
        ));
        log::info!(version = env!("CARGO_PKG_VERSION"), workers = workers.len(); "started");
        let Shared { config, drain, .. } = &app.shared;
        tokio::select! {
            terminated = process::until_terminated_if_alive(drain, || app.is_alive()) => {
                terminated?;
                app.part().await;
            }
            () = successors.until_replaced(&sockets, drain, config.handover_timeout) => {}
            Some(index) = deaths.recv() => log::error!(worker = index; "a worker has ended"),
        }
        app.stop(workers).await
    })
}

/// Has the service manager keep what this process listens at, once that is all
/// there is: a gateway's doors open when it has an identity.
async fn keep(readiness: Readiness, sockets: Sockets, predecessor: Option<Predecessor>) {
    readiness.ready().await;
    sockets.close_rest();
    let keeping = tokio::task::spawn_blocking(move || {
        if let Some(predecessor) = predecessor {
            predecessor.until_it_has_left();
            systemd::notify(&State::Ready);
            systemd::notify(&State::Watchdog);
        }
        sockets.keep();
    });
    if let Err(panic) = keeping.await {
        log::error!(error:% = panic; "a restart will refuse connections for a moment");
    }
}

impl App {
    /// Nothing runs yet.
    pub fn new(shared: Shared) -> Self {
        let tunnels = Tunnels::new(&shared);
        let gateway = Gateway::new(&shared);
        Self { shared, tunnels, gateway }
    }

    /// Certificates, identity and snapshot from files, where the configuration
    /// says so.
    fn load_files(&self) -> anyhow::Result<()> {
        let Shared { config, credentials, snapshot, own, .. } = &self.shared;
        self.shared.transition.load_doors(config, credentials)?;
        if let IdentitySource::Files(files) = &config.identity {
            let (svid, trust) = files.load()?;
            credentials.try_replace_svid(svid).context("identity.files: key and certificate")?;
            credentials.replace_trust(trust);
            let watch = files.clone().watch(credentials.clone());
            self.shared.drain.spawn_beside(watch);
        }
        if let SnapshotSource::File { path, set } = &config.snapshot {
            let (read, origins) = snapshot::load(path, set, &credentials.trust().bundles)?;
            self.shared.transition.load_origins(origins)?;
            if matches!(config.identity, IdentitySource::None) {
                snapshot::check_plaintext(&read, path)?;
            }
            let (site, domain) = (Some(read.site.clone()), Some(read.trust_domain.clone()));
            own.store(Own { site, trust_domain: domain, ..Own::clone(&own.load()) });
            snapshot.store(Arc::new(read), Complete::All);
        }
        Ok(())
    }

    /// Waits until this proxy can do what its predecessor does.
    async fn take_over(&self, predecessor: &Predecessor) -> anyhow::Result<()> {
        let readiness = &self.shared.readiness;
        let ready = tokio::time::timeout(READY_TIMEOUT, readiness.ready()).await;
        if ready.is_err() {
            let why = readiness.check().err().unwrap_or_default();
            anyhow::bail!("not ready after {} s: {why}", READY_TIMEOUT.as_secs());
        }
        // Whoever is called through its tunnels is found by them. Gateways that
        // cannot be reached are none of the predecessor's advantages.
        let _late = tokio::time::timeout(TUNNELS_TIMEOUT, self.tunnels.settled()).await;
        predecessor.tell_ready().context("the process that started this one is gone")
    }

    fn serve_admin(&self, net: &HeirNet) -> anyhow::Result<()> {
        let Some(addr) = self.shared.config.admin else { return Ok(()) };
        let listener = net
            .listen(addr, false)
            .with_context(|| format!("admin: cannot listen on {addr}; choose another or `off`"))?;
        log::info!(listener = "admin", addr:% = listener.local_addr()?; "listening");
        let registry = self.shared.metrics.registry.clone();
        let readiness = self.shared.readiness.clone();
        let shown = Admin { registry, readiness };
        let (net, drain) = (net.clone(), self.shared.drain.clone());
        self.shared.drain.spawn_beside(async move {
            net.opened().await;
            tokio::select! {
                () = admin::serve(listener, shown, drain.clone()) => {}
                // Whoever asks is answered by the successor.
                () = drain.leaving() => {}
            }
        });
        Ok(())
    }

    /// To the watchdog, which asks twice as often as it must hear.
    fn is_alive(&self) -> bool {
        systemd::watchdog_interval().is_none_or(|interval| self.shared.pulses.are_within(interval))
    }

    /// Lets go of clients before the end, where the service manager has the
    /// listening sockets, or somebody else will listen: what they ask meanwhile
    /// is answered, and told to come anew. Elsewhere nobody would be there for them, and the peers of a
    /// gateway go to another one as soon as they hear. Callers of the mesh are
    /// served until the very end: they might have nowhere else to go.
    async fn part(&self) {
        let Shared { config, drain, .. } = &self.shared;
        if !systemd::listens() && !config.has_successor {
            return;
        }
        let drained = Drain::longest(config.longest_drain());
        let longest = PARTING + drained + STOP_TIMEOUT + FLUSH_TIMEOUT;
        systemd::notify(&State::Extend(longest + STOP_TIMEOUT));
        if config.role != Role::Gateway {
            drain.part();
            // Whoever is left is told with the drain.
            let _left = tokio::time::timeout(PARTING, drain.parted()).await;
        }
    }

    /// The workers share their ports (`SO_REUSEPORT`), and would share them
    /// with another proxy of the same user: nobody else may listen there, but
    /// where the service manager has kept a port for us.
    async fn check_ports(&self, sockets: &Sockets) -> io::Result<()> {
        let Shared { config, net, .. } = &self.shared;
        let bound = Bound::wanted(config);
        let Bound { http, transparent, inbound_transparent, inbound, .. } = bound;
        let Bound { listeners, sni, plaintext, .. } = bound;
        let doors = config.gateway.as_ref();
        let own = [http, transparent, inbound_transparent, inbound, doors.map(|doors| doors.tls)];
        for addr in own.into_iter().flatten().chain(listeners).chain(sni).chain(plaintext) {
            if !sockets.has(Wanted { kind: Kind::Tcp, addr }) {
                net.is_free(addr)?;
            }
        }
        if let Some(addr) = doors.and_then(|doors| doors.quic)
            && !sockets.has(Wanted { kind: Kind::Udp, addr })
        {
            drop(net.udp(addr, false).await?);
        }
        Ok(())
    }

    /// The first worker finds the ports, the others share them.
    async fn start_workers(
        &self,
        died: &mpsc::Sender<usize>,
    ) -> anyhow::Result<Vec<thread::JoinHandle<()>>> {
        let mut wanted = Bound::wanted(&self.shared.config);
        let mut workers = Vec::new();
        for index in 0..self.shared.config.workers {
            let (bound, told) = oneshot::channel();
            let (app, wanted_now, died) = (self.clone(), wanted, died.clone());
            let builder = thread::Builder::new().name(format!("worker-{index}"));
            workers.push(builder.spawn(move || {
                app.run_worker(index, wanted_now, bound);
                // The first is enough, and nobody listens once the process stops.
                let _told = died.try_send(index);
            })?);
            wanted = told.await.context("a worker ended while starting")??;
        }
        wanted.log();
        Ok(workers)
    }

    fn run_worker(&self, index: usize, wanted: Bound, told: oneshot::Sender<io::Result<Bound>>) {
        let runtime = match process::current_thread() {
            Ok(runtime) => runtime,
            Err(error) => return drop(told.send(Err(error))),
        };
        runtime.block_on(async {
            let started = self.start_worker(index, wanted).await;
            let running = started.is_ok();
            if let Some(interval) = systemd::watchdog_interval() {
                self.shared.drain.spawn_beside(self.shared.pulses.beat(interval / 2));
            }
            if told.send(started).is_ok() && running {
                self.shared.drain.stopping().await;
            }
        });
        // Tasks that do not yield must not hold up the end.
        runtime.shutdown_background();
    }

    /// The tasks that are no worker's: identity and discovery. Call it inside
    /// the control runtime. `shares_identity` while a predecessor lives on.
    fn start_control(&self, shares_identity: bool) {
        identity::start(&self.shared, shares_identity);
        discovery::start(&self.shared, &self.tunnels, &self.gateway);
        names::start(&self.shared);
        self.gateway.start_control();
        trace::start(&self.shared);
        transition::start(&self.shared);
    }

    fn keep_memory(&self) {
        let limit = self.shared.config.memory_limit.unwrap_or_else(limit::of_machine);
        self.shared.drain.spawn_beside(async move { match limit::keep(limit).await {} });
    }

    /// What is going away takes nothing new. Identity and snapshot have
    /// conditions of their own where they do not come from files.
    fn report_draining(&self, staying: Condition) {
        staying.holds();
        let drain = self.shared.drain.clone();
        self.shared.drain.spawn_beside(async move {
            drain.draining().await;
            staying.fails("stopping");
        });
    }

    async fn stop(self, workers: Vec<thread::JoinHandle<()>>) -> anyhow::Result<()> {
        let Shared { drain, config, access_log, .. } = &self.shared;
        let left = drain.finish(config.longest_drain()).await;
        let cut = left + self.shared.metrics.cut_stopping();
        let deadline = clock::monotonic() + STOP_TIMEOUT;
        while clock::monotonic() < deadline && !workers.iter().all(thread::JoinHandle::is_finished)
        {
            tokio::time::sleep(STOP_POLL).await;
        }
        // A worker that still runs is stuck; the process ends without it.
        let failed =
            workers.into_iter().map(|worker| worker.is_finished() && worker.join().is_ok());
        let failed = failed.filter(|ended| !ended).count();
        access_log.flush(FLUSH_TIMEOUT);
        systemd::notify(&State::Status(&format!("stopped; {cut} connections were cut")));
        log::info!(cut = cut; "stopped");
        anyhow::ensure!(failed == 0, "{failed} workers have failed; see the log");
        Ok(())
    }

    /// One worker and the control tasks in the runtime of the caller, who ends
    /// them with [`Drain::finish`]. For simulation and tests.
    pub async fn run_in_place(&self) -> io::Result<Bound> {
        if self.shared.config.role == Role::Gateway {
            self.gateway.probe().await?;
        }
        let Shared { config, credentials, .. } = &self.shared;
        self.shared.transition.load_doors(config, credentials).map_err(io::Error::other)?;
        self.start_control(false);
        self.start_worker(0, Bound::wanted(&self.shared.config)).await
    }

    /// Binds the listeners of one worker and starts its tasks, in the runtime
    /// of the caller.
    async fn start_worker(&self, index: usize, wanted: Bound) -> io::Result<Bound> {
        let worker = Worker::new(self, index);
        let bound = worker.start(&wanted).await?;
        self.tunnels.start(&worker);
        if self.shared.config.role == Role::Gateway {
            self.gateway.start(&worker);
        }
        Ok(bound)
    }
}
