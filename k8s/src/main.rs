//! `isthmus-k8s`: injector, controller and init container.

use std::process::ExitCode;

use clap::Parser;
use isthmus_k8s::{
    cli::{Cli, Role},
    controller,
};
use mesh_runtime::process::{self, EXIT_FAILURE};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    let runtime = match process::current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let ended = match cli.role {
        Role::Controller(options) => runtime.block_on(controller::run(options)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&process::told(error.as_ref())),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("isthmus-k8s: {error}");
    ExitCode::from(EXIT_FAILURE)
}
