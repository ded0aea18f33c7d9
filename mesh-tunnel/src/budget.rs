//! How much of a worker's time goes to those who have not proved who they are.
//!
//! Handshakes cost more than what is carried for those who are known, and any
//! stranger can begin one. A worker that has nothing else to do may spend its
//! time on them; one that carries traffic spends a part of it, and whoever
//! comes anew waits.
//!
//! Time is that of the processor. What a worker leaves over is worth nothing
//! where others have the processor meanwhile, or where a quota ends: then
//! strangers would take what is missing later.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use mesh_runtime::clock::{self, thread_cpu as cpu};
use tokio::{sync::Notify, time::Instant};

use crate::net::Net;

/// Part of what a worker does, whatever else that is, in which connections are
/// accepted and datagrams of handshakes read.
const DOOR: f64 = 0.03;
/// The same for handshakes themselves.
const HANDSHAKES: f64 = 0.03;
/// And of the time in which it is not kept waiting for a processor: somebody
/// gets in while nothing else is done.
const FLOOR: f64 = 0.005;
/// And for each second in which it could do something and need not: they leave
/// a fifth of it.
const OF_IDLE: f64 = 4.0;
/// What may be spent at once after a quiet time, in seconds.
const BURST: f64 = 0.02;
/// What may be overspent at most, in seconds: whoever comes later has done
/// nothing.
const DEBT: f64 = 0.01;
/// What somebody who has just begun is taken to cost until it is known: many
/// begin in one turn of the worker.
const GUESS: Duration = Duration::from_micros(300);
/// How often a worker that has overspent is looked at.
const LOOK: Duration = Duration::from_millis(1);
/// The same while what it leaves over is worth nothing.
const SELDOM: Duration = Duration::from_millis(20);
/// A worker is short of time when it was kept waiting for a processor for
/// longer than this, and for a third of the time.
const KEPT_WAITING: Duration = Duration::from_millis(2);
/// How long it counts as that.
const SHORT: Duration = Duration::from_secs(1);

/// One of one worker, in whose runtime all of this is called; clones are the
/// same.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// `None` in a simulation, where nothing takes time.
    part: Option<f64>,
    account: Mutex<Account>,
    /// Something is left again, for one of those who wait.
    left: Notify,
}

#[derive(Debug)]
struct Account {
    /// Seconds, less than nothing where more was spent.
    left: f64,
    /// What the worker had done when this was looked at last.
    cpu: Duration,
    /// Whether somebody looks until something is left.
    watched: bool,
    idleness: Idleness,
}

impl Budget {
    /// For taking in whoever comes.
    pub fn of_door(net: &dyn Net) -> Self {
        Self::new(net.quic_seed().is_none().then_some(DOOR))
    }

    /// For finding out who they are.
    pub fn of_handshakes(net: &dyn Net) -> Self {
        Self::new(net.quic_seed().is_none().then_some(HANDSHAKES))
    }

    fn new(part: Option<f64>) -> Self {
        let account = Account::new(BURST, cpu(), clock::monotonic());
        Self(Arc::new(Shared { part, account: Mutex::new(account), left: Notify::new() }))
    }

    /// Waits, in turn, until something is left.
    pub async fn turn(&self) {
        while !self.has_left() {
            self.0.left.notified().await;
        }
        // And the next one, if there is enough for two.
        self.0.left.notify_one();
    }

    /// Does `work` and counts what it costs; the result says how much.
    pub fn spend_on<F: Future>(&self, work: F) -> Spending<F> {
        self.spend(GUESS);
        let (budget, work) = (self.clone(), Box::pin(work));
        Spending { budget, guessed: true, spent: Duration::ZERO, work }
    }

    /// So much was, or will be, spent elsewhere.
    pub fn spend(&self, time: Duration) {
        self.add(-time.as_secs_f64());
    }

    /// It was spent on somebody who has proved who they are.
    pub fn refund(&self, time: Duration) {
        if self.add(time.as_secs_f64()) {
            self.0.left.notify_one();
        }
    }

    /// Whether there is something left now.
    pub fn has_left(&self) -> bool {
        self.add(0.0)
    }

    fn add(&self, seconds: f64) -> bool {
        let Some(part) = self.0.part else { return true };
        let mut account = self.0.account();
        account.fill(part, cpu());
        account.add(seconds);
        let has_left = account.left > 0.0;
        if !has_left && !std::mem::replace(&mut account.watched, true) {
            tokio::spawn(look(self.0.clone(), part));
        }
        has_left
    }
}

