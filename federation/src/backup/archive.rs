//! The files of a backup, as bytes.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Component, Path},
};

use sha2::{Digest, Sha256};

use super::{BackupError, Contents, FORMAT, Files};
use crate::init::{at, make_directory};

/// What the archive begins with.
const CONTENTS: &str = "backup.json";
/// What it ends with: `<SHA-256, hex>  <path>` of each file before it, as
/// sha256sum(1) checks them.
const SUMS: &str = "SHA256SUMS";
/// Files that a backup may hold.
const MAX_FILES: usize = 256;
/// Bytes of a file that is not the log.
const MAX_SMALL: u64 = 1 << 20;
/// Bytes of the log: far beyond the size at which it is compacted.
const MAX_LOG: u64 = 1 << 30;

/// Every file below `keys/`.
pub(super) fn read_keys(state: &Path) -> Result<Files, BackupError> {
    let mut files = Vec::new();
    let mut pending = vec![state.join("keys")];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir != state.join("keys") => {
                continue; // a root that has just left
            }
            entries => entries.map_err(at(&dir))?,
        };
        for entry in entries {
            let path = entry.map_err(at(&dir))?.path();
            if path.is_dir() {
                // One that is being made is none yet.
                if path.file_name().is_none_or(|name| name != "root.new") {
                    pending.push(path);
                }
                continue;
            }
            match fs::read(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                read => {
                    let name = path.strip_prefix(state).unwrap_or(&path).display().to_string();
                    files.push((name, read.map_err(at(&path))?));
                }
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The archive.
pub(super) fn write(contents: &Contents, files: &Files) -> Vec<u8> {
    let said = serde_json::to_vec_pretty(contents).expect("it is plain data");
    let said = (CONTENTS.to_owned(), said);
    let mut archive = tar::Builder::new(Vec::new());
    let mut sums = String::new();
    for (path, bytes) in std::iter::once(&said).chain(files) {
        sums.push_str(&format!("{}  {path}\n", hex_sum(bytes)));
        append(&mut archive, path, bytes, contents.made_unix_s);
    }
    append(&mut archive, SUMS, sums.as_bytes(), contents.made_unix_s);
    archive.into_inner().expect("a Vec grows")
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, bytes: &[u8], at_unix_s: i64) {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(at_unix_s.unsigned_abs());
    archive.append_data(&mut header, path, bytes).expect("a Vec grows, and paths are short");
}

fn hex_sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What an archive holds; an error says what is wrong with it.
pub(super) fn read(archive: &[u8]) -> Result<(Contents, Files), String> {
    let mut files = Files::new();
    let mut whole = None;
    let broken = |error: io::Error| format!("it is no tar archive, or cut short ({error})");
    for entry in tar::Archive::new(archive).entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let path = entry.path().map_err(broken)?.display().to_string();
        if !entry.header().entry_type().is_file() || !is_ours(&path) || files.len() == MAX_FILES {
            return Err(format!("{path:?} does not belong in it"));
        }
        let limit = if path == "authority.log" { MAX_LOG } else { MAX_SMALL };
        if entry.size() > limit {
            return Err(format!("{path} is longer than {limit} bytes"));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if path == SUMS {
            whole = Some(bytes);
            break;
        }
        files.push((path, bytes));
    }
    let sums: String =
        files.iter().map(|(path, bytes)| format!("{}  {path}\n", hex_sum(bytes))).collect();
    match whole {
        None => return Err(format!("{SUMS} is missing: it is cut short")),
        Some(whole) if whole != sums.as_bytes() => {
            return Err("its checksums do not hold: it is damaged".to_owned());
        }
        Some(_) => {}
    }
    if files.first().is_none_or(|(path, _)| path != CONTENTS) {
        return Err(format!("it does not begin with {CONTENTS}"));
    }
    let (_, said) = files.remove(0);
    let contents: Contents =
        serde_json::from_slice(&said).map_err(|error| format!("{CONTENTS}: {error}"))?;
    if contents.format != FORMAT {
        return Err(format!("its format {} is of another version", contents.format));
    }
    Ok((contents, files))
}

/// Whether a path is one that a backup has.
fn is_ours(path: &str) -> bool {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    plain && (matches!(path, CONTENTS | SUMS | "authority.log") || path.starts_with("keys/"))
}

/// Writes the files below a directory, durably.
pub(super) fn unpack(below: &Path, files: &Files) -> Result<(), BackupError> {
    make_directory(&below.join("keys"))?;
    for (name, bytes) in files {
        let path = below.join(name);
        if let Some(dir) = path.parent() {
            make_directory(dir)?;
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        written.map_err(at(&path))?;
    }
    Ok(())
}
