//! Fields that Envoy knows, put anywhere by chance: whatever is there, it is told.

use serde_json::{Map, Value, json};

use super::chance::Chance;
use crate::envoy::schema::{Field, Kind, Many, Message, Schema};

/// Extensions that an `Any` may hold.
const EXTENSIONS: [&str; 8] = [
    "envoy.extensions.filters.http.lua.v3.Lua",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
    "envoy.extensions.access_loggers.file.v3.FileAccessLog",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.load_balancing_policies.maglev.v3.Maglev",
];

/// Adds fields to messages of a configuration.
pub(super) fn inject(value: &mut Value, message: &str, chance: &mut Chance) {
    let name = value.get("@type").and_then(Value::as_str).and_then(|url| url.rsplit('/').next());
    let name = name.unwrap_or(message).to_owned();
    let (Some(known), Value::Object(fields)) = (Schema::known().message(&name), value) else {
        return;
    };
    if !known.fields.is_empty() && chance.below(12) == 0 {
        add(known, fields, chance);
    }
    for (name, value) in fields.iter_mut() {
        let Some(field) = known.field(name) else { continue };
        let below = match field.kind {
            Kind::Named(name) => name,
            Kind::Any => "",
            _ => continue,
        };
        match (field.many, value) {
            (Many::List, Value::Array(all)) => {
                all.iter_mut().for_each(|one| inject(one, below, chance))
            }
            (Many::One, value) => inject(value, below, chance),
            _ => {}
        }
    }
}

fn add(known: &Message, fields: &mut Map<String, Value>, chance: &mut Chance) {
    let field = chance.of(&known.fields);
    let is_taken = known.fields.iter().any(|other| {
        let same = other.oneof.is_some() && other.oneof == field.oneof;
        (same || other.name == field.name) && fields.contains_key(other.name)
    });
    if !is_taken {
        fields.insert(field.name.into(), of_field(field, 3, chance));
    }
}

fn of_field(field: &Field, depth: usize, chance: &mut Chance) -> Value {
    let one = |chance: &mut Chance| of_kind(field, depth, chance);
    match field.many {
        Many::One => one(chance),
        Many::List => json!((0..1 + chance.below(2)).map(|_| one(chance)).collect::<Vec<_>>()),
        Many::Map => json!({ "a.key": one(chance) }),
    }
}

fn of_kind(field: &Field, depth: usize, chance: &mut Chance) -> Value {
    match field.kind {
        Kind::Bool => json!(chance.below(2) == 0),
        Kind::Text if field.name == "regex" => json!("[a-z]+"),
        Kind::Text | Kind::Timestamp => {
            json!(chance.of(&["some", "x-text", "10.0.0.1", "%REQ(a)%"]))
        }
        Kind::Bytes => json!("aGVsbG8="),
        Kind::Duration => json!(chance.of(&["1s", "0.5s", "0s"])),
        Kind::Whole(..) => json!(chance.of(&[0, 1, 7, 100])),
        Kind::Real => json!(0.5),
        Kind::Free => json!({"any": [1, null, "x"]}),
        Kind::Any => {
            let name = chance.of(&EXTENSIONS);
            let mut value = message(name, depth, chance);
            value["@type"] = json!(format!("type.googleapis.com/{name}"));
            value
        }
        Kind::Named(name) => match Schema::known().values(name) {
            Some(values) => json!(chance.of(values).0),
            None => message(name, depth, chance),
        },
    }
}

fn message(name: &str, depth: usize, chance: &mut Chance) -> Value {
    let mut fields = Map::new();
    if let Some(known) =
        Schema::known().message(name).filter(|known| depth > 0 && !known.fields.is_empty())
    {
        for _ in 0..1 + chance.below(3) {
            let field = chance.of(&known.fields);
            let is_taken = |other: &&Field| {
                let same = other.oneof.is_some() && other.oneof == field.oneof;
                (same || other.name == field.name) && fields.contains_key(other.name)
            };
            if !known.fields.iter().any(|other| is_taken(&other)) {
                let value = of_field(field, depth - 1, chance);
                fields.insert(field.name.into(), value);
            }
        }
    }
    Value::Object(fields)
}
