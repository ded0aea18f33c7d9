//! From what Consul says to what the mesh is told. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use mesh_core::ServiceName;

use super::{
    Import, ImportRule, Imported, Instance, Skipped, Stale, instance::instance, is_ours, rule::Key,
};
use crate::wire::{ServiceEntry, ServiceTags};

/// Complaints of one import; who has more of them mends the first ones first.
const MAX_SKIPPED: usize = 1000;

/// What all lists say at a moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Names by datacenter, where they are known.
    pub names: BTreeMap<Option<String>, Arc<ServiceTags>>,
    /// Lists of names that are not as of the last answer.
    pub stale: BTreeMap<Option<String>, Stale>,
    /// Instances by datacenter and name, where they are known.
    pub entries: BTreeMap<(Option<String>, String), (Arc<Vec<ServiceEntry>>, Option<Stale>)>,
}

/// All that `rules` let in. `complete` says only that all lists of names are there.
pub fn convert(rules: &[ImportRule], snapshot: &Snapshot) -> Import {
    let mut skipped = BTreeSet::new();
    let mut found: BTreeMap<ServiceName, Found> = BTreeMap::new();
    for (key, (entries, stale)) in &snapshot.entries {
        let Some(rule) = rule_of(rules, key) else { continue };
        let taken = entries.iter().filter(|entry| is_meant(rule, entry));
        let mut instances = Vec::new();
        for entry in taken {
            match instance(rule, entry) {
                Ok(instance) => instances.push(instance),
                Err(why) => {
                    let what = format!("{} on {}", entry.service.id, entry.node.node);
                    note(&mut skipped, what, why);
                }
            }
        }
        if instances.is_empty() {
            continue;
        }
        let name = match rule.name(&key.1) {
            Ok(name) => name,
            Err(why) => {
                note(&mut skipped, key.1.clone(), why);
                continue;
            }
        };
        let known = found.entry(name.clone()).or_insert_with(|| Found::new(&key.1, rule));
        // Several datacenters make one service; two services do not.
        if known.consul != key.1 {
            let why =
                format!("{name} is {:?} already; give one another name in `rename`", known.consul);
            note(&mut skipped, key.1.clone(), why);
            continue;
        }
        known.instances.append(&mut instances);
        known.stale = known.stale.take().or_else(|| stale.clone());
    }
    let lists: BTreeSet<_> = rules.iter().map(|rule| &rule.dc).collect();
    Import {
        services: found.into_iter().map(|(name, found)| (name, found.imported())).collect(),
        skipped,
        complete: lists.iter().all(|dc| snapshot.names.contains_key(*dc)),
        stale: snapshot.stale.clone(),
    }
}

/// The first that lets it in.
pub(super) fn rule_of<'a>(rules: &'a [ImportRule], key: &Key) -> Option<&'a ImportRule> {
    rules.iter().find(|rule| rule.dc == key.0 && rule.allows(&key.1))
}

/// Whether an entry is an application with the rule's tags, and not ours.
pub(super) fn is_meant(rule: &ImportRule, entry: &ServiceEntry) -> bool {
    let service = &entry.service;
    service.kind.is_empty()
        && !is_ours(entry)
        && rule.tags.iter().all(|tag| service.tags.contains(tag))
}

/// Keeps a complaint, unless there are many.
pub(super) fn note(skipped: &mut BTreeSet<Skipped>, what: String, why: String) {
    if skipped.len() < MAX_SKIPPED {
        skipped.insert(Skipped { what, why });
    }
}

struct Found {
    /// As Consul calls it.
    consul: String,
    port: Option<NonZeroU16>,
    instances: Vec<Instance>,
    stale: Option<Stale>,
}

impl Found {
    fn new(consul: &str, rule: &ImportRule) -> Self {
        let consul = consul.to_owned();
        Self { consul, port: rule.port, instances: Vec::new(), stale: None }
    }

    fn imported(mut self) -> Imported {
        self.instances.sort_by(|a, b| a.id.cmp(&b.id));
        self.instances.dedup_by(|a, b| a.id == b.id);
        let mut counts: BTreeMap<NonZeroU16, usize> = BTreeMap::new();
        for instance in &self.instances {
            *counts.entry(instance.port).or_default() += 1;
        }
        // Of equals the lowest.
        let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
        let port = self.port.or(most.map(|(port, _)| port)).unwrap_or(NonZeroU16::MIN);
        Imported { port, instances: self.instances, stale: self.stale }
    }
}

#[cfg(test)]
mod tests;
