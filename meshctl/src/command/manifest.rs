//! `meshctl apply|diff|get|delete`: documents about traffic.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use clap::Args;
use mesh_api::v1;
use mesh_manifest::{
    Kind,
    manifest::{MAX_BYTES, read},
};
use serde::Serialize;

use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// Where documents are.
#[derive(Debug, Args)]
pub struct Files {
    /// File, directory (its .yaml, .yml and .json files), or - for stdin; may be repeated
    #[arg(short, long = "filename", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
}

/// Arguments of `apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Kinds: HTTPRoute, GRPCRoute, TLSRoute, TCPRoute (gateway.networking.k8s.io/v1), ServiceProfile \
(linkerd.io/v1alpha2), TrafficPolicy (isthmus.io/v1), Server (policy.linkerd.io/v1beta3), AuthorizationPolicy, \
MeshTLSAuthentication, NetworkAuthentication (policy.linkerd.io/v1alpha1). All documents of one command are applied, or none.

Examples:
  meshctl apply -f routes.yaml
  meshctl apply -f routes/ --dry-run
  kubectl get httproute -n shop -o yaml | meshctl apply -f -"
)]
pub struct Apply {
    #[command(flatten)]
    files: Files,
    /// Only check, and say what would change
    #[arg(long)]
    dry_run: bool,
}

/// Arguments of `diff`.
#[derive(Debug, Args)]
#[command(after_help = "Exit code 1 if something would change.

Examples:
  meshctl diff -f routes.yaml
  meshctl diff -f routes/ || meshctl apply -f routes/")]
pub struct Diff {
    #[command(flatten)]
    files: Files,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl get
  meshctl get httproute -n shop
  meshctl get httproute -n shop orders -o yaml > orders.yaml")]
pub struct Get {
    /// httproute, grpcroute, serviceprofile (sp), trafficpolicy, server (srv), authorizationpolicy … [default: all]
    #[arg(value_parser = kind)]
    kind: Option<Kind>,
    /// Only this one
    name: Option<String>,
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Arguments of `delete`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  meshctl delete httproute orders -n shop
  meshctl delete -f routes.yaml")]
pub struct Delete {
    /// httproute, grpcroute, serviceprofile (sp), trafficpolicy
    #[arg(value_parser = kind, requires = "name", required_unless_present = "files")]
    kind: Option<Kind>,
    /// Its name
    name: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Every document of these files
    #[arg(short, long = "filename", value_name = "PATH", conflicts_with = "kind")]
    files: Vec<PathBuf>,
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::from_typed(text).ok_or_else(|| {
        format!("kinds are {}", Kind::ALL.map(|kind| kind.as_str().to_ascii_lowercase()).join(", "))
    })
}

impl Apply {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let changes = send(run, &self.files, self.dry_run).await?;
        output::print(format, &Changes { dry_run: self.dry_run, changes })
    }
}

impl Diff {
    /// Shows what would change.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let changes = send(run, &self.files, true).await?;
        let differ = changes.iter().filter(|change| change.action != "unchanged").count();
        let differences = changes.iter().map(Difference::of).collect();
        output::print(format, &Differences { differences })?;
        match differ {
            0 => Ok(()),
            n => Err(Failure::new(format!("{n} of the documents are not in force as they are"))
                .remedy("meshctl apply with the same files")),
        }
    }
}

async fn send(run: &Run, files: &Files, dry_run: bool) -> Result<Vec<Change>, Failure> {
    let sources = sources(&files.files)?;
    // Mistakes are found here first, with file and line.
    for (source, text) in &sources {
        read(text, source).map_err(Failure::new)?;
    }
    let (source, documents) = joined(sources);
    if documents.len() > MAX_BYTES {
        let problem = format!("the documents are longer than {MAX_BYTES} bytes; apply fewer");
        return Err(Failure::new(problem));
    }
    let request = v1::ApplyManifestsRequest { documents, source, dry_run };
    let mut admin = run.admin().await?;
    let answer = admin.apply_manifests(request).await?.into_inner();
    Ok(answer.changes.into_iter().map(Into::into).collect())
}

