//! The end of a process, step by step: stop accepting, then refuse, then stop.
//!
//! `main` makes one [`Drain`] and hands out clones. [`Drain::start`] asks every
//! holder to take nothing new that could go elsewhere, and who has nowhere else
//! to go is served as long as anything lingers. [`Drain::refuse`] ends that:
//! when all tasks have ended, too, or the deadline has passed,
//! [`Drain::finish`] returns and the runtime may be dropped.
//!
//! A process that a successor replaces leaves before that: from
//! [`Drain::leave`] on it accepts no connection, and serves those it has as
//! before until [`Drain::left`] returns. One that is started again parts from
//! its clients ([`Drain::part`]), who come to the process after it.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long what came while others lingered may take, at least.
pub const LAST: Duration = Duration::from_secs(5);

/// Runs tasks and says when to stop.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    leaving: CancellationToken,
    closing: CancellationToken,
    draining: CancellationToken,
    refusing: CancellationToken,
    stopping: CancellationToken,
    /// As the tokens, for those who ask with every request: no lock.
    is_closing: Arc<AtomicBool>,
    is_draining: Arc<AtomicBool>,
    is_refusing: Arc<AtomicBool>,
    tasks: TaskTracker,
    /// Clients'.
    connections: TaskTracker,
    /// The mesh's callers'.
    sessions: TaskTracker,
    /// Requests of the mesh: those that linger, and those that have come since
    /// the drain began.
    requests: [TaskTracker; 2],
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

    /// As [`Drain::spawn`], for a client's connection: it lingers.
    pub fn spawn_connection<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(self.connections.track_future(task));
    }

    /// As [`Drain::spawn`], for what carries requests of the mesh: it is there
    /// for as long as anything else lingers.
    pub fn spawn_session<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.spawn(self.sessions.track_future(task));
    }

    /// As [`Drain::spawn`], for one of these requests. It lingers if it has come
    /// before the drain began, or if it `lasts` like a connection.
    pub fn spawn_request<F>(&self, lasts: bool, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.requests[usize::from(self.is_draining() && !lasts)].spawn(task);
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
        self.close();
        self.leaving.cancel();
    }

    /// Waits for [`Drain::leave`].
    pub async fn leaving(&self) {
        self.leaving.cancelled().await;
    }

    /// Asks who serves clients to let them go: they find the process after this
    /// one, where the mesh's callers do not yet.
    pub fn part(&self) {
        self.close();
    }

    /// Before the wake-ups: who is woken asks.
    fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        self.closing.cancel();
    }

    /// Whether [`Drain::leave`], [`Drain::part`] or [`Drain::start`] was called:
    /// a client should open a new connection for what comes next.
    pub fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// Waits for [`Drain::leave`], [`Drain::part`] or [`Drain::start`].
    pub async fn closing(&self) {
        self.closing.cancelled().await;
    }

    /// Waits until no client's connection is left.
    pub async fn parted(&self) {
        ended(&self.connections).await;
    }

    /// Waits until no connection is left, nor any session.
    pub async fn left(&self) {
        self.parted().await;
        ended(&self.sessions).await;
    }

    /// Asks every holder to take nothing new, but of those who have nowhere
    /// else to go.
    pub fn start(&self) {
        self.is_draining.store(true, Ordering::Release);
        self.close();
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

    /// Waits until nothing lingers: no client's connection, and no request that
    /// [`Drain::refuse`] would end for long.
    async fn lingering(&self) {
        self.parted().await;
        ended(&self.requests[0]).await;
    }

    /// Asks every holder to take nothing at all.
    pub fn refuse(&self) {
        self.start();
        self.is_refusing.store(true, Ordering::Release);
        self.refusing.cancel();
    }

    /// Whether [`Drain::refuse`] was called.
    pub fn is_refusing(&self) -> bool {
        self.is_refusing.load(Ordering::Acquire)
    }

    /// Waits for [`Drain::refuse`].
    pub async fn refusing(&self) {
        self.refusing.cancelled().await;
    }

    /// Waits for the moment to drop everything.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// The longest that [`Drain::finish`] takes.
    pub fn longest(deadline: Duration) -> Duration {
        deadline + LAST.min(deadline)
    }

    /// Starts, waits for what lingers up to `deadline`, refuses, waits for the
    /// rest, and tells what is left then to stop. Returns how many tasks were
    /// cut.
    pub async fn finish(&self, deadline: Duration) -> usize {
        self.start();
        let until = Instant::now() + deadline;
        let _late = timeout_at(until, self.lingering()).await;
        self.refuse();
        let until = until.max(Instant::now() + LAST.min(deadline));
        // Requests come from sessions: these first.
        let all = || [&self.tasks].into_iter().chain(&self.requests);
        let rest = async {
            for tasks in all() {
                ended(tasks).await;
            }
        };
        let done = timeout_at(until, rest).await;
        let cut = if done.is_ok() { 0 } else { all().map(TaskTracker::len).sum() };
        self.stopping.cancel();
        cut
    }
}

