//! `edge-proxy`: parses, builds, waits, exits.

use std::{process::ExitCode, time::Duration};

use edge_proxy::{
    app, await_ready,
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
    if let Some(patience) = flags.await_ready {
        return await_proxy(&flags, patience.into());
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

fn await_proxy(flags: &Flags, patience: Duration) -> ExitCode {
    let waited = match Config::load(flags) {
        Ok(Config { admin: Some(admin), .. }) => await_ready::await_ready(admin, patience),
        Ok(_) => Err("it has no `admin` listener to ask".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let Err(problem) = waited else { return ExitCode::SUCCESS };
    eprintln!("edge-proxy: {problem}");
    ExitCode::from(process::EXIT_FAILURE)
}
