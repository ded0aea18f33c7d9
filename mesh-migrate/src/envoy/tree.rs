//! A configuration that holds only what Envoy knows: names in snake case, values of
//! the types of the schema, each with its place. Reading follows proto3 JSON.

use std::time::Duration;

use super::schema::{Field, Kind, Many, Message, Schema, distance, short};
use crate::{
    source::{Place, Problem},
    yaml::{self, Key, Node},
};

/// A message.
#[derive(Debug, Clone)]
pub struct Tree {
    /// In full: `envoy.config.route.v3.Route`.
    pub message: &'static str,
    /// Where it begins.
    pub place: Place,
    /// Its last line.
    pub last_line: u32,
    /// In order of the file; `@type` of an `Any` is one.
    pub fields: Vec<Entry>,
    /// Names whose value is `null`, which is the same as none.
    pub nulls: Vec<Place>,
}

/// A field that is there.
#[derive(Debug, Clone)]
pub struct Entry {
    /// In snake case; of a map, its key.
    pub name: String,
    /// Of its name.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

/// A value.
#[derive(Debug, Clone)]
pub struct Value {
    /// Where it begins.
    pub place: Place,
    /// Its last line.
    pub last_line: u32,
    /// What it is.
    pub what: What,
}

/// What a value is.
#[derive(Debug, Clone)]
pub enum What {
    /// `true` or `false`.
    Bool(bool),
    /// Text, the name of an enum's value, or a time.
    Text(String),
    /// A whole number.
    Whole(i128),
    /// Another number.
    Real(f64),
    /// `1.5s`.
    Duration(Duration),
    /// A message.
    Message(Tree),
    /// In order.
    List(Vec<Value>),
    /// In order.
    Map(Vec<Entry>),
    /// Any JSON, or a message of a type that is not known (its name).
    Free(Option<String>),
}

impl Tree {
    /// Reads a message.
    ///
    /// # Errors
    ///
    /// A field is not known, is of another type, or is there twice.
    pub fn read(message: &str, node: &Node) -> Result<Self, Problem> {
        let known = Schema::known().message(message);
        let known = known.ok_or_else(|| Problem::at(&node.place, format!("no {message}")))?;
        fields(known, node, false)
    }

    /// The message of the `@type` that a mapping names.
    ///
    /// # Errors
    ///
    /// As [`Tree::read`]; `@type` is absent, or not known.
    pub fn typed(node: &Node) -> Result<Self, Problem> {
        match any(node)?.what {
            What::Message(tree) => Ok(tree),
            What::Free(name) => {
                let name = name.unwrap_or_default();
                Err(Problem::at(&node.place, format!("{name:?} is no message that Envoy knows")))
            }
            _ => Err(node.expected("a message with \"@type\"")),
        }
    }

    /// A field.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The value of a field.
    pub fn at(&self, name: &str) -> Option<&What> {
        self.entry(name).map(|field| &field.value.what)
    }

    /// A message in a field; also one in an `Any`.
    pub fn msg(&self, name: &str) -> Option<&Tree> {
        match self.at(name) {
            Some(What::Message(tree)) => Some(tree),
            _ => None,
        }
    }

