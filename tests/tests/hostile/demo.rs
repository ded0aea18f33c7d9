//! The demo beside another one, and ended by Ctrl-C.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::programs::{Daemon, eventually, program};

/// A directory for temporary files whose path is short enough for sockets.
fn temp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("d").tempdir_in("/tmp").unwrap()
}

fn demo(temp: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("meshctl"));
    command.arg("demo").args(args).env("TMPDIR", temp).stdin(Stdio::null());
    command
}

/// Command lines of processes that name `dir`.
fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&dir))
        .collect()
}

fn nothing_left(temp: &Path) -> Result<(), String> {
    let files = std::fs::read_dir(temp).unwrap().count();
    match (processes_in(temp), files) {
        (processes, 0) if processes.is_empty() => Ok(()),
        left => Err(format!("left: {left:?}")),
    }
}

#[test]
fn two_demos_at_once_do_not_meet() {
    let temps = [temp(), temp()];
    let running = temps.each_ref().map(|temp| {
        // Its phases need this long on two busy cores.
        let mut command = demo(temp.path(), &["--duration", "20s", "--json"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for child in running {
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{report}\n{told}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ok"], true, "{report:#}");
    }
    for temp in &temps {
        nothing_left(temp.path()).unwrap();
    }
}

#[test]
fn ctrl_c_ends_a_demo_and_all_that_it_started() {
    // At once, while it starts, between start and show, and in the show.
    for (processes, line) in
        [(1, ""), (5, ""), (11, ""), (11, "every flow answers"), (11, "Requests run")]
    {
        let (temp, logs) = (temp(), temp());
        let log = logs.path().join("log");
        let mut running = Daemon::start(&mut demo(temp.path(), &[]), &log);
        eventually("the demo gets so far", || match processes_in(temp.path()).len() {
            enough if enough >= processes && running.log().contains(line) => Ok(()),
            few => Err(format!("{few} processes: {}", running.log())),
        });
        running.signal("INT");
        let status = running.wait();
        let told = running.log();
        assert!(!told.contains("panic"), "{told}");
        eventually("everything ends", || nothing_left(temp.path()));
        println!("{processes} processes {line:?}: {status}");
    }
}
