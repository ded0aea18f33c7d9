//! Copies of requests whose answers nobody waits for.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::{ServiceName, message::RequestHead, rule::Mirror};
use rustc_hash::FxHashSet;
use tokio::sync::Semaphore;

use super::{
    attempts::{Carried, Early, attempts},
    body::ReplayBody,
    decision::{Chosen, Decision},
    dispatch::Dispatch,
};
use crate::{
    inner::mux::Spoken, metrics::Direction, record::Record, scratch::Scratch, worker::Worker,
};

/// How long a copy may take; nobody waits for it.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Copies of one worker in flight; more are not made.
const MAX_MIRRORS: usize = 256;
/// Services whose absence is told of, each once.
const MAX_TOLD: usize = 256;

/// Copies of one worker.
#[derive(Debug)]
pub struct Mirrors {
    places: Arc<Semaphore>,
    /// Services that were not there.
    told: Mutex<FxHashSet<ServiceName>>,
}

impl Default for Mirrors {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MAX_MIRRORS)), told: Mutex::default() }
    }
}

impl Mirrors {
    fn tell_missing(&self, chosen: &Chosen) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < MAX_TOLD && told.insert(chosen.service.clone()) {
            log::warn!(
                service = chosen.service.as_str(), port = chosen.port.as_str();
                "a mirror's service or port is not there: no copies are made"
            );
        }
    }
}

/// Sends the copies that the rule asks for. A request whose body is longer
/// than what is kept for repetition is not copied: nothing waits for a mirror.
pub async fn start(
    worker: &Arc<Worker>,
    decision: &Decision,
    head: &RequestHead,
    body: &mut ReplayBody,
) {
    let Some(route) = decision.route() else { return };
    let wanted = |mirror: &&Mirror| mirror.fraction.takes(rand::random());
    for mirror in route.filters.mirrors.iter().filter(wanted) {
        let chosen = Chosen::mirror(mirror, &decision.port);
        let Some(copy) = body.copy().await else {
            worker.shared.metrics.mirrors_skipped.inc();
            return;
        };
        let Ok(place) = worker.mirrors.places.clone().try_acquire_owned() else {
            worker.shared.metrics.mirrors_skipped.inc();
            return;
        };
        let mut scratch = worker.scratch.take();
        scratch.head.clone_from(head);
        let (worker, service) = (worker.clone(), decision.service.clone());
        worker.shared.drain.clone().spawn(async move {
            let sent =
                tokio::time::timeout(TIMEOUT, send(&worker, &service, &chosen, &mut scratch, copy));
            if sent.await.is_err() {
                log::debug!(service = chosen.service.as_str(); "a mirror did not answer in time");
            }
            worker.scratch.give(scratch);
            drop(place);
        });
    }
}

async fn send(
    worker: &Arc<Worker>,
    service: &mesh_core::Service,
    chosen: &Chosen,
    scratch: &mut Scratch,
    body: ReplayBody,
) {
    let dispatch = Dispatch::alone(worker, &chosen.service, &chosen.port).await;
    let backend = dispatch.as_ref().ok().and_then(Dispatch::backend);
    if backend.and_then(|service| service.port(chosen.port.as_str())).is_none() {
        worker.shared.metrics.mirrors_skipped.inc();
        return worker.mirrors.tell_missing(chosen);
    }
    let mut record = Record::new(worker, Direction::Outbound, "http1");
    record.entry.service = Some(chosen.service.clone());
    record.entry.port = Some(chosen.port.clone());
    let sending = async {
        let mut in_flight = worker.protections.begin(service)?;
        let mut dispatch = dispatch?;
        let mut carried = Carried {
            scratch: &mut *scratch,
            speaks: Spoken::Http1,
            body: Some(body),
            deadline: None,
            retry: None,
            attempt_timeout: None,
            failures: &[],
            traffic: &service.traffic,
            early: Early::Nobody,
        };
        attempts(worker, &mut dispatch, &mut carried, &mut in_flight, &mut record).await
    };
    let result: Result<_, crate::refusal::Refusal> = sending.await;
    match result {
        Ok(mut answer) => {
            record.answered(scratch.answer.status);
            answer.drive_on(worker);
        }
        Err(refusal) => record.failed(refusal.reason),
    }
}
