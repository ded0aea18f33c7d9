//! Paths that are changed by a pattern.

use std::{borrow::Cow, sync::Arc};

use super::MAX_PATTERN_MEMORY;
use crate::message::{convert::is_target, normal::escaped};

/// Bytes of a target that comes out.
const MAX_TARGET: usize = 16 << 10;

/// What a rule makes of a request is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRewrite {
    /// RFC 9112 section 3.2.1.
    #[error(
        "the changed path is none: it must begin with '/' and have no other than URI characters"
    )]
    Target,
    /// RFC 9110 section 5.5.
    #[error("what is made of the request is no value of a header")]
    Value,
    /// Of a target or header.
    #[error("what is made of the request is too long")]
    TooLong,
}

/// A pattern and substitution that make no rewrite.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadPattern {
    /// No regular expression.
    #[error("pattern: {0}")]
    Pattern(#[from] regex::Error),
    /// It names a group that the pattern does not have.
    #[error(
        "substitution: the pattern has no group {0:?}; ${{1}}x is group 1 before an x, $$ is a dollar"
    )]
    NoGroup(Box<str>),
}

/// Replaces what matches in the path of a request, without its query, by the
/// syntax of the `regex` crate, without Unicode classes.
#[derive(Debug, Clone)]
pub struct PathPattern {
    pattern: Arc<str>,
    substitution: Arc<str>,
    all: bool,
    compiled: regex::bytes::Regex,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Group(usize),
}

impl PathPattern {
    /// Compiles it; `all` replaces every match, not only the first.
    ///
    /// # Errors
    ///
    /// The pattern is none, or the substitution names a group that is not
    /// there.
    pub fn new(pattern: &str, substitution: &str, all: bool) -> Result<Self, BadPattern> {
        let compiled = regex::bytes::RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(MAX_PATTERN_MEMORY)
            .dfa_size_limit(MAX_PATTERN_MEMORY)
            .build()?;
        let parts = parts(substitution, &compiled)?;
        let (pattern, substitution) = (pattern.into(), substitution.into());
        Ok(Self { pattern, substitution, all, compiled, parts })
    }

    /// The pattern as it was written.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// What replaces a match, as it was written.
    pub fn substitution(&self) -> &str {
        &self.substitution
    }

    /// Whether every match is replaced.
    pub fn replaces_all(&self) -> bool {
        self.all
    }

    /// Changes a target in origin-form; all others stay. The query stays,
    /// unless the new path brings one. Whether the pattern matched. Where
    /// `decoded` is not empty it is asked instead of the target's path, and what
    /// is kept of it is encoded.
    ///
    /// # Errors
    ///
    /// What comes out is no target, or too long.
    pub fn apply(&self, target: &mut String, decoded: &[u8]) -> Result<bool, BadRewrite> {
        self.change(target, decoded, is_target)
    }

    /// The same for a `Location`, which may have a fragment (RFC 9110 section 10.2.2).
    ///
    /// # Errors
    ///
    /// As [`apply`](Self::apply).
    pub fn relocate(&self, target: &mut String, decoded: &[u8]) -> Result<bool, BadRewrite> {
        self.change(target, decoded, |changed| {
            let at = changed.iter().position(|&byte| byte == b'#').unwrap_or(changed.len());
            let (target, fragment) = changed.split_at(at);
            is_target(target) && fragment.iter().all(u8::is_ascii_graphic)
        })
    }

