//! Who may call a service.

use std::sync::Arc;

use mesh_api::v1;

use super::{
    MAX_ACCESS_RULES, MAX_NETWORKS, MAX_PORTS, MAX_PRINCIPALS, MAX_ROUTES, MAX_TEXT, WireError,
    at_most, list, parse, text, wrong,
};
use crate::{
    authorize::{Access, AccessRule, Callers, DomainMatch, Network, PrincipalMatch},
    name::{PortName, label},
    rule::{Route, Routes},
};

impl TryFrom<&v1::AuthorizationPolicy> for Access {
    type Error = WireError;

    fn try_from(message: &v1::AuthorizationPolicy) -> Result<Self, WireError> {
        at_most("policy.rules", &message.rules, MAX_ACCESS_RULES)?;
        at_most("policy.routes", &message.routes, MAX_ROUTES)?;
        let mut rules = Vec::new();
        if !message.allow.is_empty() {
            let callers = Callers::AnyOf(principals("policy.allow", &message.allow)?);
            rules.push(AccessRule { callers, ..AccessRule::unnamed() });
        }
        for rule in &message.rules {
            rules.push(AccessRule::try_from(rule)?);
        }
        let audit = list("policy.audit_ports", &message.audit_ports, MAX_PORTS, parse)?;
        let routes: Vec<Route> =
            message.routes.iter().map(Route::try_from).collect::<Result<_, _>>()?;
        Ok(Self { rules, audit, routes: Routes::new(routes) })
    }
}

impl From<&Access> for v1::AuthorizationPolicy {
    fn from(access: &Access) -> Self {
        let (mut allow, mut rules) = (Vec::new(), Vec::new());
        for rule in &access.rules {
            match &rule.callers {
                Callers::AnyOf(principals) if rule.name.is_empty() => {
                    allow.extend(principals.iter().map(Into::into));
                }
                Callers::AnyOf(_) | Callers::Anyone => rules.push(rule.into()),
            }
        }
        Self {
            allow,
            rules,
            audit_ports: access.audit.iter().map(ToString::to_string).collect(),
            routes: access.routes.iter().map(Into::into).collect(),
        }
    }
}

impl AccessRule {
    /// A list of principals, as it was before there were rules.
    fn unnamed() -> Self {
        Self {
            name: "".into(),
            port: None,
            route: None,
            fallback: false,
            callers: Callers::AnyOf(Vec::new()),
            networks: Vec::new(),
        }
    }
}

impl TryFrom<&v1::AccessRule> for AccessRule {
    type Error = WireError;

    fn try_from(message: &v1::AccessRule) -> Result<Self, WireError> {
        let name = text("policy.rules.name", &message.name, MAX_NAME)?;
        if name.is_empty() {
            return Err(wrong("policy.rules.name", "is missing"));
        }
        let route = text("policy.rules.route", &message.route, MAX_NAME)?;
        let callers = principals("policy.rules.callers", &message.callers)?;
        if message.anyone && !callers.is_empty() {
            return Err(wrong("policy.rules.anyone", "has no callers beside it"));
        }
        at_most("policy.rules.networks", &message.networks, MAX_NETWORKS)?;
        let networks = message.networks.iter().map(Network::try_from);
        let port: Option<PortName> = match message.port.as_str() {
            "" => None,
            port => Some(parse("policy.rules.port", port)?),
        };
        Ok(Self {
            name,
            port,
            route: (!route.is_empty()).then_some(route),
            fallback: message.fallback,
            callers: if message.anyone { Callers::Anyone } else { Callers::AnyOf(callers) },
            networks: networks.collect::<Result<_, _>>()?,
        })
    }
}

/// Kind, namespace and name of a document.
const MAX_NAME: usize = 3 * MAX_TEXT;

impl From<&AccessRule> for v1::AccessRule {
    fn from(rule: &AccessRule) -> Self {
        let (callers, anyone) = match &rule.callers {
            Callers::Anyone => (Vec::new(), true),
            Callers::AnyOf(principals) => (principals.iter().map(Into::into).collect(), false),
        };
        Self {
            name: rule.name.to_string(),
            port: rule.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            route: rule.route.as_deref().unwrap_or_default().to_owned(),
            fallback: rule.fallback,
            callers,
            anyone,
            networks: rule.networks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<&v1::Network> for Network {
    type Error = WireError;

    fn try_from(message: &v1::Network) -> Result<Self, WireError> {
        at_most("policy.rules.networks.except", &message.except, MAX_NETWORKS)?;
        let except = message.except.iter().map(|one| parse("policy.rules.networks.except", one));
        Ok(Self {
            block: parse("policy.rules.networks.cidr", &message.cidr)?,
            except: except.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        Self {
            cidr: network.block.to_string(),
            except: network.except.iter().map(ToString::to_string).collect(),
        }
    }
}

fn principals(
    field: &'static str,
    messages: &[v1::PrincipalMatch],
) -> Result<Vec<PrincipalMatch>, WireError> {
    at_most(field, messages, MAX_PRINCIPALS)?;
    messages.iter().map(PrincipalMatch::try_from).collect()
}

impl TryFrom<&v1::PrincipalMatch> for PrincipalMatch {
    type Error = WireError;

    fn try_from(message: &v1::PrincipalMatch) -> Result<Self, WireError> {
        Ok(Self {
            trust_domain: match message.trust_domain.as_str() {
                "" => DomainMatch::Local,
                "*" => DomainMatch::Any,
                domain => DomainMatch::Exactly(parse("policy.trust_domain", domain)?),
            },
            namespace: exact_or_any("policy.namespace", &message.namespace)?,
            account: exact_or_any("policy.account", &message.account)?,
        })
    }
}

fn exact_or_any(field: &'static str, value: &str) -> Result<Option<Arc<str>>, WireError> {
    if value.is_empty() {
        return Ok(None);
    }
    label(field, value).map_err(|error| wrong(field, error))?;
    Ok(Some(value.into()))
}

impl From<&PrincipalMatch> for v1::PrincipalMatch {
    fn from(principal: &PrincipalMatch) -> Self {
        let part = |part: &Option<Arc<str>>| part.as_deref().unwrap_or_default().to_owned();
        Self {
            trust_domain: match &principal.trust_domain {
                DomainMatch::Local => String::new(),
                DomainMatch::Any => "*".to_owned(),
                DomainMatch::Exactly(domain) => domain.to_string(),
            },
            namespace: part(&principal.namespace),
            account: part(&principal.account),
        }
    }
}
