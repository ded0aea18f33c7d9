//! What Linkerd does with one request, and why.

use std::fmt;

use serde_json::{Map, Value as Json};

use super::{
    config::{Config, InterpreterKind, Protocol, Router},
    delegate::{Bound, Engine, Traced},
    dtab::{Dentry, Dtab},
    identify::{Identified, identify},
    name::Name,
    namers::{BoundName, Origin},
    policy::Merged,
    world::{Files, World},
};
use crate::{
    request::{Answer, Forwarded, Http, Kind, Outcome, Request, Step, summed},
    source::{Place, Problem},
};

/// All that Linkerd makes of a request. `Display` prints the tree of names.
#[derive(Debug, Clone, PartialEq)]
pub struct Delegation {
    /// The router's label.
    pub router: String,
    /// Where the router is.
    pub place: Place,
    /// How it was named, or why it was not.
    pub how: String,
    /// The identifier that did.
    pub identifier: Option<Place>,
    /// The name of the service; `None` where nobody knows it, or a header is wrong.
    pub service: Option<Name>,
    /// How the name was delegated.
    pub tree: Option<Traced>,
    /// Where it goes, with shares that make 1 together.
    pub bound: Vec<Target>,
    /// What Linkerd itself answers, if it goes nowhere.
    pub status: Option<u16>,
    /// Merged, by parameter; empty is all defaults.
    pub service_policy: Merged,
    /// Path and query as the application gets them.
    pub upstream_uri: String,
    /// What the request says about the table.
    pub overrides: Vec<String>,
}

/// A place a request may go to.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Of all requests with this name.
    pub share: f64,
    /// Who.
    pub client: Client,
    /// Merged, by parameter.
    pub policy: Merged,
}

/// Who gets a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Client {
    /// A bound name.
    Name(Box<BoundName>),
    /// Nobody has the name.
    Neg,
    /// `!`.
    Fail,
    /// `$`.
    Empty,
    /// The request has no name.
    Unidentified,
    /// Binding ends with an error.
    Error(String),
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(bound) => write!(f, "{}", bound.id),
            Self::Neg => f.write_str("NEG"),
            Self::Fail => f.write_str("FAIL"),
            Self::Empty => f.write_str("EMPTY"),
            Self::Unidentified => f.write_str("UNIDENTIFIED"),
            Self::Error(_) => f.write_str("ERROR"),
        }
    }
}

impl Target {
    /// What of the name was not needed: `/api.corp`, or nothing.
    pub fn residual(&self) -> String {
        match &self.client {
            Client::Name(bound) if !bound.residual.is_empty() => bound.residual.to_string(),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Delegation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "router {} ({})", self.router, self.place)?;
        match &self.service {
            Some(service) => writeln!(f, "service {service}: {}", self.how)?,
            None => writeln!(f, "no service: {}", self.how)?,
        }
        self.overrides.iter().try_for_each(|said| writeln!(f, "{said}"))?;
        if let Some(tree) = &self.tree {
            write!(f, "{tree}")?;
        }
        for target in &self.bound {
            writeln!(f, "=> {:.4} {}", target.share, target.client)?;
        }
        self.status.map_or(Ok(()), |status| writeln!(f, "answers {status}"))
    }
}

/// What Linkerd does with a request.
///
/// # Errors
///
/// There is no such router, or what it needs is not known here: a table at namerd, rules
/// of an Ingress, a plugin.
pub fn explain(
    config: &Config,
    world: &World,
    files: Files<'_>,
    request: &Request,
) -> Result<Answer, Problem> {
    delegate(config, world, files, request).map(|delegation| delegation.answer(config, world))
}

