//! Changes of headers.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Making, clause, object, route::template, some_list};
use crate::{
    program::{Change, Forward, Sometimes},
    source::Place,
};

/// Changes of one kind in one rule, at most.
const MAX_CHANGES: usize = 64;
/// Conditional changes of one rule, at most.
pub(crate) const MAX_CONDITIONAL: usize = 64;
/// Bytes of one value, at most.
const MAX_VALUE: usize = 4096;

/// Whether a header frames messages or belongs to the mesh: rules of ours do not change
/// such.
pub(crate) fn is_ours(name: &str) -> bool {
    let framing =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];
    framing.contains(&name) || name.starts_with("isthmus-") || name.starts_with("x-isthmus-")
}

/// How many conditional changes one under this condition is.
pub(crate) fn alternatives(condition: &crate::program::Condition) -> usize {
    clause::clauses(condition).map_or(usize::MAX, |clauses| clauses.len())
}

/// What is said of a line that changes such a header.
pub(crate) fn why_ours(name: &str) -> String {
    format!("{name} is written by each proxy itself with us, and not by rules")
}

impl Making<'_> {
    /// The same without changes that no rule of ours can make.
    pub(super) fn sayable(&mut self, place: &Place, forward: &Forward) -> Forward {
        let mut forward = forward.clone();
        let (mut ours, mut long, mut is_over) = (BTreeSet::new(), BTreeSet::new(), false);
        {
            let mut is_good = |name: &str, value: &str| {
                if is_ours(name) {
                    ours.insert(name.to_owned());
                } else if value.len() > MAX_VALUE {
                    long.insert(name.to_owned());
                }
                !is_ours(name) && value.len() <= MAX_VALUE
            };
            let own = forward.own.iter_mut().flat_map(|own| {
                let set = [&mut own.set, &mut own.add, &mut own.set_answer, &mut own.add_answer];
                let remove = [&mut own.remove, &mut own.remove_answer];
                [(set, remove)]
            });
            let set = [
                &mut forward.set,
                &mut forward.add,
                &mut forward.set_answer,
                &mut forward.add_answer,
            ];
            let remove = [&mut forward.remove, &mut forward.remove_answer];
            for (set, remove) in own.chain([(set, remove)]) {
                for list in set {
                    list.retain(|(name, value)| is_good(name, value));
                    is_over |= list.len() > MAX_CHANGES;
                    list.truncate(MAX_CHANGES);
                }
                for list in remove {
                    list.retain(|name| is_good(name, ""));
                    is_over |= list.len() > MAX_CHANGES;
                    list.truncate(MAX_CHANGES);
                }
            }
            for list in [&mut forward.tell, &mut forward.tell_more] {
                list.retain(|(name, said)| is_good(name, &template(said)));
                is_over |= list.len() > MAX_CHANGES;
                list.truncate(MAX_CHANGES);
            }
            forward.sometimes.retain(|one| match &one.change {
                Change::Set(said) | Change::Add(said) => is_good(&one.name, &template(said)),
                Change::Remove => is_good(&one.name, ""),
            });
        }
        for name in ours {
            self.ledger.approximated(place, why_ours(&name));
        }
        for name in long {
            let question =
                format!("the value of {name} is longer than {MAX_VALUE} bytes: it is left out");
            self.ledger.decision(place, question, &["set it in the application", "leave it so"]);
        }
        if is_over {
            let question = format!(
                "it changes more than {MAX_CHANGES} headers in one way: others are left out"
            );
            self.ledger.decision(place, question, &["leave it so", "write a rule by hand"]);
        }
        forward
    }

    /// As our policy has them, in their order.
    pub(super) fn sometimes(&mut self, place: &Place, all: &[Sometimes]) -> Vec<Value> {
        let mut made: Vec<Value> = Vec::new();
        let mut rest = all;
        while let Some(first) = rest.first() {
            // Changes of other headers under the same condition are one.
            let mut names = BTreeSet::new();
            let alike = |one: &&Sometimes| one.when == first.when && names.insert(one.name.clone());
            let together = rest.iter().take(MAX_CHANGES).take_while(alike).count();
            let (now, later) = rest.split_at(together);
            rest = later;
            match clause::clauses(&first.when) {
                Ok(clauses) => {
                    let headers = changes(now);
                    for clause in clauses {
                        let mut one = json!({ "requestHeaders": headers });
                        let mut more = clause.more();
                        if let Some(matching) = clause.matching() {
                            match more.iter_mut().find(|(key, _)| *key == "also") {
                                Some((_, also)) => also
                                    .as_array_mut()
                                    .into_iter()
                                    .for_each(|also| also.insert(0, matching.clone())),
                                None => more.push(("also", json!([matching]))),
                            }
                        }
                        more.into_iter().for_each(|(key, value)| one[key] = value);
                        made.push(one);
                    }
                }
                Err(unsayable) => {
                    let names: Vec<_> = now.iter().map(|one| one.name.as_str()).collect();
                    let question = format!(
                        "{}: {} does not change with us",
                        unsayable.why(),
                        names.join(", ")
                    );
                    self.ledger.decision(place, question, &["write the condition otherwise"]);
                }
            }
        }
        if made.len() > MAX_CONDITIONAL {
            let question = format!(
                "headers change under {} conditions, and {MAX_CONDITIONAL} are what a rule of ours has: others are left out",
                made.len()
            );
            self.ledger.decision(place, question, &["leave it so", "write a rule by hand"]);
            made.truncate(MAX_CONDITIONAL);
        }
        made
    }
}

fn changes(all: &[Sometimes]) -> Value {
    let field = |name: &str, said| json!({ "name": name, "value": template(said) });
    let (mut set, mut add, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    for one in all {
        match &one.change {
            Change::Set(said) => set.push(field(&one.name, said)),
            Change::Add(said) => add.push(field(&one.name, said)),
            Change::Remove => remove.push(json!(one.name)),
        }
    }
    object([("set", some_list(set)), ("add", some_list(add)), ("remove", some_list(remove))])
}

pub(super) fn fields(fields: &[(String, String)]) -> Vec<Value> {
    fields.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect()
}

/// A filter sets a name once; more lines of it are added.
fn lines(set: &[(String, String)], add: &[(String, String)]) -> (Vec<Value>, Vec<Value>) {
    let is_first =
        |(at, (name, _)): &(usize, &(String, String))| !set[..*at].iter().any(|(n, _)| n == name);
    let (first, more): (Vec<_>, Vec<_>) = set.iter().enumerate().partition(is_first);
    let of = |all: Vec<(usize, &(String, String))>| -> Vec<(String, String)> {
        all.into_iter().map(|(_, field)| field.clone()).collect()
    };
    (fields(&of(first)), fields(&[of(more), add.to_vec()].concat()))
}

/// Changes of headers of requests or answers, as a filter.
pub(super) fn modifier(
    (of, set, add, remove): (&str, &Vec<(String, String)>, &Vec<(String, String)>, &Vec<String>),
) -> Option<Value> {
    let (set, add) = lines(set, add);
    let remove = remove.iter().map(|name| name.as_str().into()).collect();
    let modifier =
        object([("set", some_list(set)), ("add", some_list(add)), ("remove", some_list(remove))]);
    let (kind, key) = match of {
        "request" => ("RequestHeaderModifier", "requestHeaderModifier"),
        _ => ("ResponseHeaderModifier", "responseHeaderModifier"),
    };
    (modifier != json!({})).then(|| json!({ "type": kind, key: modifier }))
}
