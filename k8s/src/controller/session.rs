//! The conversation with federation: what the cluster has goes there, what it
//! lacks comes back.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use mesh_api::{
    VERSIONS,
    v1::{
        ClusterHello, ClusterNews, ClusterRefusal, ClusterReply, ClusterRequest, Endpoint,
        Heartbeat, cluster_client::ClusterClient, cluster_request::Request as Asked,
    },
};
use mesh_runtime::{admin::Condition, clock::unix_millis, drain::Drain};
use mesh_tunnel::{RealNet, unix};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{complaints::Complaints, figures::Figures, watch::Seen};

/// Federation counts a pod's lease from what it hears here; it ends after 8 s.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a change waits for others to travel with it.
const COALESCE: Duration = Duration::from_millis(50);
/// For the answer to a change.
const ANSWER: Duration = Duration::from_secs(30);
/// Between two attempts: federation is in the same pod.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest message, in bytes: what federation tells of its services.
const MAX_MESSAGE: usize = 32 << 20;

/// Talks to federation until the process drains.
pub(super) struct Session {
    pub(super) socket: PathBuf,
    pub(super) seen: Seen,
    /// Without workloads: they change all the time.
    pub(super) news: watch::Sender<Option<ClusterNews>>,
    pub(super) workloads: watch::Sender<Option<Vec<Endpoint>>>,
    pub(super) figures: Figures,
    pub(super) complaints: Complaints,
    pub(super) ready: Condition,
}

impl Session {
    pub(super) async fn run(self, drain: Drain) {
        tokio::select! {
            () = self.keep() => {}
            () = drain.draining() => {}
        }
    }

    async fn keep(self) {
        self.seen.complete().await;
        loop {
            let Err(status) = self.once().await;
            if self.ready.fails(format!("federation: {}", status.message())) {
                log::warn!(why = status.message(); "no session with federation, trying again");
            }
            sleep(PAUSE).await;
        }
    }

    /// One session, until it ends.
    async fn once(&self) -> Result<std::convert::Infallible, Status> {
        let channel = unix::channel_over(Arc::new(RealNet), &self.socket).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (tx, rx) = mpsc::channel(4);
        let hello = Asked::Hello(ClusterHello { versions: VERSIONS.to_vec() });
        send(&tx, hello).await?;
        let mut client = ClusterClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut replies = client.session(ReceiverStream::new(rx)).await?.into_inner();
        self.seen.lock().begin();
        self.tell(&tx, &mut replies, true).await?;
        self.ready.holds();
        log::info!("federation knows the cluster");
        let mut heartbeat = interval(HEARTBEAT);
        loop {
            tokio::select! {
                () = self.seen.changed.notified() => {
                    let at = Instant::now();
                    self.calm(&tx, &mut replies, at + COALESCE).await?;
                    if self.tell(&tx, &mut replies, false).await? {
                        self.figures.told(at.elapsed());
                    }
                }
                _ = heartbeat.tick() => {
                    let time_unix_ms = unix_millis();
                    send(&tx, Asked::Heartbeat(Heartbeat { time_unix_ms })).await?;
                }
                reply = replies.message() => self.heard(some(reply?)?),
            }
        }
    }

    /// More changes come in, and news.
    async fn calm(
        &self,
        tx: &mpsc::Sender<ClusterRequest>,
        replies: &mut Streaming<ClusterReply>,
        until: Instant,
    ) -> Result<(), Status> {
        loop {
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                () = tx.closed() => return Err(Status::unavailable("closed")),
                reply = replies.message() => self.heard(some(reply?)?),
            }
        }
    }

    /// Whether there was anything to tell; it is durable then.
    async fn tell(
        &self,
        tx: &mpsc::Sender<ClusterRequest>,
        replies: &mut Streaming<ClusterReply>,
        first: bool,
    ) -> Result<bool, Status> {
        let changes = self.seen.lock().changes(first);
        let told = !changes.is_empty();
        for (sequence, mut change) in (1..).zip(changes) {
            change.sequence = sequence;
            self.figures.changes(change.pods.len() + change.gone.len());
            let pods: Vec<String> = change.pods.iter().map(|pod| pod.uid.clone()).collect();
            send(tx, Asked::Change(change)).await?;
            loop {
                let reply = timeout(ANSWER, replies.message()).await;
                let late = |_| Status::deadline_exceeded("no answer to a change within 30 s");
                let reply = some(reply.map_err(late)??)?;
                let answers = reply.sequence == sequence;
                if answers {
                    self.refused(&pods, &reply.refused);
                }
                self.heard(reply);
                if answers {
                    break;
                }
            }
        }
        Ok(told)
    }

    /// Tells the pods of a change what of them is refused, or that nothing is.
    fn refused(&self, pods: &[String], refused: &[ClusterRefusal]) {
        let mut notes: BTreeMap<&str, Vec<String>> =
            pods.iter().map(|uid| (uid.as_str(), Vec::new())).collect();
        for refusal in refused {
            self.figures.refused(refusal.error());
            let ClusterRefusal { pod, service, detail, .. } = refusal;
            match notes.get_mut(pod.as_str()) {
                Some(note) if service.is_empty() => note.push(detail.clone()),
                Some(note) => note.push(format!("it does not back {service}: {detail}")),
                None => log::warn!(service = service.as_str(), detail = detail.as_str();
                    "federation refuses what the cluster has"),
            }
        }
        for (uid, note) in notes {
            let Some(name) = self.seen.lock().pod_named(uid) else { continue };
            let about = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(name.namespace),
                name: Some(name.name),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            };
            self.complaints.tell(about, "Refused", note.join("; "));
        }
    }

    fn heard(&self, reply: ClusterReply) {
        if let Some(mut news) = reply.news {
            replace(&self.workloads, std::mem::take(&mut news.workloads));
            replace(&self.news, news);
        }
    }
}

/// Wakes nobody for what is the same.
fn replace<T: PartialEq>(to: &watch::Sender<Option<T>>, new: T) {
    to.send_if_modified(|known| {
        let new = Some(new);
        let differs = *known != new;
        *known = new;
        differs
    });
}

async fn send(tx: &mpsc::Sender<ClusterRequest>, request: Asked) -> Result<(), Status> {
    let sent = timeout(ANSWER, tx.send(ClusterRequest { request: Some(request) })).await;
    let closed = || Status::unavailable("federation has ended the session");
    sent.map_err(|_| closed())?.map_err(|_| closed())
}

fn some(reply: Option<ClusterReply>) -> Result<ClusterReply, Status> {
    reply.ok_or_else(|| Status::unavailable("federation has ended the session"))
}
