//! A request as rules have changed it, in terms of the request that came.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::program::{Condition, PathChange, Said, Sometimes};
use crate::source::Place;

use super::super::{
    acl::{self, Method, Named, Test},
    matching::{self, Value},
    proxy::Proxy,
    sample::{Call, Expression, Format, Part},
    seen,
};
use super::{
    asked::of_request,
    joined,
    logic::{all, any, constant, known, not},
    text::{Fetched, Leaf, Unsaid, pull},
};

/// A sample, in terms of the request that came.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Symbol {
    /// It is known; `None` where there is none.
    Known(Option<Value>),
    /// What a fetch and its converters are of the request.
    Of(Call, Vec<Call>),
    /// What rules have made of it, and converters.
    Said(Said, Vec<Call>),
}

/// What is known of the connection.
#[derive(Debug, Clone)]
pub(super) struct Front {
    pub(super) name: String,
    pub(super) is_tcp: bool,
    pub(super) is_tls: bool,
    /// `capture.req.uri` is there.
    pub(super) captures: bool,
    /// Where it is the same for all of the listener.
    pub(super) to: Option<SocketAddr>,
    pub(super) port: Option<u16>,
    pub(super) usable: BTreeMap<String, i64>,
    /// Of the process.
    pub(super) variables: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// What has led to the backend.
    pub(super) place: Option<Place>,
    /// All of these hold.
    pub(super) when: Vec<Condition>,
    /// What is known to hold or not, `when` included.
    pub(super) facts: Vec<(Condition, bool)>,
    pub(super) path: Option<PathChange>,
    /// In order; `None` is removed, `Err` is a value that cannot be said.
    pub(super) headers: BTreeMap<String, Header>,
    /// In order, after those.
    pub(super) sometimes: Vec<Sometimes>,
    pub(super) variables: BTreeMap<String, Result<Symbol, Unsaid>>,
    pub(super) method: Option<Unsaid>,
    pub(super) query: Option<Unsaid>,
    pub(super) answer: Answers,
    /// What `retry-on` says does not count.
    pub(super) is_unrepeated: bool,
}

/// What becomes of a header.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Header {
    /// Those of the client are not sent on.
    pub(super) is_replaced: bool,
    /// What is sent.
    pub(super) values: Vec<String>,
    /// What of the request is sent instead.
    pub(super) said: Option<Said>,
    /// What of the request is sent, too.
    pub(super) more: Vec<Said>,
    /// Some of it cannot be said.
    pub(super) unsaid: Option<Unsaid>,
}

/// What becomes of headers of answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    pub(super) set: Vec<(String, String)>,
    pub(super) add: Vec<(String, String)>,
    pub(super) remove: Vec<String>,
}

impl State {
    /// The same, where the condition holds.
    pub(super) fn with(&self, condition: &Condition) -> Self {
        let mut state = self.clone();
        state.when.push(condition.clone());
        super::logic::facts(condition, true, &mut state.facts);
        state
    }

    pub(super) fn condition(
        &self,
        front: &Front,
        proxy: &Proxy,
        of: &acl::Condition,
        or: bool,
    ) -> Read {
        let mut unsaid = Vec::new();
        let unknown = or != of.is_unless;
        let mut alternatives = Vec::new();
        for conjunction in &of.any {
            let mut literals = Vec::new();
            for literal in conjunction {
                let said = match &literal.of {
                    Named::Anonymous(test) => self.test(front, test),
                    Named::Acl(name) => {
                        let tests = proxy.acls.get(name).map(Vec::as_slice).unwrap_or_default();
                        let read = tests.iter().map(|test| self.test(front, test));
                        read.collect::<Result<Vec<_>, _>>().map(any)
                    }
                };
                literals.push(match said {
                    Ok(condition) if literal.is_negated => not(condition),
                    Ok(condition) => condition,
                    Err(why) => {
                        unsaid.push(why);
                        constant(unknown)
                    }
                });
            }
            alternatives.push(all(literals));
        }
        let condition = any(alternatives);
        let condition = if of.is_unless { not(condition) } else { condition };
        Read { condition: super::logic::given(condition, &self.facts), unsaid }
    }

