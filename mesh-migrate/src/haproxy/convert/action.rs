//! What rules change of a request.

use crate::{
    program::{Forward, PathChange, Said, SaidChange},
    source::Place,
};

use super::super::{
    acl::Method,
    rules::{self, Action, Part as UriPart},
    sample::{Call, Expression, Format, Part},
};
use super::{
    names, sometimes,
    state::{Header, State, Symbol},
    walk::Walk,
};

/// Why a path is not changed once more.
const REWRITTEN: &str = "a line above may have rewritten the path, and ours rewrites one once: \
     requests for which it has keep that path, and this line changes the others";

/// A change of all requests of this state.
pub(super) fn apply(walk: &mut Walk<'_, '_>, rule: &rules::Rule, state: &mut State) {
    let place = &rule.place;
    if let Some(why) = names::of_action(&rule.action, true) {
        return walk.notes.approximated(place, why);
    }
    match &rule.action {
        Action::SetHeader(name, value) => set_header(walk, place, (name, value), state),
        Action::AddHeader(name, value) => add(walk, place, name, value, state),
        Action::DelHeader(name, Method::Exact) => {
            sometimes::replaced(state, name);
            let header = Header { is_replaced: true, ..Header::default() };
            state.headers.insert(name.clone(), header);
        }
        Action::DelHeader(name, _) => {
            let question = format!("headers are removed by name only; {name:?} is a pattern");
            walk.notes.decision(place, question, &["name the headers", "leave it so"]);
        }
        Action::ReplaceHeader { name, .. } => {
            let question = format!("values of headers are not rewritten: {name} stays as it is");
            walk.notes.decision(place, question, &["leave it so"]);
            let header = state.headers.entry(name.clone()).or_default();
            header.unsaid = Some("it has been rewritten".to_owned());
        }
        Action::SetMethod(_) => {
            walk.notes.decision(place, "the method is not changed", &["leave it so"]);
            state.method = Some("`method` after it has been changed".to_owned());
        }
        Action::SetUri(UriPart::Query, to) if state.path.is_none() => {
            let change = query(walk, state, to);
            let is_changed = change.is_ok();
            set_path(walk, place, state, change);
            if is_changed {
                state.query = Some("the query has been changed".to_owned());
            }
        }
        Action::SetUri(UriPart::Query, _) => {
            walk.notes.decision(place, "the query is not changed", &["leave it so"]);
            state.query = Some("the query has been changed".to_owned());
        }
        Action::SetUri(part, to) => {
            let change = path(walk, state, *part, to);
            set_path(walk, place, state, change);
        }
        Action::ReplaceUri(part, pattern, with) => {
            let change = replacement(walk, state, *part, pattern, with);
            set_path(walk, place, state, change);
        }
        Action::SetVar(name, expression) => {
            let symbol = state.symbol(walk.front, expression).map(super::said::single);
            set_var(walk, state, name, symbol);
        }
        Action::SetVarFormat(name, format) => {
            let symbol = match format.parts.as_slice() {
                [Part::Sample(expression)] => {
                    state.symbol(walk.front, expression).map(super::said::single)
                }
                _ => state
                    .constant(walk.front, format)
                    .map(|text| Symbol::Known(Some(super::super::matching::Value::Text(text)))),
            };
            set_var(walk, state, name, symbol);
        }
        Action::UnsetVar(name) => drop(state.variables.remove(name)),
        Action::Unrepeated => state.is_unrepeated = true,
        Action::Other(name) => {
            let question = format!("`{name}` has no counterpart: it is left out");
            walk.notes.decision(place, question, &["leave it so", "write a rule by hand"]);
        }
        _ => {}
    }
}

/// `set-header`.
fn set_header(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    (name, value): (&String, &Format),
    state: &mut State,
) {
    let constant = state.constant(walk.front, value).and_then(|value| names::value(name, value));
    let said = told(walk, value, state).filter(|_| constant.is_err());
    let is_host = |said: &Said| match said {
        Said::Header(name) => name == "host",
        said => *said == Said::Host,
    };
    let is_lower = |said: &Said| match said {
        Said::Changed(of, SaidChange::Lower) => is_host(of),
        said => is_host(said),
    };
    if name == "host" && said.as_ref().is_some_and(is_lower) {
        let how = "Host stays as the client writes it, in capitals or not";
        return walk.notes.approximated(place, how);
    }
    if name == "host" && said.is_some() {
        let how = "Host stays as the client sends it: ours sets it to fixed names only";
        walk.notes.approximated(place, how);
    }
    if let Some(said) = &said {
        tells_first(walk, place, said);
    }
    sometimes::replaced(state, name);
    let unsaid = said.as_ref().map(|_| "it is what each request says".to_owned());
    let mut header = Header { is_replaced: true, said, unsaid, ..Header::default() };
    match constant {
        Ok(value) => header.values.push(value),
        Err(_) if header.said.is_some() => {}
        Err(why) => {
            let question = format!("{why}: {name} is removed and not set");
            walk.notes.decision(place, question, &["set it in the application", "leave it so"]);
            header.unsaid = Some(why);
        }
    }
    state.headers.insert(name.clone(), header);
}

