//! What a configuration is for ours: rules are run over a request of which nothing is
//! known but the conditions that it has met, and what comes out for each is a rule of
//! the program. Rules that split are followed both ways, first that of requests that
//! meet the condition, so that the first rule that holds is the right one.

mod action;
mod addresses;
mod answers;
mod asked;
mod checks;
mod cookies;
mod fetches;
mod forward;
mod joined;
mod lines;
mod logic;
mod names;
mod notes;
mod numbers;
mod pools;
mod replies;
mod said;
mod settings;
mod sometimes;
mod state;
mod text;
mod tls;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    ledger::Ledger,
    program::{Accepts, Forwarded, Listener, Paths, Program, Reply},
};

use super::{Config, proxy::Proxy, server::Bind};
use notes::Notes;
#[cfg(test)]
pub(super) use replies::PAGE;
use sometimes::Looked;
use state::Front;
use walk::Walk;

/// Ports of one line that become listeners of their own.
const MAX_PORTS: usize = 64;

/// The program that does the same as far as ours can, and what became of every line.
///
/// A rule whose condition cannot be said is left out, or, where it refuses requests,
/// refuses all that it might be about; the ledger asks about either.
pub fn convert(config: &Config) -> (Program, Ledger) {
    let mut notes = Notes::default();
    let mut program = Program::default();
    let mut used = BTreeSet::new();
    let mut names = BTreeSet::new();
    let looked = Looked::of(config);
    for proxy in config.proxies.iter().filter(|proxy| proxy.is_frontend && !proxy.is_disabled) {
        let binds = proxy.binds.iter().flat_map(|bind| apart(config, bind));
        for bind in &binds.collect::<Vec<_>>() {
            let front = front(config, proxy, bind);
            let mut walk = Walk::new(config, &front, &looked, &mut notes);
            walk.front(proxy);
            used.append(&mut walk.entered);
            let (rules, connections, pools) = (walk.rules, walk.connections, walk.single);
            // Routes append the client's address themselves.
            let forwarded = Forwarded::Keep;
            program.pools.extend(pools);
            let accepts = match proxy.is_tcp {
                true => Accepts::Tcp { rules: connections },
                false => Accepts::Http {
                    rules,
                    otherwise: unavailable(),
                    forwarded,
                    paths: Paths::default(),
                    drops_underscores: false,
                    brief_errors: true,
                },
            };
            program.listeners.push(Listener {
                place: bind.place.clone(),
                name: name(&proxy.name, &mut names),
                addresses: bind.addresses.iter().filter_map(|address| address.socket).collect(),
                accepts,
                tls: tls::server(config, bind, &mut notes),
            });
        }
    }
    for proxy in config.proxies.iter().filter(|proxy| proxy.is_backend) {
        if !used.contains(&proxy.name) {
            unused(config, proxy, &looked, &mut notes);
        } else if !proxy.servers.is_empty() && !pools::is_by_port(proxy) {
            let pool = pools::pool(config, proxy, &proxy.servers, &mut notes);
            program.pools.insert(proxy.name.clone(), pool);
        }
    }
    let mut ledger = Ledger::default();
    lines::ledger(config, &notes, &mut ledger);
    (program, ledger)
}

/// Addresses of a line by port, where rules or servers ask for the port.
fn apart(config: &Config, bind: &Bind) -> Vec<Bind> {
    let asks = |text: &str| text.contains("dst_port") || text.contains("%fp");
    let statements = config.tree.sections.iter().flat_map(|section| &section.statements);
    let mut words = statements.flat_map(|statement| &statement.words);
    let has_portless = config.proxies.iter().any(pools::is_by_port);
    if !has_portless && !words.any(|word| asks(&word.text)) {
        return vec![bind.clone()];
    }
    let port = |address: &super::server::Address| address.socket.map(|socket| socket.port());
    let ports: BTreeSet<_> = bind.addresses.iter().map(port).collect();
    if ports.len() > MAX_PORTS {
        return vec![bind.clone()];
    }
    let of_port = |wanted: Option<u16>| {
        let mut one = bind.clone();
        one.addresses.retain(|address| port(address) == wanted);
        one
    };
    ports.into_iter().map(of_port).collect()
}

fn unavailable() -> Reply {
    Reply { status: 503, ..Reply::default() }
}

/// A backend that no rule leads to: only what is said of its lines counts.
fn unused(config: &Config, proxy: &Proxy, looked: &Looked, notes: &mut Notes) {
    let front = Front {
        name: String::new(),
        is_tcp: proxy.is_tcp,
        is_tls: false,
        captures: proxy.captures,
        to: None,
        port: None,
        usable: BTreeMap::new(),
        variables: config.variables.clone(),
    };
    let mut walk = Walk::new(config, &front, looked, notes);
    walk.back(proxy);
    pools::pool(config, proxy, &proxy.servers, notes);
    let meaning = format!("no rule leads to {}: it is left out", proxy.name);
    notes.dropped(&proxy.place, meaning);
}

fn front(config: &Config, proxy: &Proxy, bind: &Bind) -> Front {
    let sockets: Vec<_> = bind.addresses.iter().map(|address| address.socket).collect();
    let ports: BTreeSet<_> = sockets.iter().flatten().map(|socket| socket.port()).collect();
    let usable = config.proxies.iter().filter(|proxy| proxy.is_backend).map(|proxy| {
        let servers = proxy.servers.iter().filter(|s| !s.is_disabled() && s.weight() > 0);
        (proxy.name.clone(), i64::from(servers.map(|server| server.count).sum::<u32>()))
    });
    Front {
        name: proxy.name.clone(),
        is_tcp: proxy.is_tcp,
        is_tls: bind.settings.contains_key("ssl"),
        captures: proxy.captures,
        to: match sockets.as_slice() {
            [Some(only)] => Some(*only),
            _ => None,
        },
        port: ports.first().copied().filter(|_| ports.len() == 1),
        usable: usable.collect(),
        variables: config.variables.clone(),
    }
}

/// A label of DNS that no other listener has.
fn name(written: &str, names: &mut BTreeSet<String>) -> String {
    let lower = written.to_ascii_lowercase();
    let label: String =
        lower.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(50).collect();
    let label = match label.trim_matches('-') {
        "" => "listener".to_owned(),
        label => label.to_owned(),
    };
    let mut number = 1;
    loop {
        let name = if number == 1 { label.clone() } else { format!("{label}-{number}") };
        if names.insert(name.clone()) {
            return name;
        }
        number += 1;
    }
}
