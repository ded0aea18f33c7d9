//! What all documents about callers together mean for one service.

use std::collections::BTreeMap;

use mesh_api::v1;
use mesh_core::wire::MAX_ACCESS_RULES;

use super::{AccessPolicy, AuthorizationPolicySpec, PortRef, ServerSpec};
use crate::{
    compile::Problem,
    manifest::{Kind, Manifest, ObjectName, Spec},
    rule::{GrpcRule, HttpMatch, HttpRule, ParentRef},
};

/// Documents of one namespace.
#[derive(Debug, Default)]
struct Namespace<'m> {
    servers: Vec<(&'m Manifest, &'m ServerSpec)>,
    policies: Vec<(&'m Manifest, &'m AuthorizationPolicySpec)>,
    /// HTTPRoutes and GRPCRoutes.
    routes: Vec<&'m Manifest>,
}

/// All documents of a site that say who may call.
#[derive(Debug, Default)]
pub struct AccessIndex<'m> {
    namespaces: BTreeMap<&'m str, Namespace<'m>>,
    authentications: BTreeMap<&'m ObjectName, &'m Manifest>,
}

/// What they mean for one service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CompiledAccess {
    /// `None` where nothing is written.
    pub policy: Option<v1::AuthorizationPolicy>,
    /// What a Server says is spoken on ports of these numbers.
    pub protocols: Vec<(u16, v1::Protocol)>,
    /// What of them is not in force, and why.
    pub problems: Vec<Problem>,
}

impl<'m> AccessIndex<'m> {
    /// Those among `manifests`, the oldest first.
    pub fn of(manifests: impl IntoIterator<Item = &'m Manifest>) -> Self {
        let mut ordered: Vec<&Manifest> = manifests.into_iter().collect();
        ordered.sort_by_key(|m| (m.created, &m.name));
        let mut index = Self::default();
        for manifest in ordered {
            let namespace = index.namespaces.entry(&manifest.name.namespace).or_default();
            match &manifest.spec {
                Spec::Server(spec) => namespace.servers.push((manifest, spec)),
                Spec::Authorization(spec) => namespace.policies.push((manifest, spec)),
                Spec::Http(_) | Spec::Grpc(_) => namespace.routes.push(manifest),
                Spec::MeshTls(_) | Spec::Network(_) => {
                    index.authentications.insert(&manifest.name, manifest);
                }
                Spec::Tls(_) | Spec::Tcp(_) | Spec::Profile(_) | Spec::Traffic(_) => {}
            }
        }
        index
    }

    /// What they mean for `service` (`<name>.<namespace>`) with these ports;
    /// `default` is what the site says where nothing is written.
    pub fn compile(
        &self,
        service: &str,
        ports: &[(String, u16)],
        default: AccessPolicy,
    ) -> CompiledAccess {
        let (name, namespace) = service.split_once('.').unwrap_or((service, ""));
        let nothing = Namespace::default();
        let documents = self.namespaces.get(namespace).unwrap_or(&nothing);
        let mut compiling = Compiling {
            index: self,
            name,
            namespace,
            ports,
            servers: Vec::new(),
            policy: v1::AuthorizationPolicy::default(),
            closed: Vec::new(),
            compiled: CompiledAccess::default(),
        };
        compiling.find_servers(documents);
        let mut written = !compiling.servers.is_empty();
        for (manifest, spec) in &documents.policies {
            written |= compiling.add_policy(manifest, spec, documents);
        }
        if !written && default == AccessPolicy::AllAuthenticated {
            return compiling.compiled;
        }
        compiling.add_defaults(default);
        compiling.finish()
    }

    /// Policies whose target or authentications are not there. Their targets,
    /// if there are such, are closed all the same.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for documents in self.namespaces.values() {
            for (manifest, spec) in &documents.policies {
                let target = documents.has_target(spec).then_some(()).ok_or_else(|| {
                    let target = &spec.target_ref;
                    format!("TargetNotFound: there is no {} {} yet", target.kind, target.name)
                });
                let found = self.rule(manifest, spec).map(drop);
                let texts = [target, found].into_iter().filter_map(Result::err);
                problems.extend(texts.map(|text| problem(manifest, text)));
            }
        }
        problems
    }

    /// Whom a policy allows.
    fn rule(
        &self,
        manifest: &Manifest,
        spec: &AuthorizationPolicySpec,
    ) -> Result<v1::AccessRule, String> {
        let own = &manifest.name.namespace;
        let mut rule = v1::AccessRule { anyone: true, ..v1::AccessRule::default() };
        for one in &spec.required_authentication_refs {
            let kind = match one.kind.as_str() {
                "MeshTLSAuthentication" => Kind::MeshTLSAuthentication,
                "NetworkAuthentication" => Kind::NetworkAuthentication,
                _ => {
                    rule.anyone = false;
                    rule.callers.push(one.principal(own)?);
                    continue;
                }
            };
            let namespace = one.namespace.as_ref().unwrap_or(own).clone();
            let name = ObjectName { kind, namespace, name: one.name.clone() };
            let missing = || format!("RefNotResolved: there is no {name} yet; it allows nobody");
            match &self.authentications.get(&name).ok_or_else(missing)?.spec {
                Spec::MeshTls(spec) => {
                    rule.anyone = false;
                    rule.callers.extend(spec.wire(&name.namespace)?);
                }
                Spec::Network(spec) => rule.networks.extend(spec.wire()?),
                _ => return Err(missing()),
            }
        }
        Ok(rule)
    }
}

