//! What is looked up by key and can be made again from the log: issued
//! certificates by serial number. In sled.

use std::{
    fmt, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use mesh_api::v1::AuthorityRecord;
use prost::Message;

use super::store::issued;

/// Memory that sled may use for pages, in bytes: its own default is 1 GiB.
const CACHE: u64 = 8 << 20;
/// Where the (epoch, n) is kept up to which the index is complete.
const INDEXED: &[u8] = b"indexed";

/// The index of one log.
pub(super) struct Index {
    database: sled::Db,
    certificates: sled::Tree,
}

/// sled's refusals and the panics it answers damaged files with.
#[derive(Debug)]
pub(super) struct IndexError(String);

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<sled::Error> for IndexError {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

impl Index {
    /// Opens the index, or makes an empty one where there is none that opens.
    pub(super) fn open(path: &Path) -> Result<Self, IndexError> {
        Self::open_existing(path).or_else(|error| {
            log::warn!(path:% = path.display(), error:%;
                "the index does not open and is made again from the log");
            let remove = if path.is_dir() { fs::remove_dir_all } else { fs::remove_file };
            remove(path).map_err(|error| IndexError(error.to_string()))?;
            Self::open_existing(path)
        })
    }

    fn open_existing(path: &Path) -> Result<Self, IndexError> {
        let open = || -> Result<Self, sled::Error> {
            let database = sled::Config::new().path(path).cache_capacity(CACHE).open()?;
            let certificates = database.open_tree("certificates")?;
            Ok(Self { database, certificates })
        };
        // sled 0.34 asserts what it reads.
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(opened) => Ok(opened?),
            Err(_) => Err(IndexError("its files are damaged".into())),
        }
    }

    /// The (epoch, n) of the newest record that is indexed.
    pub(super) fn indexed(&self) -> (u64, u64) {
        let stored = self.certificates.get(INDEXED).ok().flatten();
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).unwrap_or(0);
        stored.filter(|v| v.len() == 16).map_or((0, 0), |v| (number(&v[..8]), number(&v[8..])))
    }

    /// Adds what these records issued. Atomic, so `indexed` is never ahead of
    /// what is there.
    pub(super) fn add<'a>(
        &self,
        records: impl IntoIterator<Item = &'a AuthorityRecord>,
    ) -> Result<(), IndexError> {
        let mut batch = sled::Batch::default();
        let mut newest = None;
        for record in records {
            newest = record.revision.or(newest);
            if let Some((serial, _, _)) = issued(record) {
                batch.insert(certificate_key(serial), record.encode_to_vec());
            }
        }
        if let Some(revision) = newest {
            let value = [revision.epoch.to_be_bytes(), revision.n.to_be_bytes()].concat();
            batch.insert(INDEXED, value);
        }
        Ok(self.certificates.apply_batch(batch)?)
    }

    /// Forgets everything, before a rebuild.
    pub(super) fn clear(&self) -> Result<(), IndexError> {
        Ok(self.certificates.clear()?)
    }

    /// Forgets certificates that have ended.
    pub(super) fn prune(&self, now_unix_s: i64) -> Result<(), IndexError> {
        for (serial, record) in self.records() {
            if issued(&record).is_some_and(|(_, _, not_after)| not_after <= now_unix_s) {
                self.certificates.remove(serial)?;
            }
        }
        Ok(())
    }

    pub(super) fn certificate(&self, serial: &str) -> Option<AuthorityRecord> {
        let bytes = self.certificates.get(certificate_key(serial)).ok()??;
        AuthorityRecord::decode(&*bytes).ok()
    }

    /// Every indexed record with its key.
    fn records(&self) -> impl Iterator<Item = (sled::IVec, AuthorityRecord)> {
        let entries = self.certificates.scan_prefix(b"c/").filter_map(Result::ok);
        entries.filter_map(|(key, bytes)| Some((key, AuthorityRecord::decode(&*bytes).ok()?)))
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if let Err(error) = self.database.flush() {
            log::warn!(error:%; "the index was not written out; it catches up from the log");
        }
    }
}

fn certificate_key(serial: &str) -> Vec<u8> {
    [b"c/", serial.as_bytes()].concat()
}
