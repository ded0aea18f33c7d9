//! What the site publishes right now, as a sequence of revisions.
//!
//! The view is made from the durable [`State`](crate::authority::State) and
//! from [`Live`]: whoever changes either wakes one task, which waits a moment
//! for more, renders what may have changed (the endpoints of some services, or
//! everything) and appends what differs to a [`Feed`].
//! There is one feed for the machines of the site and one per link.
//!
//! Revisions are `(epoch of the store, n)`. `n` begins at the milliseconds
//! since the Unix epoch and grows by at most 50 a second, so that no number is
//! used twice for different states although the view is not durable.

mod inner;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_api::v1::{self, Delta, Health, ResourceKind, Revision, TunnelStatus};
use mesh_core::{NodeId, ServiceName, SiteName};
use mesh_manifest::{AccessPolicy, Problem};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use self::inner::{Inner, Touched};
use crate::{
    authority::{Authority, State},
    feed::{Everything, Key, Lens, Resources},
    leases::{Liveness, Terms},
    live::{GatewayLive, LinkLive, Live, Reported},
    registration::decide_deregister_all,
    render::Note,
    virtual_address::VirtualRange,
};

/// How long a change waits for others to travel with it: at least the first,
/// at most the second, in between as long as rendering takes.
const COALESCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(50));
/// How long a new process may lack what linked sites export before that is
/// published as the truth.
const SETTLE: Duration = Duration::from_secs(5);
/// How often leases are looked at.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// Later than this, and it was this process that stood still.
const STOOD_STILL: Duration = Duration::from_secs(2);
/// How long the sessions of a gateway outlive its stream: it may be
/// reconnecting.
const GATEWAY_GRACE: Duration = Duration::from_secs(3);

/// What the view needs to know beside the authority.
#[derive(Debug, Clone)]
pub struct ViewConfig {
    /// `ip:port` where gateways of this site find federation's gRPC listener.
    pub federation_address: String,
    /// Where services get their virtual addresses.
    pub virtual_range: VirtualRange,
    /// When nodes lapse.
    pub terms: Terms,
    /// Who may call services that no document speaks of.
    pub default_access: AccessPolicy,
}

impl Default for ViewConfig {
    fn default() -> Self {
        Self {
            federation_address: String::new(),
            virtual_range: VirtualRange::default(),
            terms: Terms::default(),
            default_access: AccessPolicy::AllAuthenticated,
        }
    }
}

/// The published view. Clones share it.
#[derive(Clone)]
pub struct View {
    shared: Arc<Shared>,
}

struct Shared {
    authority: Authority,
    config: ViewConfig,
    inner: Mutex<Inner>,
    dirty: Notify,
    revision: watch::Sender<Revision>,
    started: Instant,
    lapses: AtomicU64,
}

impl View {
    /// Renders the first view; [`View::run`] keeps it up to date.
    pub fn new(authority: Authority, config: ViewConfig) -> Self {
        let n = u64::try_from(authority.clock().unix_ms()).unwrap_or_default();
        let inner = Inner::new(&config, authority.epoch(), n);
        let revision = watch::Sender::new(inner.site.revision());
        let (inner, dirty) = (Mutex::new(inner), Notify::new());
        let started = Instant::now();
        let lapses = AtomicU64::new(0);
        let shared = Shared { authority, config, inner, dirty, revision, started, lapses };
        let view = Self { shared: Arc::new(shared) };
        view.refresh();
        view
    }

    /// Publishes changes and watches leases until the process stops.
    pub async fn run(self, drain: Drain) {
        let mut durable = self.shared.authority.revision();
        let mut tick = interval(LEASE_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = COALESCE.0;
        let mut looked = Instant::now();
        loop {
            tokio::select! {
                () = drain.draining() => return,
                changed = durable.changed() => if changed.is_err() { return },
                () = self.shared.dirty.notified() => {}
                _ = tick.tick() => {
                    self.look_at_leases(looked.elapsed()).await;
                    looked = Instant::now();
                    continue;
                }
            }
            sleep(pause).await;
            durable.mark_unchanged();
            let began = Instant::now();
            self.refresh();
            pause = began.elapsed().clamp(COALESCE.0, COALESCE.1);
        }
    }

    /// The newest revision of the site's view; wakes on every change.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.shared.revision.subscribe()
    }

    /// Whether what linked sites export is known again after a start. Who has
    /// a state of an earlier process keeps it until then, or its remote
    /// endpoints would go and come back.
    pub fn is_settled(&self) -> bool {
        self.shared.started.elapsed() >= SETTLE || self.lock().settled
    }

