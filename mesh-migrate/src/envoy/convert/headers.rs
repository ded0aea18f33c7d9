//! Header mutations of several levels, one after another, as one change.

use std::collections::BTreeMap;

use crate::{
    envoy::{notes::Notes, tree::Tree},
    program::{Condition, Said, Sometimes, Text},
};

/// What becomes of headers; names in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) set: Vec<(String, String)>,
    pub(super) add: Vec<(String, String)>,
    pub(super) remove: Vec<String>,
    /// Replaced by what the request says; of requests only.
    pub(super) tell: Vec<(String, Said)>,
}

impl Changes {
    /// Of all headers that change.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let pairs = self.set.iter().chain(&self.add).map(|(name, _)| name);
        let told = self.tell.iter().map(|(name, _)| name);
        pairs.chain(told).chain(&self.remove).map(String::as_str)
    }
}

/// What is known of one header after some levels.
#[derive(Default)]
struct Line {
    /// What the client sent is gone.
    is_fresh: bool,
    values: Vec<String>,
}

impl Line {
    /// Whether it is there: `None` where the client says.
    fn is_there(&self) -> Option<bool> {
        match (self.values.is_empty(), self.is_fresh) {
            (false, _) => Some(true),
            (true, true) => Some(false),
            (true, false) => None,
        }
    }
}

/// What one level does with a header.
struct Change<'t> {
    name: String,
    value: Said,
    overwrites: bool,
    option: &'t Tree,
}

/// Levels in the order in which Envoy applies them; `of` is `request` or `response`.
pub(super) fn fold(levels: &[&Tree], of: &str, notes: &mut Notes) -> Changes {
    fold_with(levels, of, &[], notes)
}

/// The same without changes that hang on what the client has sent.
fn fold_with(levels: &[&Tree], of: &str, but: &[&Tree], notes: &mut Notes) -> Changes {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    let mut tell: BTreeMap<String, Said> = BTreeMap::new();
    for level in levels {
        for name in level.texts(&format!("{of}_headers_to_remove")) {
            let gone = Line { is_fresh: true, values: Vec::new() };
            lines.insert(name.to_ascii_lowercase(), gone);
            tell.remove(&name.to_ascii_lowercase());
        }
        let options = level.messages(&format!("{of}_headers_to_add"));
        let options = options.filter(|one| !but.iter().any(|other| std::ptr::eq(*one, *other)));
        let changes: Vec<Change<'_>> = options
            .filter_map(|option| match told(option).filter(|_| of == "request") {
                None => change(option, &lines, notes),
                told => told,
            })
            .collect();
        // What overwrites goes before what is appended.
        let (over, appended): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| change.overwrites);
        for Change { name, value, option, .. } in over {
            match value {
                Said::Text(value) => {
                    tell.remove(&name);
                    lines.insert(name, Line { is_fresh: true, values: vec![value] });
                }
                said => {
                    told_near(option, &said, notes);
                    lines.remove(&name);
                    tell.insert(name, said);
                }
            }
        }
        for Change { name, value, option, .. } in appended {
            let has_values = lines.get(&name).is_some_and(|line| !line.values.is_empty());
            match value {
                Said::Text(value) if !tell.contains_key(&name) => {
                    lines.entry(name).or_default().values.push(value);
                }
                said if !tell.contains_key(&name) && !has_values => {
                    told_near(option, &said, notes);
                    tell.insert(name, said);
                }
                _ => {
                    let meaning = format!(
                        "{name} has another value already, and what the request says cannot stand \
                         beside it; this one is not added"
                    );
                    let field = option.msg("header").and_then(|header| header.entry("value"));
                    field.iter().for_each(|field| notes.dropped(&field.place, meaning.clone()));
                }
            }
        }
    }
    let mut changes = Changes::default();
    lines.retain(|name, _| !tell.contains_key(name));
    changes.tell.extend(tell);
    for (name, line) in lines {
        match (line.is_fresh, line.values.is_empty()) {
            (true, true) => changes.remove.push(name),
            (true, false) => {
                let mut values = line.values.into_iter();
                changes.set.extend(values.next().map(|value| (name.clone(), value)));
                changes.add.extend(values.map(|value| (name.clone(), value)));
            }
            (false, _) => changes.add.extend(line.values.into_iter().map(|v| (name.clone(), v))),
        }
    }
    changes
}

