//! The end of a process, in two steps: stop accepting, then stop.
//!
//! `main` makes one [`Drain`] and hands out clones. [`Drain::start`] asks every
//! holder to take nothing new; when all [`Guard`]s are gone, or the deadline
//! has passed, [`Drain::finish`] returns and the runtime may be dropped.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Hands out guards and says when to stop.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    draining: CancellationToken,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Drain {
    /// Nothing is stopping yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task that [`Drain::finish`] waits for.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// Asks every holder to take nothing new.
    pub fn start(&self) {
        self.draining.cancel();
    }

    /// Whether [`Drain::start`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits for [`Drain::start`].
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// Waits for the moment to drop everything.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Starts, waits for all tasks up to `deadline`, then tells the rest to
    /// stop. Returns how many tasks were cut.
    pub async fn finish(&self, deadline: Duration) -> usize {
        self.start();
        self.tasks.close();
        let done = tokio::time::timeout(deadline, self.tasks.wait()).await;
        let cut = if done.is_ok() { 0 } else { self.tasks.len() };
        self.stopping.cancel();
        cut
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn terminated() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
