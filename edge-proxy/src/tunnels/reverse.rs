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
    drain.spawn_session(async move {
        let connection_id = incoming.connect.connection_id.clone();
        let mut ours = is_ours(&worker, &incoming.connect);
        // A gateway may know more than the snapshot that this process began with.
        if ours.is_err() && worker.shared.snapshot.is_confirmed_late().await {
            ours = is_ours(&worker, &incoming.connect);
        }
        if let Err((reason, detail)) = ours {
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
    if worker.shared.drain.is_refusing() {
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
    let endpoint = snapshot.endpoint(connect.service.as_str(), &connect.site, endpoint_id.as_str());
    let is_ours = endpoint.is_some_and(|endpoint| {
        let same_machine = own.node.is_none() || endpoint.node == own.node;
        endpoint.port == connect.port && endpoint.identity.as_ref() == Some(id) && same_machine
    });
    if is_ours { Ok(()) } else { Err((RefusedReason::UnknownEndpoint, "not an endpoint of ours")) }
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{self, resource::Resource as Kind};

    use super::*;

    const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";
    const OTHER: &str = "0b0b5d3e-2f65-4a55-8f5c-7d3e9a0c2b22";

    fn endpoint(id: &str, site: &str, account: &str, node: &str) -> Kind {
        Kind::Endpoint(v1::Endpoint {
            id: id.into(),
            service: "orders.shop".into(),
            port: "http".into(),
            site: site.into(),
            spiffe_id: format!("spiffe://{site}.example/ns/shop/sa/{account}"),
            target_port: 8080,
            weight: 1,
            node: node.into(),
            ..v1::Endpoint::default()
        })
    }

    fn snapshot() -> Snapshot {
        let kinds = vec![
            Kind::Site(v1::Site {
                name: "east".into(),
                trust_domain: "east.example".into(),
                ..v1::Site::default()
            }),
            Kind::Service(v1::Service {
                name: "orders.shop".into(),
                ports: vec![v1::Port { name: "http".into(), number: 80, protocol: 1 }],
                ..v1::Service::default()
            }),
            endpoint("ours", "east", "web", NODE),
            endpoint("other-machine", "east", "web", OTHER),
            endpoint("other-account", "east", "admin", NODE),
        ];
        let upsert = kinds.into_iter().map(|kind| v1::Resource { resource: Some(kind) }).collect();
        let to = Some(v1::Revision { epoch: 1, n: 1 });
        let delta = v1::Delta { from: None, to, upsert, remove: Vec::new() };
        mesh_core::apply(None, &delta).unwrap()
    }

    #[test]
    fn only_what_names_an_endpoint_of_ours_is_served() {
        use RefusedReason::{HopLimit, Malformed, UnknownEndpoint, UnknownService, UnknownSite};
        let own = Own { node: Some(NODE.parse().unwrap()), ..Own::default() };
        let id: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
        let ours = Connect {
            site: "east".parse().unwrap(),
            service: "orders.shop".parse().unwrap(),
            port: "http".parse().unwrap(),
            endpoint: Some("ours".parse().unwrap()),
            hops: 2,
            connection_id: "c".into(),
        };
        let named = |id: &str| Connect { endpoint: Some(id.parse().unwrap()), ..ours.clone() };
        let cases = [
            (ours.clone(), None),
            (named("other-machine"), Some(UnknownEndpoint)),
            (named("other-account"), Some(UnknownEndpoint)),
            (named("nothing"), Some(UnknownEndpoint)),
            (Connect { port: "grpc".parse().unwrap(), ..ours.clone() }, Some(UnknownEndpoint)),
            (Connect { endpoint: None, ..ours.clone() }, Some(Malformed)),
            (Connect { site: "west".parse().unwrap(), ..ours.clone() }, Some(UnknownSite)),
            (Connect { service: "a.b".parse().unwrap(), ..ours.clone() }, Some(UnknownService)),
            (Connect { hops: MAX_HOPS + 1, ..ours.clone() }, Some(HopLimit)),
        ];
        for (connect, refused) in cases {
            let got = names_ours(&snapshot(), &own, &id, &connect);
            assert_eq!(got.err().map(|(reason, _)| reason), refused, "{connect:?}");
        }
    }
}
