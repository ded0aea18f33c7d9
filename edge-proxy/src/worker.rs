//! One data worker: its listeners, pools and what it has seen of endpoints.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_api::ALPN_INNER;
use mesh_core::{Allowed, Endpoint, Snapshot, route::Destination};
use mesh_runtime::clock;
use mesh_tunnel::{admission::Places, budget::Budget, net::Listener};

use crate::{
    app::{App, Shared},
    apps::Apps,
    changes::{self, Changes},
    config::{Config, ServiceListener},
    gate::{self, Gate},
    http1::Buffers,
    inbound::{self, MAX_HALF_OPEN, MAX_HALF_OPEN_PER_SOURCE},
    outbound::{
        hold::Waiting,
        listen::{self, Purpose},
        loads::Loads,
        mirror::Mirrors,
        pool::Pool,
        probe,
        protect::Protections,
    },
    resolved::Resolved,
    scratch::Spare,
    tunnels::Tunnels,
    view::{View, Viewer},
};

/// How often pools are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The state of one worker. All of its tasks run in one current-thread
/// runtime; its locks are never contended.
pub struct Worker {
    /// 0 up to the configured number of workers.
    pub index: usize,
    /// What every part of the process shares.
    pub shared: Shared,
    /// Tunnels to the gateways of the own site.
    pub tunnels: Tunnels,
    /// What it has seen of endpoints.
    pub loads: Arc<Loads>,
    /// What it allows itself at services.
    pub protections: Protections,
    /// What requests are counted in.
    pub resolved: Resolved,
    /// Copies of requests in flight.
    pub mirrors: Mirrors,
    /// Warm inner sessions.
    pub pool: Pool,
    /// Who waits for somebody to be there again.
    pub waiting: Waiting,
    /// Memory of requests in flight.
    pub scratch: Spare,
    /// Memory of HTTP/1 connections.
    pub buffers: Arc<Buffers>,
    /// Connections to applications.
    pub apps: Arc<Apps>,
    /// TLS of the mesh's door.
    pub inner_server: Arc<rustls::ServerConfig>,
    /// How often policies have changed.
    pub changes: Changes,
    /// Handshakes that may be under way.
    pub half_open: Arc<Places>,
    /// Time to accept callers of the mesh.
    pub door: Budget,
    /// Time for their handshakes.
    pub handshakes: Budget,
    /// Where requests begin.
    pub gate: Arc<Gate>,
    view: Mutex<Option<Arc<View>>>,
    /// Tells it from the workers of other machines where they are not known.
    seed: u64,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).finish_non_exhaustive()
    }
}

/// Where a worker listens, or shall listen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bound {
    /// The HTTP proxy listener.
    pub http: Option<SocketAddr>,
    /// Captured traffic.
    pub transparent: Option<SocketAddr>,
    /// Captured on its way to applications of this host.
    pub inbound_transparent: Option<SocketAddr>,
    /// The mesh's door.
    pub inbound: Option<SocketAddr>,
    /// Explicit listeners, in the order of the configuration.
    pub listeners: Vec<SocketAddr>,
    /// Those by the name that TLS clients ask for, in the same order.
    pub sni: Vec<SocketAddr>,
    /// Those for clients that are not of the mesh, in the same order.
    pub plaintext: Vec<SocketAddr>,
}

impl Bound {
    /// As configured; ports may be 0.
    pub fn wanted(config: &Config) -> Self {
        Self {
            http: config.http_listener,
            transparent: config.transparent,
            inbound_transparent: config.inbound_transparent,
            inbound: config.inbound,
            listeners: config.listeners.iter().map(|listener| listener.listen).collect(),
            sni: config.sni_listeners.iter().map(|listener| listener.listen).collect(),
            plaintext: config.inbound_plaintext.iter().map(|listener| listener.listen).collect(),
        }
    }

    /// One line for each listener: with port 0 nobody else knows where it is.
    pub fn log(&self) {
        let named = [
            ("http", self.http),
            ("transparent", self.transparent),
            ("inbound_transparent", self.inbound_transparent),
            ("inbound", self.inbound),
        ];
        for (name, addr) in named {
            if let Some(addr) = addr {
                log::info!(listener = name, addr:% = addr; "listening");
            }
        }
        for addr in &self.listeners {
            log::info!(listener = "service", addr:% = addr; "listening");
        }
        for addr in &self.sni {
            log::info!(listener = "sni", addr:% = addr; "listening");
        }
        for addr in &self.plaintext {
            log::info!(listener = "plaintext", addr:% = addr; "listening");
        }
    }
}

