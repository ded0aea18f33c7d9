//! Processes that never outlive the demo.
//!
//! Three safeguards: a [`Child`] kills its process group when dropped (also
//! while a panic unwinds); every process is started through [`Exec`], which
//! asks the kernel for SIGKILL when the demo's thread ends (also by SIGKILL);
//! and the [`Sweep`] process removes the directory when the demo is gone.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::Args;
use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal};
use tokio::process::Command;

use crate::failure::Failure;

/// How many lines of a log explain a failure.
const TAIL_LINES: usize = 12;
/// Time for files of killed processes to be closed before they are removed.
const SETTLE: Duration = Duration::from_millis(300);

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    /// E.g. `west/gateway`.
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Takes stdout and stderr.
    pub(crate) log: PathBuf,
}

/// A running process in a process group of its own.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: String,
    log: PathBuf,
    process: tokio::process::Child,
    group: Pid,
    ended: Option<ExitStatus>,
}

/// A command that dies with this process; stdio is the caller's to set.
pub(crate) fn command(program: &Path, args: &[OsString]) -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["demo-part", "exec", &std::process::id().to_string()]);
    command.arg("--").arg(program).args(args);
    command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

impl Child {
    pub(crate) fn start(spec: &Spec) -> Result<Self, Failure> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&spec.log)?;
        let mut command = command(&spec.program, &spec.args)?;
        let process = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| Failure::new(format!("{}: {error}", spec.program.display())))?;
        let group = process.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let group = group.ok_or_else(|| Failure::new(format!("{}: ended at once", spec.name)))?;
        Ok(Self { name: spec.name.clone(), log: spec.log.clone(), process, group, ended: None })
    }

    /// Sends a signal to the process and everything it has started.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // It may have ended in this moment; then there is nothing to tell.
            let _ = kill_process_group(self.group, signal);
        }
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Waits for its end, kills it at the deadline.
    pub(crate) async fn end_within(&mut self, deadline: Duration) {
        if self.ended().is_some() {
            return;
        }
        if let Ok(Ok(status)) = tokio::time::timeout(deadline, self.process.wait()).await {
            self.ended = Some(status);
            return;
        }
        self.signal(Signal::KILL);
        self.ended = self.process.wait().await.ok();
    }

    /// An error with the end of its log.
    pub(crate) fn failure(&self, problem: &str) -> Failure {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ");
        Failure::new(format!("{}: {problem}; its log ends:\n    {tail}", self.name))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Becomes another program that dies with the demo.
#[derive(Debug, Args)]
pub struct Exec {
    /// Process id of the demo
    parent: u32,
    /// Program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

impl Exec {
    /// Does not return if all is well. The death signal survives `execve`
    /// (prctl(2), PR_SET_PDEATHSIG).
    pub fn run(self) -> Result<(), Failure> {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|error| Failure::new(format!("prctl: {error}")))?;
        // The demo may have ended before the request was made.
        let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if parent != Some(self.parent) {
            return Err(Failure::new("the demo has ended"));
        }
        let Some((program, args)) = self.command.split_first() else {
            return Err(Failure::usage("no program"));
        };
        let error = std::process::Command::new(program).args(args).exec();
        Err(Failure::new(format!("{}: {error}", program.to_string_lossy())))
    }
}

/// Waits for the end of the demo, then removes its directory.
#[derive(Debug, Args)]
pub struct Sweep {
    /// The directory
    dir: PathBuf,
}

impl Sweep {
    /// Stdin is a pipe from the demo: its end is the demo's. One byte before
    /// it says that the directory stays.
    pub fn run(self) -> Result<(), Failure> {
        let mut word = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut word)?;
        if word.is_empty() {
            std::thread::sleep(SETTLE);
            if self.dir.exists() {
                fs::remove_dir_all(&self.dir)?;
            }
        }
        Ok(())
    }

    /// Starts the process; dropping what is returned lets it work.
    pub(crate) fn start(dir: &Path) -> Result<Sweeper, Failure> {
        let mut process = std::process::Command::new(std::env::current_exe()?)
            .args(["demo-part", "sweep"])
            .arg(dir)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let pipe = process.stdin.take();
        Ok(Sweeper { process, pipe })
    }
}

/// The running [`Sweep`].
#[derive(Debug)]
pub(crate) struct Sweeper {
    process: std::process::Child,
    pipe: Option<std::process::ChildStdin>,
}

impl Sweeper {
    /// The directory stays.
    pub(crate) fn spare(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            // If it has gone it cannot remove anything either.
            let _ = std::io::Write::write_all(&mut pipe, b"k");
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // It ends by itself within SETTLE; waiting leaves no zombie.
        let _ = self.process.wait();
    }
}
