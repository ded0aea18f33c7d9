//! What an entry of Consul says of one instance.

use std::num::NonZeroU16;

use super::{AddressOf, Health, Host, ImportRule, Instance};
use crate::wire::{Check, ServiceEntry};

/// The largest weight that is taken as it is.
const MAX_WEIGHT: i64 = 65_535;

/// One instance, or why it cannot be reached.
pub(super) fn instance(rule: &ImportRule, entry: &ServiceEntry) -> Result<Instance, String> {
    let (address, port) = place(rule, entry);
    let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
    let port = port.ok_or("has no port; register it with one")?;
    let address = host(&address)
        .ok_or_else(|| format!("has the address {:?}, which is none", short(&address)))?;
    let health = health(&entry.checks, &entry.service.id);
    let weights = &entry.service.weights;
    let weight = if health == Health::Warning { weights.warning } else { weights.passing };
    // Nodes of old versions do not say theirs.
    let dc = match entry.node.datacenter.as_str() {
        "" => rule.dc.as_deref().unwrap_or_default(),
        dc => dc,
    };
    Ok(Instance {
        id: format!("{dc}/{}/{}", entry.node.node, entry.service.id),
        address,
        port,
        health,
        weight: u32::try_from(weight.clamp(0, MAX_WEIGHT)).unwrap_or(0),
        tags: entry.service.tags.clone(),
        meta: entry.service.meta.clone(),
        node: entry.node.node.clone(),
        dc: dc.to_owned(),
    })
}

/// The address of an instance is its own; empty, its node's.
fn place(rule: &ImportRule, entry: &ServiceEntry) -> (String, i64) {
    let (service, node) = (&entry.service, &entry.node);
    if let AddressOf::Tagged(tag) = &rule.address {
        if let Some(tagged) = service.tagged_addresses.get(tag).filter(|t| !t.address.is_empty()) {
            let port = if tagged.port == 0 { service.port } else { tagged.port };
            return (tagged.address.clone(), port);
        }
        if let Some(address) = node.tagged_addresses.get(tag).filter(|_| service.address.is_empty())
        {
            return (address.clone(), service.port);
        }
    }
    let of_node = service.address.is_empty() || rule.address == AddressOf::Node;
    (if of_node { &node.address } else { &service.address }.clone(), service.port)
}

/// Worst of the checks of the node and of the instance.
fn health(checks: &[Check], service: &str) -> Health {
    let applies = |check: &&Check| check.service_id.is_empty() || check.service_id == service;
    let of_check = |check: &Check| {
        let is_drained = check.id == "_node_maintenance"
            || check.id.starts_with("_service_maintenance:")
            || check.status == "maintenance";
        match check.status.as_str() {
            "passing" => Health::Passing,
            _ if is_drained => Health::Maintenance,
            "warning" => Health::Warning,
            _ => Health::Critical,
        }
    };
    checks.iter().filter(applies).map(of_check).max().unwrap_or(Health::Passing)
}

/// RFC 1123 names, with the underscores that many have.
fn host(text: &str) -> Option<Host> {
    if let Ok(ip) = text.parse() {
        return Some(Host::Ip(ip));
    }
    let label = |label: &str| {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(ok)
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    // What looks like an address and is none is no name either.
    let last_is_number =
        name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    (name.len() <= 253 && !last_is_number && name.split('.').all(label))
        .then(|| Host::Name(name.to_ascii_lowercase()))
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
