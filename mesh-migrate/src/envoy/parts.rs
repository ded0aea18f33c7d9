//! Where things stand in a configuration of Envoy.

use std::net::{IpAddr, SocketAddr};

use super::{
    access,
    tree::{Tree, What},
};
use crate::request::{Endpoint, Http};

const HCM: &str =
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP_PROXY: &str = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
/// TLS of clients.
pub(super) const DOWNSTREAM_TLS: &str =
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
/// TLS towards applications.
pub(super) const UPSTREAM_TLS: &str =
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// No TLS, written down.
pub(super) const RAW_BUFFER: &str = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";

/// What a filter chain does in the end.
#[derive(Debug, Clone, Copy)]
pub(super) enum Terminal<'t> {
    Http(&'t Tree),
    Tcp(&'t Tree),
    /// A filter that we know nothing of, or none.
    Other(Option<&'t Tree>),
}

/// The last network filter of a chain.
pub(super) fn terminal(chain: &Tree) -> Terminal<'_> {
    let Some(last) = chain.messages("filters").last() else { return Terminal::Other(None) };
    match last.msg("typed_config") {
        Some(config) if config.message == HCM => Terminal::Http(config),
        Some(config) if config.message == TCP_PROXY => Terminal::Tcp(config),
        _ => Terminal::Other(Some(last)),
    }
}

/// `socket_address` of an `Address`.
pub(super) fn socket(address: Option<&Tree>) -> Option<Endpoint> {
    let socket = address?.msg("socket_address")?;
    let port = u16::try_from(socket.whole("port_value").unwrap_or(0)).ok()?;
    let host = socket.text("address").unwrap_or_default();
    Some(match host.parse::<IpAddr>() {
        Ok(ip) => Endpoint::Address(SocketAddr::new(ip, port)),
        Err(_) => Endpoint::Name(format!("{host}:{port}")),
    })
}

/// Where a listener listens: its address and those beside it.
pub(super) fn addresses(listener: &Tree) -> Vec<SocketAddr> {
    let more = listener.messages("additional_addresses").map(|more| more.msg("address"));
    std::iter::once(listener.msg("address"))
        .chain(more)
        .filter_map(|address| match socket(address)? {
            Endpoint::Address(address) => Some(address),
            Endpoint::Name(_) => None,
        })
        .collect()
}

/// The TLS context of a filter chain or cluster, if it is one of `message`.
pub(super) fn tls<'t>(of: &'t Tree, message: &str) -> Option<&'t Tree> {
    let config = of.msg("transport_socket")?.msg("typed_config")?;
    (config.message == message).then_some(config)
}

/// The name of a listener for people: its own, or its address.
pub(super) fn listener_name(listener: &Tree) -> String {
    match listener.some_text("name") {
        Some(name) => name.to_owned(),
        None => addresses(listener).first().map(ToString::to_string).unwrap_or_default(),
    }
}

/// Whether names and protocols of TLS are seen when a filter chain is chosen.
pub(super) fn sees_tls(listener: &Tree) -> bool {
    let mut kinds = listener.messages("listener_filters").filter_map(|one| one.msg("typed_config"));
    kinds.any(|config| config.short() == "TlsInspector")
}

/// All filter chains, the default one last.
pub(super) fn chains(listener: &Tree) -> impl Iterator<Item = &Tree> {
    listener.messages("filter_chains").chain(listener.msg("default_filter_chain"))
}

/// Weighted clusters of an HTTP or TCP route: name (of a cluster or, second, of a
/// header that names it), weight, and where it stands.
pub(super) fn weighted(of: &Tree) -> Vec<(&Tree, Option<&str>, u32)> {
    let clusters = of.msg("weighted_clusters").into_iter().flat_map(|all| all.messages("clusters"));
    clusters.map(|one| (one, one.some_text("name"), one.count("weight").unwrap_or(0))).collect()
}

/// Whether anything below is of this message.
pub(super) fn each<'t>(tree: &'t Tree, visit: &mut dyn FnMut(&'t Tree)) {
    visit(tree);
    for field in &tree.fields {
        each_value(&field.value.what, visit);
    }
}

pub(super) fn each_value<'t>(what: &'t What, visit: &mut dyn FnMut(&'t Tree)) {
    match what {
        What::Message(tree) => each(tree, visit),
        What::List(elements) => elements.iter().for_each(|one| each_value(&one.what, visit)),
        What::Map(entries) => entries.iter().for_each(|one| each_value(&one.value.what, visit)),
        _ => {}
    }
}

/// How a cluster chooses a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lb<'t> {
    RoundRobin,
    LeastRequest,
    Random,
    RingHash,
    Maglev,
    /// By a policy that we do not carry.
    Other(&'t str),
}

