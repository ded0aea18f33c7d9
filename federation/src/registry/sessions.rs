//! The sessions of each node's agent, and whether two machines speak for one.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use mesh_api::v1::{Heartbeat, NodeDuplicated, NodeHolds, RegistryHello, authority_record::Event};
use mesh_core::NodeId;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::Registry;
use crate::authority::State;

/// Two boots of one node are held to be two machines when the older one still
/// speaks this long after the newer one began: what was on its way when a
/// machine died has arrived by then.
const TWO_BOOTS: Duration = Duration::from_secs(1);

/// Two heartbeats of an agent: silent for longer, its machine may have died.
const BOOT_SILENCE: Duration = Duration::from_secs(4);

/// How often is looked whether an older boot still speaks.
const LOOK: Duration = Duration::from_millis(100);

/// A session as others of the same node see it.
pub(super) struct Known {
    number: u64,
    boot_id: String,
    began: Instant,
    heard: Instant,
    agent_version: String,
    clock_ahead_ms: Option<i64>,
    holds: Option<NodeHolds>,
    cut: Arc<Notify>,
}

/// What `meshctl status` says of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentInfo {
    /// As it called itself.
    pub version: String,
    /// How far its clock is ahead of ours, if it has said.
    pub clock_ahead_ms: Option<i64>,
    /// What it verifies with and presents, if it has said.
    pub holds: Option<NodeHolds>,
}

/// Takes the session off the list when its task ends.
pub(super) struct Listed {
    registry: Registry,
    node: NodeId,
    number: u64,
}

impl Listed {
    /// Waits while an older session of another boot speaks: the machine has
    /// been started anew, and that ends, or there are two of it, and the newer
    /// one changes nothing until that is known.
    pub(super) async fn alone(&self) {
        while self.registry.has_other_boot(self) {
            sleep(LOOK).await;
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut sessions = self.registry.sessions();
        if let Some(of_node) = sessions.get_mut(&self.node) {
            of_node.retain(|known| known.number != self.number);
            if of_node.is_empty() {
                sessions.remove(&self.node);
            }
        }
    }
}

impl Registry {
    /// The agent of a node, if it has a session.
    pub fn agent(&self, node: &NodeId) -> Option<AgentInfo> {
        let sessions = self.sessions();
        let newest = sessions.get(node)?.last()?;
        Some(AgentInfo {
            version: newest.agent_version.clone(),
            clock_ahead_ms: newest.clock_ahead_ms,
            holds: newest.holds.clone(),
        })
    }

    /// The boot in which a node's agent speaks now: unset if it has been silent
    /// for longer than two heartbeats, for then its machine may have died and
    /// come back.
    pub fn live_boot(&self, node: &NodeId) -> Option<String> {
        let sessions = self.sessions();
        let newest = sessions.get(node)?.last()?;
        (newest.heard.elapsed() <= BOOT_SILENCE).then(|| newest.boot_id.clone())
    }

    fn sessions(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Vec<Known>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enlist(&self, node: &NodeId, hello: &RegistryHello, cut: &Arc<Notify>) -> Listed {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let short = |text: &str| text.chars().take(128).collect::<String>();
        self.sessions().entry(node.clone()).or_default().push(Known {
            number,
            boot_id: short(&hello.boot_id),
            began: Instant::now(),
            heard: Instant::now(),
            agent_version: short(&hello.agent_version),
            clock_ahead_ms: None,
            holds: None,
            cut: cut.clone(),
        });
        Listed { registry: self.clone(), node: node.clone(), number }
    }

    pub(super) fn compare_clocks(&self, listed: &Listed, heartbeat: &Heartbeat) {
        let ahead = self.view.authority().clock().ahead_ms(heartbeat.time_unix_ms);
        let mut sessions = self.sessions();
        let mut of_node = sessions.get_mut(&listed.node).into_iter().flatten();
        if let Some(own) = of_node.find(|known| known.number == listed.number) {
            own.clock_ahead_ms = ahead;
        }
    }

    pub(super) fn holds(&self, listed: &Listed, holds: &NodeHolds) {
        let mut sessions = self.sessions();
        let mut of_node = sessions.get_mut(&listed.node).into_iter().flatten();
        if let Some(own) = of_node.find(|known| known.number == listed.number) {
            own.holds = Some(holds.clone());
        }
    }

    /// A session has just spoken: whether a younger one of another boot of the
    /// same node exists, which means that the node does twice.
    pub(super) fn is_second_boot(&self, listed: &Listed) -> bool {
        let mut sessions = self.sessions();
        let Some(of_node) = sessions.get_mut(&listed.node) else { return false };
        let Some(own) = of_node.iter_mut().find(|known| known.number == listed.number) else {
            return false;
        };
        own.heard = Instant::now();
        let boot_id = own.boot_id.clone();
        of_node.iter().any(|other| {
            other.number > listed.number
                && other.boot_id != boot_id
                && other.began.elapsed() >= TWO_BOOTS
        })
    }

    /// Whether an older session of another boot has spoken lately.
    fn has_other_boot(&self, listed: &Listed) -> bool {
        let sessions = self.sessions();
        let Some(of_node) = sessions.get(&listed.node) else { return false };
        let Some(own) = of_node.iter().find(|known| known.number == listed.number) else {
            return false;
        };
        of_node.iter().any(|other| {
            other.number < listed.number
                && other.boot_id != own.boot_id
                && other.heard.elapsed() <= BOOT_SILENCE
        })
    }

    /// Remembers that a node exists twice and cuts all its sessions.
    pub(super) async fn mark_duplicated(&self, node: &NodeId) {
        let reason = "two machines with different boot ids speak for it at once";
        log::error!(node = node.as_str(); "node duplicated: {reason}; no new certificates until \
             `meshctl node resolve`");
        let event = Event::NodeDuplicated(NodeDuplicated {
            id: node.to_string(),
            reason: reason.to_owned(),
        });
        let decide = |state: &State| {
            let known = state.nodes.get(node).is_some_and(|node| node.duplicated.is_none());
            Ok::<_, std::convert::Infallible>((known.then_some(event).into_iter().collect(), ()))
        };
        if let Err(error) = self.view.authority().commit("federation", decide).await {
            log::error!(node = node.as_str(), error:% = error; "cannot mark a node as duplicated");
        }
        for known in self.sessions().get(node).into_iter().flatten() {
            known.cut.notify_one();
        }
    }
}
