//! What a route asks for, as a condition.

use super::{Within, all, hosts};
use crate::{
    envoy::{
        parts, re2, template,
        tree::{Entry, Tree},
    },
    program::{Condition, Said, Text},
};

/// A field that no condition can say, and why.
pub(super) struct Cannot<'t> {
    pub(super) field: &'t Entry,
    pub(super) why: &'static str,
}

/// What a `RouteMatch` asks for; `None` is asked by nobody.
pub(super) fn condition<'t>(
    matcher: &'t Tree,
    within: &Within<'_>,
) -> Result<Option<Condition>, Cannot<'t>> {
    let unsayable = [
        ("connect_matcher", "CONNECT is not proxied"),
        ("path_match_policy", "an extension decides about the path"),
        ("cookies", "single cookies cannot be asked for"),
        ("tls_context", "the client's certificate cannot be asked for"),
        ("dynamic_metadata", "what filters found out cannot be asked for"),
        ("filter_state", "what filters found out cannot be asked for"),
    ];
    for (name, why) in unsayable {
        let field = matcher.entry(name);
        let is_template = name == "path_match_policy" && template::of_match(matcher).is_some();
        if let Some(field) = field.filter(|_| !is_template) {
            return Err(Cannot { field, why });
        }
    }
    for field in &matcher.fields {
        let mut found = false;
        parts::each_value(&field.value.what, &mut |tree| {
            found |= tree.short() == "RegexMatcher" && re2::asks_for_unicode(tree);
        });
        if found {
            return Err(Cannot { field, why: "classes of Unicode cannot be asked for" });
        }
    }
    let mut conditions = vec![path(matcher)];
    for header in matcher.messages("headers") {
        conditions.push(self::header(header, within));
    }
    for parameter in matcher.messages("query_parameters") {
        conditions.push(query(parameter));
    }
    if matcher.entry("grpc").is_some() {
        let grpc = Text::Pattern(r"(?s)application/grpc(\+.*)?".into());
        conditions.push(Condition::Header("content-type".into(), grpc));
    }
    if let Some(field) = matcher.entry("runtime_fraction") {
        let fraction = matcher.msg("runtime_fraction").and_then(|one| one.msg("default_value"));
        match parts::percent(fraction) {
            part if part <= 0.0 => return Ok(None),
            part if part < 100.0 => {
                return Err(Cannot {
                    field,
                    why: "the route takes a part of the requests, by chance",
                });
            }
            _ => {}
        }
    }
    Ok(Some(all(conditions)))
}

fn path(matcher: &Tree) -> Condition {
    let has_case = matcher.bool("case_sensitive").unwrap_or(true);
    let literal = re2::literal;
    let text = if let Some(prefix) = matcher.text("prefix") {
        match has_case {
            _ if prefix.is_empty() || prefix == "/" => return Condition::Always,
            true => Text::Prefix(prefix.into()),
            false => Text::Pattern(format!("(?is){}.*", literal(prefix))),
        }
    } else if let Some(path) = matcher.text("path") {
        match has_case {
            true => Text::Exact(path.into()),
            false => Text::Pattern(format!("(?i){}", literal(path))),
        }
    } else if let Some(prefix) = matcher.text("path_separated_prefix") {
        if has_case {
            let exact = Condition::Path(Text::Exact(prefix.into()));
            return Condition::Any(vec![
                exact,
                Condition::Path(Text::Prefix(format!("{prefix}/"))),
            ]);
        }
        Text::Pattern(format!("(?is){}(/.*)?", literal(prefix)))
    } else if matcher.entry("safe_regex").is_some() {
        Text::Pattern(re2::pattern(matcher.msg("safe_regex")))
    } else if let Some(pattern) = template::of_match(matcher) {
        Text::Pattern(pattern)
    } else {
        return Condition::Always;
    };
    Condition::Path(text)
}

/// Requests that a filter for health checks answers, which may have any query here.
pub(super) fn health_check(check: &Tree, within: &Within<'_>) -> Option<Condition> {
    let one = |matcher: &Tree| match wanted(matcher) {
        Some(path @ Text::Exact(_)) if matcher.text("name") == Some(":path") => {
            (!matcher.is("invert_match")).then_some(Condition::Path(path))
        }
        _ => Some(header(matcher, within)),
    };
    check.messages("headers").map(one).collect::<Option<Vec<_>>>().map(all)
}

