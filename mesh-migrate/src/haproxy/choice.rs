//! Which servers of a backend may take a request (configuration manual, `balance`,
//! `cookie`, `stick`, `use-server`).

use crate::request::{Endpoint, Forwarded, Outcome};

use super::{explain::Run, proxy::Proxy, sample, server::Server};

/// Servers that take something new.
pub(super) fn usable(proxy: &Proxy) -> impl Iterator<Item = &Server> {
    proxy.servers.iter().filter(|server| !server.is_disabled() && server.weight() > 0)
}

impl<'c> Run<'c> {
    pub(super) fn server(&mut self, backend: &'c Proxy) -> Outcome {
        let (servers, is_sticky) = self.servers(backend);
        let port = self.seen.to.map_or(0, |to| to.port());
        let all: f64 = servers.iter().map(|server| part(server)).sum();
        let mut endpoints: Vec<(Endpoint, f64)> = Vec::new();
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