    /// The truth that it is made from.
    pub fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// See [`Feed::delta`].
    pub fn delta(&self, have: Option<&Revision>, lens: &dyn Lens) -> Option<Delta> {
        self.lock().site.delta(have, lens)
    }

    /// The sequence of a trust domain's bundle, and the revision that it came
    /// with: who has acknowledged that, or a later one, verifies with it.
    pub fn bundle_since(&self, trust_domain: &str) -> Option<(u64, Revision)> {
        self.lock().bundles.get(trust_domain).copied()
    }

    /// Whether a difference can be made from this revision.
    pub fn covers(&self, have: &Revision) -> bool {
        self.lock().site.covers(have)
    }

    /// For how long there has been something newer than `have`; zero if there
    /// is nothing.
    pub fn lag(&self, have: &Revision) -> Duration {
        let since = self.lock().site.newer_since(have);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Nodes whose endpoints were taken out because nobody heard of them, since
    /// the start.
    pub fn lapses(&self) -> u64 {
        self.shared.lapses.load(Ordering::Relaxed)
    }

    /// Reads the newest resources; must be quick.
    pub fn read<T>(&self, read: impl FnOnce(&Resources, Revision) -> T) -> T {
        let inner = self.lock();
        read(inner.site.resources(), inner.site.revision())
    }

    /// The whole view.
    pub fn snapshot(&self) -> Delta {
        self.delta(None, &Everything).unwrap_or_default()
    }

    /// See [`Feed::delta`], of what is exported to a linked site; `None` also
    /// if there is no such link.
    pub fn export_delta(
        &self,
        site: &SiteName,
        have: Option<&Revision>,
        lens: &dyn Lens,
    ) -> Option<Delta> {
        self.lock().exports.get(site)?.delta(have, lens)
    }

    /// (name, number) of the ports of a service; `None` if there is none.
    pub fn service_ports(&self, name: &str) -> Option<Vec<(String, u16)>> {
        let key = Key { kind: ResourceKind::Service, name: name.into() };
        let port =
            |port: &v1::Port| (port.name.clone(), u16::try_from(port.number).unwrap_or_default());
        self.read(|resources, _| match &resources.get(&key)?.resource {
            Some(v1::resource::Resource::Service(service)) => {
                Some(service.ports.iter().map(port).collect())
            }
            _ => None,
        })
    }

    /// What could not be merged or imported.
    pub fn notes(&self) -> Vec<Note> {
        self.lock().notes.clone()
    }

    /// What of which document about traffic is not in force.
    pub fn problems(&self) -> Vec<Problem> {
        self.lock().problems.clone()
    }

    // ---- what is live ----------------------------------------------------

    /// The agent of a node has said something.
    pub fn heard_agent(&self, node: &NodeId) {
        self.heard_agents([node]);
    }

    /// Somebody vouches for all of these nodes.
    pub fn heard_agents<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeId>) {
        let now = Instant::now();
        let mut inner = self.lock();
        let mut changed = Vec::new();
        for node in nodes {
            if inner.leases.heard_agent(node, now) {
                changed.push(node);
            }
        }
        self.touch(inner, changed);
    }

    /// The proxy of a node has said something.
    pub fn heard_proxy(&self, node: &NodeId) {
        let mut inner = self.lock();
        let changed = inner.leases.heard_proxy(node, Instant::now());
        self.touch(inner, changed.then_some(node));
    }

    /// The agent of a node goes away and means to be back in time.
    pub fn leaving(&self, node: &NodeId, within: Duration) {
        let mut inner = self.lock();
        let changed = inner.leases.leaving(node, within, Instant::now());
        self.touch(inner, changed.then_some(node));
    }

    /// An agent reports on one of its instances. Instances that are not
    /// registered are not remembered.
    pub fn report_health(&self, node: &NodeId, instance: &str, health: Health, detail: &str) {
        let key = (node.clone(), Arc::from(instance));
        if !self.shared.authority.state().registrations.contains_key(&key) {
            return;
        }
        let detail = detail.chars().take(256).collect();
        let reported = Reported { health, detail };
        let mut inner = self.lock();
        let old = inner.live.health.insert(key, reported);
        let changed = old.is_none_or(|old| old.health != health);
        self.touch(inner, changed.then_some(node));
    }

