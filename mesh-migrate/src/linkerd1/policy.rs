//! What applies to a service or a client: `io.l5d.global`, or `io.l5d.static` with
//! configurations by prefix, of which all that match apply, the last for each parameter.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::{
    config::kind,
    name::{Name, PathMatcher, substitute},
};
use crate::{
    source::{Place, Problem},
    yaml::{Node, Value},
};

/// `service` or `client` of a router.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    configs: Vec<(PathMatcher, Node)>,
}

/// What applies to one name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Merged {
    /// By parameter, as the file has it.
    pub values: Map<String, Json>,
    /// Where each is written.
    pub places: BTreeMap<String, Place>,
}

/// The parts of `retries` are parameters of their own.
const RETRIES: &str = "retries";

impl Policy {
    pub(super) fn read(node: Option<&Node>) -> Result<Self, Problem> {
        let Some(node) = node else { return Ok(Self::default()) };
        if kind(node)?.as_deref() != Some("io.l5d.static") {
            return Ok(Self { configs: vec![(PathMatcher::new("/"), node.clone())] });
        }
        let Some(configs) = node.at("configs") else { return Ok(Self::default()) };
        let of = |config: &Node| {
            let Some(prefix) = config.at("prefix") else {
                return Err(Problem::at(&config.place, "a configuration needs a `prefix`"));
            };
            Ok((PathMatcher::new(&prefix.text()?), config.clone()))
        };
        Ok(Self { configs: configs.list()?.iter().map(of).collect::<Result<_, _>>()? })
    }

    /// What applies to `name`.
    pub fn merged(&self, name: &Name) -> Merged {
        let mut merged = Merged::default();
        for (matcher, node) in &self.configs {
            let Some(variables) = matcher.extract(name) else { continue };
            for (key, value) in node.map().unwrap_or_default() {
                match key.name.as_str() {
                    "kind" | "prefix" | "configs" => continue,
                    RETRIES => merged.retries(value),
                    name => {
                        merged.values.insert(name.to_owned(), json(value));
                    }
                }
                merged.places.insert(key.name.clone(), key.place.clone());
            }
            // Only a parameter of this very configuration may name its variables.
            if node.at("tls").is_some() {
                merged.common_name(&variables);
            }
        }
        merged
    }
}

impl Merged {
    fn retries(&mut self, value: &Node) {
        let entry = self.values.entry(RETRIES).or_insert_with(|| Json::Object(Map::new()));
        let Json::Object(parts) = entry else { return };
        for (key, value) in value.map().unwrap_or_default() {
            parts.insert(key.name.clone(), json(value));
        }
    }

    fn common_name(&mut self, variables: &BTreeMap<String, String>) {
        let name = self.values.get_mut("tls").and_then(|tls| tls.get_mut("commonName"));
        if let Some(Json::String(name)) = name {
            *name = substitute(variables, name);
        }
    }

    /// A value by its path of keys.
    pub fn at(&self, keys: &[&str]) -> Option<&Json> {
        let (first, rest) = keys.split_first()?;
        rest.iter().try_fold(self.values.get(*first)?, |value, key| value.get(key))
    }

    /// A number by its path of keys.
    pub fn number(&self, keys: &[&str]) -> Option<f64> {
        match self.at(keys)? {
            Json::Number(number) => number.as_f64(),
            Json::String(text) => text.parse().ok(),
            _ => None,
        }
    }

    /// Text by its path of keys.
    pub fn text(&self, keys: &[&str]) -> Option<&str> {
        self.at(keys)?.as_str()
    }
}

/// A node as JSON.
pub(super) fn json(node: &Node) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(text) => {
            let whole = text.parse::<i64>().map(Json::from).ok();
            let number = whole.or_else(|| text.parse::<f64>().ok().map(Json::from));
            number.filter(|n| !n.is_null()).unwrap_or_else(|| Json::String(text.clone()))
        }
        Value::Text(text) => Json::String(text.clone()),
        Value::List(elements) => Json::Array(elements.iter().map(json).collect()),
        Value::Map(entries) => Json::Object(
            entries.iter().map(|(key, value)| (key.name.clone(), json(value))).collect(),
        ),
    }
}
