//! What Envoy does with one request, by its own rules.

mod access;
mod action;
mod arrival;
mod endpoints;
mod filters;
mod hosts;
mod matching;
mod mutation;
pub(super) mod redirect;

use std::net::{IpAddr, SocketAddr};

use super::{
    config::Config,
    parts::{self, Terminal},
    tree::Tree,
};
use crate::{
    request::{Answer, Http, Kind, Outcome, Request, Step},
    source::Place,
};

/// What Envoy would do with a request. TLS of clients is not told in a request of
/// HTTP: where a listener takes TLS, the name of the host is taken for that of TLS.
pub fn explain(config: &Config, request: &Request) -> Answer {
    let mut why = Why::default();
    let outcome = match listener(config, request) {
        Some((listener, local)) => {
            why.at(&listener.place, format!("listener {}", parts::listener_name(listener)));
            let asked = Asked { config, listener, local, source: request.source };
            asked.connection(&request.kind, &mut why)
        }
        None => {
            let all: Vec<_> = config.listeners.iter().map(parts::listener_name).collect();
            let all = all.join(", ");
            why.say(match &request.listener {
                Some(name) => format!("there is no listener {name}; there are {all}"),
                None => format!("which listener? There are {all}"),
            });
            Outcome::Closed
        }
    };
    Answer { outcome, why: why.steps }
}

/// Reasons, as they are found.
#[derive(Default)]
struct Why {
    steps: Vec<Step>,
}

impl Why {
    fn at(&mut self, place: &Place, what: impl Into<String>) {
        self.steps.push(Step { place: Some(place.clone()), what: what.into() });
    }

    fn say(&mut self, what: impl Into<String>) {
        self.steps.push(Step { place: None, what: what.into() });
    }
}

struct Asked<'c> {
    config: &'c Config,
    listener: &'c Tree,
    local: SocketAddr,
    source: IpAddr,
}

/// What is known of a connection when a filter chain is chosen.
struct Hello<'r> {
    is_tls: bool,
    server_name: Option<&'r str>,
}

fn listener<'c>(config: &'c Config, request: &Request) -> Option<(&'c Tree, SocketAddr)> {
    let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
    let first = |tree: &'c Tree| (tree, parts::addresses(tree).first().copied().unwrap_or(unknown));
    let Some(name) = &request.listener else {
        return match config.listeners.as_slice() {
            [only] => Some(first(only)),
            _ => None,
        };
    };
    let named = config.listeners.iter().find(|one| parts::listener_name(one) == *name);
    named.map(first).or_else(|| {
        let address = name.parse().ok()?;
        let has = |one: &&Tree| parts::addresses(one).contains(&address);
        Some((config.listeners.iter().find(has)?, address))
    })
}

impl<'c> Asked<'c> {
    fn connection(&self, kind: &Kind, why: &mut Why) -> Outcome {
        let mut hello = match kind {
            Kind::Connection { server_name } => {
                Hello { is_tls: server_name.is_some(), server_name: server_name.as_deref() }
            }
            Kind::Http(http) => self.hello(http, why),
        };
        if hello.is_tls && !parts::sees_tls(self.listener) {
            let what = "without tls_inspector no name of TLS is seen: it is taken as a connection without TLS when its chain is chosen";
            why.at(&self.listener.place, what);
            hello = Hello { is_tls: false, server_name: None };
        }
        let Some(chain) = self.chain(&hello, why) else { return Outcome::Closed };
        for filter in chain.messages("filters").filter(|one| !is_terminal(one)) {
            let name = filter.text("name").unwrap_or_default();
            let config = filter.msg("typed_config").filter(|config| config.short() == "RBAC");
            let asking = access::Asking { seen: None, hcm: None, is_tls: hello.is_tls };
            match config.and_then(|config| self.refuses(config, &asking)) {
                Some(true) => {
                    why.at(&filter.place, format!("{name} closes it"));
                    return Outcome::Closed;
                }
                Some(false) => {
                    why.at(&filter.place, format!("{name} admits it"));
                    continue;
                }
                None => {}
            }
            why.at(&filter.place, format!("{name} is asked before; this answer is without it"));
        }
        match (parts::terminal(chain), kind) {
            (Terminal::Http(hcm), Kind::Http(http)) => {
                let is_tls = parts::tls(chain, parts::DOWNSTREAM_TLS).is_some();
                self.http(hcm, http, is_tls, why)
            }
            (Terminal::Http(hcm), Kind::Connection { .. }) => {
                why.at(&hcm.place, "takes HTTP: ask about a request");
                Outcome::Closed
            }
            (Terminal::Tcp(tcp), _) => self.tcp(tcp, why),
            (Terminal::Other(Some(filter)), _) => {
                let name = filter.text("name").unwrap_or_default();
                why.at(&filter.place, format!("{name} takes the connection; it is not known here"));
                Outcome::Closed
            }
            (Terminal::Other(None), _) => {
                why.at(&chain.place, "a filter chain without filters closes the connection");
                Outcome::Closed
            }
        }
    }

