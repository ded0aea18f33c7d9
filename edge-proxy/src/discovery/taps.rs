//! Those who watch this proxy from elsewhere in its site: federation says who,
//! and passes on what they are shown.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use mesh_api::v1::{self, discovery_request::Request};
use tokio::sync::mpsc;
use tokio_stream::Stream;

use crate::tap::{Filter, Tap, Watching};

/// More are left out: others watch, too.
const MAX_TAPS: usize = 8;

/// Those of one discovery stream; they end with it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Taps(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    watching: BTreeMap<u64, Watching>,
    /// Who was shown something last: the next one goes first.
    last: u64,
    /// Whoever waits for something to be shown.
    waiting: Option<Waker>,
}

impl Taps {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on these watch, and nobody else.
    pub(super) fn set(&self, tap: &Tap, wanted: Vec<v1::TapWanted>) {
        let mut inner = self.lock();
        inner.watching.retain(|id, _| wanted.iter().any(|wanted| wanted.id == *id));
        for v1::TapWanted { id, request } in wanted {
            if inner.watching.len() >= MAX_TAPS || inner.watching.contains_key(&id) {
                continue;
            }
            let request = request.unwrap_or_default();
            let max_rps = request.max_rps;
            // Federation has checked it; of a later version it may be more.
            let Ok(filter) = Filter::try_from(request) else { continue };
            if let Ok(watching) = tap.watch(filter, max_rps) {
                inner.watching.insert(id, watching);
            }
        }
        if let Some(waiting) = inner.waiting.take() {
            waiting.wake();
        }
    }

    fn poll_shown(&self, cx: &mut Context<'_>) -> Poll<v1::TapShown> {
        let mut inner = self.lock();
        let last = inner.last;
        let turns = [last.saturating_add(1)..=u64::MAX, 0..=last];
        let next = turns.into_iter().find_map(|turn| {
            inner.watching.range_mut(turn).find_map(|(id, watching)| match watching.poll_next(cx) {
                Poll::Ready(Some(event)) => Some((*id, event)),
                Poll::Ready(None) | Poll::Pending => None,
            })
        });
        if let Some((id, event)) = next {
            inner.last = id;
            return Poll::Ready(v1::TapShown { id, event: Some(event) });
        }
        inner.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// What goes to federation: what must be told, and then what is shown. Of that
/// nothing is taken before the stream has room for it.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) told: mpsc::Receiver<v1::DiscoveryRequest>,
    pub(super) taps: Taps,
}

impl Stream for Outgoing {
    type Item = v1::DiscoveryRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(told) = self.told.poll_recv(cx) {
            return Poll::Ready(told);
        }
        let request =
            |shown| Some(v1::DiscoveryRequest { request: Some(Request::TapShown(shown)) });
        self.taps.poll_shown(cx).map(request)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use mesh_tunnel::{Credentials, RealNet, Trust};

    use super::*;
    use crate::{
        app::{App, Shared},
        config::{Config, Role},
        metrics::Direction,
        record::Record,
        worker::Worker,
    };

    #[tokio::test]
    async fn who_watches_is_shown_things_in_turn() {
        let credentials = Credentials::new(None, Trust::default());
        let shared = Shared::new(Config::given(Role::Node), Arc::new(RealNet), credentials);
        let app = App::new(shared.unwrap());
        let worker = Worker::new(&app, 0);
        let taps = Taps::default();
        let wanted = |id| v1::TapWanted { id, request: None };
        taps.set(&app.shared.tap, vec![wanted(3), wanted(5), wanted(9)]);
        (0..3).for_each(|_| drop(Record::new(&worker, Direction::Inbound, "http1")));
        let mut shown = Vec::new();
        for _ in 0..9 {
            shown.push(poll_fn(|cx| taps.poll_shown(cx)).await.id);
        }
        assert_eq!(shown, [3, 5, 9, 3, 5, 9, 3, 5, 9]);
        assert!(futures_util::poll!(poll_fn(|cx| taps.poll_shown(cx))).is_pending());
    }
}
