//! What a caller allows itself at one service: requests and repetitions in
//! flight, the budget of repetitions, connections, and who waits for one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    Reason, Service, ServiceName, Snapshot,
    rule::{Budget, TrafficPolicy},
};
use mesh_runtime::clock;
use rustc_hash::FxHashMap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::refusal::Refusal;

/// Requests that wait where connections are limited and they are not.
const MAX_PENDING: u32 = 1024;
/// How long a request waits for a connection to become free.
const PENDING_TIMEOUT: Duration = Duration::from_secs(10);

/// Of one worker, by service.
#[derive(Debug)]
pub struct Protections {
    start: Instant,
    services: Mutex<FxHashMap<ServiceName, Arc<Mutex<Used>>>>,
}

/// What is used of what is allowed.
#[derive(Debug, Default)]
struct Used {
    requests: u32,
    repetitions: u32,
    budget: Budget,
    pending: u32,
    /// Places of connections, and how many there are in all.
    connections: Option<(u32, Arc<Semaphore>)>,
}

/// A connection that is used; counted until dropped. `None` where they are not
/// limited.
pub type Connection = Option<OwnedSemaphorePermit>;

/// A request that waits for a connection; counted until dropped.
#[derive(Debug)]
pub struct Pending(Arc<Mutex<Used>>);

/// One request in flight; counted until dropped.
#[derive(Debug)]
pub struct InFlight {
    used: Arc<Mutex<Used>>,
    now: Instant,
    /// Repetitions of this request in flight: at most one, the newest.
    repeating: bool,
}

fn lock(used: &Mutex<Used>) -> MutexGuard<'_, Used> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Protections {
    fn default() -> Self {
        Self { start: clock::monotonic(), services: Mutex::default() }
    }
}

impl Protections {
    fn services(&self) -> MutexGuard<'_, FxHashMap<ServiceName, Arc<Mutex<Used>>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, service: &Service) -> Arc<Mutex<Used>> {
        let mut services = self.services();
        match services.get(&service.name) {
            Some(used) => used.clone(),
            None => services.entry(service.name.clone()).or_default().clone(),
        }
    }

    /// A request begins, if the circuit breaker lets it.
    pub fn begin(&self, service: &Service) -> Result<InFlight, Refusal> {
        let used = self.of(service);
        let mut counts = lock(&used);
        if let Some(limit) = service.traffic.circuit_breaker.max_requests
            && counts.requests >= limit
        {
            return Err(open(service, &format!("{limit} requests of this proxy are in flight")));
        }
        counts.requests += 1;
        counts.budget.request(&service.traffic.retry_budget, self.start.elapsed());
        drop(counts);
        Ok(InFlight { used, now: self.start, repeating: false })
    }

    /// A request has to wait for a connection to the service.
    pub fn wait(&self, service: &Service) -> Result<Option<Pending>, Refusal> {
        let breaker = &service.traffic.circuit_breaker;
        let limit = breaker.max_pending.or(breaker.max_connections.map(|_| MAX_PENDING));
        let Some(limit) = limit else { return Ok(None) };
        let used = self.of(service);
        let mut counts = lock(&used);
        if counts.pending >= limit {
            return Err(open(service, &format!("{limit} requests wait for a connection")));
        }
        counts.pending += 1;
        drop(counts);
        Ok(Some(Pending(used)))
    }

    /// One more connection, if that is allowed now.
    pub fn connect(&self, service: &Service) -> Result<Connection, Refusal> {
        let Some((limit, places)) = self.places(service) else { return Ok(None) };
        let place = places.try_acquire_owned();
        place.map(Some).map_err(|_| open(service, &format!("{limit} connections are used")))
    }

    /// The same, as soon as that is allowed.
    pub async fn connect_later(&self, service: &Service) -> Result<Connection, Refusal> {
        let Some((limit, places)) = self.places(service) else { return Ok(None) };
        match timeout(PENDING_TIMEOUT, places.acquire_owned()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(open(service, &format!("none of {limit} connections became free"))),
        }
    }

    /// Waits for `what`; counted among those who wait, unless it is there at
    /// once.
    pub async fn wait_for<T>(
        &self,
        service: &Service,
        what: impl Future<Output = T>,
    ) -> Result<T, Refusal> {
        let mut what = std::pin::pin!(what);
        tokio::select! {
            biased;
            ready = &mut what => return Ok(ready),
            () = std::future::ready(()) => {}
        }
        let _pending = self.wait(service)?;
        Ok(what.await)
    }

    fn places(&self, service: &Service) -> Option<(u32, Arc<Semaphore>)> {
        let limit = service.traffic.circuit_breaker.max_connections?;
        let used = self.of(service);
        let mut counts = lock(&used);
        match &counts.connections {
            Some(known) if known.0 == limit => Some(known.clone()),
            // Those who have a place of the old limit keep it.
            _ => {
                let size = (limit as usize).min(Semaphore::MAX_PERMITS);
                let places = (limit, Arc::new(Semaphore::new(size)));
                counts.connections = Some(places.clone());
                Some(places)
            }
        }
    }

    /// Forgets services that are gone and unused. Connections that are left
    /// keep their places themselves.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.services().retain(|name, used| {
            Arc::strong_count(used) > 1 || snapshot.services.contains_key(name)
        });
    }
}