/// One stream of documents: all are applied, or none.
fn joined(sources: Vec<(String, String)>) -> (String, String) {
    let names: Vec<&str> = sources.iter().map(|(name, _)| name.as_str()).collect();
    let name = names.join(", ");
    let texts: Vec<String> = sources.into_iter().map(|(_, text)| text).collect();
    (name, texts.join("\n---\n"))
}

/// (name, text) of every file.
fn sources(paths: &[PathBuf]) -> Result<Vec<(String, String)>, Failure> {
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(directory(path)?);
        } else {
            found.push(file(path)?);
        }
    }
    Ok(found)
}

fn directory(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(|error| cannot_read(path, &error))?;
    let is_document = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json"))
    };
    let mut files: Vec<PathBuf> =
        entries.into_iter().map(|entry| entry.path()).filter(is_document).collect();
    files.sort();
    if files.is_empty() {
        let problem = format!("{}: no .yaml, .yml or .json file in it", path.display());
        return Err(Failure::new(problem));
    }
    files.iter().map(|path| file(path)).collect()
}

fn file(path: &Path) -> Result<(String, String), Failure> {
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX) + 1;
    let mut text = String::new();
    if path == Path::new("-") {
        let read = std::io::stdin().lock().take(limit).read_to_string(&mut text);
        read.map_err(|error| cannot_read(path, &error))?;
        return Ok(("stdin".into(), text));
    }
    let read =
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
    read.map_err(|error| cannot_read(path, &error))?;
    Ok((path.display().to_string(), text))
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

impl Get {
    /// Lists documents; with `-o yaml` or `-o json` as they can be applied.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let wanted = v1::ManifestName {
            kind: self.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
            namespace: self.namespace.unwrap_or_default(),
            name: self.name.clone().unwrap_or_default(),
        };
        let mut admin = run.admin().await?;
        let request = v1::GetManifestsRequest { name: Some(wanted) };
        let found = admin.get_manifests(request).await?.into_inner().manifests;
        if let (Some(name), true) = (self.name, found.is_empty()) {
            return Err(Failure::new(format!("no document {name:?}; see `meshctl get`")));
        }
        let items = found.into_iter().map(Item::try_from).collect::<Result<Vec<_>, _>>()?;
        if format == Format::Yaml {
            let documents = items.iter().map(|item| serde_yaml_ng::to_string(&item.document));
            let documents = documents.collect::<Result<Vec<_>, _>>().map_err(Failure::new)?;
            return output::write_stdout(&documents.join("---\n"));
        }
        output::print(format, &Items { items })
    }
}

impl Delete {
    /// Does it.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let names = match (self.kind, self.name) {
            (Some(kind), Some(name)) => {
                vec![v1::ManifestName {
                    kind: kind.as_str().into(),
                    namespace: self.namespace,
                    name,
                }]
            }
            _ => names_in(&self.files)?,
        };
        let mut admin = run.admin().await?;
        admin.delete_manifests(v1::DeleteManifestsRequest { names: names.clone() }).await?;
        let deleted = names.into_iter().map(Into::into).collect();
        output::print(format, &Deleted { deleted })
    }
}

fn names_in(paths: &[PathBuf]) -> Result<Vec<v1::ManifestName>, Failure> {
    let mut names = Vec::new();
    for (source, text) in sources(paths)? {
        for manifest in read(&text, &source).map_err(Failure::new)? {
            let name = manifest.name;
            names.push(v1::ManifestName {
                kind: name.kind.as_str().into(),
                namespace: name.namespace,
                name: name.name,
            });
        }
    }
    Ok(names)
}

#[derive(Debug, Serialize)]
struct Name {
    kind: String,
    namespace: String,
    name: String,
}

impl From<v1::ManifestName> for Name {
    fn from(name: v1::ManifestName) -> Self {
        let v1::ManifestName { kind, namespace, name } = name;
        Self { kind, namespace, name }
    }
}