    fn test(&self, front: &Front, test: &Test) -> Result<Condition, Unsaid> {
        let symbol = self.symbol(front, &test.expression)?;
        if let Symbol::Known(value) = &symbol {
            let holds = value.as_ref().is_some_and(|value| matching::matches(test, value));
            return Ok(constant(holds));
        }
        if let Symbol::Said(said, converters) = &symbol
            && joined::has_values(&test.expression.fetch, said)
            && test.method != Method::Found
        {
            return joined::of_values(test, said, converters);
        }
        let leaf = |pattern: &str| Leaf {
            method: test.method,
            ignores_case: test.ignores_case,
            pattern: pattern.to_owned(),
        };
        if matches!(test.method, Method::Found | Method::Bool | Method::Int | Method::Length) {
            let patterns: Vec<&str> = test.all_patterns().collect();
            return self.compared(front, &symbol, leaf(&patterns.join(" ")));
        }
        let leaves =
            test.all_patterns().map(|pattern| self.compared(front, &symbol, leaf(pattern)));
        leaves.collect::<Result<Vec<_>, _>>().map(any)
    }

    /// When what each request says is like this.
    fn compared(&self, front: &Front, symbol: &Symbol, leaf: Leaf) -> Result<Condition, Unsaid> {
        match symbol {
            Symbol::Known(value) => {
                let is = |value: &Value| match leaf.method {
                    Method::Found => true,
                    method => matching::compare(
                        method,
                        &value.to_string(),
                        &leaf.pattern,
                        leaf.ignores_case,
                    ),
                };
                Ok(constant(value.as_ref().is_some_and(is)))
            }
            Symbol::Of(call, converters) => {
                let is = |leaf: &Leaf| of_request(front, call, leaf);
                let said = |converters: &[Call]| {
                    let said = super::said::compared(front, call, &leaf)?;
                    joined::told(self, said, converters)
                };
                pull(leaf.clone(), converters, &Fetched { is: &is, said: &said })
            }
            Symbol::Said(of, converters) => {
                let is = |_: &Leaf| Err("this comparison has no counterpart".to_owned());
                let said = |converters: &[Call]| joined::told(self, of.clone(), converters);
                pull(leaf.clone(), converters, &Fetched { is: &is, said: &said })
            }
        }
    }

    /// Whether there is one, as far as that is known.
    pub(super) fn is_there(&self, front: &Front, symbol: &Symbol) -> Option<bool> {
        let leaf = Leaf { method: Method::Found, ignores_case: false, pattern: String::new() };
        let condition = self.compared(front, symbol, leaf).ok()?;
        known(&super::logic::given(condition, &self.facts))
    }

    /// When a sample outside ACLs is exactly this text.
    pub(super) fn is_text(
        &self,
        front: &Front,
        expression: &Expression,
        text: &str,
    ) -> Result<Condition, Unsaid> {
        let symbol = super::said::single(self.symbol(front, expression)?);
        let pattern = text.to_owned();
        let leaf = Leaf { method: Method::Exact, ignores_case: false, pattern };
        let condition = self.compared(front, &symbol, leaf)?;
        Ok(super::logic::given(condition, &self.facts))
    }

    pub(super) fn symbol(&self, front: &Front, of: &Expression) -> Result<Symbol, Unsaid> {
        let mut symbol = self.fetched(front, &of.fetch)?;
        for call in &of.converters {
            if call.name == "set-var" {
                return Err("the converter `set-var` has no counterpart".to_owned());
            }
            symbol = match symbol {
                Symbol::Known(Some(value)) => self.of_known(front, call, value)?,
                Symbol::Known(None) => Symbol::Known(None),
                Symbol::Of(fetch, mut converters) => {
                    converters.push(call.clone());
                    Symbol::Of(fetch, converters)
                }
                Symbol::Said(said, mut converters) => {
                    converters.push(call.clone());
                    Symbol::Said(said, converters)
                }
            };
        }
        Ok(symbol)
    }

