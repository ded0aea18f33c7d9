//! `upstream` and `map`.

use std::{net::SocketAddr, time::Duration};

use super::{Directive, Pattern, Problem};
use crate::{nginx::template::Template, request::Endpoint};

/// `upstream`.
#[derive(Debug)]
pub(in crate::nginx) struct Upstream<'c> {
    pub(in crate::nginx) directive: &'c Directive,
    pub(in crate::nginx) peers: Vec<Peer<'c>>,
    pub(in crate::nginx) method: Method,
    /// That which says so.
    pub(in crate::nginx) said: Option<&'c Directive>,
}

/// How a peer is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nginx) enum Method {
    RoundRobin,
    LeastConn,
    IpHash,
    Hash(Template),
    Random,
    /// Of two by chance the one with fewer connections.
    RandomTwo,
    /// A module that is not known: its name.
    Other(String),
}

/// `server` of an upstream.
#[derive(Debug)]
pub(in crate::nginx) struct Peer<'c> {
    pub(in crate::nginx) directive: &'c Directive,
    pub(in crate::nginx) endpoint: Endpoint,
    pub(in crate::nginx) weight: u32,
    pub(in crate::nginx) max_conns: u32,
    pub(in crate::nginx) max_fails: u32,
    pub(in crate::nginx) fail_timeout: Duration,
    pub(in crate::nginx) is_backup: bool,
    pub(in crate::nginx) is_down: bool,
    /// Parameters that are not known here.
    pub(in crate::nginx) others: Vec<String>,
}

impl<'c> Upstream<'c> {
    pub(super) fn of(directive: &'c Directive) -> Result<Self, Problem> {
        let (mut peers, mut method, mut said) = (Vec::new(), Method::RoundRobin, None);
        for inner in directive.inside() {
            let args: Vec<&str> = inner.args.iter().map(String::as_str).collect();
            let chosen = match (inner.name.as_str(), args.as_slice()) {
                ("server", _) => {
                    peers.push(Peer::of(inner)?);
                    continue;
                }
                ("least_conn", _) => Method::LeastConn,
                ("ip_hash", _) => Method::IpHash,
                ("hash", [key, ..]) => {
                    let key =
                        Template::of(key).map_err(|wrong| Problem::at(&inner.place, wrong))?;
                    Method::Hash(key)
                }
                ("random", ["two", ..]) => Method::RandomTwo,
                ("random", _) => Method::Random,
                ("sticky" | "least_time" | "fair" | "jvm_route" | "balancer_by_lua_block", _) => {
                    Method::Other(inner.name.clone())
                }
                _ => continue,
            };
            (method, said) = (chosen, Some(inner));
        }
        if peers.is_empty() && !matches!(method, Method::Other(_)) {
            let problem = format!("upstream {:?} has no server", directive.arg(0));
            return Err(Problem::at(&directive.place, problem));
        }
        Ok(Self { directive, peers, method, said })
    }

    /// Peers that take requests while all are well.
    pub(in crate::nginx) fn ready(&self) -> Vec<&Peer<'c>> {
        let up =
            |backup: bool| self.peers.iter().filter(move |p| !p.is_down && p.is_backup == backup);
        let first: Vec<_> = up(false).collect();
        if first.is_empty() { up(true).collect() } else { first }
    }
}

impl<'c> Peer<'c> {
    fn of(directive: &'c Directive) -> Result<Self, Problem> {
        let bad = |what: &str| Problem::at(&directive.place, what);
        let Some(address) = directive.args.first() else {
            return Err(bad("server has no address: `server address[:port]` was expected"));
        };
        let mut peer = Self {
            directive,
            endpoint: endpoint(address, 80)
                .ok_or_else(|| bad("a port was expected, 1 to 65535"))?,
            weight: 1,
            max_conns: 0,
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            is_backup: false,
            is_down: false,
            others: Vec::new(),
        };
        for parameter in &directive.args[1..] {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let number =
                || value.parse().map_err(|_| bad(&format!("{name}: a number was expected")));
            match (name, value) {
                ("weight", _) => peer.weight = number()?,
                ("max_conns", _) => peer.max_conns = number()?,
                ("max_fails", _) => peer.max_fails = number()?,
                ("fail_timeout", _) => {
                    let time = seconds(value);
                    peer.fail_timeout =
                        time.ok_or_else(|| bad("fail_timeout: a time was expected: 10s"))?;
                }
                ("backup", "") => peer.is_backup = true,
                ("down", "") => peer.is_down = true,
                _ => peer.others.push(parameter.clone()),
            }
        }
        if peer.weight == 0 {
            return Err(bad("weight: a number from 1 was expected"));
        }
        Ok(peer)
    }
}

