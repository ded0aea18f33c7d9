//! Connections of `stream`.

use std::{cell::RefCell, net::SocketAddr};

use super::{Problem, access, bad, model, proxy, servers, variables};
use crate::{
    nginx::{
        model::{Key, Method, Model, Server},
        template::{Part, Template},
    },
    request::{Answer, Forwarded, Kind, Outcome, Request, Step},
    source::Place,
};

/// Maps that use maps.
const MAX_DEPTH: u32 = 32;

/// What is done with a connection; with one of HTTP, too: nobody looks into it.
pub(super) fn explain(
    model: &Model<'_>,
    request: &Request,
    local: SocketAddr,
) -> Result<Answer, Problem> {
    let here = servers(&model.stream, local);
    let (server, listen) = here[0];
    let server_name = match &request.kind {
        Kind::Connection { server_name } => server_name.as_deref(),
        Kind::Http(_) => None,
    };
    let mut why = vec![Step {
        place: Some(server.directive.place.clone()),
        what: format!("the server of {local}"),
    }];
    let mut step = |place: &Place, what: String| {
        why.push(Step { place: Some(place.clone()), what });
    };
    let refusal = access::rule(&server.chain, request.source)?;
    let outcome = if let Some(rule) = refusal.filter(|rule| rule.name == "deny") {
        step(&rule.place, format!("deny {} takes {}", rule.arg(0), request.source));
        Outcome::Closed
    } else if let Some(returns) = server.directive.all("return").next() {
        step(&returns.place, "nginx answers and closes".into());
        Outcome::Closed
    } else {
        let pass = server.directive.all("proxy_pass").next();
        let pass = pass.ok_or_else(|| {
            bad(&server.directive.place, "the server passes nothing on: proxy_pass was expected")
        })?;
        let at = Connection {
            model,
            server,
            request,
            local,
            server_name,
            is_tls: listen.is_tls,
            entries: RefCell::default(),
        };
        let value = at.text(pass.arg(0), MAX_DEPTH).map_err(|wrong| bad(&pass.place, wrong))?;
        for (place, value) in at.entries.take() {
            step(&place, format!("the map takes {value:?}"));
        }
        match model.stream.upstreams.get(&value.to_ascii_lowercase()) {
            Some(upstream) => {
                if let Method::Other(name) = &upstream.method {
                    return Err(bad(
                        &upstream.directive.place,
                        format!("how {name} chooses is not known"),
                    ));
                }
                step(&upstream.directive.place, format!("upstream {value}"));
                let (endpoints, is_sticky) = proxy::peers(upstream);
                step(&pass.place, format!("passed on to {value}"));
                if endpoints.is_empty() {
                    Outcome::Closed
                } else {
                    forwarded(value, endpoints, is_sticky)
                }
            }
            None => match model::endpoint(&value, 0) {
                Some(endpoint)
                    if !value.is_empty() && !value.ends_with(":0") && value.contains(':') =>
                {
                    step(&pass.place, format!("passed on to {value}"));
                    forwarded(value, vec![(endpoint, 1.0)], false)
                }
                _ => {
                    step(&pass.place, format!("{value:?} is no address and no upstream: closed"));
                    Outcome::Closed
                }
            },
        }
    };
    Ok(Answer { outcome, why })
}

fn forwarded(
    pool: String,
    endpoints: Vec<(crate::request::Endpoint, f64)>,
    is_sticky: bool,
) -> Outcome {
    let pools = vec![(pool, 1.0)];
    Outcome::Forwarded(Forwarded { pools, endpoints, is_sticky, target: None, headers: Vec::new() })
}

struct Connection<'m, 'c> {
    model: &'m Model<'c>,
    server: &'m Server<'c>,
    request: &'m Request,
    local: SocketAddr,
    server_name: Option<&'m str>,
    is_tls: bool,
    /// Entries of maps that were chosen, and for what.
    entries: RefCell<Vec<(Place, String)>>,
}

impl Connection<'_, '_> {
    fn text(&self, written: &str, depth: u32) -> Result<String, String> {
        self.template(&Template::of(written)?, depth)
    }

    fn template(&self, template: &Template, depth: u32) -> Result<String, String> {
        let mut out = String::new();
        for part in &template.0 {
            match part {
                Part::Text(text) => out += text,
                Part::Variable(name) => out += &self.variable(name, depth)?,
            }
        }
        Ok(out)
    }

    fn variable(&self, name: &str, depth: u32) -> Result<String, String> {
        if let Some(map) = self.model.stream.maps.get(name) {
            let inner = depth.checked_sub(1).ok_or("a map uses itself")?;
            let value = self.template(&map.source, inner)?;
            let chosen = variables::chosen(map, value.as_bytes())?;
            let of = chosen.map(|(at, _)| map.entries[at].2).or(map.default.as_ref().map(|d| d.1));
            let place = of.unwrap_or(map.directive).place.clone();
            self.entries.borrow_mut().push((place, value));
            let Some((at, pattern)) = chosen else {
                let default = map.default.as_ref();
                return default
                    .map_or(Ok(String::new()), |(default, _)| self.template(default, inner));
            };
            let (key, to, directive) = &map.entries[at];
            if matches!(key, Key::Regex(_))
                && pattern.is_some()
                && to.variables().any(|v| v.bytes().all(|b| b.is_ascii_digit()))
            {
                return Err(format!("the groups of {} are not followed", directive.place));
            }
            return self.template(to, inner);
        }
        if let Some(geo) = self.model.stream.geos.get(name).filter(|geo| !geo.is_odd) {
            let source = self.request.source;
            let taken =
                geo.blocks.iter().find(|(block, ..)| access::within(block, source) == Some(true));
            let taken = taken.map(|(_, _, value, directive)| (value, directive));
            let Some((value, directive)) = taken.or(geo.default.as_ref().map(|d| (&d.0, &d.1)))
            else {
                return Ok(String::new());
            };
            self.entries.borrow_mut().push((directive.place.clone(), source.to_string()));
            return Ok(value.clone());
        }
        if let Some(set) =
            self.server.directive.all("set").find(|set| set.arg(0).trim_start_matches('$') == name)
        {
            let inner = depth.checked_sub(1).ok_or("a variable uses itself")?;
            return self.text(set.arg(1), inner);
        }
        let sni = self.server_name.unwrap_or_default().to_ascii_lowercase();
        let prereads = model::is_on(&self.server.chain, "ssl_preread", false);
        Ok(match name {
            "ssl_preread_server_name" if prereads => sni,
            "ssl_preread_server_name" | "ssl_preread_protocol" if !prereads => String::new(),
            "ssl_server_name" if self.is_tls => sni,
            "remote_addr" => self.request.source.to_string(),
            "server_addr" => self.local.ip().to_string(),
            "server_port" => self.local.port().to_string(),
            "protocol" => "TCP".into(),
            _ => return Err(format!("what ${name} is cannot be known from the configuration")),
        })
    }
}
