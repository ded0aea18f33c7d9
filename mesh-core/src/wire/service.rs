//! Services with their ports, routes and policy.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method};
use mesh_api::v1;

use super::{
    MAX_BACKENDS, MAX_HEADERS, MAX_MATCH_TEXT, MAX_MATCHES, MAX_PORTS, MAX_PRINCIPALS, MAX_ROUTES,
    MAX_SITES, MAX_TEXT, WireError, at_most, list, parse, text, wrong,
};
use crate::{
    authorize::{DomainMatch, PrincipalMatch, ServerPolicy},
    name::{SiteName, TrustDomain, label},
    service::{
        Link, Map, PathMatch, Protocol, Route, RouteBackend, RouteMatch, Service, ServicePort,
    },
};

/// The longest request method that a match may name.
const MAX_METHOD: usize = 32;

/// A service without endpoints, its policy written for `local`.
/// [`policy_domains`] completes the policy once the links are known.
pub(crate) fn service(message: &v1::Service, local: &TrustDomain) -> Result<Service, WireError> {
    let virtual_address = match message.virtual_address.as_str() {
        "" => None,
        ip => Some(ip.parse().map_err(|_| wrong("virtual_address", "must be an IP address"))?),
    };
    at_most("routes", &message.routes, MAX_ROUTES)?;
    let routes: Vec<Route> =
        message.routes.iter().map(Route::try_from).collect::<Result<_, _>>()?;
    let names: BTreeSet<&str> = routes.iter().map(|route| &*route.name).collect();
    if names.len() != routes.len() {
        return Err(wrong("routes", "two have the same name"));
    }
    Ok(Service {
        name: parse("name", &message.name)?,
        ports: ports(&message.ports)?,
        endpoints: Vec::new(),
        exported_to: list("exported_to", &message.exported_to, MAX_SITES, parse)?,
        imported_from: list("imported_from", &message.imported_from, MAX_SITES, parse)?,
        virtual_address,
        routes,
        policy: ServerPolicy {
            local: local.clone(),
            exported_to: BTreeSet::new(),
            allow: message.policy.as_ref().map(principals).transpose()?,
        },
    })
}

/// The trust domains behind the names of linked sites; a site whose link has
/// ended has none, so nobody of it may call.
pub(crate) fn policy_domains(
    sites: &BTreeSet<SiteName>,
    links: &Map<SiteName, Link>,
) -> BTreeSet<TrustDomain> {
    let linked = sites.iter().filter_map(|site| links.get(site));
    linked.map(|link| link.trust_domain.clone()).collect()
}

fn ports(messages: &[v1::Port]) -> Result<Vec<ServicePort>, WireError> {
    at_most("ports", messages, MAX_PORTS)?;
    if messages.is_empty() {
        return Err(wrong("ports", "a service has at least one"));
    }
    let ports: Vec<ServicePort> =
        messages.iter().map(ServicePort::try_from).collect::<Result<_, _>>()?;
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|other| other.name == port.name || other.number == port.number) {
            return Err(wrong("ports", format_args!("{} is there twice", port.name)));
        }
    }
    Ok(ports)
}

impl TryFrom<&v1::Port> for ServicePort {
    type Error = WireError;

    fn try_from(message: &v1::Port) -> Result<Self, WireError> {
        let number = u16::try_from(message.number).ok().filter(|number| *number != 0);
        Ok(Self {
            name: parse("ports.name", &message.name)?,
            number: number.ok_or_else(|| wrong("ports.number", "must be 1 to 65535"))?,
            protocol: message.protocol().into(),
        })
    }
}

impl From<&ServicePort> for v1::Port {
    fn from(port: &ServicePort) -> Self {
        Self {
            name: port.name.to_string(),
            number: port.number.into(),
            protocol: v1::Protocol::from(port.protocol).into(),
        }
    }
}

impl From<v1::Protocol> for Protocol {
    fn from(message: v1::Protocol) -> Self {
        match message {
            v1::Protocol::Unspecified => Self::Detect,
            v1::Protocol::Http => Self::Http,
            v1::Protocol::Grpc => Self::Grpc,
            v1::Protocol::Tcp => Self::Tcp,
        }
    }
}

impl From<Protocol> for v1::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Detect => Self::Unspecified,
            Protocol::Http => Self::Http,
            Protocol::Grpc => Self::Grpc,
            Protocol::Tcp => Self::Tcp,
        }
    }
}

impl TryFrom<&v1::Route> for Route {
    type Error = WireError;

