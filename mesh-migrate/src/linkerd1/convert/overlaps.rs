//! Names that several entries with `*` are for: each entry's own name does not show what
//! becomes of those.

use std::collections::BTreeSet;

use super::labels::{PROBE, deep};

/// Names that are looked at two by two, at most.
const MAX_COMPARED: usize = 300;
/// Names that come of it, at most.
const MAX_COMMON: usize = 1_000;

/// Names of a table, and those that two of them have in common.
pub(super) fn with_common(names: BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let mut all = names;
    // What three have in common is what one has with what the others have.
    for _ in 0..2 {
        let known: Vec<_> = all.iter().take(MAX_COMPARED).cloned().collect();
        let is_open = |name: &&Vec<String>| name.iter().any(|label| label == PROBE);
        for open in known.iter().filter(is_open) {
            for other in &known {
                if all.len() > MAX_COMMON {
                    return all;
                }
                all.extend(common(open, other));
            }
        }
    }
    all
}

/// The name that both are for; the shorter is for all that is below it.
fn common(a: &[String], b: &[String]) -> Option<Vec<String>> {
    let both = a.iter().zip(b).map(|(a, b)| match (a.as_str(), b.as_str()) {
        (PROBE, _) => Some(b.clone()),
        (_, PROBE) => Some(a.clone()),
        _ => (a == b).then(|| a.clone()),
    });
    let mut both: Vec<String> = both.collect::<Option<_>>()?;
    let longer = if a.len() > b.len() { a } else { b };
    both.extend(longer[both.len()..].iter().cloned());
    Some(both)
}

/// A name in `count` labels: with any label behind it, or without its last ones; where
/// it says any label, of one without dots, and of one with them.
pub(super) fn cut_or_padded(name: &[String], count: usize) -> Vec<Vec<String>> {
    let any = [PROBE.to_owned(), deep()];
    let filled = any.map(|any| {
        let given = name.iter().map(|label| if label == PROBE { &any } else { label }).cloned();
        given.chain(std::iter::repeat(any.clone())).take(count).collect::<Vec<_>>()
    });
    let mut filled = filled.to_vec();
    filled.dedup();
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Vec<String> {
        text.split(' ').map(|label| label.replace('*', PROBE)).collect()
    }

    #[test]
    fn what_two_entries_are_for() {
        for (a, b, expected) in [
            ("a.b", "* Check", Some("a.b Check")),
            ("* x", "y *", Some("y x")),
            ("* x", "y z", None),
            ("api * admin", "api v1", Some("api v1 admin")),
            ("*", "*", Some("*")),
        ] {
            assert_eq!(common(&name(a), &name(b)), expected.map(name), "{a} and {b}");
        }
        let all = with_common(["api * admin", "api v1", "api v1 * ping"].map(name).into());
        assert!(all.contains(&name("api v1 admin")) && all.contains(&name("api v1 admin ping")));
    }

    #[test]
    fn names_have_as_many_labels_as_are_asked_for() {
        assert_eq!(cut_or_padded(&name("a b c"), 2), [name("a b")]);
        assert_eq!(cut_or_padded(&name("a"), 2), [name("a *"), vec!["a".into(), deep()]]);
        assert_eq!(cut_or_padded(&name("* b"), 2), [name("* b"), vec![deep(), "b".into()]]);
    }
}
