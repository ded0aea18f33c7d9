//! Sample expressions: a fetch and its converters (configuration manual, 7.3), and
//! log-formats, which are texts with such in them (8.2.6).

use std::sync::Arc;

use crate::source::{Place, Problem};

use super::list::{Files, List};

/// `fetch(arguments),converter(arguments)…`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expression {
    /// Where it begins.
    pub(super) place: Place,
    /// As it is written.
    pub(super) text: String,
    /// What is looked at.
    pub(super) fetch: Call,
    /// What it becomes, in order.
    pub(super) converters: Vec<Call>,
}

/// A fetch or a converter.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    /// In lower case only where it is written so.
    pub(super) name: String,
    /// As they are written, without quotes.
    pub(super) arguments: Vec<String>,
    /// What a `map` reads.
    pub(super) map: Option<Arc<List>>,
}

impl Call {
    /// The n-th argument, empty where there is none.
    pub(super) fn argument(&self, n: usize) -> &str {
        self.arguments.get(n).map_or("", String::as_str)
    }
}

/// A part of a log-format.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// As it is.
    Text(String),
    /// `%[…]`.
    Sample(Arc<Expression>),
    /// `%ci` and its like.
    Variable(String),
}

/// A log-format.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Format {
    /// Where it begins.
    pub(super) place: Place,
    /// In order; no two texts beside each other.
    pub(super) parts: Vec<Part>,
}

impl Format {
    /// A text that is none.
    pub(super) fn of(place: &Place, text: &str) -> Self {
        Self { place: place.clone(), parts: vec![Part::Text(text.to_owned())] }
    }
}

/// Expressions in one, at most.
const MAX_CALLS: usize = 64;

/// A whole text as an expression.
pub(super) fn expression(
    text: &str,
    place: &Place,
    files: &Files<'_>,
) -> Result<Expression, Problem> {
    let (expression, rest) = beginning(text, place, files)?;
    match rest {
        "" => Ok(expression),
        rest => Err(Problem::at(place, format!("{rest:?} after the expression in {text:?}"))),
    }
}

/// An expression at the beginning of a text, and what follows.
fn beginning<'t>(
    text: &'t str,
    place: &Place,
    files: &Files<'_>,
) -> Result<(Expression, &'t str), Problem> {
    let mut calls = Vec::new();
    let mut rest = text;
    loop {
        let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() {
            let problem = format!("no name of a sample fetch or converter at {rest:?} in {text:?}");
            return Err(Problem::at(place, problem));
        }
        let (arguments, after) = match after.strip_prefix('(') {
            Some(inner) => arguments(inner)
                .ok_or_else(|| Problem::at(place, format!("no `)` for {name}( in {text:?}")))?,
            None => (Vec::new(), after),
        };
        let is_map = !calls.is_empty() && (name == "map" || name.starts_with("map_"));
        let map = is_map
            .then(|| files.map(arguments.first().map_or("", String::as_str), place))
            .transpose()?;
        calls.push(Call { name: name.to_owned(), arguments, map });
        if calls.len() > MAX_CALLS {
            return Err(Problem::at(place, format!("more than {MAX_CALLS} converters")));
        }
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => {
                rest = after;
                break;
            }
        }
    }
    let written = text[..text.len() - rest.len()].to_owned();
    let fetch = calls.remove(0);
    Ok((Expression { place: place.clone(), text: written, fetch, converters: calls }, rest))
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
}

/// Up to the `)`, and what follows it.
fn arguments(text: &str) -> Option<(Vec<String>, &str)> {
    let mut all = vec![String::new()];
    let mut chars = text.char_indices().peekable();
    let mut quote: Option<char> = None;
    while let Some((at, char)) = chars.next() {
        let last = all.last_mut()?;
        match (char, quote) {
            (_, Some(open)) if char == open => quote = None,
            ('"' | '\'', None) => quote = Some(char),
            ('\\', None | Some('"')) => match chars.peek() {
                Some((_, next)) if matches!(next, '\\' | '"' | '\'' | ',' | ')' | ' ') => {
                    last.push(*next);
                    chars.next();
                }
                _ => last.push('\\'),
            },
            (',', None) => all.push(String::new()),
            (')', None) => {
                if all.len() == 1 && all[0].is_empty() {
                    all.clear();
                }
                return Some((all, &text[at + 1..]));
            }
            _ => last.push(char),
        }
    }
    None
}

