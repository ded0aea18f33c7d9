//! Whether a route takes a request: "RouteMatch".

use std::borrow::Cow;

use crate::{
    envoy::{parts, re2, template, tree::Tree},
    request::Http,
};

/// What routes see of a request.
pub(super) struct Seen<'r> {
    pub(super) http: &'r Http,
    /// `Host` as it was sent.
    pub(super) sent_host: Option<&'r str>,
    pub(super) authority: &'r str,
    /// Path and query after normalization.
    pub(super) target: String,
    pub(super) scheme: &'static str,
    /// `X-Request-Id` is made where absent.
    pub(super) makes_id: bool,
    /// `X-Forwarded-Proto` of clients is replaced.
    pub(super) sets_proto: bool,
}

/// What a route says to a request.
pub(super) enum Takes {
    Yes,
    No,
    /// By chance, in percent.
    Sometimes(f64),
    /// By what is not known here.
    Unknown(&'static str),
}

impl Seen<'_> {
    pub(super) fn path(&self) -> &str {
        self.target.split_once('?').map_or(&self.target, |(path, _)| path)
    }

    /// The route is asked; unknown is what depends on more than the request.
    pub(super) fn takes(&self, matcher: &Tree, ignores_parameters: bool) -> Takes {
        let mut path = Cow::Borrowed(self.path());
        if ignores_parameters {
            let parts = path.split('/').map(|part| part.split(';').next().unwrap_or_default());
            path = Cow::Owned(parts.collect::<Vec<_>>().join("/"));
        }
        let is_grpc = || {
            let kind = self.http.header("content-type").unwrap_or_default();
            kind == "application/grpc" || kind.starts_with("application/grpc+")
        };
        let holds = self.path_holds(matcher, &path)
            && matcher.messages("headers").all(|one| self.header_holds(one))
            && matcher.messages("query_parameters").all(|one| self.query_holds(one))
            && matcher.messages("cookies").all(|one| self.cookie_holds(one))
            && (matcher.entry("grpc").is_none() || is_grpc());
        if !holds {
            return Takes::No;
        }
        let is_template = template::of_match(matcher).is_some();
        for unknown in ["path_match_policy", "tls_context", "dynamic_metadata", "filter_state"] {
            let field = matcher.entry(unknown);
            if let Some(field) = field.filter(|_| unknown != "path_match_policy" || !is_template) {
                let is_empty = matches!(&field.value.what, crate::envoy::tree::What::List(all) if all.is_empty());
                if !is_empty {
                    return Takes::Unknown(unknown);
                }
            }
        }
        match matcher.msg("runtime_fraction") {
            Some(fraction) => match parts::percent(fraction.msg("default_value")) {
                part if part <= 0.0 => Takes::No,
                part if part >= 100.0 => Takes::Yes,
                part => Takes::Sometimes(part),
            },
            None => Takes::Yes,
        }
    }

    fn path_holds(&self, matcher: &Tree, path: &str) -> bool {
        let has_case = matcher.bool("case_sensitive").unwrap_or(true);
        let same = |a: &str, b: &str| if has_case { a == b } else { a.eq_ignore_ascii_case(b) };
        let begins =
            |prefix: &str| path.get(..prefix.len()).is_some_and(|begin| same(begin, prefix));
        let is_connect = self.http.method == "CONNECT";
        if let Some(prefix) = matcher.text("prefix") {
            return begins(prefix);
        }
        if let Some(whole) = matcher.text("path") {
            return same(path, whole);
        }
        if let Some(prefix) = matcher.text("path_separated_prefix") {
            let rest = path.get(prefix.len()..).unwrap_or("x");
            return begins(prefix) && (rest.is_empty() || rest.starts_with('/'));
        }
        if matcher.entry("safe_regex").is_some() {
            return full(matcher.msg("safe_regex"), path);
        }
        if matcher.entry("connect_matcher").is_some() {
            return is_connect;
        }
        if let Some(pattern) = template::of_match(matcher) {
            return re2::compile(&pattern, true).is_ok_and(|regex| regex.is_match(path.as_bytes()));
        }
        true
    }

    /// Every line of a header is looked at alone.
    fn values(&self, name: &str) -> Vec<&str> {
        match name.to_ascii_lowercase().as_str() {
            ":method" => return vec![&self.http.method],
            ":path" => return vec![&self.target],
            ":authority" | "host" => return vec![self.authority],
            ":scheme" => return vec![self.scheme],
            "x-forwarded-proto" if self.sets_proto || self.http.header(name).is_none() => {
                return vec![self.scheme];
            }
            "x-request-id" if self.makes_id && self.http.header(name).is_none() => {
                return vec!["(made by Envoy)"];
            }
            _ => {}
        }
        let all = self.http.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        all.map(|(_, value)| value.trim()).collect()
    }

