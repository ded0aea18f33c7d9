//! A site in one file, and the site again from that file.
//!
//! A backup is a tar archive (POSIX.1-2001 ustar): `backup.json` says what is in
//! it, then the log and the keys. It is made while federation runs: of the log
//! only what is whole counts, and keys are read again until they stay the same.
//! A restored site begins a new log under a new epoch
//! ([`State::restored`](crate::authority::State::restored)).

mod archive;

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use mesh_core::Revision;
use mesh_runtime::files::{self, FileError};
use serde::{Deserialize, Serialize};

use crate::{
    authority::{LogStore, State, Store, StoreError, log_store, snapshot},
    ca::{CaError, CertificateAuthority, fingerprint},
    clock::Clock,
    init::{InitError, at, give_to_owner, make_directory},
};

/// How often keys are read that change meanwhile.
const READS: usize = 5;

/// Why there is no backup, or no site made from it.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// It is not a backup, or not a whole one.
    #[error("{path}: {problem}; it is not a backup that can be restored, and nothing was changed")]
    NoBackup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Nothing to back up.
    #[error("{0}: there is no site here; name the directory of its state with --state")]
    NoSite(PathBuf),
    /// The keys changed all the time.
    #[error("{0}: the keys are being changed; try again")]
    Unsteady(PathBuf),
    /// A directory or file; or there is a site already.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file of the backup.
    #[error(transparent)]
    File(#[from] FileError),
    /// The keys.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl BackupError {
    /// The process's exit code, as [`InitError::exit_code`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Init(error) => error.exit_code(),
            _ => mesh_runtime::process::EXIT_FAILURE,
        }
    }
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Of the archive's layout.
    pub format: u32,
    /// Name of the site.
    pub site: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// `SHA256:<hex>` of the public key of the root that signs.
    pub root_fingerprint: String,
    /// Lineage of the log.
    pub epoch: u64,
    /// Its newest record.
    pub revision: u64,
    /// Joined machines.
    pub nodes: usize,
    /// Linked sites.
    pub links: usize,
    /// Unix seconds.
    pub made_unix_s: i64,
}

/// The layout that this version writes and reads.
const FORMAT: u32 = 1;

/// Bytes of an archive that are read.
const MAX_ARCHIVE: u64 = 2 << 30;

/// A file of the state directory, by its path in there.
type Files = Vec<(String, Vec<u8>)>;

/// Makes a backup of the site in a state directory; federation may run.
/// Returns the archive and what is in it.
pub fn back_up(state: &Path, clock: &Clock) -> Result<(Vec<u8>, Contents), BackupError> {
    if !state.join("authority.log").exists() {
        return Err(BackupError::NoSite(state.to_owned()));
    }
    for _ in 0..READS {
        let before = archive::read_keys(state)?;
        let path = state.join("authority.log");
        let mut log = fs::read(&path).map_err(at(&path))?;
        let (folded, end) = fold(&path, &log)?;
        if folded.site.is_none() {
            return Err(BackupError::NoSite(state.to_owned()));
        }
        if archive::read_keys(state)? != before {
            continue;
        }
        log.truncate(end);
        let contents = contents_of(&folded, clock.unix_s());
        let mut files = before;
        files.insert(0, ("authority.log".to_owned(), log));
        return Ok((archive::write(&contents, &files), contents));
    }
    Err(BackupError::Unsteady(state.join("keys")))
}

/// Writes an archive durably, mode 0600, or to standard output (`-`).
pub fn store(to: &Path, archive: &[u8]) -> Result<(), BackupError> {
    if to.as_os_str() == "-" {
        let mut out = io::stdout().lock();
        return Ok(out.write_all(archive).and_then(|()| out.flush()).map_err(at(to))?);
    }
    Ok(files::write_private(to, archive)?)
}

/// Reads one, from standard input for `-`.
pub fn load(from: &Path) -> Result<Vec<u8>, BackupError> {
    let mut archive = Vec::new();
    let read = if from.as_os_str() == "-" {
        io::stdin().lock().take(MAX_ARCHIVE).read_to_end(&mut archive)
    } else {
        fs::File::open(from).and_then(|file| file.take(MAX_ARCHIVE).read_to_end(&mut archive))
    };
    read.map_err(at(from))?;
    Ok(archive)
}

/// The state that a log folds to, and where its last whole record ends.
fn fold(path: &Path, log: &[u8]) -> Result<(State, usize), StoreError> {
    let mut state = State::default();
    let end = log_store::walk(path, log, |records| {
        records
            .iter()
            .try_for_each(|record| state.fold(record))
            .map_err(|error| StoreError::Fold { path: path.display().to_string(), error })
    })?;
    Ok((state, usize::try_from(end).expect("an offset into bytes")))
}

fn contents_of(state: &State, now_unix_s: i64) -> Contents {
    let Revision { epoch, n } = state.revision;
    Contents {
        format: FORMAT,
        site: state.site().name.to_string(),
        trust_domain: state.site().trust_domain.to_string(),
        root_fingerprint: fingerprint(state.signing_root()),
        epoch,
        revision: n,
        nodes: state.nodes.len(),
        links: state.links.len(),
        made_unix_s: now_unix_s,
    }
}

/// Makes the site of a backup again in a state directory that has none.
/// `name` is that of the archive, for errors. All or nothing.
pub fn restore(
    name: &Path,
    archive: &[u8],
    state: &Path,
    clock: &Clock,
) -> Result<Contents, BackupError> {
    let keys = state.join("keys");
    if state.join("authority.log").exists() || keys.exists() {
        return Err(InitError::Exists(state.to_owned()).into());
    }
    let no_backup = |problem: String| BackupError::NoBackup { path: name.to_owned(), problem };
    let (contents, files) = archive::read(archive).map_err(no_backup)?;
    make_directory(state)?;
    // Everything is made and tried aside first.
    let aside = state.join("restoring");
    remove_all(&aside)?;
    make_directory(&aside)?;
    archive::unpack(&aside, &files)?;
    begin_anew(name, &contents, &aside, clock)?;
    // The keys first: a site whose log exists is complete.
    for part in ["keys", "index", "audit", "authority.log"] {
        let to = state.join(part);
        fs::rename(aside.join(part), &to).map_err(at(&to))?;
    }
    fs::File::open(state).and_then(|dir| dir.sync_all()).map_err(at(state))?;
    remove_all(&aside)?;
    give_to_owner(state)?;
    Ok(contents)
}

/// Makes the log of a backup one of the restored site, and opens the keys as
/// federation will.
fn begin_anew(
    name: &Path,
    contents: &Contents,
    aside: &Path,
    clock: &Clock,
) -> Result<(), BackupError> {
    let no_backup = |problem: String| BackupError::NoBackup { path: name.to_owned(), problem };
    let store = LogStore::open(aside)?;
    let mut before = State::default();
    store.replay(&mut |record| before.fold(record))?;
    let Some(site) = before.site.clone() else {
        return Err(no_backup("its log holds no site".into()));
    };
    if contents_of(&before, contents.made_unix_s) != *contents {
        return Err(no_backup("its log is another one than it says".into()));
    }
    let now = clock.unix_s();
    let restored = before.restored(rand::random(), contents.made_unix_s, now);
    store.compact(snapshot::records(&restored, now), now)?;
    let keys = aside.join("keys");
    let ca = CertificateAuthority::open(&keys, &site.trust_domain, clock.clone())?;
    ca.sign_under(restored.signing_root())?;
    Ok(())
}

fn remove_all(path: &Path) -> Result<(), BackupError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error).into()),
        _ => Ok(()),
    }
}
