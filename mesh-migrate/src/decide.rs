//! What a [`Program`] does with a request: the plainest reading of it, rule by rule,
//! to compare conversions with what the legacy proxy would have done.

mod change;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use change::changed;
use regex::bytes::RegexBuilder;

use crate::{
    nginx::uri,
    paths,
    program::{
        Accepts, Balance, Change, Condition, Forward, Forwarded, Key, Listener, Location,
        PathChange, Pool, Program, Reply, Rule, Said, SaidChange, TcpRule, Text, Then,
    },
    request,
    request::{Answer, Endpoint, Http, Kind, Outcome, Request, Step},
    source::Place,
};

/// What a compiled pattern may take, in bytes.
const MAX_PATTERN: usize = 4 << 20;

/// What the program does with the request.
///
/// Listeners are known by name or by address, as `Request::listener` has it; one at all
/// addresses by each of them. Changed
/// headers are told as the application gets them, in order of their names, values of
/// one name joined by `, `. A pattern that does not compile matches nothing.
pub fn decide(program: &Program, request: &Request) -> Answer {
    let mut why = Vec::new();
    let Some(listener) = listener(program, request) else {
        let asked = request.listener.as_deref().unwrap_or("the only listener");
        why.push(Step { place: None, what: format!("there is no listener {asked}") });
        return Answer { outcome: Outcome::Closed, why };
    };
    step(&mut why, &listener.place, format!("listener {}", listener.name));
    let absolute = match &request.kind {
        Kind::Http(http) => paths::absolute(http).map(Kind::Http),
        Kind::Connection { .. } => None,
    };
    let outcome = match (&listener.accepts, absolute.as_ref().unwrap_or(&request.kind)) {
        (
            Accepts::Http { rules, otherwise, forwarded, paths, drops_underscores, .. },
            Kind::Http(http),
        ) => match paths::seen(*paths, &http.target) {
            Some(seen) => {
                let sent = if paths.as_sent { &http.target } else { &seen.target };
                let mut http = Http { target: seen.target.clone(), ..http.clone() };
                http.headers.retain(|(name, _)| !drops_underscores || !name.contains('_'));
                let (decoded, is_tls) = (seen.decoded, listener.tls.is_some());
                let at = Asked { http: &http, decoded, sent, source: request.source, is_tls };
                at.outcome(program, rules, otherwise, *forwarded, &mut why)
            }
            None => {
                why.push(Step { place: None, what: "the path has no plain form".into() });
                Outcome::Answered { status: 400, headers: Vec::new(), body: None }
            }
        },
        (Accepts::Http { .. }, Kind::Connection { .. }) => {
            step(&mut why, &listener.place, "takes HTTP only".into());
            Outcome::Closed
        }
        (Accepts::Tcp { rules }, Kind::Connection { server_name }) => {
            connection(program, rules, server_name.as_deref(), request.source, &mut why)
        }
        (Accepts::Tcp { rules }, Kind::Http(_)) => {
            connection(program, rules, None, request.source, &mut why)
        }
    };
    Answer { outcome, why }
}

fn listener<'p>(program: &'p Program, request: &Request) -> Option<&'p Listener> {
    let Some(asked) = &request.listener else {
        return match program.listeners.as_slice() {
            [only] => Some(only),
            _ => None,
        };
    };
    let named = program.listeners.iter().find(|listener| listener.name == *asked);
    named.or_else(|| {
        let address: SocketAddr = asked.parse().ok()?;
        let at = |address| program.listeners.iter().find(|l| l.addresses.contains(&address));
        let any = |ip: IpAddr| at(SocketAddr::new(ip, address.port()));
        let of_v4 = || any(Ipv4Addr::UNSPECIFIED.into()).filter(|_| address.is_ipv4());
        // What is of IPv6 takes both, as Linux has it.
        at(address).or_else(of_v4).or_else(|| any(Ipv6Addr::UNSPECIFIED.into()))
    })
}