/// A log-format: `%[expression]`, `%variable`, `%%`, `%{flags}` before either.
pub(super) fn format(text: &str, place: &Place, files: &Files<'_>) -> Result<Format, Problem> {
    let mut parts: Vec<Part> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        push(&mut parts, &rest[..at]);
        let mut after = &rest[at + 1..];
        if let Some(flags) = after.strip_prefix('{') {
            let end = flags
                .find('}')
                .ok_or_else(|| Problem::at(place, format!("`%{{` without `}}` in {text:?}")))?;
            after = &flags[end + 1..];
        }
        if let Some(next) = after.strip_prefix('%') {
            push(&mut parts, "%");
            rest = next;
        } else if let Some(inner) = after.strip_prefix('[') {
            let (expression, next) = beginning(inner.trim_start(), place, files)?;
            let Some(next) = next.trim_start().strip_prefix(']') else {
                return Err(Problem::at(place, format!("`%[` without `]` in {text:?}")));
            };
            parts.push(Part::Sample(Arc::new(expression)));
            rest = next;
        } else {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(after.len());
            let (name, next) = after.split_at(end);
            if name.is_empty() {
                let problem = format!("a `%` that begins nothing in {text:?}; `%%` is a `%`");
                return Err(Problem::at(place, problem));
            }
            parts.push(Part::Variable(name.to_owned()));
            rest = next;
        }
    }
    push(&mut parts, rest);
    Ok(Format { place: place.clone(), parts })
}

fn push(parts: &mut Vec<Part>, text: &str) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(before)) => before.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    }
}

/// The other proxy's `\1` as `${1}`.
pub(super) fn substitution(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some('$') => out.push_str("$$"),
                Some(other) => out.push(other),
                None => {}
            },
            '$' => out.push_str("$$"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files<T>(run: impl FnOnce(&Files<'_>) -> T) -> T {
        let open = |name: &str| Ok(crate::source::Source::of(name, "a b\n"));
        run(&Files::new(&open))
    }

    #[test]
    fn expressions_have_calls() {
        files(|files| {
            let place = Place::start(&"a".into());
            let text = r#"req.hdr(host,-1),regsub("^/(a),b",'\1',g),map_str(m,"x y"),lower"#;
            let read = expression(text, &place, files).unwrap();
            assert_eq!(read.fetch.arguments, ["host", "-1"]);
            assert_eq!(read.converters[0].arguments, ["^/(a),b", r"\1", "g"]);
            assert_eq!(read.converters[1].arguments, ["m", "x y"]);
            assert_eq!(read.converters[1].map.as_ref().unwrap().entries.len(), 1);
            assert_eq!(read.converters[2].name, "lower");
            for bad in ["", "hdr(a", "hdr(a)b", "a,,b", "a b"] {
                assert!(expression(bad, &place, files).is_err(), "{bad}");
            }
        });
    }

    #[test]
    fn formats_have_parts() {
        files(|files| {
            let place = Place::start(&"a".into());
            let read = format("a%%b%[path,regsub(']',x)]%{+Q}ci/", &place, files).unwrap();
            assert!(matches!(&read.parts[..],
                [Part::Text(a), Part::Sample(_), Part::Variable(ci), Part::Text(slash)]
                if a == "a%b" && ci == "ci" && slash == "/"));
            for bad in ["%", "%[path", "%[path)]", "%{x"] {
                assert!(format(bad, &place, files).is_err(), "{bad}");
            }
        });
    }

    #[test]
    fn groups_are_written_otherwise() {
        assert_eq!(substitution(r"/\1$x\\\0"), "/${1}$$x\\${0}");
    }
}
