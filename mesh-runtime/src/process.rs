//! The frame of a process: exit codes, runtime, panics, Unix sockets.

use std::{io, os::unix::fs::PermissionsExt, panic::PanicHookInfo, path::Path, time::Duration};

use rustix::process::{Resource, Rlimit};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
};

use crate::{
    drain::{Drain, terminated},
    memory,
    systemd::{self, State},
};

/// Something failed that is not the configuration.
pub const EXIT_FAILURE: u8 = 1;
/// `EX_CONFIG` of `sysexits.h`.
pub const EXIT_CONFIG: u8 = 78;

/// Logs to journald or stderr, makes every panic a log line, and raises the
/// limit on open files; first thing in `main`.
pub fn start(default_filter: &str) {
    if let Err(error) = crate::logs::init(default_filter) {
        log::debug!(error = error.to_string().as_str(); "logging was set up before");
    }
    std::panic::set_hook(Box::new(log_panic));
    raise_descriptors();
}

/// Lets this process have as many open files as it may: shells and service
/// managers begin with 1024, for programs that use `select(2)`. [`start`] does
/// this.
pub fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        log::warn!(error:% = error, limit:? = limit.current; "cannot raise the limit on open files");
    }
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let payload = info.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let trace = std::backtrace::Backtrace::capture();
    log::error!(
        place = place.as_str(), thread = thread.as_str(), backtrace:% = trace;
        "panic: {message}"
    );
}

/// An error with those of its causes that it does not tell itself.
pub fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// A runtime for the control side, or for one worker. From the first on, a
/// write beyond a limit on file sizes is an error (`EFBIG`, `setrlimit(2)`).
pub fn current_thread() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    // Its signal would end the process; what tokio installs stays.
    drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
    drop(entered);
    Ok(runtime)
}

/// Tells systemd that we are ready, gives back the memory of the start and of
/// work that has ended, pings the watchdog, waits for SIGTERM or SIGINT (or for
/// somebody else to start the drain), and tells systemd that we are stopping.
/// The caller then finishes the drain.
pub async fn until_terminated(drain: &Drain) -> io::Result<()> {
    until_terminated_if_alive(drain, || true).await
}

/// The same for a process of several threads: the watchdog hears of it while
/// `is_alive` says so.
pub async fn until_terminated_if_alive(
    drain: &Drain,
    is_alive: impl Fn() -> bool,
) -> io::Result<()> {
    systemd::notify(&State::Ready);
    if let Err(error) = memory::release_program() {
        log::debug!(error:% = error; "the pages of the start are kept");
    }
    tokio::select! {
        result = terminated() => result?,
        () = drain.draining() => {}
        () = watchdog(drain, is_alive) => {}
        never = memory::release_when_quiet() => match never {},
    }
    systemd::notify(&State::Stopping);
    Ok(())
}

/// Ends with nothing but the process: systemd asks whoever is the main one.
async fn watchdog(drain: &Drain, is_alive: impl Fn() -> bool) {
    let Some(interval) = systemd::watchdog_interval() else {
        return std::future::pending().await;
    };
    while !drain.is_closing() {
        if is_alive() {
            systemd::notify(&State::Watchdog);
        } else {
            log::error!("a thread does not run any more; systemd is not told that all is well");
        }
        tokio::time::sleep(interval).await;
    }
    std::future::pending().await
}

/// How long a socket file's owner has to accept before it counts as alive.
const PROBE: Duration = Duration::from_secs(1);

/// Listens on a Unix socket with these permission bits. Creates the directory
/// (0755); removes a socket file on which nobody listens.
///
/// # Errors
///
/// Somebody else listens there (`AddrInUse`), or something that is not a
/// socket is in the way; the text names the path and the remedy.
pub async fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let named = |doing: &str, error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {doing}: {error}", path.display()))
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|error| named("cannot create directory", error))?;
    }
    remove_stale(path).await.map_err(|error| named("cannot listen", error))?;
    let listener = UnixListener::bind(path).map_err(|error| named("cannot listen", error))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| named("cannot set permissions", error))?;
    Ok(listener)
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let file_type = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !file_type.is_socket() {
        let problem = "something that is not a socket is in the way; move it";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, problem));
    }
    match tokio::time::timeout(PROBE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) | Err(_) => {
            let problem = "another process listens there; stop it, or choose another path";
            Err(io::Error::new(io::ErrorKind::AddrInUse, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block_on<T>(test: impl Future<Output = T>) -> T {
        current_thread().unwrap().block_on(test)
    }

    #[test]
    fn binds_with_its_mode_and_directory() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("run/agent.sock");
            for mode in [0o600, 0o666] {
                let listener = bind_unix(&path, mode).await.unwrap();
                let bits = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
                assert_eq!(bits, mode);
                UnixStream::connect(&path).await.unwrap();
                // The file stays behind, as after a kill; the next round takes it over.
                drop(listener);
            }
        });
    }

    #[test]
    fn a_living_socket_is_not_taken() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("agent.sock");
            let _living = bind_unix(&path, 0o600).await.unwrap();
            let error = bind_unix(&path, 0o600).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains("agent.sock"), "{error}");
            UnixStream::connect(&path).await.unwrap();
        });
    }

    #[test]
    fn a_file_in_the_way_is_not_removed() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("agent.sock");
            std::fs::write(&path, "precious").unwrap();
            let error = bind_unix(&path, 0o600).await.unwrap_err();
            assert!(error.to_string().contains("not a socket"), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        });
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Outer {
            text: &'static str,
            source: io::Error,
        }
        let told = |text| told(&Outer { text, source: io::Error::other("disk full") });
        assert_eq!(told("state: disk full; make room"), "state: disk full; make room");
        assert_eq!(told("cannot keep state"), "cannot keep state: disk full");
    }

    #[test]
    fn a_started_drain_ends_the_wait() {
        block_on(async {
            let drain = Drain::new();
            drain.start();
            until_terminated(&drain).await.unwrap();
        });
    }
}
