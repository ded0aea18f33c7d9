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
        Accepts, Clients, Condition, Forwarded, Listener, Program, Reply, Rule, ServerTls, Text,
        Then,
    },
    source::{Place, Problem},
};

mod access;
mod again;
mod headers;
mod hosts;
mod leaf;
mod locations;
mod meanings;
mod pass;
mod pools;
mod replies;
mod stream;
mod values;

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
    /// What `X-Forwarded-For` becomes, and who says so.
    forwarded: Vec<(Forwarded, Place)>,
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
        let model = self.model;
        let mut addresses: BTreeMap<SocketAddr, Vec<Heard<'m, 'c>>> = BTreeMap::new();
        for server in &model.http.servers {
            for listen in &server.listens {
                match (&listen.addresses, listen.directive) {
                    (Ok(all), _) => {
                        for address in all {
                            addresses.entry(*address).or_default().push((server, listen));
                        }
                    }
                    (Err(what), Some(directive)) => self.decision(
                        directive,
                        format!("{what} is no address: nothing listens there with us. Which address do clients use then?"),
                        &["an address and a port", "none: nobody uses it"],
                    ),
                    (Err(_), None) => {}
                }
            }
        }
        for (address, here) in addresses {
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
            let mut at = At { address, is_tls, server, set, chosen, forwarded: of_rules };
            of_servers.push(self.server(&mut at));
            forwarded.append(&mut at.forwarded);
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
        let forwarded = self.forwarded(&forwarded);
        let otherwise = Reply { status: 404, ..Reply::default() };
        let listen = here[default].1.directive.unwrap_or(here[default].0.directive);
        self.program.listeners.push(Listener {
            place: listen.place.clone(),
            name: name("http", address),
            addresses: vec![address],
            accepts: Accepts::Http { rules, otherwise, forwarded },
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

    /// The certificate of the default server; one per listener can be said.
    fn server_tls(
        &mut self,
        here: &[(&Server<'c>, &Listen<'c>)],
        default: usize,
    ) -> Option<ServerTls> {
        let of = |server: &Server<'c>| {
            let one = |name: &str| model::inherited(&server.chain, name);
            (one("ssl_certificate"), one("ssl_certificate_key"))
        };
        let (certificate, key) = of(here[default].0);
        let (certificate, key) = (certificate?, key?);
        for (server, _) in here {
            if let (Some(other), Some(other_key)) = of(server) {
                if other.args == certificate.args {
                    self.exact(other);
                    self.exact(other_key);
                } else {
                    let question = format!(
                        "a listener has one certificate with us, {}: clients of this server get it. Does it hold for their names, too?",
                        certificate.arg(0)
                    );
                    self.decision(
                        other,
                        question.clone(),
                        &["one certificate for all names", "an address of its own for this server"],
                    );
                    self.decision(other_key, question, &["as for its certificate"]);
                }
            }
        }
        let chain = &here[default].0.chain;
        let verifies = model::inherited(chain, "ssl_verify_client");
        let roots = model::inherited(chain, "ssl_client_certificate");
        let client_roots = match (verifies, roots) {
            (Some(verifies), Some(roots)) if verifies.arg(0) == "on" => {
                self.exact(verifies);
                self.exact(roots);
                Some(roots.arg(0).to_owned())
            }
            (Some(verifies), _) if verifies.arg(0) == "off" => {
                self.exact(verifies);
                None
            }
            (Some(verifies), _) => {
                let question = "a client's certificate is asked for but not needed: with us it is needed or not asked for";
                self.decision(verifies, question, &["needed", "not asked for"]);
                None
            }
            _ => None,
        };
        Some(ServerTls {
            certificate: certificate.arg(0).into(),
            key: key.arg(0).into(),
            client_roots,
        })
    }

    /// What becomes of `X-Forwarded-For` on a whole listener.
    fn forwarded(&mut self, said: &[(Forwarded, Place)]) -> Forwarded {
        let has = |wanted| said.iter().any(|(found, _)| *found == wanted);
        let chosen = match (has(Forwarded::Append), has(Forwarded::Replace)) {
            (true, _) => Forwarded::Append,
            (false, true) => Forwarded::Replace,
            (false, false) => Forwarded::Keep,
        };
        for (_, place) in said.iter().filter(|(found, _)| *found != chosen) {
            let how = "X-Forwarded-For is the same on a whole listener with us, as other locations have it".to_owned();
            let key = (place.clone(), place.line);
            self.verdicts.entry(key).or_default().insert(Verdict::Approximated { how });
        }
        chosen
    }
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
