//! Where records are kept.

use std::sync::{Mutex, PoisonError};

use mesh_api::v1::AuthorityRecord;

use super::state::FoldError;

/// What went wrong with the place where records are kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused; nothing of the commit counts.
    #[error("{path}: {problem}; nothing was changed")]
    Io {
        /// Which file or directory.
        path: String,
        /// What it said.
        problem: String,
    },
    /// The log is damaged before its end.
    #[error("{path}: damaged at byte {offset}: {problem}; {remedy}")]
    Corrupt {
        /// Which file.
        path: String,
        /// Where the first unreadable record begins.
        offset: u64,
        /// What is wrong there.
        problem: String,
        /// What a person can do.
        remedy: &'static str,
    },
    /// A record is readable and makes no sense after those before it.
    #[error("{path}: {error}")]
    Fold {
        /// Which file.
        path: String,
        /// Why.
        error: FoldError,
    },
    /// Another process has it open.
    #[error("{path}: in use by another federation; stop that one first, or give each its own state")]
    InUse {
        /// Which directory.
        path: String,
    },
}

/// Receives the records of a log in order, and may refuse one.
pub type Each<'a> = dyn FnMut(&AuthorityRecord) -> Result<(), FoldError> + 'a;

/// Keeps records durably, in order.
pub trait Store: Send + Sync + 'static {
    /// Every record, oldest first.
    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError>;

    /// Appends records; on `Ok` they survive a power loss, on `Err` none of
    /// them counts, now or after a restart that this process survives.
    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError>;
}

/// Keeps records as long as the process lives: for tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<Vec<AuthorityRecord>>,
}

impl Store for MemoryStore {
    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError> {
        let records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        let path = || "memory".to_owned();
        records.iter().try_for_each(|record| each(record)).map_err(|error| StoreError::Fold { path: path(), error })
    }

    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(records);
        Ok(())
    }
}
