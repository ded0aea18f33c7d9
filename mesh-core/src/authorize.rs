//! Whether a caller may pass.

mod path;

use std::{borrow::Cow, collections::BTreeSet, net::IpAddr, sync::Arc};

use crate::{
    cidr::Cidr,
    identity::PeerIdentity,
    message::RequestHead,
    name::{PortName, ServiceName, SpiffeId, Subject, TrustDomain},
    reason::Reason,
    rule::{Caller, Routes, matching::NothingMatches},
};

/// What one service needs of its callers, compiled from what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPolicy {
    /// The trust domain that a principal without one means.
    pub local: TrustDomain,
    /// Trust domains of the sites to which the service is exported.
    pub exported_to: BTreeSet<TrustDomain>,
    /// `None` allows every authenticated caller, which are those of the local
    /// domain and of `exported_to`.
    pub access: Option<Access>,
}

/// Rules about callers: one must allow what is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// In no order that matters.
    pub rules: Vec<AccessRule>,
    /// Ports where what no rule allows passes and is told.
    pub audit: Vec<PortName>,
    /// What rules tell requests apart by. Several may have one name, that of
    /// the document they were written in.
    pub routes: Routes,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessRule {
    /// As logs and people call it; empty for a mere list of principals.
    pub name: Arc<str>,
    /// `None` is any.
    pub port: Option<PortName>,
    /// Only requests that fall under the routes of this name.
    pub route: Option<Arc<str>>,
    /// Not for requests under a route that another rule names.
    pub fallback: bool,
    /// Who.
    pub callers: Callers,
    /// From any of these; none is from anywhere.
    pub networks: Vec<Network>,
}

/// Whom a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callers {
    /// Clients without an identity, too.
    Anyone,
    /// Whoever is any of these.
    AnyOf(Vec<PrincipalMatch>),
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// These.
    pub block: Cidr,
    /// Without those.
    pub except: Vec<Cidr>,
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

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Proved; `None` for plaintext.
    pub peer: Option<&'a PeerIdentity>,
    /// Where it calls from; `None` where gateways are between.
    pub address: Option<IpAddr>,
}

/// What is asked for, as the inner session's own header or the own listener
/// says.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The called service.
    pub service: &'a ServiceName,
    /// The called port.
    pub port: &'a PortName,
    /// `None` for opaque bytes.
    pub request: Option<&'a RequestHead>,
}

/// Proof that `authorize` said yes. Nothing is forwarded without one, and
/// nobody else can make one.
#[derive(Debug)]
pub struct Permit {
    caller: Option<SpiffeId>,
    rule: Option<Arc<str>>,
    would_deny: Option<DenyReason>,
}

impl Permit {
    /// Who was let through; `None` for a client without an identity.
    pub fn caller(&self) -> Option<&SpiffeId> {
        self.caller.as_ref()
    }

    /// The rule that allows it, if rules are written.
    pub fn rule(&self) -> Option<&Arc<str>> {
        self.rule.as_ref()
    }

    /// Why it would have been refused, were the port not audited only.
    pub fn would_deny(&self) -> Option<DenyReason> {
        self.would_deny
    }
}

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{caller} may not call {service}: {reason}")]
pub struct Denied {
    /// The verified caller, or the address of one without an identity.
    pub caller: Arc<str>,
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
    /// One would, from another address.
    #[error("no rule allows it from its address")]
    Network,
    /// No rule allows clients without an identity.
    #[error("it has no identity, and no rule allows such clients")]
    Unauthenticated,
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
            Self::Network => Reason::DeniedNetwork,
            Self::Unauthenticated => Reason::DeniedUnauthenticated,
            Self::NotAWorkload => Reason::DeniedNotAWorkload,
        }
    }
}

