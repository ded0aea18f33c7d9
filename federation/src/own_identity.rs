//! Federation's own certificate and trust, kept up to date while it runs.

use std::time::Duration;

use mesh_core::SpiffeId;
use mesh_runtime::{clock, drain::Drain};

use crate::{
    ca::IssueError,
    site::{Site, trust},
};

/// How often it is looked whether something must be renewed, unless
/// certificates live so short that this would be seldom: the clock jumps when a
/// machine sleeps, and nobody gets a certificate from an expired federation.
const LOOK: Duration = Duration::from_secs(5);

/// Issues a certificate to ourselves and believes what the log says.
pub fn refresh(site: &Site) -> Result<(), IssueError> {
    let state = site.authority.state();
    let id = SpiffeId::federation(&state.site().trust_domain);
    site.credentials.replace_trust(trust(&state));
    site.credentials.replace_svid(site.ca.self_issue(&id)?);
    Ok(())
}

/// Until the process drains: follows revocations and bundles at once, renews
/// the issuing CA and our own certificate at two thirds of their lives.
pub async fn keep(site: Site, drain: Drain) {
    let mut revision = site.authority.revision();
    let mut look = tokio::time::interval(LOOK.min(site.ca.workload_life() / 12));
    let mut believed = site.authority.state();
    loop {
        tokio::select! {
            () = drain.draining() => return,
            changed = revision.changed() => if changed.is_err() { return },
            _ = look.tick() => renew(&site),
        }
        let state = site.authority.state();
        // Most changes are not about trust; replacing it wakes every session.
        let same = std::sync::Arc::ptr_eq(&state.revocations, &believed.revocations)
            && std::sync::Arc::ptr_eq(&state.links, &believed.links)
            && state.site == believed.site;
        if !same {
            site.credentials.replace_trust(trust(&state));
        }
        believed = state;
    }
}

fn renew(site: &Site) {
    match site.ca.renew_issuing() {
        Ok(true) => log::info!("the issuing CA is renewed"),
        Ok(false) => {}
        Err(error) => log::error!(error:%; "the issuing CA is due and cannot be renewed"),
    }
    let left = site.credentials.svid().map_or(Duration::ZERO, |svid| {
        Duration::from_secs(svid.not_after.as_secs()).saturating_sub(clock::now_unix())
    });
    if left <= site.ca.workload_life() / 3
        && let Err(error) = refresh(site)
    {
        log::error!(error:%; "federation's own certificate is due and cannot be renewed");
    }
}
