//! Labels that stand for others: those that nobody has, and expressions for them.

use super::super::{explain::Client, name::raw};
use crate::program::Text;

/// A label that no configuration has: what becomes of it becomes of every other.
pub(super) const PROBE: &str = "zq7anybody";
/// The same for labels that are no host: with a character that hosts have not.
pub(super) const ODD: &str = "zq7odd~";
/// What all of them begin with.
pub(super) const ANYBODY: &str = "zq7";
/// The same for methods.
pub(super) const PROBE_METHOD: &str = "ZQANYMETHOD";
/// A label that stands for many: what is before and behind what it stands for.
pub(super) fn split(label: &str) -> Option<(&str, &str)> {
    if label == PROBE_METHOD {
        return Some(("", ""));
    }
    let (before, _) = label.split_once(PROBE)?;
    let (_, after) = label.rsplit_once(PROBE)?;
    Some((before, after))
}

/// Whether a label is one of those that `pattern` stands for: as the expression of
/// [`spelled`] has it.
pub(super) fn fits(pattern: &str, label: &str) -> bool {
    let Some((before, after)) = pattern.split_once(PROBE) else { return pattern == label };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let Some(rest) = label.strip_prefix(before) else { return false };
    let deep = after.strip_prefix('.').and_then(|after| after.strip_prefix(PROBE));
    let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8());
    let mut runs = ends.take_while(|end| rest[..*end].chars().all(is_plain));
    runs.any(|end| {
        let (run, behind) = rest.split_at(end);
        let is_one = !run.contains('.');
        let is_many = !is_one && run.split('.').all(|part| !part.is_empty());
        (is_one && deep.is_none() && fits(after, behind))
            || (is_many && deep.is_some_and(|after| fits(after, behind)))
    })
}

/// An expression for a label: `PROBE` is any one without dots and ports, two of them
/// with a dot between are any with dots.
pub(super) fn spelled(label: &str) -> String {
    let escaped = regex::escape(label);
    let deep = regex::escape(&deep());
    let deeper = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+";
    let odd = "[^/]*[^A-Za-z0-9.:_/-][^/]*";
    escaped
        .replace(&deep, deeper)
        .replace(PROBE, "[A-Za-z0-9_-]+")
        .replace(&regex::escape(ODD), odd)
}

/// Any label with dots.
pub(super) fn deep() -> String {
    format!("{PROBE}.{PROBE}")
}

/// Whether both may stand for one label: by its dots and colons, as [`spelled`] has them.
pub(super) fn may_meet(a: &str, b: &str) -> bool {
    // What is shown in another way may hold anything.
    if [a, b].iter().any(|label| label.contains('\\') || *label == PROBE_METHOD) {
        return true;
    }
    let colons = |label: &str| label.matches(':').count();
    let dots = |label: &str| label.matches('.').count();
    let has_more = |few: &str, many: &str| few.contains(&deep()) && dots(many) >= dots(few);
    colons(a) == colons(b) && (dots(a) == dots(b) || has_more(a, b) || has_more(b, a))
}

/// Where a name leads, for people.
pub(super) fn anybody(client: &Client) -> String {
    let Client::Name(bound) = client else { return client.to_string() };
    let labels = bound.id.labels().iter().map(|label| format!("/{}", raw(label)));
    labels.collect::<String>().replace(PROBE, "<any>").replace(ODD, "<any>")
}

/// A text of one label or several.
pub(super) fn text(label: &str) -> Text {
    if label.contains(ANYBODY) {
        Text::Pattern(spelled(label))
    } else {
        Text::Exact(label.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_for_what_fits() {
        let patterns = [
            PROBE.to_owned(),
            format!("{PROBE}.corp"),
            format!("{}.corp", deep()),
            format!("web:{PROBE}"),
            "web".to_owned(),
        ];
        let labels =
            ["web", "a.corp", "a.b.corp", ".corp", "a..corp", "web:80", "web:", "a~b", "a-b", "é"];
        for pattern in &patterns {
            let spelled = regex::Regex::new(&format!("^(?:{})$", spelled(pattern))).unwrap();
            for label in labels {
                assert_eq!(fits(pattern, label), spelled.is_match(label), "{pattern} {label}");
            }
        }
        assert!(fits(&patterns[2], "a.b.corp") && !fits(&patterns[1], "a.b.corp"));
        for (one, other, may) in [
            (&*patterns[1], "a.corp", true),
            (&patterns[1], "a.b.corp", false),
            (&patterns[2], "a.b.c.corp", true),
            (&patterns[2], &patterns[1], false),
            (&patterns[3], "web:80", true),
            (&patterns[3], &patterns[2], false),
        ] {
            assert_eq!((may_meet(one, other), may_meet(other, one)), (may, may), "{one} {other}");
        }
    }
}
