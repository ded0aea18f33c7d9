//! What samples are of a request, as templates of ours have it.

use crate::program::{PathChange, Said, SaidChange};

use super::super::{acl::Method, matching, sample::Call, sample::substitution};
use super::{
    joined,
    state::{Front, State, Symbol},
    text::Leaf,
};

/// Fields and words that are counted, at most.
const MAX_COUNT: i64 = 64;

/// Of the request as it was sent.
pub(super) fn fetched(call: &Call) -> Option<Said> {
    let first = call.argument(0).to_ascii_lowercase();
    let is_header = matches!(call.name.as_str(), "req.hdr" | "req.fhdr");
    Some(match call.name.as_str() {
        "src" => Said::Client,
        "method" | "capture.req.method" => Said::Method,
        "path" => Said::Path,
        "pathq" | "url" | "capture.req.uri" => Said::Target,
        "query" => Said::Query,
        "base" => Said::Joined(vec![Said::Host, Said::Path]),
        "baseq" => Said::Joined(vec![Said::Host, Said::Target]),
        "req.cook" if is_name(call.argument(0)) => return last_cookie(call.argument(0)),
        "url_param" if is_name(call.argument(0)) && call.argument(1).is_empty() => {
            Said::Parameter(call.argument(0).to_owned())
        }
        _ if is_header && first == "host" => Said::Host,
        "req.hdr" if is_name(&first) => return value(first, call.argument(1)),
        "req.fhdr" if is_name(&first) && matches!(call.argument(1), "" | "1") => {
            Said::Header(first)
        }
        _ => return None,
    })
}

/// Whether a fetch has several samples where it is compared, and one where it is told.
fn has_several(call: &Call) -> bool {
    let is_host = call.argument(0).eq_ignore_ascii_case("host");
    match call.name.as_str() {
        "req.hdr" | "req.fhdr" => !is_host && call.argument(1).is_empty(),
        name => name == "req.cook",
    }
}

/// The one sample that a variable has, or the name of a backend.
pub(super) fn single(symbol: Symbol) -> Symbol {
    match symbol {
        Symbol::Of(call, converters) if has_several(&call) => match fetched(&call) {
            Some(said) => Symbol::Said(said, converters),
            None => Symbol::Of(call, converters),
        },
        other => other,
    }
}

/// Commas in what is quoted are none between values.
const VALUE: &str = r#"(?:[^",]|"(?:[^"\\]|\\.)*(?:"|$))*"#;

/// A value of a header between commas, of all lines: the n-th, the last where no number
/// is said.
fn value(name: String, n: &str) -> Option<Said> {
    // Cookies are joined otherwise.
    let lines = if name == "cookie" { Said::Header(name) } else { Said::Headers(name) };
    let (pattern, substitution) = match n {
        "" | "0" | "-1" => (format!(r"(?s)^(?:{VALUE},)*[ \t]*"), ""),
        n => {
            let before = n.parse().ok().filter(|n| (1..=MAX_COUNT).contains(n))? - 1;
            let lazy = format!("{VALUE}?");
            let pattern =
                format!(r"(?s)^(?:(?:{VALUE},){{{before}}}[ \t]*({lazy})[ \t]*(?:,.*)?|.*)$");
            (pattern, "$1")
        }
    };
    let substitution = substitution.to_owned();
    lines.changed(SaidChange::Replace { pattern, substitution, all: false })
}

/// The last cookie of this name.
fn last_cookie(name: &str) -> Option<Said> {
    let name = regex::escape(name);
    let value = r#""(?:[^"\\]|\\.)*"|[^;,]*?"#;
    let pattern =
        format!(r"(?s)^(?:(?:.*[;,])?[ \t]*{name}[ \t]*=[ \t]*({value})[ \t]*(?:[;,].*)?|.*)$");
    let cookies = Said::Headers("cookie".to_owned());
    cookies.changed(SaidChange::Replace { pattern, substitution: "$1".to_owned(), all: false })
}

/// The same where it is compared: it must be there, or nothing empty may be like it, and
/// have one value.
pub(super) fn compared(front: &Front, call: &Call, leaf: &Leaf) -> Option<Said> {
    if front.is_tcp || has_several(call) {
        return None;
    }
    let said = fetched(call)?;
    match said {
        Said::Client => None,
        Said::Header(_) | Said::Changed(..) | Said::Parameter(_) => {
            let is_empty = matching::compare(leaf.method, "", &leaf.pattern, leaf.ignores_case);
            (leaf.method != Method::Found && !is_empty).then_some(said)
        }
        said => Some(said),
    }
}

/// The path after a change.
pub(super) fn path(change: &PathChange) -> Option<Said> {
    let (pattern, substitution, all) = match change {
        PathChange::Whole(_) => return None,
        PathChange::Prefix { from, to } => {
            (format!("^{}", without_tildes(&regex::escape(from))), to.replace('$', "$$"), false)
        }
        PathChange::Pattern { pattern, substitution, all } => {
            (without_tildes(pattern), substitution.clone(), *all)
        }
    };
    // What comes after a `?` is no path.
    if substitution.contains('?') {
        return None;
    }
    Said::Path.changed(SaidChange::Replace { pattern, substitution, all })
}

pub(super) fn converted(state: &State, said: Said, converters: &[Call]) -> Option<Said> {
    match converters.split_last() {
        Some((call, before)) if joined::joins_nothing(&said, converters) => {
            // Only the last one can be said behind what may not be there.
            let is_last = call.name == "concat" && !joined::joins_nothing(&said, before);
            let said = converted(state, said, before).filter(|_| is_last)?;
            joined::behind(state, said, call)
        }
        _ => converters.iter().try_fold(said, |said, call| one(state, said, call)),
    }
}

