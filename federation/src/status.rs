//! What an operator sees of a site at one moment.

use std::time::Duration;

use mesh_api::v1::{self, authority_record::Event};

use crate::{
    admin::AdminService,
    authority::{State, state::NodeState},
    ca::{ISSUING_LIFE, fingerprint},
    leases::Liveness,
};

/// A root that ends sooner than this needs a plan.
const ROOT_WARNING: Duration = Duration::from_secs(180 * 86_400);
/// As the proxies themselves warn.
const TRANSITION_WARNING_S: i64 = 14 * 86_400;
/// Clocks that differ by more make certificates be refused soon: leaves are
/// backdated by 10 minutes, and joining is refused from 5 minutes on.
const CLOCK_WARNING: Duration = Duration::from_secs(60);

/// All joined machines.
pub fn nodes(admin: &AdminService) -> Vec<v1::NodeInfo> {
    let state = admin.site.authority.state();
    let proxies = admin.discovery.proxies();
    state.nodes.values().map(|node| node_info(admin, node, &proxies)).collect()
}

fn node_info(admin: &AdminService, node: &NodeState, proxies: &[v1::ProxyInfo]) -> v1::NodeInfo {
    let (liveness, silent) = admin.view.liveness(&node.id);
    let agent = admin.registry.agent(&node.id);
    // While its agent is away, its proxy tells.
    let clock = agent.as_ref().and_then(|agent| agent.clock_ahead_ms).or_else(|| {
        let on_node = |proxy: &&v1::ProxyInfo| proxy.node == node.id.as_str();
        proxies.iter().filter(on_node).find_map(|proxy| proxy.clock_ahead_ms)
    });
    let state = match liveness {
        _ if node.duplicated.is_some() => "duplicated",
        Liveness::Alive => "connected",
        Liveness::Leaving => "leaving",
        Liveness::Unknown => "unknown",
        Liveness::Lapsed => "lapsed",
    };
    v1::NodeInfo {
        id: node.id.to_string(),
        hostname: node.hostname.clone(),
        state: state.to_owned(),
        grants: Some(node.grants.clone()),
        certificate_expires_unix_s: node.current.not_after_unix_s,
        last_heard_ms: silent.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        agent_version: agent.map(|agent| agent.version).unwrap_or_default(),
        serial: node.current.serial.clone(),
        previous_serial: node.previous.as_ref().map(|c| c.serial.clone()).unwrap_or_default(),
        clock_ahead_ms: clock,
    }
}

/// Whom the record of a certificate names.
pub fn issued_to(record: &v1::AuthorityRecord) -> Option<String> {
    match record.event.as_ref()? {
        Event::NodeJoined(node) => Some(format!("node:{}", node.id)),
        Event::NodeRenewed(node) => Some(format!("node:{}", node.id)),
        Event::WorkloadIssued(leaf) => Some(leaf.spiffe_id.clone()),
        _ => None,
    }
}