/// A variable keeps what it was where there is no sample.
fn set_var(walk: &Walk<'_, '_>, state: &mut State, name: &str, symbol: Result<Symbol, String>) {
    let is_there = |symbol: &Symbol| state.is_there(walk.front, symbol);
    let symbol = match (symbol, state.variables.get(name)) {
        (Ok(Symbol::Known(None)), _) => return,
        (Ok(new), Some(old)) if is_there(&new) != Some(true) => match old {
            Ok(old) if is_there(old) == Some(false) => Ok(new),
            _ => Err(format!("{name} has been set twice")),
        },
        (symbol, _) => symbol,
    };
    state.variables.insert(name.to_owned(), symbol);
}

/// The same as the value of a header.
pub(super) fn told(walk: &Walk<'_, '_>, value: &Format, state: &State) -> Option<Said> {
    said(walk, value, state).filter(names::is_value)
}

/// What of the request a value is, as it was sent.
pub(super) fn said(walk: &Walk<'_, '_>, value: &Format, state: &State) -> Option<Said> {
    let is_kept = state.path.is_none() && state.query.is_none();
    let part = |part: &Part| match part {
        Part::Text(text) => Some(Said::Text(text.clone())),
        Part::Sample(of) => sampled(walk, of, state),
        Part::Variable(name) => match name.as_str() {
            "ci" => Some(Said::Client),
            "HM" if walk.front.captures => Some(Said::Method),
            "HU" if walk.front.captures => Some(Said::Target),
            "HP" | "HPO" if walk.front.captures => Some(Said::Path),
            "f" => Some(Said::Text(walk.front.name.clone())),
            "fp" => walk.front.port.map(|port| Said::Text(port.to_string())),
            _ => None,
        }
        .filter(|said| is_kept || !matches!(said, Said::Target | Said::Path)),
    };
    let mut parts = value.parts.iter().map(part).collect::<Option<Vec<_>>>()?;
    if parts.len() == 1 { parts.pop() } else { Some(Said::Joined(parts)) }
}

/// What a sample is of the request.
fn sampled(walk: &Walk<'_, '_>, of: &Expression, state: &State) -> Option<Said> {
    match state.symbol(walk.front, of).ok()? {
        Symbol::Known(value) => {
            Some(Said::Text(value.map_or_else(String::new, |value| value.to_string())))
        }
        Symbol::Said(said, converters) => super::said::converted(state, said, &converters),
        Symbol::Of(call, converters) => {
            let first = call.argument(0).to_ascii_lowercase();
            let is_header = matches!(call.name.as_str(), "req.hdr" | "req.fhdr");
            if is_header && first == "host" && is_hostname(&converters) {
                return Some(Said::Hostname);
            }
            super::said::converted(state, super::said::fetched(&call)?, &converters)
        }
    }
}

/// Without port, in lower case.
fn is_hostname(converters: &[Call]) -> bool {
    let is_case = |call: &&Call| call.name == "lower";
    let mut others = converters.iter().filter(|call| !is_case(call));
    let cuts = others.next().is_some_and(|call| {
        call.name == "host_only" || call.name == "field" && call.arguments == ["1", ":"]
    });
    let lowers = converters.iter().any(|call| matches!(&*call.name, "lower" | "host_only"));
    cuts && lowers && others.next().is_none()
}

fn tells_header(said: &Said) -> bool {
    match said {
        Said::Header(_) => true,
        Said::Joined(parts) => parts.iter().any(tells_header),
        Said::Changed(of, _) => tells_header(of),
        _ => false,
    }
}

