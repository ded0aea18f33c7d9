//! Identity and discovery of a proxy against scripted counterparts: what is
//! taken, what is refused, and what goes on when they are away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod discovery;
mod identity;
mod reboot;
mod taps;

use std::{sync::Arc, time::Duration};

use edge_proxy::{
    app::{App, Shared},
    config::{Config, IdentitySource, Role, SnapshotSource},
    own::Own,
};
use isthmus_tests::pki::Ca;
use mesh_core::SpiffeId;
use mesh_tunnel::{Credentials, RealNet, Trust};

/// No step of a test takes longer unless it hangs.
const STEP: Duration = Duration::from_secs(20);

fn shared(config: Config, credentials: Arc<Credentials>, own: Own) -> Shared {
    let shared = Shared::new(config, Arc::new(RealNet), credentials).unwrap();
    shared.own.store(own);
    shared
}

/// Waits until `holds`, looking often.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let look = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(STEP, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}
