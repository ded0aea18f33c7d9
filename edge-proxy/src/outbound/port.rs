//! How connections to a port are carried.

use std::{io, sync::Arc};

use mesh_core::{Service, carriage::Carriage, route::Destination};

use mesh_runtime::clock;
use mesh_tunnel::Stream;

use super::sniff::{self, Speaks};
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

/// Finds out what a connection speaks, and counts what and after how long.
pub async fn detect(worker: &Worker, stream: Stream) -> io::Result<(Speaks, Stream)> {
    let started = clock::monotonic();
    let (found, stream) = sniff::detect(stream, sniff::PATIENCE).await?;
    worker.shared.metrics.detected(found.map_or("unknown", Speaks::as_str), started.elapsed());
    Ok((found.unwrap_or(Speaks::Opaque), stream))
}

async fn service(worker: &Worker, destination: &Destination) -> Option<Arc<Service>> {
    let snapshot = worker.shared.snapshot.want(&destination.service).await?;
    snapshot.services.get(&destination.service).cloned()
}
