//! Which endpoint takes an attempt, and what comes of it: a [`Balancer`] per
//! port of a service and worker, and, apart from them, the ways to other
//! sites. Everything is decided in `mesh_core::balance`; here are the clock
//! and the locks, which nobody contends for.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use mesh_core::{
    Endpoint, Snapshot,
    balance::{Backing, Balancer, End, Paths, Slot, policy::Affinity},
};
use mesh_runtime::clock;
use tokio::{sync::watch, time::Instant};

use crate::inner::Blame;

/// What one worker has seen, whatever the service.
#[derive(Debug)]
pub struct Loads {
    start: Instant,
    paths: Mutex<Paths>,
    /// Of `paths`; read by every choice.
    paths_version: AtomicU64,
    /// Whether any way is known to have failed.
    any_failed: AtomicBool,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            start: clock::monotonic(),
            paths: Mutex::default(),
            paths_version: AtomicU64::new(0),
            any_failed: AtomicBool::new(false),
        }
    }
}

impl Loads {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn paths(&self) -> MutexGuard<'_, Paths> {
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_paths(&self, change: impl FnOnce(&mut Paths)) {
        let mut paths = self.paths();
        change(&mut paths);
        self.paths_version.store(paths.version(), Ordering::Relaxed);
        self.any_failed.store(!paths.is_clear(), Ordering::Relaxed);
    }

    /// Forgets the ways to sites that are no longer linked.
    pub fn sweep(&self, snapshot: &Snapshot) {
        if self.any_failed.load(Ordering::Relaxed) {
            self.change_paths(|paths| paths.retain(|site| snapshot.links.contains_key(site)));
        }
    }
}

/// The endpoints of one port of a service. Lives as long as the service is
/// known, through all snapshots; whoever holds it needs no other lookup.
#[derive(Debug)]
pub struct Balanced {
    loads: Arc<Loads>,
    balancer: Mutex<Balancer>,
    affinity: ArcSwapOption<Affinity>,
    readmitted: watch::Sender<()>,
}

impl Balanced {
    /// Without endpoints. From the same `seed` follow the same choices.
    pub fn new(loads: &Arc<Loads>, seed: u64) -> Self {
        Self {
            loads: loads.clone(),
            balancer: Mutex::new(Balancer::new(seed)),
            affinity: ArcSwapOption::empty(),
            readmitted: watch::Sender::default(),
        }
    }

    fn balancer(&self) -> MutexGuard<'_, Balancer> {
        self.balancer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh(&self, now: Duration) -> MutexGuard<'_, Balancer> {
        let mut balancer = self.balancer();
        if balancer.is_stale(now, self.loads.paths_version.load(Ordering::Relaxed)) {
            balancer.refresh(&self.loads.paths(), now);
        }
        balancer
    }

    /// Takes over what backs the port from now on.
    pub fn update(&self, backing: &Backing<'_>) {
        self.affinity.store(backing.policy.affinity.clone().map(Arc::new));
        self.balancer().update(backing, self.loads.now());
    }

    /// What requests stay with an endpoint by.
    pub fn affinity(&self) -> arc_swap::Guard<Option<Arc<Affinity>>> {
        self.affinity.load()
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        self.balancer().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether nobody is there.
    pub fn is_deserted(&self) -> bool {
        self.fresh(self.loads.now()).is_deserted()
    }

    /// Wakes whenever an endpoint may be chosen again.
    pub fn readmitted(&self) -> watch::Receiver<()> {
        self.readmitted.subscribe()
    }

    /// Chooses an endpoint, never one of `tried`, and begins an attempt at it;
    /// with a `key` the one that the key belongs to.
    pub fn choose(
        self: &Arc<Self>,
        tried: &[Slot],
        key: Option<u64>,
    ) -> Option<(Arc<Endpoint>, Attempt)> {
        let now = self.loads.now();
        let mut balancer = self.fresh(now);
        let slot = balancer.choose(tried, key, now)?;
        balancer.begin(slot);
        let endpoint = balancer.endpoint(slot).clone();
        let (started, end) = (now, AttemptEnd::Served);
        Some((endpoint, Attempt { balanced: self.clone(), slot, started, latency: None, end }))
    }

    /// The proxy itself tries an endpoint from now on, which is left alone
    /// meanwhile; false if it is already, or is not known.
    pub fn hold(&self, endpoint: &Endpoint) -> bool {
        let mut balancer = self.balancer();
        let slot = balancer.find(&endpoint.site, &endpoint.id);
        slot.is_some_and(|slot| balancer.hold(slot))
    }

    /// Whether it answered well when it was asked, as often as matters.
    pub fn examined(&self, endpoint: &Endpoint, failing: bool) {
        let mut balancer = self.balancer();
        if let Some(slot) = balancer.find(&endpoint.site, &endpoint.id) {
            balancer.examined(slot, failing);
        }
    }

    /// Who is to be asked.
    pub fn probed(&self) -> Vec<Arc<Endpoint>> {
        self.balancer().probed()
    }

    /// It may be chosen again, whatever was before; so may all to whom its way
    /// leads.
    pub fn readmit(&self, endpoint: &Endpoint) {
        self.loads.change_paths(|paths| paths.answer(&endpoint.site));
        let mut balancer = self.balancer();
        if let Some(slot) = balancer.find(&endpoint.site, &endpoint.id) {
            balancer.readmit(slot, self.loads.now());
        }
        drop(balancer);
        self.readmitted.send_replace(());
    }
}

