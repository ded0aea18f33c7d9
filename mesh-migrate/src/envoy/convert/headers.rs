//! Header mutations of several levels, one after another, as one change.

use std::collections::BTreeMap;

use crate::envoy::{notes::Notes, tree::Tree};

/// What becomes of headers; names in lower case.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) set: Vec<(String, String)>,
    pub(super) add: Vec<(String, String)>,
    pub(super) remove: Vec<String>,
}

/// What is known of one header after some levels.
#[derive(Default)]
struct Line {
    /// What the client sent is gone.
    is_fresh: bool,
    values: Vec<String>,
}

/// Levels in the order in which Envoy applies them; `of` is `request` or `response`.
pub(super) fn fold(levels: &[&Tree], of: &str, notes: &mut Notes) -> Changes {
    let mut lines: BTreeMap<String, Line> = BTreeMap::new();
    for level in levels {
        for name in level.texts(&format!("{of}_headers_to_remove")) {
            let gone = Line { is_fresh: true, values: Vec::new() };
            lines.insert(name.to_ascii_lowercase(), gone);
        }
        for option in level.messages(&format!("{of}_headers_to_add")) {
            add(option, &mut lines, notes);
        }
    }
    let mut changes = Changes::default();
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

fn add(option: &Tree, lines: &mut BTreeMap<String, Line>, notes: &mut Notes) {
    let Some(header) = option.msg("header") else { return };
    let name = header.text("key").unwrap_or_default().to_ascii_lowercase();
    let raw = header.entry("value").or_else(|| header.entry("raw_value"));
    let text = header.some_text("value").or_else(|| header.text("raw_value")).unwrap_or_default();
    if text.is_empty() && !option.is("keep_empty_value") {
        return;
    }
    let Some(value) = plain(text) else {
        let meaning = format!("{text} is made while Envoy runs; {name} is not set");
        raw.iter().for_each(|field| notes.dropped(&field.place, meaning.clone()));
        return;
    };
    let line = lines.entry(name.clone()).or_default();
    let is_there = !line.values.is_empty();
    let append = option.text("append_action").unwrap_or("APPEND_IF_EXISTS_OR_ADD");
    let overwrites = append == "OVERWRITE_IF_EXISTS_OR_ADD"
        || append == "APPEND_IF_EXISTS_OR_ADD" && option.bool("append") == Some(false);
    let depends = !line.is_fresh && !is_there;
    match append {
        _ if overwrites => *line = Line { is_fresh: true, values: vec![value] },
        "ADD_IF_ABSENT" | "OVERWRITE_IF_EXISTS" if depends => {
            let meaning =
                format!("what is done depends on whether {name} is there; it is left as it is");
            let field = option.entry("append_action");
            field.iter().for_each(|field| notes.dropped(&field.place, meaning.clone()));
            if line.values.is_empty() && !line.is_fresh {
                lines.remove(&name);
            }
        }
        "ADD_IF_ABSENT" if is_there => {}
        "OVERWRITE_IF_EXISTS" if is_there => *line = Line { is_fresh: true, values: vec![value] },
        "OVERWRITE_IF_EXISTS" => {}
        _ => line.values.push(value),
    }
}

/// A value without command operators; `%%` is `%`.
fn plain(text: &str) -> Option<String> {
    let bare = text.replace("%%", "");
    (!bare.contains('%')).then(|| text.replace("%%", "%"))
}