    fn hello<'r>(&self, http: &'r Http, why: &mut Why) -> Hello<'r> {
        let tls = |chain: &Tree| {
            let criteria = chain.msg("filter_chain_match");
            let asks = criteria.is_some_and(|asked| {
                !asked.list("server_names").is_empty()
                    || asked.text("transport_protocol") == Some("tls")
            });
            asks || parts::tls(chain, parts::DOWNSTREAM_TLS).is_some()
        };
        if !parts::chains(self.listener).any(tls) {
            return Hello { is_tls: false, server_name: None };
        }
        let host = http.host.as_deref().map(|host| parts::without_port(host, None));
        let server_name = host.filter(|host| host.parse::<IpAddr>().is_err());
        why.say(format!("as TLS for {}", server_name.unwrap_or("no name")));
        Hello { is_tls: true, server_name }
    }

    /// "FilterChainMatch": criterion by criterion the most specific is kept, and
    /// there is no way back.
    fn chain(&self, hello: &Hello<'_>, why: &mut Why) -> Option<&'c Tree> {
        let mut left: Vec<&Tree> = self.listener.messages("filter_chains").collect();
        if self.listener.entry("filter_chain_matcher").is_some() {
            why.at(&self.listener.place, "filter_chain_matcher chooses; it is not known here");
            return None;
        }
        for criterion in CRITERIA {
            let score = |chain: &Tree| match chain.msg("filter_chain_match") {
                Some(asked) => criterion(self, hello, asked),
                None => Some(0),
            };
            let best = left.iter().filter_map(|chain| score(chain)).max();
            left.retain(|chain| best.is_some() && score(chain) == best);
        }
        if let Some(chain) = left.first() {
            let name = chain.some_text("name").map(|name| format!(" {name}")).unwrap_or_default();
            if self.listener.messages("filter_chains").count() > 1 {
                why.at(&chain.place, format!("filter chain{name}"));
            }
            return Some(chain);
        }
        let default = self.listener.msg("default_filter_chain");
        match default {
            Some(chain) => why.at(&chain.place, "no filter chain matches: the default one"),
            None => why.at(&self.listener.place, "no filter chain matches: it is closed"),
        }
        default
    }

    fn tcp(&self, tcp: &'c Tree, why: &mut Why) -> Outcome {
        let mut pools = Vec::new();
        match tcp.some_text("cluster") {
            Some(name) => pools.push((name.to_owned(), 1.0)),
            None => {
                let weighted = parts::weighted(tcp);
                let all: f64 = weighted.iter().map(|(.., weight)| f64::from(*weight)).sum();
                for (_, name, weight) in weighted.iter().filter(|(.., weight)| *weight > 0) {
                    let name = name.unwrap_or_default().to_owned();
                    pools.push((name, f64::from(*weight) / all));
                }
            }
        }
        let to: Vec<_> = pools.iter().map(|(name, _)| name.as_str()).collect();
        why.at(&tcp.place, format!("tcp_proxy to {}", to.join(", ")));
        let by_source = tcp.messages("hash_policy").any(|one| one.entry("source_ip").is_some());
        let mut forwarded = self.forwarded(pools, why);
        forwarded.is_sticky &= by_source;
        match forwarded.endpoints.is_empty() {
            true => Outcome::Closed,
            false => Outcome::Forwarded(forwarded),
        }
    }
}

fn is_terminal(filter: &Tree) -> bool {
    let config = filter.msg("typed_config").map_or("", Tree::short);
    matches!(config, "HttpConnectionManager" | "TcpProxy")
}

type Criterion = fn(&Asked<'_>, &Hello<'_>, &Tree) -> Option<u32>;

/// In their order; the greatest score wins, `None` does not match.
const CRITERIA: [Criterion; 9] = [
    |asked, _, of| match of.whole("destination_port") {
        None => Some(0),
        Some(port) => (port == i128::from(asked.local.port())).then_some(1),
    },
    |asked, _, of| ranges(of, "prefix_ranges", asked.local.ip()),
    |_, hello, of| server_names(of, hello.server_name),
    |_, hello, of| match of.some_text("transport_protocol") {
        None => Some(0),
        Some(protocol) => {
            (protocol == if hello.is_tls { "tls" } else { "raw_buffer" }).then_some(1)
        }
    },
    |_, _, of| of.list("application_protocols").is_empty().then_some(0),
    |asked, _, of| ranges(of, "direct_source_prefix_ranges", asked.source),
    |asked, _, of| {
        let is_local = asked.source.is_loopback() || asked.source == asked.local.ip();
        match of.text("source_type").unwrap_or("ANY") {
            "SAME_IP_OR_LOOPBACK" => is_local.then_some(1),
            "EXTERNAL" => (!is_local).then_some(1),
            _ => Some(0),
        }
    },
    |asked, _, of| ranges(of, "source_prefix_ranges", asked.source),
    |_, _, of| of.list("source_ports").is_empty().then_some(0),
];

fn ranges(of: &Tree, field: &str, address: IpAddr) -> Option<u32> {
    if of.list(field).is_empty() {
        return Some(0);
    }
    let lengths = of.messages(field).filter_map(|range| {
        let base: IpAddr = range.text("address_prefix")?.parse().ok()?;
        let length = range.count("prefix_len").unwrap_or(0);
        within(base, length, address).then_some(length + 1)
    });
    lengths.max()
}

fn within(base: IpAddr, length: u32, address: IpAddr) -> bool {
    let cut = |bits: u128, all: u32| match length.min(all) {
        0 => 0,
        length => bits >> (all - length),
    };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            cut(base.to_bits().into(), 32) == cut(address.to_bits().into(), 32)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            cut(base.to_bits(), 128) == cut(address.to_bits(), 128)
        }
        _ => false,
    }
}

/// The exact name goes before the longest `*.suffix`, and that before none.
fn server_names(of: &Tree, name: Option<&str>) -> Option<u32> {
    if of.list("server_names").is_empty() {
        return Some(0);
    }
    let name = name?.to_ascii_lowercase();
    let score = |pattern: &str| match pattern.strip_prefix('*') {
        _ if pattern == name => Some(u32::MAX),
        Some("") => Some(1),
        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix))
            .then(|| u32::try_from(suffix.len()).unwrap_or(u32::MAX - 1) + 1),
        None => None,
    };
    of.texts("server_names").filter_map(|pattern| score(&pattern.to_ascii_lowercase())).max()
}
