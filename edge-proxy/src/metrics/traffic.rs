//! Figures with the names, labels and buckets that Linkerd's proxies have, so
//! that what asks those gets answers here, too; without a prefix therefore.
//! Beyond them: site and locality of both ends.

use std::sync::Arc;

use mesh_core::{
    Endpoint, Locality, Reason, ServiceName, SiteName, Snapshot, SpiffeId, name::Subject,
};
use mesh_tunnel::Credentials;
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tokio::time::Instant;

use super::{
    Direction,
    labels::{Labels, Pair},
    series::{Latency, Series},
};
use crate::{
    access_log::Entry,
    app::Shared,
    stats::{Edge, Flow},
};

/// Milliseconds.
const LATENCY_BUCKETS_MS: [f64; 25] = [
    1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0,
    1000.0, 2000.0, 3000.0, 4000.0, 5000.0, 10000.0, 20000.0, 30000.0, 40000.0, 50000.0,
];

/// What is counted; cheap to clone.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Requests by target.
    pub requests: Series<Labels, Counter>,
    /// What was answered, by status and class.
    pub responses: Series<Labels, Counter>,
    /// Until the head of the response, by status.
    pub response_latency_ms: Series<Labels, Latency>,
    /// The same by the route that was taken, once per request.
    pub route_requests: Series<Labels, Counter>,
    /// As clients see it.
    pub route_responses: Series<Labels, Counter>,
    /// As clients see it.
    pub route_response_latency_ms: Series<Labels, Latency>,
    /// Attempts.
    pub route_actual_requests: Series<Labels, Counter>,
    /// What attempts got.
    pub route_actual_responses: Series<Labels, Counter>,
    /// Connections that were opened.
    pub tcp_opened: Series<Labels, Counter>,
    /// Connections that were closed, by error.
    pub tcp_closed: Series<Labels, Counter>,
    /// Connections that are open.
    pub tcp_open: Series<Labels, Gauge>,
    /// From the other end.
    pub tcp_read: Series<Labels, Counter>,
    /// To the other end.
    pub tcp_written: Series<Labels, Counter>,
}

impl Traffic {
    /// Nothing is counted yet; `refused` counts series without room.
    pub fn new(refused: &Counter) -> Self {
        let counter = || Series::new(Counter::default, refused.clone());
        let latency = || Series::new(|| Latency::new(&LATENCY_BUCKETS_MS), refused.clone());
        Self {
            requests: counter(),
            responses: counter(),
            response_latency_ms: latency(),
            route_requests: counter(),
            route_responses: counter(),
            route_response_latency_ms: latency(),
            route_actual_requests: counter(),
            route_actual_responses: counter(),
            tcp_opened: counter(),
            tcp_closed: counter(),
            tcp_open: Series::new(Gauge::default, refused.clone()),
            tcp_read: counter(),
            tcp_written: counter(),
        }
    }

    /// Shows everything; `registry` has no prefix.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("request", "Requests", self.requests.clone());
        registry.register("response", "Responses", self.responses.clone());
        let latency = "Milliseconds until the head of the response";
        registry.register("response_latency_ms", latency, self.response_latency_ms.clone());
        let route = "Requests by route";
        registry.register("route_request", route, self.route_requests.clone());
        let route = "Responses by route, as clients see them";
        registry.register("route_response", route, self.route_responses.clone());
        let route = self.route_response_latency_ms.clone();
        registry.register("route_response_latency_ms", latency, route);
        let attempts = "Attempts by route";
        registry.register("route_actual_request", attempts, self.route_actual_requests.clone());
        let attempts = "What attempts got, by route";
        registry.register("route_actual_response", attempts, self.route_actual_responses.clone());
        registry.register("tcp_open", "Connections opened", self.tcp_opened.clone());
        registry.register("tcp_close", "Connections closed", self.tcp_closed.clone());
        registry.register("tcp_open_connections", "Connections open", self.tcp_open.clone());
        registry.register("tcp_read_bytes", "Bytes from the other end", self.tcp_read.clone());
        registry.register("tcp_write_bytes", "Bytes to the other end", self.tcp_written.clone());
    }

    /// Forgets what nobody uses.
    pub fn sweep(&self, now: Instant) {
        let counters = [
            &self.requests,
            &self.responses,
            &self.route_requests,
            &self.route_responses,
            &self.route_actual_requests,
            &self.route_actual_responses,
            &self.tcp_opened,
            &self.tcp_closed,
            &self.tcp_read,
            &self.tcp_written,
        ];
        for family in counters {
            family.sweep(now);
        }
        self.response_latency_ms.sweep(now);
        self.route_response_latency_ms.sweep(now);
        self.tcp_open.sweep(now);
    }

    /// Counts an open connection until the result is dropped.
    pub fn opened(&self, labels: &Labels, peer: &'static str) -> OpenTcp {
        let labels = labels.with([("peer", peer.to_owned())]);
        self.tcp_opened.of(&labels).inc();
        let open = self.tcp_open.of(&labels);
        open.inc();
        let (read, written) = (self.tcp_read.of(&labels), self.tcp_written.of(&labels));
        let closed = self.tcp_closed.clone();
        OpenTcp { open, read, written, closed, labels, errno: "" }
    }
}

