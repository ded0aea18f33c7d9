//! What HAProxy does with one request, in the order in which it does it.

use std::net::SocketAddr;

use crate::{
    request::{Answer, Outcome, Request, Step},
    source::Place,
};

use super::{
    Config, acl,
    choice::usable,
    proxy::Proxy,
    rules::{Action, Redirect, RedirectKind, Reply, Rule},
    seen::Seen,
};

/// What HAProxy would do with the request.
///
/// Counters are those of a process that has just begun; all servers are well. The
/// listener is an address as `bind` writes it, or the name of a frontend. What hangs on
/// anything that cannot be known is said among the steps.
pub fn explain(config: &Config, request: &Request) -> Answer {
    let mut run = Run { config, seen: Seen::new(request), why: Vec::new() };
    for proxy in config.proxies.iter().filter(|proxy| proxy.is_backend) {
        let usable: u32 = usable(proxy).map(|server| server.count).sum();
        run.seen.usable.insert(proxy.name.clone(), usable.into());
    }
    for (name, value) in &config.variables {
        run.seen.variables.insert(name.clone(), super::matching::Value::Text(value.clone()));
    }
    let outcome = run.outcome(request);
    for unknown in std::mem::take(&mut run.seen.unknown) {
        run.why.push(Step { place: None, what: unknown });
    }
    Answer { outcome, why: run.why }
}

pub(super) struct Run<'c> {
    config: &'c Config,
    pub(super) seen: Seen,
    why: Vec<Step>,
}

/// What comes after rules.
enum Next {
    GoesOn,
    Ends(Outcome),
}

impl<'c> Run<'c> {
    pub(super) fn say(&mut self, place: &Place, what: impl Into<String>) {
        self.why.push(Step { place: Some(place.clone()), what: what.into() });
    }

    fn outcome(&mut self, request: &Request) -> Outcome {
        let Some(frontend) = self.frontend(request) else { return Outcome::Closed };
        match self.front(frontend) {
            Next::Ends(outcome) => outcome,
            Next::GoesOn => self.back(frontend),
        }
    }

