//! Who keeps time for one session: probes its peer, and minds the end of the
//! process.
//!
//! It is polled only when it is woken itself, not whenever the driver is: the
//! waker that it gets marks it as due and wakes the driver.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use mesh_runtime::drain::Drain;
use tokio::time::{sleep, timeout};

use super::{
    Probing, Shared, frame,
    state::{Bye, Role},
};

/// See the module.
pub(super) struct Watch {
    task: Pin<Box<dyn Future<Output = Bye> + Send>>,
    waker: Waker,
}

impl Watch {
    pub(super) fn new(shared: &Arc<Shared>, probing: Probing, drain: &Drain) -> Self {
        let task = Box::pin(watch(shared.clone(), probing, drain.clone()));
        Self { task, waker: shared.clone().into() }
    }

    /// Ready when the session has to end.
    pub(super) fn poll(&mut self) -> Poll<Bye> {
        self.task.as_mut().poll(&mut Context::from_waker(&self.waker))
    }
}

async fn watch(shared: Arc<Shared>, probing: Probing, drain: Drain) -> Bye {
    let is_destination = matches!(shared.state().role, Role::Destination(_));
    let drained = async {
        match is_destination {
            // Its callers may have nowhere else to go.
            true => drain.refusing().await,
            false => drain.draining().await,
        }
        shared.state().drain();
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = drain.stopping() => Bye { code: frame::CLOSING, why: "this process stops".into() },
        never = drained => never,
        () = until_silent(&shared, probing) => {
            Bye { code: frame::CLOSING, why: "the peer is silent".into() }
        }
    }
}

/// Returns when a PING has brought no sign of life; gives memory back on the
/// way.
async fn until_silent(shared: &Shared, probing: Probing) {
    loop {
        poll_fn(|_| if shared.state().resting { Poll::Pending } else { Poll::Ready(()) }).await;
        sleep(probing.interval).await;
        if !shared.state().probe(probing.always) {
            continue;
        }
        let heard = poll_fn(|_| if shared.state().heard { Poll::Ready(()) } else { Poll::Pending });
        if timeout(probing.timeout, heard).await.is_err() {
            return;
        }
        shared.state().probed = false;
    }
}
