//! In what two answers to one request differ.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What a difference shows of a value, in bytes.
const MAX_SHOWN: usize = 120;

/// What names and reasons of a cause keep, in bytes.
const MAX_NAME: usize = 200;

/// Headers that always may differ. What ends with `*` means all that begin so.
const MAY_DIFFER: [&str; 13] = [
    "age",
    "connection",
    "date",
    "isthmus-*",
    "keep-alive",
    "l5d-*",
    "proxy-connection",
    "server",
    "trailer",
    "transfer-encoding",
    "via",
    "x-envoy-*",
    "x-request-id",
];

/// What came back for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observation {
    /// An answer.
    Answer(Observed),
    /// None, and why, in few words that are the same each time: `refused`, `timeout`.
    NoAnswer(String),
}

/// An answer of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// As it came.
    pub status: u16,
    /// In order; names in any case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Of the body as it came, without its framing.
    pub body: Digest,
    /// From the first byte of the request to the last of the answer.
    pub took: Duration,
}

/// What tells bodies apart: length and FNV-1a of 64 bits, whatever the chunks. It finds
/// differences that come by themselves, not those that somebody hides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    length: u64,
    hash: u64,
}

impl Default for Digest {
    fn default() -> Self {
        Self { length: 0, hash: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Digest {
    /// The next bytes of the body.
    pub fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// Of a whole body.
    pub fn of(bytes: &[u8]) -> Self {
        let mut digest = Self::default();
        digest.add(bytes);
        digest
    }

    /// Bytes so far.
    pub fn length(&self) -> u64 {
        self.length
    }
}

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Headers that may differ, in lower case; what ends with `*` means all that begin
    /// so. `content-length` need not be here: it is compared only where there is no
    /// body, as in answers to HEAD.
    pub ignore_headers: BTreeSet<String>,
    /// Bodies may differ.
    pub ignore_body: bool,
    /// Backends may differ.
    pub ignore_backend: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let ignore_headers = MAY_DIFFER.map(str::to_owned).into();
        Self { ignore_headers, ignore_body: false, ignore_backend: false }
    }
}

impl Rules {
    fn ignores(&self, name: &str) -> bool {
        let is_meant = |rule: &String| match rule.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == rule,
        };
        self.ignore_headers.iter().any(is_meant)
    }
}

/// One request, and what became of it at both.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Of the legacy proxy.
    pub legacy: &'a Observation,
    /// Of the legacy proxy, asked the same once more, best after ours: what differs
    /// between its own two answers is no difference to ours. A time of the day that is
    /// the same before and after is the same in between.
    pub again: Option<&'a Observation>,
    /// Of ours.
    pub ours: &'a Observation,
    /// The backend that the legacy proxy chooses, and ours; compared if both are known.
    pub backends: (Option<&'a str>, Option<&'a str>),
}

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Who {
    /// The legacy proxy.
    Legacy,
    /// Ours.
    Ours,
}

/// In what answers differ: the legacy proxy's first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Status; headers and bodies are not compared then.
    Status(u16, u16),
    /// The backend that takes it.
    Backend(String, String),
    /// The values of a header, named in lower case.
    Header(String),
    /// The bytes of the body.
    Body,
    /// Only one has answered.
    NoAnswer {
        /// Who has not.
        who: Who,
        /// Why.
        why: String,
    },
}

/// One difference, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// In what.
    pub cause: Cause,
    /// What the legacy proxy has there. Values that let somebody in are not shown.
    pub legacy: String,
    /// What ours has.
    pub ours: String,
}

/// What one request has shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// None where the answers are alike.
    pub differences: Vec<Difference>,
    /// How long the legacy proxy took, if it has answered.
    pub legacy_took: Option<Duration>,
    /// How long ours took, if it has answered.
    pub ours_took: Option<Duration>,
}

/// Compares what became of one request.
///
/// Two requests without an answer are alike, whatever the reasons. Where the legacy proxy
/// has answered two different statuses, ours may be either, and nothing else is compared.
pub fn compare(pair: &Pair<'_>, rules: &Rules) -> Comparison {
    let mut differences = Vec::new();
    if let (Some(legacy), Some(ours)) = pair.backends
        && legacy != ours
        && !rules.ignore_backend
    {
        let cause = Cause::Backend(cut(legacy, MAX_NAME), cut(ours, MAX_NAME));
        differences.push(difference(cause, legacy, ours));
    }
    differences.extend(of_answers(pair, rules));
    let took = |observation: &Observation| match observation {
        Observation::Answer(observed) => Some(observed.took),
        Observation::NoAnswer(_) => None,
    };
    Comparison { differences, legacy_took: took(pair.legacy), ours_took: took(pair.ours) }
}

