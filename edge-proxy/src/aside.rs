//! What is waited for beside something busy.

use std::pin::Pin;

use futures_util::{StreamExt, stream::FuturesUnordered};

/// Futures that seldom end. Whoever selects over them and over what has
/// something at every turn polls them only when one of them was woken.
pub(crate) struct Aside<'a, T>(FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send + 'a>>>);

impl<T> Default for Aside<'_, T> {
    fn default() -> Self {
        Self(FuturesUnordered::new())
    }
}

impl<'a, T> Aside<'a, T> {
    /// One more.
    pub(crate) fn with(self, future: impl Future<Output = T> + Send + 'a) -> Self {
        self.0.push(Box::pin(future));
        self
    }

    /// What the next one to end has to say; never ready once all have.
    pub(crate) async fn next(&mut self) -> T {
        match self.0.next().await {
            Some(said) => said,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        future::poll_fn,
        sync::atomic::{AtomicUsize, Ordering},
        task::Poll,
    };

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_was_not_woken_is_not_polled() {
        let polls = AtomicUsize::new(0);
        let (tell, told) = oneshot::channel();
        let quiet = async {
            poll_fn(|_| {
                polls.fetch_add(1, Ordering::Relaxed);
                Poll::<()>::Pending
            })
            .await;
            0
        };
        let mut aside = Aside::default().with(quiet).with(async { told.await.unwrap() });
        let turns = Cell::new(0);
        let mut tell = Some(tell);
        let said = poll_fn(|cx| {
            turns.set(turns.get() + 1);
            if turns.get() == 10
                && let Some(tell) = tell.take()
            {
                tell.send(7).unwrap();
            }
            cx.waker().wake_by_ref();
            std::pin::pin!(aside.next()).poll(cx)
        })
        .await;
        assert_eq!((said, turns.get(), polls.load(Ordering::Relaxed)), (7, 10, 1));
    }
}
