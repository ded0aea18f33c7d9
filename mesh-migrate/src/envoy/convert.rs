//! What of an Envoy configuration a [`Program`] can say, and what becomes of the rest.

mod access;
mod action;
mod chains;
mod condition;
mod connections;
mod cors;
mod headers;
mod hosts;
mod own;
mod pool;
mod redirect;
mod retry;
mod tls;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    config::Config,
    notes::{self, Notes},
    parts::{self, Terminal},
    tree::Tree,
};
use crate::{
    ledger::{Ledger, Verdict},
    program::{
        Accepts, Clients, Condition, Forwarded, Listener, PathForm, Paths, Program, Reply, Rule,
        Said, ServerTls, Text,
    },
    source::Place,
};

/// Converts a configuration, and says of every field what has become of it.
pub fn convert(config: &Config) -> (Program, Ledger) {
    let mut converter = Converter {
        config,
        notes: Notes::default(),
        keys: BTreeMap::new(),
        idle: BTreeMap::new(),
        names: BTreeSet::new(),
        access: Vec::new(),
    };
    let mut program = Program::default();
    for listener in &config.listeners {
        program.listeners.extend(converter.listener(listener));
    }
    for cluster in &config.clusters {
        let name = cluster.text("name").unwrap_or_default().to_owned();
        let pool = converter.pool(cluster);
        program.pools.entry(name).or_insert(pool);
    }
    let mut ledger = Ledger::default();
    if config.is_dump {
        converter.twice();
    }
    notes::sweep(&config.root, &converter.notes, &mut ledger);
    (program, ledger)
}

struct Converter<'c> {
    config: &'c Config,
    notes: Notes,
    /// Hash policies of routes by cluster.
    keys: BTreeMap<String, Vec<Option<crate::program::Key>>>,
    /// Idle timeouts of connections by cluster.
    idle: BTreeMap<String, std::time::Duration>,
    /// Of listeners.
    names: BTreeSet<String>,
    /// Filters of the listener that admit requests, if routes have rules of their own for
    /// some of them.
    access: Vec<access::Access<'c>>,
}

/// What all rules of a listener have in common.
#[derive(Clone, Copy)]
struct Within<'c> {
    hcm: &'c Tree,
    routes: &'c Tree,
    port: u16,
    is_tls: bool,
}

impl<'c> Converter<'c> {
    /// The bootstrap of a dump says its listeners and clusters, and the dump again.
    fn twice(&mut self) {
        let bootstraps =
            self.config.root.messages("configs").filter_map(|one| one.msg("bootstrap"));
        for field in bootstraps.filter_map(|one| one.entry("static_resources")) {
            let meaning = "the dump says the same under ListenersConfigDump and ClustersConfigDump, and there it is told";
            self.notes.dropped(&field.place, meaning);
        }
    }

    fn listener(&mut self, listener: &'c Tree) -> Option<Listener> {
        let addresses = parts::addresses(listener);
        if addresses.is_empty() {
            let question = "The listener is at no address of TCP or UDP. What comes in there?";
            self.notes.ask(listener, question, &["listen at an address", "leave it out"]);
            return None;
        }
        for extra in ["udp_listener_config", "api_listener", "internal_listener"] {
            if let Some(field) = listener.entry(extra) {
                let question = "The listener takes no TCP. What comes in there?";
                self.notes.decision(&field.place, question, &["leave it out", "keep Envoy for it"]);
                return None;
            }
        }
        self.filters(listener);
        let chains: Vec<&Tree> = parts::chains(listener).collect();
        let http: Vec<_> = chains.iter().filter_map(|chain| http(chain)).collect();
        let port = addresses.first().map_or(0, std::net::SocketAddr::port);
        let (accepts, tls) = match http.as_slice() {
            [] => (self.connections(listener, &chains)?, None),
            all => self.one_of(listener, &chains, all, port)?,
        };
        let name = self.name(&parts::listener_name(listener));
        Some(Listener { place: listener.place.clone(), name, addresses, accepts, tls })
    }

    /// Filters that say what an intercepted or proxied connection is.
    fn filters(&mut self, listener: &Tree) {
        let kinds = |filter: &Tree| filter.msg("typed_config").map_or("", Tree::short);
        let all: Vec<_> = listener.messages("listener_filters").collect();
        let is_known = |filter: &&&Tree| matches!(kinds(filter), "TlsInspector" | "HttpInspector");
        if all.iter().filter(is_known).count() == all.len() {
            let field = listener.entry("listener_filters");
            field.iter().for_each(|field| {
                let how = "what TLS and HTTP say first is always looked at";
                self.notes.dropped(&field.place, how);
            });
        }
    }