impl Name {
    /// `httproute shop/orders`.
    fn text(&self) -> String {
        format!("{} {}/{}", self.kind.to_ascii_lowercase(), self.namespace, self.name)
    }
}

#[derive(Debug, Serialize)]
struct Changes {
    dry_run: bool,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct Change {
    #[serde(flatten)]
    name: Name,
    action: String,
    problems: Vec<String>,
    #[serde(skip)]
    before: String,
    #[serde(skip)]
    after: String,
}

impl From<v1::ManifestChange> for Change {
    fn from(change: v1::ManifestChange) -> Self {
        Self {
            name: change.name.unwrap_or_default().into(),
            action: change.action,
            problems: change.problems,
            before: change.before,
            after: change.after,
        }
    }
}

impl Show for Changes {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        if self.changes.is_empty() {
            return "No documents.\n".into();
        }
        let suffix = if self.dry_run { " (dry run)" } else { "" };
        let mut text = String::new();
        for change in &self.changes {
            text += &format!("{} {}{suffix}\n", change.name.text(), change.action);
            for problem in &change.problems {
                text += &format!("  {}\n", paint.warn(problem));
            }
        }
        text
    }
}

#[derive(Debug, Serialize)]
struct Differences {
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Difference {
    #[serde(flatten)]
    name: Name,
    action: String,
    /// Unified, of both as YAML.
    diff: String,
}

impl Difference {
    fn of(change: &Change) -> Self {
        let (before, after) = (yaml(&change.before), yaml(&change.after));
        let name = change.name.text();
        let diff = similar::TextDiff::from_lines(&before, &after);
        let diff = diff.unified_diff().header(&format!("in force: {name}"), &name).to_string();
        let Name { kind, namespace, name } = &change.name;
        let name = Name { kind: kind.clone(), namespace: namespace.clone(), name: name.clone() };
        Self { name, action: change.action.clone(), diff }
    }
}

/// A JSON document as YAML; nothing stays nothing.
fn yaml(document: &str) -> String {
    let value: Result<serde_json::Value, _> = serde_json::from_str(document);
    value.ok().and_then(|value| serde_yaml_ng::to_string(&value).ok()).unwrap_or_default()
}

impl Show for Differences {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let lines = self.differences.iter().flat_map(|difference| difference.diff.lines());
        let coloured = lines.map(|line| match line.as_bytes().first() {
            Some(b'+') => paint.good(line),
            Some(b'-') => paint.bad(line),
            _ => line.to_owned(),
        });
        coloured.map(|line| line + "\n").collect()
    }
}

#[derive(Debug, Serialize)]
struct Items {
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    #[serde(flatten)]
    name: Name,
    services: Vec<String>,
    created_unix_s: i64,
    in_force: bool,
    problems: Vec<String>,
    document: serde_json::Value,
}

impl TryFrom<v1::ManifestInfo> for Item {
    type Error = Failure;

    fn try_from(info: v1::ManifestInfo) -> Result<Self, Failure> {
        Ok(Self {
            name: info.name.unwrap_or_default().into(),
            services: info.services,
            created_unix_s: info.created_unix_s,
            in_force: info.problems.is_empty(),
            problems: info.problems,
            document: serde_json::from_str(&info.document).map_err(Failure::new)?,
        })
    }
}

impl Show for Items {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        if self.items.is_empty() {
            return "No documents. Write some and `meshctl apply -f <file>`\n".into();
        }
        let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "SERVICES", "STATUS"]);
        for item in &self.items {
            let status = match item.problems.as_slice() {
                [] => paint.good("in force"),
                problems => paint.warn(&problems.join("; ")),
            };
            let Name { kind, namespace, name } = &item.name;
            let services = item.services.join(",");
            table.row([kind.clone(), namespace.clone(), name.clone(), services, status]);
        }
        table.render(paint)
    }
}

#[derive(Debug, Serialize)]
struct Deleted {
    deleted: Vec<Name>,
}

impl Show for Deleted {
    fn text(&self, _wide: bool, _paint: Paint) -> String {
        self.deleted.iter().map(|name| format!("{} deleted\n", name.text())).collect()
    }
}