    /// A gateway says which nodes it holds sessions of, and how its tunnels do.
    /// One that was replaced, and serves what it has to its end, says nothing for
    /// the one that follows: nobody reaches its sessions any more.
    pub fn report_sessions(
        &self,
        gateway: &str,
        stream: u64,
        nodes: BTreeSet<NodeId>,
        tunnels: Vec<TunnelStatus>,
    ) {
        let mut inner = self.lock();
        let known = inner.live.gateways.entry(gateway.to_owned()).or_default();
        if known.stream > stream && known.gone.is_none() {
            return;
        }
        let changed: Vec<_> = known.nodes.symmetric_difference(&nodes).cloned().collect();
        *known = GatewayLive { nodes, tunnels, stream, gone: None };
        self.touch(inner, &changed);
    }

    /// A gateway's stream has ended.
    pub fn gateway_gone(&self, gateway: &str, stream: u64) {
        if let Some(known) = self.lock().live.gateways.get_mut(gateway)
            && known.stream == stream
        {
            known.gone = Some(Instant::now());
        }
    }

    /// Changes what is known over one link; true wakes the view.
    pub fn change_link(&self, site: &SiteName, change: impl FnOnce(&mut LinkLive) -> bool) {
        let mut inner = self.lock();
        if change(inner.live.links.entry(site.clone()).or_default()) {
            self.touch_all(inner);
        }
    }

    /// Reads what is live; must be quick.
    pub fn read_live<T>(&self, read: impl FnOnce(&Live) -> T) -> T {
        read(&self.lock().live)
    }

    /// What is thought of a node, and how long it has been silent.
    pub fn liveness(&self, node: &NodeId) -> (Liveness, Option<Duration>) {
        let inner = self.lock();
        let silent = inner.leases.last_heard(node).map(|at| at.elapsed());
        (inner.leases.liveness(node), silent)
    }

    /// How many nodes a mass lapse holds back, if there is one.
    pub fn mass_lapse(&self) -> Option<usize> {
        self.lock().leases.mass()
    }

    // ---- rendering -------------------------------------------------------

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something live of these nodes is another.
    fn touch<'a>(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        nodes: impl IntoIterator<Item = &'a NodeId>,
    ) {
        if inner.touched.add(nodes) {
            drop(inner);
            self.shared.dirty.notify_one();
        }
    }

    fn touch_all(&self, mut inner: MutexGuard<'_, Inner>) {
        inner.touched = Touched::Anywhere;
        drop(inner);
        self.shared.dirty.notify_one();
    }

    /// Renders what may have changed; publishes it if it has.
    fn refresh(&self) {
        let state = self.shared.authority.state();
        let mut inner = self.lock();
        let changed = inner.refresh(&state, &self.shared.config);
        let revision = inner.site.revision();
        drop(inner);
        if changed {
            self.shared.revision.send_replace(revision);
        }
    }

    /// What time alone changes.
    async fn look_at_leases(&self, since_last: Duration) {
        let tick = {
            let mut inner = self.lock();
            let now = Instant::now();
            if since_last >= STOOD_STILL {
                log::warn!(ms = since_last.as_millis() as u64; "this process stood still");
                inner.leases.stood_still(since_last);
            }
            let Inner { leases, registered, live, .. } = &mut *inner;
            let tick = leases.tick(registered, now);
            let before = live.gateways.len();
            live.gateways.retain(|_, gateway| {
                gateway.gone.is_none_or(|gone| now.duration_since(gone) < GATEWAY_GRACE)
            });
            if tick.changed || live.gateways.len() != before {
                self.touch_all(inner);
            }
            tick
        };
        self.shared.lapses.fetch_add(tick.lapsed.len() as u64, Ordering::Relaxed);
        for node in &tick.lapsed {
            log::warn!(node = node.as_str(); "node lapsed: its endpoints are no longer published");
        }
        match tick.mass {
            Some(true) => log::error!(
                "more than 30 % of the nodes fell silent at once: none is removed, their health is \
                 unknown; check the network between them and federation"
            ),
            Some(false) => log::warn!("most nodes are back: leases lapse one by one again"),
            None => {}
        }
        for (node, reason) in tick.deregister {
            self.deregister(&node, reason).await;
        }
    }

    async fn deregister(&self, node: &NodeId, reason: &'static str) {
        let decide = |state: &State| {
            Ok::<_, std::convert::Infallible>((decide_deregister_all(state, node, reason), ()))
        };
        match self.shared.authority.commit("federation", decide).await {
            Ok(()) => log::info!(node = node.as_str(), reason = reason; "node deregistered"),
            Err(error) => {
                log::error!(node = node.as_str(), error:% = error; "cannot deregister a node");
            }
        }
    }
}

/// Names of services that a node's proxies need in any case: those it backs.
pub fn services_of(state: &State, node: &NodeId) -> BTreeSet<ServiceName> {
    state.registrations_of(node).map(|registration| registration.service.clone()).collect()
}
