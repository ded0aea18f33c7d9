//! What many comparisons say together.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    compare::{Cause, Comparison, Difference, cut},
    histogram::Histogram,
};

/// Causes that are told apart; differences of more are counted together.
pub const MAX_GROUPS: usize = 64;

/// Examples of one cause: the first ones.
pub const MAX_EXAMPLES: usize = 5;

/// Of an example, in bytes.
const MAX_EXAMPLE: usize = 600;

/// All comparisons so far. It can be stored and read again: what does not fit is left out
/// then, as it would have been before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Tally {
    compared: u64,
    different: u64,
    groups: BTreeMap<Cause, Group>,
    other: u64,
    legacy: Histogram,
    ours: Histogram,
}

/// All differences with one cause.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// How many there are.
    pub count: u64,
    /// `GET /x host: 200 legacy, 404 ours`.
    pub examples: Vec<String>,
}

/// How long answers take; `None` where there was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Half of them took no longer.
    pub p50: Duration,
    /// So did 90 %.
    pub p90: Duration,
    /// So did 99 %.
    pub p99: Duration,
}

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing was compared.
    Nothing,
    /// All was alike, but it was not much.
    TooFew,
    /// All was alike.
    Alike,
    /// Something was not, however little was compared.
    Different,
}

/// A request as examples name it.
pub fn name(method: &str, target: &str, host: Option<&str>) -> String {
    match host {
        Some(host) => format!("{method} {target} {host}"),
        None => format!("{method} {target}"),
    }
}

impl Tally {
    /// One more; `request` as [`name`] writes it.
    pub fn add(&mut self, request: &str, comparison: &Comparison) {
        self.compared = self.compared.saturating_add(1);
        let is_different = !comparison.differences.is_empty();
        self.different = self.different.saturating_add(is_different.into());
        if let Some(took) = comparison.legacy_took {
            self.legacy.add(took);
        }
        if let Some(took) = comparison.ours_took {
            self.ours.add(took);
        }
        for difference in &comparison.differences {
            self.note(request, difference);
        }
    }

    fn note(&mut self, request: &str, difference: &Difference) {
        let Difference { cause, legacy, ours } = difference;
        let has_room = self.groups.len() < MAX_GROUPS || self.groups.contains_key(cause);
        if !has_room {
            self.other = self.other.saturating_add(1);
            return;
        }
        let group = self.groups.entry(cause.clone()).or_default();
        group.count = group.count.saturating_add(1);
        if group.examples.len() < MAX_EXAMPLES {
            let (request, shown) =
                (cut(request, MAX_EXAMPLE / 2), format!("{legacy} legacy, {ours} ours"));
            let what = match cause {
                Cause::Header(header) => format!("{header}: "),
                Cause::Body => "body: ".to_owned(),
                Cause::Backend(..) => "backend: ".to_owned(),
                Cause::Status(..) | Cause::NoAnswer { .. } => String::new(),
            };
            group.examples.push(cut(&format!("{request}: {what}{shown}"), MAX_EXAMPLE));
        }
    }

    /// Requests.
    pub fn compared(&self) -> u64 {
        self.compared
    }

    /// Requests with a difference, or several.
    pub fn different(&self) -> u64 {
        self.different
    }

    /// Differences by cause, most frequent first.
    pub fn groups(&self) -> Vec<(&Cause, &Group)> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        groups
    }

    /// Differences of causes beyond [`MAX_GROUPS`].
    pub fn other(&self) -> u64 {
        self.other
    }

    /// Of the legacy proxy's answers.
    pub fn legacy_latency(&self) -> Option<Latency> {
        Latency::of(&self.legacy)
    }

    /// Of ours.
    pub fn our_latency(&self) -> Option<Latency> {
        Latency::of(&self.ours)
    }

    /// What there is to say once `at_least` requests were compared.
    pub fn verdict(&self, at_least: u64) -> Verdict {
        match self.compared {
            _ if self.different > 0 => Verdict::Different,
            0 => Verdict::Nothing,
            compared if compared < at_least => Verdict::TooFew,
            _ => Verdict::Alike,
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram) -> Option<Self> {
        let p50 = histogram.quantile(0.5)?;
        Some(Self { p50, p90: histogram.quantile(0.9)?, p99: histogram.quantile(0.99)? })
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    compared: u64,
    different: u64,
    groups: Vec<(Cause, Group)>,
    other: u64,
    legacy: Histogram,
    ours: Histogram,
}

impl From<Tally> for Stored {
    fn from(tally: Tally) -> Self {
        let Tally { compared, different, groups, other, legacy, ours } = tally;
        Self { compared, different, groups: groups.into_iter().collect(), other, legacy, ours }
    }
}

impl From<Stored> for Tally {
    fn from(stored: Stored) -> Self {
        let Stored { compared, different, groups, mut other, legacy, ours } = stored;
        let mut kept = BTreeMap::new();
        for (cause, mut group) in groups {
            if kept.len() == MAX_GROUPS {
                other = other.saturating_add(group.count);
                continue;
            }
            group.examples.truncate(MAX_EXAMPLES);
            kept.insert(cause, group);
        }
        Self { compared, different, groups: kept, other, legacy, ours }
    }
}
