//! Telling systemd how we are (`sd_notify(3)`); nothing happens elsewhere.

use std::{
    env,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_getfd, fcntl_setfd},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    time::{ClockId, clock_gettime},
};

/// How long systemd may take to take a descriptor.
const STORE_TIMEOUT: Duration = Duration::from_secs(1);
/// The first descriptor that it gives (`SD_LISTEN_FDS_START`).
const FIRST: RawFd = 3;
/// Descriptors it may give: far more than a unit asks to have kept.
const MAX_STORED: RawFd = 65_536;

/// What there is to tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State<'a> {
    /// Start-up, or what [`State::Reloading`] has begun, is finished.
    Ready,
    /// A successor is being started.
    Reloading,
    /// The end has begun.
    Stopping,
    /// It may take so much longer than systemd thinks.
    Extend(Duration),
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
            Self::Reloading => {
                let now = clock_gettime(ClockId::Monotonic);
                let now = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
                format!("RELOADING=1\nMONOTONIC_USEC={now}")
            }
            Self::Stopping => "STOPPING=1".to_owned(),
            Self::Extend(more) => format!("EXTEND_TIMEOUT_USEC={}", more.as_micros()),
            Self::Status(line) => format!("STATUS={}", line.replace(['\n', '\r'], " ")),
            Self::Watchdog => "WATCHDOG=1".to_owned(),
            Self::MainPid(pid) => format!("MAINPID={pid}"),
        }
    }
}

/// Whether systemd has started us and listens.
pub fn listens() -> bool {
    env::var_os("NOTIFY_SOCKET").is_some()
}

/// Tells systemd, if it started us and listens. Failing is only logged: no
/// process may end because nobody hears how it is.
pub fn notify(state: &State<'_>) {
    let Some(socket) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(socket.as_bytes(), state) {
        log::debug!(error = error.to_string().as_str(); "systemd was not told");
    }
}

fn send(socket: &[u8], state: &State<'_>) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    // A full socket must not hold up the mesh.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.message().as_bytes(), &addr_of(socket)?)?;
    Ok(())
}

/// A path, or an abstract name after `@`.
fn addr_of(socket: &[u8]) -> io::Result<SocketAddr> {
    match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket)),
    }
}

/// Has systemd keep a descriptor for the process that it starts after this one
/// (`FDSTORE=1`; the unit says how many it may, `FileDescriptorStoreMax=`). One
/// that it has is not kept twice, and none is dropped for an error on it. A name
/// has no `:` and at most 255 bytes. Nothing happens elsewhere.
///
/// # Errors
///
/// It does not take it.
pub fn store(name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET") {
        Some(socket) => {
            pass(socket.as_bytes(), &format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd])
        }
        None => Ok(()),
    }
}

/// Ends it for all descriptors of a name.
///
/// # Errors
///
/// As [`store`].
pub fn forget(name: &str) -> io::Result<()> {
    match env::var_os("NOTIFY_SOCKET") {
        Some(socket) => pass(socket.as_bytes(), &format!("FDSTOREREMOVE=1\nFDNAME={name}"), &[]),
        None => Ok(()),
    }
}

fn pass(socket: &[u8], text: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(STORE_TIMEOUT))?;
    datagram.connect_addr(&addr_of(socket)?)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let packet = [IoSlice::new(text.as_bytes())];
    sendmsg(datagram.as_fd(), &packet, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What systemd has kept, with its names (`sd_listen_fds_with_names(3)`). It is
/// given to the first who asks; nobody else of this process has it then.
pub fn stored() -> Vec<(String, OwnedFd)> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    let text = |name| env::var(name).ok();
    let is_ours = text("LISTEN_PID").and_then(|pid| pid.parse().ok()) == Some(std::process::id());
    if !is_ours || ASKED.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let names = text("LISTEN_FDNAMES").unwrap_or_default();
    let count = text("LISTEN_FDS").and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut names = names.split(':').map(str::to_owned);
    let each = (FIRST..).take(RawFd::clamp(count, 0, MAX_STORED) as usize);
    each.filter_map(|fd| Some((names.next().unwrap_or_default(), take(fd)?))).collect()
}

fn take(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: systemd has said that this descriptor is for this very process
    // (`LISTEN_PID`). It was open before `main`, so that nothing here has opened
    // it, and `stored` takes it once. One that is not open is not taken.
    #[allow(unsafe_code)]
    let owned = unsafe {
        fcntl_getfd(BorrowedFd::borrow_raw(fd)).ok()?;
        OwnedFd::from_raw_fd(fd)
    };
    fcntl_setfd(&owned, FdFlags::CLOEXEC).ok()?;
    Some(owned)
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
    use std::io::IoSliceMut;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

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
            (State::Extend(Duration::from_secs(2)), "EXTEND_TIMEOUT_USEC=2000000"),
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
    fn a_descriptor_goes_with_its_name() {
        let name = format!("isthmus-test-store-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let systemd = UnixDatagram::bind_addr(&addr).unwrap();
        let kept = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        pass(format!("@{name}").as_bytes(), "FDSTORE=1\nFDNAME=http", &[kept.as_fd()]).unwrap();
        let mut packet = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut packet)];
        let n = recvmsg(&systemd, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
        let fds = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        assert_eq!(&packet[..n], b"FDSTORE=1\nFDNAME=http");
        let again = std::net::TcpListener::from(fds.unwrap());
        assert_eq!(again.local_addr().unwrap(), kept.local_addr().unwrap());
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
