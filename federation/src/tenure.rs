//! How long a stream may last: no longer than what proved its caller.

use std::time::Duration;

use mesh_core::{PeerIdentity, SpiffeId, name::Subject};
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::{
    authority::{Authority, State},
    ca::IssueError,
    refusal::refuse,
};

/// Whether a certificate of this caller is no longer accepted.
pub fn is_revoked(state: &State, peer: &PeerIdentity) -> bool {
    let node = peer.node.as_ref().map(|node| format!("node:{node}"));
    let serial = format!("serial:{}", peer.serial);
    [Some(peer.id.as_str()), node.as_deref(), Some(&serial)]
        .into_iter()
        .flatten()
        .any(|subject| state.revocations.contains_key(subject))
}

/// Refuses to issue anything to an identity that was taken back: not everybody
/// who takes a certificate or a token knows of revocations.
pub fn check_issuable(state: &State, id: &SpiffeId) -> Result<(), IssueError> {
    if state.revocations.contains_key(id.as_str()) {
        return Err(IssueError::Revoked(id.clone()));
    }
    Ok(())
}

/// Whether the caller's node is still one of this site. Callers without a node
/// (a gateway beside federation) are.
pub fn is_joined(state: &State, peer: &PeerIdentity) -> bool {
    peer.node.as_ref().is_none_or(|node| state.nodes.contains_key(node))
}

/// Refuses a caller of this site whose certificate is revoked or whose node
/// has left.
pub fn check_local(state: &State, peer: &PeerIdentity) -> Result<(), Status> {
    if is_revoked(state, peer) {
        let message = format!("{}: revoked", peer.id);
        return Err(refuse(Code::PermissionDenied, "peer_revoked", message));
    }
    if !is_joined(state, peer) {
        let message = format!("{}: its node has left this site; join again", peer.id);
        return Err(refuse(Code::PermissionDenied, "node_not_joined", message));
    }
    Ok(())
}

/// Refuses a node that is held to exist twice.
pub fn check_not_duplicated(state: &State, peer: &PeerIdentity) -> Result<(), Status> {
    let Subject::Node(node) = peer.id.subject() else { return Ok(()) };
    let reason = state.nodes.get(node).and_then(|node| node.duplicated.clone());
    let Some(reason) = reason else { return Ok(()) };
    let message = format!(
        "node {node} exists twice ({reason}): `meshctl node resolve {node}` on the site decides \
         which one stays"
    );
    Err(refuse(Code::PermissionDenied, "node_duplicated", message))
}

/// Waits until the caller must go, and says why: its certificate has ended, it
/// was revoked, or `check` no longer passes.
pub async fn ended(
    authority: &Authority,
    peer: &PeerIdentity,
    check: impl Fn(&State) -> Result<(), Status>,
) -> Status {
    let mut changed = authority.revision();
    let end = Duration::from_secs(peer.not_after.as_secs());
    loop {
        if let Err(status) = check(&authority.state()) {
            return status;
        }
        let left = end.saturating_sub(authority.clock().since_epoch());
        if left.is_zero() {
            let message =
                format!("{}: its certificate has ended; come back with a new one", peer.id);
            return refuse(Code::Unauthenticated, "peer_outside_validity", message);
        }
        // The wall clock may be set meanwhile: look again now and then.
        tokio::select! {
            () = sleep(left.min(Duration::from_secs(60))) => {}
            alive = changed.changed() => if alive.is_err() {
                return refuse(Code::Unavailable, "stopping", "federation is stopping");
            },
        }
    }
}
