//! A set of resources with a history: what changed between two revisions.
//!
//! A [`Feed`] holds the newest state and the last [`HISTORY`] changes. Whoever
//! has a revision that the history still covers gets the difference, everybody
//! else the whole state. Nothing is queued per subscriber: a slow one asks
//! later and gets one bigger difference.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    sync::Arc,
};

use mesh_api::v1::{Delta, Resource, ResourceKey, ResourceKind, Revision, resource};
use tokio::time::Instant;

/// Changes remembered: minutes of an ordinary site, and at most a few MiB.
pub const HISTORY: usize = 8192;

/// The key of a resource, as in `ResourceKey`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: ResourceKind,
    /// Which one.
    pub name: Arc<str>,
}

impl Key {
    fn on_wire(&self) -> ResourceKey {
        ResourceKey { kind: self.kind.into(), name: self.name.to_string() }
    }
}

/// A bundle that does not follow the old one: the domain was unlinked and
/// linked again. Receivers refuse it unless they are told to forget the old.
fn is_begun_anew(old: &Resource, new: &Resource) -> bool {
    match (&old.resource, &new.resource) {
        (Some(resource::Resource::Bundle(old)), Some(resource::Resource::Bundle(new))) => {
            new.sequence <= old.sequence
        }
        _ => false,
    }
}

/// The newest state by key.
pub type Resources = BTreeMap<Key, Arc<Resource>>;

/// The key under which a resource travels; `None` if it is empty.
pub fn key_of(resource: &Resource) -> Option<Key> {
    use resource::Resource as R;
    let (kind, name) = match resource.resource.as_ref()? {
        R::Site(site) => (ResourceKind::Site, site.name.clone()),
        R::Service(service) => (ResourceKind::Service, service.name.clone()),
        R::Endpoint(e) => (ResourceKind::Endpoint, format!("{}/{}", e.site, e.id)),
        R::Bundle(bundle) => (ResourceKind::Bundle, bundle.trust_domain.clone()),
        R::Gateway(g) => (ResourceKind::Gateway, format!("{}/{}", g.site, g.id)),
        R::Link(link) => (ResourceKind::Link, link.site.clone()),
        R::Revocation(r) => (ResourceKind::Revocation, r.subject.clone()),
    };
    Some(Key { kind, name: name.into() })
}

/// Puts a resource under its key.
pub fn insert(into: &mut Resources, resource: resource::Resource) {
    let resource = Resource { resource: Some(resource) };
    if let Some(key) = key_of(&resource) {
        into.insert(key, Arc::new(resource));
    }
}

fn is_same(old: &Arc<Resource>, new: &Arc<Resource>) -> bool {
    Arc::ptr_eq(old, new) || old == new
}

/// One key at one revision.
#[derive(Debug)]
struct Change {
    n: u64,
    at: Instant,
    key: Key,
    old: Option<Arc<Resource>>,
    new: Option<Arc<Resource>>,
}

/// A state that changes, and what changed lately.
#[derive(Debug)]
pub struct Feed {
    epoch: u64,
    n: u64,
    resources: Resources,
    history: VecDeque<Change>,
    /// Differences can be made from this revision on.
    covered_from: u64,
    limit: usize,
}

impl Feed {
    /// Empty, at revision `(epoch, n)`.
    ///
    /// `n` must be larger than any number of an earlier process with the same
    /// epoch: see [`crate::view`].
    pub fn new(epoch: u64, n: u64) -> Self {
        Self::with_limit(epoch, n, HISTORY)
    }

    fn with_limit(epoch: u64, n: u64, limit: usize) -> Self {
        let (resources, history) = (Resources::new(), VecDeque::new());
        Self { epoch, n, resources, history, covered_from: n, limit }
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        Revision { epoch: self.epoch, n: self.n }
    }

    /// The newest state.
    pub fn resources(&self) -> &Resources {
        &self.resources
    }

