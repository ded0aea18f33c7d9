//! What a sample must be, pulled back through converters to what the request says.

use std::collections::BTreeSet;

use crate::program::{Condition, Said, Text};

use super::super::{
    acl::{self, Method},
    converters,
    list::List,
    matching,
    sample::Call,
};
use super::logic::{NEVER, all, any, constant, not};

/// A pattern and how a sample is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) method: Method,
    pub(super) ignores_case: bool,
    pub(super) pattern: String,
}

/// Why something cannot be said to ours.
pub(super) type Unsaid = String;

/// Turns of mind that a map may need: entries that lead elsewhere before those that do.
const MAX_TURNS: usize = 64;

/// What is known of a fetch.
pub(super) struct Fetched<'a> {
    /// A condition for what it must be itself.
    pub(super) is: &'a dyn Fn(&Leaf) -> Result<Condition, Unsaid>,
    /// What it is of the request, after converters.
    pub(super) said: &'a dyn Fn(&[Call]) -> Option<Said>,
}

/// A condition of the request for what follows a fetch.
pub(super) fn pull(
    leaf: Leaf,
    converters: &[Call],
    source: &Fetched<'_>,
) -> Result<Condition, Unsaid> {
    pulled(leaf.clone(), converters, source).or_else(|why| {
        // What is there may be empty: of what has been converted that is not told apart.
        let is_there = leaf.method == Method::Found && !converters.is_empty();
        match ((source.said)(converters), text(&leaf)) {
            // It is never empty.
            (Some(said), _) if said.tells_client() && leaf.method == Method::Found => {
                Ok(Condition::Always)
            }
            (Some(said), _) if said.tells_client() => {
                Err("a text with the client's address in it is not compared".to_owned())
            }
            (Some(said), Ok(text)) if !is_there => Ok(Condition::Said(said, text)),
            _ => Err(why),
        }
    })
}

fn pulled(leaf: Leaf, converters: &[Call], source: &Fetched<'_>) -> Result<Condition, Unsaid> {
    let Some((call, before)) = converters.split_last() else { return (source.is)(&leaf) };
    if let Some(map) = &call.map {
        return mapped(&leaf, call, map, before, source);
    }
    if leaf.method == Method::Found && matches!(call.name.as_str(), "lower" | "upper" | "host_only")
    {
        return pull(leaf, before, source);
    }
    let next = match call.name.as_str() {
        "lower" => cased(leaf, call, |p| p.bytes().any(|b| b.is_ascii_uppercase()))?,
        "upper" => cased(leaf, call, |p| p.bytes().any(|b| b.is_ascii_lowercase()))?,
        "field" => field(leaf, call)?,
        "host_only" => match cased(leaf, call, |p| p.bytes().any(|b| b.is_ascii_uppercase()))? {
            Some(leaf) => host_only(leaf)?,
            None => None,
        },
        "port_only" if leaf.method == Method::Int => {
            let ranges = acl::ranges(leaf.pattern.split(' '));
            if ranges.iter().any(|(low, high)| low != high || *low <= 0) {
                return Err("ports that are not named one by one".to_owned());
            }
            let ports: Vec<String> = ranges.iter().map(|(port, _)| port.to_string()).collect();
            regex(Leaf { ignores_case: false, ..leaf }, format!(":(?:{})$", ports.join("|")))
        }
        "length" if leaf.method == Method::Int => Some(Leaf { method: Method::Length, ..leaf }),
        "add" | "sub" | "mul" if leaf.method == Method::Int => Some(before_sum(leaf, call)?),
        other => return Err(format!("the converter `{other}` has no counterpart")),
    };
    match next {
        Some(leaf) => pull(leaf, before, source),
        None => Ok(NEVER),
    }
}

fn cased(
    leaf: Leaf,
    call: &Call,
    has_other: impl Fn(&str) -> bool,
) -> Result<Option<Leaf>, Unsaid> {
    match leaf.method {
        Method::Length => Ok(Some(leaf)),
        _ if leaf.ignores_case => Ok(Some(leaf)),
        Method::Regex if has_other(&unescaped(&leaf.pattern)) => {
            Err(format!("a regular expression of both cases after `{}`", call.name))
        }
        Method::Regex => Ok(Some(Leaf { ignores_case: true, ..leaf })),
        _ if has_other(&leaf.pattern) => Ok(None),
        _ => Ok(Some(Leaf { ignores_case: true, ..leaf })),
    }
}

/// Without what stands after backslashes, which has no case.
fn unescaped(pattern: &str) -> String {
    let mut chars = pattern.chars();
    let mut out = String::new();
    while let Some(char) = chars.next() {
        if char == '\\' {
            chars.next();
        } else {
            out.push(char);
        }
    }
    out
}

fn regex(leaf: Leaf, pattern: String) -> Option<Leaf> {
    Some(Leaf { method: Method::Regex, pattern, ..leaf })
}

