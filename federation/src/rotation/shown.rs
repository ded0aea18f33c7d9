//! What operators ask of a rotation, and what is shown of it.

use std::sync::PoisonError;

use mesh_api::v1::{self, RotationAction, RotationStatus};
use mesh_core::{NodeId, SiteName};
use tonic::Status;

use super::{
    RootRotations,
    judge::{Judgement, Seen, SeenProxy, SeenSite, judge},
};
use crate::{
    authority::CommitError, ca::fingerprint, discovery::Following, refusal::commit_status, tokens,
};

/// Blockers that one answer lists.
const MAX_LISTED: usize = 200;

impl RootRotations {
    /// `Admin.RotateRoot`.
    pub async fn ask(
        &self,
        actor: &str,
        asked: v1::RotateRootRequest,
    ) -> Result<RotationStatus, Status> {
        let mut now_forced = Vec::new();
        let done = match asked.action() {
            RotationAction::Unspecified => Ok(()),
            RotationAction::Start => {
                let _step = self.stepping.lock().await;
                self.start(actor).await
            }
            RotationAction::Pause => self.set_paused(actor, true).await,
            RotationAction::Resume => self.set_paused(actor, false).await,
            RotationAction::RollBack => self.roll_back(actor).await,
            RotationAction::Force => {
                self.force(actor, &asked.names).await.map(|forced| now_forced = forced)
            }
        };
        done.map_err(|error| commit_status(CommitError::Refused(error)))?;
        Ok(RotationStatus { now_forced, ..self.status() })
    }

    /// Where it stands.
    pub fn status(&self) -> RotationStatus {
        let state = self.site.authority.state();
        let site = state.site();
        let mut status = RotationStatus {
            site: site.name.to_string(),
            trust_domain: site.trust_domain.to_string(),
            signing_root: fingerprint(state.signing_root()),
            bundle_sequence: site.bundle.sequence,
            ..RotationStatus::default()
        };
        let Some(rotation) = &state.rotation else { return status };
        let Judgement { counts, mut blockers } = judge(&state, rotation, &self.seen(), self.now());
        // Who is there will come along; who is not needs a person.
        blockers.sort_by_key(|blocker| blocker.connected);
        let more = blockers.len().saturating_sub(MAX_LISTED);
        blockers.truncate(MAX_LISTED);
        status.phase = rotation.phase.into();
        status.paused = rotation.paused;
        status.rolled_back = rotation.rolled_back;
        status.old_root = fingerprint(&rotation.old);
        status.new_root = fingerprint(&rotation.new);
        status.started_unix_s = rotation.started_unix_s;
        status.phase_since_unix_s = rotation.phase_since_unix_s;
        status.counts = counts;
        status.blockers = blockers;
        status.more_blockers = u32::try_from(more).unwrap_or(u32::MAX);
        status.forced = rotation.forced.iter().cloned().collect();
        let tokens = tokens::open_with(&state, rotation.old_hash(), self.now()).len();
        status.tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        status.problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        status
    }

    /// Who is there, and with what.
    pub(super) fn seen(&self) -> Seen {
        let state = self.site.authority.state();
        let proxies = self.discovery.following(&state.site().trust_domain);
        let proxy = |proxy: Following| SeenProxy {
            who: proxy.to_string(),
            stream: proxy.stream,
            serial: proxy.serial,
            heard: proxy.heard,
            holds: proxy.holds,
            nack: proxy.nack,
        };
        let node = |node: &NodeId| {
            let heard = self.view.liveness(node).1;
            (node.clone(), (heard, self.registry.agent(node).is_some()))
        };
        Seen {
            proxies: proxies.into_iter().map(proxy).collect(),
            nodes: state.nodes.keys().map(node).collect(),
            sites: state.links.keys().map(|site| (site.clone(), self.seen_site(site))).collect(),
        }
    }

    fn seen_site(&self, site: &SiteName) -> SeenSite {
        let (holds, connected) = self.peering.holds(site);
        let heard = self.view.read_live(|live| live.links.get(site).and_then(|live| live.heard));
        let said = holds.map(|holds| match holds.waiting {
            0 => format!("has bundle {} of this site", holds.bundle_sequence),
            n => format!("{n} of its proxies lack the new root: {}", holds.waiting_for.join(", ")),
        });
        let said = said.unwrap_or_default();
        SeenSite { connected, heard: heard.map(|heard| heard.elapsed()), said }
    }
}