/// The policy of a cluster: `load_balancing_policy` goes before `lb_policy`.
pub(super) fn lb(cluster: &Tree) -> Lb<'_> {
    if let Some(policy) = cluster.msg("load_balancing_policy") {
        let first = policy.messages("policies").find_map(|one| one.msg("typed_extension_config"));
        let config = first.and_then(|extension| extension.msg("typed_config"));
        return match config.map_or("", Tree::short) {
            "RoundRobin" => Lb::RoundRobin,
            "LeastRequest" => Lb::LeastRequest,
            "Random" => Lb::Random,
            "RingHash" => Lb::RingHash,
            "Maglev" => Lb::Maglev,
            "" => Lb::Other("load_balancing_policy"),
            other => Lb::Other(other),
        };
    }
    match cluster.text("lb_policy").unwrap_or("ROUND_ROBIN") {
        "ROUND_ROBIN" => Lb::RoundRobin,
        "LEAST_REQUEST" => Lb::LeastRequest,
        "RANDOM" => Lb::Random,
        "RING_HASH" => Lb::RingHash,
        "MAGLEV" => Lb::Maglev,
        other => Lb::Other(other),
    }
}

/// Whether localities of a cluster have weights that count.
pub(super) fn weighs_localities(cluster: &Tree) -> bool {
    let common = cluster.msg("common_lb_config");
    if common.is_some_and(|common| common.entry("locality_weighted_lb_config").is_some()) {
        return true;
    }
    let mut found = false;
    if let Some(policy) = cluster.msg("load_balancing_policy") {
        each(policy, &mut |tree| found |= tree.entry("locality_weighted_lb_config").is_some());
    }
    found
}

/// Whether a host takes nothing for what the file says of its health.
pub(super) fn is_out(endpoint: &Tree) -> bool {
    matches!(endpoint.text("health_status"), Some("UNHEALTHY" | "DRAINING" | "TIMEOUT"))
}

/// The percentage of a `FractionalPercent`.
pub(super) fn percent(fraction: Option<&Tree>) -> f64 {
    let Some(fraction) = fraction else { return 0.0 };
    let all = match fraction.text("denominator").unwrap_or("HUNDRED") {
        "TEN_THOUSAND" => 10_000.0,
        "MILLION" => 1_000_000.0,
        _ => 100.0,
    };
    (f64::from(fraction.count("numerator").unwrap_or(0)) / all * 100.0).min(100.0)
}

/// `Host` without its port; a port that is no number stays.
pub(super) fn without_port(host: &str, only: Option<u16>) -> &str {
    let Some(colon) = host.rfind(':') else { return host };
    let is_v6 = host.rfind(']').is_some_and(|end| end > colon);
    match host[colon + 1..].parse::<u32>() {
        Ok(port) if !is_v6 && only.is_none_or(|only| u32::from(only) == port) => &host[..colon],
        _ => host,
    }
}

/// What a filter of HTTP answers health checks by, without asking anybody.
pub(super) fn health_check(filter: &Tree) -> Option<&Tree> {
    let config = filter.msg("typed_config").filter(|config| config.short() == "HealthCheck")?;
    let asks =
        config.is("pass_through_mode") || config.entry("cluster_min_healthy_percentages").is_some();
    let is_on = !filter.is("disabled") && !asks && config.messages("headers").next().is_some();
    is_on.then_some(config)
}

/// The policy for origins that holds for a route: of the filter's own settings, or where
/// nobody has some, of the older fields.
pub(super) fn cors<'t>(levels: [&'t Tree; 3], filter: &Tree) -> Option<&'t Tree> {
    let entry = access::of_route(levels, filter);
    if !access::is_on(filter, entry) {
        return None;
    }
    if let Some(entry) = entry {
        return match access::said(entry) {
            access::OfRoute::Own(policy) => Some(policy),
            _ => None,
        };
    }
    let [_, host, route] = levels;
    // Of routes that lead somewhere.
    let action = route.msg("route")?;
    action.msg("cors").or_else(|| host.msg("cors"))
}

/// Protocols of `Upgrade` that are switched on, in lower case; of a route as it says.
pub(super) fn upgrades(hcm: &Tree, route: Option<&Tree>) -> Vec<String> {
    let action = route.and_then(|route| route.msg("route"));
    let mut on = Vec::new();
    for of in [Some(hcm), action].into_iter().flatten() {
        for one in of.messages("upgrade_configs") {
            let kind = one.text("upgrade_type").unwrap_or_default().to_ascii_lowercase();
            on.retain(|known| *known != kind);
            if one.bool("enabled").unwrap_or(true) {
                on.push(kind);
            }
        }
    }
    on
}

/// Whether routes say something about them.
pub(super) fn have_upgrades(routes: &Tree) -> bool {
    let of_route = |route: &Tree| {
        route.msg("route").is_some_and(|action| !action.list("upgrade_configs").is_empty())
    };
    let mut hosts = routes.messages("virtual_hosts");
    hosts.any(|host| host.messages("routes").any(of_route))
}

/// Whether a request asks for another protocol than HTTP/2.
pub(super) fn is_upgrade(http: &Http) -> bool {
    let lists = http.header("connection").is_some_and(|value| {
        value.split(',').any(|one| one.trim().eq_ignore_ascii_case("upgrade"))
    });
    lists && http.header("upgrade").is_some_and(|to| !to.eq_ignore_ascii_case("h2c"))
}

/// Whether X-Forwarded-Proto is what the connection is, whatever is sent.
pub(super) fn sets_proto(hcm: &Tree) -> bool {
    hcm.is("use_remote_address") && hcm.count("xff_num_trusted_hops").unwrap_or(0) == 0
}
