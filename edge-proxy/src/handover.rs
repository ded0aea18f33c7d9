//! A proxy is replaced by its successor, the same program started anew, without
//! a refused or a broken connection: for a new version, or a changed
//! configuration.
//!
//! On SIGHUP or SIGUSR2 a process starts its successor with the arguments that
//! it was started with itself, and leaves it its listening sockets: the very
//! sockets, so what waits in their queues is lost to nobody. The successor
//! reads its configuration, waits until it is ready, and accepts from then on.
//! Its predecessor accepts no more, asks clients and neighbours to come anew
//! (`Connection: close`, GOAWAY, `Drain`), and serves what it has until that
//! ends or `handover_timeout` has passed. A successor that does not become
//! ready changes nothing.
//!
//! A process that is stopped and then started again leaves its sockets with the
//! service manager ([`Sockets::keep`]), where connections wait for the next.

mod heir;
mod letter;
mod sockets;

use std::{
    env, io,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use mesh_runtime::{
    drain::Drain,
    systemd::{self, State},
};
use rustix::process::{Pid, Signal as ProcessSignal, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::letter::Letter;
pub use self::{
    heir::HeirNet,
    letter::Said,
    sockets::{Kind, Sockets, Wanted},
};

/// Set for a successor: where the socket to its predecessor is.
const PREDECESSOR: &str = "ISTHMUS_PREDECESSOR";
/// The value of [`PREDECESSOR`] for a successor.
const STDIN: &str = "stdin";
/// The value of [`PREDECESSOR`] for who starts it.
const RELAY: &str = "relay";
/// How long a successor may take until it is ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a process waits for what its predecessor has already sent.
const LETTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a new version of this program is found. Asked first at the start: an
/// upgrade replaces the file, and `/proc` then names the old one.
pub fn program() -> &'static io::Result<PathBuf> {
    static PROGRAM: OnceLock<io::Result<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(env::current_exe)
}

/// Why no successor has taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// This program cannot be started again.
    #[error("cannot start the successor: {0}")]
    Start(#[source] io::Error),
    /// It has ended, or said nothing in time.
    #[error("the successor {0}; its own log says why")]
    Failed(String),
}

/// The process before this one, which serves until it is told.
#[derive(Debug)]
pub struct Predecessor(Letter);

impl Predecessor {
    /// What a predecessor has left for this process, or with the service
    /// manager; nothing if somebody else started it.
    ///
    /// # Errors
    ///
    /// There is said to be one, and it does not talk.
    pub fn of_process() -> io::Result<(Sockets, Option<Self>)> {
        let _known = program();
        if env::var_os(PREDECESSOR).is_none_or(|value| value != STDIN) {
            return Ok((Sockets::kept(systemd::stored()), None));
        }
        let letter = Letter::of_stdin()?;
        letter.patience(LETTER_TIMEOUT)?;
        Ok((letter.read_sockets()?, Some(Self(letter))))
    }

    /// This process serves from now on.
    ///
    /// # Errors
    ///
    /// The predecessor is gone.
    pub fn tell_ready(&self) -> io::Result<()> {
        self.0.write_ready()
    }

    /// Waits until it has told the service manager who follows, which hears
    /// this process from then on. Blocks.
    pub fn until_it_has_left(self) {
        // Nothing is said any more: the other end is closed, or late.
        let _ended = self.0.read_ready();
    }
}

/// What asks for a successor.
#[derive(Debug)]
pub struct Requests {
    hangup: Signal,
    user: Signal,
}

impl Requests {
    /// Both signals no longer end the process from here on.
    ///
    /// # Errors
    ///
    /// The signals cannot be taken.
    pub fn listen() -> io::Result<Self> {
        let user = SignalKind::user_defined2();
        Ok(Self { hangup: signal(SignalKind::hangup())?, user: signal(user)? })
    }

    /// Returns when a successor has taken over and this process's connections
    /// have ended, or have had `patience`.
    pub async fn until_replaced(mut self, sockets: &Sockets, drain: &Drain, patience: Duration) {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {}
                _ = self.user.recv() => {}
            }
            log::info!("starting a successor");
            systemd::notify(&State::Reloading);
            let giving = sockets.clone();
            let replaced = tokio::task::spawn_blocking(move || replace(&giving)).await;
            match replaced.unwrap_or_else(|panic| Err(HandoverError::Failed(panic.to_string()))) {
                Ok((pid, letter)) => {
                    sockets.leave();
                    drain.leave();
                    systemd::notify(&State::MainPid(pid));
                    systemd::notify(&State::Ready);
                    drop(letter);
                    log::info!(successor = pid; "a successor has taken over");
                    break;
                }
                Err(error) => {
                    systemd::notify(&State::Ready);
                    log::error!(error:% = error; "this process goes on: no successor");
                }
            }
        }
        let left = tokio::time::timeout(patience, drain.left()).await;
        if left.is_err() {
            log::info!("connections are left after handover_timeout; they end as on SIGTERM");
        }
    }
}

/// Starts the successor and returns its process id once it serves. It hears
/// when the letter is dropped.
fn replace(sockets: &Sockets) -> Result<(u32, Letter), HandoverError> {
    let (letter, theirs) = Letter::pair().map_err(HandoverError::Start)?;
    letter.patience(START_TIMEOUT).map_err(HandoverError::Start)?;
    let relay = start(RELAY, theirs.into()).and_then(|mut relay| relay.wait());
    let pid = relay.and_then(|_| letter.read_pid()).map_err(HandoverError::Start)?;
    let told = || {
        letter.write_sockets(sockets.generation(), &sockets.give()?)?;
        letter.read_ready()
    };
    match told() {
        Ok(()) => Ok((pid, letter)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // It fails only for one that has ended meanwhile.
            let _ = pid.map(|pid| kill_process(pid, ProcessSignal::KILL));
            Err(HandoverError::Failed("was not ready in time and was ended".into()))
        }
        Err(error) => Err(HandoverError::Failed(format!("has ended ({error})"))),
    }
}

/// Between a process and its successor stands one that only starts the latter
/// and ends, so that the successor is nobody's child but the service manager's,
/// which sees it end.
///
/// # Errors
///
/// This process is such a one, and cannot start the successor.
pub fn relay() -> io::Result<()> {
    if env::var_os(PREDECESSOR).is_none_or(|value| value != RELAY) {
        return Ok(());
    }
    let letter = Letter::of_stdin()?;
    let successor = start(STDIN, Stdio::inherit())?;
    letter.write_pid(successor.id())?;
    std::process::exit(0)
}

fn start(role: &str, stdin: Stdio) -> io::Result<Child> {
    let program =
        program().as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()))?;
    Command::new(program)
        .args(env::args_os().skip(1))
        .stdin(stdin)
        .env(PREDECESSOR, role)
        // The watchdog asks whoever is the service's main process.
        .env_remove("WATCHDOG_PID")
        // What was given to this process is not given to the next.
        .env_remove("LISTEN_PID")
        .spawn()
}
