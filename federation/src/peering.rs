//! gRPC `Peering`: a linked site's federation pulls what is exported to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_api::{
    VERSIONS,
    v1::{
        ReplicateRequest, ReplicateResponse, ReplicateSubscribe, Resource, SiteHolds, Subscribed,
        peering_server, replicate_request::Request as Asked,
        replicate_response::Response as Answer, resource::Resource as R,
    },
};
use mesh_core::{PeerIdentity, SiteName};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, timeout, timeout_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    authority::State,
    feed::Lens,
    refusal::{Role, caller, refuse},
    tenure::{self, is_revoked},
    view::View,
};

/// A peer that has connected subscribes within this time.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(10);
/// A peer that reads nothing for this long has gone.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// How often a peer hears that we are there.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Answers on their way: one that is being sent and one that waits.
const ANSWERS: usize = 2;
/// Streams that one linked site may hold: a new one and those it has lost
/// without our knowing, which keep-alive ends within half a minute.
const MAX_STREAMS: usize = 16;

/// Names that are kept of what a linked site says it waits for.
const MAX_NAMED: usize = 8;

/// Serves `Peering`. Clones share it.
#[derive(Clone)]
pub struct Peering {
    view: View,
    drain: Drain,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Streams per site.
    streams: watch::Sender<BTreeMap<SiteName, usize>>,
    /// Sites that are being told that their link is over.
    leaving: watch::Sender<BTreeSet<SiteName>>,
    /// What linked sites said last of our bundle.
    holds: Mutex<BTreeMap<SiteName, SiteHolds>>,
}

impl Peering {
    /// Serves what `view` exports; its streams end with `drain`.
    pub fn new(view: View, drain: Drain) -> Self {
        Self { view, drain, shared: Arc::default() }
    }

    /// Waits until a linked site pulls from us; false if it does not in time.
    pub async fn is_subscribed(&self, site: &SiteName, within: Duration) -> bool {
        let mut streams = self.shared.streams.subscribe();
        let there = streams.wait_for(|streams| streams.contains_key(site));
        timeout(within, there).await.is_ok_and(|there| there.is_ok())
    }

    /// Tells a linked site that the link is over, and waits until it has
    /// closed its streams, or `within` has passed. The link is still there.
    pub async fn say_goodbye(&self, site: &SiteName, within: Duration) {
        self.shared.leaving.send_modify(|leaving| {
            leaving.insert(site.clone());
        });
        let mut streams = self.shared.streams.subscribe();
        let gone = streams.wait_for(|streams| !streams.contains_key(site));
        if timeout(within, gone).await.is_err() {
            log::warn!(site = site.as_str(); "the linked site did not hear that the link is over");
        }
    }

    /// After [`Peering::say_goodbye`]: the link has ended, or stays after all.
    pub fn forget_goodbye(&self, site: &SiteName) {
        self.shared.leaving.send_modify(|leaving| {
            leaving.remove(site);
        });
    }

    /// How far a linked site said that our bundle has got there, and whether
    /// it pulls from us.
    pub fn holds(&self, site: &SiteName) -> (Option<SiteHolds>, bool) {
        let pulls = self.shared.streams.borrow().contains_key(site);
        (self.shared.lock_holds().get(site).cloned(), pulls)
    }

    /// A linked site that pulls from us, and has said this.
    #[cfg(test)]
    pub(crate) fn pretend_holds(&self, site: &SiteName, holds: SiteHolds) {
        self.shared.streams.send_modify(|streams| {
            streams.insert(site.clone(), 1);
        });
        self.shared.lock_holds().insert(site.clone(), holds);
    }

    fn enlist(&self, site: &SiteName) -> Result<Listed, Status> {
        let listed = self.shared.streams.send_if_modified(|streams| {
            let count = streams.entry(site.clone()).or_default();
            let room = *count < MAX_STREAMS;
            *count += usize::from(room);
            room
        });
        if !listed {
            let message = format!("{site} has {MAX_STREAMS} streams already");
            return Err(refuse(Code::ResourceExhausted, "quota", message));
        }
        Ok(Listed { shared: self.shared.clone(), site: site.clone() })
    }
}

