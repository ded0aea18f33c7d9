//! `meshctl inject|uninject`: the proxy in workloads of a cluster, offline.

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use clap::{Args, ValueEnum};
use mesh_core::TrustDomain;
use mesh_inject::{
    Native, Outcome, Settings,
    text::{self, MAX_BYTES, Note, TextError},
};
use serde::Serialize;

use crate::{
    failure::Failure,
    output::{self, Format, Paint, Show, count},
};

/// Arguments of `inject`.
#[derive(Debug, Args)]
#[command(
    after_help = "Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, ReplicationControllers, Jobs, CronJobs and \
Lists of them get the proxy, as the injector of a cluster would give it to their pods; all other documents pass byte \
by byte. Injecting twice is injecting once. What became of each workload is told on standard error.

Examples:
  meshctl inject --trust-domain east.example deployment.yaml | kubectl apply -f -
  helm template web ./chart | meshctl inject --config inject.yaml - > web.yaml
  kubectl get deployment -n shop web -o yaml | meshctl inject --trust-domain east.example - | kubectl apply -f -"
)]
pub struct Inject {
    /// YAML or JSON; - is standard input
    file: PathBuf,
    /// What the cluster's injector has as its configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// SPIFFE trust domain of the site
    #[arg(long, value_name = "DOMAIN", required_unless_present = "config")]
    trust_domain: Option<TrustDomain>,
    /// Where pods reach the site's federation
    #[arg(long, value_name = "HOST:PORT")]
    federation: Option<String>,
    /// Image of the proxy
    #[arg(long, value_name = "IMAGE")]
    proxy_image: Option<String>,
    /// Image of the redirect
    #[arg(long, value_name = "IMAGE")]
    redirect_image: Option<String>,
    /// Whether the proxy is a native sidecar (Kubernetes 1.29)
    #[arg(long, value_enum)]
    native_sidecar: Option<NativeSidecar>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum NativeSidecar {
    /// An init container that goes on
    Always,
    /// A container like any other
    Never,
}

/// Arguments of `uninject`.
#[derive(Debug, Args)]
#[command(after_help = "All other documents pass byte by byte.

Examples:
  meshctl uninject injected.yaml > deployment.yaml
  kubectl get deployment -n shop web -o yaml | meshctl uninject - | kubectl apply -f -")]
pub struct Uninject {
    /// YAML or JSON; - is standard input
    file: PathBuf,
}

impl Inject {
    /// Prints the documents with the proxy.
    pub fn run(self, format: Format) -> Result<(), Failure> {
        let settings = self.settings()?;
        let (name, text) = read(&self.file)?;
        let (documents, notes) = text::inject(&text, &name, &settings).map_err(failure)?;
        if !format.is_document() {
            tell(&name, &notes);
        }
        let workloads = notes.iter().map(Workload::from).collect();
        output::print(format, &Documents { documents, workloads })
    }

    fn settings(&self) -> Result<Settings, Failure> {
        let mut settings = match (&self.config, &self.trust_domain) {
            (Some(path), _) => {
                let text = mesh_runtime::config::read(path).map_err(Failure::config)?;
                Settings::parse(&text, &path.display().to_string()).map_err(Failure::config)?
            }
            (None, Some(domain)) => Settings::new(domain.clone()),
            (None, None) => return Err(Failure::usage("--trust-domain or --config is needed")),
        };
        if let Some(domain) = &self.trust_domain {
            settings.trust_domain = domain.clone();
        }
        for (said, setting) in [
            (&self.federation, &mut settings.federation),
            (&self.proxy_image, &mut settings.proxy_image),
            (&self.redirect_image, &mut settings.redirect_image),
        ] {
            if let Some(said) = said {
                setting.clone_from(said);
            }
        }
        if let Some(native) = self.native_sidecar {
            settings.native = match native {
                NativeSidecar::Always => Native::Always,
                NativeSidecar::Never => Native::Never,
            };
        }
        settings.check("the command line").map_err(Failure::usage)?;
        Ok(settings)
    }
}

impl Uninject {
    /// Prints the documents without the proxy.
    pub fn run(self, format: Format) -> Result<(), Failure> {
        let (name, text) = read(&self.file)?;
        let (documents, names) = text::uninject(&text, &name).map_err(failure)?;
        if !format.is_document() {
            for workload in &names {
                eprintln!("{name}: {workload}: uninjected");
            }
            eprintln!("{name}: {} changed", count(names.len(), "workload"));
        }
        let taken = |name: String| Workload { name, outcome: "uninjected", ..Workload::default() };
        let workloads = names.into_iter().map(taken).collect();
        output::print(format, &Documents { documents, workloads })
    }
}

fn failure(error: TextError) -> Failure {
    Failure::new(error).remedy("nothing was written; correct the document and try again")
}

fn read(path: &Path) -> Result<(String, String), Failure> {
    let limit = u64::try_from(MAX_BYTES).unwrap_or(u64::MAX) + 1;
    let mut text = String::new();
    if path == Path::new("-") {
        let read = std::io::stdin().lock().take(limit).read_to_string(&mut text);
        read.map_err(|error| Failure::new(format!("stdin: {error}")))?;
        return Ok(("stdin".into(), text));
    }
    let read =
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text));
    read.map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    Ok((path.display().to_string(), text))
}