    fn change(
        &self,
        target: &mut String,
        decoded: &[u8],
        is_good: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, BadRewrite> {
        let at = target.find('?').unwrap_or(target.len());
        let (path, query) = target.split_at(at);
        if !path.starts_with('/') {
            return Ok(false);
        }
        let found = match decoded.is_empty() {
            true => self.replace(path.as_bytes(), |kept| kept.into(), MAX_TARGET),
            false => self.replace(decoded, |kept| escaped(kept).into(), MAX_TARGET),
        };
        let Some(mut changed) = found? else { return Ok(false) };
        if !changed.contains(&b'?') {
            changed.extend_from_slice(query.as_bytes());
        }
        if changed.len() > MAX_TARGET.max(target.len()) {
            return Err(BadRewrite::TooLong);
        }
        if !changed.starts_with(b"/") || !is_good(&changed) {
            return Err(BadRewrite::Target);
        }
        *target = String::from_utf8(changed).map_err(|_| BadRewrite::Target)?;
        Ok(true)
    }

    /// `None` where nothing matches; what stays of the path is `written`, and what comes
    /// out has at most `longest` bytes, or as many as the path.
    pub(super) fn replace(
        &self,
        path: &[u8],
        written: impl Fn(&[u8]) -> Cow<'_, [u8]>,
        longest: usize,
    ) -> Result<Option<Vec<u8>>, BadRewrite> {
        let mut changed = Vec::new();
        let mut upto = 0;
        let times = if self.all { usize::MAX } else { 1 };
        let mut any = false;
        for captures in self.compiled.captures_iter(path).take(times) {
            let Some(whole) = captures.get(0) else { break };
            any = true;
            changed.extend_from_slice(&written(&path[upto..whole.start()]));
            upto = whole.end();
            for part in &self.parts {
                match part {
                    Part::Text(text) => changed.extend_from_slice(text.as_bytes()),
                    Part::Group(number) => {
                        let group =
                            captures.get(*number).map_or(&b""[..], |group| group.as_bytes());
                        changed.extend_from_slice(&written(group));
                    }
                }
                if changed.len() > longest.max(path.len()) {
                    return Err(BadRewrite::TooLong);
                }
            }
        }
        changed.extend_from_slice(&written(&path[upto..]));
        Ok(any.then_some(changed))
    }
}

/// `$1`, `$name` and `${name}`, the longest name there is; `$$` is a dollar.
fn parts(substitution: &str, pattern: &regex::bytes::Regex) -> Result<Vec<Part>, BadPattern> {
    let mut parts = Vec::new();
    let mut rest = substitution;
    while let Some((text, reference)) = rest.split_once('$') {
        parts.push(Part::Text(text.into()));
        if let Some(after) = reference.strip_prefix('$') {
            parts.push(Part::Text("$".into()));
            rest = after;
            continue;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = match reference.strip_prefix('{').and_then(|r| r.split_once('}')) {
            Some(braced) => braced,
            None => reference.split_at(reference.find(|c| !is_name(c)).unwrap_or(reference.len())),
        };
        let number = match name.parse::<usize>() {
            Ok(number) => Some(number).filter(|number| *number < pattern.captures_len()),
            Err(_) => pattern.capture_names().position(|its| its == Some(name)),
        };
        parts.push(Part::Group(number.ok_or_else(|| BadPattern::NoGroup(name.into()))?));
        rest = after;
    }
    parts.push(Part::Text(rest.into()));
    parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
    Ok(parts)
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        let key = |one: &Self| (one.pattern.clone(), one.substitution.clone(), one.all);
        key(self) == key(other)
    }
}

impl Eq for PathPattern {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn changed(pattern: &str, substitution: &str, all: bool, target: &str) -> String {
        let mut target = target.to_owned();
        match PathPattern::new(pattern, substitution, all).unwrap().apply(&mut target, &[]) {
            Ok(_) => target,
            Err(error) => format!("{error:?}"),
        }
    }

