//! `isthmus-k8s`: parses, builds, waits, exits.

use std::process::ExitCode;

use clap::Parser;
use isthmus_k8s::cli::{Cli, Role};
use mesh_runtime::process::{self, EXIT_FAILURE};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    match cli.role {
        Role::Redirect(redirect) => match redirect.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EXIT_FAILURE, &error),
        },
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("isthmus-k8s: {error}");
    ExitCode::from(code)
}
