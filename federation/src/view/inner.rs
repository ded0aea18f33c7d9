//! What the view is made of, behind its lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::v1::{self, ResourceKind, Revision};
use mesh_core::{NodeId, SiteName};
use mesh_manifest::Problem;
use tokio::time::Instant;

use super::ViewConfig;
use crate::{
    authority::{State, differences},
    feed::{Feed, Key, Resources},
    leases::Leases,
    live::Live,
    render::{Note, Part, Rendered, Sources, export_endpoint, partial, render, render_export},
    virtual_address::VirtualAddresses,
};

pub(super) struct Inner {
    pub(super) live: Live,
    pub(super) leases: Leases,
    /// Nodes that have registrations.
    pub(super) registered: BTreeSet<NodeId>,
    /// Where something live is another than in the newest revision.
    pub(super) touched: Touched,
    pub(super) site: Feed,
    pub(super) exports: BTreeMap<SiteName, Feed>,
    pub(super) notes: Vec<Note>,
    pub(super) problems: Vec<Problem>,
    /// Of every bundle its sequence and the revision that it came with.
    pub(super) bundles: BTreeMap<String, (u64, Revision)>,
    /// The newest revision holds what every linked site exports.
    pub(super) settled: bool,
    addresses: VirtualAddresses,
    /// What the newest revision was made of.
    of: Arc<State>,
}

#[derive(Debug)]
pub(super) enum Touched {
    /// On these nodes.
    Nodes(BTreeSet<NodeId>),
    Anywhere,
}

impl Touched {
    /// On these, too; whether there are any.
    pub(super) fn add<'a>(&mut self, more: impl IntoIterator<Item = &'a NodeId>) -> bool {
        let mut more = more.into_iter().peekable();
        let any = more.peek().is_some();
        if let Self::Nodes(nodes) = self {
            nodes.extend(more.cloned());
        }
        any
    }
}

impl Inner {
    pub(super) fn new(config: &ViewConfig, epoch: u64, n: u64) -> Self {
        Self {
            live: Live::default(),
            leases: Leases::new(config.terms, Instant::now()),
            registered: BTreeSet::new(),
            touched: Touched::Anywhere,
            site: Feed::new(epoch, n),
            exports: BTreeMap::new(),
            notes: Vec::new(),
            problems: Vec::new(),
            bundles: BTreeMap::new(),
            settled: false,
            addresses: VirtualAddresses::new(config.virtual_range),
            of: Arc::default(),
        }
    }

    /// Makes what is true now the newest revision; true if it differs from the
    /// one before.
    pub(super) fn refresh(&mut self, state: &Arc<State>, config: &ViewConfig) -> bool {
        self.follow(state);
        let before = std::mem::replace(&mut self.of, state.clone());
        let touched = std::mem::replace(&mut self.touched, Touched::Nodes(BTreeSet::new()));
        let leases = &self.leases;
        let liveness = |node: &NodeId| leases.liveness(node);
        let sources = Sources {
            state,
            live: &self.live,
            liveness: &liveness,
            federation_address: &config.federation_address,
            default_access: config.default_access,
        };
        let parts = match touched {
            Touched::Nodes(nodes) => partial(&before, &sources, &nodes),
            Touched::Anywhere => None,
        };
        match parts {
            Some(parts) => self.replace_parts(state, &parts),
            None => {
                let rendered = render(&sources, &mut self.addresses);
                self.replace_all(state, rendered)
            }
        }
    }

    /// Begins and ends leases and health with the nodes and registrations that
    /// they are of.
    fn follow(&mut self, state: &State) {
        for (node, [_, now]) in differences(&self.of.nodes, &state.nodes) {
            if now.is_none() {
                self.leases.forget(node);
            }
        }
        for (key, [_, now]) in differences(&self.of.registrations, &state.registrations) {
            let node = &key.0;
            if now.is_some() {
                self.leases.begin(node);
                self.registered.insert(node.clone());
                continue;
            }
            self.live.health.remove(key);
            if state.registrations_of(node).next().is_none() {
                self.registered.remove(node);
            }
        }
    }

    fn replace_parts(&mut self, state: &State, parts: &[Part]) -> bool {
        let endpoints = parts.iter().flat_map(|part| &part.endpoints);
        let now = endpoints.map(|(key, endpoint)| (key.clone(), endpoint.clone())).collect();
        let mut changed = self.site.patch(parts.iter().flat_map(|part| &part.keys), &now);
        for (site, feed) in &mut self.exports {
            let of_site = || parts.iter().filter(|part| state.is_exported(&part.service, site));
            let endpoints = of_site().flat_map(|part| part.endpoints.values());
            let mut now = Resources::new();
            endpoints.for_each(|endpoint| export_endpoint(endpoint, &mut now));
            changed |= feed.patch(of_site().flat_map(|part| &part.keys), &now);
        }
        changed
    }

    fn replace_all(&mut self, state: &State, rendered: Rendered) -> bool {
        // Somebody may have been heard, or have reported, just after it had gone.
        self.leases.retain(|node| state.nodes.contains_key(node));
        self.live.health.retain(|key, _| state.registrations.contains_key(key));
        self.live.links.retain(|site, _| state.links.contains_key(site));
        self.exports.retain(|site, _| state.links.contains_key(site));
        let Rendered { resources, notes, problems } = rendered;
        self.notes = notes;
        self.problems = problems;
        let live = &self.live.links;
        self.settled |= state
            .links
            .keys()
            .all(|site| live.get(site).is_some_and(|link| link.imported.revision.is_some()));
        let mut changed = false;
        for site in state.links.keys() {
            let Revision { epoch, n } = self.site.revision();
            let feed = self.exports.entry(site.clone()).or_insert_with(|| Feed::new(epoch, n));
            changed |= feed.replace(render_export(state, &resources, site));
        }
        changed |= self.site.replace(resources);
        self.remember_bundles();
        changed
    }

    fn remember_bundles(&mut self) {
        let at = self.site.revision();
        let mut bundles = BTreeMap::new();
        let first = Key { kind: ResourceKind::Bundle, name: "".into() };
        let from_first = self.site.resources().range(first..);
        for (_, resource) in from_first.take_while(|(key, _)| key.kind == ResourceKind::Bundle) {
            let Some(v1::resource::Resource::Bundle(bundle)) = &resource.resource else { continue };
            let known = self.bundles.get(&bundle.trust_domain);
            let since = known.filter(|(sequence, _)| *sequence == bundle.sequence).copied();
            let since = since.unwrap_or((bundle.sequence, at));
            bundles.insert(bundle.trust_domain.clone(), since);
        }
        self.bundles = bundles;
    }
}

#[cfg(test)]
mod tests;