    /// Text or the name of an enum's value.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.at(name) {
            Some(What::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Text that is not empty: an empty one is the same as none in proto3.
    pub fn some_text(&self, name: &str) -> Option<&str> {
        self.text(name).filter(|text| !text.is_empty())
    }

    /// A bool; `None` where absent.
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.at(name) {
            Some(What::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    /// A bool that is `false` where absent.
    pub fn is(&self, name: &str) -> bool {
        self.bool(name) == Some(true)
    }

    /// A whole number.
    pub fn whole(&self, name: &str) -> Option<i128> {
        match self.at(name) {
            Some(What::Whole(number)) => Some(*number),
            _ => None,
        }
    }

    /// A whole number as a `u32`.
    pub fn count(&self, name: &str) -> Option<u32> {
        self.whole(name).map(|number| u32::try_from(number).unwrap_or(u32::MAX))
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Option<Duration> {
        match self.at(name) {
            Some(What::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    /// Elements of a list.
    pub fn list(&self, name: &str) -> &[Value] {
        match self.at(name) {
            Some(What::List(elements)) => elements,
            _ => &[],
        }
    }

    /// Messages of a list.
    pub fn messages(&self, name: &str) -> impl Iterator<Item = &Tree> + use<'_> {
        self.list(name).iter().filter_map(|value| match &value.what {
            What::Message(tree) => Some(tree),
            _ => None,
        })
    }

    /// Texts of a list.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> + use<'_> {
        self.list(name).iter().filter_map(|value| match &value.what {
            What::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Which field of those is there.
    pub fn one_of<'a>(&'a self, names: &[&str]) -> Option<&'a Entry> {
        self.fields.iter().find(|field| names.contains(&field.name.as_str()))
    }

    /// Without the package.
    pub fn short(&self) -> &'static str {
        short(self.message)
    }
}

fn fields(message: &Message, node: &Node, in_any: bool) -> Result<Tree, Problem> {
    let entries = node.map()?;
    let mut tree = Tree {
        message: known_name(message.name),
        place: node.place.clone(),
        last_line: node.last_line,
        fields: Vec::new(),
        nulls: Vec::new(),
    };
    for (key, value) in entries {
        if in_any && key.name == "@type" {
            let value = one(Kind::Text, value)?;
            tree.fields.push(Entry { name: key.name.clone(), place: key.place.clone(), value });
            continue;
        }
        let Some(field) = message.field(&key.name) else {
            return Err(unknown(message, key));
        };
        if matches!(value.value, yaml::Value::Null) && field.kind != Kind::Free {
            tree.nulls.push(key.place.clone());
            continue;
        }
        if tree.entry(field.name).is_some() {
            return Err(Problem::at(&key.place, format!("{:?} is there twice", field.name)));
        }
        let taken = |other: &Field| other.oneof == field.oneof && tree.entry(other.name).is_some();
        if let Some(other) =
            message.fields.iter().find(|other| other.oneof.is_some() && taken(other))
        {
            let problem =
                format!("{:?} excludes {:?}, which is there, too", field.name, other.name);
            return Err(Problem::at(&key.place, problem));
        }
        let value = whole(field, value)?;
        tree.fields.push(Entry { name: field.name.to_owned(), place: key.place.clone(), value });
    }
    Ok(tree)
}

fn known_name(name: &str) -> &'static str {
    Schema::known().message(name).map_or("", |message| message.name)
}

fn unknown(message: &Message, key: &Key) -> Problem {
    let name = &key.name;
    let mut problem = format!("{} has no field {name:?}", message.short());
    match message.nearest(name) {
        Some(nearest) => problem += &format!("; did you mean {nearest:?}?"),
        None => {
            let some: Vec<_> = message.fields.iter().map(|field| field.name).take(8).collect();
            let more = if message.fields.len() > 8 { ", …" } else { "" };
            problem += &format!("; it has {}{more}", some.join(", "));
        }
    }
    Problem::at(&key.place, problem)
}

fn whole(field: &Field, node: &Node) -> Result<Value, Problem> {
    let what = match field.many {
        Many::One => return one(field.kind, node),
        Many::List => {
            let elements = node.list()?.iter().map(|element| one(field.kind, element));
            What::List(elements.collect::<Result<_, _>>()?)
        }
        Many::Map => {
            let entries = node.map()?.iter().map(|(key, value)| {
                let value = one(field.kind, value)?;
                Ok(Entry { name: key.name.clone(), place: key.place.clone(), value })
            });
            What::Map(entries.collect::<Result<_, Problem>>()?)
        }
    };
    Ok(Value { place: node.place.clone(), last_line: node.last_line, what })
}

fn one(kind: Kind, node: &Node) -> Result<Value, Problem> {
    let what = match kind {
        Kind::Bool => What::Bool(boolean(node)?),
        Kind::Text | Kind::Timestamp => What::Text(text(node)?),
        Kind::Bytes => What::Text(base64(node)?),
        Kind::Duration => What::Duration(duration(node)?),
        Kind::Whole(from, to) => What::Whole(number(node, from, to)?),
        Kind::Real => What::Real(real(node)?),
        Kind::Any => return any(node),
        Kind::Free => What::Free(None),
        Kind::Named(name) => match Schema::known().values(name) {
            Some(values) => What::Text(choice(short(name), values, node)?),
            None => {
                let message = Schema::known().message(name);
                let message = message.ok_or_else(|| node.expected(name))?;
                What::Message(fields(message, node, false)?)
            }
        },
    };
    Ok(Value { place: node.place.clone(), last_line: node.last_line, what })
}

/// What YAML 1.1 reads a scalar without quotes as: Envoy's parser is of that kind.
fn plain_bool(node: &Node) -> Option<bool> {
    let yaml::Value::Text(text) = &node.value else { return None };
    let lower = text.to_ascii_lowercase();
    let is_title = text.get(1..) == lower.get(1..);
    let is_word = is_title || *text == text.to_ascii_uppercase();
    match lower.as_str() {
        "y" | "yes" | "on" if node.is_plain && is_word => Some(true),
        "n" | "no" | "off" if node.is_plain && is_word => Some(false),
        _ => None,
    }
}

fn text(node: &Node) -> Result<String, Problem> {
    let quotes = |text: &str, kind: &str| {
        let problem =
            format!("expected text, and Envoy reads {text} as {kind}: write \"{text}\" in quotes");
        Err(Problem::at(&node.place, problem))
    };
    match &node.value {
        yaml::Value::Text(text) if plain_bool(node).is_some() => quotes(text, "true or false"),
        yaml::Value::Text(text) if integer(text).is_none() || !node.is_plain => Ok(text.clone()),
        yaml::Value::Number(text) if integer(text).is_none_or(|n| n.abs() > 1 << 53) => {
            Ok(text.clone())
        }
        yaml::Value::Text(text) | yaml::Value::Number(text) => quotes(text, "a number"),
        yaml::Value::Bool(value) => quotes(&value.to_string(), "true or false"),
        _ => Err(node.expected("text")),
    }
}

/// Also a bool in quotes, in the words that Envoy's parser of JSON takes.
fn boolean(node: &Node) -> Result<bool, Problem> {
    if let Some(value) = plain_bool(node) {
        return Ok(value);
    }
    let yaml::Value::Text(text) = &node.value else { return node.bool() };
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Ok(true),
        "false" | "f" | "no" | "n" | "0" => Ok(false),
        _ => node.bool(),
    }
}

/// A whole number of YAML 1.1: `0x10` and `010` are 16 and 8.
fn integer(text: &str) -> Option<i128> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let hex = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let number = match (hex, digits.strip_prefix('0').filter(|rest| !rest.is_empty())) {
        (Some(hex), _) => i128::from_str_radix(hex, 16),
        (None, Some(octal)) => i128::from_str_radix(octal, 8),
        _ => digits.parse(),
    };
    number.ok().map(|number| if is_negative { -number } else { number })
}

fn number(node: &Node, from: i128, to: i128) -> Result<i128, Problem> {
    let (yaml::Value::Number(text) | yaml::Value::Text(text)) = &node.value else {
        return Err(node.expected("a whole number"));
    };
    let plain = integer(text).filter(|_| node.is_plain);
    let real = || text.parse::<f64>().ok().filter(|n| n.fract() == 0.0 && n.abs() < 1e15);
    let number = plain.or_else(|| text.parse().ok()).or_else(|| real().map(|n| n as i128));
    let number = number.filter(|number| (from..=to).contains(number));
    number.ok_or_else(|| node.expected(&format!("a whole number from {from} to {to}")))
}

fn real(node: &Node) -> Result<f64, Problem> {
    match &node.value {
        yaml::Value::Number(text) | yaml::Value::Text(text) => {
            text.parse().map_err(|_| node.expected("a number"))
        }
        _ => Err(node.expected("a number")),
    }
}

fn choice(name: &str, values: &[(&str, i64)], node: &Node) -> Result<String, Problem> {
    let found = match &node.value {
        yaml::Value::Number(text) => {
            let number = text.parse::<i64>().ok();
            values.iter().find(|(_, value)| Some(*value) == number)
        }
        yaml::Value::Text(text) => {
            values.iter().find(|(known, _)| known.eq_ignore_ascii_case(text))
        }
        _ => None,
    };
    if let Some((known, _)) = found {
        return Ok((*known).to_owned());
    }
    let mut all: Vec<_> = values.iter().map(|(known, _)| *known).collect();
    if let yaml::Value::Text(text) = &node.value {
        all.sort_by_key(|known| distance(known, &text.to_ascii_uppercase()));
    }
    all.truncate(8);
    Err(node.expected(&format!("{name}: one of {}", all.join(", "))))
}

/// `1.5s`: seconds with at most nine digits after the point.
fn duration(node: &Node) -> Result<Duration, Problem> {
    let wrong = || node.expected("a duration in seconds like \"1.5s\"");
    let yaml::Value::Text(text) = &node.value else { return Err(wrong()) };
    let seconds = text.strip_suffix('s').ok_or_else(wrong)?;
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if whole.starts_with('-') && digits(&whole[1..]) {
        return Err(node.expected("a duration that is not negative"));
    }
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return Err(wrong());
    }
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    let nanos: u32 = format!("{part:0<9}").parse().map_err(|_| wrong())?;
    // The longest that google.protobuf.Duration can say.
    if whole > 315_576_000_000 {
        return Err(node.expected("a duration of at most 315576000000s"));
    }
    Ok(Duration::new(whole, nanos))
}

fn base64(node: &Node) -> Result<String, Problem> {
    let text = text(node)?;
    let mut bits = 0u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for c in text.trim_end_matches('=').bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return Err(node.expected("bytes in base64")),
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn any(node: &Node) -> Result<Value, Problem> {
    let value = |what| Value { place: node.place.clone(), last_line: node.last_line, what };
    let entries = node.map()?;
    let Some(kind) = node.at("@type") else {
        if entries.is_empty() {
            return Ok(value(What::Free(None)));
        }
        return Err(Problem::at(&node.place, "expected \"@type\", which says what this is"));
    };
    let url = text(kind)?;
    let name = url.rsplit('/').next().unwrap_or(&url);
    if name.split('.').any(|word| word.starts_with("v2") || word == "v1alpha") {
        let problem = format!(
            "{name} is of the API v2, which Envoy does not speak any more; write the v3 type"
        );
        return Err(Problem::at(&kind.place, problem));
    }
    match Schema::known().message(name) {
        Some(message) => Ok(value(What::Message(fields(message, node, true)?))),
        None if name.starts_with("google.protobuf.") => Ok(value(What::Free(None))),
        None if name.starts_with("envoy.") && Schema::known().like(name).is_some() => {
            let right = Schema::known().like(name).unwrap_or_default();
            let problem = format!("Envoy knows no message {name:?}; did you mean {right:?}?");
            Err(Problem::at(&kind.place, problem))
        }
        None => Ok(value(What::Free(Some(name.to_owned())))),
    }
}
