//! `meshctl migrate plan`.

use std::path::{Path, PathBuf};

use clap::Args;
use mesh_migrate::{
    objects::{self, Wanted},
    report::Report,
};
use serde::Serialize;

use super::{DISCOVERY, Input, host, wrong};
use crate::{
    failure::{Exit, Failure},
    output::{self, Format, Output, Paint, Show},
};

/// Arguments of `plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads a configuration and says of every line whether it is the same with us (exact), something like it \
(approximated), not there (dropped), or needs a person (decide). With -o DIR it writes what edge-proxy runs \
(proxy.yaml, site.yaml, rules.yaml) and the report (report.md, report.json, report.html); the same files every time.

Examples:
  meshctl migrate plan --from haproxy /etc/haproxy/haproxy.cfg
  nginx -T | meshctl migrate plan --from nginx - -o web-7
  meshctl migrate plan --from linkerd1 linkerd.yaml --discovery names.txt -o web-7 --strict
  meshctl migrate plan --from linkerd1 --live http://127.0.0.1:9990 --discover -o web-7
  meshctl migrate plan --from linkerd1 linkerd.yaml --discovery web-7/discovery.yaml -o web-7
  edge-proxy --config web-7/proxy.yaml"
)]
pub struct Plan {
    /// The configuration; - is standard input
    #[arg(required_unless_present = "live", value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    input: Input,
    /// Admin port of a running Linkerd 1.x or Envoy, instead of a file: http://<host>:<port>
    #[arg(long, value_name = "URL")]
    live: Option<String>,
    /// Where to write; -o DIR says the same
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Fail unless everything is exact
    #[arg(long)]
    strict: bool,
    /// Tell of what is exact, too
    #[arg(long)]
    all: bool,
    /// Namespace of the services that are made
    #[arg(long, default_value = "legacy", value_name = "NAME")]
    namespace: String,
    /// Site that the proxy belongs to
    #[arg(long, default_value = "legacy", value_name = "NAME")]
    as_site: String,
    /// Carry TLS of the old proxy over, with its certificates and files, until this date (2027-03-01: 00:00 UTC) or time of RFC 3339
    #[arg(long, value_name = "DATE", value_parser = end)]
    tls_until: Option<String>,
}

/// The longest `rules.yaml`: it goes to a host's agent in one message of gRPC, which may
/// have 4 MiB.
const MAX_RULES: usize = 3 << 20;

/// As it is written: the same arguments make the same files.
fn end(text: &str) -> Result<String, String> {
    let is_end = mesh_runtime::clock::parse_utc(text).is_some();
    let wrong = || "write a date, e.g. 2027-03-01, or a time of RFC 3339".to_owned();
    is_end.then(|| text.to_owned()).ok_or_else(wrong)
}

#[derive(Debug, Serialize)]
struct Planned {
    #[serde(flatten)]
    report: Report,
    /// Files that were written.
    written: Vec<String>,
    #[serde(skip)]
    all: bool,
}

impl Plan {
    pub(super) async fn run(self, output: Output) -> Result<(), Failure> {
        let (format, directory) = output.or_directory();
        let directory = self.out.as_deref().or(directory.as_deref());
        let resolve = self.input.resolver()?;
        let from = self.input.format();
        let wanted = Wanted {
            namespace: &self.namespace,
            site: &self.as_site,
            resolve: &resolve,
            tls_until: self.tls_until.as_deref(),
        };
        let planned =
            self.input.read(&self.files, self.live.as_deref(), directory, |legacy, found| {
                let (program, mut ledger) = legacy.convert().map_err(wrong)?;
                let objects = objects::objects(&program, &wanted, &mut ledger);
                let is_blank = |line: &str| from.is_blank(line);
                let report = Report::new(from.as_str(), &ledger, legacy.sources(), is_blank);
                Ok((objects, report, legacy.control(), found.map(|source| source.text.clone())))
            });
        let (objects, report, control, found) = planned.await?;
        let mut files = objects.files();
        files.push(("report.md", report.markdown()));
        let mut json = serde_json::to_string_pretty(&report).map_err(Failure::new)?;
        json.push('\n');
        files.push(("report.json", json));
        files.push(("report.html", report.html()));
        files.extend(found.map(|found| (DISCOVERY, found)));
        let mut written = Vec::new();
        if let Some(directory) = directory {
            std::fs::create_dir_all(directory).map_err(|error| cannot(directory, &error))?;
            let host = directory.join(host::FILE);
            if !host.exists() {
                // What a person says of the host is not written over.
                files.push((host::FILE, host::Written::of(from.as_str(), control).text()?));
            }
            for (name, text) in &files {
                let path = directory.join(name);
                write(&path, text).map_err(|error| cannot(&path, &error))?;
                written.push(path.display().to_string());
            }
        }
        let rules = files.iter().find(|(name, _)| *name == "rules.yaml");
        let rules = rules.map_or("", |(_, text)| text.as_str());
        let length = rules.len();
        let wrong = mesh_manifest::manifest::read(rules, "rules.yaml").err().filter(|_| length > 0);
        let exact = report.is_exact();
        let summary = report.summary.text();
        output::print(
            format,
            &Planned { report, written, all: self.all || format == Format::Wide },
        )?;
        if length > MAX_RULES {
            let problem = format!(
                "rules.yaml has {length} bytes, of at most {MAX_RULES} that an agent takes: import the configuration in parts, with some of its listeners each"
            );
            return Err(Failure::new(problem).exit(Exit::Failed));
        }
        if let Some(wrong) = wrong {
            let problem = format!(
                "{wrong}: no proxy takes that, and it is a defect of this program that it was written. Change it by hand, and please report it"
            );
            return Err(Failure::new(problem).exit(Exit::Failed));
        }
        if self.strict && !exact {
            return Err(Failure::new(format!("--strict: {summary}")).exit(Exit::Failed));
        }
        Ok(())
    }
}

impl Show for Planned {
    fn text(&self, wide: bool, _: Paint) -> String {
        let mut text = self.report.text(wide || self.all);
        if let Some(proxy) = self.written.first() {
            for file in &self.written {
                text += &format!("  wrote {file}\n");
            }
            text += &format!("Next: edge-proxy --config {proxy}, or meshctl migrate shadow\n");
        }
        text
    }
}

/// As a whole or not at all.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, path)
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: cannot be written: {error}", path.display()))
}
