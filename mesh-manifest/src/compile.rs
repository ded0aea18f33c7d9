//! What all documents together mean for one service.

mod annotations;
mod check;

use std::collections::BTreeMap;

use crate::{
    access::{AccessPolicy, index::AccessIndex},
    balance::Balance,
    connection::Connections,
    extension::RuleOrder,
    manifest::{Kind, Manifest, Spec},
    profile::{ServiceProfileSpec, authority},
    rule::{BackendRef, Filter, Fraction, GrpcRule, HttpMatch, HttpRule, Mirror, ParentRef},
};
use mesh_api::v1;

pub(crate) use check::check;

/// What a mesh knows of its services.
pub trait Registry {
    /// (name, number) of a service's ports; `None` if there is no such
    /// service, `<name>.<namespace>`.
    fn ports(&self, service: &str) -> Option<Vec<(String, u16)>>;
}

impl Registry for BTreeMap<String, Vec<(String, u16)>> {
    fn ports(&self, service: &str) -> Option<Vec<(String, u16)>> {
        self.get(service).cloned()
    }
}

/// What documents mean for one service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compiled {
    /// In the order that decides between equals.
    pub routes: Vec<v1::Route>,
    /// The same for connections.
    pub connection_routes: Vec<v1::ConnectionRoute>,
    /// `None` without any policy.
    pub traffic: Option<v1::TrafficPolicy>,
    /// `None` without any policy.
    pub balance: Option<v1::BalancePolicy>,
    /// Who may call; `None` without any document about that.
    pub policy: Option<v1::AuthorizationPolicy>,
    /// What a profile or a Server says is spoken on ports of these numbers.
    pub protocols: Vec<(u16, v1::Protocol)>,
    /// What of them is not in force, and why.
    pub problems: Vec<Problem>,
}

/// A document of which something is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `HTTPRoute shop/orders`.
    pub document: String,
    /// What, and why.
    pub text: String,
}

/// What `manifests` mean for `service` (`<name>.<namespace>`). Those for other
/// services are passed over.
///
/// Gateway API: routes of one kind merge, the oldest first, then by namespace
/// and name; GRPCRoutes come before HTTPRoutes. A ServiceProfile replaces the
/// HTTPRoutes of its service, as in Linkerd.
pub fn compile(service: &str, manifests: &[Manifest], registry: &impl Registry) -> Compiled {
    let access = AccessIndex::of(manifests);
    compile_with(service, manifests, registry, (&access, AccessPolicy::AllAuthenticated))
}

/// The same where documents about callers are known already, and what the site
/// says where there are none.
pub fn compile_with(
    service: &str,
    manifests: &[Manifest],
    registry: &impl Registry,
    (access, default): (&AccessIndex<'_>, AccessPolicy),
) -> Compiled {
    let mut ordered: Vec<&Manifest> = manifests.iter().collect();
    ordered.sort_by_key(|m| (rank(m.name.kind), m.created, &m.name.namespace, &m.name.name));
    let mut compiled = Compiled::default();
    let mut compiling = Compiling { service, registry, compiled: &mut compiled };
    for manifest in ordered {
        if let Err(text) = compiling.add(manifest) {
            compiling.problem(manifest, text);
        }
    }
    let access = access.compile(service, &registry.ports(service).unwrap_or_default(), default);
    compiled.policy = access.policy;
    compiled.protocols.extend(access.protocols);
    compiled.problems.extend(access.problems);
    compiled
}

/// GRPCRoute > HTTPRoute; policies last, because they change rules.
fn rank(kind: Kind) -> u8 {
    match kind {
        Kind::ServiceProfile => 0,
        Kind::GRPCRoute => 1,
        Kind::HTTPRoute => 2,
        Kind::TLSRoute => 3,
        Kind::TCPRoute => 4,
        Kind::TrafficPolicy => 5,
        Kind::Server
        | Kind::AuthorizationPolicy
        | Kind::MeshTLSAuthentication
        | Kind::NetworkAuthentication => 6,
    }
}

/// The services that a document names itself for; authentications and policies
/// of other targets name none.
pub fn services(manifest: &Manifest) -> Result<Vec<String>, String> {
    let namespace = &manifest.name.namespace;
    let parents = |refs: &[ParentRef]| -> Result<Vec<String>, String> {
        if refs.is_empty() {
            return Err("spec.parentRefs: name the service it is for".into());
        }
        let services = refs.iter().filter(|one| one.is_service());
        Ok(services.map(|one| qualified(&one.name, one.namespace.as_deref(), namespace)).collect())
    };
    match &manifest.spec {
        Spec::Http(spec) => parents(&spec.parent_refs),
        Spec::Grpc(spec) => parents(&spec.parent_refs),
        Spec::Tls(spec) => parents(&spec.parent_refs),
        Spec::Tcp(spec) => parents(&spec.parent_refs),
        Spec::Profile(_) => Ok(vec![authority(&manifest.name.name)?.0]),
        Spec::Traffic(spec) => {
            let target = &spec.target_ref;
            if target.kind != "Service" || target.name.is_empty() {
                return Err("spec.targetRef: needs kind Service and a name".into());
            }
            Ok(vec![qualified(&target.name, None, namespace)])
        }
        Spec::Server(spec) => Ok(vec![qualified(spec.service()?, None, namespace)]),
        Spec::Authorization(spec) => {
            spec.check(namespace)?;
            let target = &spec.target_ref;
            let service = (target.kind == "Service").then_some(&target.name);
            Ok(service.map(|name| qualified(name, None, namespace)).into_iter().collect())
        }
        Spec::MeshTls(spec) => spec.wire(namespace).map(|_| Vec::new()),
        Spec::Network(spec) => spec.wire().map(|_| Vec::new()),
    }
}

/// Other kinds are not carried.
fn is_service(backend: &BackendRef) -> bool {
    backend.kind.as_deref().is_none_or(|kind| kind == "Service")
        && matches!(backend.group.as_deref(), None | Some("" | "core"))
}

fn qualified(name: &str, namespace: Option<&str>, own: &str) -> String {
    format!("{name}.{}", namespace.unwrap_or(own))
}

struct Compiling<'a, R> {
    service: &'a str,
    registry: &'a R,
    compiled: &'a mut Compiled,
}

