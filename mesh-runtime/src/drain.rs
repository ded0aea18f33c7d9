//! The end of a process, in two steps: stop accepting, then stop.
//!
//! `main` makes one [`Drain`] and hands out clones. [`Drain::start`] asks every
//! holder to take nothing new; when all its tasks have ended, or the deadline
//! has passed, [`Drain::finish`] returns and the runtime may be dropped.
//!
//! A process that a successor replaces leaves before that: from
//! [`Drain::leave`] on it accepts no connection, and serves those it has as
//! before until [`Drain::left`] returns.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Runs tasks and says when to stop.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    leaving: CancellationToken,
    draining: CancellationToken,
    stopping: CancellationToken,
    /// As `leaving` and `draining`, for those who ask with every request: no
    /// lock.
    is_closing: Arc<AtomicBool>,
    is_draining: Arc<AtomicBool>,
    tasks: TaskTracker,
    connections: TaskTracker,
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

    /// As [`Drain::spawn`], for what [`Drain::left`] waits for: a connection.
    pub fn spawn_connection<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(self.connections.track_future(task));
    }

    /// Runs a task that goes on while the process drains and is dropped when
    /// [`Drain::finish`] says stop; nobody waits for it.
    pub fn spawn_beside<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Asks every holder to accept no connection: somebody else does.
    pub fn leave(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.leaving.cancel();
    }

    /// Waits for [`Drain::leave`].
    pub async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    /// Whether [`Drain::leave`] or [`Drain::start`] was called: who has a
    /// connection should open a new one for what comes next.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Waits for [`Drain::leave`] or [`Drain::start`].
    pub async fn closing(&self) {
        tokio::select! {
            () = self.leaving() => {}
            () = self.draining() => {}
        }
    }

    /// Waits until no connection is left.
    pub async fn left(&self) {
        self.connections.close();
        self.connections.wait().await;
    }

    /// Asks every holder to take nothing new.
    pub fn start(&self) {
        // Before the wake-ups: who is woken asks.
        self.is_closing.store(true, Ordering::Release);
        self.is_draining.store(true, Ordering::Release);
        self.draining.cancel();
    }

    /// Whether [`Drain::start`] was called.
    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
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
    Termination::listen()?.wait().await;
    Ok(())
}

/// SIGTERM and SIGINT from now on: one that comes while nobody waits is not
/// lost.
#[derive(Debug)]
pub struct Termination {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Termination {
    /// Both signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Waits for either.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paused<T>(test: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::pause();
            test.await
        })
    }

    #[test]
    fn tasks_finish_before_the_deadline() {
        paused(async {
            let drain = Drain::new();
            let task = drain.clone();
            drain.spawn(async move {
                task.draining().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            });
            assert!(!drain.is_draining());
            assert_eq!(drain.finish(Duration::from_secs(2)).await, 0);
            assert!(drain.is_draining());
        });
    }

    #[test]
    fn who_leaves_goes_on_until_the_last_connection_has_ended() {
        paused(async {
            let drain = Drain::new();
            drain.spawn(std::future::pending());
            drain.spawn_connection(tokio::time::sleep(Duration::from_secs(3)));
            drain.leave();
            drain.leaving().await;
            drain.closing().await;
            assert!(drain.is_closing() && !drain.is_draining());
            let began = tokio::time::Instant::now();
            drain.left().await;
            assert_eq!(began.elapsed().as_secs(), 3);
            assert!(!drain.is_draining());
        });
    }

    #[test]
    fn the_deadline_cuts_what_remains() {
        paused(async {
            let drain = Drain::new();
            drain.spawn(std::future::pending());
            let task = drain.clone();
            drain.spawn(async move { task.draining().await });
            drain.spawn_beside(std::future::pending());
            assert_eq!(drain.finish(Duration::from_secs(2)).await, 1);
            drain.stopping().await;
        });
    }
}
