//! Routers as listeners.

use std::net::SocketAddr;

use super::{
    super::{
        config::{Config, IdentifierKind, Namer, Router, Server},
        delegate::Engine,
        dtab::Dtab,
        explain::{Client, Target, delegate, engine, remote, status, targets},
        name::Name,
        namers::Origin,
        world::{Files, World},
    },
    candidates::{Candidate, candidate, candidates, refused},
    labels::{ANYBODY, PROBE, anybody},
    letters,
    pair::{self, applications},
    pools::{Pools, Source, label, unique, whole},
    rules::{Context, Resolved, rules},
    universe::Universe,
    uses::{Use, verdict},
};
use crate::{
    ledger::Ledger,
    program::{
        Accepts, Clients, Condition, Forwarded, Listener, Paths, Program, Reply, Rule, ServerTls,
        TcpRule, Text, Then,
    },
    request::{Kind, Request},
    source::Place,
};

/// Work for all names of a router together.
const MAX_WORK: usize = 20_000_000;

/// Names that two routers are compared by.
const MAX_COMPARED: usize = 300;

/// What a router is converted with.
pub(super) struct Asked<'a> {
    pub config: &'a Config,
    pub router: &'a Router,
    pub world: &'a World,
    pub files: Files<'a>,
    pub names: &'a [Name],
}

struct Run<'a> {
    asked: &'a Asked<'a>,
    engine: Engine<'a>,
    /// Without what makes a hop between Linkerds.
    direct: Option<Engine<'a>>,
    uses: Vec<Use>,
    work: usize,
    /// Of work, for the identifier that names are tried for.
    limit: usize,
}

fn context<'a>(router: &'a Router, is_mesh: bool, pools: &'a mut Pools) -> Context<'a> {
    Context {
        place: &router.node.place,
        is_http2: router.protocol == super::Protocol::H2,
        is_mesh,
        clears_context: router.clears_context(),
        pools,
    }
}

/// A router of HTTP.
pub(super) fn http(
    asked: &Asked<'_>,
    program: &mut Program,
    pools: &mut Pools,
    ledger: &mut Ledger,
) {
    let router = asked.router;
    let first = match remote(router, asked.world, asked.files) {
        Ok(first) => first,
        Err(problem) => return lost(asked, ledger, &problem.problem),
    };
    let pair = pair::incoming(asked.config, router);
    let kept = pair::without_hop(&router.interpreter.transformers);
    let of_namer = |namer: &Namer| {
        let transformers = pair::without_hop(&namer.transformers);
        Namer { transformers, ..namer.clone() }
    };
    let mut run = Run::of(asked, first.as_ref());
    let namers: Vec<Namer> = run.engine.namers.unwrap_or_default().iter().map(of_namer).collect();
    if pair.is_some() {
        let engine = Run::of(asked, first.as_ref()).engine;
        let namers = engine.namers.map(|_| namers.as_slice());
        run.direct = Some(Engine { transformers: &kept, namers, ..engine });
    }
    let universe =
        Universe::of(asked.config, router, &run.engine.entries, asked.world, asked.names);
    let mut rules = Vec::new();
    let mut context = context(router, pair.is_some(), pools);
    for (number, identifier) in (1..).zip(&router.identifiers) {
        // Names of the first must not leave none to the others.
        run.limit = MAX_WORK / router.identifiers.len() * number;
        let found = match named(&identifier.kind, &universe, asked.world) {
            Ok(found) => found,
            Err(why) => return lost(asked, ledger, why),
        };
        if let Some(when) = refused(&identifier.kind) {
            let then = Then::Reply(Reply { status: 400, ..Reply::default() });
            rules.push(Rule { place: identifier.place.clone(), when, then });
        }
        if let IdentifierKind::HeaderPath(_, None) = identifier.kind {
            ledger.decision(
                &identifier.place,
                "Linkerd does not count a `/` at the end of a path, and rules for longer names \
                 may: do clients send such paths?",
                &["name so many `segments` as the table needs", "they do not"],
            );
        }
        if let IdentifierKind::MethodAndHost(_) = identifier.kind {
            run.http10(&identifier.place, ledger);
        }
        let is_cut = run.one(&mut context, &found, &universe, &mut rules);
        universe.is_cut.set(is_cut);
    }
    if universe.is_cut.get() {
        ledger.decision(
            &router.node.place,
            "there are more names than were tried, and those that were not get 502 here: which are in use?",
            &["give them: they are in the metrics of the running Linkerd"],
        );
    }
    run.say(ledger, first.as_ref());
    if let Some(incoming) = pair {
        run.check_pair(incoming, &universe, ledger);
    }
    unknown_endpoints(&rules, context.pools, ledger);
    listeners(asked, program, |_| Accepts::Http {
        rules: rules.clone(),
        otherwise: Reply { status: 400, ..Reply::default() },
        forwarded: Forwarded::Keep,
        paths: Paths::default(),
        drops_underscores: false,
        brief_errors: false,
    });
}

