//! What HAProxy sees of a request, and what sample expressions are of it
//! (configuration manual, 7.3).

use std::{collections::BTreeMap, net::IpAddr};

use crate::request::{Http, Kind, Request};

use super::{
    acl::{self, Condition, Named, Test},
    matching::{self, Value},
    proxy::Proxy,
    sample::{Call, Expression, Format, Part},
};

/// A request in the state that rules have brought it to.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) source: IpAddr,
    pub(super) is_http: bool,
    pub(super) is_http10: bool,
    pub(super) method: String,
    /// As it has come.
    pub(super) came_as: String,
    /// As it has come.
    pub(super) uri: String,
    pub(super) path: String,
    pub(super) query: Option<String>,
    /// Names in lower case, `host` among them.
    pub(super) headers: Vec<(String, String)>,
    /// Names of headers that rules have touched.
    pub(super) touched: Vec<String>,
    pub(super) variables: BTreeMap<String, Value>,
    pub(super) server_name: Option<String>,
    pub(super) is_tls: bool,
    pub(super) to: Option<std::net::SocketAddr>,
    /// The frontend keeps what `capture.req.*` are.
    pub(super) captures: bool,
    pub(super) frontend: String,
    pub(super) backend: String,
    /// Servers that would take something, by backend.
    pub(super) usable: BTreeMap<String, i64>,
    /// What cannot be known from the request.
    pub(super) unknown: Vec<String>,
}

impl Seen {
    /// A request of which nothing is asked.
    pub(super) fn of_nothing() -> Self {
        let http = Http {
            method: String::new(),
            host: None,
            target: String::new(),
            headers: Vec::new(),
            is_http10: false,
        };
        let source = std::net::Ipv4Addr::UNSPECIFIED.into();
        Self::new(&Request { listener: None, source, kind: Kind::Http(http) })
    }

    pub(super) fn new(request: &Request) -> Self {
        let mut seen = Self {
            source: request.source,
            is_http: false,
            is_http10: false,
            method: String::new(),
            came_as: String::new(),
            uri: String::new(),
            path: String::new(),
            query: None,
            headers: Vec::new(),
            touched: Vec::new(),
            variables: BTreeMap::new(),
            server_name: None,
            is_tls: false,
            to: None,
            captures: false,
            frontend: String::new(),
            backend: String::new(),
            usable: BTreeMap::new(),
            unknown: Vec::new(),
        };
        match &request.kind {
            Kind::Connection { server_name } => seen.server_name.clone_from(server_name),
            Kind::Http(http) => {
                seen.is_http = true;
                seen.is_http10 = http.is_http10;
                seen.method.clone_from(&http.method);
                seen.came_as.clone_from(&http.method);
                seen.uri.clone_from(&http.target);
                seen.path = http.path().to_owned();
                seen.query = http.query().map(str::to_owned);
                let host = http.host.iter().map(|host| ("host".to_owned(), host.clone()));
                let others = http.headers.iter();
                let others = others.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
                seen.headers = host.chain(others).collect();
            }
        }
        seen
    }

    /// What `method` is: `set-method` does not change it where it is one of HTTP/1.1's.
    pub(super) fn asked_method(&self) -> &str {
        const KNOWN: &[&str] =
            &["OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"];
        if KNOWN.contains(&self.came_as.as_str()) { &self.came_as } else { &self.method }
    }

    pub(super) fn target(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }

    pub(super) fn set_target(&mut self, target: &str) {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        (self.path, self.query) = (path.to_owned(), query);
    }