/// Decides whether `client` may have what `call` describes.
///
/// The export list is asked before any rule: a caller of a site that the
/// service is not exported to is refused even if a gateway let it through and
/// whatever the rules say, audited or not.
pub fn authorize(
    policy: &ServerPolicy,
    client: Client<'_>,
    call: &Call<'_>,
) -> Result<Permit, Denied> {
    let caller = || client.peer.map(|peer| peer.id.clone());
    match decide(policy, client, call) {
        Ok(Allowed { rule, would_deny }) => {
            Ok(Permit { caller: caller(), rule: rule.cloned(), would_deny })
        }
        Err(reason) => {
            let caller = client.describe();
            Err(Denied { caller, service: call.service.clone(), reason })
        }
    }
}

/// Lets a request pass that the platform makes to see how an application does
/// (`paths`, exactly), as a proxy was told where it was set up: no policy of a
/// service is asked. Another method is nobody's who only looks.
pub fn probe<'p>(
    mut paths: impl Iterator<Item = &'p str>,
    client: Client<'_>,
    call: &Call<'_>,
) -> Option<Permit> {
    let head = call.request.filter(|_| client.peer.is_none())?;
    let path = head.target.as_str().split('?').next().unwrap_or_default();
    // https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    let looks = match path {
        "/grpc.health.v1.Health/Check" => head.method.as_str() == "POST",
        _ => matches!(head.method.as_str(), "GET" | "HEAD"),
    };
    let is_probe = looks && paths.any(|probe| probe == path);
    is_probe.then_some(Permit { caller: None, rule: None, would_deny: None })
}

/// Whether `client` may have anything of a port, whatever it asks for there: a
/// connection that may not is of no use.
pub fn may_connect(policy: &ServerPolicy, client: Client<'_>, port: &PortName) -> bool {
    if client.peer.is_some_and(|peer| may_call_at_all(policy, &peer.id).is_err()) {
        return false;
    }
    let Some(access) = &policy.access else { return client.peer.is_some() };
    let allows = |rule: &AccessRule| {
        rule.port.as_ref().is_none_or(|only| only == port)
            && rule.callers.include(&policy.local, client.peer)
            && rule.is_from(client.address)
    };
    access.audit.contains(port) || access.rules.iter().any(allows)
}

/// Why it passes.
struct Allowed<'p> {
    rule: Option<&'p Arc<str>>,
    would_deny: Option<DenyReason>,
}

fn decide<'p>(
    policy: &'p ServerPolicy,
    client: Client<'_>,
    call: &Call<'_>,
) -> Result<Allowed<'p>, DenyReason> {
    if let Some(peer) = client.peer {
        may_call_at_all(policy, &peer.id)?;
    }
    let Some(access) = &policy.access else {
        return match client.peer {
            Some(_) => Ok(Allowed { rule: None, would_deny: None }),
            None => Err(DenyReason::Unauthenticated),
        };
    };
    match access.rule_for(&policy.local, client, call) {
        Ok(rule) => Ok(Allowed { rule: Some(&rule.name), would_deny: None }),
        Err(reason) if access.audit.contains(call.port) => {
            Ok(Allowed { rule: None, would_deny: Some(reason) })
        }
        Err(reason) => Err(reason),
    }
}

/// What no rule can give.
fn may_call_at_all(policy: &ServerPolicy, caller: &SpiffeId) -> Result<(), DenyReason> {
    // A stolen gateway must not be a caller whom every default policy accepts.
    let is_workload = matches!(caller.subject(), Subject::Workload { .. });
    if !is_workload || caller.is_gateway() || caller.is_federation() {
        return Err(DenyReason::NotAWorkload);
    }
    let domain = caller.trust_domain();
    if *domain != policy.local && !policy.exported_to.contains(domain) {
        return Err(DenyReason::NotExported);
    }
    Ok(())
}

impl Client<'_> {
    fn describe(&self) -> Arc<str> {
        match (self.peer, self.address) {
            (Some(peer), _) => peer.id.as_str().into(),
            (None, Some(address)) => format!("a client at {address}").into(),
            (None, None) => "a client".into(),
        }
    }
}