/// `host`, `host:port`, `[::1]:port`, `unix:/path`; a name keeps what it is.
pub(in crate::nginx) fn endpoint(text: &str, otherwise: u16) -> Option<Endpoint> {
    if text.starts_with("unix:") {
        return Some(Endpoint::Name(text.to_owned()));
    }
    let (host, port) = match text.rfind(':').filter(|at| text[*at..].find(']').is_none()) {
        Some(at) => (&text[..at], text[at + 1..].parse().ok().filter(|port| *port > 0)?),
        None => (text, otherwise),
    };
    match format!("{host}:{port}").parse::<SocketAddr>() {
        Ok(address) => Some(Endpoint::Address(address)),
        Err(_) => Some(Endpoint::Name(format!("{host}:{port}"))),
    }
}

/// A time of nginx: `10`, `1m30s`, `500ms`.
pub(in crate::nginx) fn seconds(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut all = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit() || c == ' ');
        let end = unit.map_or(rest.len(), |unit| digits + unit);
        let part = match &rest[digits..end] {
            "ms" => Duration::from_millis(number),
            unit => {
                let factor = match unit {
                    "" | "s" => 1,
                    "m" => 60,
                    "h" => 3600,
                    "d" => 86_400,
                    "w" => 604_800,
                    "M" => 2_592_000,
                    "y" => 31_536_000,
                    _ => return None,
                };
                Duration::from_secs(number.checked_mul(factor)?)
            }
        };
        all = all.checked_add(part)?;
        rest = rest[end..].trim_start();
    }
    Some(all)
}

/// `map`.
#[derive(Debug)]
pub(in crate::nginx) struct Map<'c> {
    pub(in crate::nginx) directive: &'c Directive,
    pub(in crate::nginx) source: Template,
    /// In order of the file.
    pub(in crate::nginx) entries: Vec<(Key, Template, &'c Directive)>,
    pub(in crate::nginx) default: Option<(Template, &'c Directive)>,
    /// Names with `*.` and `.*` are masks.
    pub(in crate::nginx) hostnames: bool,
}

/// What a value must be for an entry; texts in lower case.
#[derive(Debug)]
pub(in crate::nginx) enum Key {
    Exact(String),
    /// `.example.com`.
    Both(String),
    /// `*.example.com`, from its dot.
    Below(String),
    /// `example.*`, to its dot.
    Tail(String),
    Regex(Result<Pattern, String>),
}

impl<'c> Map<'c> {
    pub(super) fn of(directive: &'c Directive) -> Result<Self, Problem> {
        let template = |text: &str, at: &Directive| {
            Template::of(text).map_err(|wrong| Problem::at(&at.place, wrong))
        };
        let source = template(directive.arg(0), directive)?;
        let hostnames =
            directive.inside().iter().any(|d| d.name == "hostnames" && d.args.is_empty());
        let mut map = Self { directive, source, entries: Vec::new(), default: None, hostnames };
        for inner in directive.inside() {
            match (inner.name.as_str(), inner.args.as_slice()) {
                ("hostnames" | "volatile", []) | ("include", _) => {}
                ("default", [value]) => map.default = Some((template(value, inner)?, inner)),
                (key, [value]) => {
                    let key = Key::of(key, hostnames);
                    map.entries.push((key, template(value, inner)?, inner));
                }
                (key, args) => {
                    let problem = format!("{key:?} has {} values; one was expected", args.len());
                    return Err(Problem::at(&inner.place, problem));
                }
            }
        }
        Ok(map)
    }
}

impl Key {
    fn of(written: &str, hostnames: bool) -> Self {
        if let Some(pattern) = written.strip_prefix("~*") {
            return Self::Regex(Pattern::of(pattern, true));
        }
        if let Some(pattern) = written.strip_prefix('~') {
            return Self::Regex(Pattern::of(pattern, false));
        }
        let text = written.strip_prefix('\\').unwrap_or(written).to_ascii_lowercase();
        if hostnames {
            if let Some(below) = text.strip_prefix('*').filter(|below| below.starts_with('.')) {
                return Self::Below(below.to_owned());
            }
            if let Some(both) = text.strip_prefix('.') {
                return Self::Both(both.to_owned());
            }
            if let Some(tail) = text.strip_suffix('*').filter(|tail| tail.ends_with('.')) {
                return Self::Tail(tail.to_owned());
            }
        }
        Self::Exact(text)
    }
}