/// Requests that an identifier names.
fn named(
    kind: &IdentifierKind,
    universe: &Universe,
    world: &World,
) -> Result<Vec<Candidate>, &'static str> {
    match kind {
        IdentifierKind::Ingress { namespace, class, ignores_default_backends } => {
            let ignores = *ignores_default_backends;
            let rules = world.ingress_rules(namespace.as_deref(), class, ignores);
            rules.map(|rules| by_ingress(&rules)).ok_or("the rules of Ingresses are not known")
        }
        IdentifierKind::Istio | IdentifierKind::Other(_) => {
            Err("how requests get their names is not known")
        }
        kind => Ok(candidates(kind, universe)),
    }
}

/// Why a router cannot be converted.
fn lost(asked: &Asked<'_>, ledger: &mut Ledger, why: &str) {
    let question =
        format!("router {} is not converted: {why}. Can it be given?", asked.router.label);
    ledger.decision(
        &asked.router.node.place,
        question,
        &["give it and plan again", "keep Linkerd"],
    );
    for entry in &asked.router.dtab.entries {
        let meaning = format!("no route comes of it: {why}");
        let verdict = crate::ledger::Verdict::Dropped { meaning };
        ledger.say_until(&entry.place, entry.last_line, verdict);
    }
}

impl<'a> Run<'a> {
    fn of(asked: &'a Asked<'a>, first: Option<&'a Dtab>) -> Self {
        let tables = [first, Some(&asked.router.dtab)];
        let engine = engine(asked.config, asked.router, asked.world, asked.files, &tables);
        let engine = Engine { is_told: false, ..engine };
        let uses = vec![Use::default(); engine.entries.len()];
        Self { asked, engine, direct: None, uses, work: 0, limit: MAX_WORK }
    }

    fn resolve(&mut self, below: &Name) -> Resolved {
        let router = self.asked.router;
        let service = router.dst_prefix.join(below);
        let delegated = self.engine.bind(&service);
        self.work += delegated.work;
        let place = delegated.trace.below.last().and_then(|below| below.entry.clone());
        let place = place.map(|(place, _)| place);
        let found = match &delegated.bound {
            Ok(tree) => targets(router, tree),
            Err(wrong) => {
                let client = Client::Error(wrong.clone());
                vec![Target { share: 1.0, client, policy: Default::default() }]
            }
        };
        let direct = match (&self.direct, &delegated.bound) {
            (Some(engine), Ok(_)) => self.without_hop(&engine.bind(&service).bound, &found),
            _ => found.clone(),
        };
        Resolved {
            status: status(&found),
            targets: found,
            direct,
            service: router.service.merged(&service),
            place: place.unwrap_or_else(|| router.node.place.clone()),
            used: delegated.used,
        }
    }

    /// The same names with the endpoints of applications; policies stay those of the
    /// names that Linkerd has.
    fn without_hop(
        &self,
        bound: &Result<super::super::delegate::Bound, String>,
        found: &[Target],
    ) -> Vec<Target> {
        let Ok(tree) = bound else { return found.to_vec() };
        let direct = targets(self.asked.router, tree);
        let pairs = direct.into_iter().zip(found);
        pairs.map(|(direct, found)| Target { policy: found.policy.clone(), ..direct }).collect()
    }