/// Tells of a value that is a header of the request.
pub(super) fn tells_first(walk: &mut Walk<'_, '_>, place: &Place, said: &Said) {
    if tells_header(said) {
        let how = "of several lines of that header the first one is told";
        walk.notes.approximated(place, how);
    }
}

fn add(walk: &mut Walk<'_, '_>, place: &Place, name: &str, value: &Format, state: &mut State) {
    let constant = state.constant(walk.front, value).and_then(|value| names::value(name, value));
    let said = told(walk, value, state).filter(|_| name != "host");
    let value = constant.as_ref().ok().map(|value| Said::Text(value.clone())).or(said.clone());
    if value.is_some_and(|value| sometimes::adds(state, name, &value)) {
        if let (Err(_), Some(said)) = (constant, said) {
            tells_first(walk, place, &said);
        }
        return;
    }
    let header = state.headers.entry(name.to_owned()).or_default();
    match (constant, said) {
        (Ok(value), _) if header.said.is_none() && header.more.is_empty() => {
            header.values.push(value);
        }
        (Ok(value), _) => header.more.push(Said::Text(value)),
        (Err(_), Some(said)) => {
            tells_first(walk, place, &said);
            header.more.push(said);
            header.unsaid = Some("it is what each request says".to_owned());
        }
        (Err(why), None) => {
            let question = match header.is_replaced {
                true => format!("{why}: {name} is removed and not set"),
                false => format!("{why}: {name} is not added"),
            };
            walk.notes.decision(place, question, &["set it in the application", "leave it so"]);
            header.unsaid = Some(why);
        }
    }
}

/// Headers of the request as the program changes them.
pub(super) fn headers(state: &State, forward: &mut Forward) {
    for (name, header) in &state.headers {
        let mut values = header.values.iter();
        if name == "host" && (header.said.is_some() || header.unsaid.is_some()) {
            continue;
        }
        if let Some(said) = &header.said {
            forward.tell.push((name.clone(), said.clone()));
        } else if header.is_replaced {
            match values.next() {
                Some(first) if name == "host" => forward.host = Some(first.clone()),
                Some(first) => forward.set.push((name.clone(), first.clone())),
                None => forward.remove.push(name.clone()),
            }
        }
        forward.add.extend(values.map(|value| (name.clone(), value.clone())));
        forward.tell_more.extend(header.more.iter().map(|said| (name.clone(), said.clone())));
    }
}

fn set_path(
    walk: &mut Walk<'_, '_>,
    place: &Place,
    state: &mut State,
    change: Result<PathChange, String>,
) {
    match change {
        Ok(change) => state.path = Some(change),
        Err(why) => {
            let question = match why.as_str() {
                REWRITTEN => why,
                why => format!("{why}: the path is not changed"),
            };
            walk.notes.decision(place, question, &["leave it so", "write a rule by hand"]);
        }
    }
}

/// `set-query` of the same text for all.
fn query(walk: &Walk<'_, '_>, state: &State, to: &Format) -> Result<PathChange, String> {
    let to = state.constant(walk.front, to)?.replace('$', "$$");
    let (pattern, substitution) = ("(?s)^.*$".to_owned(), format!("${{0}}?{to}"));
    Ok(PathChange::Pattern { pattern, substitution, all: false })
}

