//! Names that are the same in capitals: some namers ask their registry in small letters.

use super::{
    super::{config::Config, explain::Client, name::Name, namers::Origin},
    candidates::Candidate,
    rules::Resolved,
};
use crate::program::{Condition, Text};

/// A name in capitals, and the candidate for it in any letters.
pub(super) fn any(one: &Candidate) -> Option<(Name, Candidate)> {
    let Condition::Header(header, Text::Exact(label)) = &one.when else { return None };
    let upper = label.to_ascii_uppercase();
    if upper == *label || *label != label.to_ascii_lowercase() {
        return None;
    }
    let pattern = Text::Pattern(format!("(?i){}", regex::escape(label)));
    let when = Condition::Header(header.clone(), pattern);
    Some((Name::of([upper]), Candidate { when, ..one.clone() }))
}

/// Whether a namer that does not tell letters apart has bound it.
pub(super) fn may_be_any(config: &Config, to: &Resolved) -> bool {
    let asks_in_small = |at: usize| {
        config.namers.get(at).is_some_and(|namer| {
            let kinds = ["io.l5d.consul", "io.l5d.k8s", "io.l5d.k8s.ns", "io.l5d.k8s.external"];
            kinds.contains(&namer.kind.as_str()) || namer.kind == "io.l5d.marathon"
        })
    };
    to.status.is_none()
        && to.targets.iter().any(|target| match &target.client {
            Client::Name(bound) => matches!(bound.from, Origin::Namer(at) if asks_in_small(at)),
            _ => false,
        })
}

/// Whether both go to the same, but for the letters of its name.
pub(super) fn is_like(a: &Resolved, b: &Resolved) -> bool {
    let small = |to: &Resolved| -> Vec<(String, String)> {
        let one = |t: &super::super::explain::Target| {
            (t.client.to_string().to_ascii_lowercase(), format!("{:.9}", t.share))
        };
        to.targets.iter().map(one).collect()
    };
    a.status == b.status && small(a) == small(b) && a.service.values == b.service.values
}
