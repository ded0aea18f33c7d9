//! `vm-agent`: parses, builds, waits, exits.

use std::{process::ExitCode, sync::Arc};

use clap::Parser;
use mesh_runtime::{changes, drain::Drain, process};
use mesh_tunnel::RealNet;
use vm_agent::{
    app::App,
    capture,
    config::{Command, Config, Flags},
    dns, exec, migrate,
};

fn main() -> ExitCode {
    let mut flags = Flags::parse();
    process::start("info");
    match flags.command.take() {
        Some(Command::Capture(flags)) => {
            return ended(block_on(capture::run(flags, Arc::new(RealNet))));
        }
        Some(Command::Dns(flags)) => return ended(block_on(dns::run(flags, Arc::new(RealNet)))),
        Some(Command::Migrate(flags)) => {
            return ended(block_on(migrate::run(flags, Arc::new(RealNet))));
        }
        Some(Command::CheckExec(flags)) => return ended(block_on(exec::run(flags))),
        None => {}
    }
    let config = match Config::load(&flags) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("vm-agent: {error}");
            return ExitCode::from(error.exit_code());
        }
    };
    ended(block_on(run(config)))
}

fn block_on(whole: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    process::current_thread()?.block_on(whole)
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
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
    let agent = app.agent.clone();
    drain.spawn_beside(async move { changes::follow(&agent.config.services, &agent.look).await });
    process::until_terminated(&drain).await?;
    app.stop().await;
    log::info!("stopped");
    Ok(())
}
