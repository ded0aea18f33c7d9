//! A [`Program`] as our own objects: what `edge-proxy --config` runs, and the rules
//! that `meshctl apply` takes.
//!
//! A listener is a service without endpoints: its HTTPRoute has the rules, in their
//! order, and its TrafficPolicy what Gateway API cannot say. A pool is a service whose
//! endpoints have no proxy.

mod clause;
mod connections;
pub(crate) mod headers;
mod pool;
mod redirect;
mod route;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde_json::{Map, Value, json};

use crate::{
    ledger::Ledger,
    program::{Accepts, Forwarded, Listener, PathForm, Paths, Program, Then},
    request::Endpoint,
};

/// Of a label and its namespace: with a number behind them they are an endpoint's id, which
/// has 64 at most.
const MAX_LABEL: usize = 57;
const MIN_LABEL: usize = 16;
/// Rules of one listener, at most.
const MAX_RULES: usize = 1000;
/// Port of a pool where it is asked for requests, and for connections.
const REQUESTS: u16 = 80;
const CONNECTIONS: u16 = 81;

/// What is written beside what the configuration says.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Namespace of all services.
    pub namespace: &'a str,
    /// Site that the proxy belongs to.
    pub site: &'a str,
    /// Addresses of a name of DNS; none if it has none.
    pub resolve: &'a dyn Fn(&str) -> Vec<std::net::IpAddr>,
    /// When TLS with certificates of the configuration ends, as it is written;
    /// without it there is none.
    pub tls_until: Option<&'a str>,
}

/// The files of a converted configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Objects {
    /// `proxy.yaml`.
    pub proxy: Value,
    /// `site.yaml`.
    pub site: Value,
    /// `rules.yaml`, a document each.
    pub rules: Vec<Value>,
}

impl Objects {
    /// Names and contents; the same for the same program, byte by byte.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let one = |value: &Value| {
            serde_yaml_ng::to_string(value).expect("JSON values have a form in YAML")
        };
        let rules: Vec<String> = self.rules.iter().map(one).collect();
        vec![
            ("proxy.yaml", one(&self.proxy)),
            ("site.yaml", one(&self.site)),
            ("rules.yaml", rules.join("---\n")),
        ]
    }
}

/// What a program is with us; what is different then is said in the ledger.
pub fn objects(program: &Program, wanted: &Wanted<'_>, ledger: &mut Ledger) -> Objects {
    // What all listeners do is the proxy's.
    let mut ways = program.listeners.iter().filter_map(|listener| match &listener.accepts {
        Accepts::Http { forwarded, .. } => Some(*forwarded),
        Accepts::Tcp { .. } => None,
    });
    let first = ways.next();
    let forwarded = first.filter(|first| ways.all(|way| way == *first));
    let mut making = Making {
        forwarded,
        wanted,
        ledger,
        names: Names::default(),
        documents: Vec::new(),
        services: Vec::new(),
        listens: Vec::new(),
        spoken: BTreeMap::new(),
    };
    making.names.longest = MAX_LABEL.saturating_sub(wanted.namespace.len()).max(MIN_LABEL);
    making.names.all(program);
    let mut used: BTreeMap<&str, Use> = BTreeMap::new();
    for listener in &program.listeners {
        for (pool, of) in pools_of(listener) {
            used.entry(pool).or_default().add(of);
        }
    }
    for listener in &program.listeners {
        making.listener(listener);
    }
    for (name, pool) in &program.pools {
        if let Some(of) = used.get(name.as_str()) {
            making.pool(name, pool, *of);
        }
    }
    let mut proxy = json!({
        "snapshot": { "file": "site.yaml" },
        "http_listener": "off",
        "listeners": making.listens,
        "admin": "127.0.0.1:4192",
    });
    if let Some(forwarded) = forwarded {
        proxy["forwarded"] = said(forwarded).into();
    }
    let site = json!({
        "site": wanted.site,
        "trust_domain": format!("{}.example", wanted.site),
        "services": making.services,
        "manifests": ["rules.yaml"],
    });
    Objects { proxy, site, rules: making.documents }
}

