//! Which endpoint takes the next attempt.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::HeaderValue;
use mesh_core::{
    Endpoint, Health, Locality, Permit, PortName, Reason, Service, ServiceName, Snapshot,
    balance::{Backing, BalancePolicy, Slot, Vantage},
    client_hello::ClientHello,
    message::RequestHead,
    route::{self, Destination},
    rule::Caller,
};
use mesh_runtime::clock;
use tokio::{sync::watch, time::Instant};

use super::{
    decision::{self, Chosen, Decision},
    loads::{Attempt, Balanced},
};
use crate::{refusal::Refusal, worker::Worker};

/// Attempts at one request that somebody refused.
const MAX_ATTEMPTS: usize = 3;
/// Attempts in all, where nobody was there: when many endpoints go at once,
/// those that are left have to be found.
const MAX_LOOKS: usize = 16;
/// For how long after the first failure such attempts may begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where one request or opaque connection may go.
#[derive(Debug)]
pub struct Dispatch {
    /// What it was decided from.
    pub snapshot: Arc<Snapshot>,
    /// The chosen backend.
    pub service: ServiceName,
    /// Its port.
    pub port: PortName,
    balanced: Arc<Balanced>,
    tried: Vec<Slot>,
    /// What the request stays with an endpoint by.
    key: Option<u64>,
    cookie: Option<HeaderValue>,
    /// When the first attempt had failed.
    failed: Option<Instant>,
    /// Attempts before it began anew.
    earlier: usize,
    waits_until: Option<Instant>,
}

impl Dispatch {
    /// For opaque bytes: rule, backend by weight, its endpoints.
    pub async fn opaque(
        worker: &Arc<Worker>,
        destination: &Destination,
        hello: Option<&ClientHello>,
        address: Option<IpAddr>,
    ) -> Result<Self, Refusal> {
        let snapshot = worker.shared.snapshot.want(&destination.service).await;
        let snapshot = snapshot.ok_or_else(no_snapshot)?;
        let chosen = {
            let svid = worker.shared.credentials.svid();
            let namespace = svid.as_ref().and_then(|svid| svid.id.namespace());
            let from = Caller { namespace, address };
            let found = route::connection(&snapshot, destination, from, hello);
            let found = found.map_err(|no| Refusal::new(no.reason(), no.to_string()))?;
            decision::choose(&found.service.name, &found.port.name, found.rule)?
        };
        if chosen.service != destination.service {
            return Self::alone(worker, &chosen.service, &chosen.port).await;
        }
        Ok(Self::over(worker, snapshot, &chosen.service, &chosen.port))
    }

    /// The endpoints of a chosen backend.
    pub async fn to(
        worker: &Arc<Worker>,
        decision: &Decision,
        chosen: &Chosen,
    ) -> Result<Self, Refusal> {
        if chosen.service != decision.service.name {
            return Self::alone(worker, &chosen.service, &chosen.port).await;
        }
        let snapshot = decision.snapshot.clone();
        Ok(Self::over(worker, snapshot, &chosen.service, &chosen.port))
    }

    /// The endpoints of a service, whatever its own rules say.
    pub async fn alone(
        worker: &Arc<Worker>,
        service: &ServiceName,
        port: &PortName,
    ) -> Result<Self, Refusal> {
        let snapshot = worker.shared.snapshot.want(service).await.ok_or_else(no_snapshot)?;
        Ok(Self::over(worker, snapshot, service, port))
    }

    /// One application without a proxy, for a client that was let in: an own
    /// endpoint, whose proxy this one is.
    pub fn plain(
        worker: &Arc<Worker>,
        snapshot: &Arc<Snapshot>,
        endpoint: &Endpoint,
        _permit: &Permit,
    ) -> Self {
        let (service, port) = (endpoint.service.clone(), endpoint.port.clone());
        // Nothing else could be chosen, whatever is known of it.
        let health = Health::Unknown;
        let plain = Endpoint { identity: None, weight: 1, health, ..endpoint.clone() };
        let balanced = Arc::new(Balanced::new(&worker.loads, 0));
        balanced.update(&Backing {
            from: &Vantage { site: snapshot.site.clone(), locality: Locality::default() },
            policy: &BalancePolicy::default(),
            endpoints: &[Arc::new(plain)],
            reachable: &|_| true,
            workers: 1,
        });
        Self::new(snapshot.clone(), service, port, balanced)
    }

