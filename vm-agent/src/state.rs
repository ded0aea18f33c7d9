//! What outlives the agent: the node identity and the names of what it has
//! registered. One directory, mode 0700, one agent at a time.

use std::{
    collections::BTreeSet,
    fs::{DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use mesh_api::v1;
use mesh_runtime::files::{self, FileError};
use prost::Message;
use rustix::{fs::FlockOperation, io::Errno};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};

use crate::node::Node;

/// How often the lock is tried: a process that is going away, or a child that
/// it has just forked, may hold it for a moment.
const LOCK_ATTEMPTS: u32 = 10;
/// Between two attempts; nothing else runs yet that could wait.
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// Of the files below; a newer one is refused.
const VERSION: u32 = 1;

/// Why state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system says no.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another agent is running.
    #[error("{}: another vm-agent uses this directory; stop it, or choose another with --state", .0.display())]
    InUse(PathBuf),
    /// The directory cannot be made or locked.
    #[error("{}: {source}; the agent needs a directory of its own that it can write", .path.display())]
    Dir {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The identity is there and makes no sense.
    #[error(
        "{}: not readable ({problem}); restore it from a backup, or `meshctl leave --force` and \
         join again",
        .path.display()
    )]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Written by a newer agent.
    #[error("{}: has version {found}, this agent reads {VERSION}; upgrade the agent", .path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// The node identity as it lies on disk.
#[derive(Serialize, Deserialize)]
struct IdentityFile {
    version: u32,
    machine_id: String,
    issued_unix_s: i64,
    /// Base64 of PKCS#8.
    key: String,
    /// Base64 of `isthmus.v1.JoinNodeResponse`.
    joined: String,
}

/// On a file system that has become read-only, the one that is there.
fn open_lock(path: &Path) -> io::Result<File> {
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => File::open(path),
        made => made,
    }
}

/// The state directory, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the directory if there is none, and locks it.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Dir { path: dir.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = open_lock(&dir.join("lock")).map_err(failed)?;
        for attempt in 1..=LOCK_ATTEMPTS {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { dir: dir.to_owned(), _lock: lock }),
                Err(Errno::WOULDBLOCK) if attempt < LOCK_ATTEMPTS => std::thread::sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => return Err(failed(error.into())),
            }
        }
        Err(StateError::InUse(dir.to_owned()))
    }

    fn identity(&self) -> PathBuf {
        self.dir.join("identity.json")
    }

    /// The node identity, if this machine has joined.
    pub fn load(&self) -> Result<Option<Node>, StateError> {
        let path = self.identity();
        let bytes = match files::read_private(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let corrupt = |problem: String| StateError::Corrupt { path: path.clone(), problem };
        let file: IdentityFile =
            serde_json::from_slice(&bytes).map_err(|error| corrupt(error.to_string()))?;
        if file.version > VERSION {
            return Err(StateError::Newer { path, found: file.version });
        }
        decode(file).map(Some).map_err(corrupt)
    }

    /// Keeps a node identity; durable when it returns.
    pub fn save(&self, node: &Node) -> Result<(), StateError> {
        let file = IdentityFile {
            version: VERSION,
            machine_id: node.machine_id.clone(),
            issued_unix_s: node.issued,
            key: STANDARD.encode(node.key.secret_der()),
            joined: STANDARD.encode(node.joined.encode_to_vec()),
        };
        let text = serde_json::to_vec_pretty(&file).expect("strings and numbers are JSON");
        Ok(files::write_private(&self.identity(), &text)?)
    }

    /// Forgets the site: no key and no name of it remains.
    pub fn forget(&self) -> Result<(), StateError> {
        files::remove(&self.identity())?;
        Ok(files::remove(&self.registered_file())?)
    }

    /// Proves that an identity could be kept; before a token is spent.
    pub fn check_writable(&self) -> Result<(), StateError> {
        let probe = self.dir.join("probe");
        files::write_private(&probe, b"")?;
        Ok(files::remove(&probe)?)
    }

    fn registered_file(&self) -> PathBuf {
        self.dir.join("registered.json")
    }

    /// Instances that the site may have on record; nothing if that is not
    /// known. What is missing here is only cleaned up later, by the site.
    pub fn registered(&self) -> BTreeSet<String> {
        let bytes = files::read_private(&self.registered_file()).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Keeps the instances that the site may have on record.
    pub fn save_registered(&self, instances: &BTreeSet<String>) -> Result<(), StateError> {
        let text = serde_json::to_vec(instances).expect("strings are JSON");
        Ok(files::write_private(&self.registered_file(), &text)?)
    }
}

fn decode(file: IdentityFile) -> Result<Node, String> {
    let bytes = |text: &str| STANDARD.decode(text).map_err(|error| error.to_string());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes(&file.key)?));
    let joined = v1::JoinNodeResponse::decode(bytes(&file.joined)?.as_slice())
        .map_err(|error| error.to_string())?;
    Node::new(file.machine_id, file.issued_unix_s, key, joined).map_err(|error| error.to_string())
}
