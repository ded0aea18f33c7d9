//! What nginx does with one request, by the rules of its manual and of its source,
//! version 1.22.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use super::{
    model::{self, Listen, Model, Name, Server, Side, bad},
    template::Template,
    tree::{Config, Directive},
    uri::Target,
};
use crate::{
    request::{Answer, Http, Kind, Outcome, Request, Step},
    source::{Place, Problem},
};

mod access;
mod location;
mod proxy;
mod rewrite;
mod stream;
mod variables;

pub(super) use {proxy::Url, rewrite::is_url, variables::chosen};

/// How often one request may change its URI (`NGX_HTTP_MAX_URI_CHANGES`).
const MAX_CHANGES: u32 = 10;

/// What nginx does with the request.
///
/// # Errors
///
/// The configuration is none that nginx starts with, or the answer depends on what
/// cannot be known from it: a file on disk, a variable of an unknown module.
pub fn explain(config: &Config, request: &Request) -> Result<Answer, Problem> {
    let model = Model::of(config)?;
    let start = &config.root.place;
    let found = listener(&model, request.listener.as_deref()).map_err(|what| bad(start, what))?;
    let (is_http, local) = found;
    if !is_http {
        return stream::explain(&model, request, local);
    }
    match &request.kind {
        Kind::Http(http) => {
            let mut run = Run::of(config, &model, request, http, local);
            let outcome = run.request()?;
            Ok(Answer { outcome, why: run.why })
        }
        Kind::Connection { .. } => {
            Err(bad(start, format!("{local} takes HTTP: ask for a request, not for a connection")))
        }
    }
}

/// Whether it is one of `http`, and its address.
fn listener(model: &Model<'_>, asked: Option<&str>) -> Result<(bool, SocketAddr), String> {
    let of = |side: &Side<'_>| -> BTreeSet<SocketAddr> {
        let listens = side.servers.iter().flat_map(|server| &server.listens);
        listens.filter_map(|listen| listen.addresses.clone().ok()).flatten().collect()
    };
    let (http, stream) = (of(&model.http), of(&model.stream));
    let known = || {
        let all: Vec<String> = http.iter().chain(&stream).map(ToString::to_string).collect();
        all.join(", ")
    };
    let Some(asked) = asked else {
        let mut all = http.iter().map(|a| (true, *a)).chain(stream.iter().map(|a| (false, *a)));
        return match (all.next(), all.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(format!("say which listener the request comes in at: {}", known())),
        };
    };
    let address = model::address(asked)
        .ok_or_else(|| format!("{asked} is no address of a listener: {}", known()))?;
    for wanted in [address, wildcard(address)] {
        for (is_http, side) in [(true, &http), (false, &stream)] {
            if side.contains(&wanted) {
                return Ok((is_http, address));
            }
        }
    }
    Err(format!("nothing listens on {asked}; there are {}", known()))
}

fn wildcard(address: SocketAddr) -> SocketAddr {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, address.port())
}

/// Servers that listen on the most specific address, with what they say of it.
fn servers<'m, 'c>(side: &'m Side<'c>, local: SocketAddr) -> Vec<(&'m Server<'c>, &'m Listen<'c>)> {
    let on = |address: SocketAddr| -> Vec<_> {
        let listen = move |server: &'m Server<'c>| {
            let is_here = |listen: &&Listen<'_>| {
                listen.addresses.as_ref().is_ok_and(|all| all.contains(&address))
            };
            server.listens.iter().find(is_here).map(|listen| (server, listen))
        };
        side.servers.iter().filter_map(listen).collect()
    };
    let here = on(local);
    if here.is_empty() { on(wildcard(local)) } else { here }
}

