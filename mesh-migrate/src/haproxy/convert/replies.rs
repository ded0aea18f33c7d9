//! Answers of the proxy itself.

use crate::{
    program::{Location, PathChange, Reply, Said},
    source::Place,
};

use super::super::{
    pages,
    rules::{self, Action, Redirect, RedirectKind},
    sample::{Expression, Format, Part},
};
use super::{
    names,
    state::{Header, State},
    unavailable,
    walk::Walk,
};

/// What is said of every refusal: tests know it.
pub(in crate::haproxy) const PAGE: &str = "the page that says so is not HAProxy's";

/// The answer of a rule, where it has one.
pub(super) fn of(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    action: &Action,
    state: &State,
) -> Option<Reply> {
    Some(match action {
        Action::Answer(reply) => answer(walk, place, reply, state),
        Action::Redirect(redirect) => match redirected(walk, place, redirect, state) {
            Ok(reply) => reply,
            Err(why) => {
                let who = match state.when.is_empty() && state.facts.is_empty() {
                    true => "what comes here is",
                    false => "some of what comes here, not all of it, is",
                };
                let question = format!("{why}: {who} answered 503 and not redirected");
                walk.notes.decision(place, question, &["write a redirect by hand"]);
                unavailable()
            }
        },
        Action::Close => {
            walk.notes.approximated(place, "403 is answered; the connection does not end");
            Reply { status: 403, ..Reply::default() }
        }
        Action::Auth(realm) => {
            let question = "passwords are not asked for: all that it may be about is refused (401)";
            let choices = ["authorize by mTLS identity", "ask for passwords in the application"];
            walk.notes.decision(place, question, &choices);
            let mut reply = Reply { status: 401, ..Reply::default() };
            for (name, value) in super::super::explain::challenge(realm.as_deref()) {
                constant(walk, place, (&name, &value), &mut reply);
            }
            reply
        }
        Action::Service(name) => {
            let meaning = format!("{name} is not there: 404 is answered");
            walk.notes.dropped(place, meaning);
            Reply { status: 404, ..Reply::default() }
        }
        _ => return None,
    })
}

fn answer(walk: &mut Walk<'_, '_>, place: &Place, of: &rules::Reply, state: &State) -> Reply {
    let mut reply = Reply { status: of.status, ..Reply::default() };
    if of.is_late {
        walk.notes.approximated(place, "it is answered at once, not after `timeout tarpit`");
    }
    if let Some(file) = &of.file {
        let question = format!("{file} is not read: the answer is empty");
        walk.notes.decision(place, question, &["leave it so", "serve it from an application"]);
    } else if of.is_page() {
        match pages::page(walk.config, of.status) {
            Some((headers, text)) => (reply.headers, reply.body) = (headers, text),
            None => walk.notes.approximated(place, PAGE),
        }
    }
    if let Some(body) = &of.body {
        if let Some(kind) = &of.content_type {
            constant(walk, place, ("content-type", kind), &mut reply);
        }
        match state.constant(walk.front, body) {
            Ok(text) => reply.body = text,
            Err(why) => {
                reply.text = super::action::said(walk, body, state);
                left_out(walk, place, "the text", &why, reply.text.is_none());
            }
        }
    }
    for (name, value) in &of.headers {
        header(walk, place, (name, value), state, &mut reply);
    }
    reply
}

/// `hdr`.
fn header(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    (name, value): (&String, &Format),
    state: &State,
    reply: &mut Reply,
) {
    if let Some(why) = names::why_not(name) {
        return walk.notes.approximated(place, why);
    }
    match state.constant(walk.front, value) {
        Ok(value) => constant(walk, place, (name, &value), reply),
        Err(why) => {
            let said = super::action::told(walk, value, state);
            left_out(walk, place, name, &why, said.is_none());
            reply.told.extend(said.map(|said| (name.clone(), said)));
        }
    }
}

/// The same for all requests.
fn constant(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    (name, value): (&str, &str),
    reply: &mut Reply,
) {
    match names::value(name, value.to_owned()) {
        Err(why) => left_out(walk, place, "it", &why, true),
        Ok(value) => reply.headers.push((name.to_owned(), value)),
    }
}

fn left_out(walk: &mut Walk<'_, '_>, place: &Place, what: &str, why: &str, is_so: bool) {
    if is_so {
        let question = format!("{why}: {what} is left out");
        walk.notes.decision(place, question, &["leave it so"]);
    }
}