fn step(why: &mut Vec<Step>, place: &Place, what: String) {
    why.push(Step { place: Some(place.clone()), what });
}

fn connection(
    program: &Program,
    rules: &[TcpRule],
    server_name: Option<&str>,
    source: IpAddr,
    why: &mut Vec<Step>,
) -> Outcome {
    let by_client = TcpRule::are_by_client(rules);
    let holds = |rule: &&TcpRule| {
        let (names, clients) = (&rule.server_names, &rule.clients);
        if by_client && !names.is_empty() {
            return false;
        }
        let one_has = |blocks: &[String]| blocks.iter().any(|block| within(block, source));
        if !clients.within.is_empty() && !one_has(&clients.within) || one_has(&clients.outside) {
            return false;
        }
        names.is_empty() || server_name.is_some_and(|name| names.iter().any(|n| covers(n, name)))
    };
    let Some(rule) = rules.iter().find(holds) else {
        why.push(Step { place: None, what: "no rule takes the connection".into() });
        return Outcome::Closed;
    };
    let to = rule.pools.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    step(why, &rule.place, format!("goes to {to}"));
    let nothing = Http {
        method: String::new(),
        host: None,
        target: String::new(),
        headers: Vec::new(),
        is_http10: false,
    };
    let at = Asked { http: &nothing, decoded: None, sent: "", source, is_tls: false };
    let mut forwarded = at.pools(program, &rule.pools);
    if forwarded.endpoints.is_empty() {
        why.push(Step { place: None, what: "nobody is there to take it".into() });
        return Outcome::Closed;
    }
    forwarded.target = None;
    Outcome::Forwarded(forwarded)
}

/// Whether a name of TLS is meant by `pattern`.
fn covers(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(below) => {
            let at = name.len().checked_sub(below.len()).filter(|at| *at > 0);
            at.and_then(|at| name.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(below))
        }
        None => name.eq_ignore_ascii_case(pattern),
    }
}

struct Asked<'a> {
    /// With the target that rules see.
    http: &'a Http,
    /// Its path without escapes, where it is compared so and has some.
    decoded: Option<Vec<u8>>,
    /// The target that applications get, unless the path is changed.
    sent: &'a str,
    source: IpAddr,
    is_tls: bool,
}