/// "HeaderMatcher".
pub(super) fn header(matcher: &Tree, within: &Within<'_>) -> Condition {
    let name = matcher.text("name").unwrap_or_default().to_ascii_lowercase();
    let is_inverted = matcher.is("invert_match");
    let not = |condition: Condition| Condition::Not(Box::new(condition));
    let turn = |condition: Condition| if is_inverted { not(condition) } else { condition };
    let as_empty = matcher.is("treat_missing_header_as_empty");
    let is_always_there =
        matches!(name.as_str(), ":method" | ":path" | ":authority" | "host" | ":scheme");
    let Some(text) = wanted(matcher) else {
        let wanted = matcher.bool("present_match").unwrap_or(true);
        if is_always_there || as_empty || name == "x-forwarded-proto" {
            let never = Condition::Any(Vec::new());
            return if wanted == is_inverted { never } else { Condition::Always };
        }
        let there = Condition::Header(name, Text::Present);
        return if wanted == is_inverted { not(there) } else { there };
    };
    match name.as_str() {
        ":method" => return turn(method(text)),
        ":authority" | "host" => {
            let port = hosts::stripped(within);
            let text = if port.is_empty() { text } else { Text::Pattern(pattern(&text) + &port) };
            return turn(Condition::Header("host".into(), text));
        }
        ":path" => match text {
            Text::Prefix(prefix) if !prefix.contains('?') => {
                return turn(Condition::Path(Text::Prefix(prefix)));
            }
            text => {
                let asked = Text::Pattern(pattern(&text));
                return turn(Condition::Said(Said::Target, asked));
            }
        },
        ":scheme" => return turn(scheme(&text, within)),
        _ => {}
    }
    let scheme = if within.is_tls { "https" } else { "http" };
    let missing = match name.as_str() {
        "x-forwarded-proto" if parts::sets_proto(within.hcm) => {
            let never = Condition::Any(Vec::new());
            return if holds(&text, scheme) == is_inverted { never } else { Condition::Always };
        }
        "x-forwarded-proto" => Some(scheme),
        _ => as_empty.then_some(""),
    };
    let there = Condition::Header(name.clone(), Text::Present);
    let is = turn(Condition::Header(name, text.clone()));
    // A header that is not there does not match, inverted or not.
    let is = if is_inverted { Condition::All(vec![there.clone(), is]) } else { is };
    match missing {
        Some(value) if holds(&text, value) != is_inverted => Condition::Any(vec![is, not(there)]),
        _ => is,
    }
}

/// That of the connection, or what X-Forwarded-Proto says where Envoy believes it.
fn scheme(text: &Text, within: &Within<'_>) -> Condition {
    let (http, https) = (holds(text, "http"), holds(text, "https"));
    let here = if within.is_tls { https } else { http };
    let never = Condition::Any(Vec::new());
    if parts::sets_proto(within.hcm) || http == https {
        return if here { Condition::Always } else { never };
    }
    let proto = |text: Text| Condition::Header("x-forwarded-proto".into(), text);
    let of = |name: &str| proto(Text::Pattern(format!("(?i){name}")));
    let not = |condition: Condition| Condition::Not(Box::new(condition));
    match (within.is_tls, https) {
        (false, true) => of("https"),
        (false, false) => not(of("https")),
        (true, true) => Condition::Any(vec![of("https"), not(proto(Text::Present))]),
        (true, false) => Condition::All(vec![proto(Text::Present), not(of("https"))]),
    }
}

fn method(text: Text) -> Condition {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    let methods = match &text {
        Text::Exact(method) => vec![method.clone()],
        text => METHODS.iter().filter(|m| holds(text, m)).map(|m| (*m).to_owned()).collect(),
    };
    Condition::Method(methods)
}

/// The text that a header must be; `None` where it must only be there, or not.
fn wanted(matcher: &Tree) -> Option<Text> {
    if let Some(text) = matcher.msg("string_match") {
        return Some(self::text(text));
    }
    if matcher.entry("safe_regex_match").is_some() {
        return Some(Text::Pattern(re2::pattern(matcher.msg("safe_regex_match"))));
    }
    if let Some(range) = matcher.msg("range_match") {
        let from = range.whole("start").unwrap_or(0);
        return Some(Text::Pattern(numbers(from, range.whole("end").unwrap_or(0))));
    }
    let deprecated = |field: &str| matcher.text(field);
    let literal = re2::literal;
    deprecated("exact_match")
        .map(|text| Text::Exact(text.into()))
        .or_else(|| deprecated("prefix_match").map(|text| Text::Prefix(text.into())))
        .or_else(|| {
            deprecated("suffix_match").map(|text| Text::Pattern(format!("(?s).*{}", literal(text))))
        })
        .or_else(|| {
            deprecated("contains_match").map(|t| Text::Pattern(format!("(?s).*{}.*", literal(t))))
        })
}

