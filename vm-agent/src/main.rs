//! `vm-agent`: parses, builds, waits, exits.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use mesh_runtime::{drain::Drain, process};
use mesh_tunnel::RealNet;
use vm_agent::{
    app::App,
    config::{Config, Flags},
};

fn main() -> ExitCode {
    let flags = Flags::parse();
    process::start("info");
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("vm-agent: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    match process::current_thread()
        .map_err(anyhow::Error::from)
        .and_then(|rt| rt.block_on(run(config)))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm-agent: {}", process::told(error.as_ref()));
            ExitCode::from(process::EXIT_FAILURE)
        }
    }
}

async fn run(config: Config) -> anyhow::Result<()> {
    let drain = Drain::new();
    let app = App::start(config, Arc::new(RealNet), drain.clone()).await?;
    log::info!(version = env!("CARGO_PKG_VERSION"), run:% = app.agent.config.run.display(); "started");
    process::until_terminated(&drain).await?;
    app.stop().await;
    log::info!("stopped");
    Ok(())
}
