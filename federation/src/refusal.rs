//! How a gRPC call is refused: a status, and a stable reason that programs
//! read from the metadata.

use std::fmt;

use mesh_core::{PeerIdentity, SpiffeId};
use tonic::{Code, Request, Status, metadata::AsciiMetadataValue};

use crate::authority::CommitError;

/// The metadata key that carries the stable reason.
pub const REASON: &str = "isthmus-error";

/// A refusal with a stable reason, e.g. `token_expired`.
pub fn refuse(code: Code, reason: &'static str, message: impl fmt::Display) -> Status {
    let mut status = Status::new(code, message.to_string());
    status.metadata_mut().insert(REASON, AsciiMetadataValue::from_static(reason));
    status
}

/// The stable reason of a refusal; empty if it has none.
pub fn reason_of(status: &Status) -> &str {
    status.metadata().get(REASON).and_then(|reason| reason.to_str().ok()).unwrap_or_default()
}

/// A refusal that is an error type of ours.
pub trait Refusal: fmt::Display {
    /// The gRPC code.
    fn code(&self) -> Code;
    /// The stable reason.
    fn reason(&self) -> &'static str;

    /// As the caller sees it.
    fn status(&self) -> Status {
        refuse(self.code(), self.reason(), self)
    }
}

/// The error of a decision that is never no.
#[derive(Debug, thiserror::Error)]
pub enum Never {}

impl Refusal for Never {
    fn code(&self) -> Code {
        match *self {}
    }

    fn reason(&self) -> &'static str {
        match *self {}
    }
}

/// A commit that did not happen, as the caller sees it.
pub fn commit_status<E: Refusal>(error: CommitError<E>) -> Status {
    match error {
        CommitError::Refused(refusal) => refusal.status(),
        CommitError::Store(_) => refuse(Code::Unavailable, "store_failed", error_text(&error)),
        CommitError::Busy => refuse(Code::Unavailable, "store_busy", error_text(&error)),
        CommitError::Stopping => refuse(Code::Unavailable, "stopping", error_text(&error)),
    }
}

fn error_text<E: fmt::Display>(error: &CommitError<E>) -> String {
    match error {
        CommitError::Refused(refusal) => refusal.to_string(),
        CommitError::Store(store) => store.to_string(),
        CommitError::Busy => "too many changes wait for the disk of federation; try again".into(),
        CommitError::Stopping => "federation is stopping; try again".into(),
    }
}

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A node identity of the own trust domain.
    Node,
    /// A workload identity of the own trust domain, gateways included.
    Proxy,
    /// The gateway identity of the own trust domain.
    Gateway,
    /// The federation of another, linked trust domain.
    LinkedFederation,
}

/// The caller, if it has the role. Every mTLS method begins with this.
pub fn caller<T>(
    request: &Request<T>,
    role: Role,
    own: &mesh_core::TrustDomain,
) -> Result<PeerIdentity, Status> {
    let Some(peer) = request.extensions().get::<PeerIdentity>() else {
        let message = "this method needs a client certificate";
        return Err(refuse(Code::Unauthenticated, "peer_no_certificate", message));
    };
    if has_role(&peer.id, role, own) {
        return Ok(peer.clone());
    }
    let message = format!("{}: not allowed here, this is for {}", peer.id, role.whom());
    Err(refuse(Code::PermissionDenied, "role_denied", message))
}

fn has_role(id: &SpiffeId, role: Role, own: &mesh_core::TrustDomain) -> bool {
    let local = id.trust_domain() == own;
    match role {
        Role::Node => local && matches!(id.subject(), mesh_core::name::Subject::Node(_)),
        Role::Proxy => {
            local
                && !id.is_federation()
                && matches!(id.subject(), mesh_core::name::Subject::Workload { .. })
        }
        Role::Gateway => local && id.is_gateway(),
        Role::LinkedFederation => !local && id.is_federation(),
    }
}

impl Role {
    fn whom(self) -> &'static str {
        match self {
            Self::Node => "nodes of this site",
            Self::Proxy => "proxies of this site",
            Self::Gateway => "gateways of this site",
            Self::LinkedFederation => "the federation of a linked site",
        }
    }
}
