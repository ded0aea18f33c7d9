//! Warm inner sessions, per worker and endpoint.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{Endpoint, EndpointId, SiteName, Snapshot};
use rustc_hash::FxHashMap;
use tokio::sync::watch;

use crate::{
    inner::{self, OpenFailure, Session},
    worker::Worker,
};

/// Sessions per worker and endpoint: what QUIC isolates is sessions.
const MAX_SESSIONS: usize = 4;
/// Streams on the least used session from which another one is opened.
const SPREAD_AT: usize = 64;
/// The same towards other sites: a packet that is lost on the way there stalls
/// every stream of its session for a round trip.
const SPREAD_AT_REMOTE: usize = 16;
/// A session without streams for this long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// What an entry is for.
type Key = (SiteName, EndpointId);

/// What an opening session tells those who wait for it.
pub type Opened = Option<Result<Arc<Session>, OpenFailure>>;

/// Sessions by endpoint.
#[derive(Debug, Default)]
pub struct Pool {
    entries: Mutex<FxHashMap<Key, Entry>>,
}

#[derive(Debug)]
struct Entry {
    endpoint: Arc<Endpoint>,
    sessions: Vec<Arc<Session>>,
    /// At most one opens at a time; everybody else waits for it.
    opening: Option<watch::Receiver<Opened>>,
}

/// A session with room for another stream.
pub type Place = Arc<Session>;

/// What a caller has to do.
#[derive(Debug)]
pub enum Plan {
    /// There is room on a session.
    Use(Place),
    /// One opens: see [`Plan::carried_out`].
    Wait(watch::Receiver<Opened>),
}

impl Plan {
    /// Waits until there is a place.
    ///
    /// # Errors
    ///
    /// No session came up; nothing was sent.
    pub async fn carried_out(self) -> Result<Place, OpenFailure> {
        let mut opened = match self {
            Self::Use(place) => return Ok(place),
            Self::Wait(opened) => opened,
        };
        let result = opened.wait_for(Option::is_some).await.ok().and_then(|opened| opened.clone());
        let lost = || Err(OpenFailure::Handshake("it was given up".into()));
        result.unwrap_or_else(lost)
    }
}

impl Pool {
    fn entries(&self) -> MutexGuard<'_, FxHashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions held now.
    pub fn sessions(&self) -> usize {
        self.entries().values().map(|entry| entry.sessions.len()).sum()
    }

    /// Closes what is idle, and retires what leads to endpoints that are gone.
    pub fn sweep(&self, snapshot: Option<&Snapshot>) {
        self.entries().retain(|(site, id), entry| {
            entry.sessions.retain(|s| s.mux.is_usable() && s.mux.idle_for() < IDLE);
            let service = entry.endpoint.service.as_str();
            let known = snapshot.is_some_and(|s| s.endpoint(service, site, id.as_str()).is_some());
            entry.opening.is_some() || (known && !entry.sessions.is_empty())
        });
    }
}

/// A place on a warm session to `endpoint`, or on a new one.
///
/// # Errors
///
/// No session came up; nothing was sent.
pub async fn place(
    worker: &Arc<Worker>,
    snapshot: &Arc<Snapshot>,
    endpoint: &Arc<Endpoint>,
) -> Result<Place, OpenFailure> {
    plan(worker, snapshot, endpoint)?.carried_out().await
}

/// The same in two steps, for those who count who waits.
///
/// # Errors
///
/// No session may be opened; nothing was sent.
pub fn plan(
    worker: &Arc<Worker>,
    snapshot: &Arc<Snapshot>,
    endpoint: &Arc<Endpoint>,
) -> Result<Plan, OpenFailure> {
    let key = (endpoint.site.clone(), endpoint.id.clone());
    let mut entries = worker.pool.entries();
    let entry = entries.entry(key).or_insert_with(|| Entry::new(endpoint));
    entry.follow(endpoint);
    entry.sessions.retain(|session| session.mux.is_usable());
    let least = entry.sessions.iter().min_by_key(|session| session.mux.streams()).cloned();
    let streams = least.as_ref().map_or(usize::MAX, |session| session.mux.streams());
    let spread_at = if endpoint.site == snapshot.site { SPREAD_AT } else { SPREAD_AT_REMOTE };
    let most = || most_sessions(snapshot, endpoint);
    if streams >= spread_at && entry.opening.is_none() && entry.sessions.len() < most() {
        entry.opening = Some(start_opening(worker, snapshot, endpoint));
    }
    match (least, &entry.opening) {
        (Some(session), _) if session.mux.has_room() => Ok(Plan::Use(session)),
        (_, Some(opening)) => Ok(Plan::Wait(opening.clone())),
        _ => Err(OpenFailure::Overloaded),
    }
}

/// Sessions to one endpoint: no more than connections to its service.
fn most_sessions(snapshot: &Snapshot, endpoint: &Endpoint) -> usize {
    let service = snapshot.services.get(&endpoint.service);
    let limit = service.and_then(|service| service.traffic.circuit_breaker.max_connections);
    limit.map_or(MAX_SESSIONS, |limit| MAX_SESSIONS.min(limit as usize))
}

impl Entry {
    fn new(endpoint: &Arc<Endpoint>) -> Self {
        Self { endpoint: endpoint.clone(), sessions: Vec::new(), opening: None }
    }

    /// Sessions to an endpoint that answers elsewhere now, or as somebody
    /// else, take nothing new.
    fn follow(&mut self, endpoint: &Arc<Endpoint>) {
        let old = &self.endpoint;
        if old.identity != endpoint.identity || old.address != endpoint.address {
            self.sessions.clear();
            self.opening = None;
        }
        if !Arc::ptr_eq(&self.endpoint, endpoint) {
            self.endpoint = endpoint.clone();
        }
    }
}

/// Opens a session in a task of its own: who asked first may vanish, others
/// wait for it too. It has deadlines of its own.
fn start_opening(
    worker: &Arc<Worker>,
    snapshot: &Arc<Snapshot>,
    endpoint: &Arc<Endpoint>,
) -> watch::Receiver<Opened> {
    let (told, opening) = watch::channel(None);
    let (worker, snapshot, endpoint) = (worker.clone(), snapshot.clone(), endpoint.clone());
    worker.shared.drain.clone().spawn(async move {
        let result = inner::open(&worker.shared, &worker.tunnels, &snapshot, &endpoint).await;
        let result = result.map(Arc::new);
        let mut entries = worker.pool.entries();
        if let Some(entry) = entries.get_mut(&(endpoint.site.clone(), endpoint.id.clone()))
            && entry.endpoint.identity == endpoint.identity
            && entry.endpoint.address == endpoint.address
        {
            entry.opening = None;
            entry.sessions.extend(result.as_ref().ok().cloned());
        }
        drop(entries);
        told.send_replace(Some(result));
    });
    opening
}
