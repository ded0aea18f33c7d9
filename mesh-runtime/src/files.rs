//! Files that hold keys and state: written whole or not at all, readable by
//! their owner alone.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The longest private file, in bytes: a chain of certificates is far below.
pub const MAX_PRIVATE: u64 = 4 * 1024 * 1024;

/// Why a private file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system says no.
    #[error("{}: {doing}: {source}{}", .path.display(), remedy(.source))]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Others could read it.
    #[error("{path}: readable by others (mode {mode:03o}); chmod 600 {path}", path = .path.display())]
    NotPrivate {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than what is ours may be.
    #[error("{}: is longer than {limit} bytes; it is not ours", .path.display())]
    TooLong {
        /// Which file.
        path: PathBuf,
        /// The limit, in bytes.
        limit: u64,
    },
}

impl FileError {
    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable, or choose another directory",
        io::ErrorKind::PermissionDenied => "; check who owns the directory and who this runs as",
        io::ErrorKind::StorageFull => "; free some space",
        _ => "",
    }
}

/// Replaces a file atomically and durably, mode 0600: readers see the old
/// bytes or the new ones, also after a power loss.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, bytes, 0o600)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    sync_dir(dir).map_err(|source| {
        let doing = "cannot be made durable";
        FileError::Io { path: path.to_owned(), doing, source }
    })
}

/// Replaces a file atomically, mode 0644: for others on this machine, now and
/// not after a power loss.
pub fn write_public(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, bytes, 0o644)
}

fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let failed = |doing| move |source| FileError::Io { path: path.to_owned(), doing, source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = write_new(&temporary, bytes, mode)
        .map_err(failed("cannot be written"))
        .and_then(|()| std::fs::rename(&temporary, path).map_err(failed("cannot be replaced")));
    if written.is_err() {
        // Nothing half written stays; the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Makes a directory of our own, mode 0700, with its parents; one that is
/// there is left as it is.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
        FileError::Io { path: path.to_owned(), doing: "cannot be created", source }
    })
}

/// Removes a file durably; one that is not there is fine.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let failed = |doing| move |source| FileError::Io { path: path.to_owned(), doing, source };
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("cannot be removed")(error)),
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    sync_dir(dir).map_err(failed("cannot be made durable"))
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // Left behind by a process with our id that was killed half way.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the mask of the process is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a file of at most [`MAX_PRIVATE`] bytes that only its owner (and root)
/// may read.
pub fn read_private(path: &Path) -> Result<Vec<u8>, FileError> {
    read_private_at_most(path, MAX_PRIVATE)
}

/// The same with another limit, in bytes.
pub fn read_private_at_most(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Io { path: path.to_owned(), doing: "cannot be read", source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::NotPrivate { path: path.to_owned(), mode });
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLong { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_public_is_readable_whatever_the_mask() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("names");
        for text in ["old", "new"] {
            write_public(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half written stays");
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn written_files_are_private_and_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        for bytes in [&b"one"[..], b"another", b""] {
            write_private(&path, bytes).unwrap();
            assert_eq!(read_private(&path).unwrap(), bytes);
            assert_eq!(mode(&path), 0o600);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_wide_file_is_made_private_by_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"new").unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        std::fs::write(&path, "secret").unwrap();
        for wide in [0o640, 0o604, 0o644, 0o660] {
            std::fs::set_permissions(&path, Permissions::from_mode(wide)).unwrap();
            let shown = read_private(&path).unwrap_err().to_string();
            assert!(shown.contains("chmod 600"), "{shown}");
            assert!(shown.contains(&format!("{wide:o}")), "{shown}");
        }
        for narrow in [0o600, 0o400] {
            std::fs::set_permissions(&path, Permissions::from_mode(narrow)).unwrap();
            assert_eq!(read_private(&path).unwrap(), b"secret");
        }
    }

    #[test]
    fn failures_name_the_file_and_leave_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read_private(&dir.path().join("gone")).unwrap_err();
        assert!(missing.is_not_found());
        assert!(missing.to_string().contains("gone"));

        // A directory in the file's place cannot be replaced by a file.
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        assert!(write_private(&path, b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");

        assert!(write_private(&dir.path().join("no/such/dir"), b"x").is_err());
        remove(&dir.path().join("gone")).unwrap();
    }
}