impl Namespace<'_> {
    /// Whether a target exists, as far as documents are asked.
    fn has_target(&self, spec: &AuthorizationPolicySpec) -> bool {
        let target = &spec.target_ref;
        match target.kind.as_str() {
            "Server" => self.servers.iter().any(|(server, _)| server.name.name == target.name),
            "HTTPRoute" | "GRPCRoute" => {
                self.routes.iter().any(|route| is_named(route, &target.kind, &target.name))
            }
            _ => true,
        }
    }
}

fn is_named(manifest: &Manifest, kind: &str, name: &str) -> bool {
    manifest.name.kind.as_str() == kind && manifest.name.name == name
}

fn problem(manifest: &Manifest, text: String) -> Problem {
    Problem { document: manifest.name.to_string(), text }
}

/// A Server of the service, with the names of the ports that it holds for.
struct Served<'m> {
    manifest: &'m Manifest,
    spec: &'m ServerSpec,
    ports: Vec<&'m str>,
}

struct Compiling<'a> {
    index: &'a AccessIndex<'a>,
    name: &'a str,
    namespace: &'a str,
    ports: &'a [(String, u16)],
    servers: Vec<Served<'a>>,
    policy: v1::AuthorizationPolicy,
    /// Ports that a policy closes; an empty name is all.
    closed: Vec<String>,
    compiled: CompiledAccess,
}

impl<'a> Compiling<'a> {
    fn find_servers(&mut self, documents: &Namespace<'a>) {
        for (manifest, spec) in &documents.servers {
            if spec.service() != Ok(self.name) {
                continue;
            }
            let ports: Vec<&(String, u16)> = self
                .ports
                .iter()
                .filter(|(name, number)| match &spec.port {
                    None => true,
                    Some(PortRef::Number(only)) => only == number,
                    Some(PortRef::Name(only)) => only == name,
                })
                .collect();
            if ports.is_empty() {
                let text = format!("PortNotFound: {} has no such port", self.name);
                self.compiled.problems.push(problem(manifest, text));
            }
            if let Some(protocol) = spec.proxy_protocol.wire() {
                let spoken = ports.iter().map(|(_, number)| (*number, protocol));
                self.compiled.protocols.extend(spoken);
            }
            let ports = ports.into_iter().map(|(name, _)| name.as_str()).collect();
            self.servers.push(Served { manifest, spec, ports });
        }
    }

    /// Adds a policy if it is for this service; says whether it is.
    fn add_policy(
        &mut self,
        manifest: &'a Manifest,
        spec: &AuthorizationPolicySpec,
        documents: &Namespace<'a>,
    ) -> bool {
        let target = &spec.target_ref;
        let mut scopes: Vec<(String, String)> = Vec::new();
        match target.kind.as_str() {
            "Service" if target.name == self.name => scopes.push(Default::default()),
            "Namespace" if target.name == self.namespace => scopes.push(Default::default()),
            "Server" => {
                let server = self.servers.iter().find(|one| one.manifest.name.name == target.name);
                let ports = server.into_iter().flat_map(|server| &server.ports);
                scopes.extend(ports.map(|port| ((*port).to_owned(), String::new())));
            }
            "HTTPRoute" | "GRPCRoute" if self.add_routes(manifest, target, documents) => {
                let route = route_name(&target.kind, self.namespace, &target.name);
                scopes.push((String::new(), route));
            }
            _ => {}
        }
        // One that cannot be understood allows nobody, and closes its target.
        let rule = self.index.rule(manifest, spec).unwrap_or_default();
        for (port, route) in &scopes {
            if route.is_empty() {
                self.closed.push(port.clone());
            }
            self.policy.rules.push(v1::AccessRule {
                name: manifest.name.to_string(),
                port: port.clone(),
                route: route.clone(),
                ..rule.clone()
            });
        }
        !scopes.is_empty()
    }

