//! What a proxy keeps in its state directory for its next start.
//!
//! Each file: 8 bytes of magic with the format's number, CRC-32 (IEEE) of the
//! rest as 4 bytes big endian, then the rest. Replaced atomically, mode 0600,
//! in a directory that is made with mode 0700.

use std::path::{Path, PathBuf};

use mesh_runtime::files;

/// Why a file cannot be used or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFileError {
    #[error(transparent)]
    File(#[from] files::FileError),
    #[error("{}: {problem}", .path.display())]
    Damaged { path: PathBuf, problem: String },
}

/// One file; whoever makes it knows what its rest is.
#[derive(Debug, Clone)]
pub(crate) struct StateFile {
    path: PathBuf,
    magic: &'static [u8; 8],
    longest: u64,
}

impl StateFile {
    /// The file `name` in `state`; one that is longer than `longest` bytes is
    /// not ours.
    pub(crate) fn new(state: &Path, name: &str, magic: &'static [u8; 8], longest: u64) -> Self {
        Self { path: state.join(name), magic, longest }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What was written last; `None` if nothing was.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>, StateFileError> {
        let bytes = match files::read_private_at_most(&self.path, self.longest) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match unframe(self.magic, &bytes) {
            Ok(body) => Ok(Some(body.to_vec())),
            Err(problem) => Err(self.damaged(problem)),
        }
    }

    /// The file can be read and says nothing of use.
    pub(crate) fn damaged(&self, problem: impl ToString) -> StateFileError {
        StateFileError::Damaged { path: self.path.clone(), problem: problem.to_string() }
    }

    /// Replaces it; durable when this returns. Makes the directory too: only
    /// systemd makes it beforehand.
    pub(crate) fn write(&self, body: &[u8]) -> Result<(), StateFileError> {
        if let Some(folder) = self.path.parent() {
            files::create_private_dir(folder)?;
        }
        Ok(files::write_private(&self.path, &frame(self.magic, body))?)
    }

    /// Removes it durably; says whether there was one.
    pub(crate) fn remove(&self) -> Result<bool, StateFileError> {
        let was_there = self.path.symlink_metadata().is_ok();
        files::remove(&self.path)?;
        Ok(was_there)
    }
}

fn frame(magic: &[u8; 8], body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(magic.len() + 4 + body.len());
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&crc32fast::hash(body).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn unframe<'a>(magic: &[u8; 8], bytes: &'a [u8]) -> Result<&'a [u8], &'static str> {
    let rest = bytes.strip_prefix(magic).ok_or("not a file of this version")?;
    let (crc, body) = rest.split_first_chunk::<4>().ok_or("it is cut off")?;
    if crc32fast::hash(body) != u32::from_be_bytes(*crc) {
        return Err("its checksum is wrong");
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const MAGIC: &[u8; 8] = b"ISTHTST1";

    fn file(dir: &Path) -> StateFile {
        StateFile::new(&dir.join("state"), "it.bin", MAGIC, 64)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_was_written_is_read_by_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        assert!(file.read().unwrap().is_none());
        file.write(b"body").unwrap();
        assert_eq!(file.read().unwrap().unwrap(), b"body");
        assert_eq!((mode(file.path()), mode(&dir.path().join("state"))), (0o600, 0o700));
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
        assert!(file.read().unwrap().is_none());
    }

    #[test]
    fn any_flipped_bit_and_any_cut_is_noticed() {
        let good = frame(MAGIC, b"a body of some length");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(unframe(MAGIC, &bad).is_err(), "byte {at}");
            assert!(unframe(MAGIC, &good[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn what_is_not_ours_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path());
        file.write(b"body").unwrap();
        std::fs::write(file.path(), [0; 65]).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("it.bin"));
        std::fs::write(file.path(), b"ISTHTST1 and then nonsense").unwrap();
        let shown = file.read().unwrap_err().to_string();
        assert!(shown.contains("it.bin") && shown.contains("checksum"), "{shown}");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("chmod 600"));
    }
}
