//! Whom a rotation waits for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use mesh_api::v1::{RotationBlocker, RotationCount, RotationPhase};
use mesh_core::{NodeId, SiteName, SpiffeId};

use crate::{
    authority::{
        State,
        rotation::{Leaf, RootHash, Rotation},
        state::NodeState,
    },
    ca::NODE_LIFE,
};

/// What is known only while somebody says so.
#[derive(Debug, Default)]
pub struct Seen {
    /// Proxies and gateways with a discovery stream.
    pub proxies: Vec<SeenProxy>,
    /// How long ago nodes were heard of, and whether their agent has a session.
    pub nodes: BTreeMap<NodeId, (Option<Duration>, bool)>,
    /// Linked sites.
    pub sites: BTreeMap<SiteName, SeenSite>,
}

/// A proxy with a discovery stream.
#[derive(Debug, Clone)]
pub struct SeenProxy {
    /// Number of the stream.
    pub stream: u64,
    /// For people.
    pub who: String,
    /// Of the certificate that it uses.
    pub serial: String,
    /// How long ago it said something.
    pub heard: Duration,
    /// It verifies with the site's newest bundle.
    pub holds: bool,
    /// Why it refuses what it was sent; empty if it does not.
    pub nack: String,
}

/// A linked site.
#[derive(Debug, Clone, Default)]
pub struct SeenSite {
    /// It pulls from us.
    pub connected: bool,
    /// How long ago it was heard of.
    pub heard: Option<Duration>,
    /// What it said about our bundle, for people.
    pub said: String,
}

/// What a rotation waits for at one moment.
#[derive(Debug, Default)]
pub struct Judgement {
    /// How many are done.
    pub counts: Vec<RotationCount>,
    /// Who is not.
    pub blockers: Vec<RotationBlocker>,
}

/// Those of one kind: how many there are, and who is not done.
struct Part {
    what: &'static str,
    of: usize,
    blockers: Vec<RotationBlocker>,
}

impl FromIterator<Part> for Judgement {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        let mut all = Self::default();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        for Part { what, of, blockers } in parts {
            let done = number(of.saturating_sub(blockers.len()));
            all.counts.push(RotationCount { what: what.to_owned(), done, of: number(of) });
            all.blockers.extend(blockers);
        }
        all
    }
}

/// Who has yet to do what the phase waits for.
pub fn judge(state: &State, rotation: &Rotation, seen: &Seen, now_unix_s: i64) -> Judgement {
    let judge = Judge { state, rotation, seen, now_unix_s };
    match rotation.phase {
        RotationPhase::TurnOver => judge.turn_over(),
        RotationPhase::Publish | RotationPhase::Unspecified => judge.publish(),
    }
}

struct Judge<'a> {
    state: &'a State,
    rotation: &'a Rotation,
    seen: &'a Seen,
    now_unix_s: i64,
}

