//! What is let in, and as what.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use mesh_core::ServiceName;

use super::{Skipped, convert::note};
use crate::wire::ServiceTags;

/// Consul's own service: its servers.
const CONSUL: &str = "consul";

/// One rule, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRule {
    /// Names of services in Consul.
    pub allow: Vec<Pattern>,
    /// Instances that have all of them.
    pub tags: Vec<String>,
    /// The agent's own where absent.
    pub dc: Option<String>,
    /// The namespace that the mesh knows them in.
    pub as_namespace: String,
    /// Other names for some.
    pub rename: BTreeMap<String, String>,
    /// Which of its addresses.
    pub address: AddressOf,
    /// Where clients ask for it, whatever its instances listen on.
    pub port: Option<NonZeroU16>,
}

/// Which address of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AddressOf {
    /// Its own, or its node's where it has none.
    #[default]
    Service,
    /// Its node's.
    Node,
    /// A tagged one (`lan`, `wan`, …), or as [`AddressOf::Service`] without it.
    Tagged(String),
}

/// A name in which `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(pub String);

impl Pattern {
    /// Whether `name` is one of those meant. Consul's names know no case.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.to_ascii_lowercase(), name.to_ascii_lowercase());
        let mut parts = pattern.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }

    fn names(&self, name: &str) -> bool {
        self.0.eq_ignore_ascii_case(name)
    }
}

impl ImportRule {
    /// Whether it lets in a service of its datacenter.
    pub fn allows(&self, name: &str) -> bool {
        match name {
            CONSUL => self.allow.iter().any(|pattern| pattern.names(name)),
            name => self.allow.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// What the mesh calls a service.
    ///
    /// # Errors
    ///
    /// If it can have no such name; says what to do.
    pub fn name(&self, consul: &str) -> Result<ServiceName, String> {
        let label = self.rename.get(consul).cloned().unwrap_or_else(|| consul.to_ascii_lowercase());
        let name = format!("{label}.{}", self.as_namespace);
        name.parse().map_err(|error| format!("{error}; give it another name in `rename`"))
    }
}

/// A service of a datacenter.
pub(super) type Key = (Option<String>, String);

/// Which services to watch, and which are too many.
pub(super) fn watched(
    rules: &[ImportRule],
    names: &BTreeMap<Option<String>, Arc<ServiceTags>>,
    most: usize,
) -> (BTreeSet<Key>, BTreeSet<Skipped>) {
    let (mut wanted, mut skipped) = (BTreeSet::new(), BTreeSet::new());
    for (dc, services) in names {
        for (name, tags) in services.iter() {
            let rule = rules.iter().find(|rule| rule.dc == *dc && rule.allows(name));
            let has = |tag| tags.as_ref().is_some_and(|tags| tags.contains(tag));
            if !rule.is_some_and(|rule| rule.tags.iter().all(has)) {
                continue;
            }
            if wanted.len() < most {
                wanted.insert((dc.clone(), name.clone()));
            } else {
                let why = format!(
                    "{most} services are watched already; let fewer in by `allow`, or raise                      `max_services` here and http_max_conns_per_client in Consul"
                );
                note(&mut skipped, name.clone(), why);
            }
        }
    }
    (wanted, skipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let cases = [
            ("orders", "orders", true),
            ("orders", "Orders", true),
            ("orders", "orders-api", false),
            ("orders*", "orders", true),
            ("orders*", "orders-api", true),
            ("*-api", "orders-api", true),
            ("*-api", "-api-x", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "ac", false),
            ("ab*ba", "aba", false),
            ("*", "", true),
            ("**", "x", true),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(Pattern(pattern.into()).matches(name), expected, "{pattern} {name}");
        }
    }
}
