use std::process::ExitCode;

use clap::Parser;
use meshctl::{cli::Cli, output::Paint};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: whoever spawns a child of the demo must outlive it, and a
    // hundred requests a second need no more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(cli.run())),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}: {failure}", Paint::stderr().bad("meshctl"));
            ExitCode::from(failure.exit as u8)
        }
    }
}
