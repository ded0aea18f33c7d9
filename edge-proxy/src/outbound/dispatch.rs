//! Which endpoint takes the next attempt.

use std::sync::Arc;

use super::{
    decision::{Chosen, Decision},
    loads::Attempt,
};
use crate::{refusal::Refusal, worker::Worker};
use mesh_core::{
    Endpoint, EndpointId, PortName, Reason, ServiceName, Snapshot, route::Destination,
};

/// Attempts at one request at most, whatever fails.
pub const MAX_ATTEMPTS: usize = 3;

/// Where one request or opaque connection may go.
#[derive(Debug)]
pub struct Dispatch {
    worker: Arc<Worker>,
    /// What it was decided from.
    pub snapshot: Arc<Snapshot>,
    /// The chosen backend.
    pub service: ServiceName,
    /// Its port.
    pub port: PortName,
    candidates: Arc<[Arc<Endpoint>]>,
    tried: Vec<EndpointId>,
}

impl Dispatch {
    /// For opaque bytes: rule, backend by weight, its endpoints.
    pub async fn opaque(worker: &Arc<Worker>, destination: &Destination) -> Result<Self, Refusal> {
        let decision = Decision::take(worker, destination, None).await?;
        let chosen = decision.choose()?;
        Self::to(worker, &decision, &chosen).await
    }

    /// The endpoints of a chosen backend.
    pub async fn to(
        worker: &Arc<Worker>,
        decision: &Decision,
        chosen: &Chosen,
    ) -> Result<Self, Refusal> {
        if chosen.service != decision.service.name {
            return Self::alone(worker, &chosen.service, &chosen.port).await;
        }
        let snapshot = decision.snapshot.clone();
        Ok(Self::over(worker, snapshot, &chosen.service, &chosen.port))
    }

    /// The endpoints of a service, whatever its own rules say.
    pub async fn alone(
        worker: &Arc<Worker>,
        service: &ServiceName,
        port: &PortName,
    ) -> Result<Self, Refusal> {
        let snapshot = worker.shared.snapshot.want(service).await.ok_or_else(no_snapshot)?;
        Ok(Self::over(worker, snapshot, service, port))
    }

    fn over(
        worker: &Arc<Worker>,
        snapshot: Arc<Snapshot>,
        service: &ServiceName,
        port: &PortName,
    ) -> Self {
        let candidates = worker.view(&snapshot).endpoints(service, port);
        let (service, port) = (service.clone(), port.clone());
        Self { worker: worker.clone(), snapshot, service, port, candidates, tried: Vec::new() }
    }

    /// How many attempts there were.
    pub fn attempts(&self) -> usize {
        self.tried.len()
    }

    /// The endpoint of the next attempt: one not tried before, or, with
    /// `again` and nothing else left, any.
    pub fn next(&mut self, again: bool) -> Result<(Arc<Endpoint>, Attempt), Refusal> {
        let from = self.worker.vantage(&self.snapshot);
        let loads = &self.worker.loads;
        let chosen = loads
            .choose(&from, &self.candidates, &self.tried)
            .or_else(|| again.then(|| loads.choose(&from, &self.candidates, &[])).flatten());
        let Some(endpoint) = chosen else { return Err(self.no_endpoint()) };
        self.tried.push(endpoint.id.clone());
        Ok((endpoint.clone(), loads.begin(endpoint)))
    }

    fn no_endpoint(&self) -> Refusal {
        let text = match self.candidates.len() {
            0 => format!("service {} has no endpoint for port {}", self.service, self.port),
            n => format!("service {}: none of its {n} endpoints may be used", self.service),
        };
        Refusal::new(Reason::NoEndpoint, text)
    }
}

/// There is no snapshot yet.
pub fn no_snapshot() -> Refusal {
    let text = "this proxy has not heard from its site yet; try again in a moment";
    Refusal::new(Reason::NoSuchService, text)
}