    /// All routes of the service, once one of them is named: which of several
    /// a request falls under is decided among all. Says whether the target is
    /// one of them.
    fn add_routes(
        &mut self,
        policy: &Manifest,
        target: &crate::traffic::TargetRef,
        documents: &Namespace<'a>,
    ) -> bool {
        let named = documents.routes.iter().find(|one| is_named(one, &target.kind, &target.name));
        if named.is_none_or(|route| self.ports_of(route).is_empty()) {
            return false;
        }
        if !self.policy.routes.is_empty() {
            return true;
        }
        for route in &documents.routes {
            let (kind, name) = (route.name.kind.as_str(), &route.name.name);
            let name = route_name(kind, self.namespace, name);
            let matches = match matches(route) {
                Ok(matches) => matches,
                Err(text) => {
                    self.compiled.problems.push(problem(policy, text));
                    continue;
                }
            };
            for port in self.ports_of(route) {
                let one = |matches: &Vec<v1::RouteMatch>| v1::Route {
                    name: name.clone(),
                    port: port.clone(),
                    matches: matches.clone(),
                    ..v1::Route::default()
                };
                self.policy.routes.extend(matches.iter().map(one));
            }
        }
        true
    }

    /// Names of the ports that a route is attached to here, empty for all; none
    /// if it is not. Only what the service's own namespace writes counts.
    fn ports_of(&self, route: &Manifest) -> Vec<String> {
        let mut ports = Vec::new();
        for parent in parents(route) {
            let own = parent.namespace.as_deref().is_none_or(|of| of == self.namespace);
            if !own {
                continue;
            }
            if parent.is_service() && parent.name == self.name {
                let numbered = |(_, number): &&(String, u16)| Some(*number) == parent.port;
                let by_number = || self.ports.iter().find(numbered).map(|(name, _)| name.clone());
                let name = parent.section_name.clone().or_else(by_number).unwrap_or_default();
                ports.push(name);
            }
            if parent.is_server() {
                let server = self.servers.iter().find(|one| one.manifest.name.name == parent.name);
                let its = server.into_iter().flat_map(|server| &server.ports);
                ports.extend(its.map(|port| (*port).to_owned()));
            }
        }
        ports
    }

    /// What holds for every port where no policy allows: what its Server says,
    /// nothing where a policy has closed it, else what the site says.
    fn add_defaults(&mut self, default: AccessPolicy) {
        for (port, _) in self.ports {
            let mut servers = self.servers.iter().filter(|one| one.ports.contains(&port.as_str()));
            // The one that names the port counts before one for all.
            let named = servers.clone().find(|one| one.spec.port.is_some());
            let server = named.or_else(|| servers.next());
            let closed = self.closed.iter().any(|closed| closed.is_empty() || closed == port);
            let (access, name) = match server {
                Some(server) => (server.spec.access_policy, server.manifest.name.to_string()),
                None if closed => (AccessPolicy::Deny, String::new()),
                None => (default, format!("default {}", default.as_str())),
            };
            if access == AccessPolicy::Audit {
                self.policy.audit_ports.push(port.clone());
            }
            let fallback = server.is_none();
            let rule =
                |rule| v1::AccessRule { name: name.clone(), port: port.clone(), fallback, ..rule };
            self.policy.rules.extend(access.rules().into_iter().map(rule));
        }
        self.tell_conflicts();
    }

    /// Of several Servers for one port the oldest counts.
    fn tell_conflicts(&mut self) {
        for (at, server) in self.servers.iter().enumerate() {
            let earlier = self.servers[..at].iter().find(|earlier| {
                earlier.spec.port.is_some() == server.spec.port.is_some()
                    && earlier.ports.iter().any(|port| server.ports.contains(port))
            });
            if let Some(earlier) = earlier {
                let text = format!("Conflicted: {} is for the same port", earlier.manifest.name);
                self.compiled.problems.push(problem(server.manifest, text));
            }
        }
    }

    fn finish(mut self) -> CompiledAccess {
        if self.policy.rules.len() > MAX_ACCESS_RULES {
            let text = format!(
                "TooManyRules: {} has more than {MAX_ACCESS_RULES}; nobody may call it",
                self.name
            );
            let named = self.policy.rules.first().map(|rule| rule.name.clone());
            let document = named.unwrap_or_default();
            self.compiled.problems.push(Problem { document, text });
            self.policy = v1::AuthorizationPolicy::default();
        }
        self.compiled.policy = Some(self.policy);
        self.compiled
    }
}

fn route_name(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

fn parents(route: &Manifest) -> &[ParentRef] {
    match &route.spec {
        Spec::Http(spec) => &spec.parent_refs,
        Spec::Grpc(spec) => &spec.parent_refs,
        _ => &[],
    }
}

/// The matches of each rule of a route.
fn matches(route: &Manifest) -> Result<Vec<Vec<v1::RouteMatch>>, String> {
    let of = |rule: &HttpRule| rule.matches.iter().map(HttpMatch::wire).collect();
    match &route.spec {
        Spec::Http(spec) => spec.rules.iter().map(of).collect(),
        Spec::Grpc(spec) => {
            let rules: Result<Vec<HttpRule>, _> = spec.rules.iter().map(GrpcRule::http).collect();
            rules?.iter().map(of).collect()
        }
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests;
