//! How many requests a worker begins at once when it has more than it can do.
//!
//! A worker that is not kept up with by its core does everything late, and each
//! request costs more the more of them are under way. So it looks how long its
//! run queue takes to go round; when that is too long, requests wait in turn
//! before anything is done for them, and each round lets in as many as it can
//! bear. Whoever has waited for too long is refused. Requests that are under
//! way, long answers above all, are not counted: what waits for somebody else
//! costs a worker nothing.
//!
//! A connection that carries many requests at once has a [`lane`] in that line:
//! connections take turns, whatever each of them asks for, and what a connection
//! has too many of is not even looked at (`http2::held`).

pub mod lane;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mesh_core::Reason;
use mesh_runtime::clock;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use crate::{refusal::Refusal, worker::Worker};
use lane::Lane;

/// How long the run queue may take to go round.
const ROUND: Duration = Duration::from_millis(20);
/// How often that is looked at while there are requests.
const LOOK: Duration = Duration::from_millis(20);
/// How long a request may wait: clients of a machine that is only busy have
/// their answer, late.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long it may be held back before it is looked at: what stands in line
/// shall have its turn.
const HELD: Duration = Duration::from_millis(2500);
/// Requests that may wait at a worker; more are refused at once.
const MAX_WAITING: usize = 16_384;
/// With so many waiting, no connection has more than one of them looked at
/// ahead.
const MANY: usize = 2048;
/// What a round may cost of the core's time while requests wait. What is begun
/// together is not in the processor's cache any more when its answer comes.
const WORK: Duration = Duration::from_millis(4);
/// Requests that a round lets in: at least, and at most; and how many more than
/// the one before it.
const BATCH: std::ops::RangeInclusive<usize> = 8..=1024;
const MORE: usize = 8;

/// Where requests of one worker begin.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    closed: AtomicBool,
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A request has come since this was last looked at.
    asked: bool,
    line: VecDeque<Turn>,
    /// Requests in the line, those that have given up included.
    waiting: usize,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    /// A request's.
    Request(oneshot::Sender<()>),
    /// That of some requests of a connection.
    Lane(Arc<Lane>),
}

/// A place in the line, until when it is any use; none where there is no line.
#[derive(Debug)]
pub struct Place(Option<(oneshot::Receiver<()>, Instant)>);

impl Place {
    /// Of what does not stand in line.
    pub const NONE: Self = Self(None);

    /// Waits for the turn.
    ///
    /// # Errors
    ///
    /// It does not come in time.
    pub async fn turn(self) -> Result<(), Refusal> {
        let Some((turn, until)) = self.0 else { return Ok(()) };
        match tokio::time::timeout_at(until, turn).await {
            Ok(_) => Ok(()),
            Err(_) => Err(overloaded(format!("waited for {PATIENCE:?}"))),
        }
    }
}

impl Gate {
    /// Waits for its turn, if there is more to do than can be done. The request
    /// has come at `since`, in a lane of its connection if that carries many.
    ///
    /// # Errors
    ///
    /// It was not its turn in time.
    pub async fn enter(&self, lane: Option<&Arc<Lane>>, since: Instant) -> Result<(), Refusal> {
        self.line_up(lane, since)?.turn().await
    }

    /// A place in the line; see [`Gate::enter`].
    ///
    /// # Errors
    ///
    /// It comes too late, or the line is too long.
    pub fn line_up(&self, lane: Option<&Arc<Lane>>, since: Instant) -> Result<Place, Refusal> {
        let mut state = self.state();
        if !std::mem::replace(&mut state.asked, true) {
            self.asked.notify_one();
        }
        if !self.is_closed() {
            return Ok(Place::NONE);
        }
        if is_late(since) {
            return Err(overloaded(format!("waited for {HELD:?}")));
        }
        // Those that have given up are the ones that have waited longest.
        while let Some(Turn::Request(first)) = state.line.front()
            && first.is_closed()
        {
            state.line.pop_front();
            state.waiting -= 1;
        }
        if state.waiting >= MAX_WAITING {
            return Err(overloaded(format!("{MAX_WAITING} requests wait")));
        }
        state.waiting += 1;
        let (begin, turn) = oneshot::channel();
        match lane {
            None => state.line.push_back(Turn::Request(begin)),
            Some(lane) if lane.add(begin) => state.line.push_back(Turn::Lane(lane.clone())),
            Some(_) => {}
        }
        Ok(Place(Some((turn, since + PATIENCE))))
    }

    /// Whether requests wait in turn.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether more of a connection may be looked at.
    pub fn has_room(&self, lane: &Lane) -> bool {
        match lane.ahead() {
            0 => true,
            ahead => ahead < lane::AHEAD && self.state().waiting < MANY,
        }
    }

