//! What the rules of a service say of one request or opaque connection.

use std::sync::Arc;

use mesh_core::{
    PortName, Reason, Service, ServiceName, Snapshot,
    message::RequestHead,
    route::{Destination, rule},
    rule::{Mirror, Route, RouteBackend, RouteMatch},
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
    /// Finds the rule.
    pub async fn take(
        worker: &Worker,
        destination: &Destination,
        head: Option<&RequestHead>,
    ) -> Result<Self, Refusal> {
        let snapshot = worker.shared.snapshot.want(&destination.service).await;
        let snapshot = snapshot.ok_or_else(no_snapshot)?;
        let svid = worker.shared.credentials.svid();
        let from = svid.as_ref().and_then(|svid| svid.id.namespace());
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

    /// Which of its matches held.
    pub fn matched(&self) -> Option<&RouteMatch> {
        self.route()?.matches.get(self.rule?.1?)
    }

    /// One backend by weight.
    pub fn choose(&self) -> Result<Chosen, Refusal> {
        let Some(route) = self.route() else {
            let (service, port) = (self.service.name.clone(), self.port.clone());
            return Ok(Chosen { service, port, backend: None });
        };
        let chosen = mesh_core::route::choose(&route.backends, rand::random());
        let (index, backend) = chosen.ok_or_else(|| self.no_backend(route))?;
        if let Some(why) = &backend.invalid {
            let text = format!("service {}, rule {}: {why}", self.service.name, route.name);
            return Err(Refusal::new(Reason::InvalidBackend, text));
        }
        let port = backend.port.as_ref().unwrap_or(&self.port).clone();
        Ok(Chosen { service: backend.service.clone(), port, backend: Some(index) })
    }

    fn no_backend(&self, route: &Route) -> Refusal {
        let why = match route.backends.len() {
            0 => "names no backend",
            _ => "gives every backend weight 0",
        };
        let text = format!("service {}: rule {} {why}", self.service.name, route.name);
        Refusal::new(Reason::NoBackend, text)
    }

    /// What is written of a chosen backend.
    pub fn backend(&self, chosen: &Chosen) -> Option<&RouteBackend> {
        self.route()?.backends.get(chosen.backend?)
    }
}
