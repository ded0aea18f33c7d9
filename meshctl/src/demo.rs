//! `meshctl demo`: a whole mesh on this machine.

mod apps;
mod blackhole;
mod child;
mod client;
mod load;
mod meter;
mod room;

use std::time::Duration;

use clap::{Args, Subcommand};

use crate::{failure::Failure, output::Format, time};

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Exits 0 only if every request succeeded over mTLS.

Examples:
  meshctl demo
  meshctl demo --duration 20s
  meshctl demo --duration 20s --json | jq '.flows[] | {name, path, transport, p99_ms}'
  meshctl demo --duration 20s --block-udp      (the link falls back to TLS over TCP)")]
pub struct Demo {
    /// End by itself after this long [default: until Ctrl-C]
    #[arg(long, value_parser = time::parse_duration)]
    duration: Option<Duration>,
    /// Advertise UDP addresses that swallow everything; the proxies are not told
    #[arg(long)]
    block_udp: bool,
    /// Leave the directory with logs and configurations
    #[arg(long)]
    keep_logs: bool,
}

/// The processes of the demo that are this same program.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// An application
    App(apps::App),
    /// Becomes another program that dies with the demo
    Exec(child::Exec),
    /// Removes the directory when the demo is gone
    Sweep(child::Sweep),
}

impl Part {
    /// Does it.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Part::App(app) => app.run().await,
            Part::Exec(exec) => exec.run(),
            Part::Sweep(sweep) => sweep.run(),
        }
    }
}

impl Demo {
    /// Runs it.
    pub async fn run(self, _format: Format) -> Result<(), Failure> {
        Err(Failure::new("demo: its processes are not there yet"))
    }
}
