//! Who watches requests of the site's proxies, and what they are shown.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use mesh_api::v1::{TapEnd, TapEvent, TapRequest, TapSeen, TapShown, TapWanted, tap_event::Event};
use mesh_core::{
    PeerIdentity,
    tap::{Allowance, Filter},
};
use prost::Message;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::Stream;

/// Who may watch at once; a proxy takes as many from us.
const MAX_TAPS: usize = 8;
/// Events that wait for one of them.
const QUEUE: usize = 256;
/// Events a second, of all proxies, unless a watcher wants another number.
const DEFAULT_RPS: u32 = 100;
/// What a watcher may want at most.
const MAX_RPS: u32 = 1000;
/// Of one event: a proxy cuts its texts to less.
const MAX_EVENT: usize = 16 << 10;

/// All who watch, as each proxy is told.
pub(crate) type Wanted = Arc<Vec<TapWanted>>;

/// Those who watch.
#[derive(Default)]
pub(crate) struct Taps {
    watchers: Mutex<Watchers>,
    wanted: watch::Sender<Wanted>,
}

#[derive(Default)]
struct Watchers {
    next: u64,
    by_id: BTreeMap<u64, Watcher>,
}

struct Watcher {
    request: TapRequest,
    events: mpsc::Sender<TapEvent>,
    allowance: Allowance,
    /// When it began to watch.
    began: Instant,
}

/// Nobody else may watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_TAPS} watch requests of this site already; end one of them")]
pub struct TooMany;

/// Somebody who watches, until this is dropped.
pub struct Tapping {
    id: u64,
    taps: Arc<Taps>,
    events: mpsc::Receiver<TapEvent>,
}

impl Taps {
    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All who watch, and when that changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    /// Asks the site's `proxies`, of which there are so many; each has an equal
    /// share of what the watcher is shown a second.
    pub(crate) fn open(
        self: &Arc<Self>,
        Filter { asked, .. }: Filter,
        proxies: usize,
    ) -> Result<Tapping, TooMany> {
        let max_rps = if asked.max_rps == 0 { DEFAULT_RPS } else { asked.max_rps.min(MAX_RPS) };
        let share = max_rps.div_ceil(u32::try_from(proxies).unwrap_or(u32::MAX).max(1));
        let (events, shown) = mpsc::channel(QUEUE);
        let mut watchers = self.lock();
        if watchers.by_id.len() >= MAX_TAPS {
            return Err(TooMany);
        }
        watchers.next += 1;
        let (id, began) = (watchers.next, Instant::now());
        let allowance = Allowance::new(max_rps);
        let request = TapRequest { max_rps: share, ..asked };
        let watcher = Watcher { request, events, allowance, began };
        watchers.by_id.insert(id, watcher);
        self.tell(&watchers);
        Ok(Tapping { id, taps: self.clone(), events: shown })
    }

    /// Under the lock, so that what is told last is what there is.
    fn tell(&self, watchers: &Watchers) {
        let wanted = watchers.by_id.iter().map(|(id, watcher)| {
            let request = Some(watcher.request.clone());
            TapWanted { id: *id, request }
        });
        self.wanted.send_replace(Arc::new(wanted.collect()));
    }

    /// A proxy shows something; it speaks for itself only.
    pub(crate) fn hear(&self, proxy: &PeerIdentity, shown: TapShown) {
        let mut watchers = self.lock();
        let Some(watcher) = watchers.by_id.get_mut(&shown.id) else { return };
        match shown.event.and_then(|event| event.event) {
            Some(Event::Lost(count)) => watcher.allowance.lose(count),
            Some(Event::Seen(mut seen)) => {
                let own = match seen.direction.as_str() {
                    "inbound" => &mut seen.destination,
                    _ => &mut seen.source,
                };
                own.get_or_insert_with(TapEnd::default).spiffe_id = proxy.id.to_string();
                if seen.encoded_len() > MAX_EVENT {
                    watcher.allowance.lose(1);
                } else {
                    watcher.show(seen);
                }
            }
            None => {}
        }
    }
}

