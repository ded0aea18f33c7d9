//! Redirects of nginx' own, by `return` and `rewrite`.

use super::{
    At, Condition, Directive, Reply, Rule, Template, Then, Work,
    leads::{UNNAMED, is_bare, leads},
    leaf::substitution,
    pass::ENCODED,
    refusal,
};
use crate::{
    nginx::{pattern::Pattern, template::Part},
    program::{Location, PathChange, Said, SaidChange},
};

/// A redirect to another path of the same host: nginx makes it absolute, unless it is told
/// otherwise.
pub(super) fn redirect_to(at: &At<'_, '_>, status: u16, path: PathChange) -> Reply {
    let mut location = Location { path: Some(path), ..Location::default() };
    if let Some((scheme, host, port)) = at.before_path() {
        (location.scheme, location.host, location.port) = (Some(scheme.into()), host, port);
    }
    Reply { status, location: Some(location), ..Reply::default() }
}

impl<'m, 'c> Work<'m, 'c> {
    /// Bytes that no header of ours has, encoded as clients encode them.
    fn written_location(&mut self, directive: &Directive, to: &str) -> String {
        let is_plain = |byte: u8| (b' '..0x7f).contains(&byte);
        if to.bytes().all(is_plain) {
            return to.to_owned();
        }
        self.approximated(directive, "bytes that are not ASCII are encoded in Location");
        let one = |byte: u8| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        };
        to.bytes().map(one).collect()
    }

    /// `adds` the query of the request where nothing else says so.
    pub(super) fn redirects(
        &mut self,
        at: &At<'m, 'c>,
        directive: &'c Directive,
        (status, to, adds): (u16, &str, bool),
        (groups, own): (Option<&Pattern>, Option<(Said, &Pattern)>),
        when: Condition,
        rules: &mut Vec<Rule>,
    ) {
        let to = &self.written_location(directive, to);
        let template = Template::of(to).map(|to| self.expanded(at, &to));
        let has_query = adds && to.contains('?');
        let told = template.as_ref().ok();
        let told = told.and_then(|to| with_query(leads(at, to, own)?, to, adds));
        let said = template.ok().filter(|_| !has_query).and_then(|to| {
            if let (Some(to), false) = (to.constant().filter(|to| !to.starts_with('/')), adds) {
                let headers = vec![("location".to_owned(), to)];
                return Some((Reply { status, headers, ..Reply::default() }, None));
            }
            let (mut location, how) = location(at, &to, groups)?;
            if (how.is_some() || may_be_empty(&location)) && told.is_some() {
                return None;
            }
            location.strip_query &= !adds;
            Some((Reply { status, location: Some(location), ..Reply::default() }, how))
        });
        let made = |to| {
            let told = vec![("location".to_owned(), to)];
            (Reply { status, told, ..Reply::default() }, None)
        };
        let then = match said.or_else(|| told.map(made)) {
            Some((reply, how)) => {
                let path = reply.location.as_ref().and_then(|to| to.path.as_ref());
                let keeps = matches!(path, Some(PathChange::Pattern { .. }))
                    || reply.told.iter().any(|(_, said)| said.has_path());
                let is_unnamed = reply.told.iter().any(|(_, said)| is_bare(said));
                let is_unnamed =
                    is_unnamed && (to.starts_with('/') || !at.server.name().is_empty());
                match how.or(keeps.then_some(ENCODED)).or(is_unnamed.then_some(UNNAMED)) {
                    None => self.exact(directive),
                    Some(how) => self.approximated(directive, how),
                }
                Then::Reply(reply)
            }
            None => {
                let question = format!(
                    "where {to:?} leads cannot be said: until decided such requests are answered 501"
                );
                self.decision(
                    directive,
                    question,
                    &["a fixed address", "the application redirects"],
                );
                return rules.push(refusal(directive, when, 501));
            }
        };
        rules.push(Rule { place: directive.place.clone(), when, then });
    }
}

/// With the query of the request, where it has one, after what `to` has of its own.
fn with_query(said: Said, to: &Template, adds: bool) -> Option<Said> {
    if !adds {
        return Some(said);
    }
    let has_own = to.0.iter().any(|part| matches!(part, Part::Text(text) if text.contains('?')));
    let substitution = if has_own { "&$1" } else { "?$1" }.to_owned();
    let change = SaidChange::Replace { pattern: "(?s)^(.+)$".into(), substitution, all: false };
    let query = Said::Query.changed(change)?;
    Some(match said {
        Said::Joined(parts) => Said::Joined(parts.into_iter().chain([query]).collect()),
        said => Said::Joined(vec![said, query]),
    })
}

