//! The command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::config::GatewayFile;

/// The control plane of one Isthmus site: identity CA, registry, discovery,
/// links.
#[derive(Debug, Parser)]
#[command(
    name = "federation",
    version,
    about,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  federation --config /etc/isthmus/federation.yaml
  federation init --site west --trust-domain west.example --state ./state --config-out ./federation.yaml \\
      --gateway id=gw1,quic=gw.west.example:8443,tls=gw.west.example:8443

Exit codes: 0 ended as asked, 1 failed, 78 the configuration is wrong (it says where)."
)]
pub struct Cli {
    /// What to do; nothing: to be the control plane.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Configuration file
    #[arg(long, default_value = "/etc/isthmus/federation.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Where gateways on other hosts reach us, instead of `address` in the file; the port is
    /// that of `listen`
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a site: its CA and its log; `meshctl site init` does this and more
    Init(Init),
    /// Make a root alone, to be kept elsewhere; `init --root` takes it
    InitRoot(InitRoot),
    /// Write everything that makes the site into one file; `meshctl site backup`
    Backup(Backup),
    /// Make the site of a backup again; `meshctl site restore`
    Restore(Restore),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Federation may run meanwhile. The file holds the keys of the CA. What is in it is told as \
JSON, on standard error if the backup goes to standard output.

Examples:
  federation backup west.backup
  federation backup - | age -r age1... > west.backup.age"
)]
pub struct Backup {
    /// Where to; `-` is standard output
    pub file: PathBuf,
    /// Where the CA keys and the authority log live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    pub state: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Nothing that exists is overwritten. What was restored is told as JSON.

Examples:
  federation restore west.backup
  age -d west.backup.age | federation restore -")]
pub struct Restore {
    /// What `backup` has written; `-` is standard input
    pub file: PathBuf,
    /// Where the CA keys and the authority log will live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    pub state: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Prints the fingerprint of the root. Nothing that exists is overwritten.

Examples:
  federation init --site west --trust-domain west.example --state /var/lib/isthmus/federation
  federation init --site lab --trust-domain lab.example --state ./state --config-out ./federation.yaml \\
      --gateway id=gw1,quic=127.0.0.1:8443,tls=127.0.0.1:8443")]
pub struct Init {
    /// Name of the site, one label
    #[arg(long)]
    pub site: String,
    /// SPIFFE trust domain of the site; cannot be changed later
    #[arg(long)]
    pub trust_domain: String,
    /// Where the CA keys and the authority log will live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    pub state: PathBuf,
    /// Also write a configuration file
    #[arg(long, value_name = "FILE")]
    pub config_out: Option<PathBuf>,
    /// Take the root in this directory (`root.key`, `root.crt`) instead of a new one
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// A site that is there already is no mistake
    #[arg(long)]
    pub if_absent: bool,
    /// A gateway for that file: id=ID,tls=HOST:PORT[,quic=HOST:PORT]; may be repeated
    #[arg(long, value_name = "GATEWAY", value_parser = parse_gateway)]
    pub gateway: Vec<GatewayFile>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Writes root.key and root.crt and prints the fingerprint. Nothing that exists is overwritten.

Examples:
  federation init-root --trust-domain east.example --out /keys
  federation init --site east --trust-domain east.example --root /keys"
)]
pub struct InitRoot {
    /// SPIFFE trust domain of the site
    #[arg(long)]
    pub trust_domain: String,
    /// Where to; the directory exists
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `id=gw1,quic=host:port,tls=host:port`; `quic` and `tls` may be repeated.
fn parse_gateway(text: &str) -> Result<GatewayFile, String> {
    let mut gateway = GatewayFile { id: String::new(), quic: Vec::new(), tls: Vec::new() };
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("id", id)) => gateway.id = id.to_owned(),
            Some(("quic", address)) => gateway.quic.push(address.to_owned()),
            Some(("tls", address)) => gateway.tls.push(address.to_owned()),
            _ => return Err(format!("{part:?} is none of id=, quic=, tls=")),
        }
    }
    Ok(gateway)
}
