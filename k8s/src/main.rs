//! `isthmus-k8s`: parses, builds, waits, exits.

use std::process::ExitCode;

use clap::Parser;
use isthmus_k8s::{
    check,
    cli::{Cli, Role},
    controller, root, sweep,
};
use mesh_runtime::process::{self, EXIT_FAILURE};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    match cli.role {
        Role::Redirect(redirect) => match redirect.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EXIT_FAILURE, &error),
        },
        Role::Controller(options) => serve(controller::run(options)),
        Role::KeepRoot(options) => serve(root::keep(options)),
        Role::Sweep(options) => serve(sweep::sweep(options)),
        Role::Check(options) => serve(check::check(options)),
    }
}

fn serve(role: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = match process::current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_FAILURE, &error),
    };
    match runtime.block_on(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(EXIT_FAILURE, &process::told(error.as_ref())),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("isthmus-k8s: {error}");
    ExitCode::from(code)
}
