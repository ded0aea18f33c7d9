//! Writes man pages and shell completions of the four programs, from the very
//! command lines that they parse: `isthmus-pages DIR`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).context("say where to: isthmus-pages DIR")?;
    let dir = PathBuf::from(dir);
    let programs = [
        (meshctl::cli::Cli::command(), "1"),
        (edge_proxy::config::Flags::command(), "8"),
        (vm_agent::config::Flags::command(), "8"),
        (federation::cli::Cli::command(), "8"),
    ];
    for (mut program, section) in programs {
        write_completions(&mut program, &dir.join("completions"))?;
        program.build();
        write_pages(&program, section, &dir.join("man"))?;
    }
    Ok(())
}

fn write_completions(program: &mut Command, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let name = program.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, program, &name, dir)?;
    }
    Ok(())
}

/// One page for the program, one for each of its commands.
fn write_pages(command: &Command, section: &str, dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    let shown = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let page = Man::new(command.clone()).title(name.to_uppercase()).section(section);
    let mut text = Vec::new();
    page.manual("Isthmus").date("").source("Isthmus").render(&mut text)?;
    fs::write(dir.join(format!("{name}.{section}")), text)?;
    for below in command.get_subcommands().filter(shown) {
        write_pages(below, section, dir)?;
    }
    Ok(())
}
