//! Programs as child processes: started, watched, killed.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

/// What anything here may take on a busy machine with debug builds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// The programs lie beside the directory of the test executables
/// (`<target>/<profile>/deps/hostile-…`).
pub(crate) fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.parent().and_then(Path::parent).expect("<target>/<profile>/deps/<test>");
    let path = profile.join(name);
    let missing = "is missing: run `cargo build --workspace --bins` first";
    assert!(path.is_file(), "{} {missing}", path.display());
    path
}

/// Waits until `attempt` succeeds; panics with its last error.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(error) if Instant::now() > end => {
                panic!("{what}: not within {PATIENCE:?}: {error}")
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// Waits until a file holds a text: what was told is on its disk.
pub(crate) fn holds(path: &Path, text: &str) {
    eventually(&format!("{} holds {text}", path.display()), || {
        let bytes = fs::read(path).map_err(|error| error.to_string())?;
        let found = bytes.windows(text.len()).any(|window| window == text.as_bytes());
        found.then_some(()).ok_or_else(|| format!("not in {} bytes", bytes.len()))
    });
}

/// A running program; killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// `command` with stdout and stderr appended to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        Self { child: command.spawn().unwrap(), log: log.to_owned() }
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &pid]).status().unwrap().success());
    }

    /// Waits for the process that has taken over, which ends with this one.
    pub(crate) fn successor(&self) -> String {
        eventually("a successor takes over", || self.successors().pop().ok_or_else(|| self.log()))
    }

    /// Has the process that serves now replaced, and waits for the one that is then.
    pub(crate) fn replace(&self) -> String {
        let before = self.successors();
        let pid = before.last().cloned().unwrap_or_else(|| self.child.id().to_string());
        assert!(Command::new("kill").args(["-s", "HUP", &pid]).status().unwrap().success());
        eventually("a successor takes over", || {
            if self.successors().len() > before.len() { Ok(()) } else { Err(self.log()) }
        });
        self.successor()
    }

    fn successors(&self) -> Vec<String> {
        let log = self.log();
        let named = log.split("a successor has taken over successor=").skip(1);
        named.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect()).collect()
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        eventually("the program ends", || self.ended().ok_or_else(|| "it runs".to_owned()))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in &self.successors() {
            let _ = Command::new("kill").args(["-s", "KILL", pid]).status();
        }
    }
}

/// Runs a program that must end by itself: its exit code and what it said.
pub(crate) fn outcome(command: &mut Command) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start(command, &dir.path().join("said"));
    let end = Instant::now() + PATIENCE;
    while daemon.ended().is_none() {
        assert!(Instant::now() < end, "{command:?} goes on: {}", daemon.log());
        std::thread::sleep(POLL);
    }
    (daemon.wait().code().unwrap_or(-1), daemon.log())
}

/// The text of a command that must succeed.
pub(crate) fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let shown = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{shown}");
    text(&output.stdout)
}
