//! One proxy's stream.

use std::{collections::BTreeSet, time::Duration};

use mesh_api::{
    VERSIONS,
    v1::{
        Complete, Delta, DiscoveryRequest, DiscoveryResponse, Revision, Subscribe, Subscribed,
        Taps, discovery_request::Request as Asked, discovery_response::Response as Answer,
    },
};
use mesh_core::{PeerIdentity, ServiceName};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout, timeout_at},
};
use tonic::{Code, Status, Streaming};

use super::{
    Discovery,
    lens::{ProxyLens, endpoints_of},
    taps::Wanted,
};
use crate::{
    feed::key_of,
    refusal::refuse,
    tenure::{self, check_local},
};

/// A proxy that has connected subscribes within this time.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(10);
/// A proxy that is silent for this long has gone, whatever TCP thinks. Longer
/// than a lease: the lease has lapsed before.
const SILENCE: Duration = Duration::from_secs(30);
/// A proxy that reads nothing for this long has gone.
const SEND_DEADLINE: Duration = Duration::from_secs(30);
/// How often a proxy hears that federation is there, and what time it is.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often it is looked whether the view has settled.
const SETTLE_LOOK: Duration = Duration::from_millis(50);
/// Services that one proxy may want.
const MAX_WANTED: usize = 20_000;

type Sender = mpsc::Sender<Result<DiscoveryResponse, Status>>;

/// One proxy's stream: what it wants, and what it has been told.
pub(crate) struct ProxyStream {
    discovery: Discovery,
    number: u64,
    peer: PeerIdentity,
    tx: Sender,
    lens: ProxyLens,
    /// What the proxy has once it has applied all that was sent.
    told: Option<Revision>,
    /// Wanted, and its endpoints not sent yet.
    new_wants: BTreeSet<String>,
    /// It has a state already, and may wait for a better one after a start of
    /// federation.
    waits: bool,
    /// A `Want` waits for its `Complete`.
    wants_answer: bool,
    /// Who watches its requests; of gateways nobody does.
    taps: Option<watch::Receiver<Wanted>>,
    /// Set for gateways that said, or must be, who they are.
    gateway: Option<String>,
}

/// Takes the proxy off the lists when its task ends.
struct Listed {
    discovery: Discovery,
    number: u64,
    gateway: Option<String>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.discovery.proxies.remove(self.number);
        if let Some(gateway) = &self.gateway {
            self.discovery.view.gateway_gone(gateway, self.number);
        }
    }
}

impl ProxyStream {
    pub(crate) fn new(discovery: Discovery, number: u64, peer: PeerIdentity, tx: Sender) -> Self {
        let taps = (!peer.id.is_gateway()).then(|| {
            let mut taps = discovery.taps.wanted();
            if !taps.borrow().is_empty() {
                taps.mark_changed();
            }
            taps
        });
        Self {
            taps,
            lens: ProxyLens {
                site: discovery.view.authority().state().site().name.to_string(),
                is_gateway: peer.id.is_gateway(),
                node: peer.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                ..ProxyLens::default()
            },
            discovery,
            number,
            peer,
            tx,
            told: None,
            new_wants: BTreeSet::new(),
            waits: false,
            wants_answer: false,
            gateway: None,
        }
    }

    pub(crate) async fn run(self, inbound: Streaming<DiscoveryRequest>) {
        let (tx, peer) = (self.tx.clone(), self.peer.clone());
        let drain = self.discovery.drain.clone();
        let status = tokio::select! {
            result = self.serve(inbound) => result.err(),
            () = drain.draining() => {
                Some(refuse(Code::Unavailable, "stopping", "federation is stopping; come back"))
            }
        };
        let Some(status) = status else { return };
        log::info!(peer = peer.id.as_str(), why = status.message(); "discovery stream ended");
        // A proxy that is gone does not hear it.
        let _ = timeout(Duration::from_secs(1), tx.send(Err(status))).await;
    }