    /// Several chains of HTTP: one set of rules can stand for one of them only.
    fn one_of(
        &mut self,
        listener: &'c Tree,
        chains: &[&'c Tree],
        http: &[(&'c Tree, &'c Tree)],
        port: u16,
    ) -> Option<(Accepts, Option<ServerTls>)> {
        let (chain, hcm) = http.first().copied()?;
        let accepts = |rules| Accepts::Http {
            rules,
            otherwise: Reply { status: 404, ..Reply::default() },
            // Routes tell of clients.
            forwarded: Forwarded::Keep,
            paths: paths(hcm),
            drops_underscores: drops_underscores(hcm),
            brief_errors: true,
        };
        if let Some((rules, tls)) = self.by_names(listener, chains, port) {
            return Some((accepts(rules), Some(tls)));
        }
        for other in chains.iter().filter(|other| !std::ptr::eq(**other, chain)) {
            let question = "Another filter chain of this listener takes some connections; a listener of ours has one set of rules. Until it is said, these connections are taken as those of the first chain.";
            let choices = [
                "give it an address of its own",
                "write its routes into the first chain",
                "leave it out",
            ];
            self.notes.ask(other, question, &choices);
        }
        let criteria = chain.msg("filter_chain_match").filter(|one| !one.fields.is_empty());
        if let Some(criteria) =
            criteria.filter(|_| connections::asks_for_clients(listener).is_none())
        {
            let question = "This filter chain takes some connections of this listener only; here it takes all of them.";
            self.notes.ask(
                criteria,
                question,
                &["it may take all", "give it an address of its own"],
            );
        }
        let tls = self.server_tls(chain);
        let routes = self.config.routes(hcm)?;
        let within = Within { hcm, routes, port, is_tls: tls.is_some() };
        let rules = self.of_chain(listener, chain, &within);
        Some((accepts(rules), tls))
    }

    /// Rules of a chain, those of its filters first.
    fn of_chain(&mut self, listener: &Tree, chain: &'c Tree, within: &Within<'c>) -> Vec<Rule> {
        let admitted = self.other_filters(chain);
        let others = self.other_clients(listener, chain);
        let access = self.access(within);
        let by_route = Self::is_admitted_by_route(within, &access);
        let mut rules: Vec<Rule> = self.unadmitted(chain, &admitted).into_iter().collect();
        rules.extend(others);
        if !parts::have_upgrades(within.routes) {
            rules.push(upgrades(within, None));
        }
        rules.extend(self.escapes(within));
        for filter in within.hcm.messages("http_filters") {
            let is = |known: &Tree| std::ptr::eq(known, filter);
            rules.extend(health_checks(within).find(|(known, _)| is(known)).map(|(_, rule)| rule));
            let own = access.iter().find(|one| is(one.filter) && !by_route);
            rules.extend(own.and_then(access::for_all));
        }
        self.access = if by_route { access } else { Vec::new() };
        rules.extend(self.rules(within));
        self.connection_manager(listener, within);
        rules
    }

    /// Paths with escaped slashes, where they are not taken.
    fn escapes(&mut self, within: &Within<'_>) -> Option<Rule> {
        let hcm = within.hcm;
        for name in ["normalize_path", "merge_slashes"] {
            if let Some(field) = hcm.entry(name).filter(|_| !hcm.is(name)) {
                self.notes.once(&field.place, Verdict::Exact);
            }
        }
        let field = hcm.entry("path_with_escaped_slashes_action")?;
        let reply = match hcm.text("path_with_escaped_slashes_action")? {
            "REJECT_REQUEST" => {
                self.notes.once(&field.place, Verdict::Exact);
                Reply { status: 400, ..Reply::default() }
            }
            "UNESCAPE_AND_REDIRECT" => {
                let how = "clients are sent to the whole address, not to the path alone; the port of Host is left out of it";
                self.notes.approximated(&field.place, how);
                let path = crate::program::PathChange::Pattern {
                    pattern: "(?i)%2f|%5c".into(),
                    substitution: "/".into(),
                    all: true,
                };
                // Without a scheme it would have the port of the listener.
                let scheme = Some(if within.is_tls { "https" } else { "http" }.into());
                let path = Some(path);
                let location = crate::program::Location { scheme, path, ..Default::default() };
                Reply { status: 307, location: Some(location), ..Reply::default() }
            }
            "KEEP_UNCHANGED" | "IMPLEMENTATION_SPECIFIC_DEFAULT" => {
                self.notes.once(&field.place, Verdict::Exact);
                return None;
            }
            _ => return None,
        };
        let escaped = crate::program::Text::Pattern("(?is).*%(?:2f|5c).*".into());
        let when = Condition::Path(escaped);
        Some(rule(&field.place, when, crate::program::Then::Reply(reply)))
    }

    fn connection_manager(&mut self, listener: &Tree, within: &Within<'_>) {
        let how = "Envoy refuses some requests itself (HTTP/1.0 426; no Host, methods that it does not know, a path with a fragment or with what is not ASCII 400), and sets x-request-id, server and x-envoy headers, and x-forwarded-proto where nobody has and use_remote_address is not written; a header matcher on these finds what the client sent";
        self.notes.whole(within.hcm, Verdict::Approximated { how: how.into() });
        if listener.is("use_original_dst") {
            return;
        }
        for filter in within.hcm.messages("http_filters") {
            let typed = filter.msg("typed_config");
            let config = match typed.map_or("", |config| config.message) {
                "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig" => "GrpcStats",
                _ => typed.map_or("", Tree::short),
            };
            if let Some(field) = filter.entry("disabled") {
                self.notes.once(&field.place, Verdict::Exact);
            }
            let is_on = crate::envoy::access::is_ever_on(filter, within.routes);
            if config == "Router" || !is_on {
                continue;
            }
            let name = filter.text("name").unwrap_or_default();
            // Said at the rules, and at policies.
            if matches!(config, "RBAC" | "Cors") {
                continue;
            }
            if health_checks(within).any(|(known, _)| std::ptr::eq(known, filter)) {
                let how = "answered 200 with any query, and as long as our proxy runs";
                filter.fields.iter().for_each(|field| self.notes.approximated(&field.place, how));
                continue;
            }
            let asks = crate::envoy::access::asks(filter);
            for field in filter.fields.iter().filter(|field| field.name != "disabled") {
                let said = asks.map_or_else(|| verdict(config), |_| Err(WHO));
                match said {
                    Ok(meaning) => self.notes.dropped(&field.place, format!("{name}: {meaning}")),
                    Err(question) => {
                        let question = format!("{name}: {question}");
                        let choices =
                            ["by a policy of ours", "leave it out", "keep Envoy before us"];
                        self.notes.decision(&field.place, question, &choices);
                    }
                }
            }
        }
    }

    /// Network filters before the last, and whom they admit.
    fn other_filters(&mut self, chain: &Tree) -> Clients {
        let (clients, others) = access::clients(chain);
        for filter in others {
            let name = filter.text("name").unwrap_or_default();
            for field in &filter.fields {
                let question = format!(
                    "{name} is asked about every connection first, and nobody is here. Where it says who may, nobody may until it is said."
                );
                let choices = ["by a policy of ours", "leave it out", "keep Envoy before us"];
                self.notes.decision(&field.place, question, &choices);
            }
        }
        clients
    }

    fn tcp_pools(&mut self, tcp: &Tree) -> Vec<(String, u32)> {
        let pools: Vec<(String, u32)> = match tcp.some_text("cluster") {
            Some(name) => vec![(name.to_owned(), 1)],
            None => parts::weighted(tcp)
                .into_iter()
                .filter_map(|(_, name, weight)| Some((name?.to_owned(), weight)))
                .collect(),
        };
        let by_source = tcp.messages("hash_policy").any(|one| one.entry("source_ip").is_some());
        for (name, _) in &pools {
            let key = by_source.then_some(crate::program::Key::Source);
            self.keys.entry(name.clone()).or_default().push(key);
            if let Some(idle) = tcp.duration("idle_timeout").filter(|idle| !idle.is_zero()) {
                self.idle.insert(name.clone(), idle);
            }
        }
        pools
    }

    /// A name of DNS labels, which no other listener has.
    fn name(&mut self, raw: &str) -> String {
        let plain: String = raw
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .take(50)
            .collect();
        let plain = plain.trim_matches('-');
        let plain = if plain.is_empty() { "listener" } else { plain };
        let mut name = plain.to_owned();
        let mut number = 1;
        while !self.names.insert(name.clone()) {
            number += 1;
            name = format!("{plain}-{number}");
        }
        name
    }
}

fn http(chain: &Tree) -> Option<(&Tree, &Tree)> {
    match parts::terminal(chain) {
        Terminal::Http(hcm) => Some((chain, hcm)),
        Terminal::Tcp(_) | Terminal::Other(_) => None,
    }
}

/// Filters that answer health checks themselves, as rules.
fn health_checks<'h>(within: &'h Within<'h>) -> impl Iterator<Item = (&'h Tree, Rule)> {
    within.hcm.messages("http_filters").filter_map(|filter| {
        let when = condition::health_check(parts::health_check(filter)?, within)?;
        let reply = Reply { status: 200, ..Reply::default() };
        Some((filter, rule(&filter.place, when, crate::program::Then::Reply(reply))))
    })
}

