//! `federation`: the control plane of a site.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use federation::{
    app,
    clock::Clock,
    config::{Config, ConfigFile, GatewayFile},
    init::init_site,
};
use mesh_runtime::{
    config::ConfigError,
    process::{self, EXIT_CONFIG, EXIT_FAILURE},
};

/// The control plane of one Isthmus site: identity CA, registry, discovery,
/// links.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  federation --config /etc/isthmus/federation.yaml
  federation init --site west --trust-domain west.example --state ./state --config-out ./federation.yaml \\
      --gateway id=gw1,quic=gw.west.example:8443,tls=gw.west.example:8443

Exit codes: 0 ended as asked, 1 failed, 78 the configuration is wrong (it says where)."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Configuration file
    #[arg(long, default_value = "/etc/isthmus/federation.yaml", value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a site: its CA and its log; `meshctl site init` does this and more
    Init(Init),
}

#[derive(Debug, Args)]
#[command(after_help = "Prints the fingerprint of the root. Nothing that exists is overwritten.

Examples:
  federation init --site west --trust-domain west.example --state /var/lib/isthmus/federation
  federation init --site lab --trust-domain lab.example --state ./state --config-out ./federation.yaml \\
      --gateway id=gw1,quic=127.0.0.1:8443,tls=127.0.0.1:8443")]
struct Init {
    /// Name of the site, one label
    #[arg(long)]
    site: String,
    /// SPIFFE trust domain of the site; cannot be changed later
    #[arg(long)]
    trust_domain: String,
    /// Where the CA keys and the authority log will live
    #[arg(long, default_value = "/var/lib/isthmus/federation", value_name = "DIR")]
    state: PathBuf,
    /// Also write a configuration file
    #[arg(long, value_name = "FILE")]
    config_out: Option<PathBuf>,
    /// A gateway for that file: id=ID,tls=HOST:PORT[,quic=HOST:PORT]; may be repeated
    #[arg(long, value_name = "GATEWAY", value_parser = parse_gateway)]
    gateway: Vec<GatewayFile>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    match cli.command {
        Some(Command::Init(init)) => make(init),
        None => serve(&cli.config),
    }
}

fn serve(path: &std::path::Path) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    let runtime = match process::current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_FAILURE, &error),
    };
    match runtime.block_on(app::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => fail(EXIT_CONFIG, &error),
        Err(error) => fail(EXIT_FAILURE, &process::told(error.as_ref())),
    }
}

fn make(init: Init) -> ExitCode {
    let written = ConfigFile {
        state: init.state,
        gateways: init.gateway,
        ..ConfigFile::new(init.site, init.trust_domain)
    };
    match init_site(&written, init.config_out.as_deref(), &Clock::system()) {
        Ok(made) => {
            println!("{}", made.root_fingerprint);
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.exit_code(), &error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("federation: {error}");
    ExitCode::from(code)
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