    /// Notes what a name says about the entries on its way.
    fn note(&mut self, one: &Candidate, to: &Resolved) {
        let knows_some = to.targets.iter().any(|target| match &target.client {
            Client::Name(bound) => matches!(bound.from, Origin::Namer(_) | Origin::Elsewhere),
            _ => false,
        });
        let anywhere = (one.is_pattern() && to.mentions(ANYBODY)).then(|| {
            let to: Vec<String> = to.targets.iter().map(|t| anybody(&t.client)).collect();
            to.join(", ")
        });
        let error = to.targets.iter().find_map(|target| match &target.client {
            Client::Error(wrong) => Some(wrong.clone()),
            _ => None,
        });
        let shares: Vec<f64> = to.targets.iter().map(|target| target.share).collect();
        let is_rounded = !whole(&shares).1;
        let answers_a_share = to.status.is_none()
            && to.targets.iter().any(|target| match &target.client {
                Client::Name(bound) => matches!(bound.from, Origin::Status(_)),
                _ => true,
            });
        for at in &to.used {
            let seen = &mut self.uses[*at];
            seen.is_used = true;
            seen.knows_some |= knows_some;
            seen.answers_a_share |= answers_a_share;
            seen.is_rounded |= is_rounded;
            let known = seen.goes_anywhere.take();
            seen.goes_anywhere = known.into_iter().chain(anywhere.clone()).min_by_key(String::len);
            seen.error = seen.error.take().or_else(|| error.clone());
        }
    }

    /// Names of HTTP/1.0, which say no host.
    fn http10(&mut self, place: &Place, ledger: &mut Ledger) {
        let to = self.resolve(&Name::of(["1.0", "GET"]));
        if to.is_nowhere() {
            let how = "requests of HTTP/1.0, which got 502, are treated as those of HTTP/1.1";
            return ledger.approximated(place, how);
        }
        let to: Vec<String> = to.targets.iter().map(|target| target.client.to_string()).collect();
        let question = format!(
            "requests of HTTP/1.0 go to {} whatever their host, and here as those of HTTP/1.1: are there any?",
            to.join(", ")
        );
        ledger.decision(place, question, &["there are none", "give them a listener of their own"]);
    }

    /// Rules of one identifier: for names, then for patterns, then for all others; and
    /// whether there were more names than could be tried.
    fn one(
        &mut self,
        context: &mut Context<'_>,
        all: &[Candidate],
        universe: &Universe,
        out: &mut Vec<Rule>,
    ) -> bool {
        let mut is_cut = universe.is_cut.get();
        let mut found = Vec::new();
        let mut in_any_letters: Vec<(Candidate, Resolved)> = Vec::new();
        for one in all {
            // The last stands for all others, and must be known.
            if self.work > self.limit && !one.is_rest {
                is_cut = true;
                continue;
            }
            let mut to = self.resolve(&one.below);
            self.note(one, &to);
            // A name of the request itself has no pool; and where names were not tried,
            // the rest may not be like the others.
            let is_open = to.mentions(ANYBODY) || (one.is_rest && is_cut);
            if one.is_pattern() && is_open {
                to.status = Some(502);
            }
            if let Some((upper, other)) = letters::any(one)
                && letters::may_be_any(self.asked.config, &to)
                && letters::is_like(&self.resolve(&upper), &to)
            {
                in_any_letters.push((other, to.clone()));
            }
            found.push((one, to));
        }
        // Behind those that say their letters.
        found.extend(in_any_letters.iter().map(|(one, to)| (one, to.clone())));
        // Among themselves, names may have any order; the more a pattern says, the
        // earlier it comes.
        let tells_methods = found.iter().any(|(one, _)| one.tells_methods());
        found.sort_by_cached_key(|(one, _)| {
            let said = match (one.is_pattern(), tells_methods) {
                (false, _) => Vec::new(),
                (true, true) => vec![std::cmp::Reverse(one.said())],
                (true, false) => one.said_each(),
            };
            // Of one label, what says more is always the narrower.
            let is_guess = one.is_pattern()
                && !tells_methods
                && one.below.len() > 1
                && !universe.is_of_table(one);
            (one.is_rest, one.is_pattern(), is_guess, said)
        });
        for (one, to) in needed(found) {
            out.extend(rules(context, one, &to));
        }
        is_cut
    }

