//! The shipped store: the log in a file, and its index in sled beside it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use mesh_api::v1::AuthorityRecord;
use rustix::fs::FlockOperation;

use super::{
    frames::{Found, MAGIC, MAX_PAYLOAD, frame, read_frame},
    index::Index,
    store::{Each, Store, StoreError, carry_over, outlives_compaction},
};

/// Records per frame of a compacted log.
const RECORDS_PER_FRAME: usize = 1024;
/// Logs that compaction has replaced, kept for audit.
const KEPT_LOGS: usize = 8;

/// The log of a state directory: `authority.log`, `index/`, `lock`, and
/// `audit/` with the logs that compaction has replaced.
pub struct LogStore {
    directory: PathBuf,
    log: Mutex<LogFile>,
    index: Index,
    // Locked as long as it is open.
    _lock: File,
}

struct LogFile {
    file: File,
    /// Everything before is durable; everything behind is to be cut.
    end: u64,
    /// A write failed: something may be behind `end`.
    dirty: bool,
}

impl LogStore {
    /// Makes an empty log in a directory that has none.
    pub fn create(directory: &Path) -> Result<Self, StoreError> {
        let lock = lock(directory)?;
        let path = directory.join("authority.log");
        let make = || -> io::Result<()> {
            let mut file = new_file(&path)?;
            file.write_all(MAGIC)?;
            file.sync_all()?;
            File::open(directory)?.sync_all()
        };
        make().map_err(|error| io_error(&path, &error))?;
        Self::open_locked(directory, lock)
    }

    /// Opens the log of a directory and makes sure that it can be read to its
    /// end. A write that a crash left unfinished is cut off, and kept aside.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let lock = lock(directory)?;
        Self::open_locked(directory, lock)
    }

    fn open_locked(directory: &Path, lock: File) -> Result<Self, StoreError> {
        let path = directory.join("authority.log");
        let failed = |error: io::Error| io_error(&path, &error);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let bytes = fs::read(&path).map_err(failed)?;
        // Left over when a compaction was interrupted; never acknowledged.
        let _ = fs::remove_file(directory.join("authority.log.new"));

        // First whether it can be read at all: a damaged log changes nothing.
        let end = walk(&path, &bytes, |_| Ok(()))?;
        if end < bytes.len() as u64 {
            set_aside(&path, &file, &bytes, end).map_err(failed)?;
        }
        let index_path = directory.join("index");
        let index = Index::open(&index_path)
            .map_err(|error| io_error(&index_path, &io::Error::other(error.to_string())))?;
        let mut catch_up = CatchUp::new(&index);
        walk(&path, &bytes, |records| {
            catch_up.add(&records);
            Ok(())
        })?;
        let log = Mutex::new(LogFile { file, end, dirty: false });
        Ok(Self { directory: directory.to_owned(), log, index, _lock: lock })
    }

    fn path(&self) -> PathBuf {
        self.directory.join("authority.log")
    }

    fn log(&self) -> MutexGuard<'_, LogFile> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, log: &LogFile) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; usize::try_from(log.end).expect("the log was read whole before")];
        log.file.read_exact_at(&mut bytes, 0).map_err(|error| io_error(&self.path(), &error))?;
        Ok(bytes)
    }

    /// Writes the compacted log beside the old one, keeps the old one for
    /// audit, and puts the new one in its place.
    fn replace_log(&self, snapshot: &[AuthorityRecord]) -> io::Result<LogFile> {
        let (path, new) = (self.path(), self.directory.join("authority.log.new"));
        let _ = fs::remove_file(&new);
        let mut file = new_file(&new)?;
        file.write_all(MAGIC)?;
        for records in snapshot.chunks(RECORDS_PER_FRAME) {
            file.write_all(&frame(records))?;
        }
        file.sync_all()?;
        let end = file.metadata()?.len();
        let n = snapshot.last().and_then(|record| record.revision).map_or(0, |revision| revision.n);
        keep_for_audit(&self.directory.join("audit"), &path, n)?;
        fs::rename(&new, &path)?;
        File::open(&self.directory)?.sync_all()?;
        Ok(LogFile { file, end, dirty: false })
    }
}

