//! Identifiers: how a request gets the name of a service.

use regex::Regex;

use super::{
    config::{Identifier, IdentifierKind, Protocol, Router},
    name::Name,
    world::{IngressRule, World},
};
use crate::{
    request::Http,
    source::{Place, Problem},
};

/// The largest pattern of an Ingress, compiled.
const MAX_PATTERN: usize = 1 << 20;

/// What a request is called.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Identified {
    /// This, below the router's prefix, and how the application sees its target.
    Name { below: Name, target: Option<String>, place: Place, how: String },
    /// Nobody knows it: 400.
    Nobody(String),
}

/// Asks the identifiers of a router in turn.
///
/// # Errors
///
/// One that must be asked needs what is not known here.
pub(super) fn identify(router: &Router, http: &Http, world: &World) -> Result<Identified, Problem> {
    let mut reasons = Vec::new();
    for identifier in &router.identifiers {
        match one(identifier, router, http, world)? {
            Said::Name(below, target, how) => {
                let place = identifier.place.clone();
                return Ok(Identified::Name { below, target, place, how });
            }
            Said::NotMine(reason) => reasons.push(reason),
            Said::Wrong(reason) => return Ok(Identified::Nobody(reason)),
        }
    }
    Ok(Identified::Nobody(reasons.join("; ")))
}

enum Said {
    Name(Name, Option<String>, String),
    NotMine(String),
    Wrong(String),
}

fn one(
    identifier: &Identifier,
    router: &Router,
    http: &Http,
    world: &World,
) -> Result<Said, Problem> {
    let said = match &identifier.kind {
        IdentifierKind::HeaderToken(header) => match value(http, header) {
            Some(token) if !token.is_empty() => {
                Said::Name(Name::of([token]), None, format!("{header} is {token:?}"))
            }
            _ => Said::NotMine(format!("{header} is absent or empty")),
        },
        IdentifierKind::Header(header) => match value(http, header) {
            Some(path) if !path.is_empty() => read(path, format!("{header} is {path:?}")),
            _ => Said::NotMine(format!("{header} is absent")),
        },
        IdentifierKind::MethodAndHost(with_path) => method_and_host(http, *with_path),
        IdentifierKind::Path { segments, consume } => by_path(http, *segments, *consume),
        IdentifierKind::HeaderPath(header, segments) => by_header_path(http, header, *segments),
        IdentifierKind::Static(name) => {
            Said::Name(name.clone(), None, "every request has the same name".into())
        }
        IdentifierKind::Ingress { namespace, class, ignores_default_backends } => {
            let rules = world.ingress_rules(namespace.as_deref(), class, *ignores_default_backends);
            let Some(rules) = rules else {
                let wrong = "the rules of Ingresses are in the cluster, and are not known here";
                return Err(Problem::at(&identifier.place, wrong));
            };
            by_ingress(http, &rules)
        }
        IdentifierKind::Istio => {
            let wrong = "io.l5d.k8s.istio asks Istio Pilot for its routes, which no file holds";
            return Err(Problem::at(&identifier.place, wrong));
        }
        IdentifierKind::Other(kind) => {
            let wrong = format!("{kind} is an identifier of a plugin, which is not known here");
            return Err(Problem::at(&identifier.place, wrong));
        }
    };
    // Of HTTP/2, `:authority` and `:path` are headers; of HTTP/1 they are none.
    Ok(match (said, &router.protocol) {
        (Said::Name(..), Protocol::Http) if asks_pseudo_header(&identifier.kind) => {
            Said::NotMine("HTTP/1 has no such header".into())
        }
        (said, _) => said,
    })
}

fn asks_pseudo_header(kind: &IdentifierKind) -> bool {
    match kind {
        IdentifierKind::HeaderToken(header) | IdentifierKind::Header(header) => {
            header.starts_with(':')
        }
        _ => false,
    }
}

/// The first value of a header or pseudo-header.
pub(super) fn value<'h>(http: &'h Http, header: &str) -> Option<&'h str> {
    match header {
        ":authority" => http.host.as_deref(),
        ":path" => Some(&http.target),
        ":method" => Some(&http.method),
        _ => http.header(header),
    }
}

