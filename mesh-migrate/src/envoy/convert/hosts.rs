//! Virtual hosts as rules in order: every host has rules of its own, ended by a 404.

use super::{Converter, Within, all, rule};
use crate::{
    envoy::{parts, re2, tree::Tree},
    program::{Condition, Location, Reply, Rule, Text, Then},
};

/// Domains of one virtual host that can be asked for together.
struct Block<'c> {
    host: &'c Tree,
    domains: Vec<&'c str>,
}

impl<'c> Converter<'c> {
    pub(super) fn rules(&mut self, within: &Within<'c>) -> Vec<Rule> {
        let mut rules = Vec::new();
        for block in blocks(within.routes) {
            let when = domains(&block.domains, within);
            self.stays(&block, within);
            let before = rules.len();
            rules.extend(self.tls_only(block.host, &when, within));
            let mut is_open = true;
            for route in block.host.messages("routes") {
                is_open &= !self.route(route, block.host, &when, within, &mut rules);
            }
            let is_last = when == Condition::Always;
            if is_open {
                let levels = [within.routes, block.host, block.host];
                rules.extend(self.refusals(levels, &when, within));
            }
            if (is_open && !is_last) || rules.len() == before {
                let reply = Reply { status: 404, ..Reply::default() };
                rules.push(rule(&block.host.place, when, Then::Reply(reply)));
            }
        }
        rules
    }

    /// `require_tls`: by X-Forwarded-Proto where Envoy believes it.
    fn tls_only(&mut self, host: &Tree, when: &Condition, within: &Within<'_>) -> Option<Rule> {
        let asks = host.text("require_tls").filter(|asks| *asks != "NONE")?;
        let field = host.entry("require_tls")?;
        if asks == "EXTERNAL_ONLY" {
            let question = "Clients inside may come without TLS, and who is inside is not known here: until it is said, all are sent to https.";
            self.notes.decision(&field.place, question, &["all must use TLS", "nobody must"]);
        } else {
            let how = "the port of Host is left out of the address that clients are sent to";
            self.notes.approximated(&field.place, how);
        }
        let proto = |value: &str| {
            Condition::Header("x-forwarded-proto".into(), Text::Pattern(format!("(?i){value}")))
        };
        let plain = match (within.is_tls, parts::sets_proto(within.hcm)) {
            (true, true) => return None,
            (false, true) => Condition::Always,
            (false, false) => Condition::Not(Box::new(proto("https"))),
            (true, false) => Condition::All(vec![
                Condition::Header("x-forwarded-proto".into(), Text::Present),
                Condition::Not(Box::new(proto("https"))),
            ]),
        };
        let location = Location { scheme: Some("https".into()), ..Location::default() };
        let reply = Reply { status: 301, location: Some(location), ..Reply::default() };
        Some(rule(&field.place, all(vec![when.clone(), plain]), Then::Reply(reply)))
    }

    /// The application sees `Host` as it was sent, port and all.
    fn stays(&mut self, block: &Block<'_>, within: &Within<'_>) {
        let strips = ["strip_matching_host_port", "strip_any_host_port", "strip_trailing_host_dot"];
        for field in strips.iter().filter_map(|name| within.hcm.entry(name)) {
            let how = "hosts are compared without it, and the application sees Host as the client sent it; a redirect without a host of its own leaves the port out";
            self.notes.approximated(&field.place, how);
        }
        for name in ["vhost_header", "ignore_path_parameters_in_path_matching"] {
            if let Some(field) = within.routes.entry(name) {
                self.notes.ask(
                    block.host,
                    format!(
                        "{} (line {}) changes which requests come here.",
                        name, field.place.line
                    ),
                    &["it is not needed", "keep Envoy before us"],
                );
            }
        }
        if block.host.entry("matcher").is_some() {
            self.notes.ask(
                block.host,
                "Routes are chosen by a tree of matchers, which is not read.",
                &["write routes", "keep Envoy before us"],
            );
        }
    }
}

/// Exact domains, then longest suffixes, then longest prefixes, then `*`; a domain
/// joins an earlier block of its host where nothing between would take its requests.
fn blocks(routes: &Tree) -> Vec<Block<'_>> {
    let mut domains: Vec<((u8, usize), &str, &Tree)> = Vec::new();
    for host in routes.messages("virtual_hosts") {
        for domain in host.texts("domains") {
            domains.push((rank(domain), domain, host));
        }
    }
    domains.sort_by_key(|(rank, ..)| std::cmp::Reverse(*rank));
    let mut blocks: Vec<Block<'_>> = Vec::new();
    for (_, domain, host) in domains {
        let own = blocks.iter().rposition(|block| std::ptr::eq(block.host, host));
        let clear = |at: usize| {
            let between = blocks[at + 1..].iter().flat_map(|block| &block.domains);
            domain != "*" && between.into_iter().all(|other| !overlap(domain, other))
        };
        match own.filter(|at| clear(*at)) {
            Some(at) => blocks[at].domains.push(domain),
            None => blocks.push(Block { host, domains: vec![domain] }),
        }
    }
    blocks
}