impl Store for LogStore {
    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError> {
        let path = self.path();
        let bytes = self.read(&self.log())?;
        walk(&path, &bytes, |records| {
            let path = || path.display().to_string();
            records
                .iter()
                .try_for_each(&mut *each)
                .map_err(|error| StoreError::Fold { path: path(), error })
        })?;
        Ok(())
    }

    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError> {
        let bytes = frame(records);
        if bytes.len() > MAX_PAYLOAD {
            return Err(StoreError::TooLarge { bytes: bytes.len() });
        }
        self.log().append(&bytes).map_err(|error| io_error(&self.path(), &error))?;
        if let Err(error) = self.index.add(records) {
            log::warn!(error:%; "the index lags behind the log; it catches up at the next start");
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.log().end
    }

    fn compact(
        &self,
        mut snapshot: Vec<AuthorityRecord>,
        now_unix_s: i64,
    ) -> Result<(), StoreError> {
        let mut log = self.log();
        let mut carried = Vec::new();
        walk(&self.path(), &self.read(&log)?, |records| {
            carried.extend(records.into_iter().filter(|r| outlives_compaction(r, now_unix_s)));
            Ok(())
        })?;
        carry_over(&mut snapshot, carried);
        *log = self.replace_log(&snapshot).map_err(|error| io_error(&self.path(), &error))?;
        drop(log);
        if let Err(error) = self.index.prune(now_unix_s) {
            log::warn!(error:%; "the index keeps certificates that have ended");
        }
        Ok(())
    }

    fn certificate(&self, serial: &str) -> Option<AuthorityRecord> {
        self.index.certificate(serial)
    }
}

impl LogFile {
    fn append(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.dirty {
            self.cut()?;
        }
        self.dirty = true;
        let written = self.file.write_all_at(frame, self.end).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Best now, so that not even a restart finds what was refused.
            let _ = self.cut();
            return Err(error);
        }
        self.end += frame.len() as u64;
        self.dirty = false;
        Ok(())
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.sync_all()?;
        self.dirty = false;
        Ok(())
    }
}

/// Brings an index up to the log while the log is read.
struct CatchUp<'a> {
    index: &'a Index,
    /// What the index has; `None` once it is known to be of this log.
    had: Option<(u64, u64)>,
    n: u64,
}

impl<'a> CatchUp<'a> {
    fn new(index: &'a Index) -> Self {
        let had = index.indexed();
        Self { index, had: Some(had), n: had.1 }
    }

    fn add(&mut self, records: &[AuthorityRecord]) {
        let Some(revision) = records.first().and_then(|record| record.revision) else { return };
        if let Some((epoch, _)) = self.had.take()
            && epoch != revision.epoch
        {
            log::info!("the index is made again from the log");
            self.report(self.index.clear());
            self.n = 0;
        }
        let missing =
            records.iter().filter(|r| r.revision.is_some_and(|revision| revision.n > self.n));
        self.report(self.index.add(missing));
    }

    fn report(&self, result: Result<(), super::index::IndexError>) {
        if let Err(error) = result {
            log::warn!(error:%; "the index is incomplete");
        }
    }
}

/// Goes through the frames of a log; returns where the last whole one ends.
pub(crate) fn walk(
    path: &Path,
    bytes: &[u8],
    mut each: impl FnMut(Vec<AuthorityRecord>) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let corrupt = |offset: usize, problem: String| StoreError::Corrupt {
        path: path.display().to_string(),
        offset: offset as u64,
        problem,
    };
    if !bytes.starts_with(MAGIC) {
        return Err(corrupt(
            0,
            "not an authority log of a version that this federation reads".into(),
        ));
    }
    let mut offset = MAGIC.len();
    loop {
        match read_frame(&bytes[offset..], offset as u64) {
            Found::Frame { records, length } => {
                each(records)?;
                offset += length;
            }
            Found::End | Found::Torn => return Ok(offset as u64),
            Found::Damaged(problem) => return Err(corrupt(offset, problem)),
        }
    }
}

/// Cuts an unfinished write off the log and keeps it in a file of its own.
fn set_aside(path: &Path, file: &File, bytes: &[u8], end: u64) -> io::Result<()> {
    let torn = &bytes[usize::try_from(end).expect("an offset into bytes")..];
    let aside = path.with_extension(format!("log.cut-{end}"));
    let _ = fs::remove_file(&aside);
    new_file(&aside)?.write_all(torn)?;
    file.set_len(end)?;
    file.sync_all()?;
    log::warn!(path:% = path.display(), offset = end, bytes = torn.len(), kept:% = aside.display();
        "the last write to the log was never finished nor acknowledged; it is cut off");
    Ok(())
}

