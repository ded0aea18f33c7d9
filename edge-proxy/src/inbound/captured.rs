//! What the kernel sends here that was for the applications of this host: in
//! plaintext, of clients that are not of the mesh, and of whoever runs the
//! host.

use std::{net::SocketAddr, sync::Arc};

use mesh_core::{Reason, Snapshot, route::Destination};
use mesh_tunnel::Stream;

use super::door;
use crate::{
    metrics::Direction,
    outbound::opaque::{self, Opened},
    record::Record,
    worker::Worker,
};

/// Serves one connection, by where it was bound for: a port of an own service
/// as its policy has it, any other as if nobody were between.
pub(crate) async fn serve(worker: &Arc<Worker>, mut stream: Stream, from: SocketAddr) {
    let own = worker.shared.config.inbound_transparent;
    let dialled =
        stream.original_destination().filter(|to| own.map(|own| own.port()) != Some(to.port()));
    let Some(dialled) = dialled else {
        log::warn!(from:% = from; "connection has no original destination; was it captured?");
        stream.abort_on_close();
        return;
    };
    // Without a snapshot nobody knows which ports have a policy.
    let Some(snapshot) = worker.shared.snapshot.load() else {
        log::info!(dialled:% = dialled, from:% = from; "captured connection is refused: no snapshot yet");
        stream.abort_on_close();
        return;
    };
    match own_port(worker, &snapshot, dialled.port()) {
        Some(destination) => {
            door::serve(worker, destination, from.ip().to_canonical(), stream).await
        }
        None => pass(worker, dialled, from, stream).await,
    }
}

/// The service that an application backs on this port.
fn own_port(worker: &Worker, snapshot: &Arc<Snapshot>, port: u16) -> Option<Destination> {
    let endpoints = snapshot.services.values().flat_map(|service| service.endpoints.iter());
    let mut there = endpoints.filter(|endpoint| endpoint.target.port() == port);
    let own = there.find(|endpoint| worker.is_own(snapshot, endpoint))?;
    Some(Destination { service: own.service.clone(), port: own.port.clone() })
}

async fn pass(worker: &Arc<Worker>, dialled: SocketAddr, from: SocketAddr, mut stream: Stream) {
    let mut record = Record::new(worker, Direction::Inbound, "tcp");
    record.entry.client = Some(from.ip().to_canonical());
    record.entry.path_kind = "plaintext";
    match worker.shared.net.dial(dialled).await {
        Ok(opened) => opaque::run(worker, stream, Opened::elsewhere(opened), record).await,
        Err(error) => {
            log::debug!(dialled:% = dialled, error:% = error; "captured connection fails");
            record.failed(Reason::AppUnreachable);
            stream.abort_on_close();
        }
    }
}
