//! How many requests a worker begins at once when it has more than it can do.
//!
//! A worker that is not kept up with by its core does everything late, and each
//! request costs more the more of them are under way. So it looks how long its
//! run queue takes to go round; when that is too long, requests wait in turn
//! before anything is done for them, and each round lets in as many as it can
//! bear. Whoever has waited for too long is refused. Requests that are under
//! way, long answers above all, are not counted: what waits for somebody else
//! costs a worker nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::Reason;
use mesh_runtime::clock;
use tokio::sync::{Notify, oneshot};

use crate::{refusal::Refusal, worker::Worker};

/// How long the run queue may take to go round.
const ROUND: Duration = Duration::from_millis(20);
/// How often that is looked at while there are requests.
const LOOK: Duration = Duration::from_millis(20);
/// How long a request may wait: clients of a machine that is only busy have
/// their answer, late.
const PATIENCE: Duration = Duration::from_secs(3);
/// Requests that may wait at a worker; more are refused at once.
const MAX_WAITING: usize = 16_384;
/// Requests that a round lets in.
const BATCH: std::ops::RangeInclusive<usize> = 8..=4096;

/// Where requests of one worker begin.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// A request has come since this was last looked at.
    asked: bool,
    waiting: VecDeque<oneshot::Sender<()>>,
}

impl Gate {
    /// Waits for its turn, if there is more to do than can be done.
    ///
    /// # Errors
    ///
    /// It was not its turn in time.
    pub async fn enter(&self) -> Result<(), Refusal> {
        let Some(turn) = self.line_up()? else { return Ok(()) };
        match tokio::time::timeout(PATIENCE, turn).await {
            Ok(_) => Ok(()),
            Err(_) => Err(overloaded(format!("waited for {PATIENCE:?}"))),
        }
    }

    /// A place in the line, or none where there is no line.
    fn line_up(&self) -> Result<Option<oneshot::Receiver<()>>, Refusal> {
        let mut state = self.state();
        if !std::mem::replace(&mut state.asked, true) {
            self.asked.notify_one();
        }
        if !state.closed {
            return Ok(None);
        }
        // Those that have given up are the ones that have waited longest.
        while state.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            state.waiting.pop_front();
        }
        if state.waiting.len() >= MAX_WAITING {
            return Err(overloaded(format!("{MAX_WAITING} requests wait")));
        }
        let (begin, turn) = oneshot::channel();
        state.waiting.push_back(begin);
        Ok(Some(turn))
    }

    /// Returns when a request has come since it was called last.
    async fn asked(&self) {
        while !std::mem::take(&mut self.state().asked) {
            self.asked.notified().await;
        }
    }

    fn close(&self) {
        self.state().closed = true;
    }

    /// Opens it if nobody waits.
    fn open(&self) -> bool {
        let mut state = self.state();
        state.closed = !state.waiting.is_empty();
        !state.closed
    }

    /// Lets in so many of those that still wait.
    fn let_in(&self, batch: usize) {
        let mut state = self.state();
        let mut left = batch;
        while left > 0
            && let Some(next) = state.waiting.pop_front()
        {
            left -= usize::from(next.send(()).is_ok());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
            let is_late = round().await > ROUND;
            batch = if is_late { batch / 2 } else { batch * 2 };
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
        gate.enter().await.unwrap();
        gate.close();
        let order = Arc::new(Mutex::new(Vec::new()));
        let enter = |number: usize| {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn(async move {
                let entered = gate.enter().await;
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
        gate.enter().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_is_bounded() {
        let gate = Gate::default();
        gate.close();
        let mut line: Vec<_> = (0..MAX_WAITING).map(|_| gate.line_up().unwrap()).collect();
        assert!(refused(gate.line_up().map(drop)).contains("16384 requests wait"));
        // Places of those that have given up are given away.
        drop(line.remove(0));
        assert!(gate.line_up().unwrap().is_some());
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
