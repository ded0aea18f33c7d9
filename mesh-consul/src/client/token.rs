//! The ACL token, from a file that somebody renews.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use mesh_runtime::files::read_private_at_most;
use reqwest::header::HeaderValue;

use super::BuildError;

/// The longest token file, in bytes: Consul's are UUIDs.
const MAX_TOKEN: u64 = 4096;

/// What tells one writing of a file from the next.
type Version = (u64, i64, i64, u64);

pub(super) struct Token {
    path: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    value: HeaderValue,
    version: Option<Version>,
}

impl Token {
    pub(super) fn read(path: PathBuf) -> Result<Self, BuildError> {
        let version = version(&path);
        let value = value(&path)?;
        Ok(Self { path, held: Mutex::new(Held { value, version }) })
    }

    /// The file's, or the last one while that cannot be read.
    pub(super) fn current(&self) -> HeaderValue {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let version = version(&self.path);
        if version != held.version {
            held.version = version;
            match value(&self.path) {
                Ok(value) => held.value = value,
                Err(error) => log::warn!(error:% = error; "consul: the last token stays in use"),
            }
        }
        held.value.clone()
    }
}

fn value(path: &Path) -> Result<HeaderValue, BuildError> {
    let bytes = read_private_at_most(path, MAX_TOKEN)?;
    let problem = || BuildError::Content {
        path: path.to_owned(),
        problem: "must hold one token and nothing else".into(),
    };
    let token = bytes.trim_ascii();
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return Err(problem());
    }
    let mut value = HeaderValue::from_bytes(token).map_err(|_| problem())?;
    value.set_sensitive(true);
    Ok(value)
}

fn version(path: &Path) -> Option<Version> {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.mtime(), data.mtime_nsec(), data.len()))
}