impl Watcher {
    /// Shows one more, if it may; says first how many were not.
    fn show(&mut self, seen: TapSeen) {
        let Some(lost) = self.allowance.take(self.began.elapsed(), self.events.capacity()) else {
            return;
        };
        if lost > 0 {
            self.send(Event::Lost(lost));
        }
        self.send(Event::Seen(seen));
    }

    fn send(&self, event: Event) {
        // There is room, or nobody listens any more.
        let _ = self.events.try_send(TapEvent { event: Some(event) });
    }
}

impl Stream for Tapping {
    type Item = TapEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<TapEvent>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Tapping {
    fn drop(&mut self) {
        let mut watchers = self.taps.lock();
        watchers.by_id.remove(&self.id);
        self.taps.tell(&watchers);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::UnixTime;

    use super::*;

    fn proxy(account: &str) -> PeerIdentity {
        PeerIdentity {
            id: format!("spiffe://west.example/ns/shop/sa/{account}").parse().unwrap(),
            node: None,
            serial: "01".into(),
            not_after: UnixTime::since_unix_epoch(Duration::MAX / 2),
        }
    }

    fn seen(id: u64, seen: TapSeen) -> TapShown {
        TapShown { id, event: Some(TapEvent { event: Some(Event::Seen(seen)) }) }
    }

    fn filter(max_rps: u32) -> Filter {
        TapRequest { max_rps, ..TapRequest::default() }.try_into().unwrap()
    }

    fn next(tapping: &mut Tapping) -> Option<Event> {
        tapping.events.try_recv().ok()?.event
    }

    #[tokio::test]
    async fn a_watcher_is_shown_what_it_asked_for_and_told_of_the_rest() {
        let taps = Arc::new(Taps::default());
        let mut tapping = taps.open(filter(3), 2).unwrap();
        let wanted = taps.wanted().borrow().clone();
        assert_eq!(
            (wanted.len(), wanted[0].request.as_ref().unwrap().max_rps),
            (1, 2),
            "its share"
        );
        let id = wanted[0].id;
        for _ in 0..5 {
            taps.hear(&proxy("a"), seen(id, TapSeen::default()));
        }
        let lost = TapShown { id, event: Some(TapEvent { event: Some(Event::Lost(10)) }) };
        taps.hear(&proxy("a"), lost);
        taps.hear(&proxy("a"), seen(id + 1, TapSeen::default()));
        let path = "x".repeat(MAX_EVENT);
        taps.hear(&proxy("a"), seen(id, TapSeen { path, ..TapSeen::default() }));
        assert_eq!((0..9).filter_map(|_| next(&mut tapping)).count(), 3);
        tokio::time::sleep(Duration::from_millis(1100)).await;
        taps.hear(&proxy("a"), seen(id, TapSeen::default()));
        assert_eq!(next(&mut tapping), Some(Event::Lost(13)));
        assert!(matches!(next(&mut tapping), Some(Event::Seen(_))));
        drop(tapping);
        assert!(taps.wanted().borrow().is_empty());
    }

    #[tokio::test]
    async fn a_proxy_speaks_for_itself() {
        let taps = Arc::new(Taps::default());
        let mut tapping = taps.open(filter(0), 1).unwrap();
        let other =
            || Some(TapEnd { spiffe_id: "spiffe://x/ns/a/sa/b".into(), ..TapEnd::default() });
        for direction in ["inbound", "outbound"] {
            let (source, destination) = (other(), other());
            let direction = direction.to_owned();
            let forged = TapSeen { direction, source, destination, ..TapSeen::default() };
            taps.hear(&proxy("a"), seen(1, forged));
            let Some(Event::Seen(shown)) = next(&mut tapping) else { panic!("not shown") };
            let ends = [shown.source, shown.destination].map(|end| end.unwrap().spiffe_id);
            let own = usize::from(shown.direction == "inbound");
            assert_eq!(ends[own], proxy("a").id.as_str());
        }
    }

    #[tokio::test]
    async fn a_bounded_number_watches() {
        let taps = Arc::new(Taps::default());
        let mut all: Vec<_> = (0..MAX_TAPS).map(|_| taps.open(filter(0), 1).ok()).collect();
        assert!(all.iter().all(Option::is_some));
        assert_eq!(taps.open(filter(0), 1).err(), Some(TooMany));
        all.pop();
        assert!(taps.open(filter(0), 1).is_ok());
    }
}
