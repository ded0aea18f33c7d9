//! What becomes of each field: by a table, unless the conversion has noted more.

use std::{collections::BTreeMap, sync::OnceLock};

use super::{
    schema::{Schema, short},
    tree::{Entry, Tree, Value, What},
};
use crate::{
    ledger::{Ledger, Verdict},
    source::Place,
};

/// What the conversion has found out about places, beside the table.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// About fields, by the place of the name, and about elements of lists.
    fields: BTreeMap<Place, Vec<Verdict>>,
    /// About whole messages.
    trees: BTreeMap<Place, Vec<Verdict>>,
}

impl Notes {
    pub(super) fn approximated(&mut self, place: &Place, how: impl Into<String>) {
        self.note(place, Verdict::Approximated { how: how.into() });
    }

    pub(super) fn dropped(&mut self, place: &Place, meaning: impl Into<String>) {
        self.note(place, Verdict::Dropped { meaning: meaning.into() });
    }

    pub(super) fn decision(
        &mut self,
        place: &Place,
        question: impl Into<String>,
        choices: &[&str],
    ) {
        self.note(place, decision(question.into(), choices));
    }

    /// The same only once, however often it is found out.
    pub(super) fn once(&mut self, place: &Place, verdict: Verdict) {
        let known = self.fields.entry(place.clone()).or_default();
        if !known.contains(&verdict) {
            known.push(verdict);
        }
    }

    fn note(&mut self, place: &Place, verdict: Verdict) {
        self.fields.entry(place.clone()).or_default().push(verdict);
    }

    /// About a whole message, whose fields still have their own verdicts.
    pub(super) fn whole(&mut self, tree: &Tree, verdict: Verdict) {
        self.trees.entry(tree.place.clone()).or_default().push(verdict);
    }

    /// About a whole message: a person must say.
    pub(super) fn ask(&mut self, tree: &Tree, question: impl Into<String>, choices: &[&str]) {
        self.whole(tree, decision(question.into(), choices));
    }
}

pub(super) fn decision(question: String, choices: &[&str]) -> Verdict {
    let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
    Verdict::Decision { question, choices }
}

/// Says something about every field of a tree.
pub(super) fn sweep(tree: &Tree, notes: &Notes, ledger: &mut Ledger) {
    for verdict in notes.trees.get(&tree.place).into_iter().flatten() {
        ledger.say(&tree.place, verdict.clone());
    }
    for place in &tree.nulls {
        ledger.exact(place);
    }
    for field in &tree.fields {
        let known = notes.fields.get(&field.place).cloned();
        let verdicts = known.unwrap_or_else(|| vec![verdict(tree, field)]);
        said(field, &verdicts, notes, ledger);
    }
}

fn said(field: &Entry, verdicts: &[Verdict], notes: &Notes, ledger: &mut Ledger) {
    let is_leaf = !matches!(field.value.what, What::Message(_) | What::List(_) | What::Map(_));
    let goes_on =
        verdicts.iter().all(|one| matches!(one, Verdict::Exact | Verdict::Approximated { .. }));
    for verdict in verdicts {
        match is_leaf || !goes_on {
            true => ledger.say_until(&field.place, field.value.last_line, verdict.clone()),
            false => ledger.say(&field.place, verdict.clone()),
        }
    }
    if goes_on {
        below(&field.value, notes, ledger);
    }
}

fn below(value: &Value, notes: &Notes, ledger: &mut Ledger) {
    match &value.what {
        What::Message(tree) => sweep(tree, notes, ledger),
        What::List(elements) => elements.iter().for_each(|one| match &one.what {
            What::Message(_) | What::List(_) | What::Map(_) => below(one, notes, ledger),
            _ => match notes.fields.get(&one.place) {
                Some(verdicts) => {
                    let say = |verdict: &Verdict| ledger.say(&one.place, verdict.clone());
                    verdicts.iter().for_each(say);
                }
                None => ledger.say_until(&one.place, one.last_line, Verdict::Exact),
            },
        }),
        What::Map(entries) => entries.iter().for_each(|one| {
            ledger.exact(&one.place);
            below(&one.value, notes, ledger);
        }),
        _ => {}
    }
}

fn verdict(tree: &Tree, field: &Entry) -> Verdict {
    if field.name == "@type" {
        return Verdict::Exact;
    }
    let table = Table::known();
    let own = table.0.get(tree.message).and_then(|fields| fields.get(field.name.as_str()));
    own.or_else(|| table.0.get("*")?.get(field.name.as_str())).cloned().unwrap_or_else(|| {
        let meaning = format!("{} of {} is not carried", field.name, short(tree.message));
        Verdict::Dropped { meaning }
    })
}

/// Verdicts by message and field.
struct Table(BTreeMap<&'static str, BTreeMap<&'static str, Verdict>>);

impl Table {
    fn known() -> &'static Self {
        static KNOWN: OnceLock<Table> = OnceLock::new();
        KNOWN.get_or_init(|| Self::read(include_str!("verdicts.txt")))
    }

    /// `[message]`, then `= field…`, `~ field…: how`, `- field…: meaning`,
    /// `? field…: question | choice | choice`.
    fn read(text: &'static str) -> Self {
        let mut table = BTreeMap::new();
        let mut fields: Option<&mut BTreeMap<_, _>> = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                fields = Some(table.entry(name).or_default());
                continue;
            }
            let Some(fields) = fields.as_deref_mut() else { continue };
            let (sign, rest) = line.split_at(1);
            let (names, text) = match sign {
                "=" => (rest, ""),
                _ => rest.split_once(": ").unwrap_or((rest, "")),
            };
            let verdict = match sign {
                "=" => Verdict::Exact,
                "~" => Verdict::Approximated { how: text.into() },
                "?" => {
                    let mut parts = text.split(" | ");
                    let question = parts.next().unwrap_or_default().to_owned();
                    decision(question, &parts.collect::<Vec<_>>())
                }
                _ => Verdict::Dropped { meaning: text.into() },
            };
            for name in names.split_whitespace() {
                fields.insert(name, verdict.clone());
            }
        }
        debug_assert!(
            table.keys().all(|name| *name == "*" || Schema::known().message(name).is_some())
        );
        Self(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_speaks_of_fields_that_there_are() {
        let mut fields = 0;
        for (message, verdicts) in Table::known().0.iter().filter(|(name, _)| **name != "*") {
            let known = Schema::known().message(message).unwrap_or_else(|| panic!("{message}"));
            for field in verdicts.keys() {
                fields += 1;
                assert_eq!(known.field(field).map(|f| f.name), Some(*field), "{message}");
            }
        }
        assert!(fields > 200, "{fields}");
    }
}
