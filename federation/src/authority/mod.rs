//! The durable truth of a site: an append-only log, and the state it folds to.
//!
//! Every change is a *decision*: a function of the newest state that answers
//! with events or with a refusal. Decisions are taken one after another, so a
//! token with one use left lets in one node however many ask at once. A commit
//! returns when its events are on the disk, and readers see only such states.

mod differences;
pub mod entries;
pub mod frames;
mod index;
pub mod log_store;
mod restored;
pub mod rotation;
pub mod snapshot;
pub mod state;
pub mod store;

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_api::v1::{
    AuthorityRecord, Revision as WireRevision, SiteCreated, authority_record::Event,
};
use mesh_core::Revision;
use prost::Message;
use tokio::sync::{oneshot, watch};

use crate::clock::Clock;

pub use differences::differences;
pub use log_store::LogStore;
pub use state::{FoldError, State};
pub use store::{MemoryStore, Store, StoreError};

/// Decisions that may wait for the disk at once; more are refused rather than
/// kept in memory while a disk hangs.
const MAX_WAITING: usize = 4096;

/// Encoded records that may wait for the disk at once, in bytes; must fit in
/// one frame of the log.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// A log is compacted when it is this large, in bytes, ...
const COMPACT_AT: u64 = 16 << 20;
/// ... and this many times as large as after the last compaction.
const COMPACT_GROWTH: u64 = 4;

/// Why a commit did not happen. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError<E> {
    /// The decision was no.
    #[error(transparent)]
    Refused(E),
    /// The decision was yes, and could not be made durable.
    #[error("{0}")]
    Store(StoreError),
    /// Too many commits wait for the disk.
    #[error("{MAX_WAITING} changes wait for the disk of the state directory; try again")]
    Busy,
    /// Federation is going away.
    #[error("federation is stopping; try again")]
    Stopping,
}

/// The decisions, the log and the state of one site. Clones share it.
#[derive(Clone)]
pub struct Authority {
    shared: Arc<Shared>,
    // Dropped with the last clone, which ends the writer.
    _writer: Arc<StopWriter>,
}

struct Shared {
    store: Box<dyn Store>,
    clock: Clock,
    durable: ArcSwap<State>,
    revision: watch::Sender<Revision>,
    /// Why the last write failed, if it did.
    failing: ArcSwapOption<StoreError>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Held during a write that no thread makes: states are published in order.
    turn: Mutex<()>,
}

/// What is decided and not yet durable.
struct Queue {
    /// What the log holds once the batch that is being written is durable.
    base: State,
    /// The base and all waiting records.
    newest: State,
    waiting: Vec<AuthorityRecord>,
    waiting_bytes: usize,
    callers: Vec<Caller>,
    stopping: bool,
}

struct StopWriter {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for StopWriter {
    /// Waits for the last write: whoever opens the store next must find it
    /// closed.
    fn drop(&mut self) {
        self.shared.queue().stopping = true;
        self.shared.wake.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the writer of the authority log has panicked");
        }
    }
}

impl Queue {
    /// Appends events as records. If one of them cannot follow the others the
    /// queue is as before.
    fn add(&mut self, actor: &str, at_unix_ms: i64, events: Vec<Event>) -> Result<(), FoldError> {
        let before = self.waiting.len();
        for event in events {
            let Revision { epoch, n } = self.newest.revision;
            let record = AuthorityRecord {
                revision: Some(WireRevision { epoch, n: n + 1 }),
                at_unix_ms,
                actor: actor.to_owned(),
                event: Some(event),
            };
            if let Err(error) = self.newest.fold(&record) {
                self.waiting.truncate(before);
                self.newest = self.base.clone();
                return self.waiting.iter().try_for_each(|r| self.newest.fold(r)).and(Err(error));
            }
            self.waiting_bytes += record.encoded_len();
            self.waiting.push(record);
        }
        Ok(())
    }

    /// Hands everything that waits to the writer.
    fn take(&mut self) -> Batch {
        self.base = self.newest.clone();
        self.waiting_bytes = 0;
        Batch {
            records: std::mem::take(&mut self.waiting),
            callers: std::mem::take(&mut self.callers),
            state: self.base.clone(),
        }
    }

    /// Goes back to what is durable; answers whoever waited on top of it.
    fn roll_back(&mut self, durable: &State) -> Vec<Caller> {
        self.base = durable.clone();
        self.newest = durable.clone();
        self.waiting.clear();
        self.waiting_bytes = 0;
        std::mem::take(&mut self.callers)
    }
}

/// Waits for its part of a batch.
type Caller = oneshot::Sender<Result<(), StoreError>>;

/// Resolves when its part of a batch is durable, or is not.
type Durable = oneshot::Receiver<Result<(), StoreError>>;

/// What one `fdatasync` makes durable.
struct Batch {
    records: Vec<AuthorityRecord>,
    callers: Vec<Caller>,
    state: State,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing in it.
    #[error("there is no site here yet; make one with `meshctl site init <name>`")]
    NoSite,
    /// The writer thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

impl Authority {
    /// Begins the log of a new site in an empty store. The epoch is random.
    pub fn create(store: &dyn Store, clock: &Clock, site: SiteCreated) -> Result<(), StoreError> {
        let record = AuthorityRecord {
            revision: Some(WireRevision { epoch: rand::random(), n: 1 }),
            at_unix_ms: clock.unix_ms(),
            actor: "federation".into(),
            event: Some(Event::SiteCreated(site)),
        };
        store.commit(&[record])
    }

