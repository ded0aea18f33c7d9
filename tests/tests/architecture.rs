//! Fails on a dependency between crates that ARCHITECTURE.md forbids.

use std::collections::{BTreeMap, BTreeSet};

/// Crate → the workspace crates it may link.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mesh-api", &[]),
    ("mesh-core", &["mesh-api"]),
    ("mesh-runtime", &[]),
    ("mesh-manifest", &["mesh-api", "mesh-core", "mesh-runtime"]),
    ("mesh-inject", &["mesh-core", "mesh-runtime"]),
    ("mesh-migrate", &[]),
    ("mesh-tunnel", &["mesh-api", "mesh-core", "mesh-runtime"]),
    ("mesh-consul", &["mesh-core", "mesh-runtime"]),
    ("edge-proxy", &["mesh-api", "mesh-core", "mesh-manifest", "mesh-runtime", "mesh-tunnel"]),
    (
        "federation",
        &["mesh-api", "mesh-consul", "mesh-core", "mesh-manifest", "mesh-runtime", "mesh-tunnel"],
    ),
    ("vm-agent", &["mesh-api", "mesh-core", "mesh-migrate", "mesh-runtime", "mesh-tunnel"]),
    (
        "meshctl",
        &[
            "mesh-api",
            "mesh-core",
            "mesh-inject",
            "mesh-manifest",
            "mesh-migrate",
            "mesh-runtime",
            "mesh-tunnel",
        ],
    ),
    // Reads their command lines.
    ("isthmus-pages", &["edge-proxy", "federation", "meshctl", "vm-agent"]),
    (
        "isthmus-k8s",
        &["mesh-api", "mesh-core", "mesh-inject", "mesh-manifest", "mesh-runtime", "mesh-tunnel"],
    ),
];

/// Crate → outside crates it must never link, directly.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("mesh-api", &["tokio", "hyper", "quinn", "rustls"]),
    (
        "mesh-core",
        &["tokio", "hyper", "quinn", "rustls", "tonic", "sled", "kube", "socket2", "rand"],
    ),
    ("mesh-runtime", &["mesh-api", "mesh-core", "rustls", "quinn", "tonic", "kube"]),
    ("mesh-manifest", &["tokio", "hyper", "quinn", "rustls", "tonic", "sled", "kube"]),
    ("mesh-inject", &["tokio", "hyper", "quinn", "rustls", "tonic", "sled", "kube"]),
    ("mesh-migrate", &["tokio", "hyper", "quinn", "rustls", "tonic", "sled", "kube"]),
    ("mesh-tunnel", &["sled", "kube", "clap"]),
    ("mesh-consul", &["quinn", "tonic", "sled", "kube", "clap"]),
    ("edge-proxy", &["sled", "kube", "rcgen"]),
    ("federation", &["quinn", "kube", "h2"]),
    ("vm-agent", &["sled", "kube", "quinn"]),
    ("meshctl", &["sled", "kube", "quinn"]),
    ("isthmus-k8s", &["sled", "quinn"]),
];

type Edges = BTreeMap<String, BTreeSet<String>>;

fn direct_dependencies() -> Edges {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata");
    let normal = |package: &cargo_metadata::Package| {
        package
            .dependencies
            .iter()
            .filter(|dependency| dependency.kind == cargo_metadata::DependencyKind::Normal)
            .map(|dependency| dependency.name.clone())
            .collect()
    };
    metadata.packages.iter().map(|package| (package.name.to_string(), normal(package))).collect()
}

fn violations(edges: &Edges) -> Vec<String> {
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let mut found = Vec::new();
    for (name, allowed) in ALLOWED {
        let Some(dependencies) = edges.get(*name) else {
            found.push(format!("{name}: no such crate; mend this test"));
            continue;
        };
        for dependency in dependencies {
            if ours.contains(dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                found.push(format!("{name} -> {dependency}"));
            }
        }
    }
    for (name, forbidden) in FORBIDDEN {
        let dependencies = edges.get(*name).into_iter().flatten();
        found.extend(
            dependencies
                .filter(|dependency| forbidden.contains(&dependency.as_str()))
                .map(|dependency| format!("{name} -> {dependency}")),
        );
    }
    found
}

#[test]
fn no_forbidden_edge() {
    let found = violations(&direct_dependencies());
    assert!(found.is_empty(), "forbidden dependencies: {found:#?}");
}

#[test]
fn every_member_is_listed() {
    let known: BTreeSet<&str> =
        ALLOWED.iter().map(|(name, _)| *name).chain(["isthmus-tests"]).collect();
    for name in direct_dependencies().keys() {
        assert!(known.contains(name.as_str()), "{name} has no row in ALLOWED");
    }
}

#[test]
fn a_forbidden_edge_is_seen() {
    let mut edges = direct_dependencies();
    edges.entry("mesh-core".into()).or_default().insert("tokio".into());
    edges.entry("vm-agent".into()).or_default().insert("federation".into());
    assert_eq!(violations(&edges), ["vm-agent -> federation", "mesh-core -> tokio"]);
}
