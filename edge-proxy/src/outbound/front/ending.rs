//! How long a client's connection may go on: polled with every wake-up of its
//! task, so it costs next to nothing while nothing ends.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use mesh_runtime::{clock, drain::Drain};
use tokio::time::{Instant, Sleep};

/// The end of the process, for one connection.
pub struct Ending {
    drain: Drain,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    registered: bool,
}

impl Ending {
    /// Nothing is polled yet.
    pub fn new(drain: &Drain, patience: Duration) -> Self {
        let ending = drain.clone();
        let cut = Box::pin(async move {
            ending.draining().await;
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                () = ending.stopping() => {}
            }
        });
        Self { drain: drain.clone(), cut, registered: false }
    }

    /// Ready when what runs has had its time. Wakes its task when draining
    /// begins; it must always be polled by the same task.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.registered && !self.drain.is_draining() {
            return Poll::Pending;
        }
        self.registered = true;
        self.cut.as_mut().poll(cx)
    }
}

/// A deadline that moves with every request: its timer is set anew only when
/// it goes off, not whenever the deadline moves.
#[derive(Debug)]
pub struct Patience {
    allowed: Duration,
    timer: Pin<Box<Sleep>>,
    registered: bool,
}

impl Patience {
    /// So much after each beginning.
    pub fn new(allowed: Duration) -> Self {
        Self { allowed, timer: Box::pin(tokio::time::sleep(allowed)), registered: false }
    }

    /// Ready when `allowed` has passed since `since`. It must always be
    /// polled by the same task.
    pub fn poll(&mut self, cx: &mut Context<'_>, since: Instant) -> Poll<()> {
        if self.registered && self.timer.deadline() > clock::monotonic() {
            return Poll::Pending;
        }
        self.registered = true;
        while self.timer.as_mut().poll(cx).is_ready() {
            let deadline = since + self.allowed;
            if deadline <= clock::monotonic() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_counts_from_the_last_beginning() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(10));
        let mut since = start;
        let early =
            tokio::time::timeout(Duration::from_secs(9), poll_fn(|cx| patience.poll(cx, since)));
        assert!(early.await.is_err());
        since = Instant::now();
        poll_fn(|cx| patience.poll(cx, since)).await;
        assert_eq!(start.elapsed().as_secs(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn what_runs_has_its_time_after_draining_began() {
        let drain = Drain::new();
        let mut ending = Ending::new(&drain, Duration::from_secs(5));
        let start = Instant::now();
        let later = drain.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            later.start();
        });
        poll_fn(|cx| ending.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 8);
    }
}