    /// Folds the whole log and starts the writer.
    pub fn open(store: impl Store, clock: Clock) -> Result<Self, OpenError> {
        let mut state = State::default();
        store.replay(&mut |record| state.fold(record))?;
        if state.site.is_none() {
            return Err(OpenError::NoSite);
        }
        let shared = Arc::new(Shared {
            store: Box::new(store),
            clock,
            revision: watch::Sender::new(state.revision),
            durable: ArcSwap::from_pointee(state.clone()),
            failing: ArcSwapOption::empty(),
            queue: Mutex::new(Queue {
                base: state.clone(),
                newest: state,
                waiting: Vec::new(),
                waiting_bytes: 0,
                callers: Vec::new(),
                stopping: false,
            }),
            wake: Condvar::new(),
            turn: Mutex::new(()),
        });
        let writer = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("authority-log".into())
            .spawn(move || write_batches(&writer))
            .map_err(OpenError::Thread)?;
        let writer = StopWriter { shared: Arc::clone(&shared), thread: Some(thread) };
        Ok(Self { _writer: Arc::new(writer), shared })
    }

    /// The newest durable state.
    pub fn state(&self) -> Arc<State> {
        self.shared.durable.load_full()
    }

    /// The log's lineage.
    pub fn epoch(&self) -> u64 {
        self.shared.durable.load().revision.epoch
    }

    /// Wakes after every durable change.
    pub fn revision(&self) -> watch::Receiver<Revision> {
        self.shared.revision.subscribe()
    }

    /// Why changes are refused at the moment: the last write to the disk
    /// failed. Reads go on.
    pub fn failing(&self) -> Option<Arc<StoreError>> {
        self.shared.failing.load_full()
    }

    /// Where the records are: looks certificates up by serial number.
    pub fn store(&self) -> &dyn Store {
        &*self.shared.store
    }

    /// The clock that records are stamped with.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// Takes a decision on the newest state, and returns its answer when its
    /// events are durable and visible in [`Authority::state`].
    ///
    /// `actor` is a SPIFFE ID, `local:<uid>` or `federation`. The decision
    /// runs under a lock: it may compute, and must not wait. It sees decisions
    /// that are not durable yet; should the disk refuse those, this one is
    /// refused too.
    pub async fn commit<T, E>(
        &self,
        actor: &str,
        decide: impl FnOnce(&State) -> Result<(Vec<Event>, T), E>,
    ) -> Result<T, CommitError<E>> {
        let (answer, durable) = self.decide(actor, decide)?;
        match durable.await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(error)) => Err(CommitError::Store(error)),
            Err(_) => Err(CommitError::Stopping),
        }
    }

    fn decide<T, E>(
        &self,
        actor: &str,
        decide: impl FnOnce(&State) -> Result<(Vec<Event>, T), E>,
    ) -> Result<(T, Durable), CommitError<E>> {
        let mut queue = self.shared.queue();
        if queue.callers.len() >= MAX_WAITING || queue.waiting_bytes >= MAX_WAITING_BYTES {
            return Err(CommitError::Busy);
        }
        let (events, answer) = decide(&queue.newest).map_err(CommitError::Refused)?;
        if let Err(error) = queue.add(actor, self.shared.clock.unix_ms(), events) {
            return Err(CommitError::Store(StoreError::Fold { path: "decision".into(), error }));
        }
        let (caller, durable) = oneshot::channel();
        queue.callers.push(caller);
        drop(queue);
        if self.shared.store.waits() {
            self.shared.wake.notify_one();
        } else {
            write_at_once(&self.shared);
        }
        Ok((answer, durable))
    }
}

/// The writer thread: everything that waits goes to the disk together.
fn write_batches(shared: &Shared) {
    let mut compact_at = COMPACT_AT;
    loop {
        let mut queue = shared.queue();
        while queue.callers.is_empty() && !queue.stopping {
            queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if queue.callers.is_empty() {
            return;
        }
        let batch = queue.take();
        drop(queue);
        write(shared, batch);
        if shared.store.size() >= compact_at {
            compact(shared);
            compact_at = COMPACT_AT.max(shared.store.size().saturating_mul(COMPACT_GROWTH));
        }
    }
}

/// The same where a write takes no time.
fn write_at_once(shared: &Shared) {
    let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
    let batch = shared.queue().take();
    if !batch.callers.is_empty() {
        write(shared, batch);
    }
}

fn write(shared: &Shared, batch: Batch) {
    let written = match batch.records.as_slice() {
        [] => Ok(()),
        records => {
            let written = shared.store.commit(records);
            shared.failing.store(written.as_ref().err().cloned().map(Arc::new));
            written
        }
    };
    match written {
        Ok(()) => publish(shared, batch),
        Err(error) => refuse(shared, &error, batch),
    }
}

fn publish(shared: &Shared, batch: Batch) {
    let revision = batch.state.revision;
    shared.durable.store(Arc::new(batch.state));
    shared.revision.send_if_modified(|old| std::mem::replace(old, revision) != revision);
    for caller in batch.callers {
        // A caller that has gone away no longer wants its answer.
        let _ = caller.send(Ok(()));
    }
}

fn compact(shared: &Shared) {
    let now = shared.clock.unix_s();
    let snapshot = snapshot::records(&shared.durable.load(), now);
    match shared.store.compact(snapshot, now) {
        Ok(()) => log::info!(bytes = shared.store.size(); "the log is compacted"),
        Err(error) => log::warn!(error:%; "the log is not compacted and goes on growing"),
    }
}

/// What was decided on top of a failed batch fails with it.
fn refuse(shared: &Shared, error: &StoreError, batch: Batch) {
    log::error!(error:% = error; "a change could not be made durable; reads go on");
    let later = shared.queue().roll_back(&shared.durable.load());
    for caller in batch.callers.into_iter().chain(later) {
        let _ = caller.send(Err(error.clone()));
    }
}

#[cfg(test)]
mod tests;
