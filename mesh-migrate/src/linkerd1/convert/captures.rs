//! Labels that a namer which rewrites takes apart: from what is known of the names that
//! it leads to, those that lead there are spelled.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;

use super::{super::config::Namer, labels::PROBE};

/// Values of one variable, at most.
const MAX_VALUES: usize = 200;
/// Labels of one part of a pattern, at most.
const MAX_SPOKEN: usize = 150;

/// Labels of a pattern such as `/svc-{name}`, with values that make names which are
/// known.
pub(super) fn labels(namer: &Namer, known: &BTreeSet<Vec<String>>) -> Vec<String> {
    let text = |key: &str| namer.node.at(key).and_then(|node| node.text().ok()).unwrap_or_default();
    let (pattern, name) = (text("pattern"), text("name"));
    let parts: Vec<&str> = pattern.split('/').filter(|part| is_mixed(part)).collect();
    if parts.is_empty() {
        return Vec::new();
    }
    let values = values(&name, known);
    parts.into_iter().flat_map(|part| spoken(part, &values)).collect()
}

/// More than one variable alone.
fn is_mixed(part: &str) -> bool {
    part.contains('{') && (!part.starts_with('{') || part.find('}') != Some(part.len() - 1))
}

/// What each variable may be, if the name is to be one with labels that are known.
fn values(name: &str, known: &BTreeSet<Vec<String>>) -> BTreeMap<String, BTreeSet<String>> {
    let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for part in name.split('/').filter(|part| part.contains('{')) {
        let names = names(part);
        let mut expression = regex::escape(part);
        for name in &names {
            expression = expression.replace(&format!("\\{{{}\\}}", regex::escape(name)), "(.+)");
        }
        let Ok(expression) = Regex::new(&format!("^{expression}$")) else { continue };
        for label in known.iter().flatten().filter(|label| !label.contains(['{', '~'])) {
            let Some(found) = expression.captures(label) else { continue };
            for (at, name) in names.iter().enumerate() {
                let of = values.entry(name.clone()).or_default();
                if of.len() < MAX_VALUES {
                    of.extend(found.get(at + 1).map(|value| value.as_str().to_owned()));
                }
            }
        }
    }
    values
}

fn names(part: &str) -> Vec<String> {
    let after = part.split('{').skip(1).filter_map(|after| after.split_once('}'));
    after.map(|(name, _)| name.to_owned()).collect()
}

fn spoken(part: &str, values: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut all = vec![part.to_owned()];
    for name in names(part) {
        // One that the name does not use may be anything.
        let any = BTreeSet::from([PROBE.to_owned()]);
        let of = values.get(&name).unwrap_or(&any);
        let hole = format!("{{{name}}}");
        let next = all.iter().flat_map(|label| of.iter().map(|value| label.replace(&hole, value)));
        all = next.take(MAX_SPOKEN).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{linkerd1::config::Config, source::Source};

    fn spelled(pattern: &str, name: &str) -> Vec<String> {
        let text = format!(
            "namers: [{{kind: io.l5d.rewrite, pattern: '{pattern}', name: '{name}'}}]\n\
             routers: [{{protocol: http}}]\n"
        );
        let config = Config::read(&Source::of("f", &text)).unwrap();
        let known = ["tenant-acme", "web", "v2"].map(|label| vec![label.to_owned()]).into();
        labels(&config.namers[0], &known)
    }

    #[test]
    fn labels_that_lead_to_known_names() {
        assert_eq!(spelled("/{tenant}--web", "/k8s/tenant-{tenant}/web"), ["acme--web"]);
        assert_eq!(spelled("/svc-{a}", "/files/{a}"), ["svc-tenant-acme", "svc-v2", "svc-web"]);
        assert_eq!(spelled("/{r}-x/{a}", "/files/a"), [format!("{PROBE}-x")]);
        assert!(spelled("/{a}/{b}", "/{b}/{a}").is_empty());
    }
}