impl<R: Registry> Compiling<'_, R> {
    fn problem(&mut self, manifest: &Manifest, text: String) {
        let document = manifest.name.to_string();
        self.compiled.problems.push(Problem { document, text });
    }

    fn add(&mut self, manifest: &Manifest) -> Result<(), String> {
        if !services(manifest)?.iter().any(|service| service == self.service) {
            return Ok(());
        }
        match &manifest.spec {
            Spec::Http(spec) => {
                for parent in &spec.parent_refs {
                    self.http_rules(manifest, parent, &spec.rules)?;
                }
                Ok(())
            }
            Spec::Grpc(spec) => {
                for parent in &spec.parent_refs {
                    let rules =
                        spec.rules.iter().map(GrpcRule::http).collect::<Result<Vec<_>, _>>()?;
                    self.http_rules(manifest, parent, &rules)?;
                }
                Ok(())
            }
            Spec::Tls(spec) => self.connections(manifest, spec.connections()),
            Spec::Tcp(spec) => self.connections(manifest, spec.connections()),
            Spec::Profile(spec) => self.profile(manifest, spec),
            Spec::Traffic(spec) => {
                let mut traffic = spec.traffic.wire()?;
                traffic.listed_order = spec.rule_order == RuleOrder::Listed;
                let balance = spec.balance.as_ref().map(Balance::wire).transpose();
                self.compiled.balance = balance.map_err(|text| format!("spec.{text}"))?;
                for policy in &spec.rules {
                    if self.compiled.routes.is_empty() {
                        self.compiled.routes.push(self.itself());
                    }
                    for route in &mut self.compiled.routes {
                        policy.apply(route)?;
                    }
                }
                if self.compiled.traffic.replace(traffic).is_some() {
                    return Err("replaces an older TrafficPolicy of the same service".into());
                }
                Ok(())
            }
            // Who may call is compiled from all of them at once.
            Spec::Server(_) | Spec::Authorization(_) | Spec::MeshTls(_) | Spec::Network(_) => {
                Ok(())
            }
        }
    }

    /// A rule that sends everything to the service itself.
    fn itself(&self) -> v1::Route {
        let backend = v1::Backend { service: self.service.into(), weight: 1, ..Default::default() };
        v1::Route { name: "default".into(), backends: vec![backend], ..Default::default() }
    }

    fn http_rules(
        &mut self,
        manifest: &Manifest,
        parent: &ParentRef,
        rules: &[HttpRule],
    ) -> Result<(), String> {
        let namespace = &manifest.name.namespace;
        let of = qualified(&parent.name, parent.namespace.as_deref(), namespace);
        if !parent.is_service() || of != self.service {
            return Ok(());
        }
        if self.compiled.routes.iter().any(|route| route.name.starts_with(PROFILE)) {
            return Err("not in force: the service has a ServiceProfile".into());
        }
        let port = self.parent_port(parent)?;
        for (index, rule) in rules.iter().enumerate() {
            let name = rule.name.clone().unwrap_or_else(|| index.to_string());
            let route = v1::Route {
                // One document may have several parents that are this service.
                name: self.unique(format!("{namespace}/{}/{name}", manifest.name.name)),
                port: port.clone(),
                client_namespace: self.consumer(namespace),
                ..self.rule(manifest, rule).map_err(|text| format!("spec.rules[{index}].{text}"))?
            };
            self.compiled.routes.push(route);
        }
        Ok(())
    }

    fn connections(&mut self, manifest: &Manifest, of: Connections<'_>) -> Result<(), String> {
        let namespace = &manifest.name.namespace;
        for parent in of.parents {
            let service = qualified(&parent.name, parent.namespace.as_deref(), namespace);
            if !parent.is_service() || service != self.service {
                continue;
            }
            let route = of.wire(|backend| self.backend(manifest, backend))?;
            let name = format!("{namespace}/{}/{}", manifest.name.name, route.name);
            let taken =
                |name: &str| self.compiled.connection_routes.iter().any(|route| route.name == name);
            let (name, port) = (unique(taken, name), self.parent_port(parent)?);
            let client_namespace = self.consumer(namespace);
            let route = v1::ConnectionRoute { name, port, client_namespace, ..route };
            self.compiled.connection_routes.push(route);
        }
        Ok(())
    }

    /// Whom a route of `namespace` is for: everybody, if it is the service's
    /// own.
    fn consumer(&self, namespace: &str) -> String {
        let producer = self.service.split_once('.').is_some_and(|(_, its)| its == namespace);
        if producer { String::new() } else { namespace.to_owned() }
    }

    fn parent_port(&self, parent: &ParentRef) -> Result<String, String> {
        if let Some(name) = &parent.section_name {
            return Ok(name.clone());
        }
        let Some(number) = parent.port else { return Ok(String::new()) };
        match self.registry.ports(self.service) {
            None => Ok(number.to_string()),
            Some(ports) => name_of(&ports, number).ok_or_else(|| {
                format!("spec.parentRefs.port: {} has no port {number}", self.service)
            }),
        }
    }

    fn rule(&mut self, manifest: &Manifest, rule: &HttpRule) -> Result<v1::Route, String> {
        rule.timeouts.check()?;
        let namespace = &manifest.name.namespace;
        let backends = rule.backend_refs.iter().map(|backend| self.backend(manifest, backend));
        let mut route = v1::Route {
            matches: rule.matches.iter().map(HttpMatch::wire).collect::<Result<_, _>>()?,
            backends: backends.collect::<Result<_, _>>()?,
            filters: Some(self.filters(namespace, &rule.filters)?),
            request_timeout_ms: crate::duration::millis(rule.timeouts.request),
            backend_timeout_ms: crate::duration::millis(rule.timeouts.backend_request),
            retry: rule.retry.as_ref().map(crate::rule::Retry::wire).transpose()?,
            ..v1::Route::default()
        };
        annotations::apply(&mut route, &manifest.annotations)?;
        Ok(route)
    }

    fn backend(&self, manifest: &Manifest, backend: &BackendRef) -> Result<v1::Backend, String> {
        let namespace = &manifest.name.namespace;
        let (service, port, invalid) = self.target(namespace, backend);
        let filters = self.filters(namespace, &backend.filters)?;
        Ok(v1::Backend {
            service,
            port,
            weight: backend.weight.unwrap_or(1),
            filters: (filters != v1::Filters::default()).then_some(filters),
            invalid,
        })
    }

    /// Service, port name and why it cannot be used.
    fn target(&self, namespace: &str, backend: &BackendRef) -> (String, String, String) {
        let service = qualified(&backend.name, backend.namespace.as_deref(), namespace);
        if !is_service(backend) {
            return (service, String::new(), "InvalidKind: only Service is carried".into());
        }
        match (self.registry.ports(&service), backend.port) {
            (None, _) => {
                let invalid = format!("BackendNotFound: there is no service {service}");
                (service, String::new(), invalid)
            }
            (Some(_), None) => (service, String::new(), String::new()),
            (Some(ports), Some(number)) => match name_of(&ports, number) {
                Some(name) => (service, name, String::new()),
                None => {
                    let invalid = format!("BackendNotFound: {service} has no port {number}");
                    (service, String::new(), invalid)
                }
            },
        }
    }

    fn filters(&self, namespace: &str, filters: &[Filter]) -> Result<v1::Filters, String> {
        let mut out = v1::Filters::default();
        for filter in filters {
            let twice = match filter {
                Filter::RequestHeaderModifier { request_header_modifier: change } => {
                    out.request.replace(change.wire()).is_some()
                }
                Filter::ResponseHeaderModifier { response_header_modifier: change } => {
                    out.response.replace(change.wire()).is_some()
                }
                Filter::RequestRedirect { request_redirect: redirect } => {
                    out.redirect.replace(redirect.wire()).is_some()
                }
                Filter::UrlRewrite { url_rewrite: rewrite } => {
                    out.rewrite.replace(rewrite.wire()).is_some()
                }
                Filter::RequestMirror { request_mirror: mirror } => {
                    out.mirrors.extend(self.mirror(namespace, mirror)?);
                    false
                }
            };
            if twice {
                return Err("filters: each type at most once (mirrors excepted)".into());
            }
        }
        Ok(out)
    }

    /// Mirrors never fail a request: callers leave out and count copies for a
    /// service or port that is not there.
    fn mirror(&self, namespace: &str, mirror: &Mirror) -> Result<Option<v1::Mirror>, String> {
        let fraction = match (mirror.percent, mirror.fraction) {
            (Some(_), Some(_)) => return Err("filters.requestMirror: percent or fraction".into()),
            (Some(numerator), None) => Some(Fraction { numerator, denominator: Some(100) }),
            (None, fraction) => fraction,
        };
        let backend = &mirror.backend_ref;
        if !is_service(backend) {
            return Ok(None);
        }
        let (service, port, _) = self.target(namespace, backend);
        let port = match backend.port {
            Some(number) if port.is_empty() => number.to_string(),
            _ => port,
        };
        let fraction = fraction.map(Fraction::wire);
        Ok(Some(v1::Mirror { service, port, fraction }))
    }

    fn profile(&mut self, manifest: &Manifest, spec: &ServiceProfileSpec) -> Result<(), String> {
        let backends = self.overrides(spec)?;
        let mut routes = Vec::new();
        for (index, route) in spec.routes.iter().enumerate() {
            let route = route.wire().map_err(|text| format!("spec.routes[{index}].{text}"))?;
            routes.push(route);
        }
        // What matches no route goes to the service all the same.
        routes.push(v1::Route { name: "default".into(), ..v1::Route::default() });
        for route in routes {
            let name = format!("{PROFILE}{}/{}", manifest.name.name, route.name);
            let route = v1::Route {
                name: self.unique(name),
                client_namespace: self.consumer(&manifest.name.namespace),
                backends: backends.clone(),
                ..route
            };
            self.compiled.routes.push(route);
        }
        for port in &spec.opaque_ports {
            let number = port.parse().map_err(|_| format!("spec.opaquePorts: {port:?}"))?;
            self.compiled.protocols.push((number, v1::Protocol::Tcp));
        }
        if let Some(budget) = spec.retry_budget {
            let traffic = self.compiled.traffic.get_or_insert_default();
            traffic.retry_budget = Some(budget.wire().map_err(|text| format!("spec.{text}"))?);
        }
        Ok(())
    }

    fn unique(&self, name: String) -> String {
        let taken = |name: &str| self.compiled.routes.iter().any(|route| route.name == name);
        unique(taken, name)
    }

    fn overrides(&self, spec: &ServiceProfileSpec) -> Result<Vec<v1::Backend>, String> {
        if spec.dst_overrides.is_empty() {
            return Ok(self.itself().backends);
        }
        let backend = |one: &crate::profile::DstOverride| {
            let (service, port) = authority(&one.authority)?;
            let (name, namespace) = service.split_once('.').unwrap_or((&service, ""));
            let target = BackendRef {
                name: name.into(),
                namespace: Some(namespace.into()),
                port,
                ..BackendRef::default()
            };
            let (service, port, invalid) = self.target(namespace, &target);
            let weight = one.milli_weight()?;
            Ok(v1::Backend { service, port, weight, filters: None, invalid })
        };
        let backends = spec.dst_overrides.iter().map(backend);
        backends.collect::<Result<_, String>>().map_err(|text| format!("spec.dstOverrides: {text}"))
    }
}

/// What names of rules that come from a ServiceProfile begin with.
const PROFILE: &str = "profile/";

fn unique(taken: impl Fn(&str) -> bool, name: String) -> String {
    if !taken(&name) {
        return name;
    }
    let numbered = (2..).map(|n| format!("{name}#{n}"));
    numbered.into_iter().find(|name| !taken(name)).unwrap_or(name)
}

fn name_of(ports: &[(String, u16)], number: u16) -> Option<String> {
    ports.iter().find(|(_, its)| *its == number).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests;
