//! How the health of servers is asked for, and what is said of the lines that say so.

use std::time::Duration;

use crate::program::Check;

use super::super::{proxy::Proxy, server::Server, tree::Statement};
use super::{
    notes::Notes,
    pools::{is_http2, number, time, timeout},
};

/// Of the first server that is checked.
pub(super) fn check(proxy: &Proxy, servers: &[Server], notes: &mut Notes) -> Option<Check> {
    let server = servers.iter().find(|server| server.has("check"))?;
    for other in servers {
        let differs = |name: &&str| server.value(name) != other.value(name);
        let differs = ["port", "inter", "fall", "rise"].iter().find(|name| differs(name));
        if !other.has("check") {
            notes.approximated(&other.place, format!("it is checked, as {} is", server.name));
        } else if let Some(name) = differs {
            let how = format!("it is checked with `{name}` of {}", server.name);
            notes.approximated(&other.place, how);
        }
    }
    ports(servers, notes);
    let mut check = Check {
        path: None,
        host: None,
        statuses: Vec::new(),
        port: other_port(server),
        interval: server.value("inter").and_then(time).unwrap_or(Duration::from_secs(2)),
        timeout: timeout(proxy, "check"),
        fall: number(server, "fall").unwrap_or(3),
        rise: number(server, "rise").unwrap_or(2),
    };
    let Some(option) = proxy.option("httpchk") else { return Some(check) };
    if proxy.is_tcp || is_http2(servers) {
        connects(proxy, option, servers, notes);
    } else {
        over_http(proxy, option, &mut check, notes);
    }
    Some(check)
}

/// Another port than that of the traffic.
fn other_port(server: &Server) -> Option<u16> {
    let port = number(server, "port").and_then(|port| u16::try_from(port).ok());
    port.filter(|port| server.port != Ok(*port))
}

fn ports(servers: &[Server], notes: &mut Notes) {
    for server in servers.iter().filter(|server| server.has("check")) {
        let Some(port) = other_port(server) else { continue };
        let question = format!(
            "its checks go to the port of the traffic, and not to {port}: what answers there must be what is asked for"
        );
        notes.decision(&server.place, question, &["leave it so", "answer checks there"]);
    }
}

/// Ours asks over HTTP/1.1 alone, and where requests go on as such.
fn connects(proxy: &Proxy, option: &Statement, servers: &[Server], notes: &mut Notes) {
    let question = "ours only asks whether a connection comes, and not over HTTP: \
                    a server that answers checks with an error, as a replica does, takes traffic, too";
    let choices =
        ["leave it so", "name the servers that may take it", "let the application refuse"];
    let lines = proxy.checks.iter().filter(|statement| statement.at(0) == "http-check");
    let checked = servers.iter().filter(|server| server.has("check"));
    let places = lines.map(|statement| &statement.place).chain(checked.map(|server| &server.place));
    for place in places.chain([&option.place]) {
        notes.decision(place, question, &choices);
    }
}

fn over_http(proxy: &Proxy, option: &Statement, check: &mut Check, notes: &mut Notes) {
    notes.approximated(&option.place, asked(option));
    let (mut place, mut path) = match option.from(2) {
        [only] => (&option.place, only.text.as_str()),
        [_, path, ..] => (&option.place, path.text.as_str()),
        [] => (&option.place, "/"),
    };
    for statement in proxy.checks.iter().filter(|statement| statement.at(0) == "http-check") {
        let texts: Vec<&str> = statement.words.iter().map(|word| word.text.as_str()).collect();
        if statement.at(1) == "expect" {
            // What is not to be is told at the line.
            let is_negated = texts.contains(&"!");
            check.statuses = statuses(&texts).filter(|_| !is_negated).unwrap_or_default();
        }
        if let Some(at) = texts.iter().position(|text| matches!(*text, "uri" | "uri-lf")) {
            (place, path) = (&statement.place, texts.get(at + 1).copied().unwrap_or("/"));
        }
        let host = texts.windows(3).find(|w| w[0] == "hdr" && w[1].eq_ignore_ascii_case("host"));
        if let Some(host) = host.map(|host| host[2]) {
            let question = format!(
                "checks have the service's name as Host with us, and not {host}: an application that knows its own names only may refuse them"
            );
            let choices = ["let checks be answered whatever Host says", "leave it so"];
            notes.decision(&statement.place, question, &choices);
            check.host = Some(host.to_owned());
        }
    }
    // As it must be in a request (RFC 9112 section 3.2.1).
    let is_sent = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !path.starts_with('/') || !is_sent {
        let how = format!("checks ask for /, and not for {path:?}");
        notes.approximated(place, how);
        path = "/";
    }
    check.path = Some(path.to_owned());
}

/// What ours asks instead.
fn asked(option: &Statement) -> String {
    let with = match option.from(2) {
        [method, _, ..] if method.text == "GET" => "",
        [] | [_] => " with GET, not OPTIONS,",
        _ => " with GET",
    };
    let (version, theirs) = match option.from(2) {
        [_, _, version, ..] => (version.text.as_str(), ""),
        _ => ("HTTP/1.0", "; HAProxy's are of HTTP/1.0 without Host"),
    };
    let (_, host) = version.split_once('\n').unwrap_or_default();
    let not = if host.is_empty() { String::new() } else { format!(", not with {:?}", host.trim()) };
    format!("checks are made{with} by HTTP/1.1 with the service's name as Host{not}{theirs}")
}

/// `expect status 200,204 300-302`.
pub(super) fn statuses(texts: &[&str]) -> Option<Vec<u16>> {
    let at = texts.iter().position(|text| *text == "status")?;
    let mut all = Vec::new();
    for part in texts.get(at + 1)?.split(',') {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u16, u16) = (low.parse().ok()?, high.parse().ok()?);
        all.extend((low..=high.min(599)).filter(|status| *status >= 100));
    }
    Some(all)
}
