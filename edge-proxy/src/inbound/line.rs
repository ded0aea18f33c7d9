//! Streams of one caller that wait for their turn: nothing is done for them but
//! keeping what was said, so that it costs little to refuse them.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use super::{Caller, request};
use crate::{
    gate::{self, Place, lane::Lane},
    inner::mux::{Opened, Spoken},
    record::Came,
    refusal::Refusal,
    worker::Worker,
};

/// The streams of one session that have not begun. The session bounds them.
pub(super) struct Line {
    worker: Arc<Worker>,
    caller: Arc<Caller>,
    lane: Arc<Lane>,
    held: VecDeque<(Came, Opened)>,
}

impl Line {
    /// Nobody waits.
    pub(super) fn new(worker: &Arc<Worker>, caller: Arc<Caller>) -> Self {
        let (lane, held) = (Arc::default(), VecDeque::new());
        Self { worker: worker.clone(), caller, lane, held }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// One more. Connections of bytes do not wait: there are few, and each is
    /// long.
    pub(super) fn add(&mut self, opened: Opened) {
        if opened.target.protocol == Spoken::Tcp {
            return self.begin(opened, Came::now(), Ok(Place::NONE));
        }
        let (gate, came) = (&self.worker.gate, Came::now());
        if self.held.is_empty() && !gate.is_closed() {
            return self.begin(opened, came, gate.line_up(Some(&self.lane), came.at));
        }
        self.held.push_back((came, opened));
    }

    /// Begins those whose turn it nearly is, and refuses those whose turn does
    /// not come. Ready when nobody waits.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let gate = &self.worker.gate;
        while let Some((came, _)) = self.held.front() {
            if gate.is_closed() && !gate.has_room(&self.lane) && !gate::is_late(came.at) {
                self.lane.call(cx.waker());
                return Poll::Pending;
            }
            let Some((came, opened)) = self.held.pop_front() else { break };
            self.begin(opened, came, gate.line_up(Some(&self.lane), came.at));
        }
        Poll::Ready(())
    }

    fn begin(&self, mut opened: Opened, came: Came, place: Result<Place, Refusal>) {
        let (worker, caller) = (self.worker.clone(), self.caller.clone());
        let lasts = opened.target.protocol == Spoken::Tcp;
        self.worker.shared.drain.spawn_request(lasts, async move {
            let turn = match place {
                Ok(place) => tokio::select! {
                    biased;
                    turn = place.turn() => Some(turn),
                    _gone = poll_fn(|cx| opened.exchange.poll_reset(cx)) => None,
                },
                Err(refusal) => Some(Err(refusal)),
            };
            // Boxed: it is large, moved often on its way to becoming a task, and
            // who waits does not keep room for it.
            Box::pin(request::serve(worker, caller, opened, came, turn)).await;
        });
    }
}
