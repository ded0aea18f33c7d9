//! `edge-proxy`: parses, builds, waits, exits.

use std::process::ExitCode;

use edge_proxy::{
    app,
    config::{Config, Flags},
    handover,
};
use mesh_runtime::{config::ConfigError, process};

fn main() -> ExitCode {
    let flags = Flags::of_process();
    if let Some(schema) = flags.print_schema {
        print!("{}", schema.text());
        return ExitCode::SUCCESS;
    }
    process::start("info");
    if let Err(error) = handover::relay() {
        log::error!(error:% = error; "cannot start the successor");
        return ExitCode::from(process::EXIT_FAILURE);
    }
    let result = Config::load(&flags).map_err(anyhow::Error::from).and_then(app::run);
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("edge-proxy: {}", process::told(error.as_ref()));
    match error.downcast_ref::<ConfigError>() {
        Some(error) => ExitCode::from(error.exit_code()),
        None => ExitCode::from(process::EXIT_FAILURE),
    }
}