impl Worker {
    /// Nothing is bound yet.
    pub fn new(app: &App, index: usize) -> Arc<Self> {
        let Shared { net, drain, .. } = &app.shared;
        let buffers = Buffers::new();
        Arc::new(Self {
            index,
            shared: app.shared.clone(),
            tunnels: app.tunnels.at(index),
            loads: Arc::default(),
            protections: Protections::default(),
            resolved: Resolved::default(),
            mirrors: Mirrors::default(),
            pool: Pool::default(),
            waiting: Waiting::default(),
            scratch: Spare::default(),
            apps: Apps::new(
                net.clone(),
                drain.clone(),
                buffers.clone(),
                app.shared.transition.clone(),
            ),
            buffers,
            inner_server: app.shared.credentials.server(&[ALPN_INNER], Allowed::Known),
            changes: Changes::default(),
            half_open: Places::new(MAX_HALF_OPEN, MAX_HALF_OPEN_PER_SOURCE),
            door: Budget::of_door(&**net),
            handshakes: Budget::of_handshakes(&**net),
            gate: Arc::default(),
            view: Mutex::default(),
            seed: rand::random(),
        })
    }

    /// Binds `wanted` and starts the accept loops; returns where they listen.
    pub async fn start(self: &Arc<Self>, wanted: &Bound) -> io::Result<Bound> {
        let mut bound = Bound::default();
        let http = self.bind(wanted.http, &mut bound.http).await?;
        let transparent = self.bind(wanted.transparent, &mut bound.transparent).await?;
        let transparent6 = self.bind_twin(bound.transparent).await?;
        let inward = self.bind(wanted.inbound_transparent, &mut bound.inbound_transparent).await?;
        let inbound = self.bind(wanted.inbound, &mut bound.inbound).await?;
        let mut outbound = vec![(http, Purpose::Proxy), (transparent, Purpose::Captured)];
        outbound.push((transparent6, Purpose::Captured));
        outbound.push((inward, Purpose::CapturedInbound));
        let configured = self.shared.config.listeners.iter().enumerate();
        for (addr, (place, configured)) in wanted.listeners.iter().zip(configured) {
            let mut at = None;
            let purpose = self.of_listener(place, configured)?;
            outbound.push((self.bind(Some(*addr), &mut at).await?, purpose));
            bound.listeners.extend(at);
        }
        for (addr, configured) in wanted.sni.iter().zip(&self.shared.config.sni_listeners) {
            let mut at = None;
            let listener = self.bind(Some(*addr), &mut at).await?;
            outbound.push((listener, Purpose::Sni(configured.port)));
            bound.sni.extend(at);
        }
        for (addr, configured) in wanted.plaintext.iter().zip(&self.shared.config.inbound_plaintext)
        {
            let mut at = None;
            let destination = self.wanted(configured);
            outbound.push((self.bind(Some(*addr), &mut at).await?, Purpose::Own(destination)));
            bound.plaintext.extend(at);
        }
        // Everything is bound: nothing is accepted by half a worker.
        for (listener, purpose) in outbound {
            if let Some(listener) = listener {
                self.shared.drain.spawn(listen::accept(self.clone(), listener, purpose));
            }
        }
        if let Some(listener) = inbound {
            let accepting = self.door.spend_on(inbound::accept(self.clone(), listener));
            self.shared.drain.spawn(async {
                let ((), _spent) = accepting.await;
            });
        }
        self.shared.drain.spawn_beside(changes::watch(self.clone()));
        self.shared.drain.spawn_beside(sweep(self.clone()));
        self.shared.drain.spawn_beside(gate::mind(self.clone()));
        self.shared.drain.spawn_beside(probe::run(self.clone()));
        Ok(bound)
    }

