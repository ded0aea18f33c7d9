//! What is known of every proxy that follows the view.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_api::v1::{
    Ack, EdgeRow, Nack, ProxyInfo, Report, Revision, RouteRow, StatRequest, StatResponse, StatRow,
    TransitionTls,
};
use mesh_core::{PeerIdentity, identity::canonical_serial};
use tokio::time::Instant;

use crate::clock::Clock;

/// Services in one report; more are dropped.
const MAX_STATS: usize = 4096;
/// Routes, and other ends, in one report; the same.
const MAX_OTHERS: usize = 512;
/// Listeners and services with certificates of another CA, in one report; the same.
const MAX_TRANSITIONS: usize = 64;
/// The longest name of one of them, in characters.
const MAX_TEXT: usize = 256;
/// Buckets of one histogram.
const MAX_BUCKETS: usize = 64;
/// A report older than this many of its own intervals is no longer shown.
const STALE_INTERVALS: u32 = 3;
/// And no report is shown for longer than this.
const STALE: Duration = Duration::from_secs(60);

/// All streams by number.
#[derive(Default)]
pub(crate) struct Proxies {
    streams: Mutex<BTreeMap<u64, Proxy>>,
}

struct Proxy {
    peer: PeerIdentity,
    version: String,
    acked: Option<Revision>,
    /// Of the certificate that it uses; at first of the one that it has come
    /// with.
    serial: String,
    nack: String,
    heard: Instant,
    report: Option<(Instant, Report)>,
    /// A gateway's id.
    gateway: Option<String>,
    clock_ahead_ms: Option<i64>,
    /// As it reported last: they do not come and go with figures.
    transitions: Vec<TransitionTls>,
}

/// A proxy with a stream, as far as roots and certificates go.
#[derive(Debug, Clone)]
pub struct Following {
    /// Number of the stream.
    pub stream: u64,
    /// As it has proved itself.
    pub peer: PeerIdentity,
    /// Of a gateway.
    pub gateway: Option<String>,
    /// Of the certificate that it uses.
    pub serial: String,
    /// How long ago it said something.
    pub heard: Duration,
    /// Why it refuses what it was sent last; empty if it does not.
    pub nack: String,
    /// It verifies with the bundle that was asked about.
    pub holds: bool,
}

impl fmt::Display for Following {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.gateway, &self.peer.node) {
            (Some(gateway), _) => write!(f, "gateway {gateway}"),
            (None, Some(node)) => write!(f, "proxy of {} on node {node}", self.peer.id),
            (None, None) => write!(f, "proxy of {}", self.peer.id),
        }
    }
}

