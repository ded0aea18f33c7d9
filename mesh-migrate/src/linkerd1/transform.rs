//! Transformers: what happens to endpoints after binding.

use std::net::IpAddr;

use super::{
    config::{Transformer, TransformerKind},
    delegate::Bound,
    name::Name,
    namers::{BoundName, Found, built_in},
    world::World,
};
use crate::request::Endpoint;

/// What a transformer makes of a tree.
///
/// # Errors
///
/// It is a plugin's, or its path cannot be bound.
pub(super) fn apply(
    transformer: &Transformer,
    tree: Bound,
    world: &World,
) -> Result<Bound, String> {
    let prefix = prefix(transformer, world);
    match &transformer.kind {
        TransformerKind::Const(path) => replacement(&prefix, path),
        TransformerKind::Replace(path) => {
            let with = replacement(&prefix, path)?;
            Ok(tree.map(&|_| with.clone()))
        }
        TransformerKind::Other(kind) => {
            Err(format!("{kind} is a transformer that is not known here"))
        }
        kind => {
            Ok(tree.map(&|bound| Bound::Leaf(Box::new(endpoints(kind, &prefix, bound, world)))))
        }
    }
}

/// What a transformer puts before the names of clients.
pub(super) fn prefix(transformer: &Transformer, world: &World) -> Name {
    let variable = |name: &str| world.environment.get(name).cloned();
    let said = match &transformer.kind {
        TransformerKind::Port(port) => vec!["io.l5d.port".to_owned(), port.to_string()],
        TransformerKind::Localhost => vec!["io.l5d.localhost".to_owned()],
        TransformerKind::SpecificHost(_) => vec!["io.l5d.specificHost".to_owned()],
        TransformerKind::Daemonset { namespace, port, service } => {
            vec![
                "io.l5d.k8s.daemonset".to_owned(),
                namespace.clone(),
                port.clone(),
                service.clone(),
            ]
        }
        TransformerKind::LocalNode => {
            let node = variable("POD_IP").or_else(|| variable("NODE_NAME"));
            vec!["io.l5d.k8s.localnode".to_owned(), node.unwrap_or_else(|| "POD_IP".into())]
        }
        TransformerKind::Replace(_) => vec!["io.l5d.replace".to_owned()],
        TransformerKind::Const(_) => vec!["io.l5d.const".to_owned()],
        TransformerKind::Other(kind) => vec![kind.clone()],
    };
    Name::of(["%"]).join(&Name::of(said))
}

fn replacement(prefix: &Name, path: &Name) -> Result<Bound, String> {
    match built_in(path) {
        Found::Bound(bound) => {
            Ok(Bound::Leaf(Box::new(BoundName { id: prefix.join(path), ..*bound })))
        }
        Found::Neg(_) | Found::Name(_) => Ok(Bound::Neg),
        Found::Fail => Ok(Bound::Fail),
        Found::Empty => Ok(Bound::Empty),
        Found::Error(wrong) => Err(wrong),
    }
}

fn endpoints(kind: &TransformerKind, prefix: &Name, bound: BoundName, world: &World) -> BoundName {
    let id = prefix.join(&bound.id);
    let known = bound.endpoints.and_then(|known| match kind {
        TransformerKind::Port(port) => {
            Some(known.into_iter().map(|(at, weight)| (with_port(at, *port), weight)).collect())
        }
        TransformerKind::Localhost => {
            let local = world.local_addresses.as_ref()?;
            Some(kept(known, |ip| local.contains(&ip)))
        }
        TransformerKind::SpecificHost(host) => {
            let host: IpAddr = host.parse().ok()?;
            Some(kept(known, |ip| ip == host))
        }
        TransformerKind::LocalNode => {
            let own: IpAddr = world.environment.get("POD_IP")?.parse().ok()?;
            Some(kept(known, |ip| same_node(ip, own)))
        }
        TransformerKind::Daemonset { namespace, port, service } => {
            let name = Name::of(["#", "io.l5d.k8s", namespace, port, service]);
            let pods = world.names.get(&name.to_string())?.as_ref()?;
            let mut found: Vec<(Endpoint, f64)> = Vec::new();
            for (at, weight) in known {
                let pod = pods.iter().find(|(pod, _)| {
                    ip(pod).zip(ip(&at)).is_some_and(|(pod, at)| same_node(pod, at))
                });
                let Some((pod, _)) = pod else { continue };
                match found.iter_mut().find(|(known, _)| known == pod) {
                    Some((_, known)) => *known += weight,
                    None => found.push((pod.clone(), weight)),
                }
            }
            Some(found)
        }
        TransformerKind::Replace(_) | TransformerKind::Const(_) | TransformerKind::Other(_) => None,
    });
    BoundName { id, endpoints: known, ..bound }
}

fn with_port(at: Endpoint, port: u16) -> Endpoint {
    match at {
        Endpoint::Address(mut address) => {
            address.set_port(port);
            Endpoint::Address(address)
        }
        Endpoint::Name(name) => {
            let host = name.rsplit_once(':').map_or(name.as_str(), |(host, _)| host);
            Endpoint::Name(format!("{host}:{port}"))
        }
    }
}

fn kept(known: Vec<(Endpoint, f64)>, is: impl Fn(IpAddr) -> bool) -> Vec<(Endpoint, f64)> {
    known.into_iter().filter(|(at, _)| ip(at).is_some_and(&is)).collect()
}

fn ip(at: &Endpoint) -> Option<IpAddr> {
    match at {
        Endpoint::Address(address) => Some(address.ip()),
        Endpoint::Name(_) => None,
    }
}

/// Linkerd takes a /24 for a node.
fn same_node(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        _ => a == b,
    }
}