/// An open connection.
#[derive(Debug)]
pub struct OpenTcp {
    open: Arc<Gauge>,
    /// Bytes from the other end.
    pub read: Arc<Counter>,
    /// Bytes to the other end.
    pub written: Arc<Counter>,
    closed: Series<Labels, Counter>,
    labels: Labels,
    errno: &'static str,
}

impl OpenTcp {
    /// It ends by an error.
    pub fn failed(&mut self, reason: Reason) {
        self.errno = match reason {
            Reason::Timeout => "ETIMEDOUT",
            Reason::AppUnreachable | Reason::EndpointUnreachable => "ECONNREFUSED",
            _ => "ECONNRESET",
        };
    }
}

impl Drop for OpenTcp {
    fn drop(&mut self) {
        self.open.dec();
        let labels = self.labels.with([("errno", self.errno.to_owned())]);
        self.closed.of(&labels).inc();
    }
}

/// Labels of a request or connection by its ends. A service that is not
/// `known` was made up by a client and becomes no label.
pub fn labels(shared: &Shared, entry: &Entry, known: bool) -> Labels {
    let snapshot = shared.snapshot.load();
    let snapshot = snapshot.as_deref();
    let mut labels = vec![("direction", entry.direction.as_str().to_owned())];
    let authority = authority(snapshot, entry).filter(|_| known);
    let endpoint = entry.endpoint.as_deref();
    match entry.direction {
        Direction::Outbound => {
            labels.push(("authority", authority.unwrap_or_default()));
            if let Some(endpoint) = endpoint {
                put_target(&mut labels, endpoint.address.unwrap_or(endpoint.target));
                put_tls(&mut labels, "server_id", endpoint.identity.as_ref());
                put_destination(&mut labels, endpoint, &shared.own.load().locality);
            }
        }
        Direction::Inbound => {
            if let Some(endpoint) = endpoint {
                put_target(&mut labels, endpoint.target);
            }
            put_tls(&mut labels, "client_id", entry.peer.as_ref());
            if let (Some(service), true) = (&entry.service, known) {
                let port = authority.as_deref().and_then(|name| name.rsplit_once(':'));
                labels.push(("srv_kind", "service".to_owned()));
                labels.push(("srv_name", service.to_string()));
                labels.push(("srv_port", port.map_or("", |(_, port)| port).to_owned()));
            }
        }
    }
    put_places(&mut labels, shared, snapshot, entry);
    labels.extend(workload(&shared.credentials));
    Labels::new(labels)
}

/// `<service>:<port>`, with the port's number.
pub fn authority(snapshot: Option<&Snapshot>, entry: &Entry) -> Option<String> {
    let service = entry.service.as_ref()?;
    let port = entry.port.as_ref()?;
    let known = snapshot?.services.get(service)?.port(port.as_str())?;
    Some(format!("{service}:{}", known.number))
}

/// Whose proxy this is: `namespace` and `deployment`, which is the account.
pub fn workload(credentials: &Credentials) -> Vec<Pair> {
    let svid = credentials.svid();
    let id = svid.as_ref().map(|svid| &svid.id);
    let (namespace, account) = id.and_then(named).unwrap_or_default();
    vec![("namespace", namespace.to_owned()), ("deployment", account.to_owned())]
}

/// Namespace and account of a workload.
fn named(id: &SpiffeId) -> Option<(&str, &str)> {
    match id.subject() {
        Subject::Workload { namespace, account } => Some((namespace, account)),
        Subject::Node(_) => None,
    }
}

fn put_target(labels: &mut Vec<Pair>, addr: std::net::SocketAddr) {
    labels.push(("target_addr", addr.to_string()));
    labels.push(("target_ip", addr.ip().to_string()));
    labels.push(("target_port", addr.port().to_string()));
}

fn put_tls(labels: &mut Vec<Pair>, key: &'static str, peer: Option<&SpiffeId>) {
    match peer {
        Some(peer) => labels.extend([("tls", "true".to_owned()), (key, peer.to_string())]),
        None => labels.extend([
            ("tls", "no_identity".to_owned()),
            ("no_tls_reason", "not_provided_by_service_discovery".to_owned()),
        ]),
    }
}