/// What to ask about a filter that asks who may.
const WHO: &str = "who may do what is asked there, and nobody asks here. Until it is said, requests are answered 501, so that nobody comes in who should not.";

/// What it means that a filter of HTTP is not there, or what to ask about it.
fn verdict(config: &str) -> Result<&'static str, &'static str> {
    match config {
        "Compressor" | "Decompressor" => Ok("bodies are not compressed on the way"),
        "GrpcStats" | "Tap" => Ok("nothing is counted or recorded there"),
        "Buffer" => Ok("requests are not held until they are complete"),
        "GrpcHttp1Bridge" | "GrpcWeb" | "GrpcJsonTranscoder" => {
            Err("clients that speak another protocol than the application need it.")
        }
        "HealthCheck" => Err(
            "Envoy answers health checks of clients itself, and they are sent on here. Does a load balancer ask?",
        ),
        "RateLimit" | "LocalRateLimit" => {
            Err("requests are limited there, and nobody limits them here.")
        }
        "HTTPFault" => Err("requests are delayed or refused on purpose there."),
        "Lua" | "Wasm" | "ExternalProcessor" | "GolangFilter" => {
            Err("a program changes or answers requests there.")
        }
        _ => Err("it may change, answer or refuse requests, and nobody does here."),
    }
}