impl Access {
    /// The rule that allows a call. A path that applications may take for
    /// another one must be allowed as both.
    fn rule_for(
        &self,
        local: &TrustDomain,
        client: Client<'_>,
        call: &Call<'_>,
    ) -> Result<&AccessRule, DenyReason> {
        let told_apart = call.request.filter(|_| !self.routes.is_empty());
        if let Some(head) = told_apart
            && let Cow::Owned(target) = path::plain(&head.target)
        {
            let head = RequestHead { target, ..head.clone() };
            self.one_of(local, client, &Call { request: Some(&head), ..*call })?;
        }
        self.one_of(local, client, call)
    }

    fn one_of(
        &self,
        local: &TrustDomain,
        client: Client<'_>,
        call: &Call<'_>,
    ) -> Result<&AccessRule, DenyReason> {
        let route = self.route_of(call);
        let mut refusal = match client.peer {
            Some(_) => DenyReason::NoRule,
            None => DenyReason::Unauthenticated,
        };
        for rule in self.rules.iter().filter(|rule| rule.is_about(call.port, route)) {
            if !rule.callers.include(local, client.peer) {
                continue;
            }
            if rule.is_from(client.address) {
                return Ok(rule);
            }
            refusal = DenyReason::Network;
        }
        Err(refusal)
    }

    /// What rules tell a call apart by. What callers' namespaces route for
    /// themselves is none of the service's.
    fn route_of(&self, call: &Call<'_>) -> Under<'_> {
        let named =
            |name: &Arc<str>| self.rules.iter().any(|rule| rule.route.as_ref() == Some(name));
        if call.request.is_none() {
            let is_here = |port: &Option<PortName>| port.as_ref().is_none_or(|p| p == call.port);
            let unseen = self.routes.iter().any(|route| is_here(&route.port) && named(&route.name));
            return if unseen { Under::Unknown } else { Under::None };
        }
        match self.routes.find(call.port, Caller::default(), call.request) {
            Ok(Some((route, _))) if named(&route.name) => Under::Route(&route.name),
            Ok(_) | Err(NothingMatches) => Under::None,
        }
    }
}

/// Which of the routes that rules name a call falls under.
#[derive(Clone, Copy, PartialEq)]
enum Under<'a> {
    None,
    Route(&'a str),
    /// Bytes that nobody looks at may be a request for any of them.
    Unknown,
}

impl AccessRule {
    fn is_about(&self, port: &PortName, route: Under<'_>) -> bool {
        self.port.as_ref().is_none_or(|only| only == port)
            && self.route.as_deref().is_none_or(|only| Under::Route(only) == route)
            && !(self.fallback && route != Under::None)
    }

    fn is_from(&self, address: Option<IpAddr>) -> bool {
        let holds = |address| self.networks.iter().any(|network| network.contains(address));
        self.networks.is_empty() || address.is_some_and(holds)
    }
}

impl Network {
    /// Whether an address is one of these.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.block.contains(address) && !self.except.iter().any(|block| block.contains(address))
    }
}

impl Callers {
    fn include(&self, local: &TrustDomain, peer: Option<&PeerIdentity>) -> bool {
        match (self, peer) {
            (Self::Anyone, _) => true,
            (Self::AnyOf(_), None) => false,
            (Self::AnyOf(principals), Some(peer)) => {
                principals.iter().any(|principal| principal.is(&peer.id, local))
            }
        }
    }
}

impl PrincipalMatch {
    fn is(&self, caller: &SpiffeId, local: &TrustDomain) -> bool {
        let Subject::Workload { namespace, account } = caller.subject() else { return false };
        self.trust_domain.matches(caller.trust_domain(), local)
            && self.namespace.as_ref().is_none_or(|only| only == namespace)
            && self.account.as_ref().is_none_or(|only| only == account)
    }
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