fn field(leaf: Leaf, call: &Call) -> Result<Option<Leaf>, Unsaid> {
    let delimiters = call.argument(1);
    let n: i32 = call.argument(0).parse().unwrap_or(0);
    if delimiters.is_empty() || call.arguments.len() > 2 || n < -1 || n == 0 || n > 100 {
        return Err("this form of `field` has no counterpart".to_owned());
    }
    let class: String = delimiters.chars().map(|c| regex::escape(&c.to_string())).collect();
    let p = regex::escape(&leaf.pattern);
    let (before, after) = match n {
        -1 => (format!("^(?:.*[{class}])?"), "$".to_owned()),
        1 => ("^".to_owned(), format!("(?:[{class}].*)?$")),
        _ => (format!("^(?:[^{class}]*[{class}]){{{}}}", n - 1), format!("(?:[{class}].*)?$")),
    };
    if leaf.method == Method::Found {
        return Ok(regex(leaf, before));
    }
    if leaf.pattern.contains(|c| delimiters.contains(c)) {
        return match leaf.method {
            Method::Exact | Method::Beginning | Method::End | Method::Part => Ok(None),
            _ => Err("this comparison after `field` has no counterpart".to_owned()),
        };
    }
    let pattern = match leaf.method {
        Method::Exact => format!("{before}{p}{after}"),
        Method::Beginning if n > 0 => format!("{before}{p}"),
        Method::Beginning => format!("{before}{p}[^{class}]*$"),
        Method::End => format!("{before}[^{class}]*{p}{after}"),
        Method::Part => format!("{before}[^{class}]*{p}[^{class}]*{after}"),
        _ => return Err("this comparison after `field` has no counterpart".to_owned()),
    };
    Ok(regex(leaf, pattern))
}

fn host_only(leaf: Leaf) -> Result<Option<Leaf>, Unsaid> {
    let p = regex::escape(&leaf.pattern);
    match leaf.method {
        Method::Exact => Ok(regex(leaf, format!("^{p}(?::[0-9]*)?$"))),
        Method::End => Ok(regex(leaf, format!("{p}(?::[0-9]*)?$"))),
        Method::Beginning | Method::Part | Method::Domain
            if leaf.pattern.contains(|c: char| c != ':' && !c.is_ascii_digit())
                && !leaf.pattern.contains(':') =>
        {
            Ok(Some(leaf))
        }
        _ => Err("this comparison after `host_only` has no counterpart".to_owned()),
    }
}

/// Numbers of which sums, or negatives, are in the ranges.
fn before_sum(leaf: Leaf, call: &Call) -> Result<Leaf, Unsaid> {
    let unsaid = || format!("`{}({})` has no counterpart", call.name, call.argument(0));
    let number: i64 = call.argument(0).parse().map_err(|_| unsaid())?;
    let before = |bound: i64| match (call.name.as_str(), bound) {
        ("mul", i64::MIN) => i64::MAX,
        ("mul", i64::MAX) => i64::MIN,
        ("mul", bound) => -bound,
        (_, i64::MIN | i64::MAX) => bound,
        ("add", bound) => bound.saturating_sub(number),
        (_, bound) => bound.saturating_add(number),
    };
    if call.name == "mul" && number != -1 {
        return Err(unsaid());
    }
    let written = |bound: i64| match bound {
        i64::MIN | i64::MAX => String::new(),
        bound => bound.to_string(),
    };
    let ranges = acl::ranges(leaf.pattern.split(' ')).into_iter().map(|(low, high)| {
        let (low, high) = (before(low), before(high));
        format!("{}:{}", written(low.min(high)), written(low.max(high)))
    });
    Ok(Leaf { pattern: ranges.collect::<Vec<_>>().join(" "), ..leaf })
}

