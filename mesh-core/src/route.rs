//! Which backends a request may go to.

use std::{sync::Arc, time::Duration};

use crate::{
    balance::scale,
    client_hello::ClientHello,
    message::RequestHead,
    name::{PortName, ServiceName},
    reason::Reason,
    rule::{Caller, Route, RouteBackend, RouteMatch, matching::NothingMatches},
    service::{Backend, Backends, Service, ServicePort},
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
    /// Which match of the route held; `None` for a route without matches.
    pub matched: Option<&'s RouteMatch>,
}

/// What takes a request.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'s> {
    /// Which service.
    pub service: &'s ServiceName,
    /// Which of its ports.
    pub port: &'s PortName,
    /// As it is written; `None` for a service without routes.
    pub backend: Option<&'s RouteBackend>,
}

impl<'s> Rule<'s> {
    /// Deadline of the whole request.
    pub fn request_timeout(&self) -> Option<Duration> {
        self.route.and_then(|route| route.request_timeout)
    }

    /// One backend by weight, without allocating; `random` is uniform over all
    /// of `u64`. `None` if there is none, or all weights are zero.
    pub fn choose(&self, random: u64) -> Option<Chosen<'s>> {
        let Some(route) = self.route else {
            let (service, port) = (&self.service.name, &self.port.name);
            return Some(Chosen { service, port, backend: None });
        };
        let backend = by_weight(&route.backends, random, |backend| backend.weight)?;
        let port = backend.port.as_ref().unwrap_or(&self.port.name);
        Some(Chosen { service: &backend.service, port, backend: Some(backend) })
    }

    /// All backends, with the port that a request to this rule's port takes.
    pub fn backends(&self) -> Backends {
        backends(self.service, self.port, self.route.map(|route| &*route.backends))
    }
}

impl Connection<'_> {
    /// All backends, with the port that a connection to this port takes.
    pub fn backends(&self) -> Backends {
        backends(self.service, self.port, self.rule.map(|(_, backends)| backends))
    }
}

fn backends(
    service: &Service,
    called: &ServicePort,
    backends: Option<&[RouteBackend]>,
) -> Backends {
    let Some(backends) = backends else {
        let (service, port) = (service.name.clone(), called.name.clone());
        return Backends(vec![Backend { service, port, weight: 1 }]);
    };
    let backends = backends.iter().map(|backend| Backend {
        service: backend.service.clone(),
        port: backend.port.as_ref().unwrap_or(&called.name).clone(),
        weight: backend.weight,
    });
    Backends(backends.collect())
}

/// The rule that a request by a caller falls under. A head of `None` (opaque
/// bytes) matches only routes without matches.
pub fn rule<'s>(
    snapshot: &'s Snapshot,
    destination: &Destination,
    from: Caller<'_>,
    head: Option<&RequestHead>,
) -> Result<Rule<'s>, NoRoute> {
    let Destination { service: name, port } = destination;
    let service = snapshot.services.get(name);
    let service = service.ok_or_else(|| NoRoute::NoSuchService(name.clone()))?;
    rule_of(service, port, from, head)
}

/// The same for a service that is already at hand.
pub fn rule_of<'s>(
    service: &'s Arc<Service>,
    port: &PortName,
    from: Caller<'_>,
    head: Option<&RequestHead>,
) -> Result<Rule<'s>, NoRoute> {
    let name = &service.name;
    let port = service
        .port(port.as_str())
        .ok_or_else(|| NoRoute::NoSuchPort(name.clone(), port.clone()))?;
    let found = service.routes.find(&port.name, from, head);
    let found = found.map_err(|NothingMatches| NoRoute::NoMatch(name.clone()))?;
    let (route, matched) = found.map_or((None, None), |(route, matched)| (Some(route), matched));
    Ok(Rule { service, port, route, matched })
}

/// The rule that a connection of opaque bytes falls under.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'s> {
    /// The called service.
    pub service: &'s Arc<Service>,
    /// The called port.
    pub port: &'s ServicePort,
    /// Its name and its backends; `None` for a service that is its own
    /// backend.
    pub rule: Option<(&'s str, &'s [RouteBackend])>,
}

/// The rule that a connection by a caller falls under: one for connections,
/// else one for requests that has no matches. With `hello` it is known to speak
/// TLS.
pub fn connection<'s>(
    snapshot: &'s Snapshot,
    destination: &Destination,
    from: Caller<'_>,
    hello: Option<&ClientHello>,
) -> Result<Connection<'s>, NoRoute> {
    let name = &destination.service;
    let service = snapshot.services.get(name);
    let service = service.ok_or_else(|| NoRoute::NoSuchService(name.clone()))?;
    let port = service.port(destination.port.as_str());
    let port = port.ok_or_else(|| NoRoute::NoSuchPort(name.clone(), destination.port.clone()))?;
    let found = service.connection_routes.find(&port.name, from.namespace, hello);
    let found = found.map_err(|NothingMatches| NoRoute::NoMatch(name.clone()))?;
    let rule = match found {
        Some(route) => Some((&*route.name, &*route.backends)),
        None => {
            let rule = rule_of(service, &port.name, from, None)?.route;
            rule.map(|route| (&*route.name, &*route.backends))
        }
    };
    Ok(Connection { service, port, rule })
}

/// The backends of the rule that a request falls under; a service without
/// routes is its own backend.
pub fn route(
    snapshot: &Snapshot,
    destination: &Destination,
    from: Caller<'_>,
    head: Option<&RequestHead>,
) -> Result<Backends, NoRoute> {
    rule(snapshot, destination, from, head).map(|rule| rule.backends())
}

/// One backend by weight; `random` is uniform over all of `u64`. `None` if all
/// weights are zero.
pub fn choose_backend(backends: &Backends, random: u64) -> Option<&Backend> {
    by_weight(&backends.0, random, |backend| backend.weight)
}

/// One of a rule's backends by weight, with its position; `random` is uniform
/// over all of `u64`. `None` if there is none, or all weights are zero.
pub fn choose(backends: &[RouteBackend], random: u64) -> Option<(usize, &RouteBackend)> {
    let chosen = by_weight(backends, random, |backend| backend.weight)?;
    let index = backends.iter().position(|backend| std::ptr::eq(backend, chosen))?;
    Some((index, chosen))
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

#[cfg(test)]
mod tests;
