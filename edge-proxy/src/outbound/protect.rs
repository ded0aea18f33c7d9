//! What a caller allows itself at one service: requests and repetitions in
//! flight, and the budget of repetitions.

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
use tokio::time::Instant;

use crate::refusal::Refusal;

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
}

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

    /// A request begins, if the circuit breaker lets it.
    pub fn begin(&self, service: &Service) -> Result<InFlight, Refusal> {
        let mut services = self.services();
        let used = match services.get(&service.name) {
            Some(used) => used.clone(),
            None => services.entry(service.name.clone()).or_default().clone(),
        };
        drop(services);
        let mut counts = lock(&used);
        if let Some(limit) = service.traffic.circuit_breaker.max_requests
            && counts.requests >= limit
        {
            let text =
                format!("service {}: {limit} requests of this proxy are in flight", service.name);
            return Err(Refusal::new(Reason::CircuitOpen, text));
        }
        counts.requests += 1;
        counts.budget.request(&service.traffic.retry_budget, self.start.elapsed());
        drop(counts);
        Ok(InFlight { used, now: self.start, repeating: false })
    }

    /// Forgets services that are gone and unused.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.services().retain(|name, used| {
            Arc::strong_count(used) > 1 || snapshot.services.contains_key(name)
        });
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
