//! Files that only root can have written.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use mesh_runtime::config;
use rustix::fs::{Mode, OFlags};

/// Whoever else may write: the group (with an access list, all whom it names),
/// and everybody.
const OTHERS: u32 = 0o022;
/// In such a directory nobody replaces what is another's.
const STICKY: u32 = 0o1000;

/// Reads a file, unless somebody else than root (and whoever this process is)
/// can change it, or put another in its place.
///
/// # Errors
///
/// What is wrong and how to mend it.
pub fn read(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("{}: cannot be read: {error}", path.display());
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(format!("{}: is no file", path.display()));
    };
    let dir = fs::canonicalize(dir).map_err(unreadable)?;
    for above in dir.ancestors() {
        check(above, &fs::metadata(above).map_err(unreadable)?)?;
    }
    // Not through a link, and nothing that makes one wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join(name), flags, Mode::empty());
    let file = File::from(file.map_err(|error| unreadable(error.into()))?);
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(format!("{}: is no file", path.display()));
    }
    check(path, &metadata)?;
    config::read_open(file, path).map_err(|error| error.to_string())
}

fn check(path: &Path, metadata: &Metadata) -> Result<(), String> {
    let (uid, mode) = (metadata.uid(), metadata.permissions().mode());
    let owned = uid == 0 || uid == rustix::process::geteuid().as_raw();
    let sticky = metadata.is_dir() && mode & STICKY != 0;
    if owned && (mode & OTHERS == 0 || sticky) {
        return Ok(());
    }
    let path = path.display();
    Err(format!(
        "{path}: others than root can write it, and no command is run for them: chown root {path}; \
         chmod go-w {path}"
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_can_change_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("services.d");
        fs::create_dir(&below).unwrap();
        let file = below.join("orders.yaml");
        fs::write(&file, "text").unwrap();
        set(&below, 0o755);
        for (mode, taken) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            set(&file, mode);
            assert_eq!(read(&file).is_ok(), taken, "{mode:o}");
        }
        set(&file, 0o644);
        for (mode, taken) in [(0o755, true), (0o775, false), (0o757, false), (0o1777, true)] {
            set(&below, mode);
            assert_eq!(read(&file).is_ok(), taken, "{mode:o}");
        }
        set(&below, 0o755);
        set(dir.path(), 0o777);
        assert!(read(&file).unwrap_err().contains("chmod go-w"), "a directory above");
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("orders.yaml");
        fs::write(&file, "text").unwrap();
        assert_eq!(read(&file), Ok("text".to_owned()));
        symlink(&file, dir.path().join("link")).unwrap();
        fs::create_dir(dir.path().join("dir")).unwrap();
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status();
        assert!(made.unwrap().success());
        for name in ["link", "dir", "fifo", "missing", ".."] {
            read(&dir.path().join(name)).unwrap_err();
        }
    }
}
