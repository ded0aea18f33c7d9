//! The JSON Schemas and docs/configuration.md say what the types that read the
//! files say, and everything that is shown to people is valid by them.
//!
//! `ISTHMUS_WRITE_DOCS=1 cargo test -p edge-proxy --test documented` writes
//! both anew.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod tables;
mod validate;

use std::path::{Path, PathBuf};

use edge_proxy::{
    config::{Config, Flags, SnapshotSource, flags::Schema},
    files::snapshot,
};
use mesh_core::TrustBundles;
use serde::Deserialize;
use serde_json::Value;
use validate::problems;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// (name, as the types say, as it is committed)
fn schemas() -> [(&'static str, Value, &'static str); 2] {
    let value = |schema: schemars::Schema| schema.to_value();
    [
        ("proxy", value(edge_proxy::config::written::schema()), Schema::Proxy.text()),
        ("site", value(snapshot::schema()), Schema::Site.text()),
    ]
}

fn writes() -> bool {
    std::env::var_os("ISTHMUS_WRITE_DOCS").is_some()
}

#[test]
fn schemas_are_as_committed() {
    for (name, schema, committed) in schemas() {
        if writes() {
            let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
            std::fs::write(root().join(format!("docs/schema/{name}.json")), text).unwrap();
        } else {
            let committed: Value = serde_json::from_str(committed).unwrap();
            assert!(committed == schema, "docs/schema/{name}.json is old: ISTHMUS_WRITE_DOCS=1");
        }
    }
}

#[test]
fn every_field_and_value_has_a_description() {
    let mut found = 0;
    for (name, schema, _) in schemas() {
        let mut missing = Vec::new();
        described(&schema, name, &mut missing, &mut found);
        assert_eq!(missing, Vec::<String>::new());
    }
    assert!(found > 150, "only {found} fields");
}

fn described(schema: &Value, place: &str, missing: &mut Vec<String>, found: &mut usize) {
    let lacks = |part: &Value| part["description"].as_str().is_none_or(|text| text.len() < 5);
    if let Some(properties) = schema["properties"].as_object() {
        for (key, property) in properties {
            *found += 1;
            // The tag of a variant is told by the variant.
            if lacks(property) && property.get("const").is_none() {
                missing.push(format!("{place}.{key}"));
            }
        }
    }
    for (index, one) in schema["oneOf"].as_array().into_iter().flatten().enumerate() {
        if lacks(one) {
            missing.push(format!("{place}|{index}"));
        }
        described(one, &format!("{place}|{index}"), missing, found);
    }
    for (name, definition) in schema["$defs"].as_object().into_iter().flatten() {
        if lacks(definition) {
            missing.push(name.clone());
        }
        described(definition, name, missing, found);
    }
}

#[test]
fn the_page_has_every_key() {
    let path = root().join("docs/configuration.md");
    let old = std::fs::read_to_string(&path).unwrap();
    let mut new = old.clone();
    for (name, schema, _) in schemas() {
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let (before, rest) = new.split_once(&begin).expect("its place");
        let (_, after) = rest.split_once(&end).expect("its end");
        new = format!("{before}{begin}\n{}\n{end}{after}", tables::of(&schema).trim_end());
    }
    if writes() {
        std::fs::write(&path, new).unwrap();
    } else {
        assert!(old == new, "docs/configuration.md is old: ISTHMUS_WRITE_DOCS=1");
    }
}

/// By which schema a document is to be read; `None` if by none of these.
fn schema_of(document: &Value) -> Option<&'static str> {
    let has = |key: &str| document.get(key).is_some();
    if has("apiVersion") {
        return Some("Document");
    }
    if has("trust_domain") {
        return Some("site");
    }
    let keys = ["role", "identity", "snapshot", "http_listener", "listeners", "gateway", "inbound"];
    keys.into_iter().any(has).then_some("proxy")
}

fn check(document: &Value) -> Vec<String> {
    let [(_, proxy, _), (_, site, _)] = schemas();
    match schema_of(document) {
        Some("proxy") => problems(&proxy, &proxy, document, ""),
        Some("site") => problems(&site, &site, document, ""),
        Some(_) => problems(&site, &site["$defs"]["Document"], document, ""),
        None => vec!["no schema is for it".into()],
    }
}

fn documents(text: &str) -> Vec<Value> {
    let read =
        serde_yaml_ng::Deserializer::from_str(text).map(|one| Value::deserialize(one).unwrap());
    read.filter(|value| !value.is_null()).collect()
}

fn files(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
}

#[test]
fn every_example_file_is_valid_and_is_read() {
    let mut found = Vec::new();
    files(&root().join("examples"), "yaml", &mut found);
    let mut proxies = 0;
    for path in &found {
        let text = std::fs::read_to_string(path).unwrap();
        for document in documents(&text) {
            assert_eq!(check(&document), Vec::<String>::new(), "{}", path.display());
            if schema_of(&document) == Some("proxy") {
                let flags = Flags { config: Some(path.clone()), ..Flags::default() };
                let SnapshotSource::File { path, set } = Config::load(&flags).unwrap().snapshot
                else {
                    panic!("{}: has no snapshot", path.display());
                };
                snapshot::load(&path, &set, &TrustBundles::new()).unwrap();
                proxies += 1;
            }
        }
    }
    assert!(proxies >= 3, "only {proxies} examples");
}

/// Fenced YAML of a page, but for files of other programs.
fn snippets(page: &str) -> Vec<String> {
    let fenced = page.split("```").skip(1).step_by(2);
    let yaml = fenced.filter_map(|text| text.strip_prefix("yaml\n"));
    let foreign = ["# /etc/isthmus/services.d/", "# /etc/isthmus/federation.yaml"];
    let ours = yaml.filter(|text| !foreign.iter().any(|file| text.starts_with(file)));
    ours.map(str::to_owned).collect()
}

#[test]
fn every_snippet_of_the_documentation_is_valid() {
    let mut pages = Vec::new();
    files(&root().join("docs"), "md", &mut pages);
    files(&root().join("examples"), "md", &mut pages);
    pages.extend(["README.md", "ARCHITECTURE.md"].map(|page| root().join(page)));
    let mut checked = 0;
    for page in pages {
        for snippet in snippets(&std::fs::read_to_string(&page).unwrap()) {
            for document in documents(&snippet) {
                assert_eq!(check(&document), Vec::<String>::new(), "{}: {snippet}", page.display());
                checked += 1;
            }
        }
    }
    assert!(checked >= 4, "only {checked} documents");
}

#[test]
fn what_the_reader_refuses_is_not_valid() {
    let wrong = [
        "role: nod",
        "role: node\nhttp_listner: off",
        "role: node\nworkers: many",
        "identity: { files: { certificate: a, key: b } }",
        "listeners: [{ listen: '127.0.0.1:1', service: a.b }]",
        "snapshot: { file: a }\ndrain_timeout: 5",
        "snapshot: { file: a }\ndrain_timeout: 5x",
        "trust_domain: a.b",
        "trust_domain: a.b\nsite: a\nservices: [{ name: a.b }]",
        "trust_domain: a.b\nsite: a\nlinks: [{ site: b, trust_domain: c, transport: udp }]",
        "apiVersion: isthmus.io/v1\nkind: HTTPRoute\nmetadata: { name: a }",
        "apiVersion: isthmus.io/v1\nkind: TrafficPolicy\nmetadata: { name: a }\nspec: { trafic: {} }",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: a }\n\
         spec: { rules: [{ filters: [{ type: URLRewrite }] }] }",
    ];
    for text in wrong {
        assert!(!check(&documents(text)[0]).is_empty(), "{text}");
    }
}
