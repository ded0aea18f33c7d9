//! Requests as they end, for those who watch. While nobody does, a request
//! costs one load of a number.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use mesh_api::v1::{self, tap_event::Event};
use mesh_core::tap::Allowance;
pub use mesh_core::tap::{BadFilter, Filter};
use mesh_runtime::clock;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    access_log::Entry,
    app::Shared,
    metrics::{Direction, traffic},
};

/// Who may watch at once.
const MAX_WATCHERS: usize = 16;
/// Events that wait for one of them: 1 MiB of long paths at most.
const QUEUE: usize = 256;
/// Events a second, unless a watcher wants another number.
const DEFAULT_RPS: u32 = 100;
/// What a watcher may want at most.
const MAX_RPS: u32 = 10_000;
/// Of a path that is shown.
const MAX_TEXT: usize = 2048;

/// Those who watch; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tap(Arc<Watched>);

#[derive(Debug, Default)]
struct Watched {
    count: AtomicUsize,
    watchers: Mutex<Vec<Watcher>>,
}

#[derive(Debug)]
struct Watcher {
    filter: Filter,
    events: mpsc::Sender<v1::TapEvent>,
    allowance: Allowance,
    /// When it began to watch.
    began: Instant,
}

/// Nobody else may watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_WATCHERS} watch already; end one of them")]
pub struct TooMany;

impl Tap {
    /// Whether anybody watches.
    #[inline]
    pub fn is_watched(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) > 0
    }

    fn watchers(&self) -> MutexGuard<'_, Vec<Watcher>> {
        self.0.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what matches from now on, until the result is dropped.
    ///
    /// # Errors
    ///
    /// Too many watch already.
    pub fn watch(&self, filter: Filter, max_rps: u32) -> Result<Watching, TooMany> {
        let (events, shown) = mpsc::channel(QUEUE);
        let max_rps = if max_rps == 0 { DEFAULT_RPS } else { max_rps.min(MAX_RPS) };
        let (allowance, began) = (Allowance::new(max_rps), clock::monotonic());
        let mut watchers = self.watchers();
        watchers.retain(|watcher| !watcher.events.is_closed());
        if watchers.len() >= MAX_WATCHERS {
            return Err(TooMany);
        }
        watchers.push(Watcher { filter, events, allowance, began });
        self.0.count.store(watchers.len(), Ordering::Relaxed);
        Ok(Watching { tap: self.clone(), events: shown })
    }

    /// Shows what has ended to those whom it matches.
    pub fn show(&self, shared: &Shared, entry: &Entry, latency: Option<Duration>) {
        let mut told = None;
        for watcher in self.watchers().iter_mut() {
            if !matches(&watcher.filter, shared, entry) {
                continue;
            }
            if !watcher.take(clock::monotonic()) {
                shared.metrics.tap_lost.inc();
                continue;
            }
            let seen = told.get_or_insert_with(|| seen(shared, entry, latency)).clone();
            let _there_was_room = watcher.events.try_send(event(Event::Seen(seen)));
        }
    }

    fn forget(&self) {
        let mut watchers = self.watchers();
        watchers.retain(|watcher| !watcher.events.is_closed());
        self.0.count.store(watchers.len(), Ordering::Relaxed);
    }
}

impl Watcher {
    /// Whether one more is shown; says first how many were not.
    fn take(&mut self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.began);
        let lost = self.allowance.take(now, self.events.capacity());
        if let Some(lost @ 1..) = lost {
            let _there_was_room = self.events.try_send(event(Event::Lost(lost)));
        }
        lost.is_some()
    }
}

fn event(event: Event) -> v1::TapEvent {
    v1::TapEvent { event: Some(event) }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watching {
    tap: Tap,
    events: mpsc::Receiver<v1::TapEvent>,
}

impl Watching {
    /// The next event.
    pub async fn next(&mut self) -> Option<v1::TapEvent> {
        self.events.recv().await
    }

    /// The same for who polls.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<v1::TapEvent>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.events.close();
        self.tap.forget();
    }
}

fn matches(filter: &Filter, shared: &Shared, entry: &Entry) -> bool {
    let asked = &filter.asked;
    let any = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
    let request = entry.asked.as_deref();
    let text = |of: fn(&crate::access_log::Asked) -> &str| request.map_or("", of);
    let authority = text(|asked| &asked.authority);
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    any(&asked.direction, entry.direction.as_str())
        && any(&asked.service, entry.service.as_ref().map_or("", |name| name.as_str()))
        && any(&asked.method, text(|asked| asked.method.as_str()))
        && text(|asked| &asked.path).starts_with(&asked.path)
        && (any(&asked.authority, authority) || asked.authority == host)
        && filter.status.is_none_or(|(low, high)| (low..=high).contains(&entry.status))
        && is_between(&asked.source, &asked.destination, shared, entry)
}

/// Whether it is from and to whom it shall be; empty is anybody.
fn is_between(source: &str, destination: &str, shared: &Shared, entry: &Entry) -> bool {
    if source.is_empty() && destination.is_empty() {
        return true;
    }
    let svid = shared.credentials.svid();
    let own = svid.as_ref().map_or("", |svid| svid.id.as_str());
    let peer = entry.peer.as_ref().map_or("", |peer| peer.as_str());
    let (from, to) = match entry.direction {
        Direction::Inbound => (peer, own),
        Direction::Outbound => (own, peer),
    };
    is(source, from) && is(destination, to)
}