    /// Until the proxy ends its stream (`Ok`) or must go.
    async fn serve(mut self, mut inbound: Streaming<DiscoveryRequest>) -> Result<(), Status> {
        let subscribe = first(&mut inbound).await?;
        let listed = self.subscribe(&subscribe)?;
        // Before anything is read, so that no change is missed.
        let mut revision = self.discovery.view.revision();
        self.send(Answer::Subscribed(Subscribed { version: 1 })).await?;
        let (authority, peer) = (self.discovery.view.authority().clone(), self.peer.clone());
        let ended = tenure::ended(&authority, &peer, |state| check_local(state, &peer));
        tokio::pin!(ended);
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        revision.mark_changed();
        let mut heard_by = Instant::now() + SILENCE;
        let mut stuck_since = None;
        loop {
            let tx = self.tx.clone();
            let unsettled = self.waits && !self.discovery.view.is_settled();
            let behind = !unsettled && self.is_behind(&revision);
            stuck_since = behind.then(|| stuck_since.unwrap_or_else(Instant::now));
            let send_by = stuck_since.unwrap_or_else(Instant::now) + SEND_DEADLINE;
            tokio::select! {
                message = timeout_at(heard_by, inbound.message()) => {
                    let silent = |_| refuse(Code::DeadlineExceeded, "silent", "no message for 30 s");
                    let Some(request) = message.map_err(silent)?? else { return Ok(()) };
                    heard_by = Instant::now() + SILENCE;
                    self.hear(request, &listed)?;
                }
                room = timeout_at(send_by, tx.reserve()), if behind => {
                    let room = room.map_err(|_| slow())?.map_err(|_| gone())?;
                    stuck_since = None;
                    revision.mark_unchanged();
                    if let Some(answer) = self.next_answer() {
                        room.send(Ok(DiscoveryResponse { response: Some(answer) }));
                    }
                }
                () = sleep(SETTLE_LOOK), if unsettled => {}
                () = tapped(&mut self.taps), if !behind && !unsettled => {}
                changed = revision.changed(), if !behind && !unsettled => {
                    changed.map_err(|_| gone())?;
                    revision.mark_changed();
                }
                _ = heartbeat.tick() => self.beat()?,
                status = &mut ended => return Err(status),
            }
        }
    }

    /// Whether there may be something to tell.
    fn is_behind(&self, revision: &watch::Receiver<Revision>) -> bool {
        let tapped = self.taps.as_ref().is_some_and(|taps| taps.has_changed().unwrap_or(false));
        tapped || self.wants_answer || revision.has_changed().unwrap_or(true)
    }

    fn subscribe(&mut self, subscribe: &Subscribe) -> Result<Listed, Status> {
        if !subscribe.versions.iter().any(|version| VERSIONS.contains(version)) {
            let message =
                format!("this federation speaks versions {VERSIONS:?}; upgrade the proxy");
            return Err(refuse(Code::FailedPrecondition, "unsupported_version", message));
        }
        if subscribe.everything && !self.lens.is_gateway {
            let message = format!("{}: everything is for gateways only", self.peer.id);
            return Err(refuse(Code::PermissionDenied, "role_denied", message));
        }
        self.lens.everything = self.lens.is_gateway;
        if self.lens.is_gateway {
            self.gateway = self.discovery.gateway_id(&subscribe.gateway);
            self.discovery.check_announced(self.gateway.as_deref());
        }
        self.told = subscribe.have.filter(|have| self.discovery.view.covers(have));
        self.waits = subscribe.have.is_some();
        self.lens.resumed = self.told.is_some();
        let (version, gateway) = (&subscribe.proxy_version, self.gateway.as_deref());
        self.discovery.proxies.add(self.number, &self.peer, version, gateway);
        self.discovery.heard(self.number, &self.peer);
        log::info!(peer = self.peer.id.as_str(), version = subscribe.proxy_version.as_str(),
            resumed = self.lens.resumed; "discovery stream");
        let (discovery, number) = (self.discovery.clone(), self.number);
        Ok(Listed { discovery, number, gateway: self.gateway.clone() })
    }

    fn hear(&mut self, request: DiscoveryRequest, listed: &Listed) -> Result<(), Status> {
        let discovery = &listed.discovery;
        discovery.heard(self.number, &self.peer);
        match request.request {
            Some(Asked::Ack(ack)) => discovery.proxies.acked(self.number, &ack),
            Some(Asked::Nack(nack)) => {
                log::error!(peer = self.peer.id.as_str(), reason = nack.reason.as_str();
                    "a proxy refused a delta");
                discovery.proxies.refused(self.number, &nack);
            }
            Some(Asked::Want(want)) => self.want(want.services)?,
            Some(Asked::NodeSessions(sessions)) => {
                // From others it is only a sign of life.
                if let Some(gateway) = &self.gateway {
                    discovery.report_sessions(gateway, self.number, sessions);
                }
            }
            Some(Asked::Report(report)) => {
                let clock = discovery.view.authority().clock();
                discovery.proxies.report(self.number, report, clock);
            }
            Some(Asked::TapShown(shown)) => discovery.taps.hear(&self.peer, shown),
            Some(Asked::Subscribe(_)) => {
                let message = "a second subscription on one stream";
                return Err(refuse(Code::InvalidArgument, "malformed", message));
            }
            // A request of a later version.
            None => {}
        }
        Ok(())
    }

