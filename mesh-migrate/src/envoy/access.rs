//! "Role Based Access Control": the filter of HTTP and that of connections.

use super::tree::{Entry, Tree, What};

/// Filters of HTTP that admit requests by rules, and their configurations.
pub(super) fn filters(hcm: &Tree) -> impl Iterator<Item = (&Tree, &Tree)> {
    hcm.messages("http_filters").filter(|filter| !filter.is("disabled")).filter_map(|filter| {
        let config = filter.msg("typed_config")?;
        (config.message == "envoy.extensions.filters.http.rbac.v3.RBAC").then_some((filter, config))
    })
}

/// What routes say to a filter: of route, virtual host and route configuration, in
/// `levels` the other way round, the nearest that says something.
pub(super) fn of_route<'t>(levels: [&'t Tree; 3], filter: &Tree) -> Option<&'t Entry> {
    levels.into_iter().rev().find_map(|level| at_level(level, filter))
}

/// The same at one of them.
pub(super) fn at_level<'t>(level: &'t Tree, filter: &Tree) -> Option<&'t Entry> {
    let name = filter.text("name")?;
    match level.at("typed_per_filter_config") {
        Some(What::Map(all)) => all.iter().find(|entry| entry.name == name),
        _ => None,
    }
}

/// The message of such an entry; `None` switches the filter off.
pub(super) fn config(entry: &Entry) -> Option<&Tree> {
    let What::Message(tree) = &entry.value.what else { return None };
    match tree.short() {
        "FilterConfig" if tree.is("disabled") => None,
        "FilterConfig" => tree.msg("config"),
        _ => Some(tree),
    }
}

/// The configuration that holds where a route has one of its own.
pub(super) fn own(entry: &Entry) -> Option<&Tree> {
    config(entry)?.msg("rbac")
}

/// Permissions and principals of a policy are alternatives; a request needs one of both.
pub(super) fn policies(rules: &Tree) -> impl Iterator<Item = &Tree> {
    let all = match rules.at("policies") {
        Some(What::Map(all)) => all.as_slice(),
        _ => &[],
    };
    all.iter().filter_map(|entry| match &entry.value.what {
        What::Message(policy) => Some(policy),
        _ => None,
    })
}

/// Who is meant by an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Who has connected.
    Peer,
    /// Whom `X-Forwarded-For` names, where it is believed.
    Client,
}

/// A principal that is an address: whose, and the block.
pub(super) fn address(principal: &Tree) -> Option<(Whose, &Tree)> {
    let peer = |name: &str| principal.msg(name).map(|block| (Whose::Peer, block));
    peer("direct_remote_ip")
        .or_else(|| peer("source_ip"))
        .or_else(|| principal.msg("remote_ip").map(|block| (Whose::Client, block)))
}

/// `10.0.0.0/8`.
pub(super) fn block(range: &Tree) -> String {
    let address = range.text("address_prefix").unwrap_or_default();
    format!("{address}/{}", range.count("prefix_len").unwrap_or(0))
}
