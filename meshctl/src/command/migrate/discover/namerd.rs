//! namerd: it lists what some of its namers know (`/api/1/bound-names`), and binds any
//! name (`/api/1/bind`), with endpoints.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use mesh_migrate::{
    linkerd1::{name::Name, reach::Reach},
    request::Endpoint,
    yaml::Node,
};
use serde_json::Value;

use super::{
    Names,
    ask::{AT_ONCE, Asker, Wrong, encoded, place, text},
};

/// Of `io.l5d.httpController`, where the file names another interface.
const HTTP_PORT: u16 = 4180;
/// Trees within each other that are followed.
const MAX_DEPTH: u32 = 64;

/// Who answers over HTTP for the interpreter of a router.
pub(super) fn asker(node: &Node) -> Result<Asker, Wrong> {
    let dst = text(node, "dst")?.unwrap_or_default();
    let name = Name::read(&dst).map_err(Wrong::new)?;
    let labels: Vec<&str> = name.labels().iter().map(String::as_str).collect();
    let (host, port) = match labels.as_slice() {
        ["$", "inet", host, port, ..] | ["$", "io.buoyant.rinet", port, host, ..] => (*host, *port),
        ["$", "inet", port] => ("localhost", *port),
        _ => return Err(Wrong::new(format!("{dst:?} is not /$/inet/<host>/<port>"))),
    };
    let is_http = text(node, "kind")?.is_some_and(|kind| kind == "io.l5d.namerd.http");
    let port = if is_http { port.parse().map_err(Wrong::new)? } else { HTTP_PORT };
    let tls = node.at("tls");
    if is_http && tls.is_some_and(|tls| tls.at("enabled").is_none_or(|on| on.bool() != Ok(false))) {
        return Err(Wrong::new("it is asked with TLS, which is not done here"));
    }
    Ok(Asker::at(host, port))
}

/// What a namespace leads to, and what is bound for services that are used.
pub(super) async fn read(
    namespace: &str,
    node: &Node,
    reach: &Reach,
    used: &[Name],
    names: &mut Names,
) -> Result<(), Wrong> {
    let asker = asker(node)?;
    let of_namers = Name::of(["#"]);
    let below = reach.below(&of_namers).into_iter().map(|name| of_namers.join(&name));
    // What tables end with may be the beginning of a name only: namerd says.
    let mut wanted: BTreeSet<Name> = below.chain(used.iter().cloned()).collect();
    match asker.json::<Vec<String>>("/api/1/bound-names").await {
        Ok(listed) => {
            let listed = listed.iter().filter_map(|name| Name::read(name).ok());
            wanted.extend(listed.filter(|name| !name.is_empty() && reach.leads(name)));
        }
        Err(wrong) if wrong.is_gone() => return Err(wrong),
        Err(wrong) => names.lose(wrong),
    }
    let namespace = encoded(namespace);
    let all = wanted.into_iter().map(|name| {
        let path = format!("/api/1/bind/{namespace}?path={}", encoded(&name.to_string()));
        let asker = &asker;
        async move { asker.json::<Value>(&path).await }
    });
    let mut answers = stream::iter(all).buffered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(tree) => leaves(&tree, 0, names),
            Err(wrong) if wrong.is_gone() => return Err(wrong),
            Err(wrong) => names.lose(wrong),
        }
    }
    Ok(())
}

/// Everything that is bound in a tree: `{"id", "addr"}`.
fn leaves(tree: &Value, depth: u32, names: &mut Names) {
    if depth > MAX_DEPTH {
        return;
    }
    match tree {
        Value::Array(all) => all.iter().for_each(|tree| leaves(tree, depth + 1, names)),
        Value::Object(entries) => match entries.get("id").and_then(Value::as_str) {
            Some(id) if entries.contains_key("addr") => leaf(id, &entries["addr"], names),
            _ => entries.values().for_each(|tree| leaves(tree, depth + 1, names)),
        },
        _ => {}
    }
}

fn leaf(id: &str, addr: &Value, names: &mut Names) {
    let Ok(id) = Name::read(id) else { return };
    // Without what transformers have put before it.
    let Some(at) = id.labels().iter().position(|label| label == "#") else { return };
    let (_, name) = id.split(at);
    match addr["type"].as_str() {
        Some("bound") => names.add(name, endpoints(addr)),
        Some("neg") => names.add(name, Vec::new()),
        _ => names.add_unknown(name),
    }
}

fn endpoints(addr: &Value) -> Vec<(Endpoint, f64)> {
    let all = addr["addrs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |address: &Value| {
        let weight = address["meta"]["endpoint_addr_weight"].as_f64().unwrap_or(1.0);
        Some((place(address["ip"].as_str()?, address["port"].as_u64()?)?, weight))
    };
    all.iter().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use mesh_migrate::{source::Source, yaml};

    use super::*;

    #[test]
    fn who_answers_over_http() {
        for (text, expected) in [
            ("{kind: io.l5d.namerd.http, dst: /$/inet/n1/4181}", "http://n1:4181/"),
            ("{kind: io.l5d.namerd, dst: /$/inet/n1/4100}", "http://n1:4180/"),
            ("{kind: io.l5d.mesh, dst: /$/inet/4321}", "http://localhost:4180/"),
            ("{kind: io.l5d.mesh, dst: /$/io.buoyant.rinet/4321/n1}", "http://n1:4180/"),
            (
                "{kind: io.l5d.mesh, dst: /#/io.l5d.fs/n}",
                "\"/#/io.l5d.fs/n\" is not /$/inet/<host>/<port>",
            ),
            (
                "{kind: io.l5d.namerd.http, dst: /$/inet/n1/1, tls: {}}",
                "it is asked with TLS, which is not done here",
            ),
        ] {
            let node = yaml::parse(&Source::of("f", text)).unwrap();
            let said = asker(&node).map_or_else(|wrong| wrong.to_string(), |asker| asker.url("/"));
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn what_is_bound_in_a_tree() {
        let tree: Value = serde_json::from_str(
            r#"{"type": "union", "path": null, "union": [
              {"weight": 1.0, "tree": {"type": "leaf", "path": null, "bound": {
                "id": "/%/io.l5d.port/4141/#/io.l5d.consul/dc1/web", "path": "/",
                "addr": {"type": "bound", "meta": {}, "addrs": [
                  {"ip": "10.0.0.2", "port": 80, "meta": {"endpoint_addr_weight": 0.5}},
                  {"ip": "10.0.0.1", "port": 80, "meta": {}}]}}}},
              {"weight": 1.0, "tree": {"type": "alt", "alt": [{"type": "neg"},
                {"type": "leaf", "bound": {"id": "/#/f/x", "path": "/", "addr": {"type": "pending"}}},
                {"type": "leaf", "bound": {"id": "/$/inet/a/1", "path": "/", "addr": {"type": "neg"}}}]}}]}"#,
        )
        .unwrap();
        let mut names = Names::default();
        leaves(&tree, 0, &mut names);
        let said = names.known.iter().map(|(name, known)| format!("{name} {known:?}"));
        assert_eq!(
            said.collect::<Vec<_>>(),
            [
                "/#/f/x None",
                "/#/io.l5d.consul/dc1/web Some([(Address(10.0.0.1:80), 1.0), (Address(10.0.0.2:80), 0.5)])",
            ]
        );
    }
}