    fn want(&mut self, services: Vec<String>) -> Result<(), Status> {
        for service in services {
            if self.lens.wanted.contains(&service) || service.parse::<ServiceName>().is_err() {
                continue;
            }
            self.lens.wanted.insert(service.clone());
            self.new_wants.insert(service);
        }
        if self.lens.wanted.len() > MAX_WANTED {
            let message = format!("more than {MAX_WANTED} services wanted by one proxy");
            return Err(refuse(Code::ResourceExhausted, "quota", message));
        }
        self.wants_answer = true;
        Ok(())
    }

    /// A delta if there is one, then the answer to wants, then who watches.
    fn next_answer(&mut self) -> Option<Answer> {
        if let Some(delta) = self.difference() {
            self.told = delta.to;
            return Some(Answer::Delta(delta));
        }
        if std::mem::take(&mut self.wants_answer) {
            let services = self.lens.wanted.iter().cloned().collect();
            return Some(Answer::Complete(Complete { services }));
        }
        let taps = self.taps.as_mut().filter(|taps| taps.has_changed().unwrap_or(false))?;
        let taps = taps.borrow_and_update().to_vec();
        Some(Answer::Taps(Taps { taps }))
    }

    /// What changed since the last delta, and all endpoints of new wants.
    fn difference(&mut self) -> Option<Delta> {
        let view = &self.discovery.view;
        let wants = std::mem::take(&mut self.new_wants);
        let mut delta = view.delta(self.told.as_ref(), &self.lens);
        let whole = delta.as_ref().is_some_and(|delta| delta.from.is_none());
        if whole || wants.is_empty() {
            return delta;
        }
        let (wanted, at) = view.read(|resources, at| {
            (endpoints_of(resources.values().map(|resource| &**resource), &wants), at)
        });
        if wanted.is_empty() && delta.is_none() {
            return None;
        }
        let unchanged = Delta { from: self.told, to: self.told, ..Delta::default() };
        let delta = delta.get_or_insert(unchanged);
        if delta.to != Some(at) {
            // The view moved on in between: what is newer comes once more
            // with the next delta.
            self.new_wants = wants;
            return Some(std::mem::take(delta));
        }
        let known: BTreeSet<_> = delta.upsert.iter().filter_map(key_of).collect();
        let missing = wanted.into_iter().filter(|r| key_of(r).is_none_or(|k| !known.contains(&k)));
        delta.upsert.extend(missing);
        Some(std::mem::take(delta))
    }

    /// Sent only if there is room: who is being told something needs no
    /// heartbeat.
    fn beat(&self) -> Result<(), Status> {
        let now = self.discovery.view.authority().clock().unix_ms();
        let beat = Answer::HeartbeatUnixMs(u64::try_from(now).unwrap_or_default());
        match self.tx.try_send(Ok(DiscoveryResponse { response: Some(beat) })) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(gone()),
        }
    }

    async fn send(&self, answer: Answer) -> Result<(), Status> {
        let answer = DiscoveryResponse { response: Some(answer) };
        let sent = timeout(SEND_DEADLINE, self.tx.send(Ok(answer))).await;
        sent.map_err(|_| slow())?.map_err(|_| gone())
    }
}

/// Completes when other people watch, and leaves that to be told.
async fn tapped(taps: &mut Option<watch::Receiver<Wanted>>) {
    let changed = match taps {
        Some(taps) => taps.changed().await.map(|()| taps.mark_changed()),
        None => return std::future::pending().await,
    };
    if changed.is_err() {
        std::future::pending().await
    }
}

fn slow() -> Status {
    refuse(Code::DeadlineExceeded, "slow", "the proxy has read nothing for 30 s")
}

fn gone() -> Status {
    Status::cancelled("the proxy is gone")
}

/// The first message of a proxy is its subscription.
async fn first(inbound: &mut Streaming<DiscoveryRequest>) -> Result<Subscribe, Status> {
    let message = timeout(SUBSCRIBE_DEADLINE, inbound.message()).await;
    let message =
        message.map_err(|_| Status::deadline_exceeded("no subscription within 10 s"))??;
    match message {
        Some(DiscoveryRequest { request: Some(Asked::Subscribe(subscribe)) }) => Ok(subscribe),
        _ => {
            let message = "the first message must be a subscription";
            Err(refuse(Code::InvalidArgument, "malformed", message))
        }
    }
}