    fn over(
        worker: &Arc<Worker>,
        snapshot: Arc<Snapshot>,
        service: &ServiceName,
        port: &PortName,
    ) -> Self {
        let balanced = worker.view(&snapshot).balanced(service, port);
        Self::new(snapshot, service.clone(), port.clone(), balanced)
    }

    fn new(
        snapshot: Arc<Snapshot>,
        service: ServiceName,
        port: PortName,
        balanced: Arc<Balanced>,
    ) -> Self {
        Self {
            snapshot,
            service,
            port,
            balanced,
            tried: Vec::new(),
            key: None,
            cookie: None,
            failed: None,
            earlier: 0,
            waits_until: None,
        }
    }

    /// Begins anew, with what there is now; the answer is told when an endpoint
    /// that was away may be chosen again.
    pub fn renew(&mut self, worker: &Worker) -> watch::Receiver<()> {
        if let Some(snapshot) = worker.shared.snapshot.load() {
            self.balanced = worker.view(&snapshot).balanced(&self.service, &self.port);
            self.snapshot = snapshot;
        }
        self.earlier += self.tried.len();
        self.tried.clear();
        self.failed = None;
        self.balanced.readmitted()
    }

    /// Whether nobody is there to be chosen.
    pub fn is_deserted(&self) -> bool {
        self.balanced.is_deserted()
    }

    /// All that could be chosen if they were there.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        let all = self.backend().into_iter().flat_map(|service| &service.endpoints);
        all.filter(|endpoint| endpoint.port == self.port)
    }

    /// Until when it waits for somebody, however often: what was said first.
    pub fn waits_until(&mut self, until: Instant) -> Instant {
        *self.waits_until.get_or_insert(until)
    }

    /// Keeps a request with the endpoint that its key belongs to, if the
    /// service asks for that. Opaque bytes have no `head`; `client` is where it
    /// came from.
    pub fn stay(&mut self, head: Option<&RequestHead>, client: Option<IpAddr>) {
        let affinity = self.balanced.affinity();
        let Some(affinity) = affinity.as_ref() else { return };
        self.key = affinity.key(head, client);
        // Only an answer over HTTP can bring a cookie.
        if self.key.is_none()
            && head.is_some()
            && let Some((cookie, key)) = affinity.new_cookie(rand::random())
        {
            self.key = Some(key);
            let cookie = HeaderValue::try_from(cookie).expect("a cookie's name is a token");
            self.cookie = Some(cookie);
        }
    }

    /// `Set-Cookie` for the answer to a client that has none and shall stay
    /// with its endpoint.
    pub fn cookie(&self) -> Option<&HeaderValue> {
        self.cookie.as_ref()
    }

    /// Whose endpoints these are; `None` if it is not known (any more).
    pub fn backend(&self) -> Option<&Arc<Service>> {
        self.snapshot.services.get(&self.service)
    }

    /// How many attempts there were.
    pub fn attempts(&self) -> usize {
        self.earlier + self.tried.len()
    }

    /// Whether another attempt may follow one in which nothing was processed.
    /// Where nobody was there it costs nobody anything.
    pub fn may_go_on(&mut self, nobody_there: bool) -> bool {
        let failed = *self.failed.get_or_insert_with(clock::monotonic);
        let tried = self.tried.len();
        let looks = nobody_there && tried < MAX_LOOKS && failed.elapsed() < PATIENCE;
        looks || tried < MAX_ATTEMPTS
    }

    /// The endpoint of the next attempt: one not tried before, or, with
    /// `again` and nothing else left, any.
    pub fn next(&mut self, again: bool) -> Result<(Arc<Endpoint>, Attempt), Refusal> {
        let chosen = self
            .balanced
            .choose(&self.tried, self.key)
            .or_else(|| again.then(|| self.balanced.choose(&[], self.key)).flatten());
        let Some((endpoint, attempt)) = chosen else { return Err(self.no_endpoint()) };
        self.tried.push(attempt.slot());
        Ok((endpoint, attempt))
    }

    fn no_endpoint(&self) -> Refusal {
        let text = match self.balanced.len() {
            0 => format!("service {} has no endpoint for port {}", self.service, self.port),
            n => format!("service {}: none of its {n} endpoints may be used", self.service),
        };
        Refusal::new(Reason::NoEndpoint, text)
    }
}

/// There is no snapshot yet.
pub fn no_snapshot() -> Refusal {
    let text = "this proxy has not heard from its site yet; try again in a moment";
    Refusal::new(Reason::NoSuchService, text)
}
