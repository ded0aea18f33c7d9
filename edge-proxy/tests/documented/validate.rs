//! As much of JSON Schema (draft 2020-12) as ours use; a keyword that it does
//! not know is a panic, so that nothing passes for not being looked at.

use serde_json::Value;

/// What keeps `value` from being what `schema` says, with its place.
pub(crate) fn problems(root: &Value, schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let keywords = match schema {
        Value::Bool(true) => return Vec::new(),
        Value::Object(keywords) => keywords,
        other => panic!("{other} is no schema"),
    };
    let mut found = Vec::new();
    for (keyword, meaning) in keywords {
        let wrong = || vec![format!("{place}: {value} is not {keyword} {meaning}")];
        found.extend(match keyword.as_str() {
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => Vec::new(),
            "$ref" => {
                let pointer = meaning.as_str().and_then(|text| text.strip_prefix('#')).unwrap();
                problems(root, root.pointer(pointer).expect("what it names"), value, place)
            }
            "type" if !is_of(meaning, value) => wrong(),
            "const" if meaning != value => wrong(),
            "enum" if !meaning.as_array().unwrap().contains(value) => wrong(),
            "minimum" if value.as_f64() < meaning.as_f64() => wrong(),
            "maximum" if value.as_f64() > meaning.as_f64() => wrong(),
            "pattern" if !matches(meaning, value) => wrong(),
            "type" | "const" | "enum" | "minimum" | "maximum" | "pattern" => Vec::new(),
            "oneOf" | "anyOf" => alternatives(root, (keyword, meaning), value, place),
            "required" => {
                let lacks =
                    |key: &&Value| value.is_object() && value.get(key.as_str().unwrap()).is_none();
                let missing = meaning.as_array().unwrap().iter().filter(lacks);
                missing.map(|key| format!("{place}: lacks {key}")).collect()
            }
            "properties" | "additionalProperties" => members(root, schema, keyword, value, place),
            "items" => {
                let items = value.as_array().into_iter().flatten().enumerate();
                items
                    .flat_map(|(i, item)| problems(root, meaning, item, &format!("{place}[{i}]")))
                    .collect()
            }
            other => panic!("the keyword {other} is not looked at"),
        });
    }
    found
}

fn is_of(types: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("no type {other}"),
    };
    match types {
        Value::Array(types) => types.iter().any(|name| is(name.as_str().unwrap())),
        name => is(name.as_str().unwrap()),
    }
}

fn matches(pattern: &Value, value: &Value) -> bool {
    let pattern = regex::Regex::new(pattern.as_str().unwrap()).unwrap();
    value.as_str().is_none_or(|text| pattern.is_match(text))
}

fn alternatives(
    root: &Value,
    (keyword, schemas): (&str, &Value),
    value: &Value,
    place: &str,
) -> Vec<String> {
    let tried: Vec<Vec<String>> = schemas
        .as_array()
        .unwrap()
        .iter()
        .map(|schema| problems(root, schema, value, place))
        .collect();
    match tried.iter().filter(|found| found.is_empty()).count() {
        1 => Vec::new(),
        0 => tried.into_iter().min_by_key(Vec::len).unwrap_or_default(),
        _ if keyword == "anyOf" => Vec::new(),
        n => vec![format!("{place}: {n} of oneOf hold")],
    }
}

fn members(root: &Value, schema: &Value, keyword: &str, value: &Value, place: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (key, member) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{key}");
        match (schema["properties"].get(key), keyword) {
            (Some(property), "properties") => {
                found.extend(problems(root, property, member, &place))
            }
            (None, "additionalProperties") => match &schema[keyword] {
                Value::Bool(false) => found.push(format!("{place}: there is no such key")),
                other => found.extend(problems(root, other, member, &place)),
            },
            _ => {}
        }
    }
    found
}