    fn fetched(&self, front: &Front, call: &Call) -> Result<Symbol, Unsaid> {
        let name = acl::canonical(&call.name);
        let first = call.argument(0);
        let known = |value| Ok(Symbol::Known(Some(value)));
        let of = || {
            let call = Call { name: name.to_owned(), ..call.clone() };
            Ok(Symbol::Of(call, Vec::new()))
        };
        let is_of_path = matches!(name, "path" | "pathq" | "url" | "base" | "baseq");
        match name {
            "always_true" | "wait_end" => known(Value::Bool(true)),
            "req.proto_http" => known(Value::Bool(!front.is_tcp)),
            "http_first_req" => known(Value::Bool(true)),
            _ if name.starts_with("capture.req.") && !front.captures => Ok(Symbol::Known(None)),
            "always_false" => known(Value::Bool(false)),
            "bool" => known(Value::Bool(matches!(first, "true" | "1" | "yes" | "on"))),
            "str" => known(Value::Text(first.to_owned())),
            "int" => Ok(Symbol::Known(first.parse().ok().map(Value::Int))),
            "ssl_fc" => known(Value::Bool(front.is_tls)),
            "ssl_fc_sni" | "ssl_c_used" | "ssl_fc_has_crt" if !front.is_tls => {
                Ok(Symbol::Known(None))
            }
            "req.ssl_sni" | "req.ssl_hello_type" if !front.is_tcp => Ok(Symbol::Known(None)),
            // Of whoever begins otherwise nothing is known: the line says so.
            "req.ssl_hello_type" => known(Value::Int(1)),
            "env" => Err(of_environment(first)),
            "req.ver" => known(Value::Text("1.1".to_owned())),
            "fe_name" => known(Value::Text(front.name.clone())),
            "dst_port" => match front.port {
                Some(port) => known(Value::Int(port.into())),
                None => Err("the listener has several ports".to_owned()),
            },
            "dst" => match front.to.filter(|to| !to.ip().is_unspecified()) {
                Some(to) => known(Value::Ip(to.ip())),
                None => Err("the listener has several addresses".to_owned()),
            },
            "nbsrv" => known(Value::Int(front.usable.get(first).copied().unwrap_or(0))),
            counter if seen::is_counter(counter) => known(Value::Int(0)),
            "var" => match self.variables.get(first) {
                Some(symbol) => symbol.clone(),
                None if front.variables.contains_key(first) => {
                    known(Value::Text(front.variables[first].clone()))
                }
                None if call.arguments.len() > 1 => known(Value::Text(call.argument(1).into())),
                None => Ok(Symbol::Known(None)),
            },
            "method" => match &self.method {
                Some(why) => Err(why.clone()),
                None => of(),
            },
            "path" if matches!(self.path, Some(PathChange::Whole(_))) => match &self.path {
                Some(PathChange::Whole(path)) if path.starts_with('/') => {
                    known(Value::Text(path.clone()))
                }
                Some(PathChange::Whole(_)) => Ok(Symbol::Known(None)),
                _ => of(),
            },
            "base" | "path" if let Some(symbol) = self.made(name) => symbol,
            _ if is_of_path && self.path.is_some() => {
                Err(format!("`{name}` after the path has been rewritten"))
            }
            "query" | "url_param" | "pathq" | "url" if self.query.is_some() => {
                Err(format!("`{name}` after the query has been rewritten"))
            }
            "req.hdr" | "req.fhdr" | "req.hdr_cnt" | "req.fhdr_cnt" | "req.hdr_val"
            | "req.hdr_ip" | "req.cook" | "req.cook_cnt" | "req.cook_val" => {
                self.header(name, first).unwrap_or_else(of)
            }
            _ => of(),
        }
    }