fn tell(file: &str, notes: &[Note]) {
    let paint = Paint::stderr();
    for note in notes {
        let line = format!("{file}:{}: {note}", note.line);
        match &note.outcome {
            Outcome::Skipped(skip) if skip.is_worth_telling() => eprintln!("{}", paint.warn(&line)),
            _ => eprintln!("{line}"),
        }
        for warning in warnings(&note.outcome) {
            eprintln!("  {}", paint.warn(&warning));
        }
    }
    if notes.is_empty() {
        eprintln!("{}", paint.warn(&format!("{file}: no workload is in it")));
    }
}

fn warnings(outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::Injected { warnings, .. } => warnings.iter().map(ToString::to_string).collect(),
        Outcome::Skipped(_) | Outcome::Refused(_) => Vec::new(),
    }
}

#[derive(Debug, Serialize)]
struct Documents {
    /// The whole stream.
    documents: String,
    workloads: Vec<Workload>,
}

#[derive(Debug, Default, Serialize)]
struct Workload {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

impl From<&Note> for Workload {
    fn from(note: &Note) -> Self {
        let (outcome, reason) = match &note.outcome {
            Outcome::Injected { changed: true, .. } => ("injected", None),
            Outcome::Injected { changed: false, .. } => ("unchanged", None),
            Outcome::Skipped(skip) => ("skipped", Some(skip.to_string())),
            Outcome::Refused(refusal) => ("refused", Some(refusal.to_string())),
        };
        let (name, line) = (note.name.clone(), Some(note.line));
        Self { name, line, outcome, reason, warnings: warnings(&note.outcome) }
    }
}

impl Show for Documents {
    fn text(&self, _wide: bool, _paint: Paint) -> String {
        self.documents.clone()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::failure::Exit;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        inject: Inject,
    }

    fn inject(words: &[&str]) -> Inject {
        Line::try_parse_from(std::iter::once(&"inject").chain(words)).expect("it parses").inject
    }

    #[test]
    fn flags_come_before_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("inject.yaml");
        let text = "trust_domain: east.example\nproxy_image: a:1\nredirect_image: b:1\n";
        std::fs::write(&path, text).expect("a file");
        let path = path.display().to_string();
        let words = ["-", "--config", &path, "--proxy-image", "c:1", "--native-sidecar", "never"];
        let settings = inject(&words).settings().expect("they make sense");
        assert_eq!(settings.trust_domain.as_str(), "east.example");
        assert_eq!((&*settings.proxy_image, &*settings.redirect_image), ("c:1", "b:1"));
        assert_eq!(settings.native, Native::Never);
    }

    #[test]
    fn what_makes_no_sense_has_its_exit_code() {
        assert!(Line::try_parse_from(["inject", "-"]).is_err());
        let words = ["-", "--trust-domain", "east.example", "--federation", "nowhere"];
        let failure = inject(&words).settings().expect_err("no port");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.problem.contains("federation: write <host>:<port>"), "{failure}");
        let failure = inject(&["-", "--config", "/nonexistent"]).settings().expect_err("no file");
        assert_eq!(failure.exit, Exit::Config);
    }

    #[test]
    fn a_refused_workload_is_named_with_its_line() {
        let text = "kind: Pod\napiVersion: v1\nspec:\n  securityContext:\n    runAsUser: 2102\n  containers:\n  - name: a\n";
        let settings = Settings::new("east.example".parse().expect("a domain"));
        let failure = failure(text::inject(text, "pod.yaml", &settings).expect_err("refused"));
        assert!(
            failure.problem.starts_with("pod.yaml:5: spec.securityContext.runAsUser"),
            "{failure}"
        );
        assert_eq!(failure.exit, Exit::Failed);
    }
}
