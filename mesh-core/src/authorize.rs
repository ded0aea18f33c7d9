//! Whether a caller may pass.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    identity::PeerIdentity,
    name::{PortName, ServiceName, TrustDomain},
    reason::Reason,
};

/// What one service needs of its callers, compiled from what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPolicy {
    /// The trust domain that a principal without one means.
    pub local: TrustDomain,
    /// Trust domains of the sites to which the service is exported.
    pub exported_to: BTreeSet<TrustDomain>,
    /// Any must match; `None` allows every authenticated caller, which are
    /// those of the local domain and of `exported_to`.
    pub allow: Option<Vec<PrincipalMatch>>,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrincipalMatch {
    /// Which domain; "any" must be written.
    pub trust_domain: DomainMatch,
    /// Exact, or any.
    pub namespace: Option<Arc<str>>,
    /// Exact, or any.
    pub account: Option<Arc<str>>,
}

/// The domain part of a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainMatch {
    /// The policy's own domain.
    Local,
    /// Any to which the service is exported, and the own one.
    Any,
    /// This one.
    Exactly(TrustDomain),
}

/// What a caller asks for, from the inner session's own header.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The called service.
    pub service: &'a ServiceName,
    /// The called port.
    pub port: &'a PortName,
    /// `None` for opaque bytes.
    pub method: Option<&'a http::Method>,
    /// Request target path, empty for opaque bytes.
    pub path: &'a str,
}

/// Proof that `authorize` said yes. Nothing is forwarded without one, and
/// nobody else can make one.
#[derive(Debug)]
pub struct Permit {
    caller: crate::name::SpiffeId,
    _private: (),
}

impl Permit {
    /// Who was let through.
    pub fn caller(&self) -> &crate::name::SpiffeId {
        &self.caller
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{caller} may not call {service}: {reason}")]
pub struct Denied {
    /// The verified caller.
    pub caller: crate::name::SpiffeId,
    /// What it called.
    pub service: ServiceName,
    /// Which rule refused.
    pub reason: DenyReason,
}

/// Which rule refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DenyReason {
    /// The service is not exported to the caller's site.
    #[error("the service is not exported to its site")]
    NotExported,
    /// No principal of the policy matches.
    #[error("no rule allows it")]
    NoRule,
    /// Node identities call no services.
    #[error("a node identity calls no services")]
    NotAWorkload,
}

impl DenyReason {
    /// The stable code.
    pub fn reason(self) -> Reason {
        match self {
            Self::NotExported => Reason::DeniedNotExported,
            Self::NoRule => Reason::DeniedNoRule,
            Self::NotAWorkload => Reason::DeniedNotAWorkload,
        }
    }
}

/// Decides whether `peer` may send what `head` describes.
pub fn authorize(
    _policy: &ServerPolicy,
    peer: &PeerIdentity,
    head: &RequestHead<'_>,
) -> Result<Permit, Denied> {
    Err(Denied { caller: peer.id.clone(), service: head.service.clone(), reason: DenyReason::NoRule })
}
