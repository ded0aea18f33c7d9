//! What a service allows its callers: rate limits and requests in flight,
//! counted over all workers of this proxy.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{
    Endpoint, EndpointId, Reason, Service, ServiceName, Snapshot, SpiffeId,
    message::RequestHead,
    rule::{Concurrency, RateLimit},
};
use mesh_runtime::clock;
use rustc_hash::FxHashMap;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::refusal::Refusal;

/// Callers of one limit that are told apart; the one that has waited longest
/// makes room, with a full bucket when it comes back.
const MAX_CALLERS: usize = 4096;

/// Of one process, by service.
#[derive(Debug, Clone)]
pub struct Limits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    services: Mutex<FxHashMap<ServiceName, Buckets>>,
    places: Mutex<FxHashMap<EndpointId, Arc<Places>>>,
}

/// The buckets of one service's limits, in their order.
#[derive(Debug)]
struct Buckets {
    /// What they were made for.
    limits: Vec<RateLimit>,
    buckets: Vec<HashMap<Option<SpiffeId>, Bucket>>,
}

/// Tokens, as they were at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

/// Requests in flight at one endpoint.
#[derive(Debug)]
struct Places {
    limit: Concurrency,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// A request that runs; counted until dropped.
pub type Place = Option<OwnedSemaphorePermit>;

impl Default for Limits {
    fn default() -> Self {
        let (services, places) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { start: clock::monotonic(), services, places }))
    }
}

impl Limits {
    fn services(&self) -> MutexGuard<'_, FxHashMap<ServiceName, Buckets>> {
        self.0.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token from every limit that the request falls under, or none.
    /// Clients without an identity are one caller.
    pub fn take(
        &self,
        service: &Service,
        caller: Option<&SpiffeId>,
        head: &RequestHead,
    ) -> Result<(), Refusal> {
        let limits = &service.traffic.rate_limits;
        if limits.is_empty() {
            return Ok(());
        }
        let now = self.0.start.elapsed();
        let mut services = self.services();
        let known = services.entry(service.name.clone()).or_insert_with(|| Buckets::new(limits));
        if known.limits != *limits {
            *known = Buckets::new(limits);
        }
        known.take(caller, head, now).map_err(|limit| {
            let text = format!(
                "service {}: more than {} requests in {:?}{}",
                service.name,
                limit.requests,
                limit.period,
                if limit.per_caller { " by this caller" } else { "" }
            );
            Refusal::new(Reason::RateLimited, text)
        })
    }

    /// A place among the requests that one endpoint is given at a time; waits
    /// for one as the policy says.
    pub async fn place(&self, service: &Service, endpoint: &Endpoint) -> Result<Place, Refusal> {
        let Some(limit) = service.traffic.concurrency else { return Ok(None) };
        let places = self.places_of(endpoint, limit);
        if let Ok(place) = places.running.clone().try_acquire_owned() {
            return Ok(Some(place));
        }
        let full = |what: &str| {
            let text = format!("service {}: {what}", service.name);
            Refusal::new(Reason::Overloaded, text)
        };
        let queued = places.waiting.clone().try_acquire_owned();
        let _queued = queued.map_err(|_| {
            full(&format!("{} requests run and {} wait", limit.max_in_flight, limit.max_queue))
        })?;
        let running = places.running.clone().acquire_owned();
        match tokio::time::timeout(limit.queue_timeout, running).await {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(full(&format!("no place among {} for too long", limit.max_in_flight))),
        }
    }

    fn places_of(&self, endpoint: &Endpoint, limit: Concurrency) -> Arc<Places> {
        let mut all = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(endpoint.id.clone()).or_insert_with(|| Places::new(limit));
        if known.limit != limit {
            // Those who have a place of the old limit keep it.
            *known = Places::new(limit);
        }
        known.clone()
    }

    /// Forgets services that are gone.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.services().retain(|name, _| snapshot.services.contains_key(name));
        let mut places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, known| Arc::strong_count(known) > 1 || known.is_used());
    }
}

impl Places {
    fn new(limit: Concurrency) -> Arc<Self> {
        let permits = |n: u32| usize::try_from(n).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let semaphore = |n| Arc::new(Semaphore::new(permits(n)));
        let (running, waiting) = (semaphore(limit.max_in_flight), semaphore(limit.max_queue));
        Arc::new(Self { limit, running, waiting })
    }

    fn is_used(&self) -> bool {
        Arc::strong_count(&self.running) > 1
    }
}

