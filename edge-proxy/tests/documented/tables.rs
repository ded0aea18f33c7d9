//! A schema as Markdown: one table for every object, a list for every choice.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::Value;

/// All of a schema, its root first.
pub(crate) fn of(schema: &Value) -> String {
    let mut text = String::new();
    section(&mut text, schema["title"].as_str().unwrap(), schema);
    let definitions: BTreeMap<_, _> = schema["$defs"].as_object().into_iter().flatten().collect();
    for (name, definition) in definitions {
        section(&mut text, name, definition);
    }
    text
}

fn section(text: &mut String, name: &str, schema: &Value) {
    writeln!(text, "### {name}\n\n{}\n", line(schema)).unwrap();
    if schema.get("properties").is_some() {
        table(text, schema);
    }
    let variants = schema["oneOf"].as_array().into_iter().flatten();
    for variant in variants.clone().filter(|one| one.get("properties").is_some()) {
        let tag = tag(variant).unwrap_or_default();
        writeln!(text, "**`{tag}`**: {}\n", line(variant)).unwrap();
        table(text, variant);
    }
    let values: Vec<_> = variants.filter(|one| one.get("const").is_some()).collect();
    for value in &values {
        writeln!(text, "- `{}`: {}", plain(&value["const"]), line(value)).unwrap();
    }
    if !values.is_empty() {
        text.push('\n');
    }
}

/// `kind` or `type` of a variant, and its value.
fn tag(variant: &Value) -> Option<String> {
    let mut properties = variant["properties"].as_object()?.iter();
    let (key, property) = properties.find(|(_, property)| property.get("const").is_some())?;
    Some(format!("{key}: {}", plain(&property["const"])))
}

fn table(text: &mut String, schema: &Value) {
    text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
    let properties: BTreeMap<_, _> =
        schema["properties"].as_object().into_iter().flatten().collect();
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (key, property) in properties {
        if property.get("const").is_some() {
            continue;
        }
        let default = match property.get("default") {
            _ if required.iter().any(|one| one == key) => "required".into(),
            None | Some(Value::Null | Value::Object(_)) => "–".into(),
            Some(Value::String(empty)) if empty.is_empty() => "–".into(),
            Some(Value::Array(list)) if list.is_empty() => "none".into(),
            Some(default) => format!("`{}`", plain(default)),
        };
        let meaning = line(property).replace('|', "\\|");
        writeln!(text, "| `{key}` | {} | {default} | {meaning} |", kind(property)).unwrap();
    }
    text.push('\n');
}

fn line(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace("\n\n", " ").replace('\n', " ")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// What a value is, with a link where it has a section.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(some) = schema["anyOf"].as_array().and_then(|all| all.first()) {
        return kind(some);
    }
    let name = match &schema["type"] {
        Value::Array(types) => types[0].as_str().unwrap(),
        name => name.as_str().unwrap_or("any"),
    };
    match name {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", kind(&schema["additionalProperties"]))
        }
        name => name.into(),
    }
}
