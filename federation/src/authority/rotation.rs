//! What the log knows of roots: which one signs, which one leaves, and which
//! certificates hang on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_api::v1::{BundleHeld, RootRotation, RotationPhase, WorkloadIssued};
use mesh_core::{NodeId, SiteName, SpiffeId};

use super::state::{State, parse};
use crate::ca::spki_sha256;

/// SHA-256 of a root's SubjectPublicKeyInfo; zero for one that does not parse.
pub type RootHash = [u8; 32];

/// How many certificates are looked through for those that have ended, when
/// there are as many, and again at every doubling.
const LOOK_FOR_ENDED: usize = 1024;

/// A rotation that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// What is waited for.
    pub phase: RotationPhase,
    /// The root that leaves, DER.
    pub old: Vec<u8>,
    /// The root that stays, DER.
    pub new: Vec<u8>,
    /// Sequence of the first bundle that held both.
    pub sequence: u64,
    /// It goes no further by itself.
    pub paused: bool,
    /// The root that stays is the one that was there first.
    pub rolled_back: bool,
    /// Not waited for: `node:<uuid>`, `serial:<hex>`, `site:<name>`.
    pub forced: BTreeSet<String>,
    /// Unix seconds.
    pub started_unix_s: i64,
    /// Unix seconds.
    pub phase_since_unix_s: i64,
    /// Nodes that know both roots.
    pub held_nodes: BTreeSet<NodeId>,
    /// Linked sites whose proxies do.
    pub held_sites: BTreeSet<SiteName>,
    /// Certificates of nodes that were shown since the turn-over began.
    pub shown: BTreeSet<String>,
}

impl Rotation {
    /// The record that makes it what it is.
    pub fn record(&self) -> RootRotation {
        RootRotation {
            phase: self.phase.into(),
            old: self.old.clone(),
            new: self.new.clone(),
            sequence: self.sequence,
            paused: self.paused,
            rolled_back: self.rolled_back,
            forced: self.forced.iter().cloned().collect(),
            started_unix_s: self.started_unix_s,
            phase_since_unix_s: self.phase_since_unix_s,
        }
    }

    /// The root under which certificates are issued.
    pub fn signing(&self) -> &[u8] {
        if self.phase == RotationPhase::TurnOver { &self.new } else { &self.old }
    }

    /// The root that leaves.
    pub fn old_hash(&self) -> RootHash {
        spki_sha256(&self.old).unwrap_or_default()
    }
}

/// A certificate of a workload or gateway that may be in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Whom it names.
    pub id: SpiffeId,
    /// Under which machine; `None` beside federation.
    pub node: Option<NodeId>,
    /// Unix seconds.
    pub not_after_unix_s: i64,
    /// What it hangs on.
    pub root: RootHash,
    /// Serial of the one that its holder had before; empty for none.
    pub replaces: String,
}

/// By serial.
pub type Leaves = Arc<BTreeMap<Arc<str>, Arc<Leaf>>>;

impl State {
    /// The root under which certificates are issued, DER.
    pub fn signing_root(&self) -> &[u8] {
        match &self.rotation {
            Some(rotation) => rotation.signing(),
            None => self.site().bundle.roots.first().map_or(&[], Vec::as_slice),
        }
    }

    /// As a record names it; records of earlier versions name none.
    pub(super) fn root_of(&self, recorded: &[u8]) -> RootHash {
        let recorded: Option<RootHash> = recorded.try_into().ok();
        recorded.unwrap_or_else(|| spki_sha256(self.signing_root()).unwrap_or_default())
    }

    pub(super) fn root_rotation(&mut self, to: &RootRotation) {
        let known = self.rotation.take();
        if to.new.is_empty() {
            return;
        }
        let known = known.map(Arc::unwrap_or_clone);
        let (new, nodes, sites, shown) = known
            .map(|known| (known.new, known.held_nodes, known.held_sites, known.shown))
            .unwrap_or_default();
        self.rotation = Some(Arc::new(Rotation {
            phase: to.phase(),
            old: to.old.clone(),
            new: to.new.clone(),
            sequence: to.sequence,
            paused: to.paused,
            rolled_back: to.rolled_back,
            forced: to.forced.iter().cloned().collect(),
            started_unix_s: to.started_unix_s,
            phase_since_unix_s: to.phase_since_unix_s,
            held_nodes: nodes,
            held_sites: sites,
            // Turned back, it is the other root that they must hang on.
            shown: if new == to.new { shown } else { BTreeSet::new() },
        }));
    }

    pub(super) fn bundle_held(&mut self, held: &BundleHeld) -> Result<(), String> {
        let Some(rotation) = self.rotation.as_mut().filter(|r| held.sequence >= r.sequence) else {
            return Ok(());
        };
        let rotation = Arc::make_mut(rotation);
        for node in &held.nodes {
            rotation.held_nodes.insert(parse(node)?);
        }
        for site in &held.sites {
            rotation.held_sites.insert(parse(site)?);
        }
        Ok(())
    }

    pub(super) fn workload_issued(
        &mut self,
        issued: &WorkloadIssued,
        now_unix_s: i64,
    ) -> Result<(), String> {
        if issued.replaced {
            return Ok(());
        }
        let leaf = Leaf {
            id: parse(&issued.spiffe_id)?,
            node: if issued.node.is_empty() { None } else { Some(parse(&issued.node)?) },
            not_after_unix_s: issued.not_after_unix_s,
            root: self.root_of(&issued.root),
            replaces: issued.replaces.clone(),
        };
        // Its holder had that one: what that one replaced is not used.
        self.shown(std::slice::from_ref(&issued.replaces));
        let leaves = Arc::make_mut(&mut self.leaves);
        leaves.insert(issued.serial.as_str().into(), Arc::new(leaf));
        if leaves.len() >= LOOK_FOR_ENDED && leaves.len().is_power_of_two() {
            leaves.retain(|_, leaf| leaf.not_after_unix_s > now_unix_s);
        }
        Ok(())
    }

    pub(super) fn certificates_shown(&mut self, serials: &[String]) {
        self.shown(serials);
        let Some(rotation) = self.rotation.as_mut() else { return };
        let of_nodes = serials.iter().filter(|serial| !self.leaves.contains_key(serial.as_str()));
        Arc::make_mut(rotation).shown.extend(of_nodes.cloned());
    }

    /// Certificates of workloads are in use: those before them, and others that
    /// were issued instead of those and got lost on their way, are not.
    fn shown(&mut self, serials: &[String]) {
        let leaf = |serial: &String| self.leaves.get(serial.as_str());
        let replaced: BTreeSet<String> = serials
            .iter()
            .filter_map(|serial| leaf(serial).map(|leaf| leaf.replaces.clone()))
            .filter(|replaced| leaf(replaced).is_some())
            .collect();
        if replaced.is_empty() {
            return;
        }
        let used: BTreeSet<&str> = serials.iter().map(String::as_str).collect();
        Arc::make_mut(&mut self.leaves).retain(|serial, leaf| {
            let was_lost = replaced.contains(&leaf.replaces) && !used.contains(&**serial);
            !replaced.contains(&**serial) && !was_lost
        });
    }
}
