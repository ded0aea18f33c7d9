//! A state as a restored site begins with it: nothing that was said after the
//! backup is said a second time with another meaning.

use std::sync::Arc;

use mesh_api::v1::{Revision as WireRevision, SiteRestored};
use mesh_core::Revision;

use super::state::State;

/// What may have happened between the backup and the loss of the site, in
/// revisions and in changes of the bundle: what numbers are made of goes on
/// behind it.
const UNKNOWN: u64 = 1 << 32;

impl State {
    /// The same site in a new lineage: open tokens are void, and each node may
    /// show one certificate that the backup did not know.
    #[must_use]
    pub fn restored(&self, epoch: u64, backed_up_unix_s: i64, now_unix_s: i64) -> Self {
        let mut state = self.clone();
        let from = self.revision;
        state.revision = Revision { epoch, n: from.n + UNKNOWN };
        if let Some(site) = &mut state.site {
            let site = Arc::make_mut(site);
            site.bundle.sequence += UNKNOWN;
            site.restored = Some(SiteRestored {
                from: Some(WireRevision { epoch: from.epoch, n: from.n }),
                backed_up_unix_s,
                restored_unix_s: now_unix_s,
            });
        }
        if let Some(rotation) = &mut state.rotation {
            Arc::make_mut(rotation).sequence += UNKNOWN;
        }
        for token in Arc::make_mut(&mut state.tokens).values_mut() {
            if token.uses_left() > 0 {
                Arc::make_mut(token).revoked = true;
            }
        }
        for node in Arc::make_mut(&mut state.nodes).values_mut() {
            Arc::make_mut(node).restored = true;
        }
        state
    }
}
