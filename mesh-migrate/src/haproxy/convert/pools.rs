//! Backends as pools.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    program::{Balance, ClientTls, Key, Limits, Member, Outlier, Pool},
    request::Endpoint,
};

use super::super::{
    Config,
    acl::canonical,
    proxy::Proxy,
    sample::{self, Expression},
    server::Server,
    tree::Statement,
};
use super::{checks, names, notes::Notes};

pub(super) fn pool(config: &Config, proxy: &Proxy, servers: &[Server], notes: &mut Notes) -> Pool {
    pool_at(config, proxy, servers, None, notes)
}

/// The same, where clients have come to this port.
pub(super) fn pool_at(
    config: &Config,
    proxy: &Proxy,
    servers: &[Server],
    came_to: Option<u16>,
    notes: &mut Notes,
) -> Pool {
    let mut members = Vec::new();
    let mut backups = 0;
    for server in servers {
        if server.is_backup() && (backups == 0 || proxy.option("allbackups").is_none()) {
            backups += 1;
        }
        let port = came_to.unwrap_or_else(|| port(config, proxy, server, notes));
        let endpoint = server.endpoint(port);
        let is_elsewhere = match &endpoint {
            Endpoint::Address(address) => address.ip().is_unspecified(),
            Endpoint::Name(name) => name.starts_with('/') || name.contains('@'),
        };
        if is_elsewhere {
            let question =
                format!("{} is no address to connect to: it is left out", server.address);
            notes.decision(&server.place, question, &["give it an address", "leave it so"]);
            continue;
        }
        if server.count > 1 {
            let how = "one member with all addresses of the name, however many they are";
            notes.approximated(&server.place, how);
        }
        members.push(Member {
            place: server.place.clone(),
            endpoint,
            weight: server.weight().saturating_mul(server.count),
            priority: if server.is_backup() { backups } else { 0 },
            is_disabled: server.is_disabled(),
            max_requests: number(server, "maxconn").unwrap_or(0),
        });
    }
    Pool {
        // Who fails his checks takes nothing, as long as one does not.
        panic_percent: servers.iter().any(|server| server.has("check")).then_some(0),
        place: proxy.place.clone(),
        members,
        balance: balance(proxy, notes),
        connect_timeout: timeout(proxy, "connect"),
        idle_timeout: timeout(proxy, "server"),
        check: checks::check(proxy, servers, notes),
        outlier: outlier(servers),
        tls: tls(config, servers, notes),
        is_http2: is_http2(servers),
        limits: Limits::default(),
    }
}

pub(super) fn is_http2(servers: &[Server]) -> bool {
    let is_first = |alpn: &str| alpn.split(',').next() == Some("h2");
    servers.iter().any(|server| {
        server.value("proto") == Some("h2") || server.value("alpn").is_some_and(is_first)
    })
}

/// Whether a server has no port of its own: it is that which clients have come to.
pub(super) fn is_by_port(proxy: &Proxy) -> bool {
    proxy.servers.iter().any(|server| server.port.is_err())
}

/// Ports that clients of a proxy may have come to.
pub(super) fn ports(config: &Config, proxy: &Proxy) -> BTreeSet<u16> {
    let fronts = config.proxies.iter().filter(|front| match proxy.is_frontend {
        true => front.name == proxy.name,
        false => front.is_frontend && front.is_tcp == proxy.is_tcp,
    });
    let binds = fronts.flat_map(|front| &front.binds).flat_map(|bind| &bind.addresses);
    binds.filter_map(|a| a.socket).map(|socket| socket.port()).collect()
}

/// The port that clients have come to, where a server has none of its own.
fn port(config: &Config, proxy: &Proxy, server: &Server, notes: &mut Notes) -> u16 {
    if server.port.is_ok() {
        return 0;
    }
    let ports = ports(config, proxy);
    if ports.len() != 1 {
        let question = "its port is that which clients have come to, and there are several";
        notes.decision(&server.place, question, &["give it a port"]);
    }
    ports.first().copied().unwrap_or(0)
}

pub(super) fn number(server: &Server, name: &str) -> Option<u32> {
    server.value(name)?.parse().ok()
}

/// A time: milliseconds where no unit is said.
pub(super) fn time(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "us" => Duration::from_micros(number),
        "" | "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "d" => Duration::from_secs(number.checked_mul(86_400)?),
        _ => return None,
    })
}

pub(super) fn timeout(proxy: &Proxy, name: &str) -> Option<Duration> {
    time(proxy.setting(&format!("timeout {name}"))?.at(2))
}