/// The same, as Linkerd itself would say it.
///
/// # Errors
///
/// As [`explain`].
pub fn delegate(
    config: &Config,
    world: &World,
    files: Files<'_>,
    request: &Request,
) -> Result<Delegation, Problem> {
    let router = router_of(config, request)?;
    let (below, target, how, identifier) = match named(router, world, request)? {
        Identified::Name { below, target, place, how } => (below, target, how, place),
        Identified::Nobody(reason) => return Ok(refused(router, request, reason)),
    };
    let (local, overrides) = match local(router, request) {
        Ok(local) => local,
        Err(wrong) => return Ok(refused(router, request, wrong)),
    };
    let service = router.dst_prefix.join(&below);
    let first = remote(router, world, files)?;
    let tables = [first.as_ref(), Some(&router.dtab), Some(&local)];
    let engine = engine(config, router, world, files, &tables);
    let delegated = engine.bind(&service);
    let bound = match delegated.bound {
        Ok(tree) => targets(router, &tree),
        Err(wrong) => vec![Target::nowhere(1.0, Client::Error(wrong))],
    };
    let sent = Sent::of(request);
    Ok(Delegation {
        router: router.label.clone(),
        place: router.node.place.clone(),
        how,
        identifier: Some(identifier),
        service_policy: router.service.merged(&service),
        service: Some(service),
        tree: Some(delegated.trace),
        status: status(&bound),
        bound,
        upstream_uri: target.unwrap_or(sent.target),
        overrides,
    })
}

/// Who is asked for the names of a router.
pub(super) fn engine<'a>(
    config: &'a Config,
    router: &'a Router,
    world: &'a World,
    files: Files<'a>,
    tables: &[Option<&'a Dtab>],
) -> Engine<'a> {
    let entries: Vec<&Dentry> = tables.iter().flatten().flat_map(|dtab| &dtab.entries).collect();
    let namers = match &router.interpreter.kind {
        InterpreterKind::Namerd(_) if world.namerd.is_empty() => None,
        InterpreterKind::Namerd(_) => Some(world.namerd.as_slice()),
        _ => Some(config.namers.as_slice()),
    };
    let transformers = &router.interpreter.transformers;
    Engine { entries, namers, transformers, world, files, is_told: true }
}

/// The first part of the table, where it is kept elsewhere.
pub(super) fn remote(
    router: &Router,
    world: &World,
    files: Files<'_>,
) -> Result<Option<Dtab>, Problem> {
    let place = router.interpreter.node.as_ref().map_or(&router.node.place, |node| &node.place);
    match &router.interpreter.kind {
        InterpreterKind::Local => Ok(None),
        InterpreterKind::File(file) => {
            let source = files(file)?;
            Dtab::read(&source.name, &source.text).map(Some)
        }
        InterpreterKind::Store(key) | InterpreterKind::Namerd(key) => match world.dtabs.get(key) {
            Some(dtab) => Ok(Some(dtab.clone())),
            None => {
                let wrong = format!("the table {key:?} is kept elsewhere, and is not known here");
                Err(Problem::at(place, wrong))
            }
        },
        InterpreterKind::Other(kind) => {
            let wrong = format!("{kind} binds the names, and is not known here");
            Err(Problem::at(place, wrong))
        }
    }
}

fn router_of<'c>(config: &'c Config, request: &Request) -> Result<&'c Router, Problem> {
    let Some(asked) = &request.listener else {
        return match config.routers.as_slice() {
            [only] => Ok(only),
            _ => Err(Problem::at(&config.root.place, "there are several routers: say which")),
        };
    };
    let listens = |router: &&Router| {
        router.label == *asked
            || router.servers.iter().any(|server| {
                std::net::SocketAddr::new(server.ip, server.port).to_string() == *asked
            })
    };
    let found = config.routers.iter().find(listens);
    found.ok_or_else(|| Problem::at(&config.root.place, format!("there is no router {asked:?}")))
}

fn named(router: &Router, world: &World, request: &Request) -> Result<Identified, Problem> {
    match (&router.protocol, &request.kind) {
        (Protocol::Http | Protocol::H2, Kind::Http(_)) => {
            let sent = Sent::of(request);
            let http = sent.http.expect("a request of HTTP");
            identify(router, &http, world)
        }
        (Protocol::Rpc(protocol), Kind::Connection { .. }) => Ok(Identified::Name {
            below: Name::default(),
            target: None,
            place: router.node.place.clone(),
            how: format!("{protocol} without a destination or a method"),
        }),
        (Protocol::Other(protocol), _) => {
            let wrong = format!("{protocol} is a protocol of a plugin, which is not known here");
            Err(Problem::at(&router.node.place, wrong))
        }
        (Protocol::Http | Protocol::H2, Kind::Connection { .. }) => {
            Err(Problem::at(&router.node.place, "this router takes HTTP: ask with a request"))
        }
        (Protocol::Rpc(protocol), Kind::Http(_)) => {
            let wrong = format!("this router takes {protocol}, not HTTP: ask with a connection");
            Err(Problem::at(&router.node.place, wrong))
        }
    }
}