fn open(service: &Service, why: &str) -> Refusal {
    Refusal::new(Reason::CircuitOpen, format!("service {}: {why}", service.name))
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.0).pending -= 1;
    }
}

impl InFlight {
    /// Whether it may be sent once more; counts that if so.
    pub fn repeat(&mut self, policy: &TrafficPolicy) -> bool {
        let now: Duration = self.now.elapsed();
        let mut used = lock(&self.used);
        let others = used.repetitions - u32::from(self.repeating);
        let limit = policy.circuit_breaker.max_retries;
        if limit.is_some_and(|limit| others >= limit) {
            return false;
        }
        if !used.budget.repetition(&policy.retry_budget, now) {
            return false;
        }
        if !self.repeating {
            used.repetitions += 1;
        }
        drop(used);
        self.repeating = true;
        true
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        used.requests -= 1;
        used.repetitions -= u32::from(self.repeating);
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::{TrustBundles, rule::CircuitBreaker};

    use super::*;
    use crate::files::snapshot;

    fn service(breaker: CircuitBreaker) -> Service {
        let text = "site: west\ntrust_domain: west.example\nservices:\n  - name: orders.shop\n    \
                    ports: [{ name: http, port: 80 }]\n";
        let snapshot = snapshot::parse(text, "t.yaml", &TrustBundles::new()).unwrap();
        let mut service = Service::clone(&snapshot.services["orders.shop"]);
        service.traffic.circuit_breaker = breaker;
        service
    }

    #[test]
    fn requests_in_flight_are_limited_until_they_end() {
        let service = service(CircuitBreaker { max_requests: Some(2), ..Default::default() });
        let protections = Protections::default();
        let first = protections.begin(&service).unwrap();
        let second = protections.begin(&service).unwrap();
        assert_eq!(protections.begin(&service).unwrap_err().reason, Reason::CircuitOpen);
        drop(first);
        let third = protections.begin(&service).unwrap();
        drop((second, third));
        assert!(protections.services().values().all(|used| lock(used).requests == 0));
    }

    #[test]
    fn repetitions_in_flight_are_limited_and_counted_once_per_request() {
        let service = service(CircuitBreaker { max_retries: Some(1), ..Default::default() });
        let protections = Protections::default();
        let mut first = protections.begin(&service).unwrap();
        let mut second = protections.begin(&service).unwrap();
        assert!(first.repeat(&service.traffic));
        assert!(first.repeat(&service.traffic), "the same request once more");
        assert!(!second.repeat(&service.traffic));
        drop(first);
        assert!(second.repeat(&service.traffic));
    }

    #[test]
    fn the_budget_ends_repetitions() {
        let mut service = service(CircuitBreaker::default());
        service.traffic.retry_budget.min_per_second = 0;
        service.traffic.retry_budget.percent = 50;
        let protections = Protections::default();
        let mut requests: Vec<InFlight> =
            (0..4).map(|_| protections.begin(&service).unwrap()).collect();
        let repeated = requests.iter_mut().map(|one| one.repeat(&service.traffic));
        assert_eq!(repeated.filter(|may| *may).count(), 2);
    }
}
