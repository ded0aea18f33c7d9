//! What is said about routers, namers and transformers as such.

use super::{
    super::{
        config::{Config, InterpreterKind, Protocol, Router, Transformer, TransformerKind},
        world::World,
    },
    keys, pair, policies, tables,
};
use crate::ledger::{Ledger, Verdict};

/// What every router of HTTP does, whatever its file says.
const ALWAYS: &str = "`l5d-dtab` and `l5d-ctx-dtab` of requests change no route; `Via` and `l5d-*` are not added; \
     text is not compressed, and an upgrade (WebSocket) passes, which Linkerd cut; where no \
     `failureAccrual` is written, five failures in a row leave an endpoint alone for five seconds, \
     which grew to 300 there";

/// About namers, all of their keys.
pub(super) fn namers(ledger: &mut Ledger, config: &Config, world: &World) {
    for key in ["namers", "routers"] {
        let Some(entries) = config.root.map().ok() else { return };
        for (key, value) in entries.iter().filter(|(known, _)| known.name == key) {
            ledger.exact(&key.place);
            ledger.exact(&value.place);
        }
    }
    for namer in &config.namers {
        ledger.exact(&namer.node.place);
        keys::of_kind(ledger, &namer.node, tables::NAMERS);
        unread(ledger, world, &namer.prefix.to_string(), &namer.node.place);
        let pair = pair::incoming_of_namer(config, namer);
        for transformer in &namer.transformers {
            self::transformer(ledger, transformer, pair);
        }
    }
}

/// About a router, all of its keys but its table.
pub(super) fn router(ledger: &mut Ledger, config: &Config, world: &World, router: &Router) {
    let node = &router.node;
    keys::walk(ledger, node, tables::ROUTER);
    for (key, value) in node.map().unwrap_or_default() {
        match key.name.as_str() {
            "service" => {
                ledger.exact(&key.place);
                keys::policy(ledger, value, policies::SERVICE);
            }
            "client" => {
                ledger.exact(&key.place);
                keys::policy(ledger, value, policies::CLIENT);
            }
            "dtab" => ledger.exact(&key.place),
            "baseDtab" => ledger.approximated(&key.place, "from before 0.9: today `dtab`"),
            "protocol" => protocol(ledger, router, &key.place),
            _ => {}
        }
    }
    if matches!(router.protocol, Protocol::Http | Protocol::H2) {
        ledger.approximated(&node.place, ALWAYS);
    }
    let interpreter = &router.interpreter;
    if let (InterpreterKind::Store(key) | InterpreterKind::Namerd(key), Some(node)) =
        (&interpreter.kind, &interpreter.node)
    {
        unread(ledger, world, key, &node.place);
    }
    let pair = pair::incoming(config, router);
    for transformer in &router.interpreter.transformers {
        self::transformer(ledger, transformer, pair);
    }
    if pair.is_some() {
        for (key, value) in node.at("client").and_then(|c| c.map().ok()).unwrap_or_default() {
            let of = |ledger: &mut Ledger, key: &crate::yaml::Key, last: u32| {
                let how = "the hop between Linkerds becomes the mesh's own: its identities, not these certificates";
                let verdict = Verdict::Approximated { how: how.into() };
                ledger.say_until(&key.place, last.max(key.place.line), verdict);
            };
            match key.name.as_str() {
                "tls" => of(ledger, key, value.last_line),
                "configs" => {
                    let configs = value.list().unwrap_or_default();
                    for (key, value) in configs.iter().flat_map(|c| c.map().unwrap_or_default()) {
                        if key.name == "tls" {
                            of(ledger, key, value.last_line);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// What should have been asked and was not.
fn unread(ledger: &mut Ledger, world: &World, key: &str, place: &crate::source::Place) {
    if let Some(why) = world.unread.get(key) {
        ledger.decision(
            place,
            format!("not all of {key} was read: {why}. Can it be given?"),
            &["plan again where it answers", "give it with --discovery", "nobody needs it"],
        );
    }
}

fn protocol(ledger: &mut Ledger, router: &Router, place: &crate::source::Place) {
    match &router.protocol {
        Protocol::Http | Protocol::H2 => ledger.exact(place),
        Protocol::Rpc(protocol) => ledger.approximated(
            place,
            format!("{protocol} passes as connections: calls are not read, named, balanced or repeated one by one"),
        ),
        Protocol::Other(protocol) => {
            ledger.dropped(place, format!("{protocol:?} is a protocol of a plugin: nothing listens for it"));
        }
    }
}

fn transformer(ledger: &mut Ledger, transformer: &Transformer, pair: Option<&Router>) {
    let place = &transformer.place;
    match (&transformer.kind, pair) {
        (TransformerKind::Port(_) | TransformerKind::Daemonset { .. }, Some(incoming)) => {
            let how = format!(
                "the hop to router {} of the other host becomes the mesh's own: pools hold the applications themselves",
                incoming.label
            );
            ledger.approximated(place, how);
        }
        (TransformerKind::Port(port), None) => ledger.decision(
            place,
            format!("requests go to port {port} of each endpoint's host: who listens there?"),
            &["plan it together with that Linkerd's file", "it is no Linkerd: keep the hop"],
        ),
        (TransformerKind::Daemonset { namespace, service, .. }, None) => ledger.decision(
            place,
            format!("requests go to the pod of {namespace}/{service} on each endpoint's node: is it a Linkerd?"),
            &["plan it together with that Linkerd's file", "it is none: keep the hop"],
        ),
        (TransformerKind::Localhost | TransformerKind::LocalNode, _) => ledger.approximated(
            place,
            "endpoints of this host as they are known now; for callers that still send to a Linkerd's port",
        ),
        (TransformerKind::Other(kind), _) => {
            ledger.dropped(place, format!("{kind} is a plugin's: its names are not converted"));
        }
        (TransformerKind::Replace(_) | TransformerKind::Const(_) | TransformerKind::SpecificHost(_), _) => {
            ledger.exact(place);
        }
    }
}
