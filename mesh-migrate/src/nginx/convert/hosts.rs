//! Servers of a listener as conditions, in the order that nginx asks them in.

use super::{Condition, Listen, Server, Text, Work};
use crate::nginx::{model::Name, pattern::Pattern};

/// A port that a client names is not compared, nor is a last dot.
const AFTER: &str = r"\.?(?::[0-9]*)?";

/// Of a host in any case.
pub(super) fn host(inner: &str) -> Condition {
    Condition::Header("host".into(), Text::Pattern(format!("(?i)(?:{inner}){AFTER}")))
}

/// Of a pattern; whether a host with a port may be taken otherwise.
pub(super) fn host_pattern(pattern: &Pattern) -> (Condition, bool) {
    let text = pattern.text.as_str();
    let is_simple = !text.contains('|');
    let flags = if pattern.ignores_case { "(?i)" } else { "" };
    match text.strip_suffix('$').filter(|text| is_simple && !text.ends_with('\\')) {
        Some(begin) => {
            let begin = match begin.strip_prefix('^') {
                Some(begin) => begin.to_owned(),
                None => format!(".*{begin}"),
            };
            let text = format!("{flags}{begin}{AFTER}");
            (Condition::Header("host".into(), Text::Pattern(text)), false)
        }
        None => (Condition::Header("host".into(), Text::Pattern(pattern.whole())), true),
    }
}

impl<'c> Work<'_, 'c> {
    /// Conditions and whose they are: exact names, the longest `*.x`, the longest
    /// `x.*`, patterns, all others.
    pub(super) fn hosts(
        &mut self,
        here: &[(&Server<'c>, &Listen<'c>)],
        default: usize,
    ) -> Vec<(Condition, usize)> {
        let mut seen = std::collections::BTreeSet::new();
        let (mut exact, mut below, mut tails, mut patterns) = (vec![], vec![], vec![], vec![]);
        for (at, (server, _)) in here.iter().enumerate() {
            let mut names = Vec::new();
            for (name, directive) in &server.names {
                let (text, mut new) = match name {
                    Name::Exact(text) => (text.clone(), vec![text.clone()]),
                    Name::Both(text) => (text.clone(), vec![text.clone(), format!("*.{text}")]),
                    Name::Below(text) => (format!("*{text}"), vec![format!("*{text}")]),
                    Name::Tail(text) => (format!("{text}*"), vec![format!("{text}*")]),
                    Name::Regex(pattern) => {
                        self.pattern_name(at, pattern, directive, &mut patterns);
                        continue;
                    }
                };
                if directive.name == "server_name" {
                    self.exact(directive);
                }
                if !seen.insert(new[0].clone()) {
                    if directive.name == "server_name" {
                        let meaning = format!(
                            "an earlier server of this listener has {text:?}, too: nginx ignores it here"
                        );
                        self.approximated(directive, meaning);
                    }
                    continue;
                }
                if let Some(second) = new.pop().filter(|_| new.len() == 1) {
                    if seen.insert(second) {
                        below.push((
                            text.len() + 1,
                            format!(r"[^:]+\.{}", regex::escape(&text)),
                            at,
                        ));
                    }
                    names.push(regex::escape(&text));
                    continue;
                }
                match name {
                    Name::Below(text) => {
                        below.push((text.len(), format!("[^:]+{}", regex::escape(text)), at));
                    }
                    Name::Tail(text) => {
                        tails.push((text.len(), format!("{}[^:]+", regex::escape(text)), at));
                    }
                    _ if text.is_empty() => {
                        let absent = Condition::Header("host".into(), Text::Present);
                        exact.push((Condition::Not(Box::new(absent)), at));
                    }
                    _ => names.push(regex::escape(&text)),
                }
            }
            if !names.is_empty() {
                exact.push((host(&names.join("|")), at));
            }
        }
        let longest = |all: &mut Vec<(usize, String, usize)>| {
            all.sort_by_key(|one| std::cmp::Reverse(one.0));
            all.drain(..).map(|(_, text, at)| (host(&text), at)).collect::<Vec<_>>()
        };
        let mut groups = exact;
        groups.extend(longest(&mut below));
        groups.extend(longest(&mut tails));
        groups.extend(patterns);
        while groups.last().is_some_and(|(_, at)| *at == default) {
            groups.pop();
        }
        groups.push((Condition::Always, default));
        groups
    }

    fn pattern_name(
        &mut self,
        at: usize,
        pattern: &Result<Pattern, String>,
        directive: &super::Directive,
        patterns: &mut Vec<(Condition, usize)>,
    ) {
        match pattern {
            Ok(pattern) => {
                let (condition, is_vague) = host_pattern(pattern);
                patterns.push((condition, at));
                if is_vague {
                    self.approximated(
                        directive,
                        "the pattern is compared with the port, too, where a client names one",
                    );
                } else {
                    self.exact(directive);
                }
            }
            Err(wrong) => {
                let question = format!(
                    "{wrong}: no host comes to this server by it. Which hosts does it mean?"
                );
                self.decision(directive, question, &["names without patterns", "another pattern"]);
            }
        }
    }
}
