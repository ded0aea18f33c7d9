//! Asking endpoints whether they are well, where their service wants it.
//!
//! Every worker asks for itself, on the sessions that its own requests take:
//! what is tested is the whole way, and what is found out counts for the very
//! balancer that needs it. It asks the endpoints that it would use, so many at
//! once and in all at most, and on time only about, so that workers and
//! proxies do not ask in step.

mod ask;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use mesh_core::{
    Endpoint, EndpointId, PortName, Protocol, ServiceName, SiteName,
    rule::health::{HealthCheck, Streak},
};
use mesh_runtime::clock;
use tokio::time::Instant;

use self::ask::Answer;
use super::loads::Balanced;
use crate::worker::Worker;

/// Asked at once.
const MAX_AT_ONCE: usize = 16;
/// Asked in all; of more the rest is judged by outcomes alone.
const MAX_PROBED: usize = 1024;
/// How often it is looked at who is to be asked.
const FOLLOW: Duration = Duration::from_millis(250);

/// What is to be asked of the endpoints of one port.
#[derive(Debug, Clone)]
pub struct Probed {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: PortName,
    /// What that speaks.
    pub protocol: Protocol,
    /// What is asked.
    pub check: Arc<HealthCheck>,
    /// Who is asked, and who wants to know.
    pub balanced: Arc<Balanced>,
}

type Key = (ServiceName, PortName, SiteName, EndpointId);

/// One endpoint that is asked.
struct Patient {
    of: Probed,
    endpoint: Arc<Endpoint>,
    streak: Streak,
    due: Instant,
    /// It is being asked.
    busy: bool,
    /// Still to be asked, when that was last looked at.
    wanted: bool,
}

/// Asks until the process drains.
pub async fn run(worker: Arc<Worker>) {
    let mut patients = HashMap::new();
    let mut asked = FuturesUnordered::new();
    let mut followed = clock::monotonic();
    loop {
        let now = clock::monotonic();
        if now >= followed {
            follow(&worker, &mut patients, now);
            followed = now + FOLLOW;
        }
        let mut wake = followed;
        for (key, patient) in patients.iter_mut().filter(|(_, patient)| !patient.busy) {
            if asked.len() >= MAX_AT_ONCE {
                break;
            }
            if patient.due > now {
                wake = wake.min(patient.due);
                continue;
            }
            patient.busy = true;
            asked.push(ask(worker.clone(), key.clone(), patient));
        }
        tokio::select! {
            Some((key, answer)) = asked.next() => take(&worker, &mut patients, &key, &answer),
            () = tokio::time::sleep_until(wake) => {}
            () = worker.shared.drain.draining() => return,
        }
    }
}

fn ask(
    worker: Arc<Worker>,
    key: Key,
    patient: &Patient,
) -> impl Future<Output = (Key, Answer)> + use<> {
    let (of, endpoint) = (patient.of.clone(), patient.endpoint.clone());
    async move {
        let answer = ask::ask(&worker, &endpoint, of.protocol, &of.check).await;
        (key, answer)
    }
}

/// Who is to be asked from now on. Those who are not any more are as good as
/// before they were asked.
fn follow(worker: &Arc<Worker>, patients: &mut HashMap<Key, Patient>, now: Instant) {
    patients.values_mut().for_each(|patient| patient.wanted = false);
    let probed = worker.shared.snapshot.load().map(|snapshot| worker.view(&snapshot).probed());
    for of in probed.unwrap_or_default() {
        for endpoint in of.balanced.probed() {
            let (site, id) = (endpoint.site.clone(), endpoint.id.clone());
            let key = (of.service.clone(), of.port.clone(), site, id);
            let room = patients.len() < MAX_PROBED;
            match patients.get_mut(&key) {
                Some(patient) => patient.follow(&of, endpoint),
                None if room => {
                    patients.insert(key, Patient::new(&of, endpoint, now));
                }
                None => {}
            }
        }
    }
    patients.retain(|_, patient| {
        if !patient.wanted && patient.streak.is_failing() {
            patient.tell(worker, false);
        }
        patient.wanted
    });
}

fn take(worker: &Worker, patients: &mut HashMap<Key, Patient>, key: &Key, answer: &Answer) {
    let now = clock::monotonic();
    worker.shared.metrics.probed(&key.0, &key.1, answer.as_str());
    let Some(patient) = patients.get_mut(key) else { return };
    patient.busy = false;
    patient.due = now + about(patient.of.check.interval);
    let good = match answer {
        Answer::Good => true,
        Answer::Bad(_) => false,
        Answer::Nothing => return,
    };
    if patient.streak.take(good, &patient.of.check) {
        let (service, endpoint) = (key.0.as_str(), key.3.as_str());
        match answer {
            Answer::Bad(why) => {
                log::warn!(service = service, endpoint = endpoint; "left alone, it does not answer well: {why}");
            }
            Answer::Good | Answer::Nothing => {
                log::info!(service = service, endpoint = endpoint; "it answers well again");
            }
        }
        patient.tell(worker, !good);
    }
}

/// A tenth more or less.
fn about(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..1.1))
}

impl Patient {
    fn new(of: &Probed, endpoint: Arc<Endpoint>, now: Instant) -> Self {
        let due = now + of.check.interval.mul_f64(rand::random_range(0.0..1.0));
        Self { of: of.clone(), endpoint, streak: Streak::default(), due, busy: false, wanted: true }
    }

    fn follow(&mut self, of: &Probed, endpoint: Arc<Endpoint>) {
        self.wanted = true;
        let old = std::mem::replace(&mut self.endpoint, endpoint);
        // The balancer has forgotten what it knew of another one.
        let same = old.address == self.endpoint.address && old.identity == self.endpoint.identity;
        if !same || !Arc::ptr_eq(&of.balanced, &self.of.balanced) {
            self.streak = Streak::default();
        }
        self.of = of.clone();
    }

    fn tell(&self, worker: &Worker, failing: bool) {
        self.of.balanced.examined(&self.endpoint, failing);
        worker.shared.metrics.probe_changed(&self.of.service, &self.of.port, failing);
    }
}