pub(super) fn text(matcher: &Tree) -> Text {
    if matcher.entry("safe_regex").is_some() {
        return Text::Pattern(re2::pattern(matcher.msg("safe_regex")));
    }
    let ignores = matcher.is("ignore_case");
    let flags = if ignores { "(?is)" } else { "(?s)" };
    let get = |name: &str| matcher.text(name).map(re2::literal);
    if let Some(exact) = matcher.text("exact").filter(|_| !ignores) {
        return Text::Exact(exact.into());
    }
    if let Some(prefix) = matcher.text("prefix").filter(|_| !ignores) {
        return Text::Prefix(prefix.into());
    }
    let pattern = get("exact")
        .or_else(|| get("prefix").map(|text| format!("{text}.*")))
        .or_else(|| get("suffix").map(|text| format!(".*{text}")))
        .or_else(|| get("contains").map(|text| format!(".*{text}.*")));
    // A matcher of no kind matches nothing.
    Text::Pattern(pattern.map_or_else(|| "[^\\x00-\\xff]".into(), |text| format!("{flags}{text}")))
}

/// The same as a pattern.
fn pattern(text: &Text) -> String {
    match text {
        Text::Exact(exact) => re2::literal(exact),
        Text::Prefix(prefix) => format!("(?s:{}.*)", re2::literal(prefix)),
        Text::Pattern(pattern) => format!("(?:{pattern})"),
        Text::Present => "(?s:.*)".into(),
    }
}

pub(super) fn holds(text: &Text, value: &str) -> bool {
    match text {
        Text::Exact(exact) => exact == value,
        Text::Prefix(prefix) => value.starts_with(prefix.as_str()),
        Text::Pattern(pattern) => {
            re2::compile(pattern, true).is_ok_and(|regex| regex.is_match(value.as_bytes()))
        }
        Text::Present => true,
    }
}

fn query(matcher: &Tree) -> Condition {
    let name = matcher.text("name").unwrap_or_default().to_owned();
    match matcher.msg("string_match") {
        Some(text) => Condition::Query(name, self::text(text)),
        None if matcher.bool("present_match") == Some(false) => {
            Condition::Not(Box::new(Condition::Query(name, Text::Present)))
        }
        None => Condition::Query(name, Text::Present),
    }
}

/// Decimal numbers from `from` to below `to`, as a pattern.
fn numbers(from: i128, to: i128) -> String {
    let last = to - 1;
    let mut parts = Vec::new();
    if last >= from && last >= 0 {
        parts.push(format!(r"\+?0*(?:{})", naturals(from.max(0), last)));
    }
    if last >= from && from <= 0 {
        parts.push(format!("-0*(?:{})", naturals((-last).max(0), -from)));
    }
    match parts.is_empty() {
        true => r"[^\x00-\xff]".into(),
        false => format!("(?:{})", parts.join("|")),
    }
}

/// Numbers from `from` to `to` without zeros before them; of 0, nothing is left.
fn naturals(from: i128, to: i128) -> String {
    let mut parts = Vec::new();
    let mut low = from;
    if low == 0 {
        // `0*` has taken it.
        parts.push(String::from("0"));
        low = 1;
    }
    while low <= to {
        // The most digits at the end that may be anything while the rest is `low`'s.
        let mut block = 1;
        while low % (block * 10) == 0 && low + block * 10 - 1 <= to {
            block *= 10;
        }
        let digit = low / block % 10;
        let most = (9 - digit).min((to + 1 - low) / block - 1);
        let head = low / (block * 10);
        let head = if head == 0 { String::new() } else { head.to_string() };
        let free = block.ilog10();
        let tail = if free == 0 { String::new() } else { format!("[0-9]{{{free}}}") };
        parts.push(format!("{head}[{digit}-{}]{tail}", digit + most));
        low += block * (most + 1);
    }
    parts.join("|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_a_pattern() {
        for (from, to) in
            [(0, 1), (0, 10), (-5, 10), (7, 1234), (-10, -3), (99, 101), (5, 5), (0, 100_001)]
        {
            let regex = re2::compile(&numbers(from, to), true).unwrap();
            for number in -1300i128..1300 {
                let text = number.to_string();
                assert_eq!(
                    regex.is_match(text.as_bytes()),
                    (from..to).contains(&number),
                    "{from} {to} {number}"
                );
            }
            for no in ["", "-", "+", "1.0", "x", "1x"] {
                assert!(!regex.is_match(no.as_bytes()), "{from} {to} {no:?}");
            }
        }
        let all = numbers(i64::MIN.into(), i64::MAX.into());
        let regex = re2::compile(&all, true).unwrap();
        assert!(regex.is_match(b"-9223372036854775808") && !regex.is_match(b"9223372036854775807"));
    }
}