    /// Makes `next` the state. True if that is a change, and one revision more.
    pub fn replace(&mut self, next: Resources) -> bool {
        let (n, at) = (self.n + 1, Instant::now());
        let before = self.history.len();
        for (key, old) in &self.resources {
            let new = next.get(key);
            if new.is_none_or(|new| !is_same(old, new)) {
                let (old, new) = (Some(old.clone()), new.cloned());
                self.history.push_back(Change { n, at, key: key.clone(), old, new });
            }
        }
        for (key, new) in next.iter().filter(|(key, _)| !self.resources.contains_key(*key)) {
            let new = Some(new.clone());
            self.history.push_back(Change { n, at, key: key.clone(), old: None, new });
        }
        self.resources = next;
        self.advance(n, before)
    }

    /// The same where nothing differs but what these keys, and those of `next`,
    /// have in `next`.
    pub fn patch<'a>(&mut self, keys: impl Iterator<Item = &'a Key>, next: &'a Resources) -> bool {
        let (n, at) = (self.n + 1, Instant::now());
        let before = self.history.len();
        let keys: BTreeSet<&Key> = keys.chain(next.keys()).collect();
        for key in keys {
            let (old, new) = (self.resources.get(key).cloned(), next.get(key).cloned());
            match (&old, &new) {
                (None, None) => continue,
                (Some(old), Some(new)) if is_same(old, new) => continue,
                (_, Some(new)) => self.resources.insert(key.clone(), new.clone()),
                (Some(_), None) => self.resources.remove(key),
            };
            self.history.push_back(Change { n, at, key: key.clone(), old, new });
        }
        self.advance(n, before)
    }

    /// Is at revision `n` if there have been changes since the history was so
    /// long, and says whether.
    fn advance(&mut self, n: u64, before: usize) -> bool {
        let changed = self.history.len() > before;
        if changed {
            self.n = n;
            self.forget();
        }
        changed
    }

    /// Drops the oldest changes beyond the limit, whole revisions at a time.
    fn forget(&mut self) {
        while self.history.len() > self.limit {
            let Some(oldest) = self.history.front().map(|change| change.n) else { break };
            while self.history.front().is_some_and(|change| change.n == oldest) {
                self.history.pop_front();
            }
            self.covered_from = oldest;
        }
    }

    /// What somebody who sees the state through `lens` must be told to get
    /// from `have` to the newest revision; the whole state if `have` is unset
    /// or too old. `None`: there is nothing to tell.
    pub fn delta(&self, have: Option<&Revision>, lens: &dyn Lens) -> Option<Delta> {
        match have.filter(|have| self.covers(have)) {
            Some(have) if have.n == self.n => None,
            Some(have) => Some(self.difference(*have, lens)),
            None => Some(self.whole(lens)),
        }
    }

    /// Whether a difference can be made from this revision.
    pub fn covers(&self, have: &Revision) -> bool {
        have.epoch == self.epoch && (self.covered_from..=self.n).contains(&have.n)
    }

    /// Since when there is something newer than `have`, as far as the history
    /// goes back; `None` if there is nothing.
    pub fn newer_since(&self, have: &Revision) -> Option<Instant> {
        if have.epoch == self.epoch && have.n >= self.n {
            return None;
        }
        let first = match have.epoch == self.epoch {
            true => self.history.partition_point(|change| change.n <= have.n),
            false => 0,
        };
        self.history.get(first).map(|change| change.at)
    }

    fn whole(&self, lens: &dyn Lens) -> Delta {
        let upsert = self.resources.values().filter_map(|resource| lens.see(resource)).collect();
        Delta { from: None, to: Some(self.revision()), upsert, remove: Vec::new() }
    }

    fn difference(&self, have: Revision, lens: &dyn Lens) -> Delta {
        // Several changes of one key: its first `old` and its last `new`.
        let mut changed: BTreeMap<&Key, (Option<&Resource>, Option<&Resource>)> = BTreeMap::new();
        let first = self.history.partition_point(|change| change.n <= have.n);
        for change in self.history.range(first..) {
            match changed.entry(&change.key) {
                Entry::Vacant(entry) => {
                    entry.insert((change.old.as_deref(), change.new.as_deref()));
                }
                Entry::Occupied(mut entry) => entry.get_mut().1 = change.new.as_deref(),
            }
        }
        let (mut upsert, mut remove) = (Vec::new(), Vec::new());
        for (key, (old, new)) in changed {
            let was = old.and_then(|old| lens.see(old));
            match new.and_then(|new| lens.see(new)) {
                Some(now) if was.as_ref() != Some(&now) => {
                    if was.is_some_and(|was| is_begun_anew(&was, &now)) {
                        remove.push(key.on_wire());
                    }
                    upsert.push(now);
                }
                Some(_) => {}
                None if was.is_some() || old.is_some_and(|old| lens.remembers(old)) => {
                    remove.push(key.on_wire());
                }
                None => {}
            }
        }
        Delta { from: Some(have), to: Some(self.revision()), upsert, remove }
    }
}

