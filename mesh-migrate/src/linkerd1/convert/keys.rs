//! What becomes of every key: tables of the manual, and a walk over the file with them.

use super::super::config::text;
use crate::{
    ledger::{Ledger, Verdict},
    source::Place,
    yaml::{Key, Node, Value},
};

/// What is said about a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Say {
    /// It is the same with us.
    Exact,
    /// Something like it: how it differs.
    Near(&'static str),
    /// Nothing: what that means.
    Drop(&'static str),
    /// Nothing where it is true: what that means. False is what we do.
    Off(&'static str),
    /// A question.
    Ask(&'static str, &'static [&'static str]),
    /// A question where it is true. False is what we do.
    AskOn(&'static str, &'static [&'static str]),
    /// An object, or a list of them, with these keys.
    In(&'static [(&'static str, Say)]),
    /// An object, or a list of them, whose keys depend on its `kind`.
    Kinds(&'static [Kind]),
    /// The conversion itself says what becomes of it.
    Elsewhere,
}

/// A kind: its name, what is said of it, and its keys.
pub(super) type Kind = (&'static str, Say, &'static [(&'static str, Say)]);

/// Says something about everything in `node`.
pub(super) fn walk(ledger: &mut Ledger, node: &Node, keys: &'static [(&'static str, Say)]) {
    let Value::Map(entries) = &node.value else {
        return misplaced(ledger, node);
    };
    for (key, value) in entries {
        let known = keys.iter().find(|(name, _)| *name == key.name);
        let Some((_, say)) = known else {
            unknown(ledger, key, value);
            continue;
        };
        one(ledger, &key.place, value, *say);
    }
}

/// About everything in one value.
pub(super) fn one(ledger: &mut Ledger, place: &Place, value: &Node, say: Say) {
    let last = value.last_line.max(place.line);
    match say {
        Say::Elsewhere => {}
        Say::Exact => ledger.say_until(place, last, Verdict::Exact),
        Say::Near(how) => {
            ledger.say_until(place, last, Verdict::Approximated { how: how.to_owned() });
        }
        Say::Off(_) | Say::AskOn(..) if matches!(value.value, Value::Bool(false)) => {
            ledger.exact(place);
        }
        Say::Drop(meaning) | Say::Off(meaning) => {
            ledger.say_until(place, last, Verdict::Dropped { meaning: meaning.to_owned() });
        }
        Say::Ask(question, choices) | Say::AskOn(question, choices) => {
            let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
            let question = question.to_owned();
            ledger.say_until(place, last, Verdict::Decision { question, choices });
        }
        Say::In(keys) => {
            ledger.exact(place);
            each(ledger, value, |ledger, node| walk(ledger, node, keys));
        }
        Say::Kinds(kinds) => {
            ledger.exact(place);
            each(ledger, value, |ledger, node| of_kind(ledger, node, kinds));
        }
    }
}

fn each(ledger: &mut Ledger, value: &Node, said: impl Fn(&mut Ledger, &Node)) {
    match &value.value {
        Value::List(list) => list.iter().for_each(|node| {
            ledger.exact(&node.place);
            said(ledger, node);
        }),
        Value::Null => ledger.exact(&value.place),
        _ => {
            ledger.exact(&value.place);
            said(ledger, value);
        }
    }
}

/// About `service` or `client`: parameters, or configurations of them by prefix.
pub(super) fn policy(ledger: &mut Ledger, node: &Node, parameters: &'static [(&'static str, Say)]) {
    let Value::Map(entries) = &node.value else {
        return misplaced(ledger, node);
    };
    let kind = text(node, "kind").ok().flatten();
    let is_static = kind.as_deref() == Some("io.l5d.static");
    for (key, value) in entries {
        match key.name.as_str() {
            "kind" if is_static || kind.as_deref() == Some("io.l5d.global") => {
                ledger.exact(&key.place);
            }
            "configs" if is_static => {
                ledger.exact(&key.place);
                for config in value.list().unwrap_or_default() {
                    ledger.exact(&config.place);
                    let Value::Map(entries) = &config.value else {
                        misplaced(ledger, config);
                        continue;
                    };
                    for (key, value) in entries {
                        match key.name.as_str() {
                            "prefix" => ledger.exact(&key.place),
                            _ => parameter(ledger, key, value, parameters),
                        }
                    }
                }
            }
            _ => parameter(ledger, key, value, parameters),
        }
    }
}

fn parameter(
    ledger: &mut Ledger,
    key: &Key,
    value: &Node,
    parameters: &'static [(&'static str, Say)],
) {
    match parameters.iter().find(|(name, _)| *name == key.name) {
        Some((_, say)) => one(ledger, &key.place, value, *say),
        None => unknown(ledger, key, value),
    }
}

/// About an object with a `kind`.
pub(super) fn of_kind(ledger: &mut Ledger, node: &Node, kinds: &'static [Kind]) {
    let Value::Map(entries) = &node.value else {
        return misplaced(ledger, node);
    };
    let kind = text(node, "kind").ok().flatten().unwrap_or_default();
    let known = kinds.iter().find(|(name, ..)| *name == kind);
    for (key, value) in entries {
        match (known, key.name.as_str()) {
            (Some((_, say, _)), "kind") => one(ledger, &key.place, value, *say),
            (Some((_, _, keys)), name) => match keys.iter().find(|(known, _)| *known == name) {
                Some((_, say)) => one(ledger, &key.place, value, *say),
                None if name == "experimental" => ledger.exact(&key.place),
                None => unknown(ledger, key, value),
            },
            (None, _) => {
                let last = value.last_line.max(key.place.line);
                let meaning = format!(
                    "{kind:?} is no kind of Linkerd 1.7 that is known here: nothing is done with it"
                );
                ledger.say_until(&key.place, last, Verdict::Dropped { meaning });
            }
        }
    }
}

fn misplaced(ledger: &mut Ledger, node: &Node) {
    if !matches!(node.value, Value::Null) {
        let meaning = format!("a mapping was expected, and this is {}", node.kind());
        ledger.say_until(&node.place, node.last_line, Verdict::Dropped { meaning });
    }
}

fn unknown(ledger: &mut Ledger, key: &Key, value: &Node) {
    let last = value.last_line.max(key.place.line);
    let said = OLD.iter().find(|(name, _)| *name == key.name);
    let meaning = match said {
        Some((name, now)) => format!("`{name}` is of an older release: {now}"),
        None => format!("`{}` is no key of Linkerd 1.7 here: nothing is done with it", key.name),
    };
    ledger.say_until(&key.place, last, Verdict::Dropped { meaning });
}

/// Spellings of older releases, and what is said today.
const OLD: &[(&str, &str)] = &[
    ("timeoutMs", "today `service.totalTimeoutMs`; say it there, and plan again"),
    ("baseDtab", "today `dtab`"),
    ("tracers", "today `telemetry`"),
    ("engine", "gone since 1.3.0; it had no effect on routes"),
    ("loggers", "`requestAuthorizers` since 1.4.0"),
    ("requestAuthorizers", "of `client` since 1.6.0; only Istio had them"),
    ("maxChunkKB", "gone since 1.6.0"),
    ("maxRequestKB", "gone since 1.7.0"),
    ("maxResponseKB", "gone since 1.7.0"),
    ("responseClassifier", "of `service` since 1.0; say it there, and plan again"),
    ("retries", "of `service` since 1.0; say it there, and plan again"),
    ("caCertPath", "today `trustCertsBundle` of `client.tls`"),
    ("prefix", "today `client.configs` of kind io.l5d.static"),
    ("names", "today `client.configs` of kind io.l5d.static"),
    ("kind", "TLS has no kinds since 1.0: today `commonName`, or `disableValidation`"),
    ("strict", "today `disableValidation`"),
    ("failFast", "today of `client`"),
    ("daemons", "gone"),
];
