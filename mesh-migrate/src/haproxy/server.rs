//! `bind` and `server` lines (configuration manual, 5).

use std::{collections::BTreeMap, net::SocketAddr};

use crate::{
    request::Endpoint,
    source::{Place, Problem},
};

use super::{
    certificates::{self, Certificates},
    list::Files,
    tree::Statement,
    words::Word,
};

/// Ports of one range, at most.
const MAX_RANGE: u16 = 1024;

/// Where clients come in.
#[derive(Debug, Clone)]
pub(super) struct Bind {
    /// Where it is written.
    pub(super) place: Place,
    /// All of the line.
    pub(super) addresses: Vec<Address>,
    /// Its parameters with their values.
    pub(super) settings: BTreeMap<String, Vec<String>>,
    /// What `crt` and `crt-list` name.
    pub(super) certificates: Vec<Certificates>,
}

/// One address of a `bind` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// As it is written.
    pub(super) written: String,
    /// `None` for sockets of Unix, names and the like.
    pub(super) socket: Option<SocketAddr>,
}

/// A server, or several that are alike.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// Where it is written.
    pub(super) place: Place,
    /// As it is written; the prefix of a template.
    pub(super) name: String,
    /// Where it listens.
    pub(super) address: String,
    /// `None`: the port that the client has come to, and this added.
    pub(super) port: Result<u16, i32>,
    /// As `server-template` says.
    pub(super) count: u32,
    /// Its parameters with their values, those of `default-server` included; the last
    /// of each.
    pub(super) settings: BTreeMap<String, Vec<String>>,
}

impl Server {
    /// Whether a flag is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.settings.contains_key(name)
    }

    /// The value of a parameter.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.settings.get(name)?.first().map(String::as_str)
    }

    /// Its part, beside others.
    pub(super) fn weight(&self) -> u32 {
        self.value("weight").and_then(|weight| weight.parse().ok()).unwrap_or(1)
    }

    /// Only while no other is well.
    pub(super) fn is_backup(&self) -> bool {
        self.has("backup")
    }

    /// Down by hand.
    pub(super) fn is_disabled(&self) -> bool {
        self.has("disabled")
    }

    /// Where it listens, for clients that have come to `port`.
    pub(super) fn endpoint(&self, port: u16) -> Endpoint {
        let port = match self.port {
            Ok(port) => port,
            Err(more) => u16::try_from(i32::from(port) + more).unwrap_or(0),
        };
        match self.address.parse() {
            Ok(ip) => Endpoint::Address(SocketAddr::new(ip, port)),
            Err(_) if self.address.starts_with('/') || self.address.contains('@') => {
                Endpoint::Name(self.address.clone())
            }
            Err(_) => Endpoint::Name(format!("{}:{port}", self.address)),
        }
    }
}

/// Parameters of servers and binds that take a value.
const VALUED: &[&str] = &[
    "accept-netscaler-cip",
    "addr",
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "alpn",
    "backlog",
    "ca-file",
    "ca-ignore-err",
    "ca-sign-file",
    "ca-sign-pass",
    "ca-verify-file",
    "check-alpn",
    "check-pool-conn-name",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "cookie",
    "crl-file",
    "crt",
    "crt-ignore-err",
    "crt-list",
    "curves",
    "downinter",
    "ecdhe",
    "error-limit",
    "expose-fd",
    "fall",
    "fastinter",
    "gid",
    "group",
    "guid",
    "guid-prefix",
    "hash-key",
    "id",
    "idle-ping",
    "init-addr",
    "init-state",
    "inter",
    "interface",
    "level",
    "log-bufsize",
    "log-proto",
    "max-reuse",
    "maxconn",
    "maxqueue",
    "minconn",
    "mode",
    "mss",
    "name",
    "namespace",
    "nbconn",
    "nice",
    "npn",
    "observe",
    "ocsp-update",
    "on-error",
    "on-marked-down",
    "on-marked-up",
    "pool-conn-name",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "port",
    "process",
    "proto",
    "proxy-v2-options",
    "quic-cc-algo",
    "quic-socket",
    "redir",
    "renegotiate",
    "resolve-net",
    "resolve-opts",
    "resolve-prefer",
    "resolvers",
    "rise",
    "severity-output",
    "shard",
    "shards",
    "sigalgs",
    "slowstart",
    "sni",
    "socks4",
    "source",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-md5sig",
    "tcp-ut",
    "thread",
    "tls-ticket-keys",
    "track",
    "uid",
    "user",
    "usesrc",
    "verify",
    "verifyhost",
    "weight",
    "ws",
];