    fn frontend(&mut self, request: &Request) -> Option<&'c Proxy> {
        let asked = request.listener.as_deref();
        let frontends = self.config.proxies.iter().filter(|proxy| proxy.is_frontend);
        let all = frontends.flat_map(|proxy| {
            let addresses =
                |bind: &'c super::server::Bind| bind.addresses.iter().map(move |a| (bind, a));
            proxy
                .binds
                .iter()
                .flat_map(addresses)
                .map(move |(bind, address)| (proxy, bind, address))
        });
        let socket = asked.and_then(|asked| asked.parse().ok());
        let is_it = |(proxy, _, address): &(&Proxy, _, &super::server::Address)| match asked {
            Some(asked) => {
                proxy.name == asked
                    || address.written == asked
                    || (socket.is_some() && address.socket == socket)
                    || covers(address.socket, socket)
            }
            None => true,
        };
        let mut found = all.filter(is_it);
        let Some((proxy, bind, address)) = found.next() else {
            let what = format!("nothing listens at {}", asked.unwrap_or("any address"));
            self.why.push(Step { place: None, what });
            return None;
        };
        if asked.is_none() && found.any(|(other, ..)| other.name != proxy.name) {
            let what = "there are several listeners; which one is asked?";
            self.why.push(Step { place: None, what: what.to_owned() });
            return None;
        }
        self.say(&bind.place, format!("{} listens at {}", proxy.name, address.written));
        if proxy.is_disabled {
            self.say(&proxy.place, format!("{} is disabled", proxy.name));
            return None;
        }
        self.seen.to = address.socket;
        self.seen.is_tls = bind.settings.contains_key("ssl");
        self.seen.captures = proxy.captures;
        self.seen.frontend.clone_from(&proxy.name);
        self.seen.backend.clone_from(&proxy.name);
        Some(proxy)
    }

    fn front(&mut self, proxy: &Proxy) -> Next {
        if proxy.is_tcp {
            self.seen.is_http = false;
        }
        for rules in &proxy.tcp_request {
            if let Next::Ends(outcome) = self.rules(proxy, rules) {
                return Next::Ends(outcome);
            }
        }
        if proxy.is_tcp {
            return Next::GoesOn;
        }
        if !self.seen.is_http {
            self.say(&proxy.place, format!("{} takes HTTP only", proxy.name));
            return Next::Ends(Outcome::Closed);
        }
        if let Some((place, uri)) = proxy.monitor.as_ref().filter(|(_, uri)| *uri == self.seen.uri)
        {
            let fails = proxy.monitor_fails.iter().any(|c| self.seen.holds(proxy, Some(c)));
            self.say(place, format!("{uri} is the monitor's"));
            let status = if fails { 503 } else { 200 };
            let (headers, body) = super::pages::page(self.config, status).unzip();
            let headers = headers.unwrap_or_default();
            return Next::Ends(Outcome::Answered { status, headers, body });
        }
        self.http(proxy)
    }

    /// Rules of HTTP, statistics, redirects.
    fn http(&mut self, proxy: &Proxy) -> Next {
        if let Next::Ends(outcome) = self.rules(proxy, &proxy.http_request) {
            return Next::Ends(outcome);
        }
        let target = self.seen.target();
        let is_read = matches!(self.seen.asked_method(), "GET" | "HEAD" | "POST");
        let stats = proxy.stats.as_ref().filter(|(_, uri)| is_read && target.starts_with(uri));
        if let Some((place, _)) = stats {
            if proxy.has_stats_auth && self.seen.lines("authorization").next().is_none() {
                self.say(place, "asks for a password");
                let headers = challenge(Some("HAProxy Statistics"));
                return Next::Ends(Outcome::Answered { status: 401, headers, body: None });
            }
            self.say(place, "answers with statistics");
            let status = if self.seen.asked_method() == "POST" { 303 } else { 200 };
            return Next::Ends(Outcome::Answered { status, headers: Vec::new(), body: None });
        }
        self.rules(proxy, &proxy.redirects)
    }

    fn rules(&mut self, proxy: &Proxy, rules: &[Rule]) -> Next {
        for rule in rules {
            if !self.seen.holds(proxy, rule.when.as_ref()) {
                continue;
            }
            match &rule.action {
                Action::Allow => {
                    self.say(&rule.place, "no later rule of this list counts");
                    break;
                }
                Action::Answer(reply) => {
                    self.say(&rule.place, format!("answers {}", reply.status));
                    return Next::Ends(self.reply(reply));
                }
                Action::Redirect(redirect) => {
                    if let Some(outcome) = self.redirect(&rule.place, redirect) {
                        return Next::Ends(outcome);
                    }
                }
                Action::Close => {
                    self.say(&rule.place, "ends the connection");
                    return Next::Ends(Outcome::Closed);
                }
                Action::Auth(realm) => {
                    self.say(&rule.place, "asks for a password");
                    let headers = challenge(realm.as_deref());
                    let answer = Outcome::Answered { status: 401, headers, body: None };
                    return Next::Ends(answer);
                }
                Action::Service(name) => {
                    self.say(&rule.place, format!("{name} answers"));
                    let answer = Outcome::Answered { status: 200, headers: Vec::new(), body: None };
                    return Next::Ends(answer);
                }
                Action::Aside(_) => {}
                Action::Other(name) => {
                    self.say(&rule.place, format!("what {name} does is not known here"));
                }
                change => {
                    if let Some(what) = self.seen.change(change) {
                        self.say(&rule.place, what);
                    }
                }
            }
        }
        Next::GoesOn
    }

    fn reply(&mut self, reply: &Reply) -> Outcome {
        let mut headers = Vec::new();
        let mut body = reply.body.as_ref().map(|body| self.seen.format(body));
        if let Some((own, text)) =
            super::pages::page(self.config, reply.status).filter(|_| reply.is_page())
        {
            headers = own;
            body = Some(text);
        } else if body.is_some() {
            headers.extend(reply.content_type.clone().map(|kind| ("content-type".into(), kind)));
        }
        for (name, format) in &reply.headers {
            headers.push((name.clone(), trimmed(self.seen.format(format))));
        }
        Outcome::Answered { status: reply.status, headers, body: body.filter(|b| !b.is_empty()) }
    }

    fn redirect(&mut self, place: &Place, redirect: &Redirect) -> Option<Outcome> {
        let to = self.seen.format(&redirect.to);
        let mut path = match redirect.drops_query {
            true => self.seen.path.clone(),
            false => self.seen.target(),
        };
        if redirect.appends_slash && !path.ends_with('/') {
            path.push('/');
        }
        let location = match redirect.kind {
            RedirectKind::Location => to,
            RedirectKind::Prefix if to == "/" => path,
            RedirectKind::Prefix => format!("{to}{path}"),
            RedirectKind::Scheme => {
                let host = self.seen.lines("host").next().unwrap_or_default();
                format!("{to}://{host}{path}")
            }
        };
        if location.is_empty() && redirect.ignores_empty {
            return None;
        }
        self.say(place, format!("redirects to {location}"));
        let mut headers = super::pages::of_redirect(redirect.code);
        headers.push(("location".to_owned(), location));
        headers.extend(redirect.cookie.clone().map(|cookie| ("set-cookie".to_owned(), cookie)));
        Some(Outcome::Answered { status: redirect.code, headers, body: None })
    }

    fn back(&mut self, frontend: &'c Proxy) -> Outcome {
        let Some(backend) = self.switch(frontend) else {
            return self.unavailable();
        };
        self.seen.backend.clone_from(&backend.name);
        if backend.name != frontend.name || !frontend.is_backend {
            for rules in &backend.tcp_request {
                if let Next::Ends(outcome) = self.rules(backend, rules) {
                    return outcome;
                }
            }
            if self.seen.is_http
                && !backend.is_tcp
                && let Next::Ends(outcome) = self.http(backend)
            {
                return outcome;
            }
        }
        if self.seen.is_http {
            self.forwarded_for(frontend, backend);
        }
        self.server(backend)
    }

    pub(super) fn unavailable(&mut self) -> Outcome {
        match self.seen.is_http {
            true => Outcome::Answered { status: 503, headers: Vec::new(), body: None },
            false => Outcome::Closed,
        }
    }

    fn switch(&mut self, frontend: &'c Proxy) -> Option<&'c Proxy> {
        for switch in &frontend.switches {
            if !self.seen.holds(frontend, switch.when.as_ref()) {
                continue;
            }
            let name = self.seen.format(&switch.to);
            if let Some(backend) = self.config.backend(&name) {
                self.say(&switch.place, format!("goes to {name}"));
                return self.enabled(backend);
            }
            self.say(&switch.place, format!("there is no backend {name:?}: the default"));
            break;
        }
        if let Some((place, name)) = &frontend.default_backend {
            self.say(place, format!("goes to {name}, the default"));
            return self.config.backend(name).and_then(|backend| self.enabled(backend));
        }
        if frontend.is_backend {
            return Some(frontend);
        }
        self.say(&frontend.place, "has no backend for it");
        None
    }

    fn enabled(&mut self, backend: &'c Proxy) -> Option<&'c Proxy> {
        if backend.is_disabled {
            self.say(&backend.place, format!("{} is disabled", backend.name));
        }
        (!backend.is_disabled).then_some(backend)
    }

    /// `option forwardfor` of both.
    fn forwarded_for(&mut self, frontend: &Proxy, backend: &Proxy) {
        let options = [backend, frontend].map(|proxy| proxy.option("forwardfor"));
        let mut given = options.into_iter().flatten().peekable();
        let Some(&option) = given.peek() else { return };
        let texts: Vec<&str> = option.words.iter().map(|word| word.text.as_str()).collect();
        let after =
            |name| texts.iter().position(|text| *text == name).and_then(|at| texts.get(at + 1));
        let name = after("header").map_or("x-forwarded-for".into(), |n| n.to_ascii_lowercase());
        let is_excepted = given.any(|option| {
            let mut words = option.words.iter().skip_while(|word| word.text != "except");
            let block = words.nth(1).and_then(|word| acl::block(&word.text));
            block.is_some_and(|block| acl::within(block, self.seen.source))
        });
        let is_there = texts.contains(&"if-none") && self.seen.lines(&name).next().is_some();
        if is_excepted || is_there {
            self.say(&option.place, format!("{name} gets nothing"));
        } else {
            let client = self.seen.source.to_string();
            self.seen.touch(&name);
            self.say(&option.place, format!("{name} gets {client}"));
            self.seen.headers.push((name, client));
        }
    }
}

/// Blanks around a value are none of it.
pub(super) fn trimmed(value: String) -> String {
    value.trim_matches([' ', '\t']).to_owned()
}

/// Whether what listens at any address of a port takes what comes to this one.
fn covers(listens: Option<SocketAddr>, asked: Option<SocketAddr>) -> bool {
    listens.zip(asked).is_some_and(|(listens, asked)| {
        listens.ip().is_unspecified() && listens.port() == asked.port()
    })
}

/// Of `auth`, where it names a realm.
pub(super) fn challenge(realm: Option<&str>) -> Vec<(String, String)> {
    let value = realm.map(|realm| format!("Basic realm=\"{realm}\""));
    value.map(|value| ("www-authenticate".to_owned(), value)).into_iter().collect()
}
