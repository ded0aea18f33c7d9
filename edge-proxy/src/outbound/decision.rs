//! What the rules of a service say of one request or opaque connection.

use std::{net::IpAddr, sync::Arc};

use mesh_core::{
    PortName, Reason, Service, ServiceName, Snapshot,
    message::RequestHead,
    route::{Destination, rule},
    rule::{Caller, Extension, Mirror, Route, RouteBackend, RouteMatch},
};

use super::dispatch::no_snapshot;
use crate::{refusal::Refusal, worker::Worker};

/// The rule that a request falls under; keeps its service, not the snapshot's
/// root.
#[derive(Debug)]
pub struct Decision {
    /// What it was decided from.
    pub snapshot: Arc<Snapshot>,
    /// The called service.
    pub service: Arc<Service>,
    /// The called port.
    pub port: PortName,
    /// Positions of the rule, and of its match that held.
    rule: Option<(usize, Option<usize>)>,
}

/// What takes a request.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Which service.
    pub service: ServiceName,
    /// Which of its ports.
    pub port: PortName,
    /// Position among the rule's backends.
    backend: Option<usize>,
}

impl Chosen {
    /// Where a mirror's copies go.
    pub fn mirror(mirror: &Mirror, called: &PortName) -> Self {
        let port = mirror.port.as_ref().unwrap_or(called).clone();
        Self { service: mirror.service.clone(), port, backend: None }
    }
}

impl Decision {
    /// Finds the rule for a request of the client at this address.
    pub async fn take(
        worker: &Worker,
        destination: &Destination,
        head: Option<&RequestHead>,
        address: Option<IpAddr>,
    ) -> Result<Self, Refusal> {
        let snapshot = worker.shared.snapshot.want(&destination.service).await;
        let snapshot = snapshot.ok_or_else(no_snapshot)?;
        let svid = worker.shared.credentials.svid();
        let namespace = svid.as_ref().and_then(|svid| svid.id.namespace());
        let from = Caller { namespace, address };
        let found = rule(&snapshot, destination, from, head)
            .map_err(|error| Refusal::new(error.reason(), error.to_string()))?;
        let (service, port) = (found.service.clone(), found.port.name.clone());
        let rule = found.route.and_then(|route| {
            let index = service.routes.iter().position(|one| std::ptr::eq(one, route))?;
            let matched = found.matched.and_then(|matched| {
                route.matches.iter().position(|one| std::ptr::eq(one, matched))
            });
            Some((index, matched))
        });
        drop(svid);
        Ok(Self { snapshot, service, port, rule })
    }

    /// The rule; `None` for a service without rules.
    pub fn route(&self) -> Option<&Route> {
        self.service.routes.get(self.rule?.0)
    }

    /// What of it Gateway API has no words for.
    pub fn extension(&self) -> Option<&Extension> {
        self.route()?.extension.as_deref()
    }

    /// Which of its matches held.
    pub fn matched(&self) -> Option<&RouteMatch> {
        self.route()?.matches.get(self.rule?.1?)
    }

    /// One backend by weight.
    pub fn choose(&self) -> Result<Chosen, Refusal> {
        let rule = self.route().map(|route| (&*route.name, &*route.backends));
        choose(&self.service.name, &self.port, rule)
    }

    /// What is written of a chosen backend.
    pub fn backend(&self, chosen: &Chosen) -> Option<&RouteBackend> {
        self.route()?.backends.get(chosen.backend?)
    }
}

/// One backend of a rule by weight; without a rule the called service itself.
pub fn choose(
    service: &ServiceName,
    port: &PortName,
    rule: Option<(&str, &[RouteBackend])>,
) -> Result<Chosen, Refusal> {
    let Some((name, backends)) = rule else {
        return Ok(Chosen { service: service.clone(), port: port.clone(), backend: None });
    };
    let chosen = mesh_core::route::choose(backends, rand::random());
    let Some((index, backend)) = chosen else {
        let none = backends.is_empty();
        let why = if none { "names no backend" } else { "gives every backend weight 0" };
        let text = format!("service {service}: rule {name} {why}");
        return Err(Refusal::new(Reason::NoBackend, text));
    };
    if let Some(why) = &backend.invalid {
        let text = format!("service {service}, rule {name}: {why}");
        return Err(Refusal::new(Reason::InvalidBackend, text));
    }
    let port = backend.port.as_ref().unwrap_or(port).clone();
    Ok(Chosen { service: backend.service.clone(), port, backend: Some(index) })
}
