//! What the kernel says of TCP sockets (proc(5), `/proc/net/tcp`): who listens, who
//! is connected, and where a connection of ours has landed.

use std::{
    fs,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{net::TcpStream, time::timeout};

use super::record::Listener;

const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// Tables of more are not looked at to the end, in bytes.
const MAX_TABLE: u64 = 64 << 20;
/// For a connection within the machine.
const CONNECT: Duration = Duration::from_secs(2);
/// Connections, to see one of them.
const PROBES: u32 = 4;
/// A connection that was answered is in the table at once or a moment later.
const LOOKS: u32 = 8;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Of this machine.
    pub local: SocketAddr,
    /// The peer.
    pub remote: SocketAddr,
    /// As `include/net/tcp_states.h` numbers them.
    pub state: u8,
    /// Of the socket; 0 before it was accepted.
    pub inode: u64,
}

const ESTABLISHED: u8 = 1;
const SYN_RECEIVED: u8 = 3;
const FIN_WAITS: [u8; 3] = [4, 5, 8];
const LISTEN: u8 = 10;

/// Where a connection has landed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landed {
    /// With the legacy proxy.
    Legacy,
    /// With ours.
    Ours,
    /// With nobody: it was refused, or nobody can be found.
    Nowhere,
}

/// The TCP sockets of this network namespace, as far as they can be read.
pub fn table() -> Vec<Line> {
    let mut lines = Vec::new();
    for path in TABLES {
        lines.extend(read_table(path).unwrap_or_default().lines().skip(1).filter_map(line));
    }
    lines
}

/// All TCP sockets of this network namespace.
///
/// # Errors
///
/// The kernel's, or there are too many.
pub fn whole_table() -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for path in TABLES {
        let text = read_table(path)?;
        if text.len() as u64 >= MAX_TABLE {
            return Err(io::Error::other("too many sockets to look at all of them"));
        }
        lines.extend(text.lines().skip(1).filter_map(line));
    }
    Ok(lines)
}

fn read_table(path: &str) -> io::Result<String> {
    let mut text = String::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_TABLE).read_to_string(&mut text).map(|_| text),
        // A kernel without IPv6 has no such file.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(text),
        Err(error) => Err(error),
    }
}

/// `sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …`
fn line(text: &str) -> Option<Line> {
    let mut words = text.split_ascii_whitespace();
    let local = address(words.nth(1)?)?;
    let remote = address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Line { local, remote, state, inode })
}

/// Words of four bytes, each in the order of this machine.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Whether a socket at `at` takes what is sent to `address`.
pub fn covers(at: SocketAddr, address: SocketAddr) -> bool {
    at.port() == address.port() && (at.ip() == address.ip() || at.ip().is_unspecified())
}

/// Whether anybody listens there.
pub fn listens(table: &[Line], address: SocketAddr) -> bool {
    listener(table, address).is_some()
}

/// The socket that listens there.
fn listener(table: &[Line], address: SocketAddr) -> Option<&Line> {
    let mut listening = table.iter().filter(|line| line.state == LISTEN);
    listening.find(|line| covers(line.local, address))
}

/// Connections that came in at a listener's own address and have not ended.
pub fn connections(table: &[Line], listeners: &[Listener]) -> usize {
    let runs = |state| state == ESTABLISHED || FIN_WAITS.contains(&state);
    let arrived =
        |line: &&Line| listeners.iter().any(|listener| covers(listener.address, line.local));
    table.iter().filter(|line| runs(line.state)).filter(arrived).count()
}

/// Which process: numbers are given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Id {
    /// Its number.
    pub pid: u32,
    /// When it was started, in ticks since boot.
    pub started: u64,
}

impl Id {
    /// Of a process that is there.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { pid, started: stat_field(pid, 19)? })
    }

    /// Whether it is there and no corpse (proc(5), `stat`).
    pub fn runs(self) -> bool {
        Self::of(self.pid) == Some(self) && runs(self.pid)
    }
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Which one.
    pub id: Id,
    /// As it was started.
    pub command: Vec<String>,
    /// Where it was started.
    pub directory: PathBuf,
    /// The systemd unit that it belongs to; empty if it is of none.
    pub unit: String,
}

/// Who listens there: of several that share the socket, the one that others
/// come from.
pub fn owner(table: &[Line], address: SocketAddr) -> Option<Process> {
    let inode = listener(table, address)?.inode;
    let link = PathBuf::from(format!("socket:[{inode}]"));
    let mut having = Vec::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may be gone, or not ours to look at.
        let Ok(open) = fs::read_dir(entry.path().join("fd")) else { continue };
        let mut open = open.flatten();
        if open.any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == link)) {
            having.push(pid);
        }
    }
    let parent = |pid: u32| stat_field::<u32>(pid, 1).unwrap_or_default();
    let first = having.iter().find(|pid| !having.contains(&parent(**pid))).or(having.first())?;
    process(*first)
}

/// What is known of a process that runs.
pub fn process(pid: u32) -> Option<Process> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let id = Id::of(pid)?;
    let text = fs::read(place.join("cmdline")).ok()?;
    let words = text.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let command: Vec<String> =
        words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let directory = fs::read_link(place.join("cwd")).unwrap_or_else(|_| "/".into());
    let exe = fs::read_link(place.join("exe")).ok();
    (!command.is_empty()).then(|| Process {
        id,
        command: restartable(command, exe.as_deref()),
        directory,
        unit: unit_of(&fs::read_to_string(place.join("cgroup")).unwrap_or_default()),
    })
}

