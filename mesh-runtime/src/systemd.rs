//! Telling systemd how we are (`sd_notify(3)`); nothing happens elsewhere.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<'a> {
    /// Start-up is finished.
    Ready,
    /// The end has begun.
    Stopping,
    /// One line for `systemctl status`.
    Status(&'a str),
    /// Still alive.
    Watchdog,
    /// The process that is the service from now on.
    MainPid(u32),
}

impl State<'_> {
    fn message(&self) -> String {
        match self {
            Self::Ready => "READY=1".to_owned(),
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::Status(line) => format!("STATUS={}", line.replace(['\n', '\r'], " ")),
            Self::Watchdog => "WATCHDOG=1".to_owned(),
            Self::MainPid(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Tells systemd, if it started us and listens. Failing is only logged: no
/// process may end because nobody hears how it is.
pub fn notify(state: &State<'_>) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(socket.as_bytes(), state) {
        log::debug!(error = error.to_string().as_str(); "systemd was not told");
    }
}

/// A path, or an abstract name after `@`.
fn send(socket: &[u8], state: &State<'_>) -> io::Result<()> {
    let addr = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?,
    };
    let datagram = UnixDatagram::unbound()?;
    // A full socket must not hold up the mesh.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.message().as_bytes(), &addr)?;
    Ok(())
}

/// How often [`State::Watchdog`] is due: half of `WatchdogSec=`
/// (`sd_watchdog_enabled(3)`); `None` without one, or if it is another's.
pub fn watchdog_interval() -> Option<Duration> {
    let text = |name| env::var(name).ok();
    interval(text("WATCHDOG_USEC")?.as_str(), text("WATCHDOG_PID").as_deref(), std::process::id())
}

fn interval(usec: &str, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let usec: u64 = usec.parse().ok()?;
    (usec > 0).then(|| Duration::from_micros(usec) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_socket_by_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        let mut buffer = [0; 64];
        for (state, expected) in [
            (State::Ready, "READY=1"),
            (State::Stopping, "STOPPING=1"),
            (State::Watchdog, "WATCHDOG=1"),
            (State::MainPid(42), "MAINPID=42"),
            (State::Status("two\nlines"), "STATUS=two lines"),
        ] {
            send(path.as_os_str().as_bytes(), &state).unwrap();
            let n = systemd.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], expected.as_bytes());
        }
    }

    #[test]
    fn tells_an_abstract_socket() {
        let name = format!("isthmus-test-notify-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&addr).unwrap();
        send(format!("@{name}").as_bytes(), &State::Ready).unwrap();
        let mut buffer = [0; 64];
        let n = systemd.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
    }

    #[test]
    fn nobody_listening_is_an_error_not_a_panic() {
        let dir = tempfile::tempdir().unwrap();
        assert!(send(dir.path().join("gone").as_os_str().as_bytes(), &State::Ready).is_err());
        assert!(send(&[b'x'; 200], &State::Ready).is_err());
    }

    #[test]
    fn watchdog_is_half_and_only_ours() {
        assert_eq!(interval("3000000", None, 7), Some(Duration::from_millis(1500)));
        assert_eq!(interval("3000000", Some("7"), 7), Some(Duration::from_millis(1500)));
        for (usec, pid) in [("0", None), ("x", None), ("3000000", Some("8")), ("5", Some("x"))] {
            assert_eq!(interval(usec, pid, 7), None, "{usec} {pid:?}");
        }
    }
}
