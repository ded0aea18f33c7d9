//! Which endpoint takes the next attempt.

use std::sync::Arc;

use mesh_core::{
    Endpoint, EndpointId, PortName, Reason, ServiceName, Snapshot,
    message::RequestHead,
    route::{Destination, rule},
};
use tokio::time::Instant;

use super::loads::Attempt;
use crate::{refusal::Refusal, worker::Worker};

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
    /// When the whole request must have been answered.
    pub deadline: Option<Instant>,
    candidates: Arc<[Arc<Endpoint>]>,
    tried: Vec<EndpointId>,
}

impl Dispatch {
    /// Routes: rule, backend by weight, its endpoints.
    pub async fn new(
        worker: &Arc<Worker>,
        destination: &Destination,
        head: Option<&RequestHead>,
    ) -> Result<Self, Refusal> {
        let cell = &worker.shared.snapshot;
        let mut snapshot = cell.want(&destination.service).await.ok_or_else(no_snapshot)?;
        let svid = worker.shared.credentials.svid();
        let from = svid.as_ref().and_then(|svid| svid.id.namespace());
        let (service, port, timeout) = {
            let rule = rule(&snapshot, destination, from, head)
                .map_err(|error| Refusal::new(error.reason(), error.to_string()))?;
            let chosen = rule.choose(rand::random());
            let chosen = chosen.ok_or_else(|| {
                let text = format!("service {}: all backends have weight 0", destination.service);
                Refusal::new(Reason::NoBackend, text)
            })?;
            (chosen.service.clone(), chosen.port.clone(), rule.request_timeout())
        };
        if service != destination.service {
            snapshot = cell.want(&service).await.ok_or_else(no_snapshot)?;
        }
        let candidates = worker.view(&snapshot).endpoints(&service, &port);
        let deadline = timeout.map(|timeout| mesh_runtime::clock::monotonic() + timeout);
        let worker = worker.clone();
        Ok(Self { worker, snapshot, service, port, deadline, candidates, tried: Vec::new() })
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
