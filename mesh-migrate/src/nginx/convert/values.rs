//! Values of variables that depend on the request in a way that rules can see: `map`,
//! `geo`, `split_clients`.

use std::rc::Rc;

use super::{
    At, Condition, Directive, Template, Work, all, any, leaf::Here, pass::authority, replies::Test,
};
use crate::{
    nginx::{
        explain::chosen,
        model::{Key, Map, Split},
        pattern::Pattern,
        template::Part,
    },
    program::{Forward, Said},
};

/// Values of a map of several maps.
const MAX_COMBINATIONS: usize = 256;

/// A value, when it is that one, and the line that says so.
pub(super) type Choice<'c> = (Condition, Template, Option<&'c Directive>);

impl<'m, 'c> Work<'m, 'c> {
    /// What a variable of a map or a `geo` may be: the first condition that holds
    /// decides. Nothing for other variables.
    pub(super) fn choices(
        &self,
        at: &At<'m, 'c>,
        name: &str,
    ) -> Option<Result<(Vec<Choice<'c>>, &'c Directive), String>> {
        let model = self.model;
        if let Some(map) = model.http.maps.get(name) {
            return Some(self.of_map(at, map).map(|choices| (choices, map.directive)));
        }
        if let Some(chosen) = at.chosen.get(name) {
            let mut choices: Vec<Choice<'c>> = Vec::new();
            for (when, value) in chosen {
                let inner = value.variable().filter(|inner| *inner != name);
                match inner.and_then(|inner| self.choices(at, inner)) {
                    Some(Ok((inner, _))) => choices.extend(
                        inner.into_iter().map(|(own, to, by)| (all([when.clone(), own]), to, by)),
                    ),
                    Some(Err(wrong)) => return Some(Err(wrong)),
                    None => choices.push((when.clone(), value.clone(), None)),
                }
            }
            return Some(Ok((choices, at.server.directive)));
        }
        let geo = model.http.geos.get(name)?;
        if geo.is_odd {
            let place = &geo.directive.place;
            return Some(Err(format!(
                "the geo of {place} uses more than blocks of the client's address"
            )));
        }
        let text = |value: &String| Template(vec![Part::Text(value.clone())]);
        let mut choices: Vec<Choice<'c>> = Vec::new();
        for (block, _, value, directive) in &geo.blocks {
            choices.push((Condition::Source(vec![block.clone()]), text(value), Some(directive)));
        }
        choices.push(match &geo.default {
            Some((value, directive)) => (Condition::Always, text(value), Some(directive)),
            None => (Condition::Always, Template(Vec::new()), None),
        });
        Some(Ok((choices, geo.directive)))
    }