fn balance(proxy: &Proxy, notes: &mut Notes) -> Balance {
    let is_cookie = |cookie: &&Statement| names::is_token(cookie.at(1)) && !proxy.is_tcp;
    if let Some(cookie) = proxy.setting("cookie").filter(is_cookie) {
        for (place, _) in &proxy.sticks {
            notes.approximated(place, "clients are assigned by the cookie alone, and not by this");
        }
        let life = words_of(cookie, "maxlife").and_then(time);
        let life = if cookie.from(2).iter().any(|word| word.text == "insert") {
            Some(life.unwrap_or(Duration::ZERO))
        } else {
            None
        };
        return Balance::Hash(Key::Cookie(cookie.at(1).to_owned(), life));
    }
    if let Some(key) = stuck(proxy, notes) {
        return Balance::Hash(key);
    }
    let argument = proxy.balance.get(1).map(String::as_str).unwrap_or_default();
    let kind = proxy.balance.first().map(String::as_str).unwrap_or("roundrobin");
    if proxy.is_tcp && (kind.starts_with("hdr(") || matches!(kind, "uri" | "url_param")) {
        return Balance::RoundRobin;
    }
    if let Some(name) = kind.strip_prefix("hdr(").and_then(|name| name.strip_suffix(')')) {
        if !names::is_token(name) {
            return Balance::RoundRobin;
        }
        return Balance::Hash(Key::Header(name.to_owned()));
    }
    match kind {
        "leastconn" => Balance::LeastLoaded,
        "first" => Balance::First,
        "source" => Balance::Hash(Key::Source),
        "uri" => {
            let mut words = proxy.balance.iter().skip_while(|word| *word != "depth");
            let depth = words.nth(1).and_then(|depth| depth.parse().ok()).unwrap_or(0);
            Balance::Hash(Key::Path(depth))
        }
        "url_param" => Balance::Hash(Key::Query(argument.to_owned())),
        "hash" => key_of(argument).map_or(Balance::RoundRobin, Balance::Hash),
        random if random == "random" || random.starts_with("random(") => Balance::Random,
        _ => Balance::RoundRobin,
    }
}

/// The key of the first line of `stick`; there are no others with us.
fn stuck(proxy: &Proxy, notes: &mut Notes) -> Option<Key> {
    let ((place, text), others) = proxy.sticks.split_first()?;
    let key = key_of(text);
    match key {
        Some(_) => notes.approximated(place, "clients are assigned by hash of the same key"),
        None => {
            let question = format!("clients do not stick by {text}");
            notes.decision(place, question, &["leave it so", "stick by another key"]);
        }
    }
    for (other, _) in others.iter().filter(|(other, _)| other.line != place.line) {
        notes.approximated(other, format!("clients do not stick by this, but by {text} alone"));
    }
    key
}

/// The header that an endpoint is chosen by.
pub(super) fn hashed_header(proxy: &Proxy) -> Option<String> {
    match balance(proxy, &mut Notes::default()) {
        Balance::Hash(Key::Header(name)) => Some(name.to_ascii_lowercase()),
        Balance::Hash(Key::Cookie(..)) => Some("cookie".to_owned()),
        _ => None,
    }
}

fn words_of<'s>(statement: &'s Statement, name: &str) -> Option<&'s str> {
    let mut words = statement.words.iter().skip_while(|word| word.text != name);
    words.nth(1).map(|word| word.text.as_str())
}

/// What a sample is as the key of a hash.
pub(super) fn key_of(text: &str) -> Option<Key> {
    let nothing = |name: &str| Ok(crate::source::Source::of(name, ""));
    let files = super::super::list::Files::new(&nothing);
    let place = crate::source::Place::start(&"".into());
    let Expression { fetch, converters, .. } = sample::expression(text, &place, &files).ok()?;
    if !converters.iter().all(|call| matches!(call.name.as_str(), "lower" | "upper")) {
        return None;
    }
    let first = fetch.argument(0).to_owned();
    match canonical(&fetch.name) {
        "src" => Some(Key::Source),
        "path" => Some(Key::Path(0)),
        "req.hdr" | "req.fhdr" if names::is_token(&first) => Some(Key::Header(first)),
        "req.cook" if names::is_token(&first) => Some(Key::Cookie(first, None)),
        "url_param" => Some(Key::Query(first)),
        _ => None,
    }
}

fn outlier(servers: &[Server]) -> Option<Outlier> {
    let server = servers.iter().find(|server| server.has("observe"))?;
    let failures = number(server, "error-limit").unwrap_or(10);
    Some(Outlier { failures, ejection: Duration::from_secs(10) })
}

fn tls(config: &Config, servers: &[Server], notes: &mut Notes) -> Option<ClientTls> {
    let server = servers.iter().find(|server| server.has("ssl"))?;
    if let Some(plain) = servers.iter().find(|server| !server.has("ssl")) {
        let question = format!("{} is spoken to in TLS, as is {}", plain.name, server.name);
        notes.decision(&plain.place, question, &["make a backend of it", "leave it so"]);
    }
    let sni = server.value("sni").and_then(|sni| sni.strip_prefix("str(")?.strip_suffix(')'));
    let server_name = sni.or(server.value("verifyhost")).map(str::to_owned);
    let is_proved = server.value("verify") != Some("none");
    let roots = server.value("ca-file").filter(|_| is_proved);
    let roots = roots.map(|roots| super::tls::based(config, "ca-base", roots));
    let certificate = server.value("crt").map(|crt| super::tls::based(config, "crt-base", crt));
    let certificate = certificate.map(|both| (both.clone(), both));
    Some(ClientTls { server_name, roots, certificate })
}