impl Shared {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    fn new(left: f64, cpu: Duration, at: Instant) -> Self {
        Self { left, cpu, watched: false, idleness: Idleness::new(at) }
    }

    fn fill(&mut self, part: f64, cpu: Duration) {
        let done = cpu.saturating_sub(self.cpu).as_secs_f64();
        self.cpu = cpu;
        self.add(done * part);
    }

    fn add(&mut self, seconds: f64) {
        self.left = (self.left + seconds).clamp(-DEBT, BURST);
    }
}

/// Looks what the worker leaves over, until there is something to spend.
async fn look(shared: Arc<Shared>, part: f64) {
    loop {
        let (began, done) = (clock::monotonic(), cpu());
        let sleep = shared.account().idleness.sleep(began);
        tokio::time::sleep(sleep).await;
        let nothing_done = began.elapsed().saturating_sub(cpu().saturating_sub(done));
        let mut account = shared.account();
        let now = clock::monotonic();
        let waited = account.idleness.waited();
        let unhindered = account.idleness.unhindered(waited, now);
        let idle = account.idleness.worth(nothing_done, waited, now);
        account.fill(part, cpu());
        account.add(unhindered.as_secs_f64() * FLOOR + idle.as_secs_f64() * OF_IDLE);
        if account.left > 0.0 {
            account.watched = false;
            break;
        }
    }
    shared.left.notify_one();
}

/// Whether time in which a worker does nothing is its own.
#[derive(Debug)]
struct Idleness {
    /// How long the thread was kept waiting for a processor, as the kernel
    /// counts it; `None` where it does not.
    waits: Option<File>,
    /// What that was when it was looked at last, and when that was.
    waited: Duration,
    at: Instant,
    short_until: Option<Instant>,
}

impl Idleness {
    fn new(at: Instant) -> Self {
        let waits = File::open("/proc/thread-self/schedstat").ok();
        Self { waits, waited: Duration::ZERO, at, short_until: None }
    }

    fn waited(&self) -> Duration {
        let mut text = [0; 64];
        let read = self.waits.as_ref().and_then(|waits| waits.read_at(&mut text, 0).ok());
        waits_in(&text[..read.unwrap_or(0)]).unwrap_or(self.waited)
    }

    /// The time since the last look without that in which it was kept waiting.
    fn unhindered(&self, waited: Duration, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at);
        passed.saturating_sub(waited.saturating_sub(self.waited)).min(SELDOM)
    }

    /// What is worth something of the time in which nothing was done.
    fn worth(&mut self, nothing_done: Duration, waited: Duration, now: Instant) -> Duration {
        let waited_more = waited.saturating_sub(self.waited);
        let passed = now.saturating_duration_since(self.at);
        (self.waited, self.at) = (waited, now);
        if waited_more > KEPT_WAITING.max(passed / 3) {
            self.short_until = Some(now + SHORT);
        }
        if self.is_short(now) { Duration::ZERO } else { nothing_done }
    }

    fn sleep(&self, now: Instant) -> Duration {
        if self.is_short(now) { SELDOM } else { LOOK }
    }

    fn is_short(&self, now: Instant) -> bool {
        self.short_until.is_some_and(|until| now < until)
    }
}

/// The second number of `/proc/<pid>/task/<tid>/schedstat`, in nanoseconds
/// (Documentation/scheduler/sched-stats.rst of the kernel).
fn waits_in(schedstat: &[u8]) -> Option<Duration> {
    let text = str::from_utf8(schedstat).ok()?;
    text.split(' ').nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// See [`Budget::spend_on`].
#[derive(Debug)]
pub struct Spending<F> {
    budget: Budget,
    /// Whether a guess stands for what it costs.
    guessed: bool,
    spent: Duration,
    work: Pin<Box<F>>,
}

impl<F> Spending<F> {
    fn take_back_guess(&mut self) {
        if std::mem::take(&mut self.guessed) {
            self.budget.refund(GUESS);
        }
    }
}

impl<F: Future> Future for Spending<F> {
    type Output = (F::Output, Duration);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let began = cpu();
        let done = self.work.as_mut().poll(cx);
        let spent = cpu().saturating_sub(began);
        self.take_back_guess();
        self.budget.spend(spent);
        self.spent += spent;
        let spent = self.spent;
        done.map(|done| (done, spent))
    }
}

