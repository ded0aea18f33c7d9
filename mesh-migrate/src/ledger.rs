//! What has become of every line of a configuration: nothing is dropped silently.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::source::{Place, Source};

/// What a line has become.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict")]
pub enum Verdict {
    /// The same.
    Exact,
    /// Something like it.
    Approximated {
        /// What is different then.
        how: String,
    },
    /// Nothing.
    Dropped {
        /// What that means.
        meaning: String,
    },
    /// Nothing yet: a person must say.
    Decision {
        /// What to say.
        question: String,
        /// What there is to choose from.
        choices: Vec<String>,
    },
}

/// One statement of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it begins.
    pub place: Place,
    /// Its last line.
    pub last_line: u32,
    /// What has become of it.
    pub verdict: Verdict,
}

/// Everything that is said about a configuration, in order of its lines.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    entries: Vec<Entry>,
}

impl Ledger {
    /// About a statement of one line.
    pub fn say(&mut self, place: &Place, verdict: Verdict) {
        self.say_until(place, place.line, verdict);
    }

    /// About a statement of several lines.
    pub fn say_until(&mut self, place: &Place, last_line: u32, verdict: Verdict) {
        self.entries.push(Entry { place: place.clone(), last_line, verdict });
    }

    /// It is the same with us.
    pub fn exact(&mut self, place: &Place) {
        self.say(place, Verdict::Exact);
    }

    /// It is something like it with us.
    pub fn approximated(&mut self, place: &Place, how: impl Into<String>) {
        self.say(place, Verdict::Approximated { how: how.into() });
    }

    /// It is not there with us.
    pub fn dropped(&mut self, place: &Place, meaning: impl Into<String>) {
        self.say(place, Verdict::Dropped { meaning: meaning.into() });
    }

    /// Somebody must say.
    pub fn decision(&mut self, place: &Place, question: impl Into<String>, choices: &[&str]) {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        self.say(place, Verdict::Decision { question: question.into(), choices });
    }

    /// All entries by place; of two about the same place and verdict one.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        entries.sort_by(|a, b| {
            (&a.place, a.last_line, &a.verdict).cmp(&(&b.place, b.last_line, &b.verdict))
        });
        entries.dedup();
        entries
    }

    /// Lines of `source` that say something and about which nothing is said.
    /// `is_blank` tells lines that say nothing: empty ones and comments.
    pub fn silent_lines(&self, source: &Source, is_blank: impl Fn(&str) -> bool) -> Vec<u32> {
        let mut told: BTreeMap<u32, u32> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.place.file == source.name) {
            let last = told.entry(entry.place.line).or_default();
            *last = entry.last_line.max(*last);
        }
        let mut until = 0;
        let mut silent = Vec::new();
        for (number, line) in (1u32..).zip(source.text.lines()) {
            if let Some(last) = told.get(&number) {
                until = until.max(*last);
            }
            if number > until && !is_blank(line) {
                silent.push(number);
            }
        }
        silent
    }
}
