//! One move as the disk has it: what was decided survives this process and the
//! machine. It is written before anything is done about it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use mesh_runtime::{
    clock, config,
    files::{self, FileError},
};
use serde::{Deserialize, Serialize};

use super::{proxy::Figures, shadow::Shadow, sockets::Id};

/// Of one move, in its directory.
const FILE: &str = "move.json";
/// What a comparison has found.
const FOUND: &str = "found.json";
/// What the proxy runs.
const CONFIG: &str = "config";
/// Moves of one machine.
pub const MAX_MOVES: usize = 16;
/// Listeners of one move.
pub const MAX_LISTENERS: usize = 64;
/// Of a move, in bytes.
const MAX_NAME: usize = 64;

/// A legacy proxy of this machine, and what is to take its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Of the move.
    pub name: String,
    /// Who is replaced.
    pub legacy: Legacy,
    /// What is taken over.
    pub listeners: Vec<Listener>,
    /// Where our proxy says how it does.
    pub admin: SocketAddr,
    /// How far it is.
    pub phase: Phase,
    /// When that began, in seconds of Unix time.
    pub since: i64,
    /// What went wrong last, and what to do; empty if nothing has.
    #[serde(default)]
    pub problem: String,
    /// Bounds since the cut-over.
    #[serde(default)]
    pub watch: Option<Watch>,
    /// The legacy proxy was told to let go.
    #[serde(default)]
    pub let_go: bool,
    /// Legacy processes that end with their last connection, and when they are ended,
    /// in seconds of Unix time.
    #[serde(default)]
    pub leaving: Vec<(Id, i64)>,
    /// The legacy proxy when it was seen last.
    #[serde(default)]
    pub process: Option<Id>,
    /// What is compared, or was.
    #[serde(default)]
    pub shadow: Option<Shadow>,
}

/// How the legacy proxy is told to let go, and started again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    /// Which program it is.
    pub kind: Kind,
    /// Its systemd unit; empty where there is none.
    #[serde(default)]
    pub unit: String,
    /// What starts it where it has no unit.
    #[serde(default)]
    pub command: Vec<String>,
    /// Where that is to be run.
    #[serde(default)]
    pub directory: PathBuf,
    /// HAProxy's stats socket, or the admin URL of Envoy.
    #[serde(default)]
    pub control: String,
}

/// A legacy proxy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// HAProxy.
    #[default]
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy.
    Envoy,
    /// Linkerd 1.x.
    Linkerd1,
}

/// One address of the legacy proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The service that it is with us.
    pub name: String,
    /// Where clients connect to.
    pub address: SocketAddr,
    /// Where our proxy listens.
    pub beside: SocketAddr,
}

/// How far a move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Our proxy runs beside the legacy one, which serves.
    Beside,
    /// The same, and answers are compared.
    Shadow,
    /// Our proxy serves, and is watched.
    Watch,
    /// Our proxy serves; the legacy one has let go.
    Moved,
    /// Our proxy serves; the legacy one was stopped.
    Finished,
    /// The legacy proxy serves again.
    Back,
}

/// Bounds since the cut-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// When it is over, in seconds of Unix time.
    pub until: i64,
    /// Requests of ten thousand that must succeed.
    pub min_success: u32,
    /// In milliseconds; 0 is no bound.
    pub max_p99_ms: u32,
    /// How long connections of a process that was told to end may go on, in seconds.
    pub drain_s: u32,
    /// What our proxy had done before.
    pub before: Figures,
}

impl Kind {
    /// As it is written.
    pub const ALL: [(&str, Self); 4] = [
        ("haproxy", Self::Haproxy),
        ("nginx", Self::Nginx),
        ("envoy", Self::Envoy),
        ("linkerd1", Self::Linkerd1),
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl Phase {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Beside => "beside",
            Self::Shadow => "shadow",
            Self::Watch => "watch",
            Self::Moved => "moved",
            Self::Finished => "finished",
            Self::Back => "back",
        }
    }

    /// Whether new connections are to go to our proxy.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Watch | Self::Moved | Self::Finished)
    }

    /// Whether the legacy proxy is to listen: it serves, or may have to at once.
    pub fn needs_legacy(self) -> bool {
        matches!(self, Self::Beside | Self::Shadow | Self::Watch | Self::Back)
    }
}

impl Listener {
    /// An address that leads there from this machine.
    pub fn reached_at(&self) -> SocketAddr {
        of_this_machine(self.address)
    }

    /// The same of our proxy's.
    pub fn beside_at(&self) -> SocketAddr {
        of_this_machine(self.beside)
    }
}

fn of_this_machine(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

impl Record {
    /// From now on it is in `phase`; nothing of before went wrong.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = clock::unix_seconds();
        self.problem.clear();
    }
}

/// Where moves are kept, each in a directory of its own.
#[derive(Debug, Clone)]
pub struct Moves(pub PathBuf);

impl Moves {
    /// Of the move.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What the proxy of a move runs.
    pub fn config(&self, name: &str) -> PathBuf {
        self.directory(name).join(CONFIG)
    }

    /// What a comparison of a move has found.
    pub fn found(&self, name: &str) -> PathBuf {
        self.directory(name).join(FOUND)
    }

    /// All that there are; what cannot be read is told and left alone.
    pub fn load(&self) -> Vec<Record> {
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => {
                log::error!("{}: {error}", self.0.display());
                return Vec::new();
            }
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path().join(FILE)));
        let mut records: Vec<Record> = Vec::new();
        for path in paths.filter(|path| path.exists()) {
            match read(&path) {
                Ok(record) => records.push(record),
                Err(why) => log::error!("{}: not followed: {why}", path.display()),
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        records
    }

    /// Whole or not at all.
    ///
    /// # Errors
    ///
    /// The disk does not take it; what it had before is still there.
    pub fn save(&self, record: &Record) -> Result<(), FileError> {
        let directory = self.directory(&record.name);
        public_directory(&directory)?;
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        files::write_private(&directory.join(FILE), &text)
    }

    /// What a move runs, and where it came from.
    ///
    /// # Errors
    ///
    /// The disk does not take it.
    pub fn save_config(&self, name: &str, files: &[(&str, String)]) -> Result<(), FileError> {
        public_directory(&self.config(name))?;
        for (file, text) in files {
            files::write_public(&self.config(name).join(file), text.as_bytes())?;
        }
        Ok(())
    }

    /// Nothing is left of it.
    ///
    /// # Errors
    ///
    /// Something is.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        // Without that file it is no move any more, whatever else is left.
        let directory = self.directory(name);
        std::fs::remove_file(directory.join(FILE))?;
        std::fs::remove_dir_all(directory)
    }
}

/// The proxy runs as another user, and finds no secret there.
fn public_directory(path: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(|source| FileError::Io {
        path: path.to_owned(),
        doing: "cannot be made",
        source,
    })
}

fn read(path: &Path) -> Result<Record, String> {
    let text = config::read(path).map_err(|error| error.to_string())?;
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Names of moves are names of directories and units.
///
/// # Errors
///
/// What it must be.
pub fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let begins = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if begins && name.len() <= MAX_NAME && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(format!(
        "{name:?}: a move is named like a host: letters, digits, '.', '-' and '_', at most \
         {MAX_NAME}"
    ))
}
