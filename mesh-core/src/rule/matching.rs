//! Which rule a request falls under, in the order of Gateway API.

use std::{borrow::Cow, cmp::Reverse, ops::Deref};

use http::{HeaderName, header};

use super::{Caller, PathMatch, Route, RouteMatch, TextMatch};
use crate::{message::RequestHead, name::PortName};

/// Which of several rules that match takes a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RuleOrder {
    /// The most specific, as Gateway API says.
    #[default]
    Precedence,
    /// The first.
    Listed,
}

/// The rules of a service in the order they were written: that of their
/// routes' age, then `namespace/name`, then of the rules in one. What a
/// request falls under is decided by how specific a match is, and by that
/// order only between equals, or everywhere ([`RuleOrder::Listed`]).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    rules: Vec<Route>,
    /// (rule, match of it), the first to be asked first; a rule without matches is its
    /// number with `NO_MATCH`.
    order: Vec<(u16, u16)>,
}

/// Stands for "matches everything" where a match's number is expected.
const NO_MATCH: u16 = u16::MAX;

impl Routes {
    /// By precedence; more than 65534 rules or matches of one are cut off (the
    /// wire allows far fewer).
    pub fn new(rules: Vec<Route>) -> Self {
        Self::ordered(rules, RuleOrder::Precedence)
    }

    /// In another order.
    pub fn ordered(rules: Vec<Route>, by: RuleOrder) -> Self {
        let mut order = Vec::new();
        for (index, rule) in (0..NO_MATCH).zip(&rules) {
            if rule.matches.is_empty() {
                order.push((index, NO_MATCH));
            }
            order.extend((0..NO_MATCH).zip(&rule.matches).map(|(one, _)| (index, one)));
        }
        if by == RuleOrder::Precedence {
            // Stable: equals stay as they were written.
            order.sort_by_key(|(rule, one)| {
                let found = rules[usize::from(*rule)].matches.get(usize::from(*one));
                Reverse(found.map_or(Precedence::NONE, Precedence::of))
            });
        }
        Self { rules, order }
    }

    /// The rule for a request to `port` by a caller, and which of its matches
    /// held. A head of `None` (opaque bytes) falls only
    /// under rules without matches.
    ///
    /// `Err` if there are rules for it and none matches; `Ok(None)` if there
    /// are none, so that the service is its own backend.
    pub fn find<'a>(
        &self,
        port: &PortName,
        from: impl Into<Caller<'a>>,
        head: Option<&RequestHead>,
    ) -> Result<Option<(&Route, Option<&RouteMatch>)>, NothingMatches> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let from: Caller<'a> = from.into();
        let has_own = |from: &&str| self.rules.iter().any(|rule| rule.is_for(port, Some(from)));
        let consumer = from.namespace.filter(has_own);
        let mut any = false;
        for (rule, one) in &self.order {
            let rule = &self.rules[usize::from(*rule)];
            if !rule.is_for(port, consumer) {
                continue;
            }
            any = true;
            let one = rule.matches.get(usize::from(*one));
            let holds = one.is_none_or(|one| head.is_some_and(|head| one.holds(head)));
            let more =
                || rule.extension.as_ref().is_none_or(|more| more.conditions.holds(from, head));
            if holds && more() {
                return Ok(Some((rule, one)));
            }
        }
        if any { Err(NothingMatches) } else { Ok(None) }
    }
}

impl Deref for Routes {
    type Target = [Route];

    fn deref(&self) -> &[Route] {
        &self.rules
    }
}

/// There are rules, and a request falls under none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NothingMatches;

impl Route {
    /// Whether it is one of the routes for `port` that are written for the
    /// callers of namespace `from`, or, without one, for everybody.
    fn is_for(&self, port: &PortName, from: Option<&str>) -> bool {
        self.client_namespace.as_deref() == from
            && self.port.as_ref().is_none_or(|only| only == port)
    }
}

/// Gateway API: exact paths, then the longest prefix, then patterns; then a
/// method; then the most headers; then the most query parameters.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Precedence {
    path: (u8, usize),
    method: bool,
    headers: usize,
    query: usize,
}

impl Precedence {
    /// Of a rule without matches, which is a prefix of `/`.
    const NONE: Precedence = Precedence { path: (1, 1), method: false, headers: 0, query: 0 };

    fn of(one: &RouteMatch) -> Self {
        let path = match &one.path {
            Some(PathMatch::Exact(path)) => (3, path.len()),
            Some(PathMatch::Regex(pattern)) => (2, pattern.as_str().len()),
            Some(PathMatch::Prefix(path)) => (1, path.len()),
            None => (1, 1),
        };
        let method = one.method.is_some();
        let headers = one.headers.len() + one.said.len();
        Self { path, method, headers, query: one.query.len() }
    }
}

impl RouteMatch {
    /// Whether all given parts hold.
    pub fn holds(&self, head: &RequestHead) -> bool {
        self.path.as_ref().is_none_or(|path| path.holds(head.compared_path()))
            && self.method.as_ref().is_none_or(|method| *method == head.method)
            && self.headers.iter().all(|(name, value)| value.holds_in(head, name))
            && self
                .said
                .iter()
                .all(|(said, wanted)| said.compared(head).is_ok_and(|value| wanted.holds(&value)))
            && self.query.iter().all(|(name, value)| {
                parameter(head.query().unwrap_or_default(), name)
                    .is_some_and(|present| value.holds(&present))
            })
    }

    /// The prefix that the path matched, for rewrites.
    pub fn prefix(&self) -> Option<&str> {
        match &self.path {
            None => Some("/"),
            Some(PathMatch::Prefix(prefix)) => Some(prefix),
            Some(PathMatch::Exact(_) | PathMatch::Regex(_)) => None,
        }
    }
}

impl PathMatch {
    /// A prefix counts whole elements, and its own trailing slash for nothing.
    pub fn holds(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => path == exact.as_bytes(),
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix).as_bytes())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")),
            Self::Regex(pattern) => pattern.matches(path),
        }
    }
}

impl TextMatch {
    /// Whether any value of a header is what it must be; `host`, which is no
    /// field here, as the client sent it.
    pub fn holds_in(&self, head: &RequestHead, name: &HeaderName) -> bool {
        match *name == header::HOST {
            true => !head.authority.is_empty() && self.holds(head.authority.as_bytes()),
            false => head.fields.all(name.as_str()).any(|present| self.holds(present)),
        }
    }

    /// Whether a value is what it must be.
    pub fn holds(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => **exact == *value,
            Self::Regex(pattern) => pattern.matches(value),
        }
    }
}

/// The first value of a query parameter (`application/x-www-form-urlencoded`,
/// WHATWG URL section 5); a name alone has an empty one.
pub(crate) fn parameter<'q>(query: &'q str, name: &str) -> Option<Cow<'q, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(key) == *name.as_bytes()).then(|| decoded(value))
    })
}

/// Percent-encoding and `+` undone; what is not encoding stays as it is.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return text.as_bytes().into();
    }
    let bytes = text.as_bytes();
    let digit = |at: usize| {
        bytes
            .get(at)
            .and_then(|byte| char::from(*byte).to_digit(16))
            .and_then(|d| u8::try_from(d).ok())
    };
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(high * 16 + low);
                at += 2;
            }
            (b'+', ..) => out.push(b' '),
            (byte, ..) => out.push(byte),
        }
        at += 1;
    }
    out.into()
}

#[cfg(test)]
mod tests;