/// Whether an identity is the one that is wanted, or begins as it does before
/// its `*`.
fn is(wanted: &str, identity: &str) -> bool {
    match wanted.strip_suffix('*') {
        _ if wanted.is_empty() => true,
        Some(begin) => identity.starts_with(begin),
        None => wanted == identity,
    }
}

fn seen(shared: &Shared, entry: &Entry, latency: Option<Duration>) -> v1::TapSeen {
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let (source, destination) = ends(shared, entry);
    let asked = entry.asked.as_deref();
    v1::TapSeen {
        connection: name(entry.connection.as_deref()),
        began_ns: ns(entry.time),
        direction: entry.direction.as_str().to_owned(),
        protocol: entry.protocol.to_owned(),
        service: name(entry.service.as_ref().map(|name| name.as_str())),
        port: name(entry.port.as_ref().map(|name| name.as_str())),
        source: Some(source),
        destination: Some(destination),
        method: name(asked.map(|asked| asked.method.as_str())),
        authority: cut(asked.map_or("", |asked| &asked.authority)),
        path: cut(asked.map_or("", |asked| &asked.path)),
        status: entry.status.into(),
        grpc_status: entry.grpc_status,
        reason: name(entry.reason.map(mesh_core::Reason::code)),
        route: name(entry.route.as_deref()),
        latency_ns: ns(latency.unwrap_or(entry.duration)),
        duration_ns: ns(entry.duration),
        received: entry.received,
        sent: entry.sent,
        attempts: entry.attempts,
        success: entry.is_success(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// Source and destination.
fn ends(shared: &Shared, entry: &Entry) -> (v1::TapEnd, v1::TapEnd) {
    let snapshot = shared.snapshot.load();
    let own = shared.own.load();
    let site = own.site.as_ref().or(snapshot.as_ref().map(|snapshot| &snapshot.site));
    let svid = shared.credentials.svid();
    let peer = entry.peer.as_ref();
    let here = v1::TapEnd {
        spiffe_id: svid.map_or_else(String::new, |svid| svid.id.to_string()),
        site: site.map_or_else(String::new, ToString::to_string),
        ..v1::TapEnd::default()
    };
    let there = v1::TapEnd {
        spiffe_id: peer.map_or_else(String::new, ToString::to_string),
        ..v1::TapEnd::default()
    };
    let client = entry.client.map_or_else(String::new, |client| client.to_string());
    let endpoint = entry.endpoint.as_deref();
    let id = endpoint.map_or_else(String::new, |endpoint| endpoint.id.to_string());
    match entry.direction {
        Direction::Outbound => {
            let addr = endpoint.map(|endpoint| endpoint.address.unwrap_or(endpoint.target));
            let site = endpoint.map_or_else(String::new, |endpoint| endpoint.site.to_string());
            let address = addr.map_or_else(String::new, |addr| addr.to_string());
            (
                v1::TapEnd { address: client, ..here },
                v1::TapEnd { address, site, endpoint: id, ..there },
            )
        }
        Direction::Inbound => {
            let site = peer.zip(snapshot.as_deref()).and_then(|(p, s)| traffic::site_of(s, p));
            let site = site.map_or_else(String::new, |site| site.to_string());
            let address = endpoint.map_or_else(String::new, |endpoint| endpoint.target.to_string());
            (
                v1::TapEnd { address: client, site, ..there },
                v1::TapEnd { address, endpoint: id, ..here },
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_match_whole_or_by_their_beginning() {
        let id = "spiffe://west.example/ns/shop/sa/orders";
        for (wanted, matches) in [
            ("", true),
            (id, true),
            ("spiffe://west.example/ns/shop/*", true),
            ("spiffe://west.example/ns/shop/sa/order", false),
            ("spiffe://east.example/*", false),
        ] {
            assert_eq!(is(wanted, id), matches, "{wanted}");
        }
    }

    #[test]
    fn who_is_slow_is_told_how_many_were_lost() {
        let tap = Tap::default();
        let mut watching = tap.watch(Filter::default(), 2).unwrap();
        assert!(tap.is_watched());
        let now = clock::monotonic();
        let shown = |at: Instant| tap.watchers()[0].take(at);
        assert_eq!([shown(now), shown(now), shown(now), shown(now)], [true, true, false, false]);
        assert!(shown(now + Duration::from_secs(2)));
        assert_eq!(watching.events.try_recv().unwrap(), event(Event::Lost(2)));
        drop(watching);
        assert!(!tap.is_watched());
    }

    #[test]
    fn a_bounded_number_watches() {
        let tap = Tap::default();
        let watch = || tap.watch(Filter::default(), 0);
        let mut watching: Vec<_> = (0..MAX_WATCHERS).map(|_| watch().unwrap()).collect();
        assert_eq!(watch().unwrap_err(), TooMany);
        watching.pop();
        assert!(watch().is_ok());
    }
}