    /// What has become of each entry of the router's own table.
    fn say(&self, ledger: &mut Ledger, first: Option<&Dtab>) {
        let skipped = first.map_or(0, |dtab| dtab.entries.len());
        for (entry, seen) in self.engine.entries.iter().zip(&self.uses).skip(skipped) {
            let verdict = verdict(seen);
            ledger.say_until(&entry.place, entry.last_line, verdict);
        }
    }

    /// Whether the other router would have sent the same requests to the same names.
    fn check_pair(&mut self, incoming: &Router, universe: &Universe, ledger: &mut Ledger) {
        let Some(identifier) = self.asked.router.identifiers.first() else { return };
        let all = candidates(&identifier.kind, universe);
        let place = self.asked.router.interpreter.transformers.first().map(|t| t.place.clone());
        let place = place.unwrap_or_else(|| self.asked.router.node.place.clone());
        let mut others = Vec::new();
        let mut left = MAX_COMPARED;
        for one in all.iter().filter(|one| !one.is_pattern()) {
            if left == 0 || self.work > MAX_WORK {
                others.push("those that were not compared".to_owned());
                break;
            }
            let to = self.resolve(&one.below);
            if to.is_nowhere() {
                continue;
            }
            left -= 1;
            let mut http = one.sample.clone();
            if let Some(path) = &one.path
                && matches!(path, crate::program::PathChange::Pattern { .. })
            {
                http.target = "/rest?q=1".into();
            }
            let request = Request {
                listener: Some(incoming.label.clone()),
                source: std::net::Ipv4Addr::LOCALHOST.into(),
                kind: Kind::Http(http),
            };
            let asked = self.asked;
            let there = match delegate(asked.config, asked.world, asked.files, &request) {
                Ok(there) => there.bound,
                Err(_) => Vec::new(),
            };
            let here = applications(asked.config, &to.targets);
            let there = applications(asked.config, &there);
            if here != there {
                let service = self.asked.router.dst_prefix.join(&one.below);
                others.push(format!("{service} to {} ({})", here.join(", "), there.join(", ")));
            }
        }
        if others.is_empty() {
            return;
        }
        let more = if others.len() > 5 { ", and others" } else { "" };
        others.truncate(5);
        let question = format!(
            "router {}, as it is here, sends some requests on to another name (in brackets) than this one \
             meant, or to none: {}{more}. Which is meant?",
            incoming.label,
            others.join("; ")
        );
        let choices = ["what this one meant: pools hold it", "what the other does: keep the hop"];
        ledger.decision(&place, question, &choices);
    }
}

/// Without those that a later one says as well.
fn needed(found: Vec<(&Candidate, Resolved)>) -> Vec<(&Candidate, Resolved)> {
    let mut kept: Vec<(&Candidate, Resolved)> = Vec::new();
    for (one, to) in found.into_iter().rev() {
        // Methods of this very host have rules before it, if they need some.
        let is_between = |other: &Candidate| {
            other.overlaps(&one.below) && (other.is_any_method || !one.is_any_method)
        };
        let mut is_said = false;
        for (other, known) in kept.iter().rev() {
            if other.covers(&one.below) {
                is_said = known.is_like(&to);
                break;
            }
            if is_between(other) && !known.is_like(&to) {
                break;
            }
        }
        if !is_said {
            kept.push((one, to));
        }
    }
    kept.reverse();
    kept
}

fn by_ingress(found: &[(String, super::super::world::IngressRule)]) -> Vec<Candidate> {
    let one = |(namespace, rule): &(String, super::super::world::IngressRule)| {
        let host = rule.host.as_ref().map(|host| {
            let pattern = format!("{}(?::[^:]*)?", regex::escape(host));
            Condition::Header("host".into(), Text::Pattern(pattern))
        });
        let path = rule.path.as_ref().filter(|path| !path.is_empty());
        let path = path.map(|path| Condition::Path(Text::Pattern(path.clone())));
        let when = Condition::All(host.into_iter().chain(path).collect());
        candidate(when, Name::of([namespace, &rule.port, &rule.service]))
    };
    found.iter().map(one).collect()
}

