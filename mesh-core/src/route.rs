//! Which backends a request may go to.

use std::{sync::Arc, time::Duration};

use crate::{
    balance::scale,
    name::{PortName, ServiceName},
    reason::Reason,
    service::{Backend, Backends, PathMatch, Route, RouteMatch, Service, ServicePort},
    snapshot::Snapshot,
};

/// What a client called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Which service.
    pub service: ServiceName,
    /// Which port.
    pub port: PortName,
}

/// What of a request routes it; `None` at the caller for opaque bytes.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Request method.
    pub method: &'a http::Method,
    /// Path of the request target, without query.
    pub path: &'a str,
    /// Request headers.
    pub headers: &'a http::HeaderMap,
}

/// Why there is no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The name is not in the snapshot.
    #[error("service {0}: not known here")]
    NoSuchService(ServiceName),
    /// The service has no such port.
    #[error("service {0}: no port {1}")]
    NoSuchPort(ServiceName, PortName),
    /// No rule matches.
    #[error("service {0}: no route matches")]
    NoMatch(ServiceName),
}

impl NoRoute {
    /// The stable code.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoSuchService(_) => Reason::NoSuchService,
            Self::NoSuchPort(..) => Reason::NoSuchPort,
            Self::NoMatch(_) => Reason::NoRoute,
        }
    }
}

/// The rule that a request falls under.
#[derive(Debug, Clone, Copy)]
pub struct Rule<'s> {
    /// The called service.
    pub service: &'s Arc<Service>,
    /// The called port.
    pub port: &'s ServicePort,
    /// `None` for a service without routes: it is its own backend.
    pub route: Option<&'s Route>,
}

impl<'s> Rule<'s> {
    /// Deadline of the whole request.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.route.and_then(|route| route.request_timeout)
    }

    /// One backend's service and port by weight, without allocating; `random`
    /// is uniform over all of `u64`. `None` if all weights are zero.
    pub fn choose(&self, random: u64) -> Option<(&'s ServiceName, &'s PortName)> {
        let Some(route) = self.route else {
            return Some((&self.service.name, &self.port.name));
        };
        let backend = by_weight(&route.backends, random, |backend| backend.weight)?;
        Some((&backend.service, backend.port.as_ref().unwrap_or(&self.port.name)))
    }

    /// All backends, with the port that a request to this rule's port takes.
    pub fn backends(&self) -> Backends {
        let Some(route) = self.route else {
            let (service, port) = (self.service.name.clone(), self.port.name.clone());
            return Backends(vec![Backend { service, port, weight: 1 }]);
        };
        let backends = route.backends.iter().map(|backend| Backend {
            service: backend.service.clone(),
            port: backend.port.as_ref().unwrap_or(&self.port.name).clone(),
            weight: backend.weight,
        });
        Backends(backends.collect())
    }
}

/// The first rule that matches. A `Head` of `None` (opaque bytes) matches only
/// routes without matches.
pub fn rule<'s>(
    snapshot: &'s Snapshot,
    destination: &Destination,
    head: Option<&Head<'_>>,
) -> Result<Rule<'s>, NoRoute> {
    let Destination { service: name, port } = destination;
    let service = snapshot.services.get(name);
    let service = service.ok_or_else(|| NoRoute::NoSuchService(name.clone()))?;
    let port = service
        .port(port.as_str())
        .ok_or_else(|| NoRoute::NoSuchPort(name.clone(), port.clone()))?;
    if service.routes.is_empty() {
        return Ok(Rule { service, port, route: None });
    }
    let route = service.routes.iter().find(|route| route.applies(head));
    let route = route.ok_or_else(|| NoRoute::NoMatch(name.clone()))?;
    Ok(Rule { service, port, route: Some(route) })
}

/// The backends of the first rule that matches; a service without routes is
/// its own backend. A `Head` of `None` matches only rules without matches.
pub fn route(
    snapshot: &Snapshot,
    destination: &Destination,
    head: Option<&Head<'_>>,
) -> Result<Backends, NoRoute> {
    rule(snapshot, destination, head).map(|rule| rule.backends())
}

/// One backend by weight; `random` is uniform over all of `u64`. `None` if all
/// weights are zero.
pub fn choose_backend(backends: &Backends, random: u64) -> Option<&Backend> {
    by_weight(&backends.0, random, |backend| backend.weight)
}

fn by_weight<T>(items: &[T], random: u64, weight: impl Fn(&T) -> u32) -> Option<&T> {
    let total: u64 = items.iter().map(|item| u64::from(weight(item))).sum();
    let mut point = scale(random, total);
    items.iter().find(|item| {
        let weight = u64::from(weight(item));
        let here = point < weight;
        point = point.saturating_sub(weight);
        here
    })
}

impl Route {
    fn applies(&self, head: Option<&Head<'_>>) -> bool {
        self.matches.is_empty()
            || head.is_some_and(|head| self.matches.iter().any(|one| one.applies(head)))
    }
}

impl RouteMatch {
    fn applies(&self, head: &Head<'_>) -> bool {
        self.path.as_ref().is_none_or(|path| path.applies(head.path))
            && self.method.as_ref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|(name, value)| {
                head.headers.get_all(name).iter().any(|present| present == value)
            })
    }
}

impl PathMatch {
    /// Gateway API HTTPPathMatch: a prefix counts whole elements, and its own
    /// trailing slash counts for nothing.
    fn applies(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }
}

#[cfg(test)]
mod tests;