fn settings(words: &[Word], all: &mut BTreeMap<String, Vec<String>>) -> Result<(), Problem> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.text.as_str();
        let takes = usize::from(VALUED.contains(&name) || name.starts_with("set-proxy-v2-tlv"));
        let values: Vec<String> = words.by_ref().take(takes).map(|w| w.text.clone()).collect();
        if values.len() < takes {
            return Err(Problem::at(&word.place, format!("`{name}` without a value")));
        }
        match name {
            "enabled" => drop(all.remove("disabled")),
            "weight" | "maxconn" | "port" => {
                let number = values[0].trim_end_matches('%').parse::<u32>();
                if number.is_err() {
                    let problem = format!("{:?} for `{name}`; a number was expected", values[0]);
                    return Err(Problem::at(&word.place, problem));
                }
                all.insert(name.to_owned(), values);
            }
            _ => {
                if let Some(off) = name.strip_prefix("no-") {
                    all.remove(off);
                }
                all.insert(name.to_owned(), values);
            }
        }
    }
    Ok(())
}

/// `server NAME ADDRESS …`, `server-template PREFIX COUNT ADDRESS …`.
pub(super) fn server(statement: &Statement, defaults: &[Statement]) -> Result<Server, Problem> {
    let is_template = statement.at(0) == "server-template";
    let at = if is_template { 3 } else { 2 };
    if statement.words.len() <= at {
        let what = if is_template { "prefix, number and address" } else { "name and address" };
        return Err(statement.expected(statement.words.len(), what));
    }
    let count = if is_template { count(statement)? } else { 1 };
    let mut all = BTreeMap::new();
    for default in defaults {
        settings(default.from(1), &mut all)?;
    }
    settings(statement.from(at + 1), &mut all)?;
    let written = statement.at(at);
    let (address, port) = split(written);
    let is_named = address.starts_with('/') || address.contains('@');
    let port = match port {
        None => Err(0),
        // As if there were none.
        Some("0") if !is_named => Err(0),
        Some(port) if port.starts_with(['+', '-']) => {
            Err(port.parse().map_err(|_| statement.expected(at, "an address with a port"))?)
        }
        Some(port) => Ok(port.parse().map_err(|_| statement.expected(at, "a port below 65536"))?),
    };
    Ok(Server {
        place: statement.place.clone(),
        name: statement.at(1).to_owned(),
        address: address.to_owned(),
        port,
        count,
        settings: all,
    })
}

/// `5`, or a range `1-5`.
fn count(statement: &Statement) -> Result<u32, Problem> {
    let wrong = || statement.expected(2, "a number, or a range of numbers");
    let (low, high) = statement.at(2).split_once('-').unwrap_or(("1", statement.at(2)));
    let (low, high): (u32, u32) =
        (low.parse().map_err(|_| wrong())?, high.parse().map_err(|_| wrong())?);
    high.checked_sub(low).map(|more| more.saturating_add(1)).ok_or_else(wrong)
}

/// Address and port, without `ipv4@` and brackets.
fn split(written: &str) -> (&str, Option<&str>) {
    let bare = ["ipv4@", "ipv6@", "tcp@", "tcp4@", "tcp6@"]
        .iter()
        .find_map(|family| written.strip_prefix(family))
        .unwrap_or(written);
    if bare.starts_with('/') || bare.contains('@') {
        return (bare, Some("0"));
    }
    if let Some((inside, after)) = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (inside, after.strip_prefix(':'));
    }
    match bare.rsplit_once(':') {
        Some((address, port)) => (address, Some(port).filter(|port| !port.is_empty())),
        None => (bare, None),
    }
}