pub(super) fn rank(domain: &str) -> (u8, usize) {
    match (domain, domain.strip_prefix('*'), domain.strip_suffix('*')) {
        ("*", ..) => (0, 0),
        (_, Some(suffix), _) => (2, suffix.len()),
        (.., Some(prefix)) => (1, prefix.len()),
        _ => (3, 0),
    }
}

/// Whether some host may be of both.
fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(x), Some(y)) => x.ends_with(y) || y.ends_with(x),
        (Some(x), None) if !b.ends_with('*') => b.ends_with(x),
        (None, Some(y)) if !a.ends_with('*') => a.ends_with(y),
        (Some(_), None) | (None, Some(_)) => true,
        (None, None) => match (a.strip_suffix('*'), b.strip_suffix('*')) {
            (Some(x), Some(y)) => x.starts_with(y) || y.starts_with(x),
            (Some(x), None) => b.starts_with(x),
            (None, Some(y)) => a.starts_with(y),
            (None, None) => a == b,
        },
    }
}

/// What Envoy leaves out of Host before it looks for a virtual host.
fn port(within: &Within<'_>) -> String {
    let ignores = within.routes.is("ignore_port_in_host_matching");
    if !within.hcm.is("strip_any_host_port") && ignores {
        let dot = if within.hcm.is("strip_trailing_host_dot") { r"\.?" } else { "" };
        return format!("{dot}(:[0-9]+)?");
    }
    stripped(within)
}

/// What Envoy leaves out of Host before anything else.
pub(super) fn stripped(within: &Within<'_>) -> String {
    let dot = if within.hcm.is("strip_trailing_host_dot") { r"\.?" } else { "" };
    if within.hcm.is("strip_any_host_port") {
        return format!("{dot}(:[0-9]+)?");
    }
    match within.hcm.is("strip_matching_host_port") {
        true => format!("{dot}(:0*{})?", within.port),
        false => dot.to_owned(),
    }
}

fn is_any(within: &Within<'_>) -> bool {
    within.hcm.is("strip_any_host_port") || within.routes.is("ignore_port_in_host_matching")
}

/// Whether Host is of one of these domains.
fn domains(domains: &[&str], within: &Within<'_>) -> Condition {
    if domains.contains(&"*") {
        return Condition::Always;
    }
    let port = port(within);
    // A domain that ends as what is left out is found only where it is there twice.
    let only = match (is_any(within), within.hcm.is("strip_matching_host_port")) {
        (true, _) => Some(None),
        (false, true) => Some(Some(within.port)),
        (false, false) => None,
    };
    let is_bare =
        |domain: &str| only.is_none_or(|only| parts::without_port(domain, only) == domain);
    let twice = port.trim_end_matches('?');
    let (mut bare, mut others, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
    for domain in domains {
        match domain.strip_suffix(":*").filter(|_| only.is_some()) {
            Some(name) => conditions.extend(any_port(name, only.flatten())),
            None if is_bare(domain) => bare.push(pattern(domain, !port.is_empty())),
            None => others.push(pattern(domain, true)),
        }
    }
    let mut all: Vec<String> = Vec::new();
    for (domains, port) in [(bare, port.as_str()), (others, twice)] {
        match domains.as_slice() {
            [] => {}
            [one] => all.push(format!("{one}{port}")),
            several => all.push(format!("(?:{}){port}", several.join("|"))),
        }
    }
    if !all.is_empty() {
        conditions.push(host(&all.join("|")));
    }
    match conditions.len() {
        1 => conditions.remove(0),
        _ => Condition::Any(conditions),
    }
}

fn host(pattern: &str) -> Condition {
    Condition::Header("host".into(), Text::Pattern(format!("(?i){pattern}")))
}

/// `name:*` where one port is left out before, or (`None`) every one.
fn any_port(name: &str, port: Option<u16>) -> Option<Condition> {
    let name = re2::literal(name);
    let own = host(&format!("{name}:0*{}", port?));
    Some(Condition::All(vec![host(&format!("{name}:.+")), Condition::Not(Box::new(own))]))
}

/// A domain without what may follow; `has_port` if a port may.
fn pattern(domain: &str, has_port: bool) -> String {
    match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        (Some(suffix), _) => format!(".+{}", re2::literal(suffix)),
        (None, Some(prefix)) if has_port => format!("{}[^:].*", re2::literal(prefix)),
        (None, Some(prefix)) => format!("{}.+", re2::literal(prefix)),
        _ => re2::literal(domain),
    }
}
