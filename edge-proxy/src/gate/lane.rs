//! One connection in the line at the gate: its requests wait behind each other,
//! and only the first of them stands in line.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use tokio::{sync::oneshot, time::Instant};

/// Requests of a connection that are looked at before it is their turn: the
/// next of them must be there when it is.
pub const AHEAD: usize = 16;

/// How many of them are let in together: their answers are written together.
pub(super) const TOGETHER: usize = 8;

/// What has left a lane.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    /// Those that were let in.
    pub(super) begun: usize,
    /// The same and those that had given up.
    pub(super) gone: usize,
    /// There are others.
    pub(super) more: bool,
}

/// The requests of one connection that wait.
#[derive(Debug, Default)]
pub struct Lane(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<oneshot::Sender<()>>,
    /// Whoever would look at more of them.
    reader: Option<Waker>,
    /// Of what is looked at now: how many, and when the oldest came.
    looked: usize,
    since: Option<Instant>,
}

impl Lane {
    /// Requests that wait or will, those that have given up included.
    pub(super) fn ahead(&self) -> usize {
        let state = self.state();
        state.waiting.len() + state.looked
    }

    /// Wakes `reader` when fewer wait.
    pub fn call(&self, reader: &Waker) {
        let mut state = self.state();
        match &mut state.reader {
            Some(known) => known.clone_from(reader),
            none => *none = Some(reader.clone()),
        }
    }

    /// What has come is looked at once more; what was looked at before is in
    /// line by now.
    pub fn begin(&self) {
        let mut state = self.state();
        (state.looked, state.since) = (0, None);
    }

    /// A request that came at `since` is looked at.
    pub fn look(&self, since: Instant) {
        let mut state = self.state();
        state.looked += 1;
        state.since = Some(state.since.map_or(since, |earlier| earlier.min(since)));
    }

    /// When the oldest came of what is looked at; `None` if it was not held.
    pub fn since(&self) -> Option<Instant> {
        self.state().since
    }

    /// One more; whether it is the first, so that the lane has to stand in line.
    pub(super) fn add(&self, begin: oneshot::Sender<()>) -> bool {
        let mut state = self.state();
        state.waiting.push_back(begin);
        state.waiting.len() == 1
    }

    /// Lets in so many of those that still wait. When no more than `ahead` are
    /// left the reader is called.
    pub(super) fn let_in(&self, most: usize, ahead: usize) -> Passed {
        let mut state = self.state();
        let (mut begun, mut gone) = (0, 0);
        while begun < most
            && let Some(begin) = state.waiting.pop_front()
        {
            gone += 1;
            begun += usize::from(begin.send(()).is_ok());
        }
        let left = state.waiting.len();
        if left <= ahead
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
        Passed { begun, gone, more: left > 0 }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
