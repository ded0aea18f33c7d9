//! How a sample is compared with the patterns of an ACL (configuration manual, 7.1).

use std::{fmt, net::IpAddr};

use regex::bytes::{Regex, RegexBuilder};

use super::acl::{self, Method, Test};

/// What a compiled pattern may take, in bytes.
const MAX_REGEX: usize = 4 << 20;

/// A sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `1` or `0` as text.
    Bool(bool),
    /// A number.
    Int(i64),
    /// An address.
    Ip(IpAddr),
    /// Text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{}", u8::from(*value)),
            Self::Int(value) => value.fmt(f),
            Self::Ip(value) => value.fmt(f),
            Self::Text(value) => f.write_str(value),
        }
    }
}

impl Value {
    /// As a number, where it is one.
    pub(super) fn int(&self) -> Option<i64> {
        match self {
            Self::Bool(value) => Some(i64::from(*value)),
            Self::Int(value) => Some(*value),
            Self::Ip(_) => None,
            Self::Text(text) => number(text),
        }
    }
}

/// The number at the beginning of a text, 0 where there is none; nothing of nothing.
pub(super) fn number(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let magnitude = digits[..end].bytes().fold(0i64, |so_far, digit| {
        so_far.saturating_mul(10).saturating_add(i64::from(digit - b'0'))
    });
    (!text.is_empty()).then_some(if text.starts_with('-') { -magnitude } else { magnitude })
}

/// A regular expression as PCRE reads it, as far as `regex` can.
pub(super) fn regex(pattern: &str, ignores_case: bool) -> Option<Regex> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .case_insensitive(ignores_case)
        .size_limit(MAX_REGEX)
        .build()
        .ok()
}

/// Whether one of the patterns holds for the sample.
pub(super) fn matches(test: &Test, value: &Value) -> bool {
    match test.method {
        Method::Found => true,
        Method::Bool => value.int().is_some_and(|value| value != 0),
        Method::Int => value.int().is_some_and(|value| in_ranges(test, value)),
        Method::Length => {
            i64::try_from(value.to_string().len()).is_ok_and(|length| in_ranges(test, length))
        }
        Method::Ip => {
            let address = match value {
                Value::Ip(address) => Some(*address),
                Value::Text(text) => text.parse().ok(),
                Value::Bool(_) | Value::Int(_) => None,
            };
            let mut blocks = test.all_patterns().filter_map(acl::block);
            address.is_some_and(|address| blocks.any(|block| acl::within(block, address)))
        }
        _ => {
            let text = value.to_string();
            test.all_patterns()
                .any(|pattern| compare(test.method, &text, pattern, test.ignores_case))
        }
    }
}

fn in_ranges(test: &Test, value: i64) -> bool {
    acl::ranges(test.all_patterns()).iter().any(|(low, high)| (*low..=*high).contains(&value))
}

/// One text with one pattern.
pub(super) fn compare(method: Method, text: &str, pattern: &str, ignores_case: bool) -> bool {
    if method == Method::Regex {
        return regex(pattern, ignores_case).is_some_and(|p| p.is_match(text.as_bytes()));
    }
    let (text, pattern) = match ignores_case {
        true => (text.to_ascii_lowercase(), pattern.to_ascii_lowercase()),
        false => (text.to_owned(), pattern.to_owned()),
    };
    match method {
        Method::Beginning => text.starts_with(&pattern),
        Method::End => text.ends_with(&pattern),
        Method::Part => text.contains(&pattern),
        Method::Directory => part(&text, &pattern, &['/', '?']),
        Method::Domain => part(&text, &pattern, &['/', '?', '.', ':']),
        Method::Binary => hex(&text) == pattern.to_ascii_lowercase(),
        _ => text == pattern,
    }
}

/// Whether the pattern stands between delimiters, or ends of the text.
fn part(text: &str, pattern: &str, delimiters: &[char]) -> bool {
    let pattern = pattern.trim_matches(delimiters);
    if pattern.is_empty() {
        return false;
    }
    text.match_indices(pattern).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + pattern.len()..].chars().next();
        before.is_none_or(|c| delimiters.contains(&c))
            && after.is_none_or(|c| delimiters.contains(&c))
    })
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared() {
        let table = [
            (Method::Exact, "ab", "ab", true),
            (Method::Exact, "ab", "aB", false),
            (Method::Beginning, "ab", "a", true),
            (Method::End, "ab", "b", true),
            (Method::Part, "abc", "b", true),
            (Method::Directory, "/img/a", "img", true),
            (Method::Directory, "/img/a", "/img/", true),
            (Method::Directory, "/imgs/a", "img", false),
            (Method::Directory, "/a.b/c", "b", false),
            (Method::Domain, "www.a.example:80", "a.example", true),
            (Method::Domain, "web.evil.example", "web", true),
            (Method::Domain, "webs.example", "web", false),
            (Method::Regex, "/v1/x", "^/v[0-9]+/", true),
            (Method::Regex, "/v1/x", "(", false),
            (Method::Binary, "AB", "4142", true),
        ];
        for (method, text, pattern, holds) in table {
            assert_eq!(compare(method, text, pattern, false), holds, "{method:?} {text} {pattern}");
        }
        assert!(compare(Method::Exact, "aB", "Ab", true));
    }

    #[test]
    fn numbers_are_in_ranges() {
        let ranges = |text: &str| acl::ranges(text.split(' '));
        assert_eq!(ranges("80 8000:8100"), [(80, 80), (8000, 8100)]);
        assert_eq!(ranges("gt 5"), [(6, i64::MAX)]);
        assert_eq!(ranges("lt 5 10"), [(i64::MIN, 4), (i64::MIN, 9)]);
        assert_eq!(ranges(":5 7:"), [(i64::MIN, 5), (7, i64::MAX)]);
    }

    #[test]
    fn blocks_are_networks() {
        let is = |block, address: &str| {
            acl::block(block).is_some_and(|block| acl::within(block, address.parse().unwrap()))
        };
        assert!(is("10.0.0.0/8", "10.1.2.3") && is("10.0.0.0/255.0.0.0", "10.1.2.3"));
        assert!(!is("10.0.0.1", "10.0.0.2") && !is("10.0.0.0/33", "10.0.0.0"));
        assert!(is("::/0", "::1") && !is("::/0", "10.0.0.1") && is("0.0.0.0/0", "1.2.3.4"));
    }
}
