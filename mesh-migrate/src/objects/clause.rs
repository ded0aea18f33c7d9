//! Conditions as clauses of what a rule of ours can ask: any of several
//! conjunctions, each of one path, methods, headers and parameters that must match,
//! and of others that must not.

use serde_json::{Value, json};

use super::{object, route::template, some_list};
use crate::program::{Condition, Said, Text};

/// Clauses of one condition, at most.
const MAX_CLAUSES: usize = 256;

/// Why a condition cannot be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsayable {
    /// Two lists of addresses at once.
    TwoSources,
    /// Too many alternatives.
    TooLarge,
}

impl Unsayable {
    pub(super) fn why(self) -> &'static str {
        match self {
            Self::TwoSources => "it has two conditions about the client's address at once",
            Self::TooLarge => "it has more than 256 alternatives",
        }
    }
}

/// One conjunction.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Clause {
    path: Option<Text>,
    method: Option<String>,
    headers: Vec<(String, Text)>,
    sources: Option<Vec<String>>,
    /// Each a match that must hold, too.
    also: Vec<Value>,
    /// Each a match that must not hold.
    unless: Vec<Value>,
    not_sources: Vec<String>,
}

impl Clause {
    /// HTTPRouteMatch; `None` matches everything.
    pub(super) fn matching(&self) -> Option<Value> {
        let matching = matching(self.path.as_ref(), self.method.as_deref(), &self.headers);
        (matching != json!({})).then_some(matching)
    }

    /// What Gateway API cannot say, as keys of our policy.
    pub(super) fn more(&self) -> Vec<(&'static str, Value)> {
        let mut more = Vec::new();
        if !self.also.is_empty() {
            more.push(("also", self.also.clone().into()));
        }
        if !self.unless.is_empty() {
            more.push(("unless", self.unless.clone().into()));
        }
        if let Some(sources) = &self.sources {
            more.push(("sources", json!(sources)));
        }
        if !self.not_sources.is_empty() {
            more.push(("notSources", json!(self.not_sources)));
        }
        more
    }

    /// Whether all that the other one takes is taken by this one, as far as one can see.
    fn covers(&self, other: &Self) -> bool {
        fn is_in<T: PartialEq>(few: &[T], many: &[T]) -> bool {
            few.len() <= many.len() && few.iter().all(|one| many.contains(one))
        }
        fn is_or_any<T: PartialEq>(own: &Option<T>, other: &Option<T>) -> bool {
            own.is_none() || own == other
        }
        is_or_any(&self.path, &other.path)
            && is_or_any(&self.method, &other.method)
            && is_or_any(&self.sources, &other.sources)
            && is_in(&self.headers, &other.headers)
            && is_in(&self.also, &other.also)
            && is_in(&self.unless, &other.unless)
            && is_in(&self.not_sources, &other.not_sources)
    }

    /// Both at once; `Ok(None)` if they cannot hold together.
    fn and(&self, other: &Clause) -> Result<Option<Clause>, Unsayable> {
        let mut both = self.clone();
        match (&self.path, &other.path) {
            (Some(a), Some(b)) => match path_and(a, b) {
                Both::One(path) => both.path = Some(path),
                Both::Never => return Ok(None),
                Both::Two => extend(&mut both.also, &[matching(Some(b), None, &[])]),
            },
            (None, Some(_)) => both.path.clone_from(&other.path),
            (_, None) => {}
        }
        match (&self.method, &other.method) {
            (Some(a), Some(b)) if a != b => return Ok(None),
            (None, Some(_)) => both.method.clone_from(&other.method),
            _ => {}
        }
        match (&self.sources, &other.sources) {
            (Some(a), Some(b)) if a != b => return Err(Unsayable::TwoSources),
            (None, Some(_)) => both.sources.clone_from(&other.sources),
            _ => {}
        }
        for header in &other.headers {
            let rest = named(&mut both.headers, header);
            let rest = rest.map(|one| matching(None, None, &[one]));
            extend(&mut both.also, rest.as_slice());
        }
        extend(&mut both.also, &other.also);
        extend(&mut both.unless, &other.unless);
        extend(&mut both.not_sources, &other.not_sources);
        Ok(Some(both))
    }
}