    fn try_from(message: &v1::Route) -> Result<Self, WireError> {
        at_most("routes.matches", &message.matches, MAX_MATCHES)?;
        at_most("routes.backends", &message.backends, MAX_BACKENDS)?;
        let timeout = message.request_timeout_ms;
        Ok(Self {
            name: text("routes.name", &message.name, MAX_TEXT)?,
            matches: message.matches.iter().map(RouteMatch::try_from).collect::<Result<_, _>>()?,
            backends: message
                .backends
                .iter()
                .map(RouteBackend::try_from)
                .collect::<Result<_, _>>()?,
            request_timeout: (timeout != 0).then(|| Duration::from_millis(timeout)),
        })
    }
}

impl From<&Route> for v1::Route {
    fn from(route: &Route) -> Self {
        let timeout = route.request_timeout.map_or(0, |timeout| timeout.as_millis());
        Self {
            name: route.name.to_string(),
            matches: route.matches.iter().map(Into::into).collect(),
            backends: route.backends.iter().map(Into::into).collect(),
            request_timeout_ms: u64::try_from(timeout).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<&v1::RouteMatch> for RouteMatch {
    type Error = WireError;

    fn try_from(message: &v1::RouteMatch) -> Result<Self, WireError> {
        use v1::route_match::Path;
        at_most("matches.headers", &message.headers, MAX_HEADERS)?;
        let path = match &message.path {
            None => None,
            Some(Path::ExactPath(exact)) => Some(PathMatch::Exact(path(exact)?)),
            Some(Path::PathPrefix(prefix)) => Some(PathMatch::Prefix(path(prefix)?)),
        };
        let method = match message.method.as_str() {
            "" => None,
            token if token.len() > MAX_METHOD => {
                return Err(wrong("matches.method", "is too long"));
            }
            token => Some(parse::<Method>("matches.method", token)?),
        };
        let headers = message.headers.iter().map(header).collect::<Result<_, _>>()?;
        Ok(Self { path, method, headers })
    }
}

fn path(value: &str) -> Result<Arc<str>, WireError> {
    if !value.starts_with('/') {
        return Err(wrong("matches.path", "must begin with '/'"));
    }
    text("matches.path", value, MAX_MATCH_TEXT)
}

fn header(message: &v1::HeaderMatch) -> Result<(HeaderName, HeaderValue), WireError> {
    const FIELD: &str = "matches.headers";
    if message.value.len() > MAX_MATCH_TEXT || message.name.len() > MAX_TEXT {
        return Err(wrong(FIELD, "name or value is too long"));
    }
    Ok((parse(FIELD, &message.name)?, parse(FIELD, &message.value)?))
}

impl From<&RouteMatch> for v1::RouteMatch {
    fn from(route_match: &RouteMatch) -> Self {
        use v1::route_match::Path;
        let path = route_match.path.as_ref().map(|path| match path {
            PathMatch::Exact(path) => Path::ExactPath(path.to_string()),
            PathMatch::Prefix(path) => Path::PathPrefix(path.to_string()),
        });
        let headers = route_match.headers.iter().map(|(name, value)| v1::HeaderMatch {
            name: name.to_string(),
            // A protobuf string; values that came over the wire are UTF-8.
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        });
        Self {
            path,
            method: route_match.method.as_ref().map(ToString::to_string).unwrap_or_default(),
            headers: headers.collect(),
        }
    }
}

impl TryFrom<&v1::Backend> for RouteBackend {
    type Error = WireError;

    fn try_from(message: &v1::Backend) -> Result<Self, WireError> {
        let port = match message.port.as_str() {
            "" => None,
            port => Some(parse("backends.port", port)?),
        };
        Ok(Self {
            service: parse("backends.service", &message.service)?,
            port,
            weight: message.weight,
        })
    }
}

impl From<&RouteBackend> for v1::Backend {
    fn from(backend: &RouteBackend) -> Self {
        Self {
            service: backend.service.to_string(),
            port: backend.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            weight: backend.weight,
        }
    }
}

fn principals(message: &v1::AuthorizationPolicy) -> Result<Vec<PrincipalMatch>, WireError> {
    at_most("policy.allow", &message.allow, MAX_PRINCIPALS)?;
    message.allow.iter().map(PrincipalMatch::try_from).collect()
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

/// Without endpoints: those are resources of their own.
impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        let allow = service.policy.allow.as_ref();
        Self {
            name: service.name.to_string(),
            ports: service.ports.iter().map(Into::into).collect(),
            exported_to: service.exported_to.iter().map(ToString::to_string).collect(),
            imported_from: service.imported_from.iter().map(ToString::to_string).collect(),
            virtual_address: service.virtual_address.map(|ip| ip.to_string()).unwrap_or_default(),
            routes: service.routes.iter().map(Into::into).collect(),
            policy: allow.map(|allow| v1::AuthorizationPolicy {
                allow: allow.iter().map(Into::into).collect(),
            }),
        }
    }
}