/// One attempt at an endpoint; its end is counted when it is dropped.
#[derive(Debug)]
pub struct Attempt {
    balanced: Arc<Balanced>,
    slot: Slot,
    started: Duration,
    latency: Option<Duration>,
    end: AttemptEnd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AttemptEnd {
    Served,
    Failed,
    Unreachable,
    PathFailed,
    NotTried,
}

impl Attempt {
    /// The endpoint's, for those that a further attempt shall not take.
    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// The head of the answer is there: that was the latency.
    pub fn answered(&mut self) {
        self.latency = Some(self.balanced.loads.now().saturating_sub(self.started));
    }

    /// The endpoint is to blame.
    pub fn blame(&mut self) {
        self.end = AttemptEnd::Failed;
    }

    /// No session came up.
    pub fn not_opened(&mut self, blame: Blame) {
        self.end = match blame {
            Blame::Nobody => AttemptEnd::NotTried,
            Blame::Path => AttemptEnd::PathFailed,
            Blame::Endpoint => AttemptEnd::Unreachable,
        };
    }

    /// Nobody was there: others are tried first for a while.
    pub fn unreachable(&mut self) {
        self.end = AttemptEnd::Unreachable;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let loads = &self.balanced.loads;
        let now = loads.now();
        let latency = self.latency.unwrap_or(now.saturating_sub(self.started));
        let end = match self.end {
            AttemptEnd::Served => End::Served(latency),
            AttemptEnd::Failed => End::Failed(latency),
            AttemptEnd::Unreachable => End::Unreachable,
            AttemptEnd::PathFailed | AttemptEnd::NotTried => End::NotTried,
        };
        let mut balancer = self.balanced.balancer();
        balancer.end(self.slot, end, now);
        let site = &balancer.endpoint(self.slot).site;
        match self.end {
            AttemptEnd::PathFailed => loads.change_paths(|paths| paths.fail(site, now)),
            // Whatever was said there, somebody there said it.
            AttemptEnd::Served | AttemptEnd::Failed
                if self.latency.is_some() && loads.any_failed.load(Ordering::Relaxed) =>
            {
                loads.change_paths(|paths| paths.answer(site));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_core::{
        Health, Locality,
        balance::{BalancePolicy, Vantage},
    };

    use super::*;

    fn endpoint(site: &str, id: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            id: id.parse().expect("an id"),
            service: "orders.shop".parse().expect("a service"),
            port: "http".parse().expect("a port"),
            site: site.parse().expect("a site"),
            identity: format!("spiffe://{site}.example/ns/shop/sa/orders").parse().ok(),
            address: None,
            target: ([127, 0, 0, 1], 8080).into(),
            locality: Locality::default(),
            weight: 1,
            capacity: 0,
            priority: 0,
            health: Health::Healthy,
            node: None,
            via: Default::default(),
        })
    }

    fn balanced(endpoints: &[Arc<Endpoint>]) -> Arc<Balanced> {
        let balanced = Arc::new(Balanced::new(&Arc::default(), 7));
        let from = Vantage { site: "west".parse().expect("a site"), locality: Locality::default() };
        balanced.update(&Backing {
            from: &from,
            policy: &BalancePolicy::default(),
            endpoints,
            reachable: &|_| true,
            workers: 1,
        });
        balanced
    }

    /// Who is chosen. The attempts are not tried, and say nothing.
    fn chosen(balanced: &Arc<Balanced>) -> Vec<String> {
        let choose = |_| {
            let (endpoint, mut attempt) = balanced.choose(&[], None).expect("one");
            attempt.not_opened(Blame::Nobody);
            endpoint.id.to_string()
        };
        let ids: BTreeSet<String> = (0..200).map(choose).collect();
        ids.into_iter().collect()
    }

    fn attempt(balanced: &Arc<Balanced>, id: &str) -> Attempt {
        loop {
            let (endpoint, mut attempt) = balanced.choose(&[], None).expect("one");
            if endpoint.id.as_str() == id {
                return attempt;
            }
            attempt.not_opened(Blame::Nobody);
        }
    }

    #[test]
    fn a_failed_way_spares_its_endpoints_without_blame() {
        let a = endpoint("east", "a");
        let all = [a.clone(), endpoint("east", "b"), endpoint("north", "c")];
        let balanced = balanced(&all);
        assert_eq!(chosen(&balanced).len(), 3);
        let (mut of_a, mut of_b) = (attempt(&balanced, "a"), attempt(&balanced, "b"));
        of_a.not_opened(Blame::Path);
        drop(of_a);
        assert_eq!(chosen(&balanced), ["c"], "b lies behind the same way");
        {
            let balancer = balanced.balancer();
            let slot = balancer.find(&a.site, &a.id).expect("there");
            assert_eq!((balancer.load(slot).failures, balancer.load(slot).in_flight), (0, 0));
        }
        of_b.answered();
        drop(of_b);
        assert!(chosen(&balanced).contains(&"a".to_owned()), "an answer: the way is open");
        let mut of_a = attempt(&balanced, "a");
        of_a.not_opened(Blame::Path);
        drop(of_a);
        assert!(balanced.hold(&a));
        assert_eq!(chosen(&balanced), ["c"]);
        balanced.readmit(&a);
        assert!(chosen(&balanced).contains(&"a".to_owned()), "so it is after one to who was tried");
    }

    #[test]
    fn nobody_there_and_probation() {
        let (a, b) = (endpoint("west", "a"), endpoint("west", "b"));
        let balanced = balanced(&[a.clone(), b]);
        let mut of_a = attempt(&balanced, "a");
        of_a.not_opened(Blame::Endpoint);
        drop(of_a);
        assert_eq!(chosen(&balanced), ["b"]);
        assert!(balanced.hold(&a) && !balanced.hold(&a));
        assert!(!balanced.hold(&endpoint("west", "x")));
        balanced.readmit(&a);
        assert_eq!(chosen(&balanced), ["a", "b"]);
        assert_eq!(balanced.len(), 2);
    }

    #[test]
    fn what_has_been_tried_is_not_tried_again() {
        let balanced = balanced(&[endpoint("west", "a"), endpoint("west", "b")]);
        let (first, attempt) = balanced.choose(&[], None).expect("one");
        let (second, other) = balanced.choose(&[attempt.slot()], None).expect("another");
        assert_ne!(first.id, second.id);
        assert!(balanced.choose(&[attempt.slot(), other.slot()], None).is_none());
    }
}