impl Asked<'_> {
    fn outcome(
        &self,
        program: &Program,
        rules: &[Rule],
        otherwise: &Reply,
        xff: Forwarded,
        why: &mut Vec<Step>,
    ) -> Outcome {
        let Some(rule) = rules.iter().find(|rule| self.holds(&rule.when)) else {
            why.push(Step { place: None, what: "no rule takes the request".into() });
            return self.reply(otherwise);
        };
        match &rule.then {
            Then::Reply(reply) => {
                step(why, &rule.place, format!("answers {}", reply.status));
                self.reply(reply)
            }
            Then::Forward(forward) => {
                let to: Vec<&str> = forward.pools.iter().map(|(name, _)| name.as_str()).collect();
                step(why, &rule.place, format!("goes to {}", to.join(", ")));
                let mut forwarded = self.pools(program, &forward.pools);
                if forwarded.endpoints.is_empty() {
                    why.push(Step { place: None, what: "nobody is there to take it".into() });
                    return Outcome::Answered { status: 503, headers: Vec::new(), body: None };
                }
                forwarded.target = Some(self.target(forward.path.as_ref(), forward.strip_query));
                forwarded.headers = self.headers(forward, xff);
                Outcome::Forwarded(forwarded)
            }
        }
    }

    /// As it is compared.
    fn path(&self) -> &[u8] {
        self.decoded.as_deref().unwrap_or(self.http.path().as_bytes())
    }

    fn target(&self, change: Option<&PathChange>, strip_query: bool) -> String {
        let kept = |kept: &[u8]| match self.decoded {
            Some(_) => uri::escaped(kept),
            None => kept.to_vec(),
        };
        let path = change.and_then(|change| changed(self.path(), change, kept));
        if path.is_none() && !strip_query {
            return self.sent.to_owned();
        }
        let path = path.unwrap_or_else(|| self.http.path().to_owned());
        with_query(path, self.http.query().filter(|_| !strip_query))
    }

    fn holds(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Always => true,
            Condition::All(all) => all.iter().all(|one| self.holds(one)),
            Condition::Any(any) => any.iter().any(|one| self.holds(one)),
            Condition::Not(other) => !self.holds(other),
            Condition::Path(text) => is_bytes(text, self.path()),
            Condition::Method(methods) => methods.contains(&self.http.method),
            Condition::Header(name, text) => {
                self.values(name).into_iter().any(|value| is(text, Some(value)))
            }
            Condition::Query(name, text) => is(text, parameter(self.http, name)),
            Condition::Said(said, text) => {
                let value = self.said(said);
                match text {
                    Text::Present => !value.is_empty(),
                    text => is(text, Some(&value)),
                }
            }
            Condition::Source(blocks) => blocks.iter().any(|block| within(block, self.source)),
        }
    }

    fn values(&self, name: &str) -> Vec<&str> {
        if name.eq_ignore_ascii_case("host") {
            return self.http.host.as_deref().into_iter().collect();
        }
        let named = self.http.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    fn reply(&self, reply: &Reply) -> Outcome {
        let mut headers = reply.headers.clone();
        if let Some(location) = &reply.location {
            headers.push(("location".into(), self.location(location)));
        }
        let told = reply.told.iter().map(|(name, said)| (name.clone(), self.said(said)));
        headers.extend(told.filter(|(_, value)| !value.is_empty()));
        let body = reply.text.as_ref().map_or_else(|| reply.body.clone(), |said| self.said(said));
        let body = Some(body).filter(|body| !body.is_empty());
        Outcome::Answered { status: reply.status, headers, body }
    }

    /// Absolute where more than the path is another.
    fn location(&self, to: &Location) -> String {
        let path = self.target(to.path.as_ref(), to.strip_query);
        if to.scheme.is_none() && to.host.is_none() && to.port.is_none() {
            return path;
        }
        let scheme = to.scheme.as_deref().unwrap_or(if self.is_tls { "https" } else { "http" });
        let asked = self.http.host.as_deref().unwrap_or_default();
        let host = to.host.as_deref().unwrap_or_else(|| without_port(asked));
        let own = if scheme == "https" { 443 } else { 80 };
        match to.port.filter(|port| *port != own) {
            Some(port) => format!("{scheme}://{host}:{port}{path}"),
            None => format!("{scheme}://{host}{path}"),
        }
    }

    fn headers(&self, forward: &Forward, xff: Forwarded) -> Vec<(String, Option<String>)> {
        let mut names: Vec<&str> = forward.remove.iter().map(String::as_str).collect();
        names.extend(forward.set.iter().chain(&forward.add).map(|(name, _)| name.as_str()));
        let tell = forward.tell.iter().chain(&forward.tell_more);
        names.extend(tell.map(|(name, _)| name.as_str()));
        names.extend((xff != Forwarded::Keep).then_some("x-forwarded-for"));
        names.extend(forward.host.as_ref().map(|_| "host"));
        names.sort_unstable();
        names.dedup();
        let client = self.source.to_string();
        let told: Vec<(&str, String)> =
            forward.tell.iter().map(|(name, said)| (name.as_str(), self.said(said))).collect();
        let more = forward.tell_more.iter();
        let more: Vec<(&str, String)> =
            more.map(|(name, said)| (name.as_str(), self.said(said))).collect();
        let value = |name: &str| {
            let mut values = self.values(name);
            match xff {
                Forwarded::Append if name == "x-forwarded-for" => values.push(&client),
                Forwarded::Replace if name == "x-forwarded-for" => values = vec![&client],
                _ => {}
            }
            if forward.remove.iter().any(|removed| removed == name) {
                values.clear();
            }
            if let Some(host) = forward.host.as_deref().filter(|_| name == "host") {
                values = vec![host];
            }
            let mut set = forward.set.iter().filter(|(set, _)| set == name).peekable();
            if set.peek().is_some() {
                values = set.map(|(_, value)| value.as_str()).collect();
            }
            if let Some((_, said)) = told.iter().find(|(told, _)| *told == name) {
                values = vec![said.as_str()];
                values.retain(|said| !said.is_empty());
            }
            let more = more.iter().filter(|(more, said)| *more == name && !said.is_empty());
            values.extend(more.map(|(_, said)| said.as_str()));
            let added = forward.add.iter().filter(|(added, _)| added == name);
            values.extend(added.map(|(_, value)| value.as_str()));
            (!values.is_empty()).then(|| values.join(", "))
        };
        let mut all: BTreeMap<String, Option<String>> =
            names.into_iter().map(|name| (name.to_owned(), value(name))).collect();
        for one in forward.sometimes.iter().filter(|one| self.holds(&one.when)) {
            let sent = || self.values(&one.name).join(", ");
            let now = all.entry(one.name.clone()).or_insert_with(|| Some(sent()));
            match &one.change {
                Change::Set(said) => *now = Some(self.said(said)),
                Change::Add(said) => {
                    let values = [now.take().unwrap_or_default(), self.said(said)];
                    *now = Some(
                        values.into_iter().filter(|v| !v.is_empty()).collect::<Vec<_>>().join(", "),
                    );
                }
                Change::Remove => *now = None,
            }
            *now = now.take().filter(|value| !value.is_empty());
        }
        all.into_iter().collect()
    }

    fn said(&self, said: &Said) -> String {
        let host = self.http.host.as_deref().unwrap_or_default();
        match said {
            Said::Client => self.source.to_string(),
            Said::Host => host.to_owned(),
            Said::Hostname => without_port(host).to_ascii_lowercase(),
            Said::Scheme => if self.is_tls { "https" } else { "http" }.to_owned(),
            Said::Method => self.http.method.clone(),
            Said::Path => self.http.path().to_owned(),
            Said::Target => self.sent.to_owned(),
            Said::ForwardedFor => {
                let client = self.source.to_string();
                let mut all = self.values("x-forwarded-for");
                all.push(&client);
                all.join(", ")
            }
            Said::Query => self.http.query().unwrap_or_default().to_owned(),
            Said::Header(name) => self.values(name).first().copied().unwrap_or_default().to_owned(),
            Said::Headers(name) => {
                self.values(name).join(if name == "cookie" { "; " } else { ", " })
            }
            Said::Cookie(name) => {
                let lines = self.values("cookie");
                let pairs = lines.iter().flat_map(|line| line.split(';'));
                let mut pairs = pairs.filter_map(|pair| pair.split_once('='));
                let found = pairs.find(|(known, _)| known.trim() == name);
                found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
            }
            Said::Parameter(name) => {
                let pairs = self.http.query().unwrap_or_default().split('&');
                let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                pairs.find(|(known, _)| known == name).map_or("", |(_, value)| value).to_owned()
            }
            Said::Changed(of, SaidChange::Lower) => self.said(of).to_ascii_lowercase(),
            Said::Changed(of, SaidChange::Replace { pattern, substitution, all }) => {
                let value = self.said(of);
                let Some(pattern) = compiled(pattern) else { return value };
                let times = usize::from(!all);
                let replaced = pattern.replacen(value.as_bytes(), times, substitution.as_bytes());
                String::from_utf8_lossy(&replaced).into_owned()
            }
            Said::Text(text) => text.clone(),
            Said::Joined(parts) => parts.iter().map(|part| self.said(part)).collect(),
        }
    }

    /// Shares of pools, and of those of their members that would take it.
    fn pools(&self, program: &Program, pools: &[(String, u32)]) -> request::Forwarded {
        let all: f64 = pools.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut to = request::Forwarded {
            pools: Vec::new(),
            endpoints: Vec::new(),
            is_sticky: false,
            target: None,
            headers: Vec::new(),
        };
        for (name, weight) in pools.iter().filter(|(_, weight)| *weight > 0) {
            let share = f64::from(*weight) / all;
            to.pools.push((name.clone(), share));
            let Some(pool) = program.pools.get(name) else { continue };
            for (endpoint, part) in members(pool) {
                match to.endpoints.iter_mut().find(|(known, _)| *known == endpoint) {
                    Some((_, known)) => *known += part * share,
                    None => to.endpoints.push((endpoint, part * share)),
                }
            }
            to.is_sticky = to.pools.len() == 1 && self.is_sticky(&pool.balance);
        }
        to
    }

    fn is_sticky(&self, balance: &Balance) -> bool {
        let Balance::Hash(key) = balance else { return false };
        match key {
            Key::Source | Key::Path(_) => true,
            Key::Header(name) => !self.values(name).is_empty(),
            Key::Cookie(name, life) => life.is_some() || self.cookie(name),
            Key::Query(name) => parameter(self.http, name).is_some(),
        }
    }

    fn cookie(&self, name: &str) -> bool {
        let cookies = self.values("cookie");
        let mut pairs = cookies.iter().flat_map(|line| line.split(';'));
        pairs.any(|pair| pair.split_once('=').is_some_and(|(known, _)| known.trim() == name))
    }
}

