//! `federation`: the control plane of a site.

use std::{net::IpAddr, process::ExitCode};

use clap::Parser;
use federation::{
    app,
    backup::{self, BackupError, Contents},
    ca::{CertificateAuthority, fingerprint},
    cli::{Backup, Cli, Command, Init, InitRoot, Restore},
    clock::Clock,
    config::{Config, ConfigFile},
    init::{InitError, init_site},
};
use mesh_runtime::{
    config::ConfigError,
    process::{self, EXIT_CONFIG, EXIT_FAILURE},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    process::start("info");
    match cli.command {
        Some(Command::Init(init)) => make(init),
        Some(Command::InitRoot(root)) => make_root(&root),
        Some(Command::Backup(backup)) => told(&back_up(&backup), backup.file.as_os_str() == "-"),
        Some(Command::Restore(restore)) => told(&self::restore(&restore), false),
        None => serve(&cli.config, cli.address),
    }
}

fn serve(path: &std::path::Path, address: Option<IpAddr>) -> ExitCode {
    let mut config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => return fail(EXIT_CONFIG, &error),
    };
    if let Some(ip) = address {
        config.address = (ip, config.listen.port()).into();
    }
    let runtime = match process::current_thread() {
        Ok(runtime) => runtime,
        Err(error) => return fail(EXIT_FAILURE, &error),
    };
    match runtime.block_on(app::run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<ConfigError>() => fail(EXIT_CONFIG, &error),
        Err(error) => fail(EXIT_FAILURE, &process::told(error.as_ref())),
    }
}

fn make(init: Init) -> ExitCode {
    let written = ConfigFile {
        state: init.state,
        gateways: init.gateway,
        ..ConfigFile::new(init.site, init.trust_domain)
    };
    let root = init.root.as_deref();
    match init_site(&written, init.config_out.as_deref(), root, &Clock::system()) {
        Ok(made) => {
            println!("{}", made.root_fingerprint);
            ExitCode::SUCCESS
        }
        Err(InitError::Exists(_)) if init.if_absent => ExitCode::SUCCESS,
        Err(error) => fail(error.exit_code(), &error),
    }
}

fn make_root(wanted: &InitRoot) -> ExitCode {
    let domain = match wanted.trust_domain.parse() {
        Ok(domain) => domain,
        Err(error) => return fail(EXIT_CONFIG, &format!("--trust-domain: {error}")),
    };
    match CertificateAuthority::create_root(&wanted.out, &domain, &Clock::system()) {
        Ok(root) => {
            println!("{}", fingerprint(&root));
            ExitCode::SUCCESS
        }
        Err(error) => fail(EXIT_FAILURE, &error),
    }
}

fn back_up(to: &Backup) -> Result<Contents, BackupError> {
    let (archive, contents) = backup::back_up(&to.state, &Clock::system())?;
    backup::store(&to.file, &archive)?;
    Ok(contents)
}

fn restore(from: &Restore) -> Result<Contents, BackupError> {
    let archive = backup::load(&from.file)?;
    backup::restore(&from.file, &archive, &from.state, &Clock::system())
}

fn told(outcome: &Result<Contents, BackupError>, aside: bool) -> ExitCode {
    match outcome {
        Ok(contents) => {
            let told = serde_json::to_string(contents).expect("it is plain data");
            if aside {
                eprintln!("{told}")
            } else {
                println!("{told}")
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(error.exit_code(), error),
    }
}

fn fail(code: u8, error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("federation: {error}");
    ExitCode::from(code)
}