/// What one converter makes of it.
pub(super) fn one(state: &State, said: Said, call: &Call) -> Option<Said> {
    if call.map.is_some() {
        return None;
    }
    let replace = |pattern: String, with: &str| SaidChange::Replace {
        pattern,
        substitution: with.to_owned(),
        all: false,
    };
    let first = call.argument(0);
    if (call.name.as_str(), first, &said) == ("regsub", "^", &Said::Query) {
        return before_query(&substitution(call.argument(1)));
    }
    let class = |delimiters: &str| -> String {
        delimiters.chars().map(|c| regex::escape(&c.to_string())).collect()
    };
    let change = match call.name.as_str() {
        "lower" => SaidChange::Lower,
        "host_only" => {
            return said.changed(replace(":[0-9]*$".into(), ""))?.changed(SaidChange::Lower);
        }
        "field" | "word" if call.arguments.len() == 2 && !call.argument(1).is_empty() => {
            let pattern = part(call.name == "word", first.parse().ok()?, &class(call.argument(1)))?;
            replace(pattern, "$1")
        }
        "ltrim" if !first.is_empty() => replace(format!("^[{}]+", class(first)), ""),
        "rtrim" if !first.is_empty() => replace(format!("[{}]+$", class(first)), ""),
        "bytes" => {
            let (from, length) = (first.parse::<u16>().ok()?, call.argument(1));
            let length = match length {
                "" => String::new(),
                length => length.parse::<u16>().ok()?.to_string(),
            };
            replace(format!("(?s)^(?:.{{{from}}}(.{{0,{length}}}).*|.*)$"), "$1")
        }
        "regsub" => {
            let flags = call.argument(2);
            matching::regex(first, flags.contains('i'))?;
            let pattern =
                if flags.contains('i') { format!("(?i){first}") } else { first.to_owned() };
            let (substitution, all) = (replaced(first, call.argument(1)), flags.contains('g'));
            let pattern = without_tildes(&pattern);
            SaidChange::Replace { pattern, substitution, all }
        }
        "concat" => {
            let variable = match state.variables.get(call.argument(1)) {
                _ if call.argument(1).is_empty() => Said::Text(String::new()),
                None => Said::Text(String::new()),
                Some(Ok(Symbol::Known(value))) => {
                    Said::Text(value.as_ref().map_or_else(String::new, ToString::to_string))
                }
                Some(Ok(Symbol::Said(said, more))) => converted(state, said.clone(), more)?,
                Some(Ok(Symbol::Of(call, more))) => converted(state, fetched(call)?, more)?,
                Some(Err(_)) => return None,
            };
            let text = |at| Said::Text(call.argument(at).to_owned());
            let mut parts = match said {
                Said::Joined(parts) => parts,
                said => vec![said],
            };
            parts.extend([text(0), variable, text(2)]);
            parts.retain(|part| *part != Said::Text(String::new()));
            return Some(Said::Joined(parts));
        }
        _ => return None,
    };
    said.changed(change)
}

/// What takes the place of a match, without groups that the expression does not have.
pub(super) fn replaced(pattern: &str, with: &str) -> String {
    let groups = matching::regex(pattern, false).map_or(10, |pattern| pattern.captures_len());
    let mut known = String::new();
    let mut chars = with.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            known.push(char);
            continue;
        }
        let next = chars.next();
        let group = next.and_then(|digit| digit.to_digit(10));
        if group.is_none_or(|group| (group as usize) < groups) {
            known.push(char);
            known.extend(next);
        }
    }
    substitution(&known)
}

/// The same expression: templates have tildes around one.
fn without_tildes(pattern: &str) -> String {
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(char) = chars.next() {
        match char {
            '~' => out.push_str("\\x7E"),
            '\\' => {
                out.push(char);
                out.extend(chars.next());
            }
            char => out.push(char),
        }
    }
    out
}

/// A text before the query, where there is one.
fn before_query(text: &str) -> Option<Said> {
    let replace = |pattern: &str, with: &str| SaidChange::Replace {
        pattern: pattern.to_owned(),
        substitution: with.to_owned(),
        all: false,
    };
    let nothing = Said::Target.changed(replace("(?s)^[^?]*$", ""))?;
    nothing.changed(replace("(?s)^[^?]*[?]", text))
}

/// An expression of which the first group is that part; nothing where there is none.
fn part(is_word: bool, n: i64, class: &str) -> Option<String> {
    let (empty, delimiters) =
        if is_word { ("+", format!("[{class}]+")) } else { ("*", format!("[{class}]")) };
    let leading = if is_word { format!("[{class}]*") } else { String::new() };
    match n {
        1..=MAX_COUNT => Some(format!(
            "(?s)^(?:{leading}(?:[^{class}]{empty}{delimiters}){{{}}}([^{class}]{empty})\
             (?:[{class}].*)?|.*)$",
            n - 1
        )),
        -1 if is_word => Some(format!("(?s)^(?:(?:.*[{class}])?([^{class}]+)[{class}]*|.*)$")),
        -1 => Some(format!("(?s)^(?:.*[{class}])?([^{class}]*)$")),
        _ => None,
    }
}

/// Whether it can be named in a template.
pub(super) fn is_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.bytes().all(is_good)
}