    /// Whole lines of a header.
    pub(super) fn lines<'s>(&'s self, name: &str) -> impl Iterator<Item = &'s str> {
        let name = name.to_ascii_lowercase();
        let named = self.headers.iter().filter(move |(known, _)| *known == name);
        named.map(|(_, value)| value.as_str())
    }

    pub(super) fn touch(&mut self, name: &str) {
        if !self.touched.iter().any(|known| known == name) {
            self.touched.push(name.to_owned());
        }
    }

    pub(super) fn holds(&mut self, proxy: &Proxy, condition: Option<&Condition>) -> bool {
        let Some(condition) = condition else { return true };
        let mut literal = |literal: &acl::Literal| {
            let holds = match &literal.of {
                Named::Anonymous(test) => self.test(test),
                Named::Acl(name) => {
                    let tests = proxy.acls.get(name).map(Vec::as_slice).unwrap_or_default();
                    tests.iter().any(|test| self.test(test))
                }
            };
            holds != literal.is_negated
        };
        condition.any.iter().any(|all| all.iter().all(&mut literal)) != condition.is_unless
    }

    fn test(&mut self, test: &Test) -> bool {
        let values = self.values(&test.expression, true);
        values.iter().any(|value| matching::matches(test, value))
    }

    /// The sample of an expression outside ACLs.
    pub(super) fn value(&mut self, expression: &Expression) -> Option<Value> {
        self.values(expression, false).pop()
    }

    pub(super) fn format(&mut self, format: &Format) -> String {
        let mut out = String::new();
        for part in &format.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Sample(expression) => {
                    out.extend(self.value(expression).map(|value| value.to_string()));
                }
                Part::Variable(name) => out.push_str(&self.variable(name)),
            }
        }
        out
    }

    fn variable(&mut self, name: &str) -> String {
        match name {
            "ci" => self.source.to_string(),
            "HM" | "HP" | "HPO" | "HU" | "HQ" if !self.captures => "<BADREQ>".to_owned(),
            "HM" => self.came_as.clone(),
            "HP" | "HPO" => self.uri.split('?').next().unwrap_or_default().to_owned(),
            "HU" => self.uri.clone(),
            "HQ" => self.uri.find('?').map_or("", |at| &self.uri[at..]).to_owned(),
            "HV" => if self.is_http10 { "HTTP/1.0" } else { "HTTP/1.1" }.to_owned(),
            "f" => self.frontend.clone(),
            "b" => self.backend.clone(),
            "fi" => self.to.map_or_else(String::new, |to| to.ip().to_string()),
            "fp" => self.to.map_or_else(String::new, |to| to.port().to_string()),
            other => {
                self.unknown.push(format!("%{other}"));
                "-".to_owned()
            }
        }
    }

    /// All samples of an ACL, or the one of anything else.
    fn values(&mut self, expression: &Expression, is_acl: bool) -> Vec<Value> {
        let mut values = self.fetch(&expression.fetch, is_acl);
        for call in &expression.converters {
            values = values.into_iter().filter_map(|value| self.convert(call, value)).collect();
        }
        values
    }

    fn fetch(&mut self, call: &Call, is_acl: bool) -> Vec<Value> {
        let text = |text: &str| vec![Value::Text(text.to_owned())];
        let int = |number: i64| vec![Value::Int(number)];
        let first = call.argument(0);
        let name = acl::canonical(&call.name);
        if !self.is_http && is_of_http(name) {
            return Vec::new();
        }
        match name {
            "always_true" | "wait_end" => vec![Value::Bool(true)],
            "always_false" => vec![Value::Bool(false)],
            "bool" => vec![Value::Bool(matches!(first, "true" | "1" | "yes" | "on"))],
            "str" => text(first),
            "int" => first.parse().map(int).unwrap_or_default(),
            "ipv4" | "ipv6" => first.parse().map(|ip| vec![Value::Ip(ip)]).unwrap_or_default(),
            "src" => vec![Value::Ip(self.source)],
            "dst" => self.to.map(|to| Value::Ip(to.ip())).into_iter().collect(),
            "dst_port" => self.to.map(|to| Value::Int(to.port().into())).into_iter().collect(),
            "ssl_fc" => vec![Value::Bool(self.is_tls)],
            "ssl_fc_sni" if !self.is_tls => Vec::new(),
            "ssl_fc_has_sni" => vec![Value::Bool(self.is_tls && self.server_name.is_some())],
            "ssl_fc_sni" | "req.ssl_sni" => {
                self.server_name.iter().map(|name| Value::Text(name.clone())).collect()
            }
            "req.ssl_hello_type" if self.is_http || self.server_name.is_none() => Vec::new(),
            "req.ssl_hello_type" => int(1),
            "req.proto_http" => vec![Value::Bool(self.is_http)],
            "req.len" => int(1),
            "fe_name" => text(&self.frontend),
            "be_name" => text(&self.backend),
            "nbsrv" => {
                let backend = if first.is_empty() { &self.backend } else { first };
                int(self.usable.get(backend).copied().unwrap_or(0))
            }
            "ssl_c_used" | "ssl_fc_has_crt" | "http_auth" => vec![Value::Bool(false)],
            "var" => match self.variables.get(first) {
                Some(value) => vec![value.clone()],
                None if call.arguments.len() > 1 => text(call.argument(1)),
                None => Vec::new(),
            },
            _ if self.is_http => self.http(name, call, is_acl),
            _ => self.at_rest(name),
        }
    }

    fn http(&mut self, name: &str, call: &Call, is_acl: bool) -> Vec<Value> {
        let text = |text: &str| vec![Value::Text(text.to_owned())];
        let int = |number: i64| vec![Value::Int(number)];
        let first = call.argument(0);
        match name {
            "method" => text(self.asked_method()),
            "path" if !self.path.starts_with('/') => Vec::new(),
            "path" => text(&self.path),
            "pathq" | "url" => text(&self.target()),
            "query" => self.query.iter().map(|query| Value::Text(query.clone())).collect(),
            "base" | "baseq" => {
                let host = self.lines("host").next().unwrap_or_default().to_owned();
                let rest = if name == "base" { self.path.clone() } else { self.target() };
                text(&format!("{host}{rest}"))
            }
            _ if name.starts_with("capture.req.") && !self.captures => Vec::new(),
            "capture.req.uri" => text(&self.uri.clone()),
            "capture.req.method" => text(&self.came_as),
            "req.ver" | "capture.req.ver" => text(if self.is_http10 { "1.0" } else { "1.1" }),
            "http_first_req" => vec![Value::Bool(true)],
            "req.body_size" => {
                let announced = self.lines("content-length").next();
                int(announced.and_then(|length| length.parse().ok()).unwrap_or(0))
            }
            "req.hdr_cnt" => vec![Value::Int(self.header(first).len() as i64)],
            "req.fhdr_cnt" => vec![Value::Int(self.lines(first).count() as i64)],
            "req.hdr" | "req.hdr_ip" | "req.hdr_val" => {
                let values = chosen(self.header(first), call.argument(1), is_acl);
                typed(values, name)
            }
            "req.fhdr" => {
                let lines = self.lines(first).map(str::to_owned).collect();
                typed(chosen(lines, call.argument(1), is_acl), name)
            }
            "req.cook" => {
                let values = self.cookies(first);
                let skipped = if is_acl { 0 } else { values.len().saturating_sub(1) };
                typed(values.into_iter().skip(skipped).collect(), name)
            }
            "req.cook_cnt" => vec![Value::Int(self.cookies(first).len() as i64)],
            "url_param" => {
                let mut values = self.parameters(first, call.argument(1));
                values.truncate(if is_acl { values.len() } else { 1 });
                typed(values, name)
            }
            _ => self.at_rest(name),
        }
    }

    /// Counters of a proxy that has just begun; nothing where it cannot be known.
    fn at_rest(&mut self, name: &str) -> Vec<Value> {
        if is_counter(name) {
            self.unknown.push(format!("{name} is taken as 0"));
            return vec![Value::Int(0)];
        }
        self.unknown.push(format!("{name} is taken as absent"));
        Vec::new()
    }

    /// Values between commas; `host` has none.
    pub(super) fn header(&self, name: &str) -> Vec<String> {
        self.lines(name).flat_map(|line| between_commas(line).map(str::to_owned)).collect()
    }

    pub(super) fn cookies(&self, name: &str) -> Vec<String> {
        let pairs = self.lines("cookie").flat_map(|line| outside_quotes(line, &[';', ',']));
        let pairs = pairs.filter_map(|pair| pair.split_once('='));
        pairs
            .filter(|(known, _)| known.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    fn parameters(&self, name: &str, delimiter: &str) -> Vec<String> {
        let delimiter = delimiter.chars().next().unwrap_or('&');
        let query = self.query.as_deref().unwrap_or_default();
        let pairs = query.split(delimiter).filter_map(|pair| pair.split_once('='));
        pairs.filter(|(known, _)| *known == name).map(|(_, value)| value.to_owned()).collect()
    }
}

fn is_of_http(name: &str) -> bool {
    const NAMES: &[&str] = &["method", "path", "pathq", "url", "base", "baseq", "query", "req.ver"];
    NAMES.contains(&name) || name.starts_with("req.hdr") || name.starts_with("req.cook")
}

/// Converters of two numbers, of which the second may be a variable.
pub(super) fn is_arithmetic(name: &str) -> bool {
    matches!(name, "add" | "sub" | "mul" | "div" | "mod")
}

/// What counts traffic: 0 in a proxy that has just begun.
pub(super) fn is_counter(name: &str) -> bool {
    const NAMES: &[&str] =
        &["avg_queue", "queue", "srv_conn", "srv_queue", "srv_sess_rate", "act_conn"];
    let of = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    NAMES.contains(&name)
        || of("sc_")
        || ["sc0_", "sc1_", "sc2_", "table_"].iter().any(|prefix| of(prefix))
        || (of("src_") && !matches!(name, "src_port" | "src_is_local"))
        || (of("be_") && !matches!(name, "be_name" | "be_id"))
        || (of("fe_") && !matches!(name, "fe_name" | "fe_id" | "fe_defbe"))
}

/// Of values of a header the n-th, from the end where it is negative; all of an ACL,
/// else the last.
fn chosen(values: Vec<String>, n: &str, is_acl: bool) -> Vec<String> {
    let n: i64 = n.parse().unwrap_or(0);
    let at = match n {
        0 if is_acl => return values,
        0 => values.len().checked_sub(1),
        1.. => usize::try_from(n - 1).ok(),
        _ => usize::try_from(-n).ok().and_then(|back| values.len().checked_sub(back)),
    };
    at.and_then(|at| values.into_iter().nth(at)).into_iter().collect()
}

fn typed(values: Vec<String>, name: &str) -> Vec<Value> {
    let typed = values.into_iter().filter_map(|value| match name {
        "req.hdr_ip" => value.parse().ok().map(Value::Ip),
        "req.hdr_val" => Some(Value::Int(if value.starts_with('+') {
            0
        } else {
            matching::number(&value).unwrap_or(0)
        })),
        _ => Some(Value::Text(value)),
    });
    typed.collect()
}

/// Values of a header, quoted strings whole.
fn between_commas(line: &str) -> impl Iterator<Item = &str> {
    outside_quotes(line, &[',']).map(|part| part.trim_matches([' ', '\t']))
}

/// Parts between delimiters; what is quoted has none, and a backslash in it takes what
/// follows with it.
fn outside_quotes<'l>(line: &'l str, delimiters: &'static [char]) -> impl Iterator<Item = &'l str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    line.split(move |c| {
        let ends = !is_quoted && delimiters.contains(&c);
        is_quoted ^= c == '"' && !is_escaped;
        is_escaped = is_quoted && c == '\\' && !is_escaped;
        ends
    })
}