/// `bind ADDRESS,… …`.
pub(super) fn bind(statement: &Statement, files: &Files<'_>) -> Result<Bind, Problem> {
    if statement.at(1).is_empty() {
        return Err(statement.expected(1, "an address"));
    }
    let mut addresses = Vec::new();
    for written in statement.at(1).split(',') {
        let (host, port) = split(written);
        let host = match host {
            "" | "*" => "0.0.0.0",
            host => host,
        };
        let Ok(ip) = host.parse() else {
            addresses.push(Address { written: written.to_owned(), socket: None });
            continue;
        };
        let wrong = || statement.expected(1, "an address with a port, or a range of ports");
        let port = port.ok_or_else(wrong)?;
        let (low, high) = port.split_once('-').unwrap_or((port, port));
        let (low, high): (u16, u16) =
            (low.parse().map_err(|_| wrong())?, high.parse().map_err(|_| wrong())?);
        if low > high || high - low >= MAX_RANGE {
            return Err(statement.expected(1, &format!("a range of up to {MAX_RANGE} ports")));
        }
        addresses.extend((low..=high).map(|port| {
            let written = if low == high { written.to_owned() } else { format!("{host}:{port}") };
            Address { written, socket: Some(SocketAddr::new(ip, port)) }
        }));
    }
    let mut all = BTreeMap::new();
    settings(statement.from(2), &mut all)?;
    let certificates = certificates::of(statement, files)?;
    Ok(Bind { place: statement.place.clone(), addresses, settings: all, certificates })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(text: &str) -> Statement {
        let words = text
            .split(' ')
            .map(|word| Word { text: word.to_owned(), place: Place::start(&"a".into()) });
        let place = Place::start(&"a".into());
        Statement { place, is_negated: false, words: words.collect() }
    }

    #[test]
    fn servers_have_addresses() {
        let table = [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1", "10.0.0.1:99"),
            ("10.0.0.1:+1", "10.0.0.1:100"),
            ("[::1]:80", "[::1]:80"),
            ("::1:80", "[::1]:80"),
            ("ipv4@a.example:80", "a.example:80"),
            ("a.example", "a.example:99"),
            ("/run/a.sock", "/run/a.sock"),
            ("unix@a.sock", "unix@a.sock"),
        ];
        for (written, expected) in table {
            let read = server(&statement(&format!("server s {written}")), &[]).unwrap();
            let got = match read.endpoint(99) {
                Endpoint::Address(address) => address.to_string(),
                Endpoint::Name(name) => name,
            };
            assert_eq!(got, expected, "{written}");
        }
        for bad in [
            "server s",
            "server s a:x",
            "server s a:1 weight",
            "server s a:1 weight x",
            "server-template s x a:1",
            "server-template s 3-1 a:1",
        ] {
            assert!(server(&statement(bad), &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_come_first() {
        let defaults = [statement("default-server weight 5 disabled check ssl")];
        let read = server(&statement("server s a:1 enabled no-ssl sni str(x)"), &defaults).unwrap();
        assert_eq!((read.weight(), read.is_disabled(), read.has("check")), (5, false, true));
        assert!(!read.has("ssl") && read.value("sni") == Some("str(x)"));
    }

    #[test]
    fn binds_have_addresses() {
        let open = |_: &str| Err(Problem::at(&Place::start(&"a".into()), "is not there"));
        let files = Files::new(&open);
        let sockets = |text| {
            let read = bind(&statement(text), &files).unwrap();
            let sockets = read.addresses.iter().map(|a| a.socket.map(|s| s.to_string()));
            sockets.map(Option::unwrap_or_default).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            sockets("bind *:80,:443,10.0.0.1:1-2"),
            "0.0.0.0:80 0.0.0.0:443 10.0.0.1:1 10.0.0.1:2"
        );
        assert_eq!(sockets("bind :::80 v4v6"), "[::]:80");
        assert_eq!(sockets("bind /run/a mode 600"), "");
        for bad in ["bind", "bind 10.0.0.1", "bind :1-65000", "bind :x"] {
            assert!(bind(&statement(bad), &files).is_err(), "{bad}");
        }
    }
}
