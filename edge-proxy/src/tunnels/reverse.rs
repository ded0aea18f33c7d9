//! Streams that a gateway opens in a tunnel that this proxy has dialled.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    Snapshot, SpiffeId,
    path::{Connect, MAX_HOPS, RefusedReason},
};
use mesh_tunnel::{IncomingStream, Session};
use tokio::time::timeout;

use crate::{
    inbound::{self, Via},
    own::Own,
    worker::Worker,
};

/// Saying yes or no to a gateway that does not read its answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Answers one stream, and serves it if it names an endpoint of ours.
pub(super) fn serve(worker: &Arc<Worker>, session: &Session, incoming: IncomingStream) {
    let gateway = format!("{}/{}", session.hello().site, session.hello().gateway);
    let worker = worker.clone();
    let drain = worker.shared.drain.clone();
    drain.spawn(async move {
        let connection_id = incoming.connect.connection_id.clone();
        if let Err((reason, detail)) = is_ours(&worker, &incoming.connect) {
            let hop = hop(&worker.shared.own.load());
            log::info!(
                connection = connection_id.as_str(), gateway = gateway.as_str(),
                service = incoming.connect.service.as_str(), refused:% = reason, detail = detail;
                "reverse stream refused"
            );
            let _late = timeout(ANSWER_DEADLINE, incoming.refuse(reason, &hop, detail)).await;
            return;
        }
        match timeout(ANSWER_DEADLINE, incoming.accept()).await {
            Ok(Ok(stream)) => {
                let via = Via::Reverse { gateway, connection_id };
                inbound::serve_stream(worker, Box::new(stream), via).await;
            }
            Ok(Err(error)) => {
                log::debug!(connection = connection_id.as_str(), error:% = error; "reverse stream is gone");
            }
            Err(_) => log::debug!(connection = connection_id.as_str(); "reverse stream is stuck"),
        }
    });
}

/// How this proxy is called in refusals: `<site>/<node>`.
fn hop(own: &Own) -> String {
    let site = own.site.as_ref().map_or("-", |site| site.as_str());
    let node = own.node.as_ref().map_or("-", |node| node.as_str());
    format!("{site}/{node}")
}

fn is_ours(worker: &Worker, connect: &Connect) -> Result<(), (RefusedReason, &'static str)> {
    if worker.shared.drain.is_draining() {
        return Err((RefusedReason::Draining, "this proxy is going away"));
    }
    let snapshot = worker.shared.snapshot.load();
    let snapshot = snapshot.ok_or((RefusedReason::NoPath, "this proxy has no snapshot yet"))?;
    let svid = worker.shared.credentials.svid();
    let svid = svid.ok_or((RefusedReason::NoPath, "this proxy has no identity yet"))?;
    names_ours(&snapshot, &worker.shared.own.load(), &svid.id, connect)
}

/// Whether a `Connect` names an endpoint of the proxy that is `own` and `id`.
fn names_ours(
    snapshot: &Snapshot,
    own: &Own,
    id: &SpiffeId,
    connect: &Connect,
) -> Result<(), (RefusedReason, &'static str)> {
    if connect.hops > MAX_HOPS {
        return Err((RefusedReason::HopLimit, "too many gateways"));
    }
    if connect.site != snapshot.site {
        return Err((RefusedReason::UnknownSite, "this proxy belongs to another site"));
    }
    let endpoint_id = connect.endpoint.as_ref().ok_or((RefusedReason::Malformed, "no endpoint"))?;
    if !snapshot.services.contains_key(&connect.service) {
        return Err((RefusedReason::UnknownService, "not known here"));
    }
    let endpoint =
        snapshot.endpoint(connect.service.as_str(), &connect.site, endpoint_id.as_str());
    let is_ours = endpoint.is_some_and(|endpoint| {
        let same_machine = own.node.is_none() || endpoint.node == own.node;
        endpoint.port == connect.port && &endpoint.identity == id && same_machine
    });
    if is_ours { Ok(()) } else { Err((RefusedReason::UnknownEndpoint, "not an endpoint of ours")) }
}
