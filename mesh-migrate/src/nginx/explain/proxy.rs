//! Who answers, and what `proxy_pass` sends.

use std::collections::BTreeMap;

use super::{Directive, Outcome, Problem, Run, bad, model};
use crate::{
    nginx::{
        model::{Method, Split, Upstream, is_on},
        template::Template,
        uri,
    },
    request::{Endpoint, Forwarded},
};

/// Handlers that ask others by protocols that are not explained, or read files.
const OTHERS: [&str; 16] = [
    "fastcgi_pass",
    "uwsgi_pass",
    "scgi_pass",
    "grpc_pass",
    "memcached_pass",
    "empty_gif",
    "mirror",
    "try_files",
    "alias",
    "root",
    "index",
    "autoindex",
    "dav_methods",
    "flv",
    "mp4",
    "js_content",
];

/// A URL of `proxy_pass`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::nginx) struct Url {
    pub(in crate::nginx) is_tls: bool,
    /// As it is written, with its port.
    pub(in crate::nginx) authority: String,
    /// With what comes after it; empty if there is none.
    pub(in crate::nginx) uri: String,
}

impl Url {
    /// Nothing where it is no URL of HTTP.
    pub(in crate::nginx) fn of(text: &str) -> Option<Self> {
        let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
        let (is_tls, rest) = match (lower.starts_with("http://"), lower.starts_with("https://")) {
            (true, _) => (false, &text[7..]),
            (_, true) => (true, &text[8..]),
            _ => return None,
        };
        if let Some(path) = rest.strip_prefix("unix:") {
            let (path, uri) = path.split_once(':').unwrap_or((path, ""));
            return Some(Self { is_tls, authority: format!("unix:{path}"), uri: uri.to_owned() });
        }
        let at = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let uri = match &rest[at..] {
            "" => String::new(),
            uri if uri.starts_with('/') => uri.to_owned(),
            uri => format!("/{uri}"),
        };
        (at > 0).then(|| Self { is_tls, authority: rest[..at].to_owned(), uri })
    }

    /// `$proxy_host`.
    pub(in crate::nginx) fn host(&self) -> &str {
        let usual = if self.is_tls { ":443" } else { ":80" };
        match self.authority.starts_with("unix:") {
            true => "localhost",
            false => self.authority.strip_suffix(usual).unwrap_or(&self.authority),
        }
    }

    /// Without an upstream of its name.
    pub(in crate::nginx) fn endpoint(&self) -> Option<Endpoint> {
        model::endpoint(&self.authority, if self.is_tls { 443 } else { 80 })
    }
}

/// Peers with their shares while all are well, and whether the same request goes to
/// the same one.
pub(super) fn peers(upstream: &Upstream<'_>) -> (Vec<(Endpoint, f64)>, bool) {
    let ready = upstream.ready();
    let all: f64 = ready.iter().map(|peer| f64::from(peer.weight)).sum();
    let mut endpoints: Vec<(Endpoint, f64)> = Vec::new();
    for peer in ready {
        let share = f64::from(peer.weight) / all;
        match endpoints.iter_mut().find(|(known, _)| *known == peer.endpoint) {
            Some((_, known)) => *known += share,
            None => endpoints.push((peer.endpoint.clone(), share)),
        }
    }
    (endpoints, matches!(upstream.method, Method::IpHash | Method::Hash(_)))
}