/// One request on its way.
struct Run<'m, 'c> {
    model: &'m Model<'c>,
    http: &'m Http,
    source: IpAddr,
    local: SocketAddr,
    is_tls: bool,
    why: Vec<Step>,
    server: &'m Server<'c>,
    /// Blocks whose directives hold now, the innermost last.
    chain: Vec<&'c Directive>,
    /// The location, and `if`s of it that hold: where a handler may stand.
    handlers: Vec<&'c Directive>,
    location: Option<&'m model::Location<'c>>,
    /// The host without its port, in lower case.
    host: Option<String>,
    target: Target,
    method: String,
    uri: Vec<u8>,
    args: Vec<u8>,
    captures: Vec<Vec<u8>>,
    /// Variables that were set, and named groups.
    set: BTreeMap<String, Vec<u8>>,
    /// Variables that `set` and groups make somewhere.
    known: BTreeSet<String>,
    maps: BTreeMap<String, Vec<u8>>,
    depth: u32,
    changes: u32,
    is_changed: bool,
    is_internal: bool,
    has_location: bool,
    has_unparsed: bool,
    /// Status that an `error_page` keeps.
    error: Option<u16>,
    is_error_page: bool,
}

impl<'m, 'c> Run<'m, 'c> {
    fn of(
        config: &Config,
        model: &'m Model<'c>,
        request: &'m Request,
        http: &'m Http,
        local: SocketAddr,
    ) -> Self {
        let here = servers(&model.http, local);
        let default = here.iter().position(|(_, listen)| listen.is_default).unwrap_or(0);
        let (server, _) = here[default];
        let mut known = BTreeSet::new();
        variables::known(&config.root, &mut known);
        Self {
            model,
            http,
            source: request.source,
            local,
            is_tls: here.iter().any(|(_, listen)| listen.is_tls),
            why: Vec::new(),
            server,
            chain: server.chain.clone(),
            handlers: Vec::new(),
            location: None,
            host: None,
            target: Target {
                raw: http.target.clone(),
                uri: Vec::new(),
                args: None,
                host: None,
                is_quoted: false,
                has_plus: false,
            },
            method: http.method.clone(),
            uri: Vec::new(),
            args: Vec::new(),
            captures: Vec::new(),
            set: BTreeMap::new(),
            known,
            maps: BTreeMap::new(),
            depth: 0,
            changes: 0,
            is_changed: false,
            is_internal: false,
            has_location: true,
            has_unparsed: true,
            error: None,
            is_error_page: false,
        }
    }

    fn step(&mut self, place: &Place, what: impl Into<String>) {
        self.why.push(Step { place: Some(place.clone()), what: what.into() });
    }

    fn request(&mut self) -> Result<Outcome, Problem> {
        let merges = model::is_on(&self.chain, "merge_slashes", true);
        let Some(target) = Target::of(&self.http.target, merges) else {
            let default = self.server.directive.place.clone();
            self.step(&default, "the target cannot be read: 400");
            return Ok(answered(400));
        };
        self.uri.clone_from(&target.uri);
        self.args = target.args.clone().unwrap_or_default().into_bytes();
        let named = target.host.as_deref().or(self.http.host.as_deref());
        let host = named.map(valid_host);
        self.target = target;
        match host {
            Some(Some(host)) => self.host = Some(host).filter(|host| !host.is_empty()),
            Some(None) => {
                let default = self.server.directive.place.clone();
                self.step(&default, "the host is none: 400");
                return Ok(answered(400));
            }
            None if !self.http.is_http10 => {
                let default = self.server.directive.place.clone();
                self.step(&default, "HTTP/1.1 without Host: 400");
                return Ok(answered(400));
            }
            None => {}
        }
        self.choose_server();
        self.serve()
    }

