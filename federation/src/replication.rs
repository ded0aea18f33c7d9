//! Pulls from every linked site what it exports to us.
//!
//! One task per link, for as long as the link lasts. What a peer sends is
//! checked by [`apply_import`] and published by the view; a refused delta
//! changes nothing. When the stream is lost, the last state stays, also over a
//! restart of ours.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_api::{
    VERSIONS,
    v1::{
        Ack, Bundle, BundleUpdated, Delta, LinkEnded, Nack, ReplicateRequest, ReplicateResponse,
        ReplicateSubscribe, authority_record::Event, peering_client::PeeringClient,
        replicate_request::Request as Ask, replicate_response::Response as Answer,
    },
};
use mesh_core::SiteName;
use mesh_runtime::drain::Drain;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::{
    authority::{State, state::LinkState},
    discovery::Discovery,
    imports::{Imported, Peer, apply_import},
    kept::Kept,
    live::LinkLive,
    paths::Paths,
    refusal::reason_of,
    view::View,
};

/// A peer that sends neither delta nor heartbeat for this long is lost.
const SILENCE: Duration = Duration::from_secs(8);
/// How long a peer may take to answer the subscription.
const SUBSCRIBE_DEADLINE: Duration = Duration::from_secs(5);
/// Pauses between attempts grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// A stream that lasted this long was a good one: the next attempt comes soon.
const GOOD: Duration = Duration::from_secs(30);
/// Requests on their way to the peer.
const REQUESTS: usize = 8;
/// The longest delta of a peer, in bytes: [`crate::imports::MAX_ENDPOINTS`]
/// endpoints have about 20 MiB.
pub const MAX_DELTA: usize = 64 << 20;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Lost {
    /// No way there.
    #[error("cannot reach it: {0}")]
    Unreachable(#[from] std::io::Error),
    /// It, or a hop, said no or went away.
    #[error("{}", describe(.0))]
    Status(#[from] tonic::Status),
    /// Nothing came.
    #[error("it has been silent for {} s", SILENCE.as_secs())]
    Silent,
    /// It closed the stream.
    #[error("it closed the stream")]
    Closed,
    /// It sent something that it may not say.
    #[error("refused what it sent: {code}: {problem}")]
    Refused {
        /// Stable reason.
        code: &'static str,
        /// For people.
        problem: String,
    },
    /// Our own disk.
    #[error("cannot keep its new bundle: {0}")]
    Store(String),
    /// It has ended the link.
    #[error("it has ended the link: {0}")]
    Unlinked(String),
}

fn describe(status: &tonic::Status) -> String {
    match reason_of(status) {
        "" => status.message().to_owned(),
        reason => format!("{} ({reason})", status.message()),
    }
}

/// Keeps one task per link until the process drains.
pub async fn run(
    view: View,
    discovery: Discovery,
    paths: Arc<dyn Paths>,
    kept: Kept,
    drain: Drain,
) {
    let mut changed = view.authority().revision();
    let mut links: BTreeMap<SiteName, Running> = BTreeMap::new();
    loop {
        let state = view.authority().state();
        links.retain(|site, running| {
            state.links.get(site).is_some_and(|link| link.made_at_ms == running.made_at_ms)
        });
        for (site, link) in state.links.iter() {
            if !links.contains_key(site) {
                let task = Replication {
                    view: view.clone(),
                    discovery: discovery.clone(),
                    paths: paths.clone(),
                    site: site.clone(),
                    made_at_ms: link.made_at_ms,
                };
                task.begin_with(kept.read(site, link));
                links.insert(site.clone(), Running::start(task, &drain));
            }
        }
        tokio::select! {
            () = drain.draining() => return,
            alive = changed.changed() => if alive.is_err() { return },
        }
    }
}

/// A link's task; it stops when this is dropped.
struct Running {
    made_at_ms: i64,
    _stop: watch::Sender<()>,
}

impl Running {
    fn start(task: Replication, drain: &Drain) -> Self {
        let (stop, mut stopped) = watch::channel(());
        let (draining, made_at_ms) = (drain.clone(), task.made_at_ms);
        drain.spawn(async move {
            tokio::select! {
                () = task.run() => {}
                () = draining.draining() => {}
                // An error: the sender is gone.
                _ = stopped.changed() => {}
            }
        });
        Self { made_at_ms, _stop: stop }
    }
}

struct Replication {
    view: View,
    discovery: Discovery,
    paths: Arc<dyn Paths>,
    site: SiteName,
    /// Tells this link from a later one with the same site.
    made_at_ms: i64,
}

impl Replication {
    /// What an earlier link with this site brought is not this one's; what this
    /// one brought before federation stopped is.
    fn begin_with(&self, imported: Imported) {
        self.change(|live| {
            *live = LinkLive { imported, ..LinkLive::default() };
            true
        });
    }

    /// Until the link ends.
    async fn run(self) {
        let mut pause = BACKOFF.0;
        loop {
            let began = Instant::now();
            let Err(lost) = self.pull().await;
            self.change(|live| {
                live.up = false;
                live.clock_ahead_ms = None;
                live.problem = Some(lost.to_string());
                false
            });
            log::warn!(site = self.site.as_str(), error:% = lost; "link lost");
            if matches!(lost, Lost::Unlinked(_)) && self.end_link().await {
                return;
            }
            if began.elapsed() >= GOOD {
                pause = BACKOFF.0;
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    fn change(&self, change: impl FnOnce(&mut LinkLive) -> bool) {
        self.view.change_link(&self.site, change);
    }

    /// One stream, until it is lost.
    async fn pull(&self) -> Result<std::convert::Infallible, Lost> {
        let link = self.link()?;
        let have = self
            .view
            .read_live(|live| live.links.get(&self.site).and_then(|live| live.imported.revision));
        let channel = self.paths.linked(&self.site, &link.trust_domain).await?;
        let mut client = PeeringClient::new(channel).max_decoding_message_size(MAX_DELTA);
        let (tx, rx) = mpsc::channel(REQUESTS);
        let own = self.view.authority().state().site().name.to_string();
        let versions = VERSIONS.to_vec();
        let subscribe = ReplicateSubscribe { versions, site: own, have, revocations: true };
        ask(&tx, Ask::Subscribe(subscribe))?;
        let opened = timeout(SUBSCRIBE_DEADLINE, client.replicate(ReceiverStream::new(rx))).await;
        let mut inbound = opened.map_err(|_| Lost::Silent)??.into_inner();
        let mut said = None;
        loop {
            let message = timeout(SILENCE, inbound.message()).await.map_err(|_| Lost::Silent)??;
            self.hear(message.ok_or(Lost::Closed)?, &tx, &mut inbound).await?;
            // Its heartbeats come every second.
            let holds = self.discovery.holds(&link.trust_domain);
            if said.as_ref() != Some(&holds) {
                ask(&tx, Ask::Holds(holds.clone()))?;
                said = Some(holds);
            }
        }
    }

    fn link(&self) -> Result<Arc<LinkState>, Lost> {
        let state = self.view.authority().state();
        let link = state.links.get(&self.site).cloned();
        let link = link.filter(|link| link.made_at_ms == self.made_at_ms);
        link.ok_or_else(|| Lost::Unlinked("here".to_owned()))
    }

    async fn hear(
        &self,
        message: ReplicateResponse,
        tx: &mpsc::Sender<ReplicateRequest>,
        inbound: &mut Streaming<ReplicateResponse>,
    ) -> Result<(), Lost> {
        match message.response {
            Some(Answer::Subscribed(_)) => {
                log::info!(site = self.site.as_str(); "link is up");
            }
            Some(Answer::Delta(delta)) => return self.delta(&delta, tx, inbound).await,
            Some(Answer::Unlinked(why)) => {
                return Err(Lost::Unlinked(why.chars().take(256).collect()));
            }
            Some(Answer::HeartbeatUnixMs(theirs)) => {
                let ahead = self.view.authority().clock().ahead_ms(theirs);
                self.change(|live| {
                    live.clock_ahead_ms = ahead;
                    false
                });
            }
            // A sign of life of a later version.
            None => {}
        }
        self.change(|live| {
            live.up = true;
            live.heard = Some(Instant::now());
            live.problem = None;
            false
        });
        Ok(())
    }

    /// Accepts a delta, or refuses it whole and ends the stream.
    async fn delta(
        &self,
        delta: &Delta,
        tx: &mpsc::Sender<ReplicateRequest>,
        inbound: &mut Streaming<ReplicateResponse>,
    ) -> Result<(), Lost> {
        let link = self.link()?;
        let have = self.view.read_live(|live| {
            live.links.get(&self.site).map(|live| live.imported.clone()).unwrap_or_default()
        });
        let (site, trust_domain) = (&self.site, &link.trust_domain);
        let peer = Peer { site, trust_domain, bundle: &link.bundle };
        let imported = match apply_import(&have, delta, peer) {
            Ok(imported) => imported,
            Err(error) => {
                let (code, problem) = (error.code(), error.to_string());
                log::error!(site = self.site.as_str(), reason = code, detail = problem.as_str();
                    "refused what a linked site sent; nothing has changed");
                self.refuse(delta, code, &problem, tx, inbound).await;
                return Err(Lost::Refused { code, problem });
            }
        };
        self.keep_bundle(&link, imported.bundle.as_ref()).await?;
        // Still this link, after waiting for the disk.
        self.link()?;
        self.accept(imported);
        ask(tx, Ask::Ack(Ack { revision: delta.to, ..Ack::default() }))
    }

    fn accept(&self, imported: Imported) {
        self.change(|live| {
            let changed = live.imported != imported;
            *live = LinkLive {
                imported,
                up: true,
                heard: Some(Instant::now()),
                refused: None,
                problem: None,
                clock_ahead_ms: live.clock_ahead_ms,
            };
            changed
        });
    }

    /// Says why, and gives the refusal time to arrive.
    async fn refuse(
        &self,
        delta: &Delta,
        code: &'static str,
        problem: &str,
        tx: &mpsc::Sender<ReplicateRequest>,
        inbound: &mut Streaming<ReplicateResponse>,
    ) {
        let resynchronise = code == "import_revision";
        self.change(|live| {
            if resynchronise {
                live.imported.revision = None;
            } else {
                live.refused = Some(format!("{code}: {problem}"));
            }
            false
        });
        let nack = Nack { revision: delta.to, reason: format!("{code}: {problem}") };
        if ask(tx, Ask::Nack(nack)).is_ok() {
            // What is on its way here must not cut that short.
            let rest = async { while let Ok(Some(_)) = inbound.message().await {} };
            let _ = timeout(Duration::from_millis(100), rest).await;
        }
    }

    /// A new bundle of the peer's own lineage is durable before it counts.
    async fn keep_bundle(&self, link: &LinkState, new: Option<&Bundle>) -> Result<(), Lost> {
        let Some(new) = new.filter(|new| **new != link.bundle) else { return Ok(()) };
        let event = Event::BundleUpdated(BundleUpdated { bundle: Some(new.clone()) });
        let decide = |state: &State| {
            let known = state.links.get(&self.site);
            // Another decision may have come in between.
            let same = known.is_some_and(|known| known.bundle == link.bundle);
            Ok::<_, std::convert::Infallible>((same.then_some(event).into_iter().collect(), same))
        };
        let actor = format!("link:{}", self.site);
        match self.view.authority().commit(&actor, decide).await {
            Ok(true) => {
                log::warn!(site = self.site.as_str(), sequence = new.sequence;
                    "a linked site has new roots");
                Ok(())
            }
            Ok(false) => Err(Lost::Store("the link has changed meanwhile".into())),
            Err(error) => Err(Lost::Store(error.to_string())),
        }
    }

    /// The peer has ended the link: so do we. True if there is none any more.
    async fn end_link(&self) -> bool {
        let decide = |state: &State| {
            let known = state.links.contains_key(&self.site);
            let event = Event::LinkEnded(LinkEnded { site: self.site.to_string() });
            Ok::<_, std::convert::Infallible>((known.then_some(event).into_iter().collect(), ()))
        };
        let actor = format!("link:{}", self.site);
        match self.view.authority().commit(&actor, decide).await {
            Ok(()) => true,
            Err(error) => {
                log::error!(site = self.site.as_str(), error:% = error; "cannot end the link");
                false
            }
        }
    }
}

/// Never waits: a peer that lets so much pile up is lost.
fn ask(tx: &mpsc::Sender<ReplicateRequest>, request: Ask) -> Result<(), Lost> {
    tx.try_send(ReplicateRequest { request: Some(request) }).map_err(|_| Lost::Closed)
}

#[cfg(test)]
mod tests;
