//! Which servers, locations, upstreams and maps a configuration makes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    pattern::Pattern,
    tree::{Config, Directive},
};
use crate::source::{Place, Problem};

mod upstream;
mod values;

pub(super) use upstream::{Key, Map, Method, Upstream, endpoint, seconds};
pub(super) use values::{Geo, Split};

/// Of all servers, each as often as it is written.
const MAX_ADDRESSES: usize = 20_000;

/// What nginx serves.
#[derive(Debug)]
pub(super) struct Model<'c> {
    pub(super) http: Side<'c>,
    pub(super) stream: Side<'c>,
}

/// `http` or `stream`.
#[derive(Debug, Default)]
pub(super) struct Side<'c> {
    pub(super) upstreams: BTreeMap<String, Upstream<'c>>,
    /// By the variable that they make.
    pub(super) maps: BTreeMap<String, Map<'c>>,
    pub(super) splits: BTreeMap<String, Split<'c>>,
    pub(super) geos: BTreeMap<String, Geo<'c>>,
    /// In order of the files.
    pub(super) servers: Vec<Server<'c>>,
    addresses: usize,
}

/// `server`.
#[derive(Debug)]
pub(super) struct Server<'c> {
    pub(super) directive: &'c Directive,
    pub(super) listens: Vec<Listen<'c>>,
    pub(super) names: Vec<(Name, &'c Directive)>,
    /// The blocks around it and itself: directives of an inner one come first.
    pub(super) chain: Vec<&'c Directive>,
    pub(super) locations: Vec<Location<'c>>,
}

/// `listen`.
#[derive(Debug)]
pub(super) struct Listen<'c> {
    /// Absent if nothing is written.
    pub(super) directive: Option<&'c Directive>,
    /// Several of a range of ports; what stands there otherwise (`unix:…`, a name).
    pub(super) addresses: Result<Vec<SocketAddr>, String>,
    pub(super) is_default: bool,
    pub(super) is_tls: bool,
    pub(super) is_http2: bool,
    pub(super) is_udp: bool,
    /// The PROXY protocol is expected.
    pub(super) wants_proxy: bool,
}

/// One of `server_name`, in lower case.
#[derive(Debug)]
pub(super) enum Name {
    /// Also the empty one, of requests without a host.
    Exact(String),
    /// `.example.com`: the rest and all below it.
    Both(String),
    /// `*.example.com`: what begins with a dot.
    Below(String),
    /// `www.example.*`: what ends with a dot.
    Tail(String),
    Regex(Result<Pattern, String>),
}

/// `location`.
#[derive(Debug)]
pub(super) struct Location<'c> {
    pub(super) directive: &'c Directive,
    pub(super) kind: Kind,
    /// Without its modifier.
    pub(super) text: String,
    pub(super) chain: Vec<&'c Directive>,
    /// Nested ones.
    pub(super) locations: Vec<Location<'c>>,
}

/// A modifier.
#[derive(Debug)]
pub(super) enum Kind {
    /// `=`.
    Exact,
    /// None.
    Prefix,
    /// `^~`.
    Final,
    /// `~`, `~*`.
    Regex(Result<Pattern, String>),
    /// `@`.
    Named,
}

impl Location<'_> {
    /// The paths that it takes begin with its text.
    pub(super) fn is_prefix(&self) -> bool {
        matches!(self.kind, Kind::Prefix | Kind::Final)
    }

    /// A path that lacks its last slash is redirected: something is passed on here.
    pub(super) fn redirects(&self) -> bool {
        let passes = |inner: &Directive| {
            ["proxy_pass", "fastcgi_pass", "uwsgi_pass", "scgi_pass", "grpc_pass", "memcached_pass"]
                .contains(&inner.name.as_str())
        };
        let is_static = self.is_prefix() || matches!(self.kind, Kind::Exact);
        is_static && self.text.ends_with('/') && self.directive.inside().iter().any(passes)
    }
}

/// Those that paths without their last slash are led to: of two of one text the exact one,
/// whichever of them passes requests on.
pub(super) fn redirecting<'m, 'c>(
    level: &'m [Location<'c>],
) -> impl Iterator<Item = &'m Location<'c>> {
    let is_exact = |location: &Location<'_>| matches!(location.kind, Kind::Exact);
    level.iter().filter(move |location| {
        let mut alike = level.iter().filter(|other| other.text == location.text);
        match is_exact(location) {
            true => alike.any(Location::redirects),
            false => location.redirects() && !alike.any(is_exact),
        }
    })
}

/// The first of the innermost block that has some.
pub(super) fn inherited<'c>(chain: &[&'c Directive], name: &str) -> Option<&'c Directive> {
    array(chain, name).into_iter().next()
}

/// Those of the innermost block that has some: an array is inherited whole or not.
pub(super) fn array<'c>(chain: &[&'c Directive], name: &str) -> Vec<&'c Directive> {
    let of = |block: &&'c Directive| -> Vec<&'c Directive> {
        let block: &'c Directive = block;
        block.named(name)
    };
    chain.iter().rev().map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Whether a flag is `on`.