fn extend<T: Clone + PartialEq>(to: &mut Vec<T>, from: &[T]) {
    for one in from {
        if !to.contains(one) {
            to.push(one.clone());
        }
    }
}

/// Adds a condition about something with a name. Of one match the first about a name
/// counts alone (Gateway API, HTTPRouteMatch): a second one comes back.
fn named(all: &mut Vec<(String, Text)>, one: &(String, Text)) -> Option<(String, Text)> {
    let Some(known) = all.iter_mut().find(|known| known.0 == one.0) else {
        all.push(one.clone());
        return None;
    };
    match (&known.1, &one.1) {
        // What is something is there.
        (_, Text::Present) => None,
        (Text::Present, text) => {
            known.1 = text.clone();
            None
        }
        (a, b) => (a != b).then(|| one.clone()),
    }
}

/// What two conditions say of one path.
enum Both {
    One(Text),
    Never,
    Two,
}

fn path_and(a: &Text, b: &Text) -> Both {
    let holds = |exact: &str, text: &Text| match text {
        Text::Exact(other) => exact == other,
        Text::Prefix(prefix) => exact.starts_with(prefix.as_str()),
        Text::Present => true,
        Text::Pattern(pattern) => {
            regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|p| p.is_match(exact))
        }
    };
    let one = |holds: bool, text: &Text| {
        if holds { Both::One(text.clone()) } else { Both::Never }
    };
    match (a, b) {
        (Text::Present, other) | (other, Text::Present) => one(true, other),
        (exact @ Text::Exact(text), other) | (other, exact @ Text::Exact(text)) => {
            one(holds(text, other), exact)
        }
        (Text::Prefix(x), Text::Prefix(y)) => {
            let long = if x.len() >= y.len() { a } else { b };
            one(x.starts_with(y.as_str()) || y.starts_with(x.as_str()), long)
        }
        (a, b) if a == b => one(true, a),
        _ => Both::Two,
    }
}

/// Adds an alternative; what another one takes anyway is left out.
fn add(all: &mut Vec<Clause>, clause: Clause) {
    if !all.iter().any(|known| known.covers(&clause)) {
        all.retain(|known| !clause.covers(known));
        all.push(clause);
    }
}

/// Any of the clauses is the condition; none never holds.
pub(super) fn clauses(condition: &Condition) -> Result<Vec<Clause>, Unsayable> {
    of(condition, true)
}

