//! Locations of a server as conditions, in an order of which the first that holds is
//! what nginx would choose.

use std::{collections::BTreeSet, ops::Bound};

use super::{Condition, Directive, Text, Work, all, any, leaf::GATES, path_begins};
use crate::nginx::{
    model::{Kind, Location, redirecting},
    pattern::Pattern,
};
use crate::program::PathChange;

/// What stands behind a condition.
#[derive(Clone, Copy)]
pub(super) enum Leaf<'m, 'c> {
    Location(&'m Location<'c>),
    /// To the location whose last slash the path lacks.
    Redirect(&'m Location<'c>),
    /// Of paths that the location, whose pattern cannot be read, may keep from clients.
    Refused(&'m Location<'c>),
}

/// Conditions of one level.
#[derive(Default)]
pub(super) struct Level<'m, 'c> {
    /// Those that no pattern of an outer level comes before.
    pub(super) sure: Vec<(Condition, Leaf<'m, 'c>)>,
    /// Those that one does.
    pub(super) weak: Vec<(Condition, Leaf<'m, 'c>)>,
}

impl<'m, 'c> Level<'m, 'c> {
    /// In order.
    pub(super) fn all(mut self) -> Vec<(Condition, Leaf<'m, 'c>)> {
        self.sure.append(&mut self.weak);
        self.sure
    }
}

impl<'c> Work<'_, 'c> {
    pub(super) fn level<'m>(&mut self, level: &'m [Location<'c>], is_top: bool) -> Level<'m, 'c> {
        let mut out = Level::default();
        let exact = |text: &str| Condition::Path(Text::Exact(text.to_owned()));
        for location in level.iter().filter(|location| matches!(location.kind, Kind::Exact)) {
            out.sure.push((exact(&location.text), Leaf::Location(location)));
        }
        let is_static = |l: &&Location<'_>| l.is_prefix() || matches!(l.kind, Kind::Exact);
        let known: BTreeSet<&str> =
            level.iter().filter(is_static).map(|l| l.text.as_str()).collect();
        for location in redirecting(level) {
            let without = &location.text[..location.text.len() - 1];
            if !without.is_empty() && !known.contains(without) {
                out.sure.push((exact(without), Leaf::Redirect(location)));
            }
        }
        let mut prefixes: Vec<&Location<'c>> = level.iter().filter(|l| l.is_prefix()).collect();
        prefixes.sort_by_key(|location| std::cmp::Reverse(location.text.len()));
        let texts: BTreeSet<&str> =
            prefixes.iter().map(|location| location.text.as_str()).collect();
        let mut finals = Vec::new();
        let mut weak = Vec::new();
        let mut taken = Vec::new();
        for location in &prefixes {
            let guard = guard(location, &texts);
            let mut inner = self.level(&location.locations, false);
            let guarded =
                inner.sure.drain(..).map(|(when, leaf)| (all([guard.clone(), when]), leaf));
            out.sure.extend(guarded);
            inner.weak.push((Condition::Always, Leaf::Location(location)));
            if matches!(location.kind, Kind::Final) {
                taken.push(guard.clone());
                finals.extend(
                    inner.weak.into_iter().map(|(when, leaf)| (all([guard.clone(), when]), leaf)),
                );
            } else {
                let begins = path_begins(&location.text);
                weak.extend(
                    inner.weak.into_iter().map(|(when, leaf)| (all([begins.clone(), when]), leaf)),
                );
            }
        }
        // At the top the order alone keeps patterns from what `^~` takes; further in
        // patterns are asked before it, so that they must not take it.
        let not_final = match taken.is_empty() || is_top {
            true => Condition::Always,
            false => Condition::Not(Box::new(any(taken))),
        };
        let mut patterns = Vec::new();
        for location in level {
            let Kind::Regex(pattern) = &location.kind else { continue };
            let Ok(pattern) = pattern else {
                if let Some(takes) = self.unread(location) {
                    let when = all([not_final.clone(), Condition::Path(takes)]);
                    patterns.push((when, Leaf::Refused(location)));
                }
                continue;
            };
            let when = all([not_final.clone(), Condition::Path(Text::Pattern(pattern.whole()))]);
            let inner = self.level(&location.locations, false).all();
            patterns
                .extend(inner.into_iter().map(|(inner, leaf)| (all([when.clone(), inner]), leaf)));
            patterns.push((when, Leaf::Location(location)));
        }
        if is_top {
            out.sure.append(&mut finals);
            out.sure.append(&mut patterns);
        } else {
            out.sure.append(&mut patterns);
            out.weak.append(&mut finals);
        }
        out.weak.append(&mut weak);
        out
    }

    /// What is refused of paths that a pattern takes that cannot be read.
    fn unread(&mut self, location: &Location<'_>) -> Option<Text> {
        let Kind::Regex(Err(wrong)) = &location.kind else { return None };
        let ignores_case = location.directive.arg(0).starts_with("~*");
        let loose = Pattern::loose(&location.text, ignores_case);
        let loose = loose.map(|loose| loose.whole());
        let whatever = || format!("{}(?s:.*)", regex::escape(beginning(&location.text)));
        let refused = keeps_out(location).then(|| loose.unwrap_or_else(whatever));
        let question = match refused {
            Some(_) => format!(
                "{wrong}: until decided paths that it may take are answered 501, so that nobody comes in who should not. What does it mean?"
            ),
            None => format!(
                "{wrong}: what it takes goes to the locations that come after it. What does it mean?"
            ),
        };
        self.decision(location.directive, question, &["another pattern", "prefixes"]);
        refused.map(Text::Pattern)
    }
}