impl Buckets {
    fn new(limits: &[RateLimit]) -> Self {
        Self { limits: limits.to_vec(), buckets: vec![HashMap::new(); limits.len()] }
    }

    /// Takes from all that apply, or from none and says which was empty.
    fn take(
        &mut self,
        caller: Option<&SpiffeId>,
        head: &RequestHead,
        now: Duration,
    ) -> Result<(), RateLimit> {
        let applies = |limit: &RateLimit| {
            limit.matches.is_empty() || limit.matches.iter().any(|one| one.holds(head))
        };
        let mut taken: Vec<(usize, Option<SpiffeId>)> = Vec::new();
        for (index, limit) in self.limits.iter().enumerate().filter(|(_, limit)| applies(limit)) {
            let key = caller.filter(|_| limit.per_caller).cloned();
            let buckets = &mut self.buckets[index];
            if !buckets.contains_key(&key) && buckets.len() >= MAX_CALLERS {
                forget_oldest(buckets);
            }
            let full = Bucket { tokens: f64::from(limit.burst), at: now };
            let bucket = buckets.entry(key.clone()).or_insert(full);
            bucket.refill(limit, now);
            if bucket.tokens < 1.0 {
                let limit = limit.clone();
                for (index, key) in taken {
                    if let Some(bucket) = self.buckets[index].get_mut(&key) {
                        bucket.tokens += 1.0;
                    }
                }
                return Err(limit);
            }
            bucket.tokens -= 1.0;
            taken.push((index, key));
        }
        Ok(())
    }
}

impl Bucket {
    fn refill(&mut self, limit: &RateLimit, now: Duration) {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        let rate = f64::from(limit.requests) / limit.period.as_secs_f64().max(0.001);
        self.tokens = (self.tokens + passed * rate).min(f64::from(limit.burst));
        self.at = now;
    }
}

fn forget_oldest(buckets: &mut HashMap<Option<SpiffeId>, Bucket>) {
    let oldest = buckets.iter().min_by_key(|(_, bucket)| bucket.at).map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        buckets.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::rule::RouteMatch;

    use super::*;

    fn limit(requests: u32, burst: u32, per_caller: bool) -> RateLimit {
        let period = Duration::from_secs(1);
        RateLimit { matches: Vec::new(), requests, period, burst, per_caller }
    }

    fn caller(account: &str) -> SpiffeId {
        format!("spiffe://west.example/ns/shop/sa/{account}").parse().unwrap()
    }

    fn taken(buckets: &mut Buckets, account: &str, millis: u64) -> usize {
        let (caller, head) = (caller(account), RequestHead::new());
        let now = Duration::from_millis(millis);
        (0..1000).take_while(|_| buckets.take(Some(&caller), &head, now).is_ok()).count()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let mut buckets = Buckets::new(&[limit(10, 3, false)]);
        assert_eq!(taken(&mut buckets, "a", 0), 3);
        assert_eq!(taken(&mut buckets, "b", 50), 0);
        assert_eq!(taken(&mut buckets, "b", 250), 2);
        assert_eq!(taken(&mut buckets, "b", 60_000), 3, "no more than the burst");
    }

    #[test]
    fn callers_are_told_apart_and_bounded() {
        let mut buckets = Buckets::new(&[limit(1, 2, true)]);
        assert_eq!(taken(&mut buckets, "a", 0), 2);
        assert_eq!(taken(&mut buckets, "b", 0), 2);
        for i in 0..2 * MAX_CALLERS {
            let now = Duration::from_millis(1 + i as u64);
            buckets.take(Some(&caller(&format!("c{i}"))), &RequestHead::new(), now).unwrap();
        }
        assert_eq!(buckets.buckets[0].len(), MAX_CALLERS);
    }

    #[test]
    fn a_refused_request_takes_from_no_limit() {
        let posts = RouteMatch { method: Some(http::Method::POST), ..RouteMatch::default() };
        let narrow = RateLimit { matches: vec![posts], ..limit(1, 1, false) };
        let mut buckets = Buckets::new(&[limit(1, 5, false), narrow]);
        let post = RequestHead { method: http::Method::POST, ..RequestHead::new() };
        assert!(buckets.take(Some(&caller("a")), &post, Duration::ZERO).is_ok());
        for _ in 0..10 {
            assert!(buckets.take(Some(&caller("a")), &post, Duration::ZERO).is_err());
        }
        assert_eq!(taken(&mut buckets, "a", 0), 4);
    }
}
