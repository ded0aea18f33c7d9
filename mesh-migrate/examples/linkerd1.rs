//! What the delegation engine of Linkerd 1.x makes of tables and names, for a comparison
//! with Finagle: `linkerd1 < LINES > ANSWERS`, both JSON, as `tests/migrate/finagle.py`
//! has them; `linkerd1 world` prints the namers and what they know.

use std::io::BufRead;

use mesh_migrate::{
    linkerd1::{
        config::Config,
        dtab::{Dtab, Tree},
        explain::{Client, Target, delegate},
        world::World,
    },
    request::{Http, Kind, Request},
    source::{Problem, Source},
};
use serde_json::{Value, json};

/// Kinds whose names have a fixed number of labels, none of them by default.
const NAMERS: &str = "
namers:
- {kind: io.l5d.rancher, prefix: /r}
- {kind: io.l5d.curator, prefix: /d}
- {kind: io.l5d.curator, prefix: /d/s}
- {kind: io.l5d.rewrite, prefix: /go, pattern: /x, name: /svc/web}
";
const ROUTERS: &str = "
routers:
- protocol: http
  dstPrefix: /
  identifier: {kind: io.l5d.header}
  servers: [{port: 4140}]
";
const NAMES: [&str; 5] = ["/#/r/80/a/web", "/#/r/80/a/api", "/#/d/a", "/#/d/s", "/#/d/s/x"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::args().nth(1).as_deref() == Some("world") {
        let namers = json!([
            { "prefix": "/#/r", "labels": 3 },
            { "prefix": "/#/d", "labels": 1 },
            { "prefix": "/#/d/s", "labels": 1 },
            { "prefix": "/#/go", "from": "/x", "to": "/svc/web" },
        ]);
        println!("{}", json!({ "namers": namers, "names": NAMES }));
        return Ok(());
    }
    let config = |text: &str| Config::read(&Source::of("linkerd.yaml", text));
    let (config, bare) = (config(&format!("{NAMERS}{ROUTERS}"))?, config(ROUTERS)?);
    let world = World::of_names(NAMES);
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let text = |key: &str| asked[key].as_str().unwrap_or_default();
        let config = if asked["bare"] == json!(true) { &bare } else { &config };
        println!("{}", answer(config, &world, text("dtab"), text("path"))?);
    }
    Ok(())
}

fn answer(config: &Config, world: &World, text: &str, path: &str) -> Result<Value, Problem> {
    let dtab = match Dtab::read("dtab", text) {
        Ok(dtab) => dtab,
        Err(problem) => return Ok(json!({ "wrong": problem.to_string() })),
    };
    let shown: Vec<_> = dtab.entries.iter().map(ToString::to_string).collect();
    let entries = dtab.entries.iter().map(|entry| json!([entry.prefix_text(), tree(&entry.tree)]));
    let mut said = json!({ "show": shown.join("; "), "dtab": entries.collect::<Vec<_>>() });
    let headers = [("l5d-name", path), ("l5d-dtab", text)];
    let http = Http {
        method: "GET".into(),
        host: None,
        target: "/".into(),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        is_http10: false,
    };
    let source = std::net::Ipv4Addr::LOCALHOST.into();
    let request = Request { listener: None, source, kind: Kind::Http(http) };
    let no_files = |name: &str| Ok(Source::of(name, ""));
    let found = delegate(config, world, &no_files, &request)?;
    match &found.service {
        None => said["wrong_path"] = json!(found.how),
        Some(path) => {
            said["path"] = json!(path.to_string());
            said["bound"] = bound(&found.bound);
        }
    }
    Ok(said)
}

fn bound(targets: &[Target]) -> Value {
    let mut leaves = Vec::new();
    for target in targets {
        leaves.push(match &target.client {
            Client::Name(bound) => {
                json!([target.share, bound.id.to_string(), bound.residual.to_string()])
            }
            Client::Neg => json!([target.share, "Neg"]),
            Client::Fail => json!([target.share, "Fail"]),
            Client::Empty => json!([target.share, "Empty"]),
            Client::Unidentified => json!([target.share, "Unidentified"]),
            Client::Error(wrong) => return json!({ "failed": wrong }),
        });
    }
    json!({ "leaves": leaves })
}

fn tree(tree: &Tree) -> Value {
    match tree {
        Tree::Leaf(name) => json!(name.to_string()),
        Tree::Neg => json!("~"),
        Tree::Fail => json!("!"),
        Tree::Empty => json!("$"),
        Tree::Alt(trees) => {
            let all = [json!("|")].into_iter().chain(trees.iter().map(self::tree));
            all.collect()
        }
        Tree::Union(trees) => {
            let one = |(weight, tree): &(f64, Tree)| json!([weight.to_string(), self::tree(tree)]);
            [json!("&")].into_iter().chain(trees.iter().map(one)).collect()
        }
    }
}
