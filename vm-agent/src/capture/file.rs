//! `capture.yaml`: what is captured of this machine's traffic.
//!
//! ```yaml
//! outbound:                     # each entry: all of what it says
//! - user: shop                  # name or number
//! - unit: orders.service        # or a slice
//!   ports: [80, 8000-8999]
//! - to: [10.20.0.0/16]          # whoever connects to there
//! exclude: { users: [backup], ports: [25], to: [10.20.0.9] }
//! inbound:                      # who connects from elsewhere to this port
//! - port: 8080                  # is refused,
//! - { port: 8081, to: 4144 }    # or served by `inbound_plaintext` of the proxy
//! when_proxy_is_gone: direct    # or refuse
//! ```
//!
//! Virtual addresses are captured whatever is written, for every process, of
//! IPv6 those that stand for one of IPv4; an empty file captures them alone.

use std::{collections::BTreeMap, fmt, net::SocketAddr, num::NonZeroU16};

use mesh_core::{Cidr, address::NEVER};
use mesh_runtime::config::{self, ConfigError};
use serde::{Deserialize, Deserializer, de};

use super::{
    cgroups::Cgroups,
    rules::{Ports, Rules, SSH, Selection, Who},
};
use crate::{attest::Account, machine::is_unit};

/// Entries of any list.
const MAX_ENTRIES: usize = 256;
/// Reserved for future use (RFC 1112 section 4): nobody else's.
const VIRTUAL: &str = "240.0.0.0/4";
/// Users of the mesh, as its packages make them.
const OWN_USERS: [&str; 6] = [
    "isthmus-proxy",
    "isthmus-gateway",
    "isthmus-agent",
    "isthmus-federation",
    "isthmus-capture",
    "isthmus-dns",
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaptureFile {
    outbound: Vec<EntryFile>,
    exclude: ExcludeFile,
    inbound: Vec<InboundFile>,
    virtual_addresses: Option<Vec<Block>>,
    dns: bool,
    when_proxy_is_gone: GoneFile,
    proxy: ProxyFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EntryFile {
    user: Option<Account>,
    unit: Option<String>,
    ports: Vec<PortRange>,
    to: Vec<Block>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ExcludeFile {
    users: Vec<Account>,
    ports: Vec<PortRange>,
    to: Vec<Block>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InboundFile {
    port: NonZeroU16,
    to: Option<NonZeroU16>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GoneFile {
    #[default]
    Direct,
    Refuse,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProxyFile {
    user: Account,
    port: NonZeroU16,
    admin: SocketAddr,
}

impl Default for ProxyFile {
    fn default() -> Self {
        Self {
            user: Account::Name("isthmus-proxy".into()),
            port: NonZeroU16::new(4141).expect("not 0"),
            admin: SocketAddr::from(([127, 0, 0, 1], 4191)),
        }
    }
}

/// `80` or `8000-8999`.
#[derive(Debug, Clone, Copy)]
struct PortRange(Ports);

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PortRange;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port or a range of ports, e.g. 80 or 8000-8999")
            }
            fn visit_u64<E: de::Error>(self, port: u64) -> Result<PortRange, E> {
                self.visit_str(&port.to_string())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let number = |text: &str| text.trim().parse::<NonZeroU16>().ok();
                match (number(first), number(last)) {
                    (Some(first), Some(last)) if first <= last => {
                        Ok(PortRange((first.get(), last.get())))
                    }
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Debug, Clone, Copy)]
struct Block(Cidr);

impl<'de> Deserialize<'de> for Block {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Block;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address or a block of addresses, e.g. 10.20.0.0/16")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Block, E> {
                text.parse().map(Block).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// What the file means; names are not looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    label: String,
    outbound: Vec<Entry>,
    exclude_users: Vec<Account>,
    /// Without who is captured.
    rules: Rules,
    proxy_user: Account,
    /// `/ready` of the proxy.
    pub admin: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    user: Option<Account>,
    unit: Option<String>,
    ports: Vec<Ports>,
    to: Vec<Cidr>,
}

/// What was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// For the kernel.
    pub rules: Rules,
    /// Units that do not run: captured as soon as they do.
    pub waits_for: Vec<String>,
    /// Tells cgroups from others of the same name that were there before.
    pub inodes: Vec<u64>,
}

/// Parses it; `label` is how errors name it.
pub fn parse(text: &str, label: &str) -> Result<Plan, ConfigError> {
    let file: CaptureFile = config::parse(text, label)?;
    file.check(label).map_err(|(key, problem)| ConfigError::meaning(label, key, problem))
}

/// A key and what is wrong with its value.
type Problem = (String, String);

fn problem(key: impl Into<String>, text: impl Into<String>) -> Problem {
    (key.into(), text.into())
}

impl CaptureFile {
    fn check(self, label: &str) -> Result<Plan, Problem> {
        self.check_sizes()?;
        let mut outbound = Vec::new();
        for (index, entry) in self.outbound.into_iter().enumerate() {
            let checked = entry.check().map_err(|text| (format!("outbound[{index}]"), text))?;
            outbound.push(checked);
        }
        let virtual_addresses = match self.virtual_addresses {
            None => vec![VIRTUAL.parse().expect("a block")],
            Some(blocks) => blocks.iter().map(|block| block.0).collect(),
        };
        check_virtual(&virtual_addresses)?;
        let ipv6: Vec<Cidr> = virtual_addresses.iter().filter_map(Cidr::virtual_ipv6).collect();
        let virtual_addresses = [virtual_addresses, ipv6].concat();
        let rules = Rules {
            proxy_port: self.proxy.port.get(),
            virtual_addresses,
            exclude_ports: self.exclude.ports.iter().map(|range| range.0).collect(),
            exclude_to: self.exclude.to.iter().map(|block| block.0).collect(),
            dns: self.dns,
            refuse: self.when_proxy_is_gone == GoneFile::Refuse,
            inbound: inbound(&self.inbound, self.proxy.port.get())?,
            ..Rules::default()
        };
        Ok(Plan {
            label: label.to_owned(),
            outbound,
            exclude_users: self.exclude.users,
            rules,
            proxy_user: self.proxy.user,
            admin: self.proxy.admin,
        })
    }

    fn check_sizes(&self) -> Result<(), Problem> {
        let entries = self.outbound.iter().flat_map(|entry| [entry.ports.len(), entry.to.len()]);
        let exclude = &self.exclude;
        let others = [
            self.outbound.len(),
            self.inbound.len(),
            exclude.users.len(),
            exclude.ports.len(),
            exclude.to.len(),
            self.virtual_addresses.as_ref().map_or(0, Vec::len),
        ];
        if entries.chain(others).any(|len| len > MAX_ENTRIES) {
            return Err(problem(
                "outbound",
                format!("no list has more than {MAX_ENTRIES} entries"),
            ));
        }
        Ok(())
    }
}

impl EntryFile {
    fn check(self) -> Result<Entry, String> {
        if self.user.is_some() && self.unit.is_some() {
            return Err("user and unit exclude each other; write two entries".to_owned());
        }
        if self.user.is_none() && self.unit.is_none() && self.to.is_empty() {
            let text = "names neither user, unit nor to; to capture everybody write \
                        to: [0.0.0.0/0, \"::/0\"]";
            return Err(text.to_owned());
        }
        if let Some(unit) = &self.unit {
            check_unit(unit)?;
        }
        let ports: Vec<Ports> = self.ports.iter().map(|range| range.0).collect();
        if ports.contains(&(SSH, SSH)) {
            return Err(format!("port {SSH} is SSH's and is never captured; leave it out"));
        }
        let to = self.to.iter().map(|block| block.0).collect();
        Ok(Entry { user: self.user, unit: self.unit, ports, to })
    }
}

fn check_unit(unit: &str) -> Result<(), String> {
    let has_cgroup = [".service", ".slice", ".scope"].iter().any(|kind| unit.ends_with(kind));
    if !has_cgroup || !is_unit(unit) {
        return Err(format!(
            "{unit:?} is no service, slice or scope of systemd; write it with its suffix, e.g. \
             orders.service"
        ));
    }
    Ok(())
}

fn check_virtual(blocks: &[Cidr]) -> Result<(), Problem> {
    let never = || NEVER.iter().filter_map(|block| block.parse::<Cidr>().ok());
    for block in blocks {
        if let Some(other) = never().find(|n| n.covers(block) || block.covers(n)) {
            let text = format!("{block} and {other} overlap, which is never captured");
            return Err(problem("virtual_addresses", text));
        }
    }
    Ok(())
}

fn inbound(entries: &[InboundFile], proxy: u16) -> Result<BTreeMap<u16, Option<u16>>, Problem> {
    let mut ports = BTreeMap::new();
    for InboundFile { port, to } in entries {
        let (port, to) = (port.get(), to.map(NonZeroU16::get));
        if port == SSH {
            return Err(problem("inbound", format!("port {SSH} is SSH's; leave it out")));
        }
        if to == Some(proxy) || to == Some(port) {
            let text = format!("{port}: `to` is a port of `inbound_plaintext` in proxy.yaml");
            return Err(problem("inbound", text));
        }
        if ports.insert(port, to).is_some() {
            return Err(problem("inbound", format!("port {port} is there twice")));
        }
    }
    Ok(ports)
}

impl Plan {
    /// Looks up users, as in `passwd(5)`, and cgroups.
    ///
    /// # Errors
    ///
    /// A user does not exist, or is one of the mesh's own.
    pub fn resolve(&self, accounts: &str, cgroups: &Cgroups) -> Result<Resolved, ConfigError> {
        let wrong = |key: &str, text: String| ConfigError::meaning(&self.label, key, text);
        let number = |key: &str, user: &Account| {
            let missing = || wrong(key, format!("{user}: no such user in /etc/passwd"));
            user.number(accounts).ok_or_else(missing)
        };
        let mut rules = self.rules.clone();
        let known = OWN_USERS.iter().map(|name| Account::Name((*name).into()));
        rules.own = known.filter_map(|user| user.number(accounts)).collect();
        rules.own.insert(number("proxy.user", &self.proxy_user)?);
        for user in &self.exclude_users {
            rules.exclude_users.insert(number("exclude.users", user)?);
        }
        let mut resolved = Resolved { rules, waits_for: Vec::new(), inodes: Vec::new() };
        for entry in &self.outbound {
            let who = match (&entry.user, &entry.unit) {
                (Some(user), _) => {
                    let uid = number("outbound", user)?;
                    if resolved.rules.own.contains(&uid) {
                        let text = format!("{user} is a user of the mesh itself; leave it out");
                        return Err(wrong("outbound", text));
                    }
                    Who::Uid(uid)
                }
                (None, Some(unit)) => match cgroups.find(unit) {
                    Some(found) => {
                        resolved.inodes.push(found.inode);
                        Who::Cgroup(found.level, found.name)
                    }
                    None => {
                        resolved.waits_for.push(unit.clone());
                        continue;
                    }
                },
                (None, None) => Who::Anybody,
            };
            let (ports, to) = (entry.ports.clone(), entry.to.clone());
            resolved.rules.outbound.push(Selection { who, ports, to });
        }
        Ok(resolved)
    }

    /// Whether it has to be looked up again as units come and go.
    pub fn names_units(&self) -> bool {
        self.outbound.iter().any(|entry| entry.unit.is_some())
    }

    /// Ports of this machine to which others may no longer connect as before.
    pub fn closes(&self, port: u16) -> bool {
        self.rules.inbound.contains_key(&port)
    }

    /// What is captured, a line each, for people.
    pub fn captured(&self) -> Vec<String> {
        let everybody = self.rules.virtual_addresses.iter();
        let mut lines: Vec<String> =
            everybody.map(|block| format!("every process, to virtual addresses {block}")).collect();
        lines.extend(self.outbound.iter().map(Entry::told));
        lines.extend(self.rules.inbound.iter().map(|(port, to)| match to {
            Some(to) => format!("who connects from elsewhere to port {port}: served at {to}"),
            None => format!("who connects from elsewhere to port {port}: refused"),
        }));
        lines
    }

    /// What never is, the same way.
    pub fn never(&self) -> Vec<String> {
        let mut lines = vec![
            "connections that are open already".to_owned(),
            format!("those of {} and of the mesh's other processes", self.proxy_user),
            "loopback, link-local addresses, metadata services of clouds".to_owned(),
            format!("SSH (port {SSH})"),
        ];
        if !self.rules.dns {
            lines.push("DNS".to_owned());
        }
        lines.extend(self.exclude_users.iter().map(|user| format!("those of user {user}")));
        let Rules { exclude_ports, exclude_to, .. } = &self.rules;
        lines.extend(
            exclude_ports.iter().map(|range| format!("those to port {}", range_text(range))),
        );
        lines.extend(exclude_to.iter().map(|block| format!("those to {block}")));
        lines
    }
}

impl Entry {
    fn told(&self) -> String {
        let who = match (&self.user, &self.unit) {
            (Some(user), _) => format!("user {user}"),
            (None, Some(unit)) => format!("unit {unit}"),
            (None, None) => "every process".to_owned(),
        };
        let to: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        let to = if to.is_empty() { "everywhere".to_owned() } else { to.join(", ") };
        let ports: Vec<String> = self.ports.iter().map(range_text).collect();
        match ports.is_empty() {
            true => format!("{who}, to {to}"),
            false => format!("{who}, to {to}, ports {}", ports.join(", ")),
        }
    }
}

fn range_text((first, last): &Ports) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests;