impl Judge<'_> {
    /// Everybody must know the new root before anything is signed with it.
    fn publish(&self) -> Judgement {
        let nodes = self.nodes(|node| {
            let held = self.rotation.held_nodes.contains(&node.id);
            (!held).then(|| ("has not taken the new root", ends_of(node)))
        });
        [nodes, self.proxies(), self.sites()].into_iter().collect()
    }

    /// No certificate may hang on the root that leaves.
    fn turn_over(&self) -> Judgement {
        let old = self.rotation.old_hash();
        let nodes = self.nodes(|node| {
            self.hangs(node, old).map(|ends| ("has a certificate under the old root", ends))
        });
        [nodes, self.leaves(old)].into_iter().chain(self.since_backup()).collect()
    }

    /// Machines; `why` one blocks, and until when.
    fn nodes(&self, why: impl Fn(&NodeState) -> Option<(&'static str, i64)>) -> Part {
        let alive: Vec<_> = self.state.nodes.values().filter(|node| self.is_alive(node)).collect();
        let blocker = |node: &&std::sync::Arc<NodeState>| {
            let (why, ends) = why(node)?;
            self.of_node(node, why, ends)
        };
        let blockers = alive.iter().filter_map(blocker).collect();
        Part { what: "nodes", of: alive.len(), blockers }
    }

    fn of_node(&self, node: &NodeState, why: &str, ends: i64) -> Option<RotationBlocker> {
        let name = format!("node:{}", node.id);
        if self.rotation.forced.contains(&name) {
            return None;
        }
        let (heard, connected) = self.seen.nodes.get(&node.id).copied().unwrap_or_default();
        let why = match &node.duplicated {
            Some(_) => format!("{why}; it exists twice: `meshctl node resolve {}`", node.id),
            None => why.to_owned(),
        };
        Some(RotationBlocker {
            name,
            who: format!("machine {} (node {})", crate::join::text(&node.hostname), node.id),
            why,
            connected,
            last_heard_ms: heard.map(millis),
            ends_unix_s: ends,
        })
    }

    fn proxies(&self) -> Part {
        let blocker = |proxy: &SeenProxy| RotationBlocker {
            name: format!("stream:{}", proxy.stream),
            who: proxy.who.clone(),
            why: match proxy.nack.as_str() {
                "" => "has not taken the new root".to_owned(),
                nack => format!("refuses its configuration: {nack}"),
            },
            connected: true,
            last_heard_ms: Some(millis(proxy.heard)),
            ends_unix_s: 0,
        };
        let forced =
            |proxy: &&SeenProxy| self.rotation.forced.contains(&format!("stream:{}", proxy.stream));
        let lacking = self.seen.proxies.iter().filter(|proxy| !proxy.holds);
        let blockers = lacking.filter(|proxy| !forced(proxy)).map(blocker).collect();
        Part { what: "proxies", of: self.seen.proxies.len(), blockers }
    }

    fn sites(&self) -> Part {
        let blocker = |site: &SiteName| {
            let name = format!("site:{site}");
            if self.rotation.held_sites.contains(site) || self.rotation.forced.contains(&name) {
                return None;
            }
            let seen = self.seen.sites.get(site).cloned().unwrap_or_default();
            let why = match (seen.connected, seen.said.as_str()) {
                (false, _) => "is not connected and has not taken the new root",
                (true, "") => "does not say whether its proxies have the new root; is it older?",
                (true, said) => said,
            };
            Some(RotationBlocker {
                name,
                who: format!("linked site {site}"),
                why: why.to_owned(),
                connected: seen.connected,
                last_heard_ms: seen.heard.map(millis),
                ends_unix_s: 0,
            })
        };
        let blockers = self.state.links.keys().filter_map(blocker).collect();
        Part { what: "linked sites", of: self.state.links.len(), blockers }
    }

    fn leaves(&self, old: RootHash) -> Part {
        let used = self.state.leaves.iter().filter(|(serial, leaf)| self.is_used(serial, leaf));
        let used: Vec<_> = used.filter(|(_, leaf)| !self.is_on_forced_node(leaf)).collect();
        let hanging = used.iter().filter(|(_, leaf)| leaf.root == old);
        let users: BTreeMap<&str, &SeenProxy> =
            self.seen.proxies.iter().map(|proxy| (proxy.serial.as_str(), proxy)).collect();
        let blocker = |(serial, leaf): &(&std::sync::Arc<str>, &std::sync::Arc<Leaf>)| {
            self.of_leaf(serial, leaf, users.get(&***serial).copied())
        };
        let blockers = hanging.filter_map(blocker).collect();
        Part { what: "certificates", of: used.len(), blockers }
    }

    /// In a restored site there may be certificates that the log knows nothing
    /// of, until they end.
    fn since_backup(&self) -> Option<Part> {
        const NAME: &str = "restore";
        let restored = self.state.site().restored.as_ref()?;
        let life = i64::try_from(NODE_LIFE.as_secs()).unwrap_or(i64::MAX);
        let ends_unix_s = restored.restored_unix_s.saturating_add(life);
        if ends_unix_s <= self.now_unix_s {
            return None;
        }
        let blocker = RotationBlocker {
            name: NAME.to_owned(),
            who: "machines and workloads that had a certificate since the backup".to_owned(),
            why: "the site was restored, and does not know those under the old root".to_owned(),
            ends_unix_s,
            ..RotationBlocker::default()
        };
        let blockers = if self.rotation.forced.contains(NAME) { vec![] } else { vec![blocker] };
        Some(Part { what: "restored log", of: 1, blockers })
    }

    fn is_on_forced_node(&self, leaf: &Leaf) -> bool {
        let name = leaf.node.as_ref().map(|node| format!("node:{node}"));
        name.is_some_and(|name| self.rotation.forced.contains(&name))
    }

    fn of_leaf(
        &self,
        serial: &str,
        leaf: &Leaf,
        user: Option<&SeenProxy>,
    ) -> Option<RotationBlocker> {
        let name = format!("serial:{serial}");
        if self.rotation.forced.contains(&name) {
            return None;
        }
        let node = leaf.node.as_ref();
        let of_node = node.and_then(|node| self.seen.nodes.get(node)).and_then(|seen| seen.0);
        let place = match node.and_then(|node| self.state.nodes.get(node)) {
            Some(node) => format!(" on machine {}", crate::join::text(&node.hostname)),
            None => String::new(),
        };
        let why = match user {
            Some(_) => "has a certificate under the old root",
            None => "has a certificate under the old root, and no proxy that is here uses it",
        };
        Some(RotationBlocker {
            name,
            who: format!("{}{place}", leaf.id),
            why: why.to_owned(),
            connected: user.is_some(),
            last_heard_ms: user.map(|proxy| proxy.heard).or(of_node).map(millis),
            ends_unix_s: leaf.not_after_unix_s,
        })
    }

    /// Until when a node may need the old root: it has no newer certificate, or
    /// has not shown it.
    fn hangs(&self, node: &NodeState, old: RootHash) -> Option<i64> {
        if node.current.root == old {
            return Some(node.current.not_after_unix_s);
        }
        let previous = node.previous.as_ref().filter(|previous| {
            previous.root == old && previous.not_after_unix_s > self.now_unix_s
        })?;
        let shown = self.rotation.shown.contains(&node.current.serial);
        (!shown).then_some(previous.not_after_unix_s)
    }

    fn is_alive(&self, node: &NodeState) -> bool {
        let revoked = |subject: &str| self.state.revocations.contains_key(subject);
        let id = SpiffeId::node(&self.state.site().trust_domain, &node.id);
        let serial = format!("serial:{}", node.current.serial);
        ends_of(node) > self.now_unix_s
            && !revoked(&format!("node:{}", node.id))
            && !revoked(id.as_str())
            && !revoked(&serial)
    }

    fn is_used(&self, serial: &str, leaf: &Leaf) -> bool {
        let revoked = |subject: &str| self.state.revocations.contains_key(subject);
        let of_a_node = |node: &NodeId| {
            self.state.nodes.contains_key(node) && !revoked(&format!("node:{node}"))
        };
        leaf.not_after_unix_s > self.now_unix_s
            && leaf.node.as_ref().is_none_or(of_a_node)
            && !revoked(leaf.id.as_str())
            && !revoked(&format!("serial:{serial}"))
    }
}

/// When the last certificate of a node ends that it may renew with.
fn ends_of(node: &NodeState) -> i64 {
    let previous = node.previous.as_ref().map_or(0, |previous| previous.not_after_unix_s);
    node.current.not_after_unix_s.max(previous)
}

/// Names of blockers that are not connected, or that are asked for by name.
pub fn to_force(blockers: &[RotationBlocker], asked: &[String]) -> BTreeSet<String> {
    let gone = |blocker: &&RotationBlocker| !blocker.connected;
    let named = |blocker: &&RotationBlocker| asked.contains(&blocker.name);
    let names = |blocker: &RotationBlocker| blocker.name.clone();
    match asked {
        [] => blockers.iter().filter(gone).map(names).collect(),
        _ => blockers.iter().filter(named).map(names).collect(),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