pub(super) fn is_on(chain: &[&Directive], name: &str, otherwise: bool) -> bool {
    inherited(chain, name).map_or(otherwise, |found| found.arg(0).eq_ignore_ascii_case("on"))
}

impl<'c> Model<'c> {
    /// # Errors
    ///
    /// Something that nginx refuses to start with.
    pub(super) fn of(config: &'c Config) -> Result<Self, Problem> {
        let root = &config.root;
        let is_whole =
            root.inside().iter().any(|d| ["http", "stream", "events"].contains(&d.name.as_str()));
        let blocks = |name: &'static str| -> Vec<&'c Directive> { root.all(name).collect() };
        // A file of conf.d alone is what stands within `http`.
        let http = if is_whole { blocks("http") } else { vec![root] };
        Ok(Self { http: Side::of(&http, true)?, stream: Side::of(&blocks("stream"), false)? })
    }
}

impl<'c> Side<'c> {
    fn of(blocks: &[&'c Directive], is_http: bool) -> Result<Self, Problem> {
        let mut side = Self::default();
        if let [_, second, ..] = blocks {
            return Err(Problem::at(&second.place, format!("{} is there twice", second.name)));
        }
        for block in blocks {
            for inner in block.inside() {
                side.statement(block, inner, is_http)?;
            }
        }
        Ok(side)
    }

    fn statement(
        &mut self,
        block: &'c Directive,
        inner: &'c Directive,
        is_http: bool,
    ) -> Result<(), Problem> {
        if inner.block.is_none() {
            return Ok(());
        }
        match inner.name.as_str() {
            "upstream" => {
                let upstream = Upstream::of(inner)?;
                let name = inner.arg(0).to_ascii_lowercase();
                if self.upstreams.insert(name, upstream).is_some() {
                    let problem = format!("upstream {} is there twice", inner.arg(0));
                    return Err(Problem::at(&inner.place, problem));
                }
            }
            "map" => {
                let map = Map::of(inner)?;
                self.maps.insert(variable(inner, 1)?, map);
            }
            "split_clients" => {
                self.splits.insert(variable(inner, 1)?, Split::of(inner)?);
            }
            "geo" => {
                let last = inner.args.len().saturating_sub(1);
                self.geos.insert(variable(inner, last)?, Geo::of(inner));
            }
            "server" => {
                let server = Server::of(&[block, inner], inner, is_http)?;
                let addresses = server.listens.iter().filter_map(|l| l.addresses.as_ref().ok());
                self.addresses += addresses.map(Vec::len).sum::<usize>();
                if self.addresses > MAX_ADDRESSES {
                    let problem = format!("more than {MAX_ADDRESSES} addresses are listened on");
                    return Err(Problem::at(&inner.place, problem));
                }
                self.servers.push(server);
            }
            _ => {}
        }
        Ok(())
    }
}

fn variable(directive: &Directive, number: usize) -> Result<String, Problem> {
    match directive.arg(number).strip_prefix('$') {
        Some(name) if !name.is_empty() => Ok(name.to_ascii_lowercase()),
        _ => {
            let problem =
                format!("{} has no variable that it makes: `$name` was expected", directive.name);
            Err(Problem::at(&directive.place, problem))
        }
    }
}

impl<'c> Server<'c> {
    fn of(
        chain: &[&'c Directive],
        directive: &'c Directive,
        is_http: bool,
    ) -> Result<Self, Problem> {
        let mut listens = Vec::new();
        for listen in directive.all("listen") {
            listens.push(Listen::of(listen, is_http)?);
        }
        if listens.is_empty() && is_http {
            let all = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 80);
            listens.push(Listen {
                directive: None,
                addresses: Ok(vec![all]),
                is_default: false,
                is_tls: false,
                is_http2: false,
                is_udp: false,
                wants_proxy: false,
            });
        }
        if directive.all("ssl").any(|ssl| ssl.arg(0) == "on") {
            listens.iter_mut().for_each(|listen| listen.is_tls = true);
        }
        let mut names = Vec::new();
        for server_name in directive.all("server_name") {
            names.extend(server_name.args.iter().map(|name| (Name::of(name), server_name)));
        }
        if names.is_empty() {
            names.push((Name::Exact(String::new()), directive));
        }
        let locations = Location::inside(chain, directive)?;
        Ok(Self { directive, listens, names, chain: chain.to_vec(), locations })
    }

