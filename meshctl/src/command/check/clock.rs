//! Whose clock differs from that of federation.

use std::time::Duration;

use mesh_api::v1;

use crate::time;

/// What to do about it.
pub(super) const REMEDY: &str =
    "set the clock that is wrong, e.g. with chrony: certificates will be refused";
/// From here on `meshctl status` warns.
const LIMIT: Duration = Duration::from_secs(60);

/// Who has a clock.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose<'a> {
    /// A machine, by its id.
    Node(&'a str),
    /// A gateway, by its id.
    Gateway(&'a str),
    /// A linked site, by its name.
    Link(&'a str),
}

/// One line for each that differs, among those that are wanted.
pub(super) fn differing(
    status: &v1::SiteStatusResponse,
    wanted: impl Fn(Whose<'_>) -> bool,
) -> Vec<String> {
    let nodes = status.nodes.iter().map(|node| {
        (Whose::Node(&node.id), format!("machine {}", node.hostname), node.clock_ahead_ms)
    });
    let gateways = status.proxies.iter().filter(|proxy| !proxy.gateway.is_empty());
    let gateways = gateways.map(|proxy| {
        let name = format!("gateway {}", proxy.gateway);
        (Whose::Gateway(&proxy.gateway), name, proxy.clock_ahead_ms)
    });
    let links = status.links.iter().map(|link| {
        (Whose::Link(&link.site), format!("federation of {}", link.site), link.clock_ahead_ms)
    });
    let differs = |ahead: i64| Duration::from_millis(ahead.unsigned_abs()) > LIMIT;
    nodes
        .chain(gateways)
        .chain(links)
        .filter(|(whose, ..)| wanted(*whose))
        .filter_map(|(_, name, ahead)| Some((name, ahead.filter(|ahead| differs(*ahead))?)))
        .map(|(name, ahead)| format!("{name}: {} to federation's", time::ahead_ms(ahead)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_are_wanted_and_differ_are_named() {
        let status = v1::SiteStatusResponse {
            nodes: [("a", Some(61_000)), ("b", Some(-60_000)), ("c", None)]
                .map(|(id, clock_ahead_ms)| v1::NodeInfo {
                    id: id.into(),
                    hostname: id.into(),
                    clock_ahead_ms,
                    ..Default::default()
                })
                .into(),
            proxies: ["", "gw1"]
                .map(|gateway| v1::ProxyInfo {
                    gateway: gateway.into(),
                    clock_ahead_ms: Some(-3_600_000),
                    ..Default::default()
                })
                .into(),
            links: vec![v1::LinkInfo {
                site: "east".into(),
                clock_ahead_ms: Some(70_000),
                ..Default::default()
            }],
            ..Default::default()
        };
        let all = ["machine a: +61.0s", "gateway gw1: -3600.0s", "federation of east: +70.0s"];
        let named = differing(&status, |_| true);
        assert_eq!(named.len(), all.len(), "{named:?}");
        assert!(named.iter().zip(all).all(|(named, start)| named.starts_with(start)), "{named:?}");
        assert_eq!(differing(&status, |whose| matches!(whose, Whose::Link("east"))).len(), 1);
        assert!(differing(&status, |whose| matches!(whose, Whose::Node("b"))).is_empty());
    }
}
