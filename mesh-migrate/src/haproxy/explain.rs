//! What HAProxy does with one request, in the order in which it does it.

use crate::{
    request::{Answer, Forwarded, Outcome, Request, Step},
    source::Place,
};

use super::{
    Config, acl,
    matching::{self, Value},
    proxy::Proxy,
    rules::{Action, Part, Redirect, RedirectKind, Reply, Rule},
    sample,
    seen::Seen,
    server::Server,
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
    let outcome = run.outcome(request);
    for unknown in std::mem::take(&mut run.seen.unknown) {
        run.why.push(Step { place: None, what: unknown });
    }
    Answer { outcome, why: run.why }
}

fn usable(proxy: &Proxy) -> impl Iterator<Item = &Server> {
    proxy.servers.iter().filter(|server| !server.is_disabled() && server.weight() > 0)
}

struct Run<'c> {
    config: &'c Config,
    seen: Seen,
    why: Vec<Step>,
}

/// What comes after rules.
enum Next {
    GoesOn,
    Ends(Outcome),
}

impl<'c> Run<'c> {
    fn say(&mut self, place: &Place, what: impl Into<String>) {
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
            return Next::Ends(Outcome::Answered { status, headers: Vec::new(), body: None });
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
                Action::Auth => {
                    self.say(&rule.place, "asks for a password");
                    let answer = Outcome::Answered { status: 401, headers: Vec::new(), body: None };
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
                    if let Some(what) = self.change(change) {
                        self.say(&rule.place, what);
                    }
                }
            }
        }
        Next::GoesOn
    }

    fn reply(&mut self, reply: &Reply) -> Outcome {
        let mut headers = Vec::new();
        let body = reply.body.as_ref().map(|body| self.seen.format(body));
        if body.is_some() {
            headers.extend(reply.content_type.clone().map(|kind| ("content-type".into(), kind)));
        }
        for (name, format) in &reply.headers {
            headers.push((name.clone(), self.seen.format(format)));
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
        let mut headers = vec![("location".to_owned(), location)];
        headers.extend(redirect.cookie.clone().map(|cookie| ("set-cookie".to_owned(), cookie)));
        Some(Outcome::Answered { status: redirect.code, headers, body: None })
    }

    /// What a rule changes of the request; `None` where it changes nothing.
    fn change(&mut self, action: &Action) -> Option<String> {
        let seen = &mut self.seen;
        match action {
            Action::SetHeader(name, value) => {
                let value = seen.format(value);
                seen.headers.retain(|(known, _)| known != name);
                seen.touch(name);
                seen.headers.push((name.clone(), value.clone()));
                Some(format!("{name} is {value:?}"))
            }
            Action::AddHeader(name, value) => {
                let value = seen.format(value);
                seen.touch(name);
                seen.headers.push((name.clone(), value.clone()));
                Some(format!("{name} is {value:?}, too"))
            }
            Action::DelHeader(name, method) => {
                let gone = |known: &str| matching::compare(*method, known, name, true);
                let names: Vec<String> =
                    seen.headers.iter().map(|(name, _)| name.clone()).collect();
                seen.headers.retain(|(known, _)| !gone(known));
                for known in names.iter().filter(|known| gone(known)) {
                    seen.touch(known);
                }
                if *method == acl::Method::Exact {
                    seen.touch(name);
                }
                Some(format!("{name} is removed"))
            }
            Action::ReplaceHeader { name, pattern, with, is_value } => {
                let with = seen.format(with);
                let mut changed = false;
                for (_, value) in seen.headers.iter_mut().filter(|(known, _)| known == name) {
                    let parts: Vec<&str> = match is_value {
                        true => value.split(',').collect(),
                        false => vec![value],
                    };
                    let parts = parts.into_iter().map(|part| {
                        let (with, matched) = replaced(part.trim(), pattern, &with);
                        changed |= matched;
                        if matched { with } else { part.to_owned() }
                    });
                    *value = parts.collect::<Vec<_>>().join(",");
                }
                changed.then(|| seen.touch(name));
                changed.then(|| format!("{name} is replaced"))
            }
            Action::SetMethod(method) => {
                seen.method = seen.format(method);
                Some(format!("the method is {}", seen.method))
            }
            Action::SetUri(part, format) => {
                let to = seen.format(format);
                set_uri(seen, *part, &to);
                Some(format!("the URI is {}", seen.target()))
            }
            Action::ReplaceUri(part, pattern, with) => {
                let with = seen.format(with);
                let of = match part {
                    Part::Path => seen.path.clone(),
                    _ => seen.target(),
                };
                let (to, matched) = replaced(&of, pattern, &with);
                if matched {
                    set_uri(seen, *part, &to);
                }
                matched.then(|| format!("the URI is {}", seen.target()))
            }
            Action::SetVar(name, expression) => {
                let value = seen.value(expression)?;
                let what = format!("{name} is {:?}", value.to_string());
                seen.variables.insert(name.clone(), value);
                Some(what)
            }
            Action::SetVarFormat(name, format) => {
                let value = seen.format(format);
                let what = format!("{name} is {value:?}");
                seen.variables.insert(name.clone(), Value::Text(value));
                Some(what)
            }
            Action::UnsetVar(name) => seen.variables.remove(name).map(|_| format!("no {name}")),
            _ => None,
        }
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
            if self.seen.is_http && !backend.is_tcp {
                if let Next::Ends(outcome) = self.http(backend) {
                    return outcome;
                }
            }
        }
        if self.seen.is_http {
            self.forwarded_for(frontend, backend);
        }
        self.server(backend)
    }

    fn unavailable(&mut self) -> Outcome {
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
            if let Some(backend) = self.config.backend(&name).filter(|b| !b.is_disabled) {
                self.say(&switch.place, format!("goes to {name}"));
                return Some(backend);
            }
            self.say(&switch.place, format!("there is no backend {name:?}: the default"));
            break;
        }
        if let Some((place, name)) = &frontend.default_backend {
            self.say(place, format!("goes to {name}, the default"));
            return self.config.backend(name).filter(|backend| !backend.is_disabled);
        }
        if frontend.is_backend {
            return Some(frontend);
        }
        self.say(&frontend.place, "has no backend for it");
        None
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

    fn server(&mut self, backend: &'c Proxy) -> Outcome {
        let (servers, is_sticky) = self.servers(backend);
        let port = self.seen.to.map_or(0, |to| to.port());
        let all: f64 = servers.iter().map(|server| part(server)).sum();
        let mut endpoints: Vec<(crate::request::Endpoint, f64)> = Vec::new();
        for server in &servers {
            let endpoint = server.endpoint(port);
            let share = if servers.len() == 1 { 1.0 } else { part(server) / all };
            match endpoints.iter_mut().find(|(known, _)| *known == endpoint) {
                Some((_, known)) => *known += share,
                None => endpoints.push((endpoint, share)),
            }
        }
        if endpoints.is_empty() {
            self.say(&backend.place, format!("{} has no server for it", backend.name));
            return self.unavailable();
        }
        for server in &servers {
            self.say(&server.place, format!("{} may take it", server.name));
        }
        let seen = &self.seen;
        let mut headers: Vec<(String, Option<String>)> = Vec::new();
        for name in &seen.touched {
            let values: Vec<&str> = seen.lines(name).collect();
            headers.push((name.clone(), (!values.is_empty()).then(|| values.join(", "))));
        }
        headers.sort();
        Outcome::Forwarded(Forwarded {
            pools: vec![(backend.name.clone(), 1.0)],
            endpoints,
            is_sticky,
            target: seen.is_http.then(|| seen.target()),
            headers,
        })
    }

    /// Servers that may take it, and whether the same request comes to the same one.
    fn servers(&mut self, backend: &'c Proxy) -> (Vec<&'c Server>, bool) {
        for rule in &backend.use_servers {
            if !self.seen.holds(backend, rule.when.as_ref()) {
                continue;
            }
            let name = self.seen.format(&rule.to);
            let found = backend.servers.iter().find(|s| s.name == name && !s.is_disabled());
            if let Some(server) = found {
                self.say(&rule.place, format!("goes to the server {name}"));
                return (vec![server], false);
            }
        }
        if let Some(server) = self.by_cookie(backend) {
            return (vec![server], true);
        }
        if let Some(cookie) = backend.setting("cookie") {
            self.say(&cookie.place, format!("{} is not there, or of no server", cookie.at(1)));
        }
        let usual: Vec<&Server> = usable(backend).filter(|server| !server.is_backup()).collect();
        let mut group = usual;
        if group.is_empty() {
            group = usable(backend).collect();
            if backend.option("allbackups").is_none() {
                group.truncate(1);
            }
        }
        let kind = backend.balance.first().map(String::as_str).unwrap_or("roundrobin");
        if kind == "first" {
            group.truncate(1);
        }
        (group, self.is_hashed(backend, kind) || self.is_stuck(backend))
    }

    fn by_cookie(&mut self, backend: &'c Proxy) -> Option<&'c Server> {
        let cookie = backend.setting("cookie")?;
        let name = cookie.at(1);
        let value = self.seen.cookies(name).into_iter().next()?;
        let value = value.split(['|', '~']).next().unwrap_or_default();
        let is_it = |server: &&Server| server.value("cookie") == Some(value);
        let server = backend.servers.iter().find(is_it).filter(|s| !s.is_disabled())?;
        self.say(&cookie.place, format!("its cookie {name} is that of {}", server.name));
        Some(server)
    }

    fn is_hashed(&mut self, backend: &Proxy, kind: &str) -> bool {
        let argument = backend.balance.get(1).map(String::as_str).unwrap_or_default();
        if let Some(name) = kind.strip_prefix("hdr(").and_then(|name| name.strip_suffix(')')) {
            return !backend.is_tcp && self.seen.lines(name).next().is_some();
        }
        match kind {
            "source" => true,
            "uri" => !backend.is_tcp,
            "url_param" if !backend.is_tcp => {
                let text = format!("url_param({argument})");
                self.is_there(backend, &text)
            }
            "hash" => self.is_there(backend, argument),
            _ => false,
        }
    }

    fn is_stuck(&mut self, backend: &Proxy) -> bool {
        let stuck = backend.sticks.iter().find(|(_, text)| self.is_there(backend, text)).cloned();
        if let Some((place, text)) = &stuck {
            self.say(place, format!("sticks by {text}"));
        }
        stuck.is_some()
    }

    /// Whether the request has a sample of this expression.
    fn is_there(&mut self, backend: &Proxy, text: &str) -> bool {
        let nothing = |name: &str| Ok(crate::source::Source::of(name, ""));
        let files = super::list::Files::new(&nothing);
        let read = sample::expression(text, &backend.place, &files);
        read.is_ok_and(|expression| self.seen.value(&expression).is_some())
    }
}

fn part(server: &Server) -> f64 {
    f64::from(server.weight()) * f64::from(server.count)
}

/// Where the pattern matches anywhere, the whole text is what it is replaced with.
fn replaced(text: &str, pattern: &str, with: &str) -> (String, bool) {
    let captures = matching::regex(pattern, false);
    let captures = captures.as_ref().and_then(|pattern| pattern.captures(text.as_bytes()));
    match captures {
        Some(captures) => {
            let mut out = Vec::new();
            captures.expand(sample::substitution(with).as_bytes(), &mut out);
            (String::from_utf8_lossy(&out).into_owned(), true)
        }
        None => (text.to_owned(), false),
    }
}

fn set_uri(seen: &mut Seen, part: Part, to: &str) {
    match part {
        Part::Path => seen.path = to.to_owned(),
        Part::Query => seen.query = Some(to.trim_start_matches('?').to_owned()),
        Part::PathAndQuery | Part::Uri => seen.set_target(to),
    }
}