/// What one subscriber may see, and how.
pub trait Lens {
    /// The resource as the subscriber sees it, if it does.
    fn see(&self, resource: &Resource) -> Option<Resource>;

    /// Whether the subscriber may hold the resource although it does not see
    /// it (any more): it is then told of its removal.
    fn remembers(&self, _resource: &Resource) -> bool {
        false
    }
}

/// Sees everything as it is.
#[derive(Debug, Clone, Copy)]
pub struct Everything;

impl Lens for Everything {
    fn see(&self, resource: &Resource) -> Option<Resource> {
        Some(resource.clone())
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{Bundle, Endpoint, Link};

    use super::*;

    fn endpoints(weights: &[(&str, u32)]) -> Resources {
        let mut all = Resources::new();
        for (id, weight) in weights {
            let endpoint = Endpoint {
                id: (*id).into(),
                site: "west".into(),
                service: "orders.shop".into(),
                weight: *weight,
                ..Endpoint::default()
            };
            insert(&mut all, resource::Resource::Endpoint(endpoint));
        }
        all
    }

    fn ids(delta: &Delta) -> (Vec<String>, Vec<String>) {
        let upsert = delta.upsert.iter().filter_map(key_of).map(|key| key.name.to_string());
        (upsert.collect(), delta.remove.iter().map(|key| key.name.clone()).collect())
    }

    #[test]
    fn a_difference_holds_what_changed_and_nothing_else() {
        let mut feed = Feed::new(7, 100);
        assert!(feed.replace(endpoints(&[("a", 1), ("b", 1)])));
        let have = feed.revision();
        assert_eq!(have, Revision { epoch: 7, n: 101 });
        assert!(!feed.replace(endpoints(&[("a", 1), ("b", 1)])), "the same is no revision");
        assert_eq!(feed.delta(Some(&have), &Everything), None);

        assert!(feed.replace(endpoints(&[("a", 2), ("c", 1)])));
        assert!(feed.replace(endpoints(&[("a", 3), ("c", 1), ("d", 1)])));
        assert!(feed.replace(endpoints(&[("a", 3), ("c", 1)])));
        let delta = feed.delta(Some(&have), &Everything).expect("it changed");
        assert_eq!(delta.from, Some(have));
        assert_eq!(delta.to, Some(feed.revision()));
        let (upsert, remove) = ids(&delta);
        assert_eq!(upsert, ["west/a", "west/c"]);
        assert_eq!(remove, ["west/b"], "d came and went in between");
    }

    #[test]
    fn who_has_nothing_or_something_too_old_gets_everything() {
        let mut feed = Feed::with_limit(7, 0, 2);
        for weight in 1..=4 {
            feed.replace(endpoints(&[("a", weight)]));
        }
        let old = Revision { epoch: 7, n: 1 };
        let foreign = Revision { epoch: 8, n: 4 };
        let future = Revision { epoch: 7, n: 5 };
        for have in [None, Some(&old), Some(&foreign), Some(&future)] {
            let delta = feed.delta(have, &Everything).expect("a whole state");
            assert_eq!((delta.from, delta.upsert.len()), (None, 1), "{have:?}");
        }
        let recent = Revision { epoch: 7, n: 2 };
        let delta = feed.delta(Some(&recent), &Everything).expect("it changed");
        assert_eq!(delta.from, Some(recent));
    }

    struct Heavy;
    impl Lens for Heavy {
        fn see(&self, resource: &Resource) -> Option<Resource> {
            match &resource.resource {
                Some(resource::Resource::Endpoint(e)) if e.weight > 1 => Some(resource.clone()),
                _ => None,
            }
        }
    }

    #[test]
    fn what_leaves_the_lens_is_removed_and_what_was_never_seen_is_not() {
        let mut feed = Feed::new(1, 0);
        feed.replace(endpoints(&[("a", 2), ("b", 1)]));
        let have = feed.revision();
        feed.replace(endpoints(&[("a", 1)]));
        let delta = feed.delta(Some(&have), &Heavy).expect("a revision passed");
        assert_eq!(ids(&delta), (vec![], vec!["west/a".into()]));
    }

    #[test]
    fn a_bundle_that_begins_anew_is_removed_first() {
        let bundle = |sequence, root| {
            let mut all = Resources::new();
            let trust_domain = "east.example".into();
            let bundle =
                Bundle { trust_domain, sequence, roots: vec![vec![root]], ..Bundle::default() };
            insert(&mut all, resource::Resource::Bundle(bundle));
            all
        };
        for (sequence, removed) in [(4, 0), (3, 1), (1, 1)] {
            let mut feed = Feed::new(1, 0);
            feed.replace(bundle(3, 1));
            let have = feed.revision();
            feed.replace(bundle(sequence, 2));
            let delta = feed.delta(Some(&have), &Everything).expect("it changed");
            assert_eq!((delta.upsert.len(), delta.remove.len()), (1, removed), "{sequence}");
        }
    }

    #[test]
    fn keys_are_those_of_the_wire() {
        let link = Link { site: "east".into(), ..Link::default() };
        let key = key_of(&Resource { resource: Some(resource::Resource::Link(link)) });
        assert_eq!(key, Some(Key { kind: ResourceKind::Link, name: "east".into() }));
        assert_eq!(key_of(&Resource::default()), None);
    }

    proptest::proptest! {
        /// Differences, applied one after another or in one, lead to the same
        /// state as the whole.
        #[test]
        fn differences_lead_to_the_whole(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(0_u8..6, 0_u32..3, 0..6), 1..12),
            limit in 1_usize..20,
        ) {
            let mut feed = Feed::with_limit(1, 0, limit);
            let mut have: Option<Revision> = None;
            let mut held = Resources::new();
            for (i, step) in steps.iter().enumerate() {
                let named: Vec<_> = step.iter().map(|(k, v)| (k.to_string(), *v)).collect();
                let named: Vec<_> = named.iter().map(|(k, v)| (k.as_str(), *v)).collect();
                feed.replace(endpoints(&named));
                // A slow subscriber misses every third step.
                if i % 3 == 2 { continue; }
                let Some(delta) = feed.delta(have.as_ref(), &Everything) else { continue };
                if delta.from.is_none() { held.clear(); }
                for resource in delta.upsert {
                    held.insert(key_of(&resource).unwrap(), Arc::new(resource));
                }
                for key in delta.remove {
                    let key = Key { kind: key.kind.try_into().unwrap(), name: key.name.into() };
                    proptest::prop_assert!(held.remove(&key).is_some());
                }
                have = delta.to;
                proptest::prop_assert_eq!(&held, feed.resources());
            }
        }
    }
}