/// Of requests, and what hangs on whether the client has sent a header that nothing else
/// changes.
pub(super) fn fold_request(levels: &[&Tree], notes: &mut Notes) -> (Changes, Vec<Sometimes>) {
    let options = || levels.iter().flat_map(|level| level.messages("request_headers_to_add"));
    let removed = || levels.iter().flat_map(|level| level.texts("request_headers_to_remove"));
    let name = |option: &Tree| {
        Some(option.msg("header")?.text("key")?.to_ascii_lowercase())
            .filter(|name| !name.is_empty() && !name.starts_with("x-forwarded-"))
    };
    let mut sometimes = Vec::new();
    let mut taken = Vec::new();
    for option in options() {
        let Some(own) = name(option) else { continue };
        let is_other = |other: &&Tree| name(other).as_ref() == Some(&own);
        if options().filter(is_other).count() > 1
            || removed().any(|other| other.eq_ignore_ascii_case(&own))
        {
            continue;
        }
        let there = Condition::Header(own.clone(), Text::Present);
        let when = match option.text("append_action") {
            Some("ADD_IF_ABSENT") => Condition::Not(Box::new(there)),
            Some("OVERWRITE_IF_EXISTS") => there,
            _ => continue,
        };
        let value = option.msg("header").and_then(|header| header.some_text("value"));
        if let Some(value) = value.and_then(plain) {
            taken.push(option);
            let change = crate::program::Change::Set(Said::Text(value));
            sometimes.push(Sometimes { when, name: own, change });
        }
    }
    (fold_with(levels, "request", &taken, notes), sometimes)
}

/// A header that becomes what the request says, and nothing beside it.
fn told(option: &Tree) -> Option<Change<'_>> {
    let header = option.msg("header")?;
    let name = header.text("key")?.to_ascii_lowercase();
    if matches!(option.text("append_action"), Some("ADD_IF_ABSENT" | "OVERWRITE_IF_EXISTS")) {
        return None;
    }
    let operator = header.text("value")?.strip_prefix('%')?.strip_suffix('%')?;
    let said = match operator {
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" => Said::Client,
        "REQ(:authority)" | "REQ(:AUTHORITY)" => Said::Host,
        "REQ(:path)" | "REQ(:PATH)" => Said::Target,
        "REQ(:method)" | "REQ(:METHOD)" => Said::Method,
        _ => {
            let of = operator.strip_prefix("REQ(")?.strip_suffix(')')?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            of.chars().all(is_name).then(|| Said::Header(of.to_ascii_lowercase()))?
        }
    };
    Some(Change { name, value: said, overwrites: overwrites(option), option })
}

fn overwrites(option: &Tree) -> bool {
    option.text("append_action") == Some("OVERWRITE_IF_EXISTS_OR_ADD")
        || option.bool("append") == Some(false)
}

/// How that differs from what Envoy does.
fn told_near(option: &Tree, said: &Said, notes: &mut Notes) {
    let header = option.msg("header").and_then(|header| header.text("key")).unwrap_or_default();
    let how = match said {
        Said::Header(other) => format!(
            "what is there of {header} is replaced, and it is gone where {other} is absent or empty"
        ),
        _ if overwrites(option) => return,
        _ => format!("what the client sent of {header} is replaced"),
    };
    let field = option.msg("header").and_then(|header| header.entry("value"));
    field.iter().for_each(|field| notes.approximated(&field.place, how.clone()));
}

/// `None` where nothing is done; conditions are of what was there before the level.
fn change<'t>(
    option: &'t Tree,
    lines: &BTreeMap<String, Line>,
    notes: &mut Notes,
) -> Option<Change<'t>> {
    let header = option.msg("header")?;
    let name = header.text("key").unwrap_or_default().to_ascii_lowercase();
    let text = header.some_text("value").or_else(|| header.text("raw_value")).unwrap_or_default();
    if text.is_empty() && !option.is("keep_empty_value") {
        return None;
    }
    let Some(value) = plain(text) else {
        let meaning = format!("{text} is made while Envoy runs; {name} is not set");
        let field = header.entry("value").or_else(|| header.entry("raw_value"));
        field.iter().for_each(|field| notes.dropped(&field.place, meaning.clone()));
        return None;
    };
    let is_there = lines.get(&name).unwrap_or(&Line::default()).is_there();
    let action = option.text("append_action").unwrap_or("APPEND_IF_EXISTS_OR_ADD");
    let overwrites = match (action, is_there) {
        ("OVERWRITE_IF_EXISTS_OR_ADD", _) | ("OVERWRITE_IF_EXISTS", Some(true)) => true,
        ("ADD_IF_ABSENT", Some(false)) => false,
        ("ADD_IF_ABSENT", Some(true)) | ("OVERWRITE_IF_EXISTS", Some(false)) => return None,
        ("ADD_IF_ABSENT" | "OVERWRITE_IF_EXISTS", None) => {
            let meaning =
                format!("what is done depends on whether {name} is there; it is left as it is");
            let field = option.entry("append_action");
            field.iter().for_each(|field| notes.dropped(&field.place, meaning.clone()));
            return None;
        }
        _ => option.bool("append") == Some(false),
    };
    Some(Change { name, value: Said::Text(value), overwrites, option })
}

/// A value without command operators; `%%` is `%`.
fn plain(text: &str) -> Option<String> {
    let bare = text.replace("%%", "");
    (!bare.contains('%')).then(|| text.replace("%%", "%"))
}