/// cgroups(7), `/proc/PID/cgroup`: `0::/system.slice/haproxy.service`, or with systemd's
/// own hierarchy `1:name=systemd:/system.slice/…`.
fn unit_of(cgroup: &str) -> String {
    let mut paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let unit = paths.find_map(|path| {
        let unit = path
            .strip_prefix("/system.slice/")?
            .split('/')
            .find(|part| part.ends_with(".service"))?;
        Some(unit.to_owned())
    });
    unit.unwrap_or_default()
}

/// nginx writes its title over its arguments: `nginx: master process nginx -c x`.
fn restartable(command: Vec<String>, exe: Option<&Path>) -> Vec<String> {
    let title = command.first().and_then(|first| first.strip_prefix("nginx: master process "));
    let mut words: Vec<String> = match title {
        Some(title) => title.split_ascii_whitespace().map(str::to_owned).collect(),
        None => command,
    };
    // As it runs, wherever it was found then.
    if let (Some(first), Some(exe)) = (words.first_mut(), exe)
        && !first.contains('/')
        && exe.exists()
    {
        *first = exe.display().to_string();
    }
    words
}

/// Whether a process is there and no corpse (proc(5), `stat`).
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Of `/proc/PID/stat`, counted from the state behind the name.
fn stat_field<T: std::str::FromStr>(pid: u32, at: usize) -> Option<T> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.split(' ').nth(at)?.parse().ok()
}

/// A connection to `to` that the rules know by its mark; without one it goes the
/// way of everybody.
///
/// # Errors
///
/// The system's.
pub async fn connect(to: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(error) => return Err(error),
    }
    let stream = TcpStream::from_std(socket.into())?;
    timeout(CONNECT, stream.writable()).await.map_err(|_| io::ErrorKind::TimedOut)??;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Where a connection to a listener's address lands.
pub async fn landing(listener: &Listener, mark: Option<u32>) -> Landed {
    for _ in 0..PROBES {
        let Ok(stream) = connect(listener.reached_at(), mark).await else { return Landed::Nowhere };
        let Ok(from) = stream.local_addr() else { return Landed::Nowhere };
        for _ in 0..LOOKS {
            match arrived(&table(), listener, from) {
                Some(landed) => return landed,
                None => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
        // It came from another port, which the kernel gives where two connections would
        // look the same.
    }
    Landed::Nowhere
}

fn arrived(table: &[Line], listener: &Listener, from: SocketAddr) -> Option<Landed> {
    let ports = [listener.address.port(), listener.beside.port()];
    let line = table.iter().find(|line| {
        line.remote == from
            && (line.state == ESTABLISHED || line.state == SYN_RECEIVED)
            && ports.contains(&line.local.port())
    })?;
    let is_ours = line.local.port() == listener.beside.port();
    Some(if is_ours { Landed::Ours } else { Landed::Legacy })
}

/// Where everybody's connections land: one answer for all listeners.
pub async fn serves(listeners: &[Listener]) -> Landed {
    all(listeners, None).await
}

/// Where ours lands past all rules, or as if they were in force.
pub async fn all(listeners: &[Listener], mark: Option<u32>) -> Landed {
    let mut found = None;
    for listener in listeners {
        let landed = landing(listener, mark).await;
        if found.is_some_and(|found| found != landed) {
            return Landed::Nowhere;
        }
        found = Some(landed);
    }
    found.unwrap_or(Landed::Nowhere)
}

impl Landed {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Ours => "isthmus",
            Self::Nowhere => "nobody",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_table_are_read() {
        let text = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let read = line(text).unwrap();
        assert_eq!(read.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((read.state, read.inode), (LISTEN, 4711));
        let text = "   1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 01 0:0 0:0 0 0 0 5";
        assert_eq!(line(text).unwrap().local, "127.0.0.1:80".parse().unwrap());
        for nonsense in ["", "0: x", "0: 0100007F:1F90 0:0 0A", "0: 01007F:1F90 00000000:0000 0A"] {
            assert_eq!(line(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn who_listens_is_found() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let table = table();
        assert!(listens(&table, address));
        assert_eq!(owner(&table, address).unwrap().id.pid, std::process::id());
        drop(socket);
        assert!(!listens(&super::table(), address));
    }

    #[test]
    fn the_unit_of_a_process_is_in_its_cgroup() {
        for (cgroup, unit) in [
            ("0::/system.slice/haproxy.service\n", "haproxy.service"),
            ("1:name=systemd:/system.slice/system-x.slice/x@1.service/worker\n", "x@1.service"),
            ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
            ("nonsense", ""),
        ] {
            assert_eq!(unit_of(cgroup), unit, "{cgroup}");
        }
    }

    #[test]
    fn a_title_is_no_command() {
        let title = vec!["nginx: master process nginx -c /etc/nginx.conf".to_owned()];
        let exe = std::env::current_exe().unwrap();
        let command = restartable(title, Some(&exe));
        assert_eq!(command[0], exe.display().to_string());
        assert_eq!(command[1..], ["-c", "/etc/nginx.conf"]);
        assert_eq!(restartable(vec!["/a".into(), "b".into()], None), ["/a", "b"]);
    }

    #[tokio::test]
    async fn where_a_connection_lands_is_seen() {
        let legacy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = Listener {
            name: "fe.legacy".into(),
            address: legacy.local_addr().unwrap(),
            beside: ours.local_addr().unwrap(),
        };
        assert_eq!(landing(&listener, None).await, Landed::Legacy);
        let other = Listener { beside: listener.address, ..listener.clone() };
        assert_eq!(landing(&other, None).await, Landed::Ours);
        drop(legacy);
        assert_eq!(landing(&listener, None).await, Landed::Nowhere);
    }
}