/// The request as identifiers see it: of a request to a proxy, `Host` is that of its
/// target, which becomes a path.
struct Sent {
    http: Option<Http>,
    target: String,
}

impl Sent {
    fn of(request: &Request) -> Self {
        let Kind::Http(http) = &request.kind else {
            return Self { http: None, target: String::new() };
        };
        let mut http = http.clone();
        let rest = http.target.strip_prefix("http://").or(http.target.strip_prefix("https://"));
        if let Some(rest) = rest {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            http.host = Some(authority.to_owned());
            let slash = if path.starts_with('/') { "" } else { "/" };
            http.target = format!("{slash}{path}");
        }
        let target = http.target.clone();
        Self { http: Some(http), target }
    }
}

/// The table that the request brings along: what it says last is asked first.
fn local(router: &Router, request: &Request) -> Result<(Dtab, Vec<String>), String> {
    let mut dtab = Dtab::default();
    let mut said = Vec::new();
    let Kind::Http(http) = &request.kind else { return Ok((dtab, said)) };
    if router.clears_context() {
        return Ok((dtab, said));
    }
    for header in ["dtab-local", "l5d-ctx-dtab", "l5d-dtab"] {
        let values = http.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(header));
        for (_, value) in values {
            let own = Dtab::read(header, value).map_err(|problem| problem.to_string())?;
            said.push(format!("{header}: {value}"));
            dtab.entries.extend(own.entries);
        }
    }
    Ok((dtab, said))
}

fn refused(router: &Router, request: &Request, how: String) -> Delegation {
    Delegation {
        router: router.label.clone(),
        place: router.node.place.clone(),
        how,
        identifier: None,
        service: None,
        tree: None,
        bound: vec![Target::nowhere(1.0, Client::Unidentified)],
        status: Some(400),
        service_policy: Merged::default(),
        upstream_uri: Sent::of(request).target,
        overrides: Vec::new(),
    }
}

impl Target {
    fn nowhere(share: f64, client: Client) -> Self {
        Self { share, client, policy: Merged::default() }
    }
}

/// Where a tree leads, and what applies there.
pub(super) fn targets(router: &Router, tree: &Bound) -> Vec<Target> {
    let leaves = tree.leaves().into_iter();
    let of = |(share, leaf): (f64, &Bound)| match leaf {
        Bound::Leaf(bound) => {
            let policy = router.client.merged(&bound.id);
            Target { share, client: Client::Name(bound.clone()), policy }
        }
        Bound::Fail => Target::nowhere(share, Client::Fail),
        Bound::Empty => Target::nowhere(share, Client::Empty),
        Bound::Neg | Bound::Union(_) => Target::nowhere(share, Client::Neg),
    };
    leaves.map(of).collect()
}

/// Whether it is known that nobody can take it.
pub(super) fn status(targets: &[Target]) -> Option<u16> {
    let own = |target: &Target| match &target.client {
        Client::Name(bound) => match bound.from {
            Origin::Status(code) => Some(code),
            _ => None,
        },
        _ => None,
    };
    if let Some(code) = targets.first().and_then(own)
        && targets.iter().all(|target| own(target) == Some(code))
    {
        return Some(code);
    }
    let nobody = |target: &Target| match &target.client {
        Client::Name(bound) => {
            let is_status = matches!(bound.from, Origin::Status(_));
            !is_status && bound.endpoints.as_ref().is_some_and(Vec::is_empty)
        }
        _ => true,
    };
    targets.iter().all(nobody).then_some(502)
}

impl Delegation {
    /// Merged parameters of the service, as JSON.
    pub fn service_policy(&self) -> &Map<String, Json> {
        &self.service_policy.values
    }

    /// Merged parameters of the first client, as JSON.
    pub fn client_policy(&self) -> Map<String, Json> {
        self.bound.first().map(|target| target.policy.values.clone()).unwrap_or_default()
    }

    /// In words of no proxy.
    pub fn answer(&self, config: &Config, world: &World) -> Answer {
        let outcome = match self.status {
            Some(status) => self.own_answer(status),
            None => Outcome::Forwarded(self.forwarded(config)),
        };
        Answer { outcome, why: self.why(world) }
    }

