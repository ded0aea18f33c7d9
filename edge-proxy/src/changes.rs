//! Tells what runs that policies have changed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use mesh_core::Snapshot;
use tokio::sync::Notify;

use crate::worker::Worker;

/// How often policies have changed, of one worker.
#[derive(Debug, Default)]
pub struct Changes {
    count: AtomicU64,
    told: Notify,
}

impl Changes {
    /// To be asked for before the snapshot that is decided from.
    pub fn seen(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Waits until there are more than were `seen`; returns how many.
    pub async fn after(&self, seen: u64) -> u64 {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            let now = self.seen();
            if now != seen {
                return now;
            }
            told.await;
        }
    }

    fn tell(&self) {
        self.count.fetch_add(1, Ordering::Release);
        self.told.notify_waiters();
    }
}

/// Watches the snapshots of a worker until it ends.
pub async fn watch(worker: Arc<Worker>) {
    let mut replaced = worker.shared.snapshot.changed();
    let mut before = worker.shared.snapshot.load();
    while replaced.changed().await.is_ok() {
        let now = worker.shared.snapshot.load();
        if let (Some(old), Some(new)) = (&before, &now)
            && differ(old, new)
        {
            worker.changes.tell();
        }
        before = now;
    }
}

/// Whether the policy of a service is another one. One that is gone is no
/// matter of policy.
fn differ(old: &Snapshot, new: &Snapshot) -> bool {
    new.services.iter().any(|(name, new)| {
        let old = old.services.get(name);
        old.is_some_and(|old| !Arc::ptr_eq(old, new) && old.policy != new.policy)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn none_is_missed() {
        let changes = Changes::default();
        let seen = changes.seen();
        let waits = |seen| tokio::time::timeout(Duration::from_secs(1), changes.after(seen));
        assert!(waits(seen).await.is_err(), "there is none");
        changes.tell();
        assert_eq!(waits(seen).await, Ok(1));
        let (after, ()) = tokio::join!(waits(1), async { changes.tell() });
        assert_eq!(after, Ok(2));
    }
}