    /// What rules have made of host and path.
    fn made(&self, name: &str) -> Option<Result<Symbol, Unsaid>> {
        if name == "path" {
            let said = self.path.as_ref().and_then(super::said::path)?;
            return Some(Ok(Symbol::Said(said, Vec::new())));
        }
        let host = self.headers.get("host")?.said.clone()?;
        Some(match &self.path {
            None => Ok(Symbol::Said(Said::Joined(vec![host, Said::Path]), Vec::new())),
            Some(_) => Err("`base` after the path has been rewritten".to_owned()),
        })
    }

    /// A header that rules have changed.
    fn header(&self, name: &str, first: &str) -> Option<Result<Symbol, Unsaid>> {
        let header = if name.starts_with("req.cook") { "cookie" } else { first };
        Some(match self.headers.get(&header.to_ascii_lowercase())? {
            Header { is_replaced: true, said: Some(Said::Client), more, .. }
                if more.is_empty() && matches!(name, "req.hdr" | "req.fhdr" | "req.hdr_ip") =>
            {
                let call = Call { name: "src".to_owned(), arguments: Vec::new(), map: None };
                Ok(Symbol::Of(call, Vec::new()))
            }
            Header { is_replaced: true, said: Some(said), more, .. }
                if more.is_empty() && matches!(name, "req.hdr" | "req.fhdr") =>
            {
                Ok(Symbol::Said(said.clone(), Vec::new()))
            }
            header if header.is_replaced && header.unsaid.is_none() => self.replaced(name, header),
            _ => Err(format!("header {header:?} after it has been changed")),
        })
    }

    fn replaced(&self, name: &str, header: &Header) -> Result<Symbol, Unsaid> {
        let count = i64::try_from(header.values.len()).unwrap_or(i64::MAX);
        match (name, header.values.as_slice()) {
            ("req.hdr_cnt" | "req.fhdr_cnt", _) => Ok(Symbol::Known(Some(Value::Int(count)))),
            ("req.hdr_val", [only]) => match only.parse() {
                Ok(number) => Ok(Symbol::Known(Some(Value::Int(number)))),
                Err(_) => Err(format!("{only:?} as a number")),
            },
            ("req.hdr_ip", [_, ..]) => Err("an address that has been set".to_owned()),
            (name, _) if name.starts_with("req.cook") => {
                Err("cookies after they have been changed".to_owned())
            }
            (_, []) => Ok(Symbol::Known(None)),
            (_, [only]) if !only.contains(',') => {
                Ok(Symbol::Known(Some(Value::Text(only.clone()))))
            }
            _ => Err("a header of several values".to_owned()),
        }
    }

    /// The text of a format, where the same for all requests.
    pub(super) fn constant(&self, front: &Front, format: &Format) -> Result<String, Unsaid> {
        let mut out = String::new();
        for part in &format.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Variable(name) if name == "f" => out.push_str(&front.name),
                Part::Variable(name) if name == "fp" && front.port.is_some() => {
                    out.extend(front.port.map(|port| port.to_string()));
                }
                Part::Variable(name) => return Err(format!("%{name} is another each time")),
                Part::Sample(expression) => match self.symbol(front, expression)? {
                    Symbol::Known(value) => {
                        out.extend(value.map(|value| value.to_string()));
                    }
                    Symbol::Of(..) | Symbol::Said(..) => {
                        return Err(format!("%[{}] is another each time", expression.text));
                    }
                },
            }
        }
        Ok(out)
    }
}

fn of_environment(name: &str) -> Unsaid {
    format!(
        "the environment of HAProxy ({name}) is not known here: write always_true or always_false \
         for it"
    )
}

/// A condition, and what of it could not be said.
pub(super) struct Read {
    pub(super) condition: Condition,
    pub(super) unsaid: Vec<Unsaid>,
}

/// How TLS names are called in conditions until they become names of rules.
pub(super) const SERVER_NAME: &str = ":server-name";
