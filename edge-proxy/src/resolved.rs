//! Series by what decides them, so that a request builds no label and takes no
//! lock that another worker might hold.

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::{Endpoint, PortName, Reason, ServiceName, SpiffeId};
use prometheus_client::metrics::counter::Counter;
use rustc_hash::{FxHashMap, FxHasher};
use tokio::time::Instant;

use crate::{
    access_log::Entry,
    app::Shared,
    metrics::{
        Direction, RequestLabels, TargetLabels, authz::Decided, labels::Labels, series::Latency,
        traffic,
    },
    stats::{Figures, Flow, Route},
};

/// Kinds of requests that one worker keeps; more are found anew each time.
const MAX_KEPT: usize = 4096;
/// Kept after the last request of its kind; the series live on.
const IDLE: Duration = Duration::from_secs(60);

/// What one kind of request is counted in.
#[derive(Debug)]
pub struct Handles {
    /// Requests, and opaque connections, that have ended.
    pub requests: Arc<Counter>,
    /// Until the head of the response.
    pub latency_ms: Arc<Latency>,
    /// What federation is told; `None` if no service of the mesh was named.
    pub figures: Option<Arc<Figures>>,
    /// The same by route; of requests that go out.
    pub route: Option<Arc<Figures>>,
    /// The same by other end, where there is one.
    pub edge: Option<Arc<Figures>>,
    /// What a policy has said to requests of this kind.
    pub authz: Option<Arc<Counter>>,
    /// The same as Linkerd has it; `None` for opaque connections.
    pub http: Option<HttpHandles>,
}

/// What one kind of HTTP request is counted in.
#[derive(Debug)]
pub struct HttpHandles {
    /// Requests.
    pub requests: Arc<Counter>,
    /// Responses, and the time until their heads; `None` if there is none.
    pub responses: Option<(Arc<Counter>, Arc<Latency>)>,
    /// Bytes of bodies from the other end.
    pub read: Arc<Counter>,
    /// Bytes of bodies to the other end.
    pub written: Arc<Counter>,
    /// By route.
    pub route: Option<RouteHandles>,
}

/// What the requests of one route are counted in.
#[derive(Debug)]
pub struct RouteHandles {
    /// Requests.
    pub requests: Arc<Counter>,
    /// Responses, and the time until their heads; `None` if there is none.
    pub responses: Option<(Arc<Counter>, Arc<Latency>)>,
    /// Attempts.
    pub attempts: Arc<Counter>,
    /// The response to the last of them.
    pub last: Arc<Counter>,
    /// Those before it: they failed, or were repeated.
    pub repeated: Arc<Counter>,
}

/// What decides where a request is counted.
#[derive(Debug)]
struct Key {
    direction: Direction,
    opaque: bool,
    service: Option<ServiceName>,
    port: Option<PortName>,
    path: &'static str,
    endpoint: Option<Arc<Endpoint>>,
    peer: Option<SpiffeId>,
    route: Option<Arc<str>>,
    status: u16,
    grpc_status: Option<u32>,
    failure: Option<bool>,
    decided: Option<Decided>,
    reason: Option<Reason>,
}

impl Key {
    fn of(entry: &Entry) -> Self {
        Self {
            direction: entry.direction,
            opaque: entry.is_opaque(),
            service: entry.service.clone(),
            port: entry.port.clone(),
            path: entry.path_kind,
            endpoint: entry.endpoint.clone(),
            peer: entry.peer.clone(),
            route: entry.route.clone(),
            status: entry.status,
            grpc_status: entry.grpc_status,
            failure: entry.failure,
            decided: entry.decided.clone(),
            reason: entry.reason,
        }
    }

    fn is_of(&self, entry: &Entry) -> bool {
        let same_endpoint = match (&self.endpoint, &entry.endpoint) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_endpoint
            && self.direction == entry.direction
            && self.opaque == entry.is_opaque()
            && (self.status, self.grpc_status) == (entry.status, entry.grpc_status)
            && (self.reason, self.path) == (entry.reason, entry.path_kind)
            && self.failure == entry.failure
            && self.decided == entry.decided
            && self.service == entry.service
            && self.port == entry.port
            && self.peer == entry.peer
            && self.route == entry.route
    }
}

/// An endpoint counts by its place in memory: the key holds it there.
fn hash(entry: &Entry) -> u64 {
    let mut hasher = FxHasher::default();
    let endpoint = entry.endpoint.as_ref().map(Arc::as_ptr);
    (entry.direction, entry.is_opaque(), endpoint, entry.status).hash(&mut hasher);
    (entry.grpc_status, entry.failure, entry.reason, entry.path_kind).hash(&mut hasher);
    (&entry.service, &entry.port, &entry.route).hash(&mut hasher);
    entry.peer.as_ref().map(SpiffeId::as_str).hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug)]
struct Kept {
    key: Key,
    handles: Handles,
    used: Instant,
}

/// The handles that one worker uses, by hash of their keys.
#[derive(Debug, Default)]
pub struct Resolved(Mutex<FxHashMap<u64, Kept>>);

