//! Where records are kept.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_api::v1::{AuthorityRecord, WorkloadIssued, authority_record::Event};
use prost::Message;

use super::state::FoldError;

/// What went wrong with the place where records are kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused; nothing of the commit counts.
    #[error("{path}: {problem}; {remedy}")]
    Io {
        /// Which file or directory.
        path: String,
        /// What it said.
        problem: String,
        /// What a person can do.
        remedy: &'static str,
    },
    /// The log is damaged before its end.
    #[error(
        "{path}: damaged at byte {offset}: {problem}; restore the state directory from a backup, \
         or give up every change after that place with: truncate -s {offset} {path}"
    )]
    Corrupt {
        /// Which file.
        path: String,
        /// Where the first unreadable frame begins.
        offset: u64,
        /// What is wrong there.
        problem: String,
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
    #[error("{path}: in use by another federation; stop that one, or give each its own state")]
    InUse {
        /// Which directory.
        path: String,
    },
    /// More at once than a frame can hold.
    #[error("a change of {bytes} bytes is larger than the log takes at once")]
    TooLarge {
        /// Encoded.
        bytes: usize,
    },
}

/// Receives the records of a log in order, and may refuse one.
pub type Each<'a> = dyn FnMut(&AuthorityRecord) -> Result<(), FoldError> + 'a;

/// Keeps records durably, in order; and, derived from them, an index of issued
/// certificates.
pub trait Store: Send + Sync + 'static {
    /// Whether a commit may take its time, as a disk does: then a thread of its
    /// own makes it. One that does not is made at once, by whoever decides; in
    /// a simulation no time passes meanwhile.
    fn waits(&self) -> bool {
        true
    }

    /// Every record, oldest first.
    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError>;

    /// Appends records; on `Ok` they survive a power loss, on `Err` none of
    /// them counts.
    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError>;

    /// Bytes of the log.
    fn size(&self) -> u64;

    /// Replaces the log by these records and the certificates that are still
    /// valid at `now_unix_s`; all or nothing, whenever the power fails.
    fn compact(&self, snapshot: Vec<AuthorityRecord>, now_unix_s: i64) -> Result<(), StoreError>;

    /// The record that issued the certificate with this serial number
    /// (lower-case hex), if it has not ended long ago.
    fn certificate(&self, serial: &str) -> Option<AuthorityRecord>;
}

/// The serial number, subject node and end of what a record issued.
pub(super) fn issued(record: &AuthorityRecord) -> Option<(&str, &str, i64)> {
    match record.event.as_ref()? {
        Event::NodeJoined(node) => Some((&node.serial, &node.id, node.not_after_unix_s)),
        Event::NodeRenewed(node) => Some((&node.serial, &node.id, node.not_after_unix_s)),
        Event::WorkloadIssued(leaf) => Some((&leaf.serial, &leaf.node, leaf.not_after_unix_s)),
        _ => None,
    }
}

/// Whether compaction must carry a record over, because no state holds it.
pub(super) fn outlives_compaction(record: &AuthorityRecord, now_unix_s: i64) -> bool {
    leaf(record).is_some_and(|leaf| leaf.not_after_unix_s > now_unix_s)
}

/// Adds to a snapshot, with its revision, what the index needs besides. Of
/// certificates that the snapshot has in use, only who asked for them and when;
/// the others are marked, so that no state takes them for used. Each stands there
/// once, however often this is done.
pub(super) fn carry_over(snapshot: &mut Vec<AuthorityRecord>, carried: Vec<AuthorityRecord>) {
    let revision = snapshot.last().and_then(|record| record.revision);
    let used = snapshot.iter().enumerate();
    let used = used.filter_map(|(at, record)| Some((leaf(record)?.serial.clone(), at)));
    let used: BTreeMap<_, _> = used.collect();
    let mut unused = BTreeMap::new();
    for mut record in carried {
        let Some(Event::WorkloadIssued(leaf)) = &mut record.event else { continue };
        let Some(known) = used.get(&leaf.serial).and_then(|at| snapshot.get_mut(*at)) else {
            leaf.replaced = true;
            let serial = leaf.serial.clone();
            unused.entry(serial).or_insert(AuthorityRecord { revision, ..record });
            continue;
        };
        if let Some(Event::WorkloadIssued(known)) = &mut known.event {
            known.node_serial = std::mem::take(&mut leaf.node_serial);
        }
        (known.actor, known.at_unix_ms) = (record.actor, record.at_unix_ms);
    }
    snapshot.extend(unused.into_values());
}

fn leaf(record: &AuthorityRecord) -> Option<&WorkloadIssued> {
    match &record.event {
        Some(Event::WorkloadIssued(leaf)) => Some(leaf),
        _ => None,
    }
}

/// Keeps records as long as the process lives: for tests and simulations.
/// Clones share them.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Debug, Default)]
struct Kept {
    records: Vec<AuthorityRecord>,
    size: u64,
}

fn size_of(records: &[AuthorityRecord]) -> u64 {
    records.iter().map(|record| record.encoded_len() as u64).sum()
}

impl MemoryStore {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn waits(&self) -> bool {
        false
    }

    fn replay(&self, each: &mut Each<'_>) -> Result<(), StoreError> {
        let fold = |error| StoreError::Fold { path: "memory".into(), error };
        self.kept().records.iter().try_for_each(each).map_err(fold)
    }

    fn commit(&self, records: &[AuthorityRecord]) -> Result<(), StoreError> {
        let mut kept = self.kept();
        kept.size += size_of(records);
        kept.records.extend_from_slice(records);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.kept().size
    }

    fn compact(
        &self,
        mut snapshot: Vec<AuthorityRecord>,
        now_unix_s: i64,
    ) -> Result<(), StoreError> {
        let mut kept = self.kept();
        let old = std::mem::take(&mut kept.records);
        carry_over(
            &mut snapshot,
            old.into_iter().filter(|r| outlives_compaction(r, now_unix_s)).collect(),
        );
        kept.size = size_of(&snapshot);
        kept.records = snapshot;
        Ok(())
    }

    fn certificate(&self, serial: &str) -> Option<AuthorityRecord> {
        let kept = self.kept();
        kept.records.iter().find(|r| issued(r).is_some_and(|(known, ..)| known == serial)).cloned()
    }
}
