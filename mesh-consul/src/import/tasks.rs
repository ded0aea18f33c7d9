//! The lists that are followed: names of each datacenter, instances of each
//! service that is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};

use super::{
    ImportRule, Snapshot, Stale,
    convert::{is_meant, rule_of},
    rule::Key,
};
use crate::{
    client::{Client, HealthOf, Services},
    watch::{Pace, State, Why, follow},
    wire::{ServiceEntry, ServiceTags},
};

#[derive(Default)]
struct Known {
    names: BTreeMap<Option<String>, State<ServiceTags>>,
    /// Of those that are followed; none before the first state.
    entries: BTreeMap<Key, Option<State<Vec<ServiceEntry>>>>,
}

impl Known {
    /// One that is no longer followed may still be about to say something.
    fn followed(&mut self, key: &Key, state: State<Vec<ServiceEntry>>) {
        if let Some(known) = self.entries.get_mut(key) {
            *known = Some(state);
        }
    }
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    changed: Notify,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
        self.changed.notify_one();
    }
}

/// Ends them all when it is dropped.
pub(super) struct Tasks {
    client: Client,
    pace: Pace,
    shared: Arc<Shared>,
    running: JoinSet<()>,
    services: BTreeMap<Key, AbortHandle>,
}

impl Tasks {
    /// Follows the names of each datacenter of `rules`.
    pub(super) fn new(client: Client, pace: Pace, rules: &[ImportRule]) -> Self {
        let mut running = JoinSet::new();
        let shared = Arc::new(Shared::default());
        let dcs: BTreeSet<_> = rules.iter().map(|rule| rule.dc.clone()).collect();
        for dc in dcs {
            let (client, pace, shared) = (client.clone(), pace.clone(), shared.clone());
            running.spawn(async move {
                let query = Services { dc: dc.clone() };
                let tell = |state| {
                    log_names(dc.as_ref(), &state);
                    shared.change(|known| drop(known.names.insert(dc.clone(), state)));
                };
                match follow(&client, &query, &pace, tell).await {}
            });
        }
        Self { client, pace, shared, running, services: BTreeMap::new() }
    }

    /// Until some list is another one.
    pub(super) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Those of `wanted` that have not been answered once, and why, where that is
    /// known.
    pub(super) fn unknown(&self, wanted: &BTreeSet<Key>) -> Vec<(Key, Option<Why>)> {
        let known = self.shared.known();
        let state = |key| known.entries.get(key).and_then(Option::as_ref);
        let unknown = wanted.iter().filter(|key| state(*key).is_none_or(|s| s.data().is_none()));
        let why = |key| state(key).and_then(State::stale).map(|(_, why)| why.clone());
        unknown.map(|key| (key.clone(), why(key))).collect()
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let known = self.shared.known();
        let mut snapshot = Snapshot::default();
        for (dc, state) in &known.names {
            if let Some(names) = state.data() {
                snapshot.names.insert(dc.clone(), names.clone());
            }
            if let Some(stale) = stale(state) {
                snapshot.stale.insert(dc.clone(), stale);
            }
        }
        for (key, state) in &known.entries {
            let Some(state) = state else { continue };
            if let Some(entries) = state.data() {
                snapshot.entries.insert(key.clone(), (entries.clone(), stale(state)));
            }
        }
        snapshot
    }

    /// Follows the instances of `wanted`, and no longer those of others that have
    /// none.
    pub(super) fn want(&mut self, wanted: &BTreeSet<Key>, rules: &[ImportRule]) {
        for key in wanted {
            if !self.services.contains_key(key) {
                self.shared.known().entries.insert(key.clone(), None);
                let handle = self.follow_service(key.clone());
                self.services.insert(key.clone(), handle);
            }
        }
        let mut known = self.shared.known();
        self.services.retain(|key, handle| {
            if wanted.contains(key)
                || !is_over(known.entries.get(key).and_then(Option::as_ref), key, rules)
            {
                return true;
            }
            handle.abort();
            known.entries.remove(key);
            false
        });
        drop(known);
        // Of those that were aborted.
        while self.running.try_join_next().is_some() {}
    }

    fn follow_service(&mut self, key: Key) -> AbortHandle {
        let (client, pace, shared) = (self.client.clone(), self.pace.clone(), self.shared.clone());
        self.running.spawn(async move {
            let (dc, service) = key.clone();
            let query = HealthOf { service, tags: Vec::new(), dc };
            let tell = |state| {
                log_service(&key.1, &state);
                shared.change(|known| known.followed(&key, state));
            };
            match follow(&client, &query, &pace, tell).await {}
        })
    }
}

/// Nothing of it is left, believably.
fn is_over(state: Option<&State<Vec<ServiceEntry>>>, key: &Key, rules: &[ImportRule]) -> bool {
    let Some(State::Fresh(entries)) = state else { return false };
    rule_of(rules, key).is_none_or(|rule| !entries.iter().any(|entry| is_meant(rule, entry)))
}

fn stale<T>(state: &State<T>) -> Option<Stale> {
    state.stale().map(|(since, why)| Stale { since, why: why.clone() })
}

/// Where all of Consul is silent, its names are; not each service says so again.
fn log_names<T>(dc: Option<&String>, state: &State<T>) {
    let dc = dc.map_or("", String::as_str);
    match state.stale() {
        Some((_, why)) => log::warn!(dc, why:% = why; "consul: what was known last is kept"),
        None => log::info!(dc; "consul: names of services are as of now"),
    }
}

fn log_service<T>(service: &str, state: &State<T>) {
    match state.stale() {
        Some((_, why @ Why::Filtered)) => {
            log::warn!(service, why:% = why; "consul: what was known last is kept");
        }
        Some((_, why)) => log::debug!(service, why:% = why; "consul: what was known last is kept"),
        None => log::debug!(service; "consul: instances are as of now"),
    }
}