fn redirected(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    redirect: &Redirect,
    state: &State,
) -> Result<Reply, String> {
    let headers = pages::of_redirect(redirect.code);
    let mut reply = Reply { status: redirect.code, headers, ..Reply::default() };
    if let Some(cookie) = &redirect.cookie {
        constant(walk, place, ("set-cookie", cookie), &mut reply);
    }
    let to = state.constant(walk.front, &redirect.to);
    let location = match redirect.kind {
        RedirectKind::Location => match to {
            Ok(text) => {
                constant(walk, place, ("location", &text), &mut reply);
                return Ok(reply);
            }
            Err(_) => match super::action::told(walk, &redirect.to, state) {
                Some(said) => {
                    reply.told.push(("location".to_owned(), said));
                    return Ok(reply);
                }
                None => location(walk, place, &redirect.to, state)?,
            },
        },
        RedirectKind::Scheme
            if let Some(target) = target(redirect, state).filter(|_| to.is_ok()) =>
        {
            let scheme = Said::Text(format!("{}://", to?));
            let to = Said::Joined(vec![scheme, Said::Host, target]);
            reply.told.push(("location".to_owned(), to));
            return Ok(reply);
        }
        RedirectKind::Prefix
            if to.is_err()
                && let Some(target) = kept_target(redirect, state)
                && let Some(before) = super::action::told(walk, &redirect.to, state) =>
        {
            let to = Said::Joined(vec![before, target]);
            reply.told.push(("location".to_owned(), to));
            return Ok(reply);
        }
        RedirectKind::Prefix => {
            let mut location = authority(&to?)?;
            rest(&mut location, redirect, state)?;
            location
        }
        RedirectKind::Scheme => {
            let host = host(walk, place, state)?;
            let mut location = Location { scheme: Some(to?), ..host };
            rest(&mut location, redirect, state)?;
            location
        }
    };
    reply.location = Some(location);
    Ok(reply)
}

/// What is behind `Host`, where nothing of both has been changed.
fn target(redirect: &Redirect, state: &State) -> Option<Said> {
    let target = kept_target(redirect, state)?;
    (!state.headers.contains_key("host")).then_some(target)
}

/// Path and query, where they have not been changed.
fn kept_target(redirect: &Redirect, state: &State) -> Option<Said> {
    let is_changed = state.path.is_some() || state.query.is_some() || redirect.appends_slash;
    let target = if redirect.drops_query { Said::Path } else { Said::Target };
    (!is_changed).then_some(target)
}

/// `Host`, as the redirect has it.
fn host(walk: &mut Walk<'_, '_>, place: &Place, state: &State) -> Result<Location, String> {
    match state.headers.get("host") {
        None => {
            keeps_port(walk, place);
            Ok(Location::default())
        }
        Some(Header { is_replaced: true, values, unsaid: None, said: None, .. })
            if values.len() == 1 =>
        {
            Ok(Location { scheme: None, ..authority(&format!("x://{}", values[0]))? })
        }
        Some(_) => Err("`Host` has been changed before".to_owned()),
    }
}

fn keeps_port(walk: &mut Walk<'_, '_>, place: &Place) {
    walk.notes.approximated(place, "a port in `Host` is left out of the redirect");
}

/// `https://host:port/base`, or parts of it; the base is put before the path.
fn authority(text: &str) -> Result<Location, String> {
    let mut location = Location::default();
    let mut base = text;
    if let Some((scheme, rest)) = text.split_once("://") {
        location.scheme = Some(scheme.to_owned());
        let end = rest.find('/').unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        base = after;
        match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().map_err(|_| format!("{authority:?} has no port"))?;
                (location.host, location.port) = (Some(host.to_owned()), Some(port));
            }
            _ => location.host = Some(authority.to_owned()),
        }
        if location.host.as_deref() == Some("") {
            return Err(format!("{text:?} has no host"));
        }
    }
    if base.contains('?') {
        return Err("a query before the path".to_owned());
    }
    if !base.is_empty() && base != "/" || (base == "/" && location.host.is_some()) {
        location.path = Some(PathChange::Prefix { from: String::new(), to: base.to_owned() });
    }
    Ok(location)
}

