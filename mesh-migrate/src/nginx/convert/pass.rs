//! `proxy_pass`.

use super::{
    At, Condition, Directive, MAX_RULES, Rule, Template, Then, Work, all,
    leaf::{Here, substitution},
    refusal,
};
use crate::{
    nginx::{explain::Url, model, template::Part},
    program::{Forward, PathChange},
};

/// Targets that maps make of one `proxy_pass`.
const MAX_TARGETS: usize = 1_000;

/// What is different where `$uri` says the path.
pub(super) const ENCODED: &str = "the path is as rules see it: dots and // are resolved, and what cannot stand in a path otherwise stays encoded there";

/// The client's query is not sent on.
const NO_QUERY: &str = "the query is left out";

/// Combinations of values that maps give to headers of one `proxy_pass`.
const MAX_VALUES: usize = 64;

/// Values of variables, and when they have these.
type Values = (Condition, Vec<(String, Template)>);

/// A path that is sent on, and what is different then.
type Path = (Option<PathChange>, Option<&'static str>);

impl<'m, 'c> Work<'m, 'c> {
    pub(super) fn pass(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        pass: &'c Directive,
        (when, rewritten): (&Condition, Option<PathChange>),
        rules: &mut Vec<Rule>,
    ) {
        let written = Template::of(pass.arg(0));
        let is_constant = written.as_ref().is_ok_and(|t| t.constant().is_some());
        let targets = written.and_then(|written| self.targets(at, &written));
        let targets = match targets {
            Ok(targets) => targets,
            Err(wrong) => {
                let question = format!(
                    "where this leads cannot be said: {wrong}. Until decided these requests are answered 501"
                );
                self.decision(pass, question, &["a fixed upstream", "routes of ours"]);
                return rules.push(refusal(pass, when.clone(), 501));
            }
        };
        self.exact(pass);
        for (condition, target, by) in targets {
            let when = all([when.clone(), condition]);
            if let Some(by) = by {
                self.exact(by);
            }
            if self.split(at, here, pass, (&target, &when, &rewritten), rules) {
                continue;
            }
            let Some((url, rest)) = authority(&target) else {
                let said = by.unwrap_or(pass);
                match target.constant() {
                    // nginx answers so, too.
                    Some(_) if !is_constant => rules.push(refusal(said, when, 500)),
                    _ => {
                        self.decision(said, "the address has variables that rules cannot see: until decided these requests are answered 501", &["a fixed upstream"]);
                        rules.push(refusal(said, when, 501));
                    }
                }
                continue;
            };
            let path = match (is_constant, rewritten.clone()) {
                (true, Some(rewritten)) => Ok((Some(rewritten), None)),
                (true, None) => Ok((self.prefix(here, pass, &url), None)),
                (false, rewritten) => self.variable_path(here, &url, &rest, rewritten),
            };
            let tells_path = !rest.is_empty() && matches!(&path, Ok((Some(_), _)));
            if !is_constant && tells_path {
                self.approximated(pass, ENCODED);
            }
            for (condition, set) in self.values_of_headers(at, here) {
                let set = at.set.iter().map(|(k, v)| (k.clone(), v.clone())).chain(set).collect();
                let chosen = at.chosen.clone();
                let mut inner = At { set, chosen, forwarded: Vec::new(), ..*at };
                let when = all([when.clone(), condition]);
                self.passed(&mut inner, here, pass, (path.clone(), &url, when), rules);
                at.forwarded.append(&mut inner.forwarded);
            }
        }
    }

    /// What maps in values of headers may be, and when; the first that holds counts.
    fn values_of_headers(&mut self, at: &At<'m, 'c>, here: &Here<'m, 'c>) -> Vec<Values> {
        let mut all_values: Vec<Values> = vec![(Condition::Always, Vec::new())];
        for name in ["proxy_set_header", "add_header"] {
            for directive in model::array(&here.chain, name) {
                let is_hop = ["connection", "upgrade", "host"]
                    .iter()
                    .any(|hop| directive.arg(0).eq_ignore_ascii_case(hop));
                let Ok(value) = Template::of(directive.arg(1)) else { continue };
                let value = self.expanded(at, &value);
                for name in value.variables().filter(|_| !is_hop) {
                    let Some(Ok((choices, _))) = self.choices(at, name) else { continue };
                    let is_known =
                        all_values.iter().any(|(_, set)| set.iter().any(|(k, _)| k == name));
                    if is_known || all_values.len() * choices.len() > MAX_VALUES {
                        continue;
                    }
                    let mut more = Vec::new();
                    for (when, set) in &all_values {
                        for (condition, value, _) in &choices {
                            let mut set = set.clone();
                            set.push((name.to_owned(), self.expanded(at, value)));
                            more.push((all([when.clone(), condition.clone()]), set));
                        }
                    }
                    all_values = more;
                    self.used(name);
                }
            }
        }
        self.rules += all_values.len() - 1;
        all_values
    }

    fn passed(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        pass: &'c Directive,
        (path, url, when): (Result<Path, String>, &Url, Condition),
        rules: &mut Vec<Rule>,
    ) {
        let (path, how) = match path {
            Ok(path) => path,
            Err(wrong) => {
                let question = format!(
                    "the path that is sent on cannot be said: {wrong}. Until decided these requests are answered 501"
                );
                self.decision(pass, question, &["another path", "the path stays"]);
                return rules.push(refusal(pass, when, 501));
            }
        };
        let strip_query = how == Some(NO_QUERY);
        if let Some(how) = how.filter(|_| !strip_query) {
            self.approximated(pass, how);
        }
        let mut forward = Forward { path, strip_query, ..Forward::default() };
        if let Err((directive, wrong)) = self.forward(at, here, pass, url, &mut forward) {
            self.decision(directive, wrong, &["a fixed upstream", "it stays with nginx"]);
            return rules.push(refusal(directive, when, 501));
        }
        let then = Then::Forward(Box::new(forward));
        rules.push(Rule { place: pass.place.clone(), when, then });
    }

    /// Whether the target has shares of `split_clients`.
    fn split(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        pass: &'c Directive,
        (target, when, rewritten): (&Template, &Condition, &Option<PathChange>),
        rules: &mut Vec<Rule>,
    ) -> bool {
        let model = self.model;
        let mut names = target.variables();
        let split = names.find_map(|name| Some((name, model.http.splits.get(name)?)));
        let Some((name, split)) = split else { return false };
        let mut forward = Forward { path: rewritten.clone(), ..Forward::default() };
        match self.shares(at, here, pass, (target, name, split), &mut forward) {
            Ok(()) => {
                let then = Then::Forward(Box::new(forward));
                rules.push(Rule { place: pass.place.clone(), when: when.clone(), then });
            }
            Err((directive, wrong)) => {
                self.decision(directive, wrong, &["weights of a route", "a fixed upstream"]);
                rules.push(refusal(directive, when.clone(), 501));
            }
        }
        true
    }

    /// The location's text is replaced by that of the URL.
    fn prefix(&mut self, here: &Here<'_, '_>, pass: &Directive, url: &Url) -> Option<PathChange> {
        let location = here.location.filter(|_| !url.uri.is_empty())?;
        if url.uri.contains('?') {
            self.approximated(pass, "the address has a query, which stands in the path with us");
        }
        Some(PathChange::Prefix { from: location.text.clone(), to: url.uri.clone() })
    }

    /// What comes after an address with variables: it is all that is sent.
    fn variable_path(
        &self,
        here: &Here<'_, '_>,
        url: &Url,
        rest: &[Part],
        rewritten: Option<PathChange>,
    ) -> Result<Path, String> {
        let is = |part: Option<&Part>, wanted: &str| matches!(part, Some(Part::Variable(name)) if name == wanted);
        let count = rest.len();
        let keeps = count >= 2 && is(rest.get(count - 2), "is_args") && is(rest.last(), "args");
        let rest = if keeps { &rest[..count - 2] } else { rest };
        let query = (!keeps).then_some(NO_QUERY);
        match rest {
            [] if url.uri.is_empty() => Ok((rewritten, None)),
            [] => Ok((Some(PathChange::Whole(url.uri.clone())), query)),
            [Part::Variable(name)] if name == "request_uri" => match url.uri.as_str() {
                "" => Ok((None, None)),
                to => {
                    Ok((Some(PathChange::Prefix { from: String::new(), to: to.to_owned() }), None))
                }
            },
            [Part::Variable(name)] if name == "uri" && rewritten.is_none() => {
                let change = PathChange::Prefix { from: String::new(), to: url.uri.clone() };
                Ok((Some(change), Some(query.unwrap_or(ENCODED))))
            }
            _ => {
                let text: String = rest
                    .iter()
                    .map(|part| match part {
                        Part::Text(text) => text.clone(),
                        Part::Variable(name) => format!("${{{name}}}"),
                    })
                    .collect();
                let substitution = substitution(&format!("{}{text}", url.uri), here.groups);
                let (Some(substitution), Some(groups)) = (substitution, here.groups) else {
                    return Err("it has variables that a path of ours cannot".into());
                };
                Ok((
                    Some(PathChange::Pattern {
                        pattern: groups.replacing(),
                        substitution,
                        all: false,
                    }),
                    query,
                ))
            }
        }
    }

    /// What a text with variables of maps may be, and when.
    pub(super) fn targets(
        &mut self,
        at: &At<'m, 'c>,
        written: &Template,
    ) -> Result<Vec<(Condition, Template, Option<&'c Directive>)>, String> {
        let mut open = vec![(Condition::Always, self.expanded(at, written), None, 0)];
        let mut done = Vec::new();
        while let Some((when, target, by, depth)) = open.pop() {
            let found = target.variables().find_map(|name| {
                let choices = self.choices(at, name)?;
                Some((name.to_owned(), choices))
            });
            let Some((name, choices)) = found else {
                done.push((when, target, by));
                continue;
            };
            let many = open.len() + done.len();
            if depth > 8 || many > MAX_TARGETS || self.rules + many > MAX_RULES {
                return Err("maps make too many of it".into());
            }
            for (condition, to, entry) in choices?.0.into_iter().rev() {
                let to = self.expanded(at, &to);
                let target = self.with(at, &target, &name, &to);
                open.push((all([when.clone(), condition]), target, entry.or(by), depth + 1));
            }
            self.used(&name);
        }
        self.rules += done.len();
        Ok(done)
    }
}

/// The address, and what of the path has variables.
pub(super) fn authority(target: &Template) -> Option<(Url, Vec<Part>)> {
    let Some((Part::Text(first), rest)) = target.0.split_first() else { return None };
    let url = Url::of(first)?;
    let is_path = |name: &str| ["request_uri", "uri", "document_uri"].contains(&name);
    match rest.first() {
        Some(Part::Variable(name)) if url.uri.is_empty() && !is_path(name) => None,
        _ => Some((url, rest.to_vec())),
    }
}
