//! What rules change of answers.

use crate::program::Forward;

use super::super::{
    acl::{self, Condition, Method, Named, Test},
    proxy::Proxy,
    rules::Action,
    sample::Format,
};
use super::{logic::known, names, state::State, walk::Walk};

/// Headers of answers, by `http-response` of the backend and of the frontend.
///
/// Variables of a transaction are known there, requests are not.
pub(super) fn answers(
    walk: &mut Walk<'_, '_>,
    backend: &Proxy,
    before: &State,
    forward: &mut Forward,
) {
    let kept = before.variables.iter().filter(|(name, _)| !name.starts_with("req."));
    let variables = kept.map(|(name, symbol)| (name.clone(), symbol.clone())).collect();
    let state = State { variables, facts: before.facts.clone(), ..State::default() };
    let frontend = walk.frontend().filter(|frontend| frontend.name != backend.name);
    let rules = backend.http_response.iter();
    for rule in rules.chain(frontend.into_iter().flat_map(|f| &f.http_response)) {
        if matches!(rule.action, Action::Aside(_) | Action::SetVar(..)) {
            continue;
        }
        let of = [backend].into_iter().chain(frontend);
        let whose = of.clone().find(|proxy| proxy.http_response.iter().any(|one| one == rule));
        let holds = match (&rule.when, whose) {
            (None, _) => Some(true),
            (Some(when), Some(proxy)) if is_of_connection(proxy, when) => {
                let read = state.condition(walk.front, proxy, when, false);
                known(&read.condition).filter(|_| read.unsaid.is_empty())
            }
            _ => None,
        };
        if holds == Some(false) {
            continue;
        }
        if holds.is_none() {
            let question = "rules for some answers have no counterpart: it is left out";
            walk.notes.decision(&rule.place, question, &["leave it so"]);
            continue;
        }
        if let Some(why) = names::of_action(&rule.action, false) {
            walk.notes.approximated(&rule.place, why);
            continue;
        }
        let (name, value) = match &rule.action {
            Action::SetHeader(name, value) => {
                forward.set_answer.retain(|(known, _)| known != name);
                forward.add_answer.retain(|(known, _)| known != name);
                (name, Some((value, true)))
            }
            Action::AddHeader(name, value) => (name, Some((value, false))),
            Action::DelHeader(name, Method::Exact) => {
                forward.set_answer.retain(|(known, _)| known != name);
                forward.add_answer.retain(|(known, _)| known != name);
                (name, None)
            }
            _ => {
                let question = "this has no counterpart for answers: it is left out";
                walk.notes.decision(&rule.place, question, &["leave it so"]);
                continue;
            }
        };
        let constant = |of: &Format| {
            state.constant(walk.front, of).and_then(|value| names::value(name, value))
        };
        match value.map(|(value, sets)| (constant(value), sets)) {
            None => forward.remove_answer.push(name.clone()),
            Some((Ok(value), true)) => {
                forward.remove_answer.retain(|known| known != name);
                forward.set_answer.push((name.clone(), value));
            }
            Some((Ok(value), false)) => forward.add_answer.push((name.clone(), value)),
            Some((Err(why), _)) => {
                let question = format!("{why}: {name} is left as the application answers");
                walk.notes.decision(&rule.place, question, &["leave it so"]);
            }
        }
    }
}

/// Whether a condition asks only what is known when the answer comes.
fn is_of_connection(proxy: &Proxy, when: &Condition) -> bool {
    let test = |test: &Test| {
        let name = acl::canonical(&test.expression.fetch.name);
        matches!(name, "var" | "ssl_fc" | "always_true" | "always_false" | "bool" | "str" | "int")
    };
    when.any.iter().flatten().all(|literal| match &literal.of {
        Named::Anonymous(one) => test(one),
        Named::Acl(name) => {
            proxy.acls.get(name).is_some_and(|tests| tests.iter().all(|one| test(one)))
        }
    })
}