    /// Returns when a request has come since it was called last.
    async fn asked(&self) {
        while !std::mem::take(&mut self.state().asked) {
            self.asked.notified().await;
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Opens it if nobody waits.
    fn open(&self) -> bool {
        let is_open = self.state().waiting == 0;
        self.closed.store(!is_open, Ordering::Relaxed);
        is_open
    }

    /// Lets in so many of those that still wait.
    pub(crate) fn let_in(&self, batch: usize) {
        let mut state = self.state();
        let ahead = if state.waiting < MANY { lane::AHEAD / 2 } else { 0 };
        let mut left = batch;
        while left > 0
            && let Some(next) = state.line.pop_front()
        {
            match next {
                Turn::Request(begin) => {
                    state.waiting -= 1;
                    left -= usize::from(begin.send(()).is_ok());
                }
                Turn::Lane(lane) => {
                    let passed = lane.let_in(left.min(lane::TOGETHER), ahead);
                    state.waiting -= passed.gone;
                    left -= passed.begun;
                    if passed.more {
                        state.line.push_back(Turn::Lane(lane));
                    }
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what came at `since` was held back for too long.
pub fn is_late(since: Instant) -> bool {
    since.elapsed() >= HELD
}

fn overloaded(what: String) -> Refusal {
    Refusal::new(Reason::Overloaded, format!("this proxy has more to do than it can: {what}"))
}

/// Opens and closes the gate of a worker, in its own runtime.
pub async fn mind(worker: Arc<Worker>) {
    let gate = &worker.gate;
    loop {
        gate.asked().await;
        tokio::time::sleep(LOOK).await;
        if round().await <= ROUND {
            continue;
        }
        gate.close();
        let mut batch = *BATCH.start();
        loop {
            let begin = clock::thread_cpu();
            let is_late = round().await > ROUND;
            let worked = clock::thread_cpu().saturating_sub(begin);
            batch = if worked > WORK { batch * 3 / 4 } else { batch + MORE };
            batch = batch.clamp(*BATCH.start(), *BATCH.end());
            gate.let_in(batch);
            if !is_late && gate.open() {
                break;
            }
        }
    }
}

/// How long everything takes that is ready to run. For a task of the runtime:
/// what the runtime blocks on does not stand in the queue.
async fn round() -> Duration {
    let begin = clock::monotonic();
    tokio::task::yield_now().await;
    begin.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(entered: Result<(), Refusal>) -> String {
        let refusal = entered.unwrap_err();
        assert_eq!(refusal.reason, Reason::Overloaded);
        refusal.text.to_string()
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_let_in_in_turn_or_refused_in_time() {
        let gate = Arc::new(Gate::default());
        gate.enter(None, clock::monotonic()).await.unwrap();
        gate.close();
        let order = Arc::new(Mutex::new(Vec::new()));
        let enter = |number: usize| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let entered = gate.enter(None, clock::monotonic()).await;
                order.lock().unwrap().push(number);
                entered
            })
        };
        let tasks: Vec<_> = (0..5).map(enter).collect();
        tokio::time::sleep(PATIENCE / 2).await;
        tasks[0].abort();
        tokio::task::yield_now().await;
        // The first has gone, and is nobody's turn.
        gate.let_in(2);
        assert!(!gate.open());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(*order.lock().unwrap(), [1, 2]);
        tokio::time::sleep(PATIENCE).await;
        let [_, first, second, late, later] = tasks.try_into().unwrap();
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert!(refused(late.await.unwrap()).contains("waited for 3s"));
        refused(later.await.unwrap());
        gate.let_in(1);
        assert!(gate.open());
        gate.enter(None, clock::monotonic()).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn connections_take_turns_whatever_they_ask_for() {
        let gate = Gate::default();
        let (busy, other) = (Arc::new(Lane::default()), Arc::new(Lane::default()));
        gate.close();
        let line_up = |lane| gate.line_up(lane, clock::monotonic()).unwrap().0.unwrap().0;
        let mut crowd: Vec<_> = (0..100).map(|_| line_up(Some(&busy))).collect();
        let mut late = [line_up(Some(&other)), line_up(None)];
        assert!(!gate.has_room(&busy) && gate.has_room(&other) && gate.has_room(&Lane::default()));
        gate.let_in(lane::TOGETHER + 2);
        assert!(late.iter_mut().all(|turn| turn.try_recv().is_ok()));
        let begun = crowd.iter_mut().filter_map(|turn| turn.try_recv().ok()).count();
        assert_eq!(begun, lane::TOGETHER);
        // Those that give up are nobody's turn, and leave no lane behind.
        drop(crowd);
        gate.let_in(1);
        assert!(gate.open() && busy.ahead() == 0);
        gate.close();
        let mut again = line_up(Some(&busy));
        gate.let_in(1);
        assert!(again.try_recv().is_ok() && gate.open());
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_bounded() {
        let gate = Gate::default();
        gate.close();
        let line_up = || gate.line_up(None, clock::monotonic());
        let mut line: Vec<_> = (0..MAX_WAITING).map(|_| line_up().unwrap()).collect();
        assert!(refused(line_up().map(drop)).contains("16384 requests wait"));
        // Places of those that have given up are given away.
        drop(line.remove(0));
        assert!(line_up().unwrap().0.is_some());
    }

    #[tokio::test]
    async fn a_run_queue_is_timed_as_a_whole() {
        let busy = || {
            tokio::spawn(async {
                let until = clock::monotonic() + Duration::from_millis(2);
                while clock::monotonic() < until {
                    std::hint::spin_loop();
                }
            })
        };
        let timed = tokio::spawn(round());
        let tasks: Vec<_> = (0..100).map(|_| busy()).collect();
        let round = timed.await.unwrap();
        assert!(round >= Duration::from_millis(150), "{round:?}");
        assert!(tasks.iter().all(tokio::task::JoinHandle::is_finished));
    }
}