async fn ended(tasks: &TaskTracker) {
    tasks.close();
    tasks.wait().await;
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

    /// What lingers for `lingers`, and who has come meanwhile and takes
    /// `takes` (both in tenths of a second): when it refused and when it had
    /// finished, and how many were cut.
    fn drained(lingers: u64, takes: u64) -> (u128, u128, usize) {
        let tenths = |n: u64| tokio::time::sleep(Duration::from_millis(n * 100));
        paused(async move {
            let (drain, began) = (Drain::new(), Instant::now());
            let session = drain.clone();
            drain.spawn_session(async move { session.refusing().await });
            drain.spawn_request(false, tenths(lingers));
            let (other, refused) = (drain.clone(), Arc::new(std::sync::OnceLock::new()));
            let seen = refused.clone();
            drain.spawn(async move {
                other.draining().await;
                assert!(!other.is_refusing());
                other.spawn_request(false, tenths(takes));
                other.refusing().await;
                seen.set(began.elapsed().as_millis() / 100).unwrap();
            });
            let cut = drain.finish(Duration::from_secs(10)).await;
            (*refused.get().unwrap(), began.elapsed().as_millis() / 100, cut)
        })
    }

    #[test]
    fn requests_are_taken_while_others_linger_and_finish_afterwards() {
        assert_eq!(drained(0, 7), (0, 7, 0));
        assert_eq!(drained(40, 7), (40, 40, 0));
        assert_eq!(drained(40, 80), (40, 80, 0));
        // Who has come late has its time, too.
        assert_eq!(drained(600, 120), (100, 150, 1));
        assert_eq!(drained(99, 120), (99, 120, 0));
        assert_eq!(drained(99, 600), (99, 149, 1));
    }

    #[test]
    fn what_lasts_is_waited_for_whenever_it_has_come() {
        paused(async {
            let (drain, began) = (Drain::new(), Instant::now());
            drain.spawn_connection(tokio::time::sleep(Duration::from_secs(1)));
            let other = drain.clone();
            drain.spawn(async move {
                other.draining().await;
                other.spawn_request(true, tokio::time::sleep(Duration::from_secs(3)));
                other.refusing().await;
                assert_eq!(began.elapsed().as_secs(), 3);
            });
            assert_eq!(drain.finish(Duration::from_secs(10)).await, 0);
        });
    }

    #[test]
    fn clients_are_parted_from_and_callers_stay() {
        paused(async {
            let drain = Drain::new();
            drain.spawn_session(std::future::pending());
            drain.spawn_connection(tokio::time::sleep(Duration::from_secs(2)));
            drain.part();
            drain.closing().await;
            drain.parted().await;
            assert!(drain.is_closing() && !drain.is_draining());
            let left = tokio::time::timeout(Duration::from_secs(60), drain.left()).await;
            assert!(left.is_err(), "there is a session");
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