/// Path and query of the request, as `prefix` and `scheme` put them at the end.
fn rest(location: &mut Location, redirect: &Redirect, state: &State) -> Result<(), String> {
    location.strip_query = redirect.drops_query;
    if state.query.is_some() && !redirect.drops_query {
        return Err("the query has been rewritten before".to_owned());
    }
    if let Some(path) = &state.path {
        if location.path.is_some() {
            return Err("the path has been rewritten before".to_owned());
        }
        location.path = Some(path.clone());
    }
    if redirect.appends_slash {
        if location.path.is_some() || !redirect.drops_query {
            return Err("`append-slash` after another path or a query".to_owned());
        }
        let pattern = "([^/])$".to_owned();
        let substitution = "${1}/".to_owned();
        location.path = Some(PathChange::Pattern { pattern, substitution, all: false });
    }
    Ok(())
}

/// `location` of parts: a scheme, a host or that of the request, then its path.
fn location(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    format: &Format,
    state: &State,
) -> Result<Location, String> {
    let parts = format.parts.as_slice();
    if let [Part::Text(text), Part::Sample(query)] = parts
        && query.text == "query"
        && state.query.is_none()
        && let Some(before) = text.strip_suffix('?')
    {
        walk.notes.approximated(place, "without a query no `?` stands at its end");
        let mut location = authority(before)?;
        if let Some(PathChange::Prefix { to, .. }) = location.path.take() {
            location.path = Some(PathChange::Whole(to));
        }
        return Ok(location);
    }
    let (parts, uri) = match parts.split_last() {
        Some((Part::Sample(last), before))
            if last.fetch.name.starts_with("capture.req.") && !walk.front.captures =>
        {
            (before, None)
        }
        Some((Part::Sample(last), before)) if uri(last).is_some() => (before, uri(last)),
        Some((Part::Variable(name), before)) if matches!(name.as_str(), "HU" | "HP") => {
            if !walk.front.captures {
                return Err(format!("%{name} is not there"));
            }
            (before, Some((name == "HU", false)))
        }
        _ => (parts, None),
    };
    let mut location = match parts {
        [] => Location::default(),
        [Part::Text(text)] => authority(text)?,
        [Part::Text(scheme), Part::Sample(host), more @ ..] => {
            let scheme = scheme.strip_suffix("://").ok_or("this is no scheme")?;
            let host = host_of(walk, place, host, state)?;
            let more = match more {
                [] => Location::default(),
                [Part::Text(text)] => match text.strip_prefix(':') {
                    Some(_) => authority(&format!("x://y{text}"))?,
                    None => authority(text)?,
                },
                _ => return Err("this format has no counterpart".to_owned()),
            };
            Location {
                scheme: Some(scheme.to_owned()),
                host: host.host,
                port: more.port.or(host.port),
                ..more
            }
        }
        _ => return Err("this format has no counterpart".to_owned()),
    };
    match uri {
        None => {
            let whole = match location.path.take() {
                Some(PathChange::Prefix { to, .. }) => to,
                _ => root(walk, place),
            };
            location.path = Some(PathChange::Whole(whole));
            location.strip_query = true;
        }
        Some((has_query, is_changed)) => {
            location.strip_query = !has_query;
            if is_changed && (state.path.is_some() || state.query.is_some()) {
                return Err("the path has been rewritten before".to_owned());
            }
        }
    }
    Ok(location)
}

/// Where no path is written.
fn root(walk: &mut Walk<'_, '_>, place: &Place) -> String {
    walk.notes.approximated(place, "it leads to no path: / stands there with us");
    "/".to_owned()
}

/// Whether a fetch has the query, and whether it is of the request as changed.
fn uri(expression: &Expression) -> Option<(bool, bool)> {
    if !expression.converters.is_empty() {
        return None;
    }
    match expression.fetch.name.as_str() {
        "path" => Some((false, true)),
        "pathq" | "url" => Some((true, true)),
        "capture.req.uri" => Some((true, false)),
        _ => None,
    }
}

/// `hdr(host)`, with its port or without.
fn host_of(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    of: &Expression,
    state: &State,
) -> Result<Location, String> {
    let name = super::super::acl::canonical(&of.fetch.name);
    if name != "req.hdr" || !of.fetch.argument(0).eq_ignore_ascii_case("host") {
        return Err(format!("%[{}] is another each time", of.text));
    }
    match of.converters.as_slice() {
        [] => return host(walk, place, state),
        [only] if only.name == "host_only" => {}
        [only] if only.name == "field" && only.arguments == ["1", ":"] => {}
        _ => return Err(format!("%[{}] has no counterpart", of.text)),
    }
    match state.headers.contains_key("host") {
        true => Ok(Location { port: None, ..host(walk, place, state)? }),
        false => Ok(Location::default()),
    }
}
