//! What is said about lines while they are converted, once each.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ledger::Verdict, source::Place};

#[derive(Debug, Default)]
pub(super) struct Notes {
    /// By the line, of which several places may be known.
    said: BTreeMap<Place, BTreeSet<Verdict>>,
}

fn line(place: &Place) -> Place {
    Place { column: 1, ..place.clone() }
}

impl Notes {
    pub(super) fn of(&self, place: &Place) -> impl Iterator<Item = &Verdict> {
        self.said.get(&line(place)).into_iter().flatten()
    }

    fn say(&mut self, place: &Place, verdict: Verdict) {
        self.said.entry(line(place)).or_default().insert(verdict);
    }

    pub(super) fn approximated(&mut self, place: &Place, how: impl Into<String>) {
        self.say(place, Verdict::Approximated { how: how.into() });
    }

    pub(super) fn dropped(&mut self, place: &Place, meaning: impl Into<String>) {
        self.say(place, Verdict::Dropped { meaning: meaning.into() });
    }

    pub(super) fn decision(
        &mut self,
        place: &Place,
        question: impl Into<String>,
        choices: &[&str],
    ) {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        self.say(place, Verdict::Decision { question: question.into(), choices });
    }
}
