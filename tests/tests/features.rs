//! docs/features.md tells the truth: every test that it names exists and runs,
//! every metric and reason is one of ours, and every key of the JSON Schemas
//! has a row.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use mesh_core::Reason;
use serde_json::Value;

/// What the names of the proxy's metrics begin with.
const PREFIX: &str = "isthmus_proxy_";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// One line of a table.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    feature: String,
    keys: Vec<String>,
    metrics: Vec<String>,
    tests: Vec<String>,
}

/// The rows of all tables with four columns, heads left out.
fn rows(text: &str) -> Vec<Row> {
    let cells = |line: &str| -> Option<Vec<String>> {
        let line = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().to_owned()).collect();
        (cells.len() == 4 && !cells[0].starts_with("--")).then_some(cells)
    };
    let row = |cells: Vec<String>| Row {
        feature: cells[0].clone(),
        keys: code(&cells[1]).iter().flat_map(|name| expanded(name)).collect(),
        metrics: code(&cells[2]),
        tests: code(&cells[3]).iter().flat_map(|name| expanded(name)).collect(),
    };
    text.lines().filter_map(cells).filter(|cells| cells[0] != "feature").map(row).collect()
}

/// What stands between backticks.
fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// `a.{b,c}` is `a.b` and `a.c`.
fn expanded(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (inner, after) = rest.split_once('}').expect("a brace that is opened is closed");
    inner.split(',').map(|one| format!("{before}{}{after}", one.trim())).collect()
}

fn documented() -> Vec<Row> {
    let rows = rows(&fs::read_to_string(root().join("docs/features.md")).unwrap());
    assert!(rows.len() > 40, "only {} rows are read", rows.len());
    rows
}

/// Why a test that is called `<file>::<function>` does not count.
fn flaw(name: &str) -> Option<String> {
    let Some((file, function)) = name.split_once("::") else {
        return Some("is not written <file>::<function>".into());
    };
    match fs::read_to_string(root().join(file)) {
        Err(error) => Some(error.to_string()),
        Ok(text) => flaw_in(&text, function).map(str::to_owned),
    }
}

fn flaw_in(source: &str, function: &str) -> Option<&'static str> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let is_it = |line: &&str| {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        rest.is_some_and(|rest| rest.starts_with(&format!("{function}(")))
    };
    let Some(at) = lines.iter().position(is_it) else { return Some("no such function") };
    let attributes: Vec<&str> =
        lines[..at].iter().rev().copied().take_while(|line| line.starts_with('#')).collect();
    let has = |begin: &str| attributes.iter().any(|line| line.starts_with(begin));
    if !has("#[test]") && !has("#[tokio::test") {
        return Some("is no test");
    }
    has("#[ignore").then_some("is ignored")
}

#[test]
fn every_row_names_a_metric_and_tests_that_run() {
    let mut flaws = Vec::new();
    for row in documented() {
        let feature = &row.feature;
        if row.tests.is_empty() || row.metrics.is_empty() {
            flaws.push(format!("{feature}: a row has a metric and a test"));
        }
        let of = |name: &String| flaw(name).map(|flaw| format!("{feature}: {name}: {flaw}"));
        flaws.extend(row.tests.iter().filter_map(of));
    }
    assert_eq!(flaws, Vec::<String>::new());
}

#[test]
fn features_have_one_row_each() {
    let mut seen = BTreeSet::new();
    let again: Vec<String> = documented()
        .into_iter()
        .map(|row| row.feature)
        .filter(|f| !seen.insert(f.clone()))
        .collect();
    assert_eq!(again, Vec::<String>::new());
}

/// Names that are registered in the sources below `dir`, without prefix.
fn registered(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            registered(&path, names);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let gateway = if path.ends_with("gateway/metrics.rs") { "gateway_" } else { "" };
        let calls = [".register(", ".encode_descriptor("].map(|call| text.split(call).skip(1));
        for call in calls.into_iter().flatten() {
            if let Some(rest) = call.trim_start().strip_prefix('"') {
                let name = rest.split('"').next().unwrap();
                names.insert(format!("{gateway}{name}"));
            }
        }
    }
}

#[test]
fn metrics_are_registered_and_reasons_exist() {
    let mut registered_names = BTreeSet::new();
    registered(&root().join("edge-proxy/src"), &mut registered_names);
    assert!(registered_names.contains("request"), "{registered_names:?}");
    let (mut unknown, mut named) = (Vec::new(), BTreeSet::new());
    for row in documented() {
        for metric in &row.metrics {
            let (name, labels) = metric.split_once('{').unwrap_or((metric, ""));
            let name = name.strip_prefix(PREFIX).unwrap_or(name);
            let name = name.strip_suffix("_total").unwrap_or(name);
            let reason =
                labels.split_once("reason=\"").and_then(|(_, rest)| rest.split('"').next());
            let known = |code: &str| Reason::ALL.iter().any(|reason| reason.code() == code);
            // What gateways refuse has codes of its own.
            let checked = !name.starts_with("gateway_");
            if !registered_names.contains(name) || checked && !reason.is_none_or(known) {
                unknown.push(format!("{}: {metric}", row.feature));
            }
            named.insert(name.to_owned());
        }
    }
    assert_eq!(unknown, Vec::<String>::new());
    let missing: Vec<_> = registered_names.difference(&named).collect();
    assert!(missing.is_empty(), "metrics without a row: {missing:?}");
}

/// `proxy.<key>` of proxy.yaml, `site.<key>` of a static snapshot, and
/// `<type>.<key>` of every type that either is made of.
fn keys() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for name in ["proxy", "site"] {
        let path = root().join(format!("docs/schema/{name}.json"));
        let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        properties(name, &schema, &mut found);
        for (of, definition) in schema["$defs"].as_object().unwrap() {
            properties(of, definition, &mut found);
        }
    }
    found
}

fn properties(of: &str, part: &Value, found: &mut BTreeSet<String>) {
    let keys = part["properties"].as_object().into_iter().flatten().map(|(key, _)| key);
    found.extend(keys.map(|key| format!("{of}.{key}")));
    for one in ["oneOf", "anyOf"].iter().flat_map(|list| part[list].as_array()).flatten() {
        properties(of, one, found);
    }
}

#[test]
fn every_key_has_a_row_and_every_row_a_key_that_exists() {
    let keys = keys();
    assert!(keys.len() > 150, "only {} keys are read", keys.len());
    let named: BTreeSet<String> = documented().into_iter().flat_map(|row| row.keys).collect();
    let missing: Vec<_> = keys.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&keys).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "no row: {missing:#?}, no key: {unknown:#?}");
}

#[test]
fn what_is_wrong_in_a_row_is_seen() {
    let read = rows("| feature | a | b | c |\n|---|---|---|---|\n| f | `A.{b, c}` | `m` | – |\n");
    let keys = vec!["A.b".to_owned(), "A.c".to_owned()];
    let row = Row { feature: "f".into(), keys, metrics: vec!["m".into()], tests: vec![] };
    assert_eq!(read, [row]);
    let source =
        "#[tokio::test]\nasync fn a() {}\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\nfn c() {}\n";
    assert_eq!(flaw_in(source, "a"), None);
    assert_eq!(flaw_in(source, "b"), Some("is ignored"));
    assert_eq!(flaw_in(source, "c"), Some("is no test"));
    assert_eq!(flaw_in(source, "d"), Some("no such function"));
    assert!(flaw("no/such/file.rs::a").is_some());
}
