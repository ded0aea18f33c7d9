//! Conditions of a program, kept simple while they are put together.

use crate::program::Condition;

/// What is remembered of conditions: each is compared with each that comes.
const MAX_FACTS: usize = 64;

pub(super) const NEVER: Condition = Condition::Any(Vec::new());

pub(super) fn constant(value: bool) -> Condition {
    if value { Condition::Always } else { NEVER }
}

/// Whether it is known, and what.
pub(super) fn known(condition: &Condition) -> Option<bool> {
    match condition {
        Condition::Always => Some(true),
        Condition::Any(any) if any.is_empty() => Some(false),
        _ => None,
    }
}

pub(super) fn not(condition: Condition) -> Condition {
    match condition {
        Condition::Not(inner) => *inner,
        other => match known(&other) {
            Some(value) => constant(!value),
            None => Condition::Not(Box::new(other)),
        },
    }
}

pub(super) fn all(parts: impl IntoIterator<Item = Condition>) -> Condition {
    let mut all: Vec<Condition> = Vec::new();
    for part in parts {
        match part {
            Condition::Always => {}
            Condition::All(inner) => {
                for one in inner {
                    if !all.contains(&one) {
                        all.push(one);
                    }
                }
            }
            other => {
                if known(&other) == Some(false) {
                    return NEVER;
                }
                if !all.contains(&other) {
                    all.push(other);
                }
            }
        }
    }
    if all.len() <= 64 && all.iter().any(|one| all.contains(&not(one.clone()))) {
        return NEVER;
    }
    match all.len() {
        0 => Condition::Always,
        1 => all.remove(0),
        _ => Condition::All(all),
    }
}

pub(super) fn any(parts: impl IntoIterator<Item = Condition>) -> Condition {
    let mut any: Vec<Condition> = Vec::new();
    for part in parts {
        match part {
            Condition::Always => return Condition::Always,
            Condition::Any(inner) => any.extend(inner),
            Condition::Method(more) => match any.iter_mut().find_map(methods) {
                Some(known) => known.extend(more),
                None => any.push(Condition::Method(more)),
            },
            Condition::Source(more) => match any.iter_mut().find_map(blocks) {
                Some(known) => known.extend(more),
                None => any.push(Condition::Source(more)),
            },
            other => any.push(other),
        }
    }
    if any.len() == 1 { any.remove(0) } else { Condition::Any(any) }
}

fn methods(condition: &mut Condition) -> Option<&mut Vec<String>> {
    match condition {
        Condition::Method(methods) => Some(methods),
        _ => None,
    }
}

fn blocks(condition: &mut Condition) -> Option<&mut Vec<String>> {
    match condition {
        Condition::Source(blocks) => Some(blocks),
        _ => None,
    }
}

/// What is left of a condition where others are known to hold or not.
pub(super) fn given(condition: Condition, facts: &[(Condition, bool)]) -> Condition {
    if let Some((_, value)) = facts.iter().find(|(fact, _)| *fact == condition) {
        return constant(*value);
    }
    match condition {
        Condition::All(parts) => all(parts.into_iter().map(|part| given(part, facts))),
        Condition::Any(parts) => any(parts.into_iter().map(|part| given(part, facts))),
        Condition::Not(inner) => not(given(*inner, facts)),
        other => other,
    }
}

/// What follows from a condition that holds, or that does not.
pub(super) fn facts(condition: &Condition, value: bool, facts: &mut Vec<(Condition, bool)>) {
    match condition {
        Condition::All(parts) if value => {
            parts.iter().for_each(|part| self::facts(part, true, facts));
        }
        Condition::Any(parts) if !value => {
            parts.iter().for_each(|part| self::facts(part, false, facts));
        }
        Condition::Not(inner) => self::facts(inner, !value, facts),
        _ if facts.len() < MAX_FACTS => facts.push((condition.clone(), value)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Text;

    fn path(path: &str) -> Condition {
        Condition::Path(Text::Exact(path.into()))
    }

    #[test]
    fn what_is_known_is_left_out() {
        let (a, b) = (path("/a"), path("/b"));
        assert_eq!(all([a.clone(), Condition::Always]), a);
        assert_eq!(all([a.clone(), not(a.clone())]), NEVER);
        assert_eq!(any([a.clone(), Condition::Always]), Condition::Always);
        assert_eq!(not(not(a.clone())), a);
        let mut known = Vec::new();
        facts(&any([a.clone(), b.clone()]), false, &mut known);
        assert_eq!(given(all([not(a.clone()), b.clone()]), &known), NEVER);
        assert_eq!(given(any([a, not(b)]), &known), Condition::Always);
    }
}