fn keep_for_audit(directory: &Path, log: &Path, n: u64) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let kept = directory.join(format!("authority-{n:020}.log"));
    if !kept.exists() {
        fs::hard_link(log, kept)?;
    }
    let mut logs: Vec<PathBuf> =
        fs::read_dir(directory)?.filter_map(|e| Some(e.ok()?.path())).collect();
    logs.sort();
    let surplus = logs.len().saturating_sub(KEPT_LOGS);
    logs.iter().take(surplus).try_for_each(fs::remove_file)
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Takes the directory for this process, until the file is closed.
fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(|error| io_error(&path, &error))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(StoreError::InUse { path: directory.display().to_string() })
        }
        Err(error) => Err(io_error(&path, &error.into())),
    }
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "make a site with `meshctl site init <name>`, or correct `state`"
        }
        io::ErrorKind::PermissionDenied => "give the user of federation the right to write there",
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on that disk",
        io::ErrorKind::FileTooLarge => "raise the limit on file sizes (LimitFSIZE=, ulimit -f)",
        io::ErrorKind::ReadOnlyFilesystem => "mount it writable",
        io::ErrorKind::AlreadyExists => "there is a site here already; choose another directory",
        _ => "nothing was changed; look at the disk",
    };
    StoreError::Io { path: path.display().to_string(), problem: error.to_string(), remedy }
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{NodeLeft, Revision, authority_record::Event};

    use super::*;

    fn record(n: u64) -> AuthorityRecord {
        AuthorityRecord {
            revision: Some(Revision { epoch: 1, n }),
            event: Some(Event::NodeLeft(NodeLeft { id: n.to_string() })),
            ..Default::default()
        }
    }

    fn numbers(store: &LogStore) -> Vec<u64> {
        let mut numbers = Vec::new();
        let push = &mut |record: &AuthorityRecord| {
            numbers.push(record.revision.unwrap().n);
            Ok(())
        };
        store.replay(push).unwrap();
        numbers
    }

    /// Lets the store write to something else than its log for a while.
    fn with_file(store: &LogStore, other: File, test: impl FnOnce()) {
        let own = std::mem::replace(&mut store.log().file, other);
        test();
        store.log().file = own;
    }

    #[test]
    fn a_disk_that_is_full_or_read_only_refuses_and_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::create(directory.path()).unwrap();
        store.commit(&[record(1)]).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        with_file(&store, full, || {
            let error = store.commit(&[record(2)]).unwrap_err().to_string();
            assert!(error.contains("No space left") && error.contains("make room"), "{error}");
        });
        let read_only = File::open(store.path()).unwrap();
        with_file(&store, read_only, || {
            assert!(store.commit(&[record(2)]).is_err());
            assert_eq!(numbers(&store), [1], "reads go on");
        });
        store.commit(&[record(2)]).unwrap();
        drop(store);
        assert_eq!(numbers(&LogStore::open(directory.path()).unwrap()), [1, 2]);
    }

    #[test]
    fn what_a_failed_write_left_behind_is_cut_before_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::create(directory.path()).unwrap();
        store.commit(&[record(1)]).unwrap();
        {
            let mut log = store.log();
            let end = log.end;
            log.file.write_all_at(&[0xee; 5000], end).unwrap();
            log.dirty = true;
        }
        store.commit(&[record(2)]).unwrap();
        let size = store.size();
        assert_eq!(fs::metadata(store.path()).unwrap().len(), size);
        drop(store);
        assert_eq!(numbers(&LogStore::open(directory.path()).unwrap()), [1, 2]);
    }

    #[test]
    fn old_logs_are_kept_for_audit_but_not_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let store = LogStore::create(directory.path()).unwrap();
        for n in 1..=12 {
            store.commit(&[record(n)]).unwrap();
            store.compact(vec![record(n)], 0).unwrap();
        }
        let audit = fs::read_dir(directory.path().join("audit")).unwrap();
        let mut names: Vec<_> =
            audit.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names.len(), KEPT_LOGS);
        assert!(names.last().unwrap().contains("0012"), "{names:?}");
    }
}