    /// The server by the host: exact, then the longest `*.x`, then the longest `x.*`,
    /// then the first pattern, then the default one.
    fn choose_server(&mut self) {
        let here = servers(&self.model.http, self.local);
        let host = self.host.clone().unwrap_or_default();
        // A name that an earlier server has, too, is not looked at.
        let mut exact: BTreeMap<&str, usize> = BTreeMap::new();
        let mut below: BTreeMap<String, usize> = BTreeMap::new();
        let mut tails: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, (server, _)) in here.iter().enumerate() {
            for (name, _) in &server.names {
                match name {
                    Name::Exact(name) => drop(exact.entry(name).or_insert(at)),
                    Name::Below(name) => drop(below.entry(name.clone()).or_insert(at)),
                    Name::Both(name) if !exact.contains_key(name.as_str()) => {
                        exact.insert(name, at);
                        below.entry(format!(".{name}")).or_insert(at);
                    }
                    Name::Tail(name) => drop(tails.entry(name).or_insert(at)),
                    Name::Both(_) | Name::Regex(_) => {}
                }
            }
        }
        let longest = |all: Vec<(usize, usize)>| all.into_iter().max().map(|(_, at)| at);
        let by_below = || {
            let all =
                below.iter().filter(|(name, _)| host.len() > name.len() && host.ends_with(*name));
            longest(all.map(|(name, at)| (name.len(), *at)).collect())
        };
        let by_tail = || {
            let all = tails
                .iter()
                .filter(|(name, _)| host.len() > name.len() && host.starts_with(**name));
            longest(all.map(|(name, at)| (name.len(), *at)).collect())
        };
        let by_name = exact.get(host.as_str()).copied().map(|at| (at, "has the name"));
        let by_name = by_name.or_else(|| by_below().map(|at| (at, "has a `*.` name for")));
        let by_name = by_name.or_else(|| by_tail().map(|at| (at, "has a `.*` name for")));
        let shown = if host.is_empty() { "no host".to_owned() } else { host.clone() };
        if let Some((at, how)) = by_name {
            return self.chosen(here[at].0, format!("the server {how} {shown}"));
        }
        for (server, _) in &here {
            for (name, directive) in &server.names {
                let Name::Regex(Ok(pattern)) = name else { continue };
                if let Some(found) = pattern.captures(host.as_bytes()) {
                    self.captured(pattern, &found);
                    let what = format!("the pattern of {} takes {shown}", directive.place);
                    return self.chosen(server, what);
                }
            }
        }
        let default = here.iter().position(|(_, listen)| listen.is_default).unwrap_or(0);
        self.chosen(
            here[default].0,
            format!("no server has the name {shown}: the default of {}", self.local),
        );
    }

    fn chosen(&mut self, server: &'m Server<'c>, what: String) {
        self.server = server;
        self.step(&server.directive.place, what);
    }

    /// The phases from `rewrite` of the server on.
    fn serve(&mut self) -> Result<Outcome, Problem> {
        self.chain.clone_from(&self.server.chain);
        self.handlers.clear();
        self.location = None;
        if let Some(outcome) = self.rewrite(self.server.directive)? {
            return Ok(outcome);
        }
        loop {
            self.is_changed = false;
            if let Some(outcome) = self.find_location()? {
                return Ok(outcome);
            }
            if let Some(outcome) = self.here()? {
                return Ok(outcome);
            }
            self.changes += 1;
            if self.changes > MAX_CHANGES {
                let place = self.server.directive.place.clone();
                self.step(&place, "the URI was changed more than ten times: 500");
                return self.special(500);
            }
        }
    }

    /// The phases of the location that was found; nothing if another must be.
    fn here(&mut self) -> Result<Option<Outcome>, Problem> {
        if let Some(location) = self.location {
            let block = self.limit().unwrap_or(location.directive);
            if let Some(outcome) = self.rewrite(block)? {
                return Ok(Some(outcome));
            }
        }
        if self.is_changed {
            return Ok(None);
        }
        if let Some(status) = self.access()? {
            return self.special(status).map(Some);
        }
        self.content().map(Some)
    }

    /// An answer of nginx' own, or what `error_page` says instead.
    fn special(&mut self, status: u16) -> Result<Outcome, Problem> {
        let pages = model::array(&self.chain, "error_page");
        let code = status.to_string();
        let page = pages.into_iter().find(|page| page.args.contains(&code));
        let Some(page) = page.filter(|_| !self.is_error_page) else {
            // An error of the page itself is told as it is.
            return Ok(answered(status));
        };
        let place = page.place.clone();
        let to = page.args.last().cloned().unwrap_or_default();
        let changed = page.args.iter().find_map(|arg| arg.strip_prefix('='));
        self.is_error_page = true;
        self.error = match changed {
            None => Some(status),
            Some(other) => other.parse().ok(),
        };
        self.step(&place, format!("{status} becomes what {to} is"));
        if let Some(name) = to.strip_prefix('@') {
            let server = self.server;
            let found = server.locations.iter().find(|location| {
                location.text.trim_start_matches('@') == name
                    && location.directive.arg(0).starts_with('@')
            });
            let location =
                found.ok_or_else(|| bad(&place, format!("there is no location {to}")))?;
            self.is_internal = true;
            (self.has_unparsed, self.is_changed) = (self.has_unparsed, false);
            self.enter(location);
            return match self.here()? {
                Some(outcome) => Ok(outcome),
                None => self.serve(),
            };
        }
        if !to.starts_with('/') {
            let status =
                self.error.filter(|code| matches!(code, 301 | 303 | 307 | 308)).unwrap_or(302);
            return Ok(redirect(status, to));
        }
        let (uri, args) = to.split_once('?').unwrap_or((&to, ""));
        (self.uri, self.args) = (uri.as_bytes().to_vec(), args.as_bytes().to_vec());
        (self.is_internal, self.has_unparsed, self.has_location) = (true, false, true);
        if self.method != "HEAD" {
            self.method = "GET".into();
        }
        self.serve()
    }

    /// `try_files`, as if there were no files: what comes last. Nothing where that
    /// leads back to it.
    fn tries(&mut self, tries: &'c Directive) -> Result<Option<Outcome>, Problem> {
        let place = tries.place.clone();
        let last = tries.args.last().cloned().unwrap_or_default();
        self.changes += 1;
        if self.changes > MAX_CHANGES {
            return Ok(None);
        }
        self.step(&place, format!("no file is looked for: {last} takes it"));
        if let Some(status) = last.strip_prefix('=').and_then(|status| status.parse().ok()) {
            return self.special(status).map(Some);
        }
        self.is_internal = true;
        if last.starts_with('@') {
            let server = self.server;
            let found = server.locations.iter().find(|l| l.directive.arg(0) == last);
            let location =
                found.ok_or_else(|| bad(&place, format!("there is no location {last}")))?;
            self.is_changed = false;
            self.enter(location);
            return match self.here()? {
                Some(outcome) => Ok(Some(outcome)),
                None => self.serve().map(Some),
            };
        }
        let (uri, args) = last.split_once('?').unwrap_or((&last, ""));
        let text = |run: &mut Self, text: &str| {
            let value = Template::of(text).and_then(|template| run.text(&template));
            value.map_err(|wrong| bad(&place, wrong))
        };
        let (mut uri, mut args) = (text(self, uri)?, text(self, args)?);
        if let Some(at) = uri.iter().position(|byte| *byte == b'?') {
            args = uri.split_off(at)[1..].to_vec();
        }
        (self.uri, self.args) = (uri, args);
        (self.has_unparsed, self.has_location) = (false, true);
        self.serve().map(Some)
    }

    /// Where a redirect leads: nginx makes it absolute.
    fn absolute(&self, to: &str) -> String {
        if !to.starts_with('/') || !model::is_on(&self.chain, "absolute_redirect", true) {
            return to.to_owned();
        }
        let by_name = model::is_on(&self.chain, "server_name_in_redirect", false);
        let host = match &self.host {
            _ if by_name => self.server.name(),
            Some(host) => host.clone(),
            None => self.local.ip().to_string(),
        };
        let (scheme, usual) = if self.is_tls { ("https", 443) } else { ("http", 80) };
        let port = self.local.port();
        if port == usual || !model::is_on(&self.chain, "port_in_redirect", true) {
            return format!("{scheme}://{host}{to}");
        }
        format!("{scheme}://{host}:{port}{to}")
    }
}

fn answered(status: u16) -> Outcome {
    Outcome::Answered { status, headers: Vec::new(), body: None }
}

fn redirect(status: u16, to: String) -> Outcome {
    Outcome::Answered { status, headers: vec![("location".into(), to)], body: None }
}

/// `ngx_http_validate_host`: in lower case, without port and last dot.
fn valid_host(host: &str) -> Option<String> {
    let bad = |byte: u8| byte <= b' ' || byte == 0x7f || byte == b'/';
    if host.bytes().any(bad) || host.contains("..") {
        return None;
    }
    let name = match host.strip_prefix('[') {
        Some(rest) => &host[..rest.find(']')? + 2],
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    Some(name.to_ascii_lowercase())
}
