//! "Role Based Access Control": the filter of HTTP and that of connections.

use super::tree::{Entry, Tree, What};

/// How a filter of HTTP asks who may.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asks<'t> {
    /// By rules of this configuration.
    Rules(&'t Tree),
    /// In a way that is not read.
    Unread,
}

/// Filters of HTTP that ask who may in ways that are not read.
const UNREAD: [&str; 5] = ["ExtAuthz", "JwtAuthentication", "BasicAuth", "OAuth2", "ApiKeyAuth"];

/// Whether a filter of HTTP asks who may.
pub(super) fn asks(filter: &Tree) -> Option<Asks<'_>> {
    let config = filter.msg("typed_config")?;
    if config.message == "envoy.extensions.filters.http.rbac.v3.RBAC" {
        return Some(Asks::Rules(config));
    }
    // By a tree of matchers it may be asked, or not.
    let within = config.msg("extension_config").and_then(|one| one.msg("typed_config"));
    let within = within.filter(|_| config.short() == "ExtensionWithMatcher").map(Tree::short);
    let is_unread = UNREAD.contains(&config.short())
        || within.is_some_and(|within| within == "RBAC" || UNREAD.contains(&within));
    is_unread.then_some(Asks::Unread)
}

/// What a route says to a filter of HTTP.
#[derive(Debug, Clone, Copy)]
pub(super) enum OfRoute<'t> {
    Off,
    /// It is on as it is configured.
    On,
    /// It is on, with this instead.
    Own(&'t Tree),
}

/// Whether a filter of HTTP is asked where a route says this.
pub(super) fn is_on(filter: &Tree, entry: Option<&Entry>) -> bool {
    match entry.map(said) {
        None => !filter.is("disabled"),
        Some(OfRoute::Off) => false,
        Some(OfRoute::On | OfRoute::Own(_)) => true,
    }
}

/// Whether it is asked for any route.
pub(super) fn is_ever_on(filter: &Tree, routes: &Tree) -> bool {
    let switches_on = |level| at_level(level, filter).is_some_and(|one| is_on(filter, Some(one)));
    !filter.is("disabled") || levels(routes).any(switches_on)
}

/// All that can say something to a filter: route configuration, virtual hosts, routes,
/// and clusters of routes with several.
pub(super) fn levels(routes: &Tree) -> impl Iterator<Item = &Tree> {
    let hosts = || routes.messages("virtual_hosts");
    let of_hosts = || hosts().flat_map(|host| host.messages("routes"));
    std::iter::once(routes).chain(hosts()).chain(of_hosts()).chain(of_hosts().flat_map(clusters))
}

/// Clusters of a route with several.
pub(super) fn clusters(route: &Tree) -> impl Iterator<Item = &Tree> {
    let all = route.msg("route").and_then(|action| action.msg("weighted_clusters"));
    all.into_iter().flat_map(|all| all.messages("clusters"))
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

/// What such an entry says.
pub(super) fn said(entry: &Entry) -> OfRoute<'_> {
    let What::Message(tree) = &entry.value.what else { return OfRoute::On };
    if tree.message != "envoy.config.route.v3.FilterConfig" {
        return OfRoute::Own(tree);
    }
    match tree.msg("config").filter(|config| !config.fields.is_empty()) {
        _ if tree.is("disabled") => OfRoute::Off,
        Some(config) => OfRoute::Own(config),
        None => OfRoute::On,
    }
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
