//! The newest snapshot, and which services are wanted from it.
//!
//! Names, virtual addresses and ports of all services are always there;
//! endpoints, routes and policies of a service follow once it is wanted.
//! Discovery fills the cell, everybody else reads it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_core::{ServiceName, Snapshot};
use mesh_runtime::clock;
use tokio::sync::watch;

/// How long a first request to a service waits for its endpoints.
pub const WANT_TIMEOUT: Duration = Duration::from_secs(1);

/// Shared; clones are the same cell.
#[derive(Debug, Clone)]
pub struct SnapshotCell(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    current: ArcSwapOption<Snapshot>,
    changed: watch::Sender<u64>,
    /// Milliseconds since the Unix epoch.
    replaced: AtomicU64,
    complete: ArcSwap<Complete>,
    /// Whoever makes it has said that it is the newest.
    confirmed: watch::Sender<bool>,
    wanted: Mutex<BTreeSet<ServiceName>>,
    wanted_changed: watch::Sender<u64>,
}

/// For which services the snapshot holds endpoints, routes and policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Complete {
    /// For all of them: a static snapshot, or a gateway's.
    All,
    /// For these.
    Services(BTreeSet<ServiceName>),
}

impl Complete {
    fn has(&self, service: &ServiceName) -> bool {
        match self {
            Complete::All => true,
            Complete::Services(services) => services.contains(service),
        }
    }
}

impl Default for SnapshotCell {
    fn default() -> Self {
        Self(Arc::new(Inner {
            current: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            replaced: AtomicU64::new(0),
            complete: ArcSwap::from_pointee(Complete::Services(BTreeSet::new())),
            confirmed: watch::Sender::new(false),
            wanted: Mutex::default(),
            wanted_changed: watch::Sender::new(0),
        }))
    }
}

impl SnapshotCell {
    /// Starts without a snapshot.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts with a snapshot that is complete and never changes by itself.
    pub fn fixed(snapshot: Snapshot) -> Self {
        let cell = Self::default();
        cell.store(Arc::new(snapshot), Complete::All);
        cell.confirm();
        cell
    }

    /// The newest snapshot; `None` until there is a first one.
    pub fn load(&self) -> Option<Arc<Snapshot>> {
        self.0.current.load_full()
    }

    /// Replaces the snapshot and says for which services it is complete.
    pub fn store(&self, snapshot: Arc<Snapshot>, complete: Complete) {
        self.0.current.store(Some(snapshot));
        if **self.0.complete.load() != complete {
            self.0.complete.store(Arc::new(complete));
        }
        let now = u64::try_from(clock::now_unix().as_millis()).unwrap_or(u64::MAX);
        self.0.replaced.store(now, Ordering::Relaxed);
        self.0.changed.send_modify(|n| *n += 1);
    }

    /// When it was replaced last, since the Unix epoch; 0 before the first one.
    pub fn replaced(&self) -> Duration {
        Duration::from_millis(self.0.replaced.load(Ordering::Relaxed))
    }

    /// What is there is the newest: federation has been heard of since it was
    /// read from disk.
    pub fn confirm(&self) {
        self.0.confirmed.send_if_modified(|confirmed| !std::mem::replace(confirmed, true));
    }

    /// Waits until it is confirmed, at most [`WANT_TIMEOUT`]; whether it was
    /// not before, and looking again may find more.
    pub async fn is_confirmed_late(&self) -> bool {
        let mut confirmed = self.0.confirmed.subscribe();
        if *confirmed.borrow_and_update() {
            return false;
        }
        tokio::time::timeout(WANT_TIMEOUT, confirmed.wait_for(|confirmed| *confirmed)).await.is_ok()
    }

    /// Wakes on every replacement.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The snapshot, with endpoints, routes and policy of `service` if it is
    /// known at all. The first call for a service tells discovery and waits,
    /// at most [`WANT_TIMEOUT`].
    pub async fn want(&self, service: &ServiceName) -> Option<Arc<Snapshot>> {
        if self.0.complete.load().has(service) {
            return self.load();
        }
        let mut changed = self.changed();
        let known = |snapshot: &Snapshot| snapshot.services.contains_key(service);
        // Only names of the snapshot are wanted: a client cannot fill the set.
        if !self.load().is_some_and(|snapshot| known(&snapshot)) {
            return self.load();
        }
        self.add_wanted(service);
        let complete = async {
            while !self.0.complete.load().has(service) && changed.changed().await.is_ok() {}
        };
        let _late = tokio::time::timeout(WANT_TIMEOUT, complete).await;
        self.load()
    }

    /// Wants a service without waiting: listeners for one service, own
    /// services.
    pub fn add_wanted(&self, service: &ServiceName) {
        let mut wanted = self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if wanted.insert(service.clone()) {
            drop(wanted);
            self.0.wanted_changed.send_modify(|n| *n += 1);
        }
    }

    /// Every service that was ever wanted.
    pub fn wanted(&self) -> BTreeSet<ServiceName> {
        self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes when [`SnapshotCell::wanted`] grows.
    pub fn wanted_changed(&self) -> watch::Receiver<u64> {
        self.0.wanted_changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;

    use super::*;
    use crate::files::snapshot;

    fn site() -> Arc<Snapshot> {
        let text = "site: west\ntrust_domain: west.example\nservices:\n  - name: orders.shop\n    \
                    ports: [{ name: http, port: 80 }]\n";
        Arc::new(snapshot::parse(text, "site.yaml", &TrustBundles::new()).unwrap())
    }

    fn nothing() -> Complete {
        Complete::Services(BTreeSet::new())
    }

    #[tokio::test]
    async fn the_first_want_waits_for_its_answer_and_tells_discovery() {
        let (cell, orders) = (SnapshotCell::new(), "orders.shop".parse().unwrap());
        cell.store(site(), nothing());
        let mut told = cell.wanted_changed();
        let (waiting, name): (_, ServiceName) = (cell.clone(), orders);
        let want = tokio::spawn(async move { waiting.want(&name).await });
        told.changed().await.unwrap();
        assert_eq!(
            cell.wanted().iter().map(ServiceName::as_str).collect::<Vec<_>>(),
            ["orders.shop"]
        );
        assert!(!want.is_finished());
        cell.store(site(), Complete::Services(cell.wanted()));
        assert!(want.await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_misses_something_waits_until_what_is_there_is_the_newest() {
        let cell = SnapshotCell::new();
        cell.store(site(), nothing());
        assert!(!cell.is_confirmed_late().await, "nobody says so");
        let (waiting, _) = tokio::join!(cell.is_confirmed_late(), async { cell.confirm() });
        assert!(waiting);
        assert!(!cell.is_confirmed_late().await, "it was before");
    }

    #[tokio::test]
    async fn nobody_can_fill_the_set_with_names_that_do_not_exist() {
        let cell = SnapshotCell::new();
        let unknown: ServiceName = "nobody.shop".parse().unwrap();
        assert!(cell.want(&unknown).await.is_none());
        cell.store(site(), nothing());
        assert!(cell.want(&unknown).await.is_some());
        assert!(cell.wanted().is_empty());
    }
}
