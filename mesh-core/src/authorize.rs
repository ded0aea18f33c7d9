//! Whether a caller may pass.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    identity::PeerIdentity,
    name::{PortName, ServiceName, SpiffeId, Subject, TrustDomain},
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
    caller: SpiffeId,
    _private: (),
}

impl Permit {
    /// Who was let through.
    pub fn caller(&self) -> &SpiffeId {
        &self.caller
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{caller} may not call {service}: {reason}")]
pub struct Denied {
    /// The verified caller.
    pub caller: SpiffeId,
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
    /// Identities of nodes, gateways and federations call no services.
    #[error("only workloads call services")]
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
///
/// The export list is asked before any rule: a caller of a site that the
/// service is not exported to is refused even if a gateway let it through and
/// whatever the rules say.
pub fn authorize(
    policy: &ServerPolicy,
    peer: &PeerIdentity,
    head: &RequestHead<'_>,
) -> Result<Permit, Denied> {
    match decide(policy, &peer.id) {
        None => Ok(Permit { caller: peer.id.clone(), _private: () }),
        Some(reason) => {
            Err(Denied { caller: peer.id.clone(), service: head.service.clone(), reason })
        }
    }
}

/// The rule that refuses `caller`, if one does.
fn decide(policy: &ServerPolicy, caller: &SpiffeId) -> Option<DenyReason> {
    let Subject::Workload { namespace, account } = caller.subject() else {
        return Some(DenyReason::NotAWorkload);
    };
    // A stolen gateway must not be a caller whom every default policy accepts.
    if caller.is_gateway() || caller.is_federation() {
        return Some(DenyReason::NotAWorkload);
    }
    let domain = caller.trust_domain();
    if *domain != policy.local && !policy.exported_to.contains(domain) {
        return Some(DenyReason::NotExported);
    }
    let rules = policy.allow.as_ref()?;
    let matches = |rule: &PrincipalMatch| {
        rule.trust_domain.matches(domain, &policy.local)
            && rule.namespace.as_ref().is_none_or(|only| only == namespace)
            && rule.account.as_ref().is_none_or(|only| only == account)
    };
    if rules.iter().any(matches) { None } else { Some(DenyReason::NoRule) }
}

impl DomainMatch {
    fn matches(&self, domain: &TrustDomain, local: &TrustDomain) -> bool {
        match self {
            Self::Local => domain == local,
            Self::Any => true,
            Self::Exactly(only) => domain == only,
        }
    }
}

#[cfg(test)]
mod tests;
