//! What federation is told of this gateway's tunnels: at once when one comes
//! or goes, and regularly because round-trip times drift.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::v1;
use mesh_core::SiteName;

use super::{
    State,
    sessions::{Held, Neighbour},
};

/// How often round-trip times are looked at.
const REFRESH: Duration = Duration::from_secs(2);
/// The shortest time between two reports: a burst of reconnecting nodes is
/// one report.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the report current until the process stops.
pub(super) async fn keep(state: Arc<State>) {
    let mut changed = state.sessions.changed();
    loop {
        let report = compose(&state);
        state.told.send_if_modified(|told| {
            let is_news = *told != report;
            *told = report;
            is_news
        });
        tokio::select! {
            change = changed.changed() => if change.is_err() { return },
            () = tokio::time::sleep(REFRESH) => {}
            () = state.shared.drain.closing() => return,
        }
        tokio::time::sleep(GATHER).await;
        changed.mark_unchanged();
    }
}

fn compose(state: &State) -> v1::NodeSessions {
    let (nodes, links) = state.sessions.overview();
    v1::NodeSessions {
        nodes: nodes.iter().map(ToString::to_string).collect(),
        tunnels: links.iter().flat_map(|(site, held)| statuses(site, held)).collect(),
    }
}

/// One line per gateway of the linked site and transport.
fn statuses(site: &SiteName, held: &[Held]) -> Vec<v1::TunnelStatus> {
    let mut lines: BTreeMap<(String, String), v1::TunnelStatus> = BTreeMap::new();
    for tunnel in held {
        let Neighbour::Link(_, gateway) = &tunnel.neighbour else { continue };
        let transport = tunnel.session.transport().to_string();
        let line = lines.entry((gateway.to_string(), transport.clone())).or_insert_with(|| {
            v1::TunnelStatus {
                site: site.to_string(),
                gateway: gateway.to_string(),
                transport,
                reason: tunnel.reason.clone(),
                ..v1::TunnelStatus::default()
            }
        });
        line.count += 1;
        let rtt = tunnel.session.rtt().unwrap_or_default().as_micros();
        let rtt = u64::try_from(rtt).unwrap_or(u64::MAX);
        // The best of several tunnels says most about the way itself.
        line.rtt_us = if line.rtt_us == 0 { rtt } else { line.rtt_us.min(rtt.max(1)) };
    }
    lines.into_values().collect()
}