fn read(path: &str, how: String) -> Said {
    match Name::read(path) {
        Ok(name) => Said::Name(name, None, how),
        Err(wrong) => Said::Wrong(wrong),
    }
}

fn method_and_host(http: &Http, with_path: bool) -> Said {
    let mut labels = if http.is_http10 {
        vec!["1.0".to_owned(), http.method.clone()]
    } else {
        match http.host.as_deref() {
            Some(host) if !host.is_empty() => {
                vec!["1.1".to_owned(), http.method.clone(), host.to_lowercase()]
            }
            _ => return Said::NotMine("HTTP/1.1 without a host".into()),
        }
    };
    let how = format!("method and host are {}", labels.join(" "));
    let name = Name::of(labels.drain(..));
    if !with_path {
        return Said::Name(name, None, how);
    }
    match Name::read(http.path()) {
        Ok(path) => Said::Name(name.join(&path), None, how),
        Err(wrong) => Said::Wrong(wrong),
    }
}

/// Segments of a path as Java's `split` has them: empty ones at the end do not count.
pub(super) fn segments(path: &str) -> Vec<&str> {
    let mut parts: Vec<&str> = path.split('/').collect();
    while parts.last().is_some_and(|part| part.is_empty()) {
        parts.pop();
    }
    if parts.is_empty() { parts } else { parts.split_off(1) }
}

fn by_path(http: &Http, count: usize, consume: bool) -> Said {
    let path = http.path();
    let parts = segments(path);
    if parts.len() < count {
        return Said::NotMine(format!("{path} has less than {count} segments"));
    }
    let (first, rest) = parts.split_at(count);
    let how = format!("the path begins with {}", first.join("/"));
    let target = consume.then(|| {
        let end = if path.ends_with('/') && !rest.is_empty() { "/" } else { "" };
        let query = http.query().map_or_else(String::new, |query| format!("?{query}"));
        format!("/{}{end}{query}", rest.join("/"))
    });
    Said::Name(Name::of(first), target, how)
}

fn by_header_path(http: &Http, header: &str, count: Option<usize>) -> Said {
    let value = value(http, header).unwrap_or_default();
    let path = value.split_once('?').map_or(value, |(path, _)| path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let name = if path.is_empty() { Ok(Name::default()) } else { Name::read(path) };
    let name = match name {
        Ok(name) => name,
        Err(wrong) => return Said::Wrong(wrong),
    };
    match count {
        Some(count) if name.len() < count => {
            Said::NotMine(format!("{header} has less than {count} segments"))
        }
        None if name.is_empty() => Said::NotMine(format!("{header} names no path")),
        count => {
            let (name, _) = name.split(count.unwrap_or(usize::MAX));
            let how = format!("{header} begins with {name}");
            Said::Name(name, None, how)
        }
    }
}

fn by_ingress(http: &Http, rules: &[(String, IngressRule)]) -> Said {
    let host = http.host.as_deref().map(|host| host.split(':').next().unwrap_or_default());
    let fits = |rule: &IngressRule| {
        rule.host.as_deref().is_none_or(|known| host == Some(known))
            && rule.path.as_deref().is_none_or(|pattern| matches_whole(pattern, http.path()))
    };
    match rules.iter().find(|(_, rule)| fits(rule)) {
        Some((namespace, rule)) => {
            let how =
                format!("an Ingress of {namespace} sends it to {}:{}", rule.service, rule.port);
            Said::Name(Name::of([namespace, &rule.port, &rule.service]), None, how)
        }
        None => Said::NotMine("no rule of an Ingress matches".into()),
    }
}

/// A path of an Ingress is a regular expression for the whole path; an empty one takes
/// all.
fn matches_whole(pattern: &str, path: &str) -> bool {
    let whole = || {
        regex::RegexBuilder::new(&format!(r"\A(?:{pattern})\z"))
            .size_limit(MAX_PATTERN)
            .build()
            .ok()
    };
    pattern.is_empty() || whole().is_some_and(|whole: Regex| whole.is_match(path))
}