    fn own_answer(&self, status: u16) -> Outcome {
        let is_meant = self.bound.iter().all(|target| {
            matches!(&target.client, Client::Name(bound) if matches!(bound.from, Origin::Status(_)))
        });
        let wrong = match &self.service {
            _ if is_meant => None,
            Some(service) => Some(format!("No hosts are available for {service}")),
            None => Some(self.how.clone()),
        };
        let headers = wrong.map(|wrong| ("l5d-err".to_owned(), wrong)).into_iter().collect();
        Outcome::Answered { status, headers, body: None }
    }

    fn forwarded(&self, config: &Config) -> Forwarded {
        let mut endpoints = Vec::new();
        for target in &self.bound {
            let Client::Name(bound) = &target.client else { continue };
            let known = bound.endpoints.as_deref().unwrap_or_default();
            let all: f64 = known.iter().map(|(_, weight)| weight).sum();
            for (endpoint, weight) in known {
                let share = if all > 0.0 { weight / all } else { 1.0 / known.len() as f64 };
                endpoints.push((endpoint.clone(), share * target.share));
            }
        }
        Forwarded {
            pools: summed(self.bound.iter().map(|t| (t.client.to_string(), t.share))),
            endpoints: summed(endpoints),
            is_sticky: false,
            target: Some(self.upstream_uri.clone()),
            headers: self.headers(config),
        }
    }

    /// Those that an application gets, whatever the client has sent.
    fn headers(&self, config: &Config) -> Vec<(String, Option<String>)> {
        let Some(router) = config.routers.iter().find(|router| router.label == self.router) else {
            return Vec::new();
        };
        if matches!(router.protocol, Protocol::Rpc(_) | Protocol::Other(_)) {
            return Vec::new();
        }
        let mut headers = Vec::new();
        let mut set = |name: &str, value: Option<String>| headers.push((name.to_owned(), value));
        set("l5d-dst-service", self.service.as_ref().map(Name::to_string));
        if let [Target { client: Client::Name(bound), .. }] = self.bound.as_slice() {
            set("l5d-dst-client", Some(bound.id.to_string()));
            if !bound.residual.is_empty() {
                set("l5d-dst-residual", Some(bound.residual.to_string()));
            }
        }
        if router.clears_context() {
            super::config::CONTEXT.iter().for_each(|name| set(name, None));
        }
        if router.protocol == Protocol::Http {
            set("via", Some("1.1 linkerd".into()));
            ["upgrade", "te", "trailer"].iter().for_each(|name| set(name, None));
        }
        headers
    }

    fn why(&self, world: &World) -> Vec<Step> {
        let mut steps = vec![
            Step { place: Some(self.place.clone()), what: format!("router {}", self.router) },
            Step {
                place: self.identifier.clone(),
                what: match &self.service {
                    Some(service) => format!("{}: the service is {service}", self.how),
                    None => format!("has no name, so 400: {}", self.how),
                },
            },
        ];
        let free = |what: String| Step { place: None, what };
        steps.extend(self.overrides.iter().cloned().map(free));
        if let Some(tree) = &self.tree {
            tree.steps(&mut steps);
        }
        for target in &self.bound {
            match &target.client {
                Client::Name(bound) => {
                    let share = target.share * 100.0;
                    steps.push(free(format!("{share:.2} % go to {}", bound.id)));
                    if matches!(bound.from, Origin::Namer(_) | Origin::Elsewhere)
                        && bound.endpoints.is_none()
                        && !world.names.is_empty()
                    {
                        steps.push(free(format!("endpoints of {} are not known here", bound.id)));
                    }
                }
                Client::Error(wrong) => steps.push(free(format!("502: {wrong}"))),
                Client::Neg => steps.push(free("502: nobody has the name".into())),
                Client::Fail => steps.push(free("502: an entry says `!`".into())),
                Client::Empty => steps.push(free("502: an entry says `$`".into())),
                Client::Unidentified => {}
            }
        }
        for (parameter, place) in self
            .service_policy
            .places
            .iter()
            .chain(self.bound.iter().flat_map(|t| &t.policy.places))
        {
            steps.push(Step { place: Some(place.clone()), what: format!("{parameter} applies") });
        }
        steps
    }
}