    /// Exact, then the longest `*.x`, then the longest `x.*`, then patterns.
    fn of_map(&self, at: &At<'m, 'c>, map: &'m Map<'c>) -> Result<Vec<Choice<'c>>, String> {
        let subject = self.expanded(at, &map.source);
        let is_one = subject.variable().is_some() || subject.constant().is_some();
        if !is_one && super::headers::said(at, &subject, None, None).is_none() {
            return self.of_compound(at, map, &subject);
        }
        self.ranked(at, map, &subject)
    }

    fn ranked(
        &self,
        at: &At<'m, 'c>,
        map: &'m Map<'c>,
        subject: &Template,
    ) -> Result<Vec<Choice<'c>>, String> {
        let mut ranked = Vec::new();
        let wrong =
            || format!("the map of {} is on something that rules cannot see", map.directive.place);
        for (place, (key, to, directive)) in map.entries.iter().enumerate() {
            let (rank, test) = match key {
                Key::Exact(text) => ((0, 0, place), Test::Equals(text, true)),
                Key::Both(text) => {
                    let exact =
                        self.test(at, subject, &Test::Equals(text, true)).ok_or_else(wrong)?;
                    ranked.push(((0, 0, place), exact, to, *directive));
                    let below = format!(".{text}");
                    let below_is =
                        self.test(at, subject, &Test::Below(&below)).ok_or_else(wrong)?;
                    ranked.push(((1, usize::MAX - below.len(), place), below_is, to, *directive));
                    continue;
                }
                Key::Below(text) => ((1, usize::MAX - text.len(), place), Test::Below(text)),
                Key::Tail(text) => ((2, usize::MAX - text.len(), place), Test::Tail(text)),
                Key::Regex(pattern) => {
                    ((3, 0, place), Test::Matches(pattern.as_ref().map_err(Clone::clone)?))
                }
            };
            ranked.push((rank, self.test(at, subject, &test).ok_or_else(wrong)?, to, *directive));
        }
        ranked.sort_by_key(|(rank, ..)| *rank);
        let mut choices: Vec<Choice<'c>> =
            ranked.into_iter().map(|(_, when, to, d)| (when, to.clone(), Some(d))).collect();
        choices.push(match &map.default {
            Some((to, directive)) => (Condition::Always, to.clone(), Some(directive)),
            None => (Condition::Always, Template(Vec::new()), None),
        });
        Ok(choices)
    }

    /// A map of several variables that are of maps themselves.
    fn of_compound(
        &self,
        at: &At<'m, 'c>,
        map: &'m Map<'c>,
        subject: &Template,
    ) -> Result<Vec<Choice<'c>>, String> {
        let wrong =
            || format!("the map of {} is on something that rules cannot see", map.directive.place);
        let mut open = vec![(Condition::Always, subject.clone())];
        let mut choices: Vec<Choice<'c>> = Vec::new();
        while let Some((when, subject)) = open.pop() {
            if let Some(value) = subject.constant() {
                let chosen = chosen(map, value.as_bytes())?;
                let entry = chosen.map(|(at, _)| (&map.entries[at].1, map.entries[at].2));
                let entry = entry.or(map.default.as_ref().map(|(to, directive)| (to, *directive)));
                let (to, by) =
                    entry.map_or((Template(Vec::new()), None), |(to, by)| (to.clone(), Some(by)));
                choices.push((when, to, by));
                continue;
            }
            if open.len() + choices.len() > MAX_COMBINATIONS {
                return Err(wrong());
            }
            let is_other = |name: &&str| {
                let is_map = |other: &Map<'_>| other.source.variable().is_some();
                self.model.http.maps.get(*name).is_some_and(is_map)
                    || self.model.http.geos.contains_key(*name)
                    || at.chosen.contains_key(*name)
            };
            let Some(name) = subject.variables().find(is_other).map(str::to_owned) else {
                let own = self.ranked(at, map, &subject)?;
                let own = own.into_iter().map(|(own, to, by)| (all([when.clone(), own]), to, by));
                choices.extend(own);
                continue;
            };
            let (values, _) = self.choices(at, &name).ok_or_else(wrong)??;
            for (condition, value, _) in values.into_iter().rev() {
                let value = self.expanded(at, &value);
                open.push((all([when.clone(), condition]), self.with(at, &subject, &name, &value)));
            }
        }
        Ok(choices)
    }

    /// When a variable of a map or a `geo` has a value that `wanted` takes; nothing for
    /// other variables.
    pub(super) fn of_choices(
        &self,
        at: &At<'m, 'c>,
        name: &str,
        wanted: &dyn Fn(&Template) -> Option<Condition>,
    ) -> Option<Result<Condition, String>> {
        let (choices, directive) = match self.choices(at, name)? {
            Ok(choices) => choices,
            Err(wrong) => return Some(Err(wrong)),
        };
        let mut before: Vec<Condition> = Vec::new();
        let mut holds = Vec::new();
        for (when, value, _) in choices {
            let value = self.expanded(at, &value);
            let Some(is_wanted) = wanted(&value).and_then(|wanted| truth(&wanted)) else {
                return Some(Err(format!("a value of {} is not fixed", directive.place)));
            };
            if is_wanted {
                let others = match before.is_empty() {
                    true => Condition::Always,
                    false => Condition::Not(Box::new(any(before.clone()))),
                };
                holds.push(all([when.clone(), others]));
            }
            before.push(when);
        }
        Some(Ok(any(holds)))
    }

    /// That a map or a `geo`, and all that it says, is in the rules.
    pub(super) fn used(&mut self, name: &str) {
        let model = self.model;
        let map = model.http.maps.get(name).map(|map| map.directive);
        let Some(block) = map.or_else(|| model.http.geos.get(name).map(|geo| geo.directive)) else {
            return;
        };
        let is_new = !self.verdicts.contains_key(&(block.place.clone(), block.head_last));
        self.exact(block);
        for inner in block.inside() {
            self.exact(inner);
        }
        // And what it is a map of.
        if let Some(map) = model.http.maps.get(name).filter(|_| is_new) {
            map.source.variables().for_each(|name| self.used(name));
        }
    }

    /// Pools of the shares of `split_clients`, with their weights.
    pub(super) fn shares(
        &mut self,
        at: &mut At<'m, 'c>,
        here: &Here<'m, 'c>,
        pass: &'c Directive,
        (target, name, split): (&Template, &str, &'m Split<'c>),
        forward: &mut Forward,
    ) -> Result<(), (&'c Directive, String)> {
        let fixed = "the shares lead to addresses that are not fixed: until decided these requests are answered 501";
        let mut pools = Vec::new();
        for (share, value, directive) in &split.parts {
            let value = self.expanded(at, value);
            let target = self.with(at, target, name, &value);
            let said =
                authority(&target).filter(|(url, rest)| rest.is_empty() && url.uri.is_empty());
            let (url, _) = said.ok_or_else(|| (*directive, fixed.to_owned()))?;
            let mut one = Forward { path: forward.path.clone(), ..Forward::default() };
            self.forward(at, here, pass, &url, &mut one)?;
            self.exact(directive);
            pools.extend(one.pools.iter().map(|(pool, _)| (pool.clone(), *share)));
            if pools.len() == 1 {
                *forward = one;
            } else if one.host != forward.host {
                self.approximated(pass, "Host is that of the first share for all of them");
            }
        }
        let how = "requests are split by chance; nginx splits by a hash, so that the same client stays on its side";
        self.approximated(split.directive, how);
        forward.pools = pools;
        Ok(())
    }

    /// A variable that is set where a condition holds.
    pub(super) fn choose(
        &self,
        at: &mut At<'m, 'c>,
        name: &str,
        when: &Condition,
        value: &Template,
    ) {
        let nothing = || Template(Vec::new());
        let known = at.chosen.remove(name);
        let known = known.unwrap_or_else(|| {
            vec![(Condition::Always, at.set.remove(name).unwrap_or_else(nothing))]
        });
        let mut choices: Vec<(Condition, Template)> = Vec::new();
        if value.variables().any(|variable| variable == name) {
            for (condition, before) in &known {
                let value = self.with(at, value, name, before);
                choices.push((all([when.clone(), condition.clone()]), value));
            }
        } else {
            choices.push((when.clone(), value.clone()));
        }
        choices.extend(known);
        at.chosen.insert(name.to_owned(), choices);
    }

    /// Of what a pattern of an `if` has groups.
    pub(super) fn asked(
        &self,
        at: &At<'m, 'c>,
        directive: &Directive,
    ) -> Option<Rc<(Said, Pattern)>> {
        let said = directive.args.join(" ");
        let inner = said.strip_prefix('(')?.strip_suffix(')')?;
        let mut words = inner.trim().splitn(3, ' ');
        let variable = words.next()?.strip_prefix('$')?.to_ascii_lowercase();
        let operator = words.next().filter(|operator| !operator.starts_with('!'))?;
        let pattern = Pattern::of(words.next()?.trim(), operator.ends_with('*')).ok()?;
        let subject = self.expanded(at, &Template(vec![Part::Variable(variable)]));
        Some(Rc::new((super::headers::said(at, &subject, None, None)?, pattern)))
    }

    /// A text with a variable's value in it.
    pub(super) fn with(
        &self,
        at: &At<'m, 'c>,
        text: &Template,
        name: &str,
        value: &Template,
    ) -> Template {
        let parts = text.0.iter().flat_map(|part| match part {
            Part::Variable(known) if *known == name => value.0.clone(),
            part => vec![part.clone()],
        });
        self.expanded(at, &Template(parts.collect()))
    }
}

/// Whether a condition always holds, or never.
fn truth(condition: &Condition) -> Option<bool> {
    match condition {
        Condition::Always => Some(true),
        Condition::Not(inner) => truth(inner).map(|holds| !holds),
        Condition::Any(inner) => {
            let all: Option<Vec<bool>> = inner.iter().map(truth).collect();
            Some(all?.contains(&true))
        }
        Condition::All(inner) => {
            let all: Option<Vec<bool>> = inner.iter().map(truth).collect();
            Some(!all?.contains(&false))
        }
        _ => None,
    }
}