/// What every path begins with that a pattern takes, as far as it is plain text.
fn beginning(pattern: &str) -> &str {
    let Some(text) = pattern.strip_prefix('^') else { return "" };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_');
    let end = text.find(|c| !plain(c)).unwrap_or(text.len());
    // What may be repeated no times is no part of it.
    let is_sure = !text[end..].starts_with(['?', '*', '{']) && !pattern.contains('|');
    if is_sure { &text[..end] } else { "" }
}

/// Whether some are kept out of a location.
fn keeps_out(location: &Location<'_>) -> bool {
    let keeps = |d: &Directive| match d.name.as_str() {
        "return" => d.arg(0).parse::<u16>().is_ok_and(|status| status >= 400),
        "deny" | "internal" | "limit_except" => true,
        name => GATES.contains(&name) && d.arg(0) != "off",
    };
    fn any(block: &Directive, keeps: &dyn Fn(&Directive) -> bool) -> bool {
        block.inside().iter().any(|inner| keeps(inner) || any(inner, keeps))
    }
    any(location.directive, &keeps)
}

/// Its path, where a path without its last slash is led to.
pub(super) fn slashed(location: &Location<'_>) -> PathChange {
    let escaped = crate::nginx::uri::escaped(location.text.as_bytes());
    PathChange::Whole(String::from_utf8_lossy(&escaped).into_owned())
}

/// The location has the longest prefix of its level.
fn guard(location: &Location<'_>, texts: &BTreeSet<&str>) -> Condition {
    let text = location.text.as_str();
    let mut longer: Vec<&str> = Vec::new();
    // Texts that begin alike stand together: those of one that was taken are skipped.
    let mut from = (Bound::Excluded(text.to_owned()), Bound::Unbounded);
    while let Some(next) =
        texts.range::<str, _>((from.0.as_ref().map(String::as_str), from.1)).next()
    {
        if !next.starts_with(text) {
            break;
        }
        longer.push(next);
        from.0 = Bound::Excluded(format!("{next}{}", char::MAX));
    }
    let longer: Vec<Condition> = longer.into_iter().map(path_begins).collect();
    let begins = path_begins(text);
    if longer.is_empty() { begins } else { all([begins, Condition::Not(Box::new(any(longer)))]) }
}