fn of(condition: &Condition, holds: bool) -> Result<Vec<Clause>, Unsayable> {
    let always = || vec![Clause::default()];
    match (condition, holds) {
        (Condition::Always, true) => Ok(always()),
        (Condition::Always, false) => Ok(Vec::new()),
        (Condition::Not(inner), holds) => of(inner, !holds),
        (Condition::All(all), true) | (Condition::Any(all), false) => {
            let mut clauses = always();
            for one in all {
                clauses = each(&clauses, &of(one, holds)?)?;
            }
            Ok(clauses)
        }
        (Condition::Any(all), true) | (Condition::All(all), false) => {
            let mut clauses = Vec::new();
            for one in all {
                of(one, holds)?.into_iter().for_each(|clause| add(&mut clauses, clause));
                if clauses.len() > MAX_CLAUSES {
                    return Err(Unsayable::TooLarge);
                }
            }
            Ok(clauses)
        }
        (Condition::Path(Text::Present), true) => Ok(always()),
        (Condition::Path(Text::Present), false) => Ok(Vec::new()),
        (Condition::Path(path), true) => {
            Ok(vec![Clause { path: Some(path.clone()), ..Clause::default() }])
        }
        (Condition::Method(methods), true) => {
            let one =
                |method: &String| Clause { method: Some(method.clone()), ..Clause::default() };
            Ok(methods.iter().map(one).collect())
        }
        (Condition::Header(name, text), true) => {
            let headers = vec![(name.to_ascii_lowercase(), text.clone())];
            Ok(vec![Clause { headers, ..Clause::default() }])
        }
        // Gateway API's are decoded, and those of legacy proxies are not.
        (Condition::Query(name, text), holds) => of(&parameter(name, text), holds),
        // No route of Gateway API has such names: they stand in our policy alone.
        (Condition::Said(said, text), holds) => {
            let text = if *text == Text::Present { &Text::Pattern("(?s:.+)".into()) } else { text };
            let one = matching(None, None, &[(template(said), text.clone())]);
            Ok(match holds {
                true => vec![Clause { also: vec![one], ..Clause::default() }],
                false => unless(vec![one]),
            })
        }
        (Condition::Source(blocks), true) => {
            Ok(vec![Clause { sources: Some(blocks.clone()), ..Clause::default() }])
        }
        (Condition::Source(blocks), false) => {
            Ok(vec![Clause { not_sources: blocks.clone(), ..Clause::default() }])
        }
        (Condition::Path(path), false) => Ok(unless(vec![matching(Some(path), None, &[])])),
        (Condition::Method(methods), false) => {
            Ok(unless(methods.iter().map(|m| matching(None, Some(m), &[])).collect()))
        }
        (Condition::Header(name, text), false) => {
            let header = (name.to_ascii_lowercase(), text.clone());
            Ok(unless(vec![matching(None, None, &[header])]))
        }
    }
}

/// The same of the first parameter of this name, as it is sent.
fn parameter(name: &str, text: &Text) -> Condition {
    let inner = regex::escape(name);
    let present = Text::Pattern(format!("(?s)(?:.*&)?{inner}(?:[=&].*)?"));
    let present = Condition::Said(Said::Query, present);
    let may_be_empty = match text {
        Text::Present => return present,
        Text::Exact(text) | Text::Prefix(text) => text.is_empty(),
        Text::Pattern(pattern) => {
            let whole = regex::bytes::RegexBuilder::new(&format!(r"\A(?:{pattern})\z"));
            { whole }.unicode(false).build().is_ok_and(|whole| whole.is_match(b""))
        }
    };
    let value = Condition::Said(Said::Parameter(name.to_owned()), text.clone());
    if may_be_empty { Condition::All(vec![present, value]) } else { value }
}

fn unless(matches: Vec<Value>) -> Vec<Clause> {
    vec![Clause { unless: matches, ..Clause::default() }]
}

fn each(a: &[Clause], b: &[Clause]) -> Result<Vec<Clause>, Unsayable> {
    let mut both = Vec::new();
    for a in a {
        for b in b {
            if let Some(clause) = a.and(b)? {
                add(&mut both, clause);
            }
            if both.len() > MAX_CLAUSES {
                return Err(Unsayable::TooLarge);
            }
        }
    }
    Ok(both)
}

/// HTTPRouteMatch.
fn matching(path: Option<&Text>, method: Option<&str>, headers: &[(String, Text)]) -> Value {
    let path = path.filter(|path| **path != Text::Prefix("/".into())).map(|path| match path {
        Text::Exact(path) => json!({ "type": "Exact", "value": path }),
        other => json!({ "type": "RegularExpression", "value": pattern(other) }),
    });
    let value = |(name, text): &(String, Text)| match text {
        Text::Exact(value) => json!({ "name": name, "value": value }),
        other => json!({ "type": "RegularExpression", "name": name, "value": pattern(other) }),
    };
    object([
        ("path", path),
        ("method", method.map(Into::into)),
        ("headers", some_list(headers.iter().map(value).collect())),
    ])
}

/// What the whole text must match.
fn pattern(text: &Text) -> String {
    match text {
        Text::Exact(text) => regex::escape(text),
        Text::Prefix(prefix) => format!("{}(?s:.*)", regex::escape(prefix)),
        Text::Pattern(pattern) => pattern.clone(),
        Text::Present => "(?s:.*)".to_owned(),
    }
}
