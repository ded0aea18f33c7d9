//! The same as a [`Program`], and what has become of every statement.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    model::{self, Listen, Model, Server},
    template::Template,
    tree::{Config, Directive},
};
use crate::{
    ledger::{Ledger, Verdict},
    program::{
        Accepts, Clients, Condition, Forwarded, Listener, PathForm, Paths, Program, Reply, Rule,
        Said, ServerTls, Text, Then,
    },
    source::{Place, Problem},
};

mod access;
mod addresses;
mod again;
mod answers;
mod conditions;
mod headers;
mod hosts;
mod leads;

mod leaf;
mod locations;
mod meanings;
mod pass;
mod pools;
mod redirects;
mod replies;
mod stream;
mod tls;
mod values;

use leads::Redirects;

/// Rules of all listeners; a configuration that needs more says many times the same.
const MAX_RULES: usize = 100_000;

/// What nginx' configuration is with us.
///
/// # Errors
///
/// The configuration is none that nginx starts with, or needs too many rules.
pub fn convert(config: &Config) -> Result<(Program, Ledger), Problem> {
    let model = Model::of(config)?;
    let mut work = Work {
        model: &model,
        program: Program::default(),
        verdicts: BTreeMap::new(),
        pools: BTreeMap::new(),
        rules: 0,
        turns: 0,
        in_page: false,
    };
    work.http()?;
    work.stream();
    work.upstreams();
    work.rest(&config.root, "");
    Ok((work.program, ledger(work.verdicts)))
}

/// Of a statement that is the same here and something else there the latter is said.
fn ledger(verdicts: BTreeMap<(Place, u32), BTreeSet<Verdict>>) -> Ledger {
    let mut ledger = Ledger::default();
    for ((place, last), verdicts) in verdicts {
        let is_other = verdicts.iter().any(|verdict| *verdict != Verdict::Exact);
        for verdict in verdicts.into_iter().filter(|v| !is_other || *v != Verdict::Exact) {
            ledger.say_until(&place, last, verdict);
        }
    }
    ledger
}

/// A server and how it listens on an address.
type Heard<'m, 'c> = (&'m Server<'c>, &'m Listen<'c>);

struct Work<'m, 'c> {
    model: &'m Model<'c>,
    program: Program,
    verdicts: BTreeMap<(Place, u32), BTreeSet<Verdict>>,
    /// Pools that are there, by what makes them: their names.
    pools: BTreeMap<String, String>,
    rules: usize,
    /// Locations that were looked for within each other.
    turns: u32,
    /// An error is being led to its page.
    in_page: bool,
}

/// The listener that rules are for.
struct At<'m, 'c> {
    address: SocketAddr,
    is_tls: bool,
    server: &'m Server<'c>,
    /// What `set` has set, as far as it can be said.
    set: BTreeMap<String, Template>,
    /// What `set` under conditions has set: the first that holds.
    chosen: BTreeMap<String, Vec<(Condition, Template)>>,
    /// What `X-Forwarded-For` becomes in each of its rules that forward.
    forwarded: Vec<Forwarded>,
    redirects: Redirects,
}

impl<'m, 'c> Work<'m, 'c> {
    fn say(&mut self, directive: &Directive, verdict: Verdict) {
        let key = (directive.place.clone(), directive.head_last);
        self.verdicts.entry(key).or_default().insert(verdict);
    }

    fn exact(&mut self, directive: &Directive) {
        self.say(directive, Verdict::Exact);
    }

    fn approximated(&mut self, directive: &Directive, how: impl Into<String>) {
        self.say(directive, Verdict::Approximated { how: how.into() });
    }

    fn dropped(&mut self, directive: &Directive, meaning: impl Into<String>) {
        self.say(directive, Verdict::Dropped { meaning: meaning.into() });
    }

    fn decision(&mut self, directive: &Directive, question: impl Into<String>, choices: &[&str]) {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        self.say(directive, Verdict::Decision { question: question.into(), choices });
    }

    fn http(&mut self) -> Result<(), Problem> {
        for (address, here) in self.addresses() {
            self.listener(address, &here)?;
        }
        Ok(())
    }

    fn listener(&mut self, address: SocketAddr, here: &[Heard<'m, 'c>]) -> Result<(), Problem> {
        let is_tls = here.iter().any(|(_, listen)| listen.is_tls);
        let default = here.iter().position(|(_, listen)| listen.is_default).unwrap_or(0);
        for (_, listen) in here {
            self.listen(listen);
        }
        let tls = if is_tls { self.server_tls(here, default) } else { None };
        let mut forwarded = Vec::new();
        let mut of_servers = Vec::new();
        for (server, _) in here {
            let set = BTreeMap::new();
            let (chosen, of_rules) = (BTreeMap::new(), Vec::new());
            let redirects = Redirects::of(&server.chain);
            let mut at =
                At { address, is_tls, server, set, chosen, forwarded: of_rules, redirects };
            let rules = self.server(&mut at);
            forwarded.append(&mut at.forwarded);
            of_servers.push(match tls.as_ref().and_then(|tls| self.unproved(server, tls)) {
                Some(refused) => vec![refused],
                None => rules,
            });
        }
        let groups = self.hosts(here, default);
        let mut rules = Vec::new();
        for (host, server) in groups {
            self.rules += of_servers[server].len();
            if self.rules > MAX_RULES {
                let problem = format!("more than {MAX_RULES} rules come of this configuration");
                return Err(Problem::at(&here[server].0.directive.place, problem));
            }
            let with_host =
                |rule: &Rule| Rule { when: all([host.clone(), rule.when.clone()]), ..rule.clone() };
            rules.extend(of_servers[server].iter().map(with_host));
        }
        let forwarded = forwarded_of(&forwarded, &mut rules);
        let paths = self.paths(here, default);
        let drops_underscores = self.underscores(here, default);
        let otherwise = Reply { status: 404, ..Reply::default() };
        let listen = here[default].1.directive.unwrap_or(here[default].0.directive);
        self.program.listeners.push(Listener {
            place: listen.place.clone(),
            name: name("http", address),
            addresses: vec![address],
            accepts: Accepts::Http {
                rules,
                otherwise,
                forwarded,
                paths,
                drops_underscores,
                brief_errors: true,
            },
            tls,
        });
        Ok(())
    }