    /// One that must have TLS is never there without.
    fn of_listener(&self, place: usize, configured: &ServiceListener) -> io::Result<Purpose> {
        let destination = self.wanted(configured);
        if configured.tls.is_none() {
            return Ok(Purpose::Service(destination, configured.manner));
        }
        let door = self.shared.transition.door(place);
        let door = door.ok_or_else(|| io::Error::other("its certificate has not been read"))?;
        Ok(Purpose::Transition(destination, configured.manner, door))
    }

    /// What a listener is for; discovery hears that it is wanted.
    fn wanted(&self, listener: &ServiceListener) -> Destination {
        let ServiceListener { service, port, .. } = listener.clone();
        self.shared.snapshot.add_wanted(&service);
        Destination { service, port }
    }

    async fn bind(
        &self,
        wanted: Option<SocketAddr>,
        bound: &mut Option<SocketAddr>,
    ) -> io::Result<Option<Box<dyn Listener>>> {
        let Some(addr) = wanted else { return Ok(None) };
        let listener = self.shared.net.bind(addr, self.is_shared(addr)).await?;
        *bound = Some(listener.local_addr()?);
        Ok(Some(listener))
    }

    /// Workers share an address, and all addresses (`0.0.0.0`, `::`) a port with
    /// single ones: a connection comes to the listener that is closest to where
    /// it goes.
    fn is_shared(&self, addr: SocketAddr) -> bool {
        let config = &self.shared.config;
        let is_beside = |other: &ServiceListener| {
            let both = [other.listen.ip(), addr.ip()];
            other.listen.port() == addr.port()
                && both[0] != both[1]
                && both.iter().any(|ip| ip.is_unspecified())
        };
        config.workers > 1 || config.listeners.iter().any(is_beside)
    }

    /// The kernel redirects captured IPv6 to `::1`: whoever listens for captured
    /// connections at 127.0.0.1 does so there, too, where the machine has it.
    async fn bind_twin(&self, of: Option<SocketAddr>) -> io::Result<Option<Box<dyn Listener>>> {
        let Some(of) = of.filter(|of| of.ip() == Ipv4Addr::LOCALHOST) else { return Ok(None) };
        let twin = SocketAddr::from((Ipv6Addr::LOCALHOST, of.port()));
        match self.bind(Some(twin), &mut None).await {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                log::info!(error:% = error; "IPv6 cannot be captured on this machine");
                Ok(None)
            }
            bound => bound,
        }
    }

    /// What is derived from `snapshot`; made anew only when it is another one.
    pub fn view(&self, snapshot: &Arc<Snapshot>) -> Arc<View> {
        let own = self.shared.own.load();
        let mut held = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(view) if view.is_of(snapshot, &own) => view.clone(),
            earlier => {
                let viewer = Viewer {
                    loads: self.loads.clone(),
                    own,
                    seed: self.seed,
                    worker: (self.index, self.shared.config.workers),
                };
                let view = Arc::new(View::new(snapshot, viewer, earlier.as_deref()));
                *held = Some(view.clone());
                view
            }
        }
    }

    /// Whether an endpoint is one of this proxy's own: of this site, with this
    /// very identity, and on this machine as far as both know it.
    pub fn is_own(&self, snapshot: &Snapshot, endpoint: &Endpoint) -> bool {
        let same_node = match (&self.shared.own.load().node, &endpoint.node) {
            (Some(own), Some(its)) => own == its,
            (None, _) | (_, None) => true,
        };
        let same_identity = || {
            let svid = self.shared.credentials.svid();
            svid.is_some_and(|svid| Some(&svid.id) == endpoint.identity.as_ref())
        };
        endpoint.site == snapshot.site && same_node && same_identity()
    }
}

/// Closes what is idle and forgets what is gone.
async fn sweep(worker: Arc<Worker>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let snapshot = worker.shared.snapshot.load();
        worker.pool.sweep(snapshot.as_deref());
        worker.apps.sweep();
        worker.resolved.sweep(clock::monotonic());
        if worker.index == 0 {
            worker.shared.metrics.sweep(clock::monotonic());
        }
        if let Some(snapshot) = snapshot {
            worker.shared.reached.sweep(&snapshot);
            worker.loads.sweep(&snapshot);
            worker.protections.sweep(&snapshot);
            worker.shared.limits.sweep(&snapshot);
        }
    }
}