/// Pools whose endpoints nobody has told.
fn unknown_endpoints(rules: &[Rule], pools: &Pools, ledger: &mut Ledger) {
    for rule in rules {
        let Then::Forward(forward) = &rule.then else { continue };
        for (name, _) in &forward.pools {
            let is_empty = pools.pools.get(name).is_some_and(|pool| pool.members.is_empty());
            if is_empty && name != "nobody" {
                ledger.decision(
                    &rule.place,
                    format!("nobody is known to be in pool {name}: who is?"),
                    &["let discovery be read, and plan again", "write the endpoints"],
                );
            }
        }
    }
}

/// One listener for all servers with the same TLS.
fn listeners(asked: &Asked<'_>, program: &mut Program, accepts: impl Fn(&Server) -> Accepts) {
    let mut groups: Vec<(Option<ServerTls>, Vec<&Server>)> = Vec::new();
    for server in &asked.router.servers {
        let tls = server_tls(server);
        match groups.iter_mut().find(|(known, _)| *known == tls) {
            Some((_, servers)) => servers.push(server),
            None => groups.push((tls, vec![server])),
        }
    }
    for (tls, servers) in groups {
        let name = label(&asked.router.label);
        let name = unique(&name, |name| program.listeners.iter().any(|l| l.name == name));
        program.listeners.push(Listener {
            place: servers[0].node.place.clone(),
            name,
            addresses: servers.iter().map(|s| SocketAddr::new(s.ip, s.port)).collect(),
            accepts: accepts(servers[0]),
            tls,
        });
    }
}

fn server_tls(server: &Server) -> Option<ServerTls> {
    let tls = server.node.at("tls")?;
    let flag = |key: &str| tls.at(key).and_then(|node| node.bool().ok());
    let text = |key: &str| tls.at(key).and_then(|node| node.text().ok());
    if flag("enabled") == Some(false) {
        return None;
    }
    let client_roots = text("caCertPath").filter(|_| flag("requireClientAuth") == Some(true));
    let (certificate, key) = (text("certPath")?, text("keyPath")?);
    Some(ServerTls { certificate, key, client_roots, ..ServerTls::default() })
}

/// A router of calls: connections, where all names lead to the same.
pub(super) fn rpc(
    asked: &Asked<'_>,
    program: &mut Program,
    pools: &mut Pools,
    ledger: &mut Ledger,
) {
    let router = asked.router;
    let first = match remote(router, asked.world, asked.files) {
        Ok(first) => first,
        Err(problem) => return lost(asked, ledger, &problem.problem),
    };
    if let super::Protocol::Other(protocol) = &router.protocol {
        return lost(asked, ledger, &format!("{protocol} is a plugin's protocol"));
    }
    let mut run = Run::of(asked, first.as_ref());
    let universe =
        Universe::of(asked.config, router, &run.engine.entries, asked.world, asked.names);
    let bare = run.resolve(&Name::default());
    let labels = universe.labels.iter().map(String::as_str).chain([PROBE]);
    let other = labels.map(|label| Name::of([label])).find(|name| {
        let to = run.resolve(name);
        run.note(&candidate(Condition::Always, name.clone()), &to);
        run.work <= MAX_WORK && !to.is_like(&bare)
    });
    if let Some(name) = other {
        let service = router.dst_prefix.join(&name);
        return lost(asked, ledger, &format!("calls are told apart by name, as {service} shows"));
    }
    run.note(&candidate(Condition::Always, Name::default()), &bare);
    run.say(ledger, first.as_ref());
    let shares: Vec<f64> = bare.targets.iter().map(|target| target.share).collect();
    let mut named = Vec::new();
    for (target, weight) in bare.targets.iter().zip(whole(&shares).0) {
        let Client::Name(bound) = &target.client else { continue };
        let source = Source {
            place: &bare.place,
            bound,
            policy: &target.policy,
            is_http2: false,
            is_mesh: false,
        };
        named.push((pools.of(&source), weight));
    }
    let rules = match named.is_empty() {
        true => Vec::new(),
        false => {
            vec![TcpRule {
                place: bare.place.clone(),
                server_names: Vec::new(),
                clients: Clients::default(),
                pools: named,
            }]
        }
    };
    listeners(asked, program, |_| Accepts::Tcp { rules: rules.clone() });
}
