//! `meshctl site backup|restore`: a site in a file, and out of it.

use std::{path::PathBuf, process::Stdio, time::Duration};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::site::{federation, finish};
use crate::{
    failure::Failure,
    output::{self, Format, Paint, Show},
    time,
};

/// Arguments of `site backup`.
#[derive(Debug, Args)]
#[command(
    after_help = "The file holds the keys of the CA: whoever has it is the site. Configuration files are not \
in it. Make a new one after `meshctl rotate root`: the keys of a root that has left are of no use.

Examples:
  meshctl site backup /root/west.backup
  meshctl site backup - | age -r age1... > west.backup.age"
)]
pub struct Backup {
    /// Where to; `-` is standard output
    file: PathBuf,
    /// Where the CA keys and the authority log live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    state: PathBuf,
}

/// Arguments of `site restore`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing that exists is overwritten: stop federation and move its state directory away first. \
Open tokens of then are void, and linked sites and proxies take everything anew.

Examples:
  meshctl site restore /root/west.backup
  age -d west.backup.age | meshctl site restore -"
)]
pub struct Restore {
    /// What `backup` has written; `-` is standard input
    file: PathBuf,
    /// Where the CA keys and the authority log will live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    state: PathBuf,
}

impl Backup {
    /// Does it.
    pub(super) fn run(self, format: Format) -> Result<(), Failure> {
        let to_stdout = self.file.as_os_str() == "-";
        let mut command = federation("backup")?;
        command.arg(&self.file).arg("--state").arg(&self.state);
        if to_stdout {
            command.stdout(Stdio::inherit());
        }
        let said = finish("backup", &mut command)?;
        let told = if to_stdout { &said.stderr } else { &said.stdout };
        let kept = Kept { file: self.file, contents: contents(told)? };
        if to_stdout {
            eprint!("{}", kept.text(false, Paint::PLAIN));
            return Ok(());
        }
        output::print(format, &kept)
    }
}

impl Restore {
    /// Does it.
    pub(super) fn run(self, format: Format) -> Result<(), Failure> {
        let mut command = federation("restore")?;
        command.arg(&self.file).arg("--state").arg(&self.state).stdin(Stdio::inherit());
        let said = finish("restore", &mut command)?;
        let restored = Restored { state: self.state, contents: contents(&said.stdout)? };
        output::print(format, &restored)
    }
}

/// What federation says of a backup, its last line.
fn contents(said: &[u8]) -> Result<Contents, Failure> {
    let said = String::from_utf8_lossy(said);
    let line = said.lines().last().unwrap_or_default();
    serde_json::from_str(line)
        .map_err(|error| Failure::new(format!("federation said {line:?}: {error}")))
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    site: String,
    trust_domain: String,
    root_fingerprint: String,
    epoch: u64,
    revision: u64,
    nodes: usize,
    links: usize,
    made_unix_s: i64,
}

#[derive(Debug, Serialize)]
struct Kept {
    file: PathBuf,
    #[serde(flatten)]
    contents: Contents,
}

impl Show for Kept {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let Contents { site, trust_domain, root_fingerprint, nodes, links, revision, .. } =
            &self.contents;
        format!(
            "Site {} of trust domain {trust_domain} is in {}\n  root {root_fingerprint}\n  {nodes} machines, \
             {links} links, {revision} records\nIt holds the keys of the CA: keep it as you keep those.\n",
            paint.bold(site),
            self.file.display(),
        )
    }
}

#[derive(Debug, Serialize)]
struct Restored {
    state: PathBuf,
    #[serde(flatten)]
    contents: Contents,
}

impl Show for Restored {
    fn text(&self, _wide: bool, paint: Paint) -> String {
        let Contents { site, trust_domain, root_fingerprint, nodes, links, .. } = &self.contents;
        let age = Duration::from_secs(time::now_unix_s().abs_diff(self.contents.made_unix_s));
        format!(
            "Site {} of trust domain {trust_domain} is restored in {}, as it was {} ago\n  root {root_fingerprint}\n  \
             {nodes} machines, {links} links\nWhat happened since is not known. Before it is started:\n  - the \
             federation it is a copy of must never run again\nAfterwards:\n  - revoke anew what was revoked \
             since: meshctl identity revoke <id>\n  - tokens that were open are void: meshctl token create\n  - \
             machines that joined since must join again; \
             revoke those that left since\nStart \
             it:\n  systemctl start isthmus-federation\n",
            paint.bold(site),
            self.state.display(),
            time::short(age),
        )
    }
}