fn of_answers(pair: &Pair<'_>, rules: &Rules) -> Vec<Difference> {
    let is_unsteady = pair.again.is_some_and(|again| status(again) != status(pair.legacy));
    if is_unsteady && pair.again.is_some_and(|again| status(again) == status(pair.ours)) {
        return Vec::new();
    }
    let (legacy, ours) = (shown(pair.legacy), shown(pair.ours));
    let cause = match (pair.legacy, pair.ours) {
        (Observation::NoAnswer(_), Observation::NoAnswer(_)) => return Vec::new(),
        (Observation::NoAnswer(why), Observation::Answer(_)) => {
            Cause::NoAnswer { who: Who::Legacy, why: cut(why, MAX_NAME) }
        }
        (Observation::Answer(_), Observation::NoAnswer(why)) => {
            Cause::NoAnswer { who: Who::Ours, why: cut(why, MAX_NAME) }
        }
        (Observation::Answer(legacy), Observation::Answer(ours)) => {
            if legacy.status == ours.status {
                let again = match pair.again {
                    _ if is_unsteady => return Vec::new(),
                    Some(Observation::Answer(again)) => Some(again),
                    Some(Observation::NoAnswer(_)) | None => None,
                };
                return of_contents(legacy, again, ours, rules);
            }
            Cause::Status(legacy.status, ours.status)
        }
    };
    vec![difference(cause, &legacy, &ours)]
}

fn of_contents(
    legacy: &Observed,
    again: Option<&Observed>,
    ours: &Observed,
    rules: &Rules,
) -> Vec<Difference> {
    let mut found = Vec::new();
    let is_empty = legacy.body.length == 0 && ours.body.length == 0;
    let (a, b) = (by_name(&legacy.headers), by_name(&ours.headers));
    let second = again.map(|again| by_name(&again.headers));
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for name in names {
        let (values_a, values_b) = (a.get(name), b.get(name));
        let is_framing =
            name == "content-length" && !(is_empty && values_a.is_some() && values_b.is_some());
        let is_volatile = second.as_ref().is_some_and(|second| second.get(name) != values_a);
        if values_a == values_b || is_framing || is_volatile || rules.ignores(name) {
            continue;
        }
        let (legacy, ours) = (shown_values(name, values_a), shown_values(name, values_b));
        found.push(difference(Cause::Header(cut(name, MAX_NAME)), &legacy, &ours));
    }
    let is_volatile = again.is_some_and(|again| again.body != legacy.body);
    if legacy.body != ours.body && !is_volatile && !rules.ignore_body {
        let shown = |digest: &Digest| format!("{} bytes, {:016x}", digest.length, digest.hash);
        found.push(difference(Cause::Body, &shown(&legacy.body), &shown(&ours.body)));
    }
    found
}

fn difference(cause: Cause, legacy: &str, ours: &str) -> Difference {
    Difference { cause, legacy: cut(legacy, MAX_SHOWN), ours: cut(ours, MAX_SHOWN) }
}

fn status(observation: &Observation) -> Option<u16> {
    match observation {
        Observation::Answer(observed) => Some(observed.status),
        Observation::NoAnswer(_) => None,
    }
}

/// Values by name in lower case. Lines of one name are one list (RFC 9110, 5.3), but for
/// `set-cookie`, whose values may have commas.
fn by_name(headers: &[(String, Vec<u8>)]) -> BTreeMap<String, Vec<u8>> {
    let mut all: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let between: &[u8] = if name == "set-cookie" { b"\n" } else { b", " };
        let value = value.trim_ascii();
        all.entry(name)
            .and_modify(|known| {
                known.extend_from_slice(between);
                known.extend_from_slice(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    all
}

/// Status, and the reason of a proxy that has answered by itself.
fn shown(observation: &Observation) -> String {
    let observed = match observation {
        Observation::Answer(observed) => observed,
        Observation::NoAnswer(why) => return format!("no answer ({why})"),
    };
    let is_reason = |name: &str| {
        name.eq_ignore_ascii_case("isthmus-error") || name.eq_ignore_ascii_case("l5d-err")
    };
    let reason = observed.headers.iter().find(|(name, _)| is_reason(name));
    match reason {
        Some((_, reason)) => {
            format!("{} ({})", observed.status, String::from_utf8_lossy(reason))
        }
        None => observed.status.to_string(),
    }
}

fn shown_values(name: &str, values: Option<&Vec<u8>>) -> String {
    const SECRET: [&str; 5] = ["auth", "cookie", "key", "secret", "token"];
    match values {
        None => "none".to_owned(),
        Some(_) if SECRET.iter().any(|part| name.contains(part)) => "not shown".to_owned(),
        Some(values) => String::from_utf8_lossy(values).into_owned(),
    }
}

/// At most `most` bytes and a mark that there were more; no control characters, which
/// could say anything to a terminal.
pub(super) fn cut(text: &str, most: usize) -> String {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let is_cut = end < text.len();
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text[..end].chars().map(plain).collect();
    if is_cut {
        out.push('…');
    }
    out
}