impl Shared {
    fn lock_holds(&self) -> MutexGuard<'_, BTreeMap<SiteName, SiteHolds>> {
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a stream off the list when its task ends.
struct Listed {
    shared: Arc<Shared>,
    site: SiteName,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.streams.send_modify(|streams| {
            let left = streams.get(&self.site).copied().unwrap_or_default().saturating_sub(1);
            if left == 0 {
                streams.remove(&self.site);
                self.shared.lock_holds().remove(&self.site);
            } else {
                streams.insert(self.site.clone(), left);
            }
        });
    }
}

/// The linked site whose federation this is.
fn linked_site(state: &State, peer: &PeerIdentity) -> Result<SiteName, Status> {
    if is_revoked(state, peer) {
        let message = format!("{}: revoked", peer.id);
        return Err(refuse(Code::PermissionDenied, "peer_revoked", message));
    }
    let domain = peer.id.trust_domain();
    let link = state.links.iter().find(|(_, link)| link.trust_domain == *domain);
    link.map(|(site, _)| site.clone()).ok_or_else(|| {
        let message = format!("{domain} is not linked with {}", state.site().name);
        refuse(Code::PermissionDenied, "not_linked", message)
    })
}

type Answers = Pin<Box<dyn Stream<Item = Result<ReplicateResponse, Status>> + Send>>;

#[tonic::async_trait]
impl peering_server::Peering for Peering {
    type ReplicateStream = Answers;