    /// "HeaderMatcher".
    pub(super) fn header_holds(&self, matcher: &Tree) -> bool {
        let name = matcher.text("name").unwrap_or_default();
        let is_inverted = matcher.is("invert_match");
        let mut values = self.values(name);
        let as_empty = matcher.is("treat_missing_header_as_empty");
        let is_of_text = matcher.entry("string_match").is_some()
            || matcher.entry("safe_regex_match").is_some()
            || matcher.entry("range_match").is_some()
            || DEPRECATED.iter().any(|(field, _)| matcher.entry(field).is_some());
        if !is_of_text {
            let wanted = matcher.bool("present_match").unwrap_or(true);
            return ((!values.is_empty() || as_empty) == wanted) != is_inverted;
        }
        if values.is_empty() && as_empty {
            values.push("");
        }
        if values.is_empty() {
            return false;
        }
        values.iter().any(|value| value_holds(matcher, value)) != is_inverted
    }

    fn query_holds(&self, matcher: &Tree) -> bool {
        let name = matcher.text("name").unwrap_or_default();
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = query.split('&').filter(|pair| !pair.is_empty());
        let found = pairs.find_map(|pair| {
            let (known, value) = pair.split_once('=').unwrap_or((pair, ""));
            (known == name).then_some(value)
        });
        match matcher.msg("string_match") {
            Some(text) => found.is_some_and(|value| text_holds(text, value)),
            None => found.is_some() == matcher.bool("present_match").unwrap_or(true),
        }
    }

    fn cookie_holds(&self, matcher: &Tree) -> bool {
        let name = matcher.text("name").unwrap_or_default();
        let value = cookie(self.http, name);
        match (matcher.msg("string_match"), value) {
            (Some(text), Some(value)) => text_holds(text, value) != matcher.is("invert_match"),
            (_, value) => value.is_some() != matcher.is("invert_match"),
        }
    }
}

/// The first cookie of a name.
pub(super) fn cookie<'r>(http: &'r Http, name: &str) -> Option<&'r str> {
    let lines = http.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case("cookie"));
    let mut pairs = lines.flat_map(|(_, line)| line.split(';'));
    pairs.find_map(|pair| {
        let (known, value) = pair.trim().split_once('=')?;
        (known == name).then(|| value.trim_matches('"'))
    })
}

const DEPRECATED: [(&str, &str); 4] = [
    ("exact_match", "exact"),
    ("prefix_match", "prefix"),
    ("suffix_match", "suffix"),
    ("contains_match", "contains"),
];

fn value_holds(matcher: &Tree, value: &str) -> bool {
    if let Some(range) = matcher.msg("range_match") {
        let number = value.trim().parse::<i64>().ok().map(i128::from);
        let from = range.whole("start").unwrap_or(0);
        let to = range.whole("end").unwrap_or(0);
        number.is_some_and(|number| (from..to).contains(&number))
    } else if matcher.entry("safe_regex_match").is_some() {
        full(matcher.msg("safe_regex_match"), value)
    } else if let Some(text) = matcher.msg("string_match") {
        text_holds(text, value)
    } else {
        DEPRECATED.iter().any(|(field, kind)| {
            matcher.text(field).is_some_and(|wanted| compare(kind, wanted, value))
        })
    }
}

/// "StringMatcher".
pub(super) fn text_holds(matcher: &Tree, value: &str) -> bool {
    if matcher.entry("safe_regex").is_some() {
        return full(matcher.msg("safe_regex"), value);
    }
    let kinds = ["exact", "prefix", "suffix", "contains"];
    let Some(field) = matcher.one_of(&kinds) else { return false };
    let wanted = matcher.text(&field.name).unwrap_or_default();
    if matcher.is("ignore_case") {
        return compare(&field.name, &wanted.to_ascii_lowercase(), &value.to_ascii_lowercase());
    }
    compare(&field.name, wanted, value)
}

fn compare(kind: &str, wanted: &str, value: &str) -> bool {
    match kind {
        "exact" => value == wanted,
        "prefix" => value.starts_with(wanted),
        "suffix" => value.ends_with(wanted),
        _ => value.contains(wanted),
    }
}

fn full(matcher: Option<&Tree>, text: &str) -> bool {
    re2::compile(&re2::pattern(matcher), true).is_ok_and(|regex| regex.is_match(text.as_bytes()))
}
