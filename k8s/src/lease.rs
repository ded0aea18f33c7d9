//! One of several processes does what only one should: leader election by a
//! `coordination.k8s.io/v1` Lease, as client-go has it.
//!
//! How long a lease of somebody else still holds is measured by when its record
//! was seen to change here: clocks of others are not believed. One's own ends
//! [`Terms::renew_within`] after the last renewal was sent, which is before
//! anybody else may take it. A write of whoever has lost it without knowing is
//! refused by its resource version; leaders give such versions with what they
//! write.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use mesh_runtime::{clock, drain::Drain};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// How long a lease lasts and when it is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Others wait so long after its last change.
    pub duration: Duration,
    /// Who holds it, and could not renew it for so long, holds it no longer.
    pub renew_within: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Terms {
    /// client-go's.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_within: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Whether this process is the one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Leadership {
    held: watch::Receiver<bool>,
}

impl Leadership {
    /// At this moment.
    pub fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Waits until it is.
    pub async fn gained(&mut self) {
        self.changed_to(true).await;
    }

    /// Waits until it is no longer.
    pub async fn lost(&mut self) {
        self.changed_to(false).await;
    }

    async fn changed_to(&mut self, wanted: bool) {
        if self.held.wait_for(|held| *held == wanted).await.is_err() && wanted {
            // Nobody tries any more: it will never be.
            std::future::pending::<()>().await;
        }
    }
}

/// Tries for a lease until the process drains, and gives it back then.
pub fn hold(
    client: Client,
    namespace: &str,
    name: &str,
    identity: &str,
    terms: Terms,
    drain: &Drain,
) -> Leadership {
    let (held, receiver) = watch::channel(false);
    let candidate = Candidate {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        identity: identity.to_owned(),
        terms,
        seen: None,
        renewed: None,
        held,
    };
    drain.spawn(candidate.run(drain.clone()));
    Leadership { held: receiver }
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    terms: Terms,
    /// The record of somebody else, and since when it has been the same.
    seen: Option<(LeaseSpec, Instant)>,
    /// When the last renewal that succeeded was sent.
    renewed: Option<Instant>,
    held: watch::Sender<bool>,
}

impl Candidate {
    async fn run(mut self, drain: Drain) {
        while !drain.is_draining() {
            let sent = clock::monotonic();
            let attempt = timeout(self.terms.renew_within, self.attempt());
            tokio::select! {
                result = attempt => self.decide(sent, result.unwrap_or(Err(Lost::Late))),
                () = drain.draining() => break,
            }
            tokio::select! {
                () = sleep(self.terms.retry) => {}
                () = self.expired() => self.tell(false),
                () = drain.draining() => {}
            }
        }
        if self.renewed.is_some() {
            self.tell(false);
            let released = timeout(self.terms.retry, self.release()).await;
            if !matches!(released, Ok(Ok(()))) {
                log::debug!(lease = self.name.as_str(); "the lease is left to run out");
            }
        }
    }

    /// Ends when what is held has not been renewed in time.
    async fn expired(&self) {
        match self.renewed {
            Some(renewed) if *self.held.borrow() => {
                tokio::time::sleep_until(renewed + self.terms.renew_within).await;
            }
            _ => std::future::pending().await,
        }
    }

    fn decide(&mut self, sent: Instant, result: Result<bool, Lost>) {
        match result {
            Ok(true) => {
                self.renewed = Some(sent);
                self.tell(true);
            }
            Ok(false) => {
                self.renewed = None;
                self.tell(false);
            }
            Err(error) => {
                log::warn!(lease = self.name.as_str(), error:%; "the lease is not renewed");
                let is_over =
                    |renewed: Instant| clock::monotonic() >= renewed + self.terms.renew_within;
                if self.renewed.is_none_or(is_over) {
                    self.tell(false);
                }
            }
        }
    }

    fn tell(&self, held: bool) {
        let changed = self.held.send_if_modified(|before| std::mem::replace(before, held) != held);
        if changed {
            log::info!(lease = self.name.as_str(), identity = self.identity.as_str(), held; "leadership");
        }
    }