    async fn replicate(
        &self,
        request: Request<Streaming<ReplicateRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let state = self.view.authority().state();
        let peer = caller(&request, Role::LinkedFederation, &state.site().trust_domain)?;
        let site = linked_site(&state, &peer)?;
        let (tx, rx) = mpsc::channel(ANSWERS);
        let stream = PeerStream { peering: self.clone(), site, peer, tx };
        self.drain.spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// What a linked site understands of what is exported to it.
struct PeerLens {
    revocations: bool,
}

impl Lens for PeerLens {
    fn see(&self, resource: &Resource) -> Option<Resource> {
        let revocation = matches!(resource.resource, Some(R::Revocation(_)));
        (self.revocations || !revocation).then(|| resource.clone())
    }
}

struct PeerStream {
    peering: Peering,
    site: SiteName,
    peer: PeerIdentity,
    tx: mpsc::Sender<Result<ReplicateResponse, Status>>,
}

impl PeerStream {
    async fn run(self, inbound: Streaming<ReplicateRequest>) {
        let (tx, site) = (self.tx.clone(), self.site.clone());
        let drain = self.peering.drain.clone();
        let status = tokio::select! {
            result = self.serve(inbound) => result.err(),
            () = drain.draining() => {
                Some(refuse(Code::Unavailable, "stopping", "federation is stopping; come back"))
            }
        };
        let Some(status) = status else { return };
        log::info!(site = site.as_str(), why = status.message(); "a linked site stops pulling");
        // A peer that is gone does not hear it.
        let _ = timeout(Duration::from_secs(1), tx.send(Err(status))).await;
    }

    /// Until the peer ends its stream (`Ok`) or must go.
    async fn serve(self, mut inbound: Streaming<ReplicateRequest>) -> Result<(), Status> {
        let subscribe = first(&mut inbound).await?;
        self.check(&subscribe)?;
        let listed = self.peering.enlist(&self.site)?;
        let view = &self.peering.view;
        let mut revision = view.revision();
        let mut leaving = self.peering.shared.leaving.subscribe();
        log::info!(site = self.site.as_str(); "a linked site pulls what is exported to it");
        self.send(Answer::Subscribed(Subscribed { version: 1 })).await?;
        let authority = view.authority();
        let ended =
            tenure::ended(authority, &self.peer, |state| linked_site(state, &self.peer).map(drop));
        tokio::pin!(ended);
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        revision.mark_changed();
        let lens = PeerLens { revocations: subscribe.revocations };
        let mut told = subscribe.have;
        let mut stuck_since = None;
        loop {
            let behind = revision.has_changed().unwrap_or(true);
            stuck_since = behind.then(|| stuck_since.unwrap_or_else(Instant::now));
            let send_by = stuck_since.unwrap_or_else(Instant::now) + SEND_DEADLINE;
            tokio::select! {
                message = inbound.message() => {
                    let Some(request) = message? else { return Ok(()) };
                    self.hear(request)?;
                }
                room = timeout_at(send_by, self.tx.reserve()), if behind => {
                    let room = room.map_err(|_| slow())?.map_err(|_| gone())?;
                    revision.mark_unchanged();
                    stuck_since = None;
                    if let Some(delta) = view.export_delta(&self.site, told.as_ref(), &lens) {
                        told = delta.to;
                        room.send(Ok(answer(Answer::Delta(delta))));
                    }
                }
                changed = revision.changed(), if !behind => {
                    changed.map_err(|_| gone())?;
                    revision.mark_changed();
                }
                () = is_over(&mut leaving, &self.site) => {
                    return self.say_goodbye(inbound, listed).await;
                }
                _ = heartbeat.tick() => self.beat()?,
                status = &mut ended => return Err(status),
            }
        }
    }

    fn check(&self, subscribe: &ReplicateSubscribe) -> Result<(), Status> {
        if !subscribe.versions.iter().any(|version| VERSIONS.contains(version)) {
            let message = format!("this federation speaks versions {VERSIONS:?}; upgrade yours");
            return Err(refuse(Code::FailedPrecondition, "unsupported_version", message));
        }
        if subscribe.site != self.site.as_str() {
            let message = format!(
                "trust domain {} is linked as site {}, not {:?}",
                self.peer.id.trust_domain(),
                self.site,
                subscribe.site
            );
            return Err(refuse(Code::PermissionDenied, "foreign_site", message));
        }
        Ok(())
    }

    fn hear(&self, request: ReplicateRequest) -> Result<(), Status> {
        match request.request {
            Some(Asked::Nack(nack)) => {
                let reason: String = nack.reason.chars().take(256).collect();
                log::error!(site = self.site.as_str(), reason = reason.as_str();
                    "a linked site refused what is exported to it");
                Ok(())
            }
            Some(Asked::Subscribe(_)) => {
                let message = "a second subscription on one stream";
                Err(refuse(Code::InvalidArgument, "malformed", message))
            }
            Some(Asked::Holds(mut holds)) => {
                holds.waiting_for.truncate(MAX_NAMED);
                for name in &mut holds.waiting_for {
                    *name = crate::join::text(name);
                }
                self.peering.shared.lock_holds().insert(self.site.clone(), holds);
                Ok(())
            }
            // An acknowledgement, or a request of a later version.
            Some(Asked::Ack(_)) | None => Ok(()),
        }
    }

    /// The last message; the peer closes when it has read it.
    async fn say_goodbye(
        &self,
        mut inbound: Streaming<ReplicateRequest>,
        listed: Listed,
    ) -> Result<(), Status> {
        let own = self.peering.view.authority().state().site().name.clone();
        self.send(Answer::Unlinked(format!("{own} has ended the link"))).await?;
        while let Ok(Ok(Some(_))) = timeout(SEND_DEADLINE, inbound.message()).await {}
        drop(listed);
        Ok(())
    }

    /// Sent only if there is room: who is being told something needs none.
    fn beat(&self) -> Result<(), Status> {
        let now = self.peering.view.authority().clock().unix_ms().unsigned_abs();
        match self.tx.try_send(Ok(answer(Answer::HeartbeatUnixMs(now)))) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }

    async fn send(&self, response: Answer) -> Result<(), Status> {
        let sent = timeout(SEND_DEADLINE, self.tx.send(Ok(answer(response)))).await;
        sent.map_err(|_| slow())?.map_err(|_| gone())
    }
}

/// Waits until a site is to be told that its link is over.
async fn is_over(leaving: &mut watch::Receiver<BTreeSet<SiteName>>, site: &SiteName) {
    if leaving.wait_for(|leaving| leaving.contains(site)).await.is_err() {
        // Nobody is left who could say so.
        std::future::pending().await
    }
}

fn answer(response: Answer) -> ReplicateResponse {
    ReplicateResponse { response: Some(response) }
}

fn slow() -> Status {
    refuse(Code::DeadlineExceeded, "slow", "the linked site has read nothing for 30 s")
}

fn gone() -> Status {
    Status::cancelled("the linked site is gone")
}

async fn first(inbound: &mut Streaming<ReplicateRequest>) -> Result<ReplicateSubscribe, Status> {
    let message = timeout(SUBSCRIBE_DEADLINE, inbound.message()).await;
    let message =
        message.map_err(|_| Status::deadline_exceeded("no subscription within 10 s"))??;
    match message {
        Some(ReplicateRequest { request: Some(Asked::Subscribe(subscribe)) }) => Ok(subscribe),
        _ => {
            let message = "the first message must be a subscription";
            Err(refuse(Code::InvalidArgument, "malformed", message))
        }
    }
}
