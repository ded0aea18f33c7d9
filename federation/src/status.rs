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

/// All joined machines.
pub fn nodes(admin: &AdminService) -> Vec<v1::NodeInfo> {
    let state = admin.site.authority.state();
    state.nodes.values().map(|node| node_info(admin, node)).collect()
}

fn node_info(admin: &AdminService, node: &NodeState) -> v1::NodeInfo {
    let (liveness, silent) = admin.view.liveness(&node.id);
    let agent = admin.registry.agent(&node.id);
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
    v1::SiteStatusResponse {
        site: Some(admin.site.describe_to_gateway()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: Some(v1::Revision { epoch: state.revision.epoch, n: state.revision.n }),
        root_fingerprint: fingerprint(admin.site.ca.root()),
        root_expires_unix_s: admin.site.ca.root_not_after_unix_s(),
        issuing_ca_expires_unix_s: admin.site.ca.issuing_not_after_unix_s(),
        nodes: nodes(admin),
        warnings: warnings(admin, &state, &links, &proxies),
        links,
        proxies,
        gateways: crate::site::gateways(&state),
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
    warnings.extend(certificate_warnings(admin));
    warnings
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
