//! `isthmus-k8s`: parses, builds, waits, exits.

use std::process::ExitCode;

use clap::Parser;
use isthmus_k8s::{
    check,
    cli::{Cli, Role},
    controller, root, sweep,
};
use mesh_runtime::{
    config::ConfigError,
    process::{self, EXIT_CONFIG, EXIT_FAILURE},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    match cli.role {
        Role::Controller(options) => ended(block_on(controller::run(options))),
        Role::Injector(injector) => ended(block_on(injector.run())),
        Role::KeepRoot(options) => ended(block_on(root::keep(options))),
        Role::Sweep(options) => ended(block_on(sweep::sweep(options))),
        Role::Check(options) => ended(block_on(check::check(options))),
        Role::Redirect(redirect) => ended(redirect.run().map_err(Into::into)),
    }
}

fn block_on(whole: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    process::current_thread()?.block_on(whole)
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("isthmus-k8s: {}", process::told(error.as_ref()));
    ExitCode::from(if error.is::<ConfigError>() { EXIT_CONFIG } else { EXIT_FAILURE })
}
