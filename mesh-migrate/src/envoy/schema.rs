//! Messages of Envoy's configuration: their fields and types, as Envoy's binary
//! describes them. Documentation: "API v3 reference".

use std::{collections::BTreeMap, sync::OnceLock};

/// A message.
#[derive(Debug)]
pub(super) struct Message {
    /// In full: `envoy.config.route.v3.Route`.
    pub(super) name: &'static str,
    /// By name, in snake case.
    pub(super) fields: Vec<Field>,
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    /// In snake case.
    pub(super) name: &'static str,
    /// Of one value.
    pub(super) kind: Kind,
    /// How many values.
    pub(super) many: Many,
    /// Of these fields only one may be there.
    pub(super) oneof: Option<&'static str>,
}

/// How many values a field has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Many {
    One,
    List,
    Map,
}

/// What a value is. Wrappers (`UInt32Value`) are what they wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Text,
    Bytes,
    Duration,
    Timestamp,
    /// A whole number from, to.
    Whole(i128, i128),
    Real,
    /// `@type` says.
    Any,
    /// Whatever JSON can say.
    Free,
    /// Of this name: a message or an enum.
    Named(&'static str),
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct Schema {
    messages: BTreeMap<&'static str, Message>,
    enums: BTreeMap<&'static str, Vec<(&'static str, i64)>>,
}

impl Schema {
    /// The one there is.
    pub(super) fn known() -> &'static Self {
        static KNOWN: OnceLock<Schema> = OnceLock::new();
        KNOWN.get_or_init(|| Self::read(include_str!("schema.txt")))
    }

    pub(super) fn message(&self, name: &str) -> Option<&Message> {
        self.messages.get(name)
    }

    pub(super) fn values(&self, name: &str) -> Option<&[(&'static str, i64)]> {
        self.enums.get(name).map(Vec::as_slice)
    }

    /// The message whose name ends so: for people who write only the end.
    pub(super) fn like(&self, name: &str) -> Option<&'static str> {
        let last = name.rsplit('.').next().unwrap_or(name);
        let mut all = self.messages.keys().copied();
        all.find(|known| known.rsplit('.').next() == Some(last) && known.contains("extensions"))
    }

    fn read(text: &'static str) -> Self {
        let mut schema = Self { messages: BTreeMap::new(), enums: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            match words.next() {
                Some("enum") => {
                    let name = words.next().unwrap_or_default();
                    let value = |word: &'static str| {
                        let (name, number) = word.split_once('=')?;
                        Some((name, number.parse().ok()?))
                    };
                    schema.enums.insert(name, words.filter_map(value).collect());
                }
                Some(name) => {
                    let fields = words.filter_map(|word| Field::read(name, word)).collect();
                    schema.messages.insert(name, Message { name, fields });
                }
                None => {}
            }
        }
        schema
    }
}

impl Message {
    /// A field by its name in snake or lower camel case.
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        let same = |field: &&Field| field.name == name || is_camel(field.name, name);
        self.fields.iter().find(same)
    }

    /// The name that somebody may have meant.
    pub(super) fn nearest(&self, name: &str) -> Option<&'static str> {
        let name = snake(name);
        let all = self.fields.iter().map(|field| (distance(field.name, &name), field.name));
        let (far, nearest) = all.min()?;
        (far <= 1 + name.len() / 3).then_some(nearest)
    }

    /// Without its package.
    pub(super) fn short(&self) -> &'static str {
        short(self.name)
    }
}

/// `RouteMatch.GrpcRouteMatchOptions` of a full name.
pub(super) fn short(name: &str) -> &str {
    let upper = name.split('.').position(|word| word.starts_with(|c: char| c.is_uppercase()));
    let begin = name.split('.').take(upper.unwrap_or(0)).map(|word| word.len() + 1).sum::<usize>();
    name.get(begin..).unwrap_or(name)
}

impl Field {
    /// `name:[]type/oneof`.
    fn read(message: &'static str, word: &'static str) -> Option<Self> {
        let (name, kind) = word.split_once(':')?;
        let (kind, oneof) =
            kind.split_once('/').map_or((kind, None), |(kind, oneof)| (kind, Some(oneof)));
        let (many, kind) = match (kind.strip_prefix("[]"), kind.strip_prefix("{}")) {
            (Some(kind), _) => (Many::List, kind),
            (_, Some(kind)) => (Many::Map, kind),
            _ => (Many::One, kind),
        };
        Some(Self { name, kind: Kind::read(message, kind), many, oneof })
    }
}

impl Kind {
    fn read(message: &'static str, kind: &'static str) -> Self {
        match kind {
            "bool" => Self::Bool,
            "string" => Self::Text,
            "bytes" => Self::Bytes,
            "duration" => Self::Duration,
            "timestamp" => Self::Timestamp,
            "uint32" => Self::Whole(0, u32::MAX.into()),
            "uint64" => Self::Whole(0, u64::MAX.into()),
            "int32" => Self::Whole(i32::MIN.into(), i32::MAX.into()),
            "int64" => Self::Whole(i64::MIN.into(), i64::MAX.into()),
            "double" | "float" => Self::Real,
            "any" => Self::Any,
            "struct" | "value" | "empty" => Self::Free,
            _ => Self::Named(full(message, kind)),
        }
    }
}

/// A name that begins with `.` is of the same package, one with `+` of the message.
fn full(message: &'static str, kind: &'static str) -> &'static str {
    let package = message.rsplit_once('.').map_or("", |(package, _)| package);
    let name = match (kind.strip_prefix('+'), kind.strip_prefix('.')) {
        (Some(rest), _) => format!("{message}{rest}"),
        (_, Some(_)) => format!("{package}{kind}"),
        _ => return kind,
    };
    // Once for each field of the one schema.
    Box::leak(name.into_boxed_str())
}

fn is_camel(snake: &str, camel: &str) -> bool {
    let mut camel = camel.chars();
    let mut upper = false;
    for c in snake.chars() {
        if c == '_' {
            upper = true;
            continue;
        }
        let c = if upper { c.to_ascii_uppercase() } else { c };
        upper = false;
        if camel.next() != Some(c) {
            return false;
        }
    }
    camel.next().is_none()
}

fn snake(name: &str) -> String {
    let mut snake = String::new();
    for c in name.chars().take(64) {
        if c.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

/// Letters to change, add or take away.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let cost = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_schema_leads_somewhere() {
        let schema = Schema::known();
        assert!(schema.messages.len() > 1000, "{}", schema.messages.len());
        for message in schema.messages.values() {
            for field in &message.fields {
                if let Kind::Named(name) = field.kind {
                    let known = schema.message(name).is_some() || schema.values(name).is_some();
                    assert!(known, "{}: {} is {name}", message.name, field.name);
                }
            }
        }
    }

    #[test]
    fn names_are_found_in_both_cases_and_nearly() {
        let route = Schema::known().message("envoy.config.route.v3.RouteAction").unwrap();
        assert_eq!(route.field("prefixRewrite").unwrap().name, "prefix_rewrite");
        assert_eq!(route.field("prefix_rewrite").unwrap().name, "prefix_rewrite");
        assert!(route.field("PrefixRewrite").is_none());
        assert_eq!(route.nearest("prefixRewrit"), Some("prefix_rewrite"));
        assert_eq!(route.nearest("zzzzzz"), None);
        assert_eq!(short("envoy.config.route.v3.RouteAction.HashPolicy"), "RouteAction.HashPolicy");
    }
}