impl<F> Drop for Spending<F> {
    fn drop(&mut self) {
        self.take_back_guess();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PART: f64 = 0.1;
    const MS: Duration = Duration::from_millis(1);

    /// Keeps the processor busy.
    fn work(time: Duration) {
        let began = cpu();
        while cpu() - began < time {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_part_of_what_is_done_may_be_spent() {
        let mut account = Account::new(-DEBT, 5 * MS, clock::monotonic());
        let mut left = |done| {
            account.fill(PART, done);
            (account.left + DEBT) * 1000.0
        };
        assert!((left(55 * MS) - 5.0).abs() < 1e-6);
        assert!((left(55 * MS) - 5.0).abs() < 1e-6);
        assert!((left(1_000_000 * MS) - 30.0).abs() < 1e-6, "nothing is saved up");
        account.add(-1.0);
        assert!((account.left + DEBT).abs() < 1e-9);
    }

    #[test]
    fn idleness_is_worth_nothing_to_who_is_kept_waiting() {
        let now = clock::monotonic();
        let mut idleness = Idleness::new(now);
        assert_eq!(idleness.worth(2 * MS, MS, now + 2 * MS), 2 * MS);
        assert_eq!(idleness.unhindered(9 * MS, now + 12 * MS), 2 * MS);
        // For 8 ms of 10.
        assert_eq!(idleness.worth(9 * MS, 9 * MS, now + 12 * MS), Duration::ZERO);
        let soon = now + 12 * MS + SHORT / 2;
        assert_eq!(idleness.sleep(soon), SELDOM);
        assert_eq!(idleness.worth(SELDOM, 9 * MS, soon), Duration::ZERO);
        let later = now + 12 * MS + SHORT;
        assert_eq!(idleness.sleep(later), LOOK);
        // For 100 ms of more than 500.
        assert_eq!(idleness.worth(MS, 109 * MS, later), MS);
    }

    #[test]
    fn waits_are_known_where_the_kernel_counts_them() {
        assert_eq!(waits_in(b"547925811 3163 56498\n"), Some(Duration::from_nanos(3163)));
        assert_eq!(waits_in(b""), None);
        assert_eq!(waits_in(b"1 x 2"), None);
        let mut idleness = Idleness::new(clock::monotonic());
        idleness.waits = None;
        assert_eq!(idleness.waited(), Duration::ZERO);
    }

    #[tokio::test]
    async fn who_spends_much_waits_and_who_is_known_does_not() {
        let budget = Budget::new(Some(PART));
        let ((), spent) = budget.spend_on(async { work(30 * MS) }).await;
        assert!(spent >= 30 * MS);
        assert!(!budget.has_left());
        budget.refund(spent);
        assert!(budget.has_left());
        budget.spend(100 * MS);
        assert!(!budget.has_left());
        let began = clock::monotonic();
        // It has nothing else to do meanwhile, but perhaps its machine.
        budget.turn().await;
        assert!(began.elapsed() >= 2 * MS, "{:?}", began.elapsed());
        assert!(began.elapsed() < 20_000 * MS, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_busy_worker_leaves_a_part_of_its_time_and_no_more() {
        let budget = Budget::new(Some(PART));
        budget.spend(Duration::from_secs_f64(BURST));
        let began = cpu();
        let busy = tokio::spawn(async move {
            while cpu() - began < 300 * MS {
                work(MS);
                tokio::task::yield_now().await;
            }
        });
        let mut spent = Duration::ZERO;
        while !busy.is_finished() {
            budget.turn().await;
            spent += budget.spend_on(async { work(MS) }).await.1;
        }
        let part = spent.as_secs_f64() / (cpu() - began).as_secs_f64();
        // And what could be spent at once.
        assert!((0.05..0.25).contains(&part), "{part}");
    }

    #[tokio::test]
    async fn all_who_wait_have_their_turn() {
        let budget = Budget::new(Some(PART));
        budget.spend(30 * MS);
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    budget.turn().await;
                    budget.spend_on(async { work(MS / 10) }).await
                })
            })
            .collect();
        for one in waiting {
            tokio::time::timeout(Duration::from_secs(60), one).await.unwrap().unwrap();
        }
    }

    #[tokio::test]
    async fn many_who_begin_at_once_are_taken_to_cost_something() {
        let budget = Budget::new(Some(PART));
        let mut begun = Vec::new();
        while budget.has_left() && begun.len() < 1000 {
            begun.push(budget.spend_on(std::future::pending::<()>()));
        }
        assert!((40..200).contains(&begun.len()), "{}", begun.len());
        begun.clear();
        assert!(budget.has_left());
    }
}