    /// Whether it is ours, after this.
    async fn attempt(&mut self) -> Result<bool, Lost> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else {
            return self.create().await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let is_ours = holder == self.identity;
        if !is_ours && !holder.is_empty() && !self.has_run_out(&spec) {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or(0);
        lease.spec = Some(if is_ours {
            LeaseSpec { acquire_time: spec.acquire_time, ..self.spec(transitions) }
        } else {
            self.spec(transitions.saturating_add(1))
        });
        // With the version that was read: one of two wins.
        self.won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    async fn create(&self) -> Result<bool, Lost> {
        let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
        let lease = Lease { metadata, spec: Some(self.spec(0)) };
        self.won(self.api.create(&PostParams::default(), &lease).await)
    }

    fn won(&self, written: kube::Result<Lease>) -> Result<bool, Lost> {
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn has_run_out(&mut self, spec: &LeaseSpec) -> bool {
        let now = clock::monotonic();
        match &self.seen {
            Some((before, since)) if before == spec => {
                let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
                now >= *since + seconds.map_or(self.terms.duration, Duration::from_secs)
            }
            _ => {
                self.seen = Some((spec.clone(), now));
                false
            }
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = Timestamp::try_from(clock::now()).ok().map(MicroTime);
        LeaseSpec {
            acquire_time: now.clone(),
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.terms.duration.as_secs()).ok(),
            lease_transitions: Some(transitions),
            renew_time: now,
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), Lost> {
        let mut lease = self.api.get(&self.name).await?;
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.identity)
        {
            spec.holder_identity = Some(String::new());
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Why it is not known whose it is.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("the API server has not answered in time")]
    Late,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, paused};

    const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/one";

    fn candidate(api: &FakeApi, identity: &str) -> (Leadership, Drain) {
        let drain = Drain::new();
        let leadership = hold(api.client(), "ns", "one", identity, Terms::default(), &drain);
        (leadership, drain)
    }

    async fn after(seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    #[test]
    fn one_of_two_holds_it_and_hands_it_over() {
        paused(async {
            let api = FakeApi::new();
            let (mut first, drain) = candidate(&api, "a");
            first.gained().await;
            let (mut second, _drain) = candidate(&api, "b");
            after(120).await;
            assert!(first.is_held() && !second.is_held());
            assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 0);
            let began = clock::monotonic();
            drain.finish(Duration::from_secs(5)).await;
            assert!(!first.is_held());
            second.gained().await;
            // Given back, so that nobody has to wait for its end.
            assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
            assert_eq!(api.get(PATH).unwrap()["spec"]["leaseTransitions"], 1);
            assert_eq!(api.get(PATH).unwrap()["spec"]["holderIdentity"], "b");
        });
    }

    #[test]
    fn who_cannot_renew_stops_before_another_begins() {
        paused(async {
            let api = FakeApi::new();
            let (mut first, _drain) = candidate(&api, "a");
            first.gained().await;
            let (mut second, _other) = candidate(&api, "b");
            after(5).await;
            // The API server no longer answers the first.
            api.refuse("a");
            let began = clock::monotonic();
            first.lost().await;
            let lost = began.elapsed();
            assert!(!second.is_held());
            second.gained().await;
            let gained = began.elapsed();
            assert!(lost <= Duration::from_secs(10), "{lost:?}");
            assert!(gained > lost && gained <= Duration::from_secs(20), "{lost:?} {gained:?}");
        });
    }

    #[test]
    fn a_clock_that_is_wrong_takes_nothing() {
        paused(async {
            let api = FakeApi::new();
            api.put(
                PATH,
                json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": "one", "namespace": "ns"},
                    "spec": {"holderIdentity": "x", "leaseDurationSeconds": 15,
                        "renewTime": "1999-01-01T00:00:00.000000Z"}}),
            );
            let (first, _drain) = candidate(&api, "a");
            after(14).await;
            assert!(!first.is_held());
            after(4).await;
            assert!(first.is_held());
        });
    }

    #[test]
    fn a_lease_that_vanishes_is_made_again() {
        paused(async {
            let api = FakeApi::new();
            let (mut first, _drain) = candidate(&api, "a");
            first.gained().await;
            api.delete(PATH);
            after(5).await;
            assert!(first.is_held());
            assert!(api.get(PATH).is_some());
        });
    }
}