/// Whether the value that a map leads to is as `leaf` says.
fn mapped(
    leaf: &Leaf,
    call: &Call,
    map: &List,
    before: &[Call],
    source: &Fetched<'_>,
) -> Result<Condition, Unsaid> {
    let method = converters::map_method(&call.name);
    if method == Method::Int || (call.name == "map_regm" && leaf.method != Method::Found) {
        return Err(format!("`{}` has no counterpart", call.name));
    }
    let is = |value: &str| match leaf.method {
        Method::Found => true,
        Method::Int => value.parse().is_ok_and(|value: i64| {
            let ranges = acl::ranges(leaf.pattern.split(' '));
            ranges.iter().any(|(low, high)| (*low..=*high).contains(&value))
        }),
        method => matching::compare(method, value, &leaf.pattern, leaf.ignores_case),
    };
    let key = |key: &str| {
        let leaf = Leaf { method, ignores_case: false, pattern: key.to_owned() };
        pull(leaf, before, source)
    };
    let found = Leaf { method: Method::Found, ignores_case: false, pattern: String::new() };
    let mut entries: Vec<_> = map.entries.iter().collect();
    match method {
        Method::Beginning => entries.sort_by_key(|entry| std::cmp::Reverse(entry.key.len())),
        Method::Ip => entries.sort_by_key(|entry| {
            std::cmp::Reverse(acl::block(&entry.key).map_or(0, |(_, length)| length))
        }),
        _ => {}
    }
    let mut known = BTreeSet::new();
    entries.retain(|entry| known.insert(&entry.key));
    let otherwise = call.arguments.get(1).is_some_and(|value| is(value));
    if method == Method::Exact {
        let keys = |wanted| {
            let entries = entries.iter().filter(|entry| is(&entry.value) == wanted);
            entries.map(|entry| key(&entry.key)).collect::<Result<Vec<_>, _>>()
        };
        return match otherwise {
            false => Ok(any(keys(true)?)),
            true => Ok(all([pull(found, before, source)?, not(any(keys(false)?))])),
        };
    }
    let mut runs: Vec<(bool, Vec<Condition>)> = Vec::new();
    for entry in &entries {
        let leads = is(&entry.value);
        match runs.last_mut() {
            Some((before, keys)) if *before == leads => keys.push(key(&entry.key)?),
            _ => runs.push((leads, vec![key(&entry.key)?])),
        }
    }
    if runs.len() > MAX_TURNS {
        return Err(format!("{} has too many entries that lead to and fro", map.name));
    }
    let mut so_far = if otherwise { pull(found, before, source)? } else { constant(false) };
    for (leads, keys) in runs.into_iter().rev() {
        let keys = any(keys);
        so_far = if leads { any([keys, so_far]) } else { all([not(keys), so_far]) };
    }
    Ok(so_far)
}

/// The whole text as a regular expression.
pub(super) fn pattern(leaf: &Leaf) -> Result<String, Unsaid> {
    let p = regex::escape(&leaf.pattern);
    let whole = match leaf.method {
        Method::Exact => p,
        Method::Beginning => format!("{p}(?s:.*)"),
        Method::End => format!("(?s:.*){p}"),
        Method::Part => format!("(?s:.*){p}(?s:.*)"),
        Method::Directory | Method::Domain => {
            let class = if leaf.method == Method::Directory { "[/?]" } else { "[/?.:]" };
            let delimiters: &[char] =
                if leaf.method == Method::Directory { &['/', '?'] } else { &['/', '?', '.', ':'] };
            let p = regex::escape(leaf.pattern.trim_matches(delimiters));
            if p.is_empty() {
                return Err("an empty pattern".to_owned());
            }
            format!("(?s:(?:.*{class})?){p}(?s:(?:{class}.*)?)")
        }
        Method::Regex => anywhere(&leaf.pattern),
        Method::Length => {
            let ranges = acl::ranges(leaf.pattern.split(' '));
            let ranges = ranges.iter().filter(|(_, high)| *high >= 0).map(|(low, high)| {
                let high = if *high > 65_536 { String::new() } else { high.to_string() };
                format!("(?s:.{{{},{high}}})", (*low).max(0))
            });
            ranges.collect::<Vec<_>>().join("|")
        }
        Method::Found => "(?s:.*)".to_owned(),
        Method::Bool | Method::Int | Method::Ip | Method::Binary => {
            return Err("this comparison has no counterpart".to_owned());
        }
    };
    let cased = if leaf.ignores_case { format!("(?i:{whole})") } else { whole };
    let cased = written(&cased);
    match matching::regex(&cased, false) {
        Some(_) => Ok(cased),
        None => Err(format!("the regular expression {:?} has no counterpart", leaf.pattern)),
    }
}

/// Tabs and the like by their numbers: no rule of ours has them as they are.
pub(super) fn written(pattern: &str) -> String {
    let one = |c: char| match c.is_control() {
        true => format!("\\x{{{:x}}}", u32::from(c)),
        false => c.to_string(),
    };
    pattern.chars().map(one).collect()
}

/// What an unanchored expression is of the whole text.
fn anywhere(pattern: &str) -> String {
    let mut inner = pattern;
    let (mut before, mut after) = ("(?s:.*)", "(?s:.*)");
    if !pattern.contains('|') {
        if let Some(rest) = inner.strip_prefix('^') {
            (inner, before) = (rest, "");
        }
        if let Some(rest) = inner.strip_suffix('$').filter(|rest| !rest.ends_with('\\')) {
            (inner, after) = (rest, "");
        }
    }
    format!("{before}(?:{inner}){after}")
}

pub(super) fn text(leaf: &Leaf) -> Result<Text, Unsaid> {
    let is_plain =
        !leaf.pattern.chars().any(char::is_control) && leaf.pattern.trim() == leaf.pattern;
    Ok(match leaf.method {
        Method::Exact if !leaf.ignores_case && is_plain => Text::Exact(leaf.pattern.clone()),
        Method::Beginning if !leaf.ignores_case && is_plain => Text::Prefix(leaf.pattern.clone()),
        Method::Found => Text::Present,
        _ => Text::Pattern(pattern(leaf)?),
    })
}
