//! What the kernel is told, as text for `nft(8)`.
//!
//! Two sets decide whether the rules have any effect. Their only element is
//! "tcp", and it may have a timeout: the kernel takes it out by itself, and
//! nobody has to be alive for that.
//! - [`CONFIRMED`]: without it every rule returns at once. Until somebody has
//!   confirmed, the element ends with the trial.
//! - [`ALIVE`]: without it what is selected goes where it was bound for. It is
//!   renewed while the proxy is ready.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use mesh_core::{Cidr, address::NEVER};

/// Our table, of family `inet`; no other is touched.
pub const TABLE: &str = "isthmus";
/// Holds "tcp" while rules are in force.
pub const CONFIRMED: &str = "confirmed";
/// Holds "tcp" while the proxy is ready.
pub const ALIVE: &str = "alive";
/// How long a proxy may be silent.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Takes the table out, if it is there.
pub const REMOVAL: &str = "add table inet isthmus\ndelete table inet isthmus\n";
/// Never captured: SSH.
pub const SSH: u16 = 22;
/// Not captured unless asked: DNS over TCP and TLS, multicast DNS, LLMNR.
const DNS: [u16; 4] = [53, 853, 5353, 5355];
/// A connection that begins, and none that was there before the rules: those
/// would be taken for new ones with their next packet.
const BEGINS: &str = "tcp flags & (fin | syn | rst | ack) == syn";
const GOES_ON: &str = "tcp flags & (fin | syn | rst | ack) != syn";

/// First and last port.
pub type Ports = (u16, u16);

/// What is captured; names are looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Where the proxy takes captured connections.
    pub proxy_port: u16,
    /// Users of the mesh itself, whose connections are never captured.
    pub own: BTreeSet<u32>,
    /// Blocks of virtual addresses, captured for everybody.
    pub virtual_addresses: Vec<Cidr>,
    /// What else is.
    pub outbound: Vec<Selection>,
    /// Users who are left alone.
    pub exclude_users: BTreeSet<u32>,
    /// Ports that are left alone.
    pub exclude_ports: Vec<Ports>,
    /// Destinations that are left alone.
    pub exclude_to: Vec<Cidr>,
    /// Whether DNS may be captured, too.
    pub dns: bool,
    /// What is selected is refused while the proxy is gone.
    pub refuse: bool,
    /// Ports to which others connect, and where those connections go; refused
    /// where that is nowhere.
    pub inbound: BTreeMap<u16, Option<u16>>,
}

/// Connections that are captured: all of what is said must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Whose.
    pub who: Who,
    /// To which ports; all if empty.
    pub ports: Vec<Ports>,
    /// To where; everywhere if empty.
    pub to: Vec<Cidr>,
}

/// Whose connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// Everybody's.
    Anybody,
    /// A user's.
    Uid(u32),
    /// Of processes in a cgroup, as nft names it, so many levels below the root.
    Cgroup(u32, String),
}

/// Until when rules are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// Somebody has to confirm them within this time.
    Trial(Duration),
    /// For good.
    Confirmed,
}

impl Rules {
    /// One transaction that puts these in the place of whatever was there.
    pub fn text(&self, term: Term, alive: bool) -> String {
        let mut text = format!("{REMOVAL}table inet {TABLE} {{\n");
        text += &set(
            CONFIRMED,
            match term {
                Term::Trial(left) => Some(format!("tcp timeout {}", nft_time(left))),
                Term::Confirmed => Some("tcp".into()),
            },
        );
        text += &set(ALIVE, alive.then(|| format!("tcp timeout {}", nft_time(PATIENCE))));
        self.write_output(&mut text);
        self.write_forward(&mut text);
        self.write_inbound(&mut text);
        text += "}\n";
        text
    }

    fn write_output(&self, text: &mut String) {
        let mut rule = |rule: &str| {
            let _ = writeln!(text, "\t\t{rule}");
        };
        rule("chain output {");
        rule("type nat hook output priority -100; policy accept;");
        rule(&format!("meta l4proto != @{CONFIRMED} return"));
        rule(&format!("{GOES_ON} return"));
        let never: Vec<Cidr> = NEVER.iter().filter_map(|block| block.parse().ok()).collect();
        for to in destinations(&never) {
            rule(&format!("{to} return"));
        }
        let own = numbers(&self.own);
        let redirect = format!("meta l4proto tcp redirect to :{}", self.proxy_port);
        for to in destinations(&self.virtual_addresses) {
            // Nobody but the proxy knows where they are: what it does not know,
            // it must not look for there.
            rule(&format!("meta skuid {own} {to} reject with tcp reset"));
            rule(&format!("{to} {redirect}"));
        }
        rule(&format!("meta skuid {own} return"));
        rule("oifname \"lo\" return");
        if !self.exclude_users.is_empty() {
            rule(&format!("meta skuid {} return", numbers(&self.exclude_users)));
        }
        rule(&format!("tcp dport {} return", ports(&self.ports_left_alone())));
        for to in destinations(&self.exclude_to) {
            rule(&format!("{to} return"));
        }
        if !self.refuse {
            rule(&format!("meta l4proto != @{ALIVE} return"));
        }
        for selection in &self.outbound {
            for condition in selection.conditions() {
                rule(&format!("{condition}{redirect}"));
            }
        }
        rule("}");
    }