    fn listen(&mut self, listen: &Listen<'c>) {
        let Some(directive) = listen.directive else { return };
        if listen.wants_proxy {
            let question = "the PROXY protocol is not read with us: connections from a balancer that speaks it fail. Does one stand before this listener?";
            self.decision(
                directive,
                question,
                &["the balancer stops to speak it", "this listener stays with nginx"],
            );
        }
        if listen.is_udp {
            self.dropped(directive, "UDP is not listened to");
        }
        self.exact(directive);
    }

    /// Headers with `_` in their names are left out, unless all are taken. nginx decides
    /// it by the default server, before it knows the host.
    fn underscores(&mut self, here: &[Heard<'m, 'c>], default: usize) -> bool {
        let is_on = |server: &Server<'_>, name, usual| model::is_on(&server.chain, name, usual);
        let drops = |server: &Server<'_>| {
            !is_on(server, "underscores_in_headers", false)
                && is_on(server, "ignore_invalid_headers", true)
        };
        for name in ["underscores_in_headers", "ignore_invalid_headers"] {
            let said = here.iter().filter_map(|(server, _)| model::inherited(&server.chain, name));
            let said: Vec<_> = said.collect();
            said.into_iter().for_each(|directive| self.exact(directive));
        }
        drops(here[default].0)
    }

    /// nginx compares paths decoded, and hands them on as they were sent.
    fn paths(&mut self, here: &[Heard<'m, 'c>], default: usize) -> Paths {
        let merges = |server: &Server<'_>| model::is_on(&server.chain, "merge_slashes", true);
        let merge_slashes = merges(here[default].0);
        for (server, _) in here {
            let Some(directive) = model::inherited(&server.chain, "merge_slashes") else {
                continue;
            };
            if merges(server) == merge_slashes {
                self.exact(directive);
            } else {
                let how = "// is taken as the default server of the address takes it";
                self.approximated(directive, how);
            }
        }
        Paths { form: PathForm::Decoded, merge_slashes, as_sent: true }
    }
}

/// What becomes of `X-Forwarded-For` on a whole listener; where not all rules agree, they
/// say it themselves.
fn forwarded_of(said: &[Forwarded], rules: &mut [Rule]) -> Forwarded {
    let Some(first) = said.first().filter(|first| said.iter().all(|one| one == *first)) else {
        return Forwarded::Keep;
    };
    let own = match first {
        Forwarded::Keep => return Forwarded::Keep,
        Forwarded::Append => Said::ForwardedFor,
        Forwarded::Replace => Said::Client,
    };
    for rule in rules {
        if let Then::Forward(forward) = &mut rule.then {
            forward.tell.retain(|(name, said)| name != "x-forwarded-for" || *said != own);
        }
    }
    *first
}

fn listens<'m, 'c>(server: &'m Server<'c>, address: SocketAddr) -> Option<&'m Listen<'c>> {
    let is_here =
        |listen: &&Listen<'_>| listen.addresses.as_ref().is_ok_and(|all| all.contains(&address));
    server.listens.iter().find(is_here)
}

/// A name of DNS labels without dots.
fn name(what: &str, address: SocketAddr) -> String {
    let address: String = address
        .to_string()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let mut name = what.to_owned();
    for part in address.split('-').filter(|part| !part.is_empty()) {
        name = format!("{name}-{part}");
    }
    name
}

/// All of them, as plainly as it can be said.
fn all(conditions: impl IntoIterator<Item = Condition>) -> Condition {
    let mut flat = Vec::new();
    for condition in conditions {
        match condition {
            Condition::Always => {}
            Condition::All(inner) => flat.extend(inner),
            other => flat.push(other),
        }
    }
    match flat.len() {
        0 => Condition::Always,
        1 => flat.remove(0),
        _ => Condition::All(flat),
    }
}

/// Any of them.
fn any(mut conditions: Vec<Condition>) -> Condition {
    match conditions.len() {
        1 => conditions.remove(0),
        _ => Condition::Any(conditions),
    }
}

fn path_begins(text: &str) -> Condition {
    match text {
        "/" | "" => Condition::Always,
        text => Condition::Path(Text::Prefix(text.to_owned())),
    }
}

/// What is said to requests that nothing is made of.
fn refusal(directive: &Directive, when: Condition, status: u16) -> Rule {
    let body = format!("{} of {} is not converted\n", directive.name, directive.place);
    let reply = Reply { status, body, ..Reply::default() };
    Rule { place: directive.place.clone(), when, then: Then::Reply(reply) }
}