impl Proxies {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Proxy>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, stream: u64, change: impl FnOnce(&mut Proxy)) {
        if let Some(proxy) = self.lock().get_mut(&stream) {
            change(proxy);
        }
    }

    pub(crate) fn add(
        &self,
        stream: u64,
        peer: &PeerIdentity,
        version: &str,
        gateway: Option<&str>,
    ) {
        let proxy = Proxy {
            peer: peer.clone(),
            version: version.chars().take(64).collect(),
            acked: None,
            serial: peer.serial.clone(),
            nack: String::new(),
            heard: Instant::now(),
            report: None,
            gateway: gateway.map(str::to_owned),
            clock_ahead_ms: None,
            transitions: Vec::new(),
        };
        self.lock().insert(stream, proxy);
    }

    pub(crate) fn remove(&self, stream: u64) {
        self.lock().remove(&stream);
    }

    pub(crate) fn heard(&self, stream: u64) {
        self.change(stream, |proxy| proxy.heard = Instant::now());
    }

    pub(crate) fn acked(&self, stream: u64, ack: &Ack) {
        self.change(stream, |proxy| {
            proxy.acked = ack.revision;
            if let Some(serial) = canonical_serial(&ack.serial) {
                proxy.serial = serial;
            }
            proxy.nack.clear();
        });
    }

    pub(crate) fn following(&self, since: Option<Revision>) -> Vec<Following> {
        let holds = |proxy: &Proxy| {
            let acked = proxy.acked.zip(since);
            acked.is_some_and(|(acked, since)| acked.epoch == since.epoch && acked.n >= since.n)
        };
        let following = |(stream, proxy): (&u64, &Proxy)| Following {
            stream: *stream,
            peer: proxy.peer.clone(),
            gateway: proxy.gateway.clone(),
            serial: proxy.serial.clone(),
            heard: proxy.heard.elapsed(),
            nack: proxy.nack.clone(),
            holds: holds(proxy),
        };
        self.lock().iter().map(following).collect()
    }

    pub(crate) fn refused(&self, stream: u64, nack: &Nack) {
        let reason: String = nack.reason.chars().take(256).collect();
        self.change(stream, |proxy| proxy.nack = reason);
    }

    pub(crate) fn report(&self, stream: u64, mut report: Report, clock: &Clock) {
        report.stats.truncate(MAX_STATS);
        report.routes.truncate(MAX_OTHERS);
        report.edges.truncate(MAX_OTHERS);
        let of_services = report.stats.iter_mut().map(|s| (&mut s.latency, &mut s.bounds_ms));
        let of_routes = report.routes.iter_mut().map(|s| (&mut s.latency, &mut s.bounds_ms));
        for (latency, bounds) in of_services.chain(of_routes) {
            latency.truncate(MAX_BUCKETS + 1);
            bounds.truncate(MAX_BUCKETS);
        }
        let ahead = clock.ahead_ms(report.time_unix_ms);
        let mut transitions = std::mem::take(&mut report.transitions);
        transitions.truncate(MAX_TRANSITIONS);
        for text in transitions.iter_mut().flat_map(|t| [&mut t.kind, &mut t.name]) {
            // It is shown to people.
            *text = text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
        }
        self.change(stream, |proxy| {
            proxy.clock_ahead_ms = ahead;
            proxy.transitions = transitions;
            proxy.report = Some((Instant::now(), report));
        });
    }

    /// Those that carry requests: gateways are not counted.
    pub(crate) fn count(&self) -> usize {
        self.lock().values().filter(|proxy| !proxy.peer.id.is_gateway()).count()
    }

    pub(crate) fn infos(&self) -> Vec<ProxyInfo> {
        let info = |proxy: &Proxy| ProxyInfo {
            spiffe_id: proxy.peer.id.to_string(),
            node: node_of(&proxy.peer),
            version: proxy.version.clone(),
            acked: proxy.acked,
            nack: proxy.nack.clone(),
            last_heard_ms: u64::try_from(proxy.heard.elapsed().as_millis()).unwrap_or(u64::MAX),
            certificate_expires_unix_s: i64::try_from(proxy.peer.not_after.as_secs())
                .unwrap_or(i64::MAX),
            gateway: proxy.gateway.clone().unwrap_or_default(),
            clock_ahead_ms: proxy.clock_ahead_ms,
            transitions: proxy.transitions.clone(),
        };
        self.lock().values().map(info).collect()
    }

    pub(crate) fn stat(&self, wanted: StatRequest) -> StatResponse {
        let mut answer = StatResponse::default();
        for proxy in self.lock().values() {
            let Some((at, report)) = &proxy.report else { continue };
            let interval = Duration::from_millis(report.interval_ms).min(STALE);
            if at.elapsed() > (interval * STALE_INTERVALS).clamp(Duration::from_secs(5), STALE) {
                continue;
            }
            answer.interval_ms = answer.interval_ms.max(report.interval_ms);
            let who = || (proxy.peer.id.to_string(), node_of(&proxy.peer));
            answer.rows.extend(report.stats.iter().cloned().map(|stat| {
                let (spiffe_id, node) = who();
                StatRow { stat: Some(stat), spiffe_id, node }
            }));
            let routes = report.routes.iter().filter(|_| wanted.routes).cloned();
            answer.routes.extend(routes.map(|stat| {
                let (spiffe_id, node) = who();
                RouteRow { stat: Some(stat), spiffe_id, node }
            }));
            let edges = report.edges.iter().filter(|_| wanted.edges).cloned();
            answer.edges.extend(edges.map(|stat| {
                let (spiffe_id, node) = who();
                EdgeRow { stat: Some(stat), spiffe_id, node }
            }));
        }
        answer
    }
}

fn node_of(peer: &PeerIdentity) -> String {
    peer.node.as_ref().map(ToString::to_string).unwrap_or_default()
}