    #[test]
    fn paths_are_changed_and_queries_stay() {
        let cases = [
            ("^/api", "", false, "/api/v1?a=/api", "/v1?a=/api"),
            ("^/api/(.*)$", "/v2/$1", false, "/api/x/y", "/v2/x/y"),
            (
                "^/(?P<first>[^/]+)/(?P<second>[^/]+)",
                "/${second}/$first",
                false,
                "/a/b/c",
                "/b/a/c",
            ),
            ("^/([^/]+)", "/${1}x", false, "/a/b", "/ax/b"),
            ("//+", "/", true, "//a///b", "/a/b"),
            ("//+", "/", false, "//a///b", "/a///b"),
            ("(?i)^/ADMIN$", "/a$$b", false, "/admin", "/a$b"),
            ("^/none", "/x", false, "/a?b", "/a?b"),
            ("^", "/x", false, "/a", "/x/a"),
            ("$", "/x", false, "/a?b", "/a/x?b"),
            ("^/a$", "/x?y=1", false, "/a?b", "/x?y=1"),
            ("^/a(/b)?", "/x$1", false, "/a", "/x"),
            ("^/a", "x", false, "/a/b", "Target"),
            ("^/.*", "", false, "/a", "Target"),
            ("^/a", "/\u{e9}", false, "/a", "Target"),
            ("^/a", "/a b", false, "/a", "Target"),
            ("^/a", "/a#b", false, "/a", "Target"),
            (".*", "/x", false, "*", "*"),
        ];
        for (pattern, substitution, all, target, wanted) in cases {
            let found = changed(pattern, substitution, all, target);
            assert_eq!(found, wanted, "{pattern} {substitution} {target}");
        }
    }

    #[test]
    fn a_location_may_have_a_fragment() {
        let pattern = PathPattern::new("^/old/", "/ui/#/", false).unwrap();
        let mut location = "/old/a?b".to_owned();
        assert_eq!(pattern.relocate(&mut location, &[]), Ok(true));
        assert_eq!(location, "/ui/#/a?b");
        let mut target = "/old/a".to_owned();
        assert_eq!(pattern.apply(&mut target, &[]), Err(BadRewrite::Target));
        let odd = PathPattern::new("^/old/", "/ui/#/\u{e9}", false).unwrap();
        assert_eq!(odd.relocate(&mut target, &[]), Err(BadRewrite::Target));
    }

    #[test]
    fn what_is_kept_of_a_decoded_path_is_encoded() {
        let pattern = PathPattern::new("^/a b/([^/]*)", "/%24/$1?x", false).unwrap();
        let mut target = "/a%20b/c%3Fd/e%20f?q".to_owned();
        assert_eq!(pattern.apply(&mut target, b"/a b/c?d/e f"), Ok(true));
        assert_eq!(target, "/%24/c%3Fd?x/e%20f");
        assert_eq!(pattern.apply(&mut target, b"/b"), Ok(false));
        assert_eq!(target, "/%24/c%3Fd?x/e%20f");
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        let path = format!("/{}", "a".repeat(8000));
        let often = "$0".repeat(100);
        assert_eq!(changed("^.*$", &often, false, &path), "TooLong");
        assert_eq!(changed("", &"x".repeat(1000), true, &path), "TooLong");
        assert_eq!(changed("^/a", "/b", false, &path).len(), path.len());
        // Whoever takes such requests forwards them as long as they are.
        let long = format!("/a{}", "b".repeat(2 * MAX_TARGET));
        assert_eq!(changed("^/a", "/c", false, &long).len(), long.len());
    }

    #[test]
    fn groups_that_are_not_there_are_told_of() {
        for (substitution, group) in [("$1x", "1x"), ("$2", "2"), ("${name}", "name"), ("$", "")] {
            let error = PathPattern::new("(a)", substitution, false).unwrap_err();
            assert_eq!(error, BadPattern::NoGroup(group.into()), "{substitution}");
        }
        assert!(matches!(PathPattern::new("(", "", false), Err(BadPattern::Pattern(_))));
        let huge = PathPattern::new("((a{100}){100}){100}", "", false);
        assert!(matches!(huge, Err(BadPattern::Pattern(_))));
    }

    proptest! {
        /// The crate's own replacement is the model.
        #[test]
        fn as_the_regex_crate_replaces(path in "/[ab/]{0,12}", all: bool, n in 0usize..4) {
            let pattern = ["a(b*)", "^/(a)?", "/+", "(b)|(/)"][n];
            let substitution = ["x$1", "/y${1}", "/", "<$2$1>"][n];
            let regex = regex::Regex::new(pattern).unwrap();
            let wanted = regex.replacen(&path, usize::from(!all), substitution);
            let found = changed(pattern, substitution, all, &path);
            match wanted.starts_with('/') {
                true => prop_assert_eq!(found, wanted.into_owned()),
                false => prop_assert_eq!(found, "Target"),
            }
        }
    }
}