/// `set-path`, `set-pathq`, `set-uri`.
fn path(
    walk: &Walk<'_, '_>,
    state: &State,
    part: UriPart,
    to: &Format,
) -> Result<PathChange, String> {
    if let Ok(text) = state.constant(walk.front, to) {
        return match part {
            UriPart::Path if !text.contains('?') => Ok(PathChange::Whole(text)),
            _ => Err("the query is not changed".to_owned()),
        };
    }
    let (before, expression) = match to.parts.as_slice() {
        [Part::Sample(expression)] => ("", expression),
        [Part::Text(before), Part::Sample(expression)] => (before.as_str(), expression),
        _ => return Err("this format has no counterpart".to_owned()),
    };
    let of = match part {
        UriPart::Path => &["path"][..],
        _ => &["pathq", "url", "capture.req.uri"][..],
    };
    if !of.contains(&expression.fetch.name.as_str()) {
        return Err(format!("%[{}] is another each time", expression.text));
    }
    match (expression.converters.as_slice(), &state.path) {
        ([], Some(PathChange::Prefix { from, to })) if to.starts_with('/') => {
            Ok(PathChange::Prefix { from: from.clone(), to: format!("{before}{to}") })
        }
        (_, Some(_)) => Err(REWRITTEN.to_owned()),
        ([], None) => Ok(PathChange::Prefix { from: String::new(), to: before.to_owned() }),
        ([only], None) if only.name == "regsub" && before.is_empty() && part == UriPart::Path => {
            regsub(expression)
        }
        ([only], None) if part == UriPart::Path => {
            match super::said::one(state, Said::Path, only) {
                // What does not match stays: of these everything does.
                Some(Said::Changed(
                    _,
                    SaidChange::Replace { pattern, substitution, all: false },
                )) if pattern.starts_with("(?s)^") && substitution == "$1" => {
                    let substitution = format!("{}$1", before.replace('$', "$$"));
                    Ok(PathChange::Pattern { pattern, substitution, all: false })
                }
                _ => match (literal(only.argument(0)), only.argument(1)) {
                    (Some(from), "/") if only.name == "regsub" && only.argument(2).is_empty() => {
                        let pattern = format!("^(?:{}|/)", regex::escape(&from));
                        let substitution = format!("{}/", before.replace('$', "$$"));
                        Ok(PathChange::Pattern { pattern, substitution, all: false })
                    }
                    _ => Err(format!("%[{}] has no counterpart", expression.text)),
                },
            }
        }
        _ => Err(format!("%[{}] has no counterpart", expression.text)),
    }
}

fn regsub(expression: &Expression) -> Result<PathChange, String> {
    let call = &expression.converters[0];
    let (pattern, with, flags) = (call.argument(0), call.argument(1), call.argument(2));
    if let Some(from) = literal(pattern)
        && flags.is_empty()
        && !with.contains(['\\', '$'])
    {
        return Ok(PathChange::Prefix { from, to: with.to_owned() });
    }
    let pattern = if flags.contains('i') { format!("(?i){pattern}") } else { pattern.to_owned() };
    compiles(&pattern)?;
    let substitution = super::said::replaced(&pattern, with);
    Ok(PathChange::Pattern { pattern, substitution, all: flags.contains('g') })
}

/// Whether what ends a URI, with its query, ends what takes its place, too.
fn keeps_query(pattern: &str, with: &str) -> bool {
    let pattern = pattern.strip_suffix('$').unwrap_or(pattern);
    let groups = pattern.matches('(').count() - pattern.matches("(?").count();
    (pattern.ends_with("(.*)") || pattern.ends_with("(/.*)"))
        && pattern.starts_with('^')
        && with.ends_with(&format!("\\{groups}"))
        && !pattern.contains(['?', '\\'])
}

fn compiles(pattern: &str) -> Result<(), String> {
    match super::super::matching::regex(pattern, false) {
        Some(_) => Ok(()),
        None => Err(format!("the regular expression {pattern:?} has no counterpart")),
    }
}

/// What an anchored expression begins with, if it is nothing else.
fn literal(pattern: &str) -> Option<String> {
    let text = pattern.strip_prefix('^')?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_' | '~' | '%');
    text.chars().all(is_plain).then(|| text.to_owned())
}

/// `replace-path`, `replace-pathq`, `replace-uri`: where the expression matches
/// anywhere, all is replaced.
fn replacement(
    walk: &Walk<'_, '_>,
    state: &State,
    part: UriPart,
    pattern: &str,
    with: &Format,
) -> Result<PathChange, String> {
    let with = state.constant(walk.front, with)?;
    if state.path.is_some() {
        return Err(REWRITTEN.to_owned());
    }
    let prefix = pattern.strip_suffix('$').unwrap_or(pattern).strip_suffix("(.*)");
    if let (Some(from), Some(to)) = (prefix.and_then(literal), with.strip_suffix(r"\1"))
        && !to.contains(['\\', '$', '?'])
    {
        return Ok(PathChange::Prefix { from, to: to.to_owned() });
    }
    if part != UriPart::Path && !keeps_query(pattern, &with) {
        return Err("an expression over path and query has no counterpart".to_owned());
    }
    compiles(pattern)?;
    if with.contains('?') {
        return Err("a query made of the path has no counterpart".to_owned());
    }
    let substitution = super::said::replaced(pattern, &with).replace("${0}", "$0");
    let pattern = format!("^(?s:.*?)(?:{pattern})(?s:.*)$");
    if with.contains(r"\0") {
        return Err("the whole match in a replacement has no counterpart".to_owned());
    }
    Ok(PathChange::Pattern { pattern, substitution, all: false })
}