/// As our proxy has it.
fn said(forwarded: Forwarded) -> &'static str {
    match forwarded {
        Forwarded::Keep => "keep",
        Forwarded::Append => "append",
        Forwarded::Replace => "replace",
    }
}

/// As our proxy has it; `None` for paths as they are sent.
fn form(paths: Paths) -> Option<Value> {
    let name = match paths.form {
        PathForm::Sent if !paths.merge_slashes => return None,
        PathForm::Sent => "sent",
        PathForm::Rfc3986 => "rfc3986",
        PathForm::Decoded => "decoded",
    };
    let flag = |flag: bool| flag.then_some(Value::Bool(true));
    Some(object([
        ("form", Some(name.into())),
        ("merge_slashes", flag(paths.merge_slashes)),
        ("forward_as_sent", flag(paths.as_sent)),
    ]))
}

/// What a pool is asked for.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    requests: bool,
    connections: bool,
}

impl Use {
    fn add(&mut self, connections: bool) {
        self.connections |= connections;
        self.requests |= !connections;
    }
}

/// Pools that a listener leads to, and whether with connections.
fn pools_of(listener: &Listener) -> Vec<(&str, bool)> {
    match &listener.accepts {
        Accepts::Http { rules, .. } => {
            let forwards = rules.iter().filter_map(|rule| match &rule.then {
                Then::Forward(forward) => Some(forward),
                Then::Reply(_) => None,
            });
            forwards
                .flat_map(|forward| {
                    let mirrors = forward.mirrors.iter().map(|(pool, _)| pool.as_str());
                    forward.pools.iter().map(|(pool, _)| pool.as_str()).chain(mirrors)
                })
                .map(|pool| (pool, false))
                .collect()
        }
        Accepts::Tcp { rules } => {
            let pools = rules.iter().flat_map(|rule| &rule.pools);
            pools.map(|(pool, _)| (pool.as_str(), true)).collect()
        }
    }
}

struct Making<'p> {
    /// What becomes of `X-Forwarded-For` at every listener, if it is the same.
    forwarded: Option<Forwarded>,
    wanted: &'p Wanted<'p>,
    ledger: &'p mut Ledger,
    names: Names,
    documents: Vec<Value>,
    services: Vec<Value>,
    listens: Vec<Value>,
    /// `tls` of whoever is dialled at an address.
    spoken: BTreeMap<SocketAddr, Option<Value>>,
}

impl Making<'_> {
    fn listener(&mut self, listener: &Listener) {
        let name = self.names.of_listener(&listener.name);
        let is_http = matches!(listener.accepts, Accepts::Http { .. });
        let (port, protocol) = if is_http { ("http", "http") } else { ("tcp", "tcp") };
        let Some(first) = listener.addresses.first() else {
            self.ledger.decision(
                &listener.place,
                "it listens at no address that is known here: where shall it?",
                &["write the address into the configuration and import it again"],
            );
            return;
        };
        let tls = listener.tls.as_ref().and_then(|tls| self.server_tls(&listener.place, tls));
        let asks = listener.tls.as_ref().is_some_and(|tls| tls.client_roots.is_some());
        if asks && tls.is_none() {
            // Whom it would let in is not who it lets in now.
            self.ledger.decision(
                &listener.place,
                "its clients show certificates, which nobody would ask them for: it is left out",
                &["see what is asked about its TLS", "leave it with the legacy proxy"],
            );
            return;
        }
        let service = format!("{name}.{}", self.wanted.namespace);
        self.services.push(json!({
            "name": service,
            "ports": [{ "name": port, "port": first.port(), "protocol": protocol }],
        }));
        for address in &listener.addresses {
            let mut listen = tls::listen(*address, &service, port, tls.as_ref());
            if let Accepts::Http { forwarded, paths, drops_underscores, brief_errors, .. } =
                &listener.accepts
            {
                if *brief_errors {
                    listen["errors"] = "brief".into();
                }
                if *drops_underscores {
                    listen["headers_with_underscores"] = "drop".into();
                }
                if self.forwarded.is_none() {
                    listen["forwarded"] = said(*forwarded).into();
                }
                if let Some(paths) = form(*paths) {
                    listen["paths"] = paths;
                }
            }
            self.listens.push(listen);
        }
        match &listener.accepts {
            Accepts::Http { rules, otherwise, .. } => {
                self.http_rules(&name, first.port(), &listener.place, rules, otherwise);
            }
            Accepts::Tcp { rules } => self.tcp_rules(&name, first.port(), rules),
        }
    }

    fn metadata(&self, name: &str) -> Value {
        json!({ "name": name, "namespace": self.wanted.namespace })
    }

    /// Addresses of an endpoint.
    fn addresses(&self, endpoint: &Endpoint) -> Vec<SocketAddr> {
        match endpoint {
            Endpoint::Address(address) => vec![*address],
            Endpoint::Name(name) => {
                let Some((host, port)) = name.rsplit_once(':') else { return Vec::new() };
                let Ok(port) = port.parse() else { return Vec::new() };
                let mut found = (self.wanted.resolve)(host);
                found.sort_unstable();
                found.dedup();
                found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
            }
        }
    }
}