impl<'c> Run<'_, 'c> {
    /// The answer of the handler.
    pub(super) fn content(&mut self) -> Result<Outcome, Problem> {
        let handlers = self.handlers.clone();
        let within = |name: &str| {
            handlers.iter().rev().find_map(|block| {
                let block: &'c Directive = block;
                block.inside().iter().find(|inner| inner.name == name)
            })
        };
        if let Some(tries) = within("try_files")
            && let Some(outcome) = self.tries(tries)?
        {
            return Ok(outcome);
        }
        if let Some(pass) = within("proxy_pass") {
            return self.pass(pass);
        }
        if let Some(status) = within("stub_status") {
            self.step(&status.place, "tells of nginx itself");
            return Ok(Outcome::Answered { status: 200, headers: Vec::new(), body: None });
        }
        for name in OTHERS {
            let found = within(name).or_else(|| {
                // Those of files are inherited.
                let is_file = !name.ends_with("_pass");
                is_file.then(|| model::inherited(&self.chain, name)).flatten()
            });
            if let Some(found) = found {
                let what = format!("{name} answers here: what it says is not in the configuration");
                return Err(bad(&found.place, what));
            }
        }
        let by_lua = handlers.iter().flat_map(|block| block.inside());
        if let Some(lua) = by_lua.into_iter().find(|d| d.name.starts_with("content_by_lua")) {
            return Err(bad(&lua.place, "a program answers here, which is not run"));
        }
        let place =
            self.location.map_or(&self.server.directive.place, |l| &l.directive.place).clone();
        if self.uri.ends_with(b"/") {
            return Err(bad(
                &place,
                "files of the built-in root answer here: whether there is an index is not in the configuration",
            ));
        }
        self.step(&place, "nothing answers here but the built-in root, which has no such file");
        match self.method.as_str() {
            "GET" | "HEAD" | "POST" => self.special(404),
            _ => self.special(405),
        }
    }

    fn pass(&mut self, pass: &'c Directive) -> Result<Outcome, Problem> {
        let template = Template::of(pass.arg(0)).map_err(|wrong| bad(&pass.place, wrong))?;
        let model = self.model;
        let split = template.variables().find_map(|name| {
            // `set` may have brought it here.
            Some((name.to_owned(), model.http.splits.get(name)?))
        });
        match split {
            Some((name, split)) => self.split(pass, &template, &name, split),
            None => self.pass_to(pass, &template),
        }
    }

    /// Shares of `split_clients`: which one a request has is in a hash.
    fn split(
        &mut self,
        pass: &'c Directive,
        template: &Template,
        name: &str,
        split: &Split<'c>,
    ) -> Result<Outcome, Problem> {
        let mut all: Option<Forwarded> = None;
        for (share, value, directive) in &split.parts {
            let share = f64::from(*share) / 10_000.0;
            let value = self.text(value).map_err(|wrong| bad(&directive.place, wrong))?;
            self.step(&directive.place, format!("for {} percent", share * 100.0));
            self.maps.insert(name.to_owned(), value);
            let Outcome::Forwarded(mut part) = self.pass_to(pass, template)? else {
                return Err(bad(&directive.place, "some requests are not passed on here"));
            };
            part.pools.iter_mut().for_each(|(_, part)| *part *= share);
            part.endpoints.iter_mut().for_each(|(_, part)| *part *= share);
            match &mut all {
                None => all = Some(part),
                Some(all) => {
                    all.pools.append(&mut part.pools);
                    all.endpoints.append(&mut part.endpoints);
                    all.is_sticky = false;
                    // What is not the same for all cannot be said of the request.
                    all.headers.retain(|header| part.headers.contains(header));
                }
            }
        }
        self.maps.remove(name);
        let all = all.ok_or_else(|| bad(&split.directive.place, "there are no shares"))?;
        Ok(Outcome::Forwarded(all))
    }

    fn pass_to(&mut self, pass: &'c Directive, template: &Template) -> Result<Outcome, Problem> {
        let wrong = |wrong: String| bad(&pass.place, wrong);
        let is_constant = template.constant().is_some();
        let value = self.text(template).map_err(wrong)?;
        let value = String::from_utf8_lossy(&value).into_owned();
        let url = match Url::of(&value) {
            Some(url) => url,
            None if is_constant => {
                return Err(wrong(format!(
                    "{value:?} is no URL: http:// or https:// was expected"
                )));
            }
            None => {
                self.step(&pass.place, format!("{value:?} is no URL: 500"));
                return self.special(500);
            }
        };
        if let Some(host) =
            model::array(&self.chain, "auth_request").first().filter(|auth| auth.arg(0) != "off")
        {
            let what = format!("auth_request asks {} first; it is taken to say yes", host.arg(0));
            self.step(&host.place, what);
        }
        let target = self.upstream_target(&url, is_constant);
        let model = self.model;
        let by_name = model.http.upstreams.get(&url.authority.to_ascii_lowercase());
        let (endpoints, is_sticky, pool) = match by_name {
            Some(upstream) => {
                let (endpoints, is_sticky) = peers(upstream);
                if let Method::Other(name) = &upstream.method {
                    return Err(bad(
                        &upstream.directive.place,
                        format!("how {name} chooses is not known"),
                    ));
                }
                self.step(
                    &upstream.directive.place,
                    format!("upstream {}", upstream.directive.arg(0)),
                );
                (endpoints, is_sticky, upstream.directive.arg(0).to_owned())
            }
            None => {
                let endpoint = url.endpoint();
                let endpoint =
                    endpoint.ok_or_else(|| wrong(format!("{} has no good port", url.authority)))?;
                let is_name =
                    matches!(&endpoint, Endpoint::Name(name) if !name.starts_with("unix:"));
                if is_name && !is_constant && model::inherited(&self.chain, "resolver").is_none() {
                    self.step(&pass.place, format!("no resolver for {}: 502", url.authority));
                    return self.special(502);
                }
                (vec![(endpoint, 1.0)], false, url.authority.clone())
            }
        };
        let headers = self.headers(&url);
        self.manner(pass, &url);
        self.step(&pass.place, format!("passed on to {pool} as {target}"));
        if endpoints.is_empty() {
            self.step(&pass.place, "all its servers are down: 502");
            return self.special(502);
        }
        Ok(Outcome::Forwarded(Forwarded {
            pools: vec![(pool, 1.0)],
            endpoints,
            is_sticky,
            target: Some(target),
            headers,
        }))
    }

    /// How the application is spoken to.
    fn manner(&mut self, pass: &Directive, url: &Url) {
        let version = model::inherited(&self.chain, "proxy_http_version");
        let version = version.map_or("1.0", |version| version.arg(0));
        let mut how = format!("HTTP/{version}");
        if url.is_tls {
            let verifies = is_on(&self.chain, "proxy_ssl_verify", false);
            let names = is_on(&self.chain, "proxy_ssl_server_name", false);
            let name = model::inherited(&self.chain, "proxy_ssl_name");
            let name = name.map_or(url.host(), |name| name.arg(0));
            how += &format!(
                " in TLS, {}, {}",
                if names { format!("asking for {name}") } else { "asking for no name".into() },
                if verifies { "proving it" } else { "believing everybody" },
            );
        }
        self.step(&pass.place, how);
    }

    /// The request line that is sent (`ngx_http_proxy_create_request`).
    fn upstream_target(&self, url: &Url, is_constant: bool) -> String {
        if !is_constant && !url.uri.is_empty() {
            return url.uri.clone();
        }
        if url.uri.is_empty() && self.has_unparsed {
            return self.target.raw.clone();
        }
        let replaces = self.has_location && !url.uri.is_empty();
        let length = self.location.filter(|_| replaces).map_or(0, |location| location.text.len());
        let rest = self.uri.get(length..).unwrap_or_default();
        let is_escaped = self.target.is_quoted || self.is_internal;
        let mut out = if replaces { url.uri.clone().into_bytes() } else { Vec::new() };
        out.extend(if is_escaped { uri::escaped(rest) } else { rest.to_vec() });
        if !self.args.is_empty() {
            out.push(b'?');
            out.extend_from_slice(&self.args);
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// Those of `proxy_set_header`, and what is set without it.
    fn headers(&mut self, url: &Url) -> Vec<(String, Option<String>)> {
        let (_, port) =
            url.authority.rsplit_once(':').unwrap_or(("", if url.is_tls { "443" } else { "80" }));
        self.set.insert("proxy_host".into(), url.host().as_bytes().to_vec());
        self.set.insert("proxy_port".into(), port.as_bytes().to_vec());
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for directive in model::array(&self.chain, "proxy_set_header") {
            let value = self.shown(directive.arg(1));
            self.step(&directive.place, format!("{}: {value}", directive.arg(0)));
            let values = headers.entry(directive.arg(0).to_ascii_lowercase()).or_default();
            values.extend(Some(value).filter(|value| !value.is_empty()));
        }
        for (name, value) in [("host", url.host()), ("connection", "close")] {
            headers.entry(name.into()).or_insert_with(|| vec![value.to_owned()]);
        }
        let http = self.http;
        let is_on = |name, usual| model::is_on(&self.server.chain, name, usual);
        let underscored =
            is_on("underscores_in_headers", false) || !is_on("ignore_invalid_headers", true);
        for (name, _) in &http.headers {
            let lower = name.to_ascii_lowercase();
            let is_dropped = ["keep-alive", "expect", "upgrade", "te", "transfer-encoding"]
                .contains(&lower.as_str());
            if is_dropped && lower != "te" || lower.contains('_') && !underscored {
                headers.entry(lower).or_default();
            }
        }
        let asked = http.host.as_deref();
        let value = |values: Vec<String>| (!values.is_empty()).then(|| values.join(", "));
        let all = headers.into_iter().map(|(name, values)| (name, value(values)));
        all.filter(|(name, value)| name != "host" || value.as_deref() != asked).collect()
    }
}