/// Whether nothing may be left of the path: rules of ours answer 500 then.
fn may_be_empty(to: &Location) -> bool {
    matches!(&to.path, Some(PathChange::Pattern { substitution, .. }) if !substitution.starts_with('/'))
}

/// Where a URL leads, and what is different then.
fn location(
    at: &At<'_, '_>,
    to: &Template,
    groups: Option<&Pattern>,
) -> Option<(Location, Option<&'static str>)> {
    let mut parts = to.0.clone();
    let mut out = Location { strip_query: true, ..Location::default() };
    let mut how = None;
    let Some(Part::Text(first)) = parts.first().cloned() else {
        // `$request_uri` alone.
        out = redirect_to(at, 301, PathChange::Whole(String::new())).location?;
        return path(&parts, groups, out, how);
    };
    let scheme =
        ["https", "http"].into_iter().find(|scheme| first.starts_with(&format!("{scheme}://")));
    let Some(scheme) = scheme else {
        out = redirect_to(at, 301, PathChange::Whole(String::new())).location?;
        out.strip_query = true;
        return first.starts_with('/').then(|| path(&parts, groups, out, how))?;
    };
    out.scheme = Some(scheme.to_owned());
    let rest = first[scheme.len() + 3..].to_owned();
    parts[0] = Part::Text(rest.clone());
    if rest.is_empty() {
        parts.remove(0);
        match parts.first()? {
            Part::Variable(name) if name == "host" => {
                how = Some(
                    "the host is as the client names it, with its capitals and a last dot; nothing stands in for one that is not named (HTTP/1.0)",
                );
            }
            Part::Variable(name) if name == "http_host" => {
                how = Some("a port that the client names is left out")
            }
            _ => return None,
        }
        parts.remove(0);
        // A port, perhaps.
        if let Some(Part::Text(text)) = parts.first_mut()
            && let Some(after) = text.strip_prefix(':')
        {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            out.port = Some(after[..end].parse().ok()?);
            *text = after[end..].to_owned();
        }
    } else {
        let end = rest.find('/').unwrap_or(rest.len());
        let (host, port) =
            rest[..end].split_once(':').map_or((&rest[..end], None), |(h, p)| (h, Some(p)));
        out.host = Some(host.to_owned());
        out.port = match port {
            Some(port) => Some(port.parse().ok()?),
            None => None,
        };
        parts[0] = Part::Text(rest[end..].to_owned());
    }
    parts.retain(|part| *part != Part::Text(String::new()));
    path(&parts, groups, out, how)
}

fn path(
    parts: &[Part],
    groups: Option<&Pattern>,
    mut out: Location,
    mut how: Option<&'static str>,
) -> Option<(Location, Option<&'static str>)> {
    let is = |part: Option<&Part>, wanted: &str| matches!(part, Some(Part::Variable(name)) if name == wanted);
    let count = parts.len();
    let keeps = count >= 2 && is(parts.get(count - 2), "is_args") && is(parts.last(), "args");
    let parts = if keeps { &parts[..count - 2] } else { parts };
    out.strip_query = !keeps;
    out.path = match parts {
        [Part::Variable(name)] if name == "request_uri" => {
            out.strip_query = false;
            None
        }
        // As it was sent, which a change of the path is not.
        [Part::Text(_), Part::Variable(name)] if name == "request_uri" => return None,
        [Part::Variable(name)] if name == "uri" => {
            how = Some(ENCODED);
            Some(PathChange::Prefix { from: String::new(), to: String::new() })
        }
        [Part::Text(text), Part::Variable(name)] if name == "uri" => {
            how = Some(ENCODED);
            Some(PathChange::Prefix { from: String::new(), to: text.clone() })
        }
        [Part::Text(text)] => Some(PathChange::Whole(text.clone())),
        _ => {
            let text: String = parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Variable(name) => format!("${{{name}}}"),
                })
                .collect();
            let substitution = substitution(&text, groups)?;
            Some(PathChange::Pattern { pattern: groups?.replacing(), substitution, all: false })
        }
    };
    Some((out, how))
}