/// Names of the source as names of services: labels of DNS, each once.
#[derive(Debug)]
struct Names {
    listeners: BTreeMap<String, String>,
    pools: BTreeMap<String, String>,
    taken: BTreeSet<String>,
    /// How long a label may be.
    longest: usize,
}

impl Default for Names {
    fn default() -> Self {
        let (listeners, pools, taken) = Default::default();
        Self { listeners, pools, taken, longest: 63 }
    }
}

impl Names {
    fn all(&mut self, program: &Program) {
        for listener in &program.listeners {
            let label = self.free(&listener.name);
            self.listeners.insert(listener.name.clone(), label);
        }
        for name in program.pools.keys() {
            let label = self.free(name);
            self.pools.insert(name.clone(), label);
        }
    }

    fn of_listener(&self, name: &str) -> String {
        self.listeners.get(name).cloned().unwrap_or_default()
    }

    /// `None` for a pool that there is not.
    fn of_pool(&self, name: &str) -> Option<&str> {
        self.pools.get(name).map(String::as_str)
    }

    fn free(&mut self, name: &str) -> String {
        let mut wanted = label(name);
        wanted.truncate(self.longest);
        let wanted = wanted.trim_end_matches('-').to_owned();
        let cut = wanted.len().min(self.longest.saturating_sub(7));
        let numbered = (2..).map(|n| format!("{}-{n}", wanted[..cut].trim_end_matches('-')));
        let found =
            std::iter::once(wanted.clone()).chain(numbered).find(|l| !self.taken.contains(l));
        let found = found.expect("there are more numbers than names");
        self.taken.insert(found.clone());
        found
    }
}

/// What a name of the source is as a label of DNS (RFC 1123): at most 63 of a-z, 0-9
/// and `-` between them.
pub fn label(name: &str) -> String {
    let mut label = String::new();
    for c in name.chars().map(|c| c.to_ascii_lowercase()) {
        let good = c.is_ascii_lowercase() || c.is_ascii_digit();
        if good {
            label.push(c);
        } else if !label.ends_with('-') && !label.is_empty() {
            label.push('-');
        }
    }
    label.truncate(63);
    let label = label.trim_matches('-');
    if label.is_empty() { "x".to_owned() } else { label.to_owned() }
}

/// Keys whose value says something.
fn object(entries: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let some = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(some.collect::<Map<_, _>>())
}

fn some_list(values: Vec<Value>) -> Option<Value> {
    (!values.is_empty()).then(|| values.into())
}

/// As our files have them.
fn duration(duration: std::time::Duration) -> Value {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".into(),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000).into(),
        _ => format!("{millis}ms").into(),
    }
}

#[cfg(test)]
mod tests;