impl Resolved {
    /// Counts with the handles for `entry`, which has ended now.
    pub fn count(&self, shared: &Shared, entry: &Entry, now: Instant, count: impl Fn(&Handles)) {
        let hash = hash(entry);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = kept.get_mut(&hash).filter(|kept| kept.key.is_of(entry)) {
            kept.used = now;
            return count(&kept.handles);
        }
        let handles = Handles::of(shared, entry);
        count(&handles);
        // A name that is unknown now may be known a moment later.
        if handles.figures.is_some() && kept.len() < MAX_KEPT {
            kept.insert(hash, Kept { key: Key::of(entry), handles, used: now });
        }
    }

    /// Lets go of what was not used lately.
    pub fn sweep(&self, now: Instant) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|_, kept| now.saturating_duration_since(kept.used) < IDLE);
    }
}

impl Handles {
    fn of(shared: &Shared, entry: &Entry) -> Self {
        let service =
            entry.service.as_ref().filter(|name| traffic::is_known(shared, name)).cloned();
        let figures = service.as_ref().map(|service| shared.stats.of(service, Flow::of(entry)));
        let known = service.is_some();
        let target = TargetLabels {
            direction: entry.direction,
            service,
            port: entry.port.clone(),
            path: entry.path_kind,
        };
        let labels = RequestLabels {
            target: target.clone(),
            protocol: if entry.is_opaque() { "tcp" } else { "http" },
            status_class: u8::try_from(entry.status / 100).unwrap_or_default(),
            reason: entry.reason,
        };
        Self {
            requests: shared.metrics.requests.of(&labels),
            latency_ms: shared.metrics.latency_ms.of(&target),
            figures,
            route: told_route(shared, entry).filter(|_| known),
            edge: traffic::edge(shared, entry).map(|edge| shared.stats.of_edge(edge)),
            authz: match entry.is_opaque() {
                // Counted when it was said.
                true => None,
                false => shared.metrics.authz.of(shared, entry),
            },
            http: (!entry.is_opaque()).then(|| HttpHandles::of(shared, entry, known)),
        }
    }
}

/// What federation is told of a request's route.
fn told_route(shared: &Shared, entry: &Entry) -> Option<Arc<Figures>> {
    if entry.is_opaque() || entry.direction == Direction::Inbound {
        return None;
    }
    let authority = traffic::authority(shared.snapshot.load().as_deref(), entry)?;
    let route = entry.route.as_deref().map_or("", of_profile).to_owned();
    Some(shared.stats.of_route(Route { authority, route }))
}

impl HttpHandles {
    fn of(shared: &Shared, entry: &Entry, known: bool) -> Self {
        let traffic = &shared.metrics.traffic;
        let base = traffic::labels(shared, entry, known);
        let peer = if entry.direction == Direction::Inbound { "src" } else { "dst" };
        let tcp = base.with([("peer", peer.to_owned())]);
        let responses = (entry.status != 0).then(|| {
            let latency = base.with([("status_code", entry.status.to_string())]);
            (
                traffic.responses.of(&responded(&base, entry)),
                traffic.response_latency_ms.of(&latency),
            )
        });
        Self {
            read: traffic.tcp_read.of(&tcp),
            written: traffic.tcp_written.of(&tcp),
            route: RouteHandles::of(shared, entry).filter(|_| known),
            requests: traffic.requests.of(&base),
            responses,
        }
    }
}

impl RouteHandles {
    fn of(shared: &Shared, entry: &Entry) -> Option<Self> {
        let traffic = &shared.metrics.traffic;
        let route = entry.route.as_ref()?;
        let snapshot = shared.snapshot.load();
        let mut base = vec![
            ("direction", entry.direction.as_str().to_owned()),
            ("dst", traffic::authority(snapshot.as_deref(), entry)?),
            ("rt_route", of_profile(route).to_owned()),
        ];
        base.extend(traffic::workload(&shared.credentials));
        let base = Labels::new(base);
        let responded = responded(&base, entry);
        let responses = (entry.status != 0).then(|| {
            let latency = base.with([("status_code", entry.status.to_string())]);
            (traffic.route_responses.of(&responded), traffic.route_response_latency_ms.of(&latency))
        });
        Some(Self {
            requests: traffic.route_requests.of(&base),
            responses,
            attempts: traffic.route_actual_requests.of(&base),
            last: traffic.route_actual_responses.of(&responded),
            repeated: traffic
                .route_actual_responses
                .of(&base.with([("classification", "failure".to_owned())])),
        })
    }
}

/// A route of a ServiceProfile by its own name, as Linkerd has it; all others
/// by namespace, document and rule.
fn of_profile(route: &str) -> &str {
    let of_profile = route.strip_prefix("profile/").and_then(|rest| rest.split_once('/'));
    of_profile.map_or(route, |(_, name)| name)
}

/// Labels of a response.
fn responded(base: &Labels, entry: &Entry) -> Labels {
    let class = if entry.is_success() { "success" } else { "failure" };
    let grpc = entry.grpc_status.map_or_else(String::new, |code| code.to_string());
    let labels = base.with([
        ("status_code", entry.status.to_string()),
        ("classification", class.to_owned()),
        ("grpc_status", grpc),
    ]);
    match entry.reason {
        Some(reason) => labels.with([("error", reason.code().to_owned())]),
        None => labels,
    }
}
