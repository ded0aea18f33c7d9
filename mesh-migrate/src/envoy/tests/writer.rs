//! Trees as YAML, in the ways of several people.

use serde_json::Value;

use super::chance::Chance;

/// A tree as YAML in the ways of several people.
pub(crate) fn yaml(value: &Value, chance: &mut Chance) -> String {
    let mut out = String::from(if chance.percent(30) { "# by hand\n---\n" } else { "" });
    let is_camel = chance.percent(30);
    block(value, 0, is_camel, chance, &mut out);
    out
}

fn name(name: &str, is_camel: bool) -> String {
    if !is_camel || name.contains(['.', '@']) {
        return if name.starts_with('@') { format!("\"{name}\"") } else { name.to_owned() };
    }
    let mut parts = name.split('_');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut chars = part.chars();
        out.extend(chars.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(chars.as_str());
    }
    out
}

fn block(value: &Value, indent: usize, is_camel: bool, chance: &mut Chance, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if chance.percent(4) {
                    out.push_str(&format!("{pad}# about {key}: {{ [ '\n\n"));
                }
                out.push_str(&format!("{pad}{}:", name(key, is_camel)));
                below(value, indent + 1 + chance.below(3), is_camel, chance, out);
            }
        }
        Value::Array(elements) => {
            for element in elements {
                match element {
                    Value::Object(fields) if !fields.is_empty() && chance.percent(60) => {
                        let mut inner = String::new();
                        block(element, indent + 2, is_camel, chance, &mut inner);
                        let first = inner.trim_start_matches([' ', '\n']);
                        if first.starts_with('#') {
                            out.push_str(&format!("{pad}-\n{inner}"));
                        } else {
                            out.push_str(&format!("{pad}- {first}"));
                        }
                    }
                    _ => out.push_str(&format!("{pad}- {}\n", flow(element, is_camel, chance))),
                }
            }
        }
        scalar => out.push_str(&format!("{pad}{}\n", flow(scalar, is_camel, chance))),
    }
}

fn below(value: &Value, indent: usize, is_camel: bool, chance: &mut Chance, out: &mut String) {
    let is_empty = match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        _ => true,
    };
    if is_empty || chance.percent(20) {
        let comment = if chance.percent(10) { "   # said" } else { "" };
        out.push_str(&format!(" {}{comment}\n", flow(value, is_camel, chance)));
    } else {
        out.push('\n');
        block(value, indent, is_camel, chance, out);
    }
}

fn flow(value: &Value, is_camel: bool, chance: &mut Chance) -> String {
    match value {
        Value::Object(fields) => {
            let all: Vec<String> = fields
                .iter()
                .map(|(key, value)| {
                    format!("{}: {}", name(key, is_camel), flow(value, is_camel, chance))
                })
                .collect();
            format!("{{{}}}", all.join(if chance.percent(50) { ", " } else { " , " }))
        }
        Value::Array(elements) => {
            let all: Vec<String> = elements.iter().map(|one| flow(one, is_camel, chance)).collect();
            format!("[ {} ]", all.join(", "))
        }
        Value::Bool(value) => {
            let words = if *value {
                ["true", "True", "yes", "on"]
            } else {
                ["false", "FALSE", "no", "off"]
            };
            (*chance.of(&words)).to_owned()
        }
        Value::String(text) => match chance.below(3) {
            0 if text.len() > 3 && text.bytes().all(|b| b.is_ascii_alphabetic()) => text.clone(),
            1 if !text.contains(['\'', '\n']) => format!("'{text}'"),
            _ => serde_json::to_string(text).unwrap_or_default(),
        },
        other => other.to_string(),
    }
}
