//! How connections to a port are carried.

use std::sync::Arc;

use mesh_core::{Service, carriage::Carriage, route::Destination};

use crate::worker::Worker;

/// What has to be known of connections to `destination`; what is not known at
/// all is found out, and refused later.
pub async fn carriage(worker: &Worker, destination: &Destination) -> Carriage {
    let Some(service) = service(worker, destination).await else { return Carriage::Detect };
    let Some(port) = service.port(destination.port.as_str()) else { return Carriage::Detect };
    let svid = worker.shared.credentials.svid();
    let from = svid.as_ref().and_then(|svid| svid.id.namespace());
    service.carriage(port, from)
}

async fn service(worker: &Worker, destination: &Destination) -> Option<Arc<Service>> {
    let snapshot = worker.shared.snapshot.want(&destination.service).await?;
    snapshot.services.get(&destination.service).cloned()
}