    /// What `$server_name` is.
    pub(super) fn name(&self) -> String {
        let named = self.directive.all("server_name").next();
        named.map_or("", |named| named.arg(0)).trim_start_matches('.').to_ascii_lowercase()
    }
}

impl<'c> Listen<'c> {
    fn of(directive: &'c Directive, is_http: bool) -> Result<Self, Problem> {
        let text = directive.arg(0);
        let has = |word: &str| directive.args.iter().skip(1).any(|arg| arg == word);
        let bad = |what: &str| Problem::at(&directive.place, format!("listen {text:?}: {what}"));
        let addresses = match split(text) {
            _ if text.starts_with("unix:") => Err(text.to_owned()),
            (host, port) => {
                let ports = match port {
                    Some(port) => {
                        ports(port).ok_or_else(|| bad("a port was expected, 1 to 65535"))?
                    }
                    None if is_http => 80..=80,
                    None => return Err(bad("a port was expected after the address")),
                };
                match host {
                    "*" => Ok(Ipv4Addr::UNSPECIFIED.into()),
                    host => host.parse::<IpAddr>().map_err(|_| text.to_owned()),
                }
                .map(|ip| ports.map(|port| SocketAddr::new(ip, port)).collect())
            }
        };
        Ok(Self {
            directive: Some(directive),
            addresses,
            is_default: has("default_server") || has("default"),
            is_tls: has("ssl") || has("quic"),
            is_http2: has("http2"),
            is_udp: has("udp") || has("quic"),
            wants_proxy: has("proxy_protocol"),
        })
    }
}

/// Host and port of `8080`, `*:80`, `10.0.0.1`, `[::]:80`.
fn split(text: &str) -> (&str, Option<&str>) {
    if text.starts_with(|c: char| c.is_ascii_digit()) && !text.contains(['.', ':']) {
        return ("*", Some(text));
    }
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

fn ports(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    // A range is many listeners: more than this is a mistake, or too many.
    (first > 0 && first <= last && last - first < 1024).then_some(first..=last)
}

/// The address of `listen`, as it is written, or of a person who asks.
pub(super) fn address(text: &str) -> Option<SocketAddr> {
    let (host, port) = split(text);
    let host = if host == "*" { Ipv4Addr::UNSPECIFIED.into() } else { host.parse().ok()? };
    Some(SocketAddr::new(host, port.map_or(Some(80), |port| port.parse().ok())?))
}

impl Name {
    fn of(written: &str) -> Self {
        let name = written.to_ascii_lowercase();
        if let Some(pattern) = written.strip_prefix('~') {
            return Self::Regex(Pattern::of(pattern, true));
        }
        if let Some(below) = name.strip_prefix('*').filter(|below| below.starts_with('.')) {
            return Self::Below(below.to_owned());
        }
        if let Some(both) = name.strip_prefix('.') {
            return Self::Both(both.to_owned());
        }
        match name.strip_suffix('*') {
            Some(tail) if tail.ends_with('.') => Self::Tail(tail.to_owned()),
            _ => Self::Exact(name),
        }
    }
}

impl<'c> Location<'c> {
    fn inside(chain: &[&'c Directive], block: &'c Directive) -> Result<Vec<Self>, Problem> {
        let mut known = BTreeSet::new();
        let mut locations = Vec::new();
        for directive in block.all("location").filter(|inner| inner.block.is_some()) {
            let chain: Vec<&'c Directive> = chain.iter().copied().chain([directive]).collect();
            let (modifier, text) = modifier(directive)?;
            let kind = match modifier {
                "=" => Kind::Exact,
                "^~" => Kind::Final,
                "~" => Kind::Regex(Pattern::of(text, false)),
                "~*" => Kind::Regex(Pattern::of(text, true)),
                "@" => Kind::Named,
                _ => Kind::Prefix,
            };
            let order = match kind {
                Kind::Exact => 0,
                Kind::Prefix | Kind::Final => 1,
                Kind::Named => 2,
                Kind::Regex(_) => 3,
            };
            if order < 3 && !known.insert((order, text.to_owned())) {
                let problem = format!("location {text:?} is there twice");
                return Err(Problem::at(&directive.place, problem));
            }
            let locations_inside = Self::inside(&chain, directive)?;
            let text = text.to_owned();
            locations.push(Self { directive, kind, text, chain, locations: locations_inside });
        }
        Ok(locations)
    }
}

fn modifier(directive: &Directive) -> Result<(&str, &str), Problem> {
    match directive.args.as_slice() {
        [modifier, text] if ["=", "^~", "~", "~*"].contains(&modifier.as_str()) => {
            Ok((modifier, text))
        }
        [modifier, _] => {
            let problem = format!("found {modifier:?} where `=`, `^~`, `~` or `~*` was expected");
            Err(Problem::at(&directive.place, problem))
        }
        [text] => {
            let known = ["=", "^~", "~*", "~"]
                .iter()
                .find_map(|known| Some((*known, text.strip_prefix(known)?)));
            Ok(known.unwrap_or((if text.starts_with('@') { "@" } else { "" }, text)))
        }
        _ => Err(Problem::at(&directive.place, "location has one argument, or a modifier and one")),
    }
}

/// Where a directive stands, for problems that are found later.
pub(super) fn bad(place: &Place, what: impl Into<String>) -> Problem {
    Problem::at(place, what)
}