/// Members that take something while all are well, with their shares.
fn members(pool: &Pool) -> Vec<(Endpoint, f64)> {
    let usable = |member: &&crate::program::Member| !member.is_disabled && member.weight > 0;
    let first = pool.members.iter().filter(usable).map(|member| member.priority).min();
    let mut now = pool.members.iter().filter(usable).filter(|m| Some(m.priority) == first);
    if pool.balance == Balance::First {
        return now.next().map(|member| (member.endpoint.clone(), 1.0)).into_iter().collect();
    }
    let now: Vec<_> = now.collect();
    let all: f64 = now.iter().map(|member| f64::from(member.weight)).sum();
    now.iter().map(|m| (m.endpoint.clone(), f64::from(m.weight) / all)).collect()
}

fn is(text: &Text, value: Option<&str>) -> bool {
    value.is_some_and(|value| is_bytes(text, value.as_bytes()))
}

fn is_bytes(text: &Text, value: &[u8]) -> bool {
    match text {
        Text::Exact(exact) => value == exact.as_bytes(),
        Text::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
        Text::Pattern(pattern) => {
            compiled(&format!(r"\A(?:{pattern})\z")).is_some_and(|p| p.is_match(value))
        }
        Text::Present => true,
    }
}

fn compiled(pattern: &str) -> Option<regex::bytes::Regex> {
    RegexBuilder::new(pattern).unicode(false).size_limit(MAX_PATTERN).build().ok()
}

/// The first value of a parameter of the query, as it is sent.
fn parameter<'h>(http: &'h Http, name: &str) -> Option<&'h str> {
    let mut pairs = http.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Whether an address is in a block (`10.0.0.0/8`, or an address alone).
fn within(block: &str, address: IpAddr) -> bool {
    let (base, length) = block.split_once('/').unwrap_or((block, "128"));
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let all = if base.is_ipv4() { 32 } else { 128 };
    let free = 128 - length.min(all);
    let cut = |bits: u128| bits.checked_shr(free).unwrap_or(0);
    base.is_ipv4() == address.is_ipv4() && cut(bits(base)) == cut(bits(address))
}

fn with_query(path: String, query: Option<&str>) -> String {
    match query.filter(|_| !path.contains('?')) {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests;
