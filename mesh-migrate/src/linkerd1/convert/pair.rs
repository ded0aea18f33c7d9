//! Two Linkerds in a row: the outgoing router of one host sends to the incoming router
//! of another. The mesh replaces the hop.

use super::super::{
    config::{Config, Namer, Router, Transformer, TransformerKind},
    dtab::Tree,
    explain::{Client, Target},
    name::Name,
    namers::Origin,
};

/// The router that takes what `outgoing` sends from Linkerd to Linkerd: on the port that
/// a transformer sets, keeping endpoints of its own host.
pub(super) fn incoming<'c>(config: &'c Config, outgoing: &Router) -> Option<&'c Router> {
    let hop = transformers(config, outgoing).into_iter().find_map(|t| match &t.kind {
        TransformerKind::Port(port) => Some(Ok(*port)),
        TransformerKind::Daemonset { port, .. } => Some(Err(port.as_str())),
        _ => None,
    })?;
    let is_local = |router: &&Router| {
        transformers(config, router).iter().any(|transformer| {
            matches!(transformer.kind, TransformerKind::Localhost | TransformerKind::LocalNode)
        })
    };
    let takes = |router: &&Router| match hop {
        Ok(port) => router.servers.iter().any(|server| server.port == port),
        Err(name) => {
            let is = |port: u16| port.to_string() == name;
            router.label == name || router.servers.iter().any(|server| is(server.port))
        }
    };
    let others = config.routers.iter().filter(|router| router.label != outgoing.label);
    others.filter(|router| router.protocol == outgoing.protocol).filter(is_local).find(takes)
}

/// The same for a namer whose transformers make the hop: of the first router that asks it.
pub(super) fn incoming_of_namer<'c>(config: &'c Config, namer: &Namer) -> Option<&'c Router> {
    let mut asking = config.routers.iter().filter(|router| asks(config, router, namer));
    asking.find_map(|router| incoming(config, router))
}

/// Of the interpreter, and of the namers that the table asks.
fn transformers<'c>(config: &'c Config, router: &'c Router) -> Vec<&'c Transformer> {
    let namers = config.namers.iter().filter(|namer| asks(config, router, namer));
    router.interpreter.transformers.iter().chain(namers.flat_map(|n| &n.transformers)).collect()
}

/// Whether an entry leads to names of a namer, or to one that rewrites names to them.
fn asks(config: &Config, router: &Router, namer: &Namer) -> bool {
    fn leads(tree: &Tree, to: &Name) -> bool {
        match tree {
            Tree::Leaf(name) => name.below(to).is_some(),
            Tree::Alt(trees) => trees.iter().any(|tree| leads(tree, to)),
            Tree::Union(trees) => trees.iter().any(|(_, tree)| leads(tree, to)),
            Tree::Neg | Tree::Fail | Tree::Empty => false,
        }
    }
    let asked = |to: &Name| router.dtab.entries.iter().any(|entry| leads(&entry.tree, to));
    let rewrites = |other: &Namer| {
        let name = other.node.at("name").and_then(|node| node.text().ok()).unwrap_or_default();
        name.starts_with(&format!("{}/", namer.prefix)) && asked(&other.prefix)
    };
    asked(&namer.prefix) || config.namers.iter().any(rewrites)
}

/// Without those that make the hop.
pub(super) fn without_hop(transformers: &[Transformer]) -> Vec<Transformer> {
    let is_hop = |transformer: &&Transformer| {
        matches!(transformer.kind, TransformerKind::Port(_) | TransformerKind::Daemonset { .. })
    };
    transformers.iter().filter(|transformer| !is_hop(transformer)).cloned().collect()
}

/// Whether a target is another Linkerd.
pub(super) fn is_hop(target: &Target) -> bool {
    let name = target.client.to_string();
    name.contains("/%/io.l5d.port/") || name.contains("/%/io.l5d.k8s.daemonset/")
}

/// Names of applications: without what transformers put before them, and by the kind of
/// the namer, as both routers may have one of their own.
pub(super) fn applications(config: &Config, targets: &[Target]) -> Vec<String> {
    let name = |target: &Target| {
        let said = target.client.to_string();
        let said = said.find("/#/").map_or(said.clone(), |at| said[at..].to_owned());
        let Client::Name(bound) = &target.client else { return said };
        let Origin::Namer(at) = bound.from else { return said };
        let Some(namer) = config.namers.get(at) else { return said };
        match said.strip_prefix(&namer.prefix.to_string()) {
            Some(rest) => format!("{}{rest}", namer.kind),
            None => said,
        }
    };
    let mut names: Vec<String> = targets.iter().map(name).collect();
    names.sort_unstable();
    names
}