    /// A container has a network of its own, and may have heard of a virtual
    /// address from a resolver of this machine: it must not wait for an answer.
    fn write_forward(&self, text: &mut String) {
        *text += "\t\tchain forward {\n";
        *text += "\t\ttype filter hook forward priority -10; policy accept;\n";
        let _ = writeln!(text, "\t\tmeta l4proto != @{CONFIRMED} return");
        for to in destinations(&self.virtual_addresses) {
            let _ = writeln!(text, "\t\t{to} reject with tcp reset");
        }
        *text += "\t\t}\n";
    }

    fn ports_left_alone(&self) -> Vec<Ports> {
        let dns = DNS.iter().filter(|_| !self.dns).map(|port| (*port, *port));
        dns.chain([(SSH, SSH)]).chain(self.exclude_ports.iter().copied()).collect()
    }

    fn write_inbound(&self, text: &mut String) {
        let head = format!("\t\tmeta l4proto != @{CONFIRMED} return\n\t\tiifname \"lo\" return\n");
        let redirected = || self.inbound.iter().filter_map(|(port, to)| Some((port, (*to)?)));
        if redirected().next().is_some() {
            *text += "\t\tchain prerouting {\n";
            *text += "\t\ttype nat hook prerouting priority -100; policy accept;\n";
            *text += &head;
            let _ = writeln!(text, "\t\t{GOES_ON} return\n\t\tfib daddr type != local return");
            for (port, to) in redirected() {
                let _ = writeln!(text, "\t\ttcp dport {port} redirect to :{to}");
            }
            *text += "\t\t}\n";
        }
        let refused: Vec<Ports> =
            self.inbound.iter().filter(|(_, to)| to.is_none()).map(|(p, _)| (*p, *p)).collect();
        if !refused.is_empty() {
            *text += "\t\tchain input {\n";
            *text += "\t\ttype filter hook input priority -10; policy accept;\n";
            *text += &head;
            let refused = ports(&refused);
            let _ = writeln!(text, "\t\t{BEGINS} tcp dport {refused} reject with tcp reset");
            *text += "\t\t}\n";
        }
    }
}

impl Selection {
    /// What must hold, each with a space behind it: one for every family.
    fn conditions(&self) -> Vec<String> {
        let mut condition = match &self.who {
            Who::Anybody => String::new(),
            Who::Uid(uid) => format!("meta skuid {uid} "),
            Who::Cgroup(level, path) => format!("socket cgroupv2 level {level} \"{path}\" "),
        };
        if !self.ports.is_empty() {
            let _ = write!(condition, "tcp dport {} ", ports(&self.ports));
        }
        if self.to.is_empty() {
            return vec![condition];
        }
        destinations(&self.to).map(|to| format!("{condition}{to} ")).collect()
    }
}

fn set(name: &str, element: Option<String>) -> String {
    let elements = element.map(|e| format!(" elements = {{ {e} }};")).unwrap_or_default();
    format!("\t\tset {name} {{ type inet_proto; flags timeout;{elements} }}\n")
}

/// nft knows no time below a second in every version.
fn nft_time(time: Duration) -> String {
    format!("{}s", time.as_secs().max(1))
}

fn numbers(numbers: &BTreeSet<u32>) -> String {
    listed(numbers.iter())
}

fn listed<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    format!("{{ {} }}", items.join(", "))
}

/// Intervals of a set must not overlap.
fn ports(ports: &[Ports]) -> String {
    let mut sorted = ports.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<Ports> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let text = |(first, last): Ports| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    listed(merged.into_iter().map(text))
}

/// A match for each family that is there.
fn destinations(blocks: &[Cidr]) -> impl Iterator<Item = String> {
    [("ip", true), ("ip6", false)].into_iter().filter_map(move |(family, v4)| {
        let of_family: Vec<Cidr> =
            blocks.iter().filter(|b| b.is_ipv4() == v4).map(Cidr::network).collect();
        let mut widest: Vec<Cidr> = of_family
            .iter()
            .filter(|block| !of_family.iter().any(|o| o != *block && o.covers(block)))
            .copied()
            .collect();
        widest.sort_unstable();
        widest.dedup();
        (!widest.is_empty()).then(|| format!("{family} daddr {}", listed(widest.iter())))
    })
}

#[cfg(test)]
mod tests;
