//! Who of several writes: a Lease (`coordination.k8s.io/v1`), held as client-go
//! holds one.
//!
//! Whether a holder is gone is judged by how long its Lease has not changed
//! here, not by its clock. Every write carries the resource version it was
//! decided from, so that of two who try one succeeds.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// How long a Lease holds that is not renewed.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops writing.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const RETRY: Duration = Duration::from_secs(2);

/// One Lease, and who we are.
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
    /// What it was when it last changed, and when we saw that.
    seen: Option<(Option<String>, Instant)>,
    /// When we last held it for certain.
    renewed: Option<Instant>,
}

/// Whether we hold it. Clones share it.
#[derive(Debug, Clone)]
pub struct Leadership(watch::Receiver<bool>);

impl Leadership {
    /// Until we hold it.
    pub async fn held(&mut self) {
        if self.0.wait_for(|held| *held).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether we do now.
    pub fn is_held(&self) -> bool {
        *self.0.borrow()
    }
}

impl Lease {
    /// The Lease of this name; our identity is the pod's name, or made up.
    pub fn new(client: Client, namespace: &str, name: &str) -> Self {
        let identity = std::env::var("POD_NAME")
            .unwrap_or_else(|_| format!("{name}-{:08x}", rand::random::<u32>()));
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), identity, seen: None, renewed: None }
    }

    /// Tries to hold it until the process drains; then gives it up.
    pub fn hold(mut self, drain: &Drain) -> Leadership {
        let (tx, rx) = watch::channel(false);
        let stopping = drain.clone();
        drain.spawn(async move {
            loop {
                self.look(&tx).await;
                tokio::select! {
                    () = sleep(RETRY) => {}
                    () = stopping.draining() => break,
                }
            }
            if tx.send_replace(false) {
                self.give_up().await;
            }
        });
        Leadership(rx)
    }

    async fn look(&mut self, held: &watch::Sender<bool>) {
        let tried = self.attempt().await;
        let now = Instant::now();
        let holds = match tried {
            Ok(holds) => {
                self.renewed = holds.then_some(now);
                holds
            }
            // Somebody was faster, or nobody could be asked.
            Err(error) => {
                log::debug!(lease = self.name.as_str(), error:%; "a lease could not be written");
                self.renewed.is_some_and(|at| now.saturating_duration_since(at) < DEADLINE)
            }
        };
        if held.send_replace(holds) != holds {
            let name = self.name.as_str();
            log::info!(lease = name, identity = self.identity.as_str(), holds; "leadership");
        }
    }

    /// Whether we hold it afterwards.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(known) = self.api.get_opt(&self.name).await? else {
            let new = Object {
                metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                spec: Some(self.spec(None)),
            };
            self.api.create(&PostParams::default(), &new).await?;
            return Ok(true);
        };
        let version = known.metadata.resource_version.clone();
        let now = Instant::now();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, now));
        }
        let spec = known.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
        let duration = duration.map_or(DURATION, Duration::from_secs);
        let unchanged =
            self.seen.as_ref().map_or(Duration::ZERO, |(_, at)| now.saturating_duration_since(*at));
        if !holder.is_empty() && holder != self.identity && unchanged < duration {
            return Ok(false);
        }
        let next = Object { spec: Some(self.spec(Some(&spec))), ..known };
        let written = self.api.replace(&self.name, &PostParams::default(), &next).await?;
        self.seen = Some((written.metadata.resource_version, now));
        Ok(true)
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let same = before.filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity));
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or_default();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: same.and_then(|spec| spec.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if same.is_some() { transitions } else { transitions + 1 }),
            ..LeaseSpec::default()
        }
    }

    /// So that another need not wait.
    async fn give_up(&self) {
        let Ok(Some(mut known)) = self.api.get_opt(&self.name).await else { return };
        let Some(spec) = known.spec.as_mut() else { return };
        if spec.holder_identity.as_ref() == Some(&self.identity) {
            spec.holder_identity = Some(String::new());
            let _ = self.api.replace(&self.name, &PostParams::default(), &known).await;
        }
    }
}