fn all(mut conditions: Vec<Condition>) -> Condition {
    conditions.retain(|one| *one != Condition::Always);
    match conditions.len() {
        0 => Condition::Always,
        1 => conditions.remove(0),
        _ => Condition::All(conditions),
    }
}

/// Another protocol than those that are switched on, for all or for a route.
fn upgrades(within: &Within<'_>, route: Option<&Tree>) -> Rule {
    let asks = |name: &str, pattern: &str| {
        Condition::Header(name.into(), Text::Pattern(pattern.to_owned()))
    };
    // In whichever of its lines.
    let lists = Text::Pattern("(?i)(?:.*[ \\t,])?upgrade(?:[ \\t,].*)?".to_owned());
    let mut taken = vec!["h2c".to_owned()];
    taken.extend(parts::upgrades(within.hcm, route).iter().map(|one| regex::escape(one)));
    let when = all(vec![
        Condition::Said(Said::Headers("connection".into()), lists),
        asks("upgrade", ".+"),
        Condition::Not(Box::new(asks("upgrade", &format!("(?i)(?:{})", taken.join("|"))))),
    ]);
    let reply = Reply { status: 403, ..Reply::default() };
    let place = route.map_or(&within.hcm.place, |route| &route.place);
    rule(place, when, crate::program::Then::Reply(reply))
}

fn rule(place: &Place, when: Condition, then: crate::program::Then) -> Rule {
    Rule { place: place.clone(), when, then }
}

/// What rules see of paths.
fn drops_underscores(hcm: &Tree) -> bool {
    let common = hcm.msg("common_http_protocol_options");
    let action = common.and_then(|common| common.text("headers_with_underscores_action"));
    action.is_some_and(|action| ["REJECT_REQUEST", "DROP_HEADER"].contains(&action))
}

fn paths(hcm: &Tree) -> Paths {
    let form = if hcm.is("normalize_path") { PathForm::Rfc3986 } else { PathForm::Sent };
    Paths { form, merge_slashes: hcm.is("merge_slashes"), as_sent: false }
}