/// The whole site.
pub fn site(admin: &AdminService) -> v1::SiteStatusResponse {
    let state = admin.site.authority.state();
    let links = admin.links.list().links;
    let proxies = admin.discovery.proxies();
    let nodes = nodes(admin);
    let mut warnings = warnings(admin, &state, &links, &proxies);
    warnings.extend(clock_warnings(&nodes, &proxies, &links));
    let consuls = admin.consuls.list();
    warnings.extend(consuls.iter().filter_map(consul_warning));
    let now = admin.site.authority.clock().unix_s();
    warnings.extend(transition_warnings(&proxies, now));
    v1::SiteStatusResponse {
        site: Some(admin.site.describe_to_gateway()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: Some(v1::Revision { epoch: state.revision.epoch, n: state.revision.n }),
        root_fingerprint: fingerprint(&admin.site.ca.root()),
        root_expires_unix_s: admin.site.ca.root_not_after_unix_s(),
        issuing_ca_expires_unix_s: admin.site.ca.issuing_not_after_unix_s(),
        nodes,
        warnings,
        links,
        proxies,
        gateways: crate::site::gateways(&state),
        consuls,
    }
}

/// What a person should look at, most urgent first.
fn warnings(
    admin: &AdminService,
    state: &State,
    links: &[v1::LinkInfo],
    proxies: &[v1::ProxyInfo],
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(problem) = admin.site.authority.failing() {
        warnings.push(format!("nothing can be changed: {problem}"));
    }
    if let Some(held) = admin.view.mass_lapse() {
        warnings.push(format!(
            "{held} nodes went silent at once; their endpoints stay until they are heard again or \
             lapse one by one: is this federation cut off?"
        ));
    }
    for node in state.nodes.values() {
        if let Some(reason) = &node.duplicated {
            let (id, host) = (&node.id, &node.hostname);
            warnings.push(format!(
                "node {id} ({host}) exists twice ({reason}): meshctl node resolve {id}"
            ));
        }
    }
    for link in links.iter().filter(|link| link.state == "lost") {
        warnings.push(format!("link {}: lost; its last known state is used", link.site));
    }
    for proxy in proxies.iter().filter(|proxy| !proxy.nack.is_empty()) {
        let (id, node) = (&proxy.spiffe_id, &proxy.node);
        warnings
            .push(format!("proxy {id} on node {node} refuses its configuration: {}", proxy.nack));
    }
    if state.gateways.is_empty() {
        warnings
            .push("no gateway: nothing can join or be linked; add one to federation.yaml".into());
    }
    warnings.extend(rotation_warning(admin));
    warnings.extend(certificate_warnings(admin));
    warnings
}

/// Whose clock differs from ours. Of the proxies only those are named that are
/// on no machine of the list, gateways above all.
fn clock_warnings(
    nodes: &[v1::NodeInfo],
    proxies: &[v1::ProxyInfo],
    links: &[v1::LinkInfo],
) -> Vec<String> {
    let nodes = nodes
        .iter()
        .map(|node| (format!("machine {} (node {})", node.hostname, node.id), node.clock_ahead_ms));
    let proxies = proxies.iter().filter(|proxy| proxy.node.is_empty()).map(|proxy| {
        let name = match proxy.gateway.as_str() {
            "" => format!("proxy {}", proxy.spiffe_id),
            gateway => format!("gateway {gateway}"),
        };
        (name, proxy.clock_ahead_ms)
    });
    let links = links
        .iter()
        .map(|link| (format!("federation of linked site {}", link.site), link.clock_ahead_ms));
    nodes
        .chain(proxies)
        .chain(links)
        .filter_map(|(who, ahead)| clock_warning(&who, ahead?))
        .collect()
}

fn clock_warning(who: &str, ahead_ms: i64) -> Option<String> {
    let skew = Duration::from_millis(ahead_ms.unsigned_abs());
    let side = if ahead_ms > 0 { "ahead of" } else { "behind" };
    (skew > CLOCK_WARNING).then(|| {
        format!(
            "clock: {who} is {} s {side} this federation; set the wrong one (e.g. with chrony): \
             certificates will be refused",
            skew.as_secs()
        )
    })
}

/// A Consul that is not as of now.
fn consul_warning(consul: &v1::ConsulInfo) -> Option<String> {
    let v1::ConsulInfo { address, state, problem, stale_ms, .. } = consul;
    let kept = match state.as_str() {
        "fresh" => return None,
        "waiting" => "is not known yet".to_owned(),
        _ => format!("what was known {} s ago is kept", stale_ms / 1000),
    };
    Some(format!("consul {address}: {kept}: {problem}"))
}

/// TLS with certificates of another CA that ends soon, or has ended.
fn transition_warnings(proxies: &[v1::ProxyInfo], now: i64) -> Vec<String> {
    let all = proxies.iter().flat_map(|proxy| {
        let who = match proxy.node.as_str() {
            "" => format!("proxy {}", proxy.spiffe_id),
            node => format!("proxy {} on node {node}", proxy.spiffe_id),
        };
        proxy.transitions.iter().map(move |transition| (who.clone(), transition))
    });
    let warning = |(who, v1::TransitionTls { kind, name, until_unix_s }): (String, &_)| {
        let what = format!("{who}: {kind} {name}: TLS of another CA");
        match until_unix_s - now {
            left if left <= 0 => Some(format!(
                "{what} has ended and every handshake is refused: remove `tls`, or write a later \
                 `until`"
            )),
            left if left <= TRANSITION_WARNING_S => {
                Some(format!("{what} ends in {} days: move its peers into the mesh", left / 86_400))
            }
            _ => None,
        }
    };
    all.filter_map(warning).collect()
}

/// A rotation that waits for somebody, or for a person.
fn rotation_warning(admin: &AdminService) -> Option<String> {
    let status = admin.rotation.status();
    let gone = status.blockers.iter().filter(|blocker| !blocker.connected).count();
    let why = match status.phase() {
        v1::RotationPhase::Unspecified => return None,
        _ if !status.problem.is_empty() => status.problem,
        _ if status.paused => "it is paused".to_owned(),
        _ if gone > 0 => format!("{gone} that it waits for are not connected"),
        _ => return None,
    };
    Some(format!("the rotation of the root does not go on: {why}; meshctl rotate root status"))
}

fn certificate_warnings(admin: &AdminService) -> Vec<String> {
    let now = admin.site.authority.clock().unix_s();
    let days = |until: i64| (until - now) / 86_400;
    let mut warnings = Vec::new();
    let issuing = admin.site.ca.issuing_not_after_unix_s();
    // It is replaced at two thirds: later means that this fails.
    if issuing - now < (ISSUING_LIFE / 4).as_secs().cast_signed() {
        let days = days(issuing);
        warnings.push(format!(
            "the issuing CA ends in {days} days and is not renewed: is root.key there?"
        ));
    }
    let root = admin.site.ca.root_not_after_unix_s();
    if root - now < ROOT_WARNING.as_secs().cast_signed() {
        warnings.push(format!("the root ends in {} days", days(root)));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_warned_of_from_a_minute_on_either_way() {
        let node = |ahead| v1::NodeInfo {
            id: "n1".into(),
            hostname: "web".into(),
            clock_ahead_ms: ahead,
            ..v1::NodeInfo::default()
        };
        for (ahead, expected) in [
            (None, None),
            (Some(0), None),
            (Some(60_000), None),
            (Some(-60_999), Some("machine web (node n1) is 60 s behind this")),
            (Some(60_001), Some("is 60 s ahead of this")),
            (Some(i64::MAX), Some("ahead of this")),
            (Some(i64::MIN), Some("behind this")),
        ] {
            let warnings = clock_warnings(&[node(ahead)], &[], &[]);
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{ahead:?}: {warnings:?}");
            let right = expected.is_none_or(|text| warnings[0].contains(text));
            assert!(right, "{ahead:?}: {warnings:?}");
        }
    }

    #[test]
    fn an_end_of_transition_tls_is_warned_of_two_weeks_before() {
        let day = 86_400;
        let of = |until| v1::ProxyInfo {
            spiffe_id: "spiffe://x/ns/a/sa/b".into(),
            node: "n1".into(),
            transitions: vec![v1::TransitionTls {
                kind: "listener".into(),
                name: "10.0.0.7:443".into(),
                until_unix_s: until,
            }],
            ..v1::ProxyInfo::default()
        };
        let now = 1_800_000_000;
        for (until, expected) in [
            (now + 14 * day + 1, None),
            (
                now + 14 * day,
                Some("on node n1: listener 10.0.0.7:443: TLS of another CA ends in 14"),
            ),
            (now + 1, Some("ends in 0 days")),
            (now, Some("has ended")),
            (0, Some("has ended")),
        ] {
            let warnings = transition_warnings(&[of(until)], now);
            assert_eq!(warnings.len(), usize::from(expected.is_some()), "{until}: {warnings:?}");
            let right = expected.is_none_or(|text| warnings[0].contains(text));
            assert!(right, "{until}: {warnings:?}");
        }
    }

    #[test]
    fn one_machine_is_warned_of_once() {
        let ahead = Some(3_600_000);
        let node = v1::NodeInfo { clock_ahead_ms: ahead, ..v1::NodeInfo::default() };
        let of = |node: &str, gateway: &str| v1::ProxyInfo {
            node: node.into(),
            gateway: gateway.into(),
            clock_ahead_ms: ahead,
            ..v1::ProxyInfo::default()
        };
        let link =
            v1::LinkInfo { site: "east".into(), clock_ahead_ms: ahead, ..Default::default() };
        let warnings = clock_warnings(&[node], &[of("n1", ""), of("", "gw1")], &[link]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(warnings[1].contains("gateway gw1 is 3600 s ahead"), "{warnings:?}");
        assert!(warnings[2].contains("linked site east"), "{warnings:?}");
    }
}