fn put_destination(labels: &mut Vec<Pair>, endpoint: &Endpoint, own: &Locality) {
    let name = endpoint.service.as_str();
    let (service, namespace) = name.split_once('.').unwrap_or((name, ""));
    let zone = &endpoint.locality.zone;
    let near = match (zone.is_empty() || own.zone.is_empty(), *zone == own.zone) {
        (true, _) => "unknown",
        (false, true) => "local",
        (false, false) => "remote",
    };
    labels.push(("dst_namespace", namespace.to_owned()));
    labels.push(("dst_service", service.to_owned()));
    labels.push(("dst_pod", endpoint.id.to_string()));
    if let Some((_, account)) = endpoint.identity.as_ref().and_then(named) {
        labels.push(("dst_deployment", account.to_owned()));
        labels.push(("dst_serviceaccount", account.to_owned()));
    }
    labels.push(("dst_zone_locality", near.to_owned()));
}

/// Whom a request or connection has to do with; `None` if it got nowhere, or
/// the service is none of the mesh.
pub fn edge(shared: &Shared, entry: &Entry) -> Option<Edge> {
    let service = entry.service.clone().filter(|name| is_known(shared, name))?;
    let endpoint = entry.endpoint.as_ref()?;
    let (peer, site) = match entry.direction {
        Direction::Outbound => (endpoint.identity.clone(), Some(endpoint.site.clone())),
        Direction::Inbound => {
            let snapshot = shared.snapshot.load();
            let site = entry.peer.as_ref().zip(snapshot).and_then(|(peer, s)| site_of(&s, peer));
            (entry.peer.clone(), site)
        }
    };
    Some(Edge { service, flow: Flow::of(entry), peer, site })
}

/// Site, region and zone of both ends.
fn put_places(labels: &mut Vec<Pair>, shared: &Shared, snapshot: Option<&Snapshot>, entry: &Entry) {
    let own = shared.own.load();
    let site = own.site.as_ref().or(snapshot.map(|snapshot| &snapshot.site)).cloned();
    let here = Place { site, locality: Some(own.locality.clone()) };
    let there = match (&entry.direction, &entry.endpoint, &entry.peer, snapshot) {
        (Direction::Outbound, Some(endpoint), ..) => {
            Place { site: Some(endpoint.site.clone()), locality: Some(endpoint.locality.clone()) }
        }
        (Direction::Inbound, _, Some(peer), Some(snapshot)) => {
            Place { site: site_of(snapshot, peer), locality: locality_of(snapshot, peer) }
        }
        _ => Place::default(),
    };
    let (src, dst) = match entry.direction {
        Direction::Outbound => (here, there),
        Direction::Inbound => (there, here),
    };
    src.put(labels, ["src_site", "src_region", "src_zone"]);
    dst.put(labels, ["dst_site", "dst_region", "dst_zone"]);
}

/// Where an end is, as far as it is known.
#[derive(Debug, Default)]
struct Place {
    site: Option<SiteName>,
    locality: Option<Locality>,
}

impl Place {
    fn put(self, labels: &mut Vec<Pair>, [site, region, zone]: [&'static str; 3]) {
        let locality = self.locality.unwrap_or_default();
        labels.push((site, self.site.map_or_else(String::new, |site| site.to_string())));
        labels.push((region, locality.region.to_string()));
        labels.push((zone, locality.zone.to_string()));
    }
}

/// The site that a caller's trust domain belongs to.
pub fn site_of(snapshot: &Snapshot, peer: &SpiffeId) -> Option<SiteName> {
    let domain = peer.trust_domain();
    if *domain == snapshot.trust_domain {
        return Some(snapshot.site.clone());
    }
    snapshot.links.values().find(|link| link.trust_domain == *domain).map(|link| link.site.clone())
}

/// Where a caller is, if it backs services itself and all of it is in one
/// place.
fn locality_of(snapshot: &Snapshot, peer: &SpiffeId) -> Option<Locality> {
    let endpoints = snapshot.services.values().flat_map(|service| &service.endpoints);
    let mut places =
        endpoints.filter(|one| one.identity.as_ref() == Some(peer)).map(|one| &one.locality);
    let first = places.next()?;
    places.all(|other| other == first).then(|| first.clone())
}

/// Whether a service is one of the mesh: clients choose names, and only those
/// of the snapshot become labels.
pub fn is_known(shared: &Shared, name: &ServiceName) -> bool {
    shared.snapshot.load().is_some_and(|snapshot| snapshot.services.contains_key(name))
}
