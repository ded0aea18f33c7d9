//! gRPC `Cluster`: the controller of a Kubernetes cluster says what is in it,
//! on a Unix socket of the pod that both are in.
//!
//! Pods are nodes that need no certificate of a node: the API server knows
//! them, and the controller's stream vouches for them as agents' do for their
//! machines. What it says is durable before it is answered, so that a
//! federation that starts without it, or without an API server, still knows
//! every endpoint.

mod decide;
mod news;

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh_api::{
    VERSIONS,
    v1::{
        ClusterChange, ClusterReply, ClusterRequest, Health, Pod,
        cluster_request::Request as Asked, cluster_server,
    },
};
use mesh_core::{NodeId, ServiceName};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use self::{decide::decide_change, news::News};
use crate::{
    refusal::{Never, commit_status, refuse},
    registration::{OwnPorts, pod::GatewayAccount},
    view::View,
};

/// A controller that has connected says hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// One that is silent for this long has gone.
const SILENCE: Duration = Duration::from_secs(30);
/// One that does not read its answers for this long has gone.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Answers on their way to it.
const REPLIES: usize = 16;
/// How often what is heard renews the leases of all pods; they end after 8 s.
const VOUCH: Duration = Duration::from_secs(1);
/// Pods and services of one change.
const MAX_CHANGE: usize = 4096;

/// Serves `Cluster`. Clones share it.
#[derive(Clone)]
pub struct Cluster {
    view: View,
    own_ports: OwnPorts,
    gateways: GatewayAccount,
    drain: Drain,
    /// Number of the newest session, and who waits for it to be another's.
    newest: Arc<(AtomicU64, Notify)>,
}

impl Cluster {
    /// Publishes into `view`; its sessions end with `drain`.
    pub fn new(view: View, own_ports: OwnPorts, gateways: GatewayAccount, drain: Drain) -> Self {
        Self { view, own_ports, gateways, drain, newest: Arc::default() }
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<ClusterReply, Status>> + Send>>;

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    type SessionStream = Replies;

    async fn session(
        &self,
        request: Request<Streaming<ClusterRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let (tx, rx) = mpsc::channel(REPLIES);
        let number = self.newest.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.newest.1.notify_waiters();
        let session = Session {
            cluster: self.clone(),
            number,
            tx,
            pods: BTreeSet::new(),
            services: BTreeSet::new(),
        };
        self.drain.spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// The controller's stream.
struct Session {
    cluster: Cluster,
    number: u64,
    tx: mpsc::Sender<Result<ClusterReply, Status>>,
    /// Said on this stream, and not gone since.
    pods: BTreeSet<NodeId>,
    services: BTreeSet<ServiceName>,
}

impl Session {
    async fn run(self, inbound: Streaming<ClusterRequest>) {
        let (tx, cluster) = (self.tx.clone(), self.cluster.clone());
        let number = self.number;
        let status = tokio::select! {
            result = self.serve(inbound) => result.err(),
            () = cluster.drain.draining() => {
                Some(refuse(Code::Unavailable, "stopping", "federation is stopping; come back"))
            }
            () = cluster.is_replaced(number) => {
                Some(refuse(Code::Aborted, "replaced", "another controller has come"))
            }
        };
        let Some(status) = status else { return };
        log::info!(why = status.message(); "cluster session ended");
        // A controller that is gone does not hear it.
        let _ = timeout(SEND_DEADLINE, tx.send(Err(status))).await;
    }

    /// Until the controller ends its stream (`Ok`) or must go.
    async fn serve(mut self, mut inbound: Streaming<ClusterRequest>) -> Result<(), Status> {
        hello(&mut inbound).await?;
        log::info!("cluster session");
        let mut news = News::new(self.cluster.view.clone());
        let mut heard_by = Instant::now() + SILENCE;
        let mut vouched = Instant::now();
        loop {
            let message = tokio::select! {
                message = timeout_at(heard_by, inbound.message()) => message,
                news = news.changed() => {
                    self.reply(ClusterReply { news: Some(news), ..ClusterReply::default() }).await?;
                    continue;
                }
            };
            let silent = |_| refuse(Code::DeadlineExceeded, "silent", "no message for 30 s");
            let Some(request) = message.map_err(silent)?? else { return Ok(()) };
            heard_by = Instant::now() + SILENCE;
            if vouched.elapsed() >= VOUCH {
                self.cluster.view.heard_agents(&self.pods);
                vouched = Instant::now();
            }
            match request.request {
                Some(Asked::Change(change)) => {
                    let reply = self.change(change).await?;
                    self.reply(reply).await?;
                }
                Some(Asked::Hello(_)) => {
                    let message = "a second hello on one stream";
                    return Err(refuse(Code::InvalidArgument, "malformed", message));
                }
                // Heartbeats, and requests of a later version.
                Some(Asked::Heartbeat(_)) | None => {}
            }
        }
    }

    async fn reply(&self, reply: ClusterReply) -> Result<(), Status> {
        match timeout(SEND_DEADLINE, self.tx.send(Ok(reply))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the controller is gone")),
            Err(_) => {
                Err(refuse(Code::DeadlineExceeded, "slow", "the controller reads no answers"))
            }
        }
    }

    /// Durable when it returns.
    async fn change(&mut self, change: ClusterChange) -> Result<ClusterReply, Status> {
        if change.pods.len() + change.services.len() > MAX_CHANGE {
            let message = format!("more than {MAX_CHANGE} pods and services in one change");
            return Err(refuse(Code::InvalidArgument, "malformed", message));
        }
        self.note(&change);
        let Cluster { view, own_ports, gateways, .. } = &self.cluster;
        let decide = |state: &crate::authority::State| {
            let mut decided = decide_change(state, &change, gateways, own_ports);
            if change.complete {
                decided.0.extend(decide::forgotten(state, &self.pods, &self.services));
            }
            Ok::<_, Never>(decided)
        };
        let refused = view.authority().commit("cluster", decide).await.map_err(commit_status)?;
        for refusal in &refused {
            log::warn!(pod = refusal.pod.as_str(), service = refusal.service.as_str(),
                detail = refusal.detail.as_str(); "the cluster's registration refused");
        }
        let pods: Vec<NodeId> = change.pods.iter().filter_map(|pod| pod.uid.parse().ok()).collect();
        view.heard_agents(&pods);
        for pod in &change.pods {
            report(view, pod);
        }
        Ok(ClusterReply { sequence: change.sequence, refused, news: None })
    }

    /// What has been said so far.
    fn note(&mut self, change: &ClusterChange) {
        self.pods.extend(change.pods.iter().filter_map(|pod| pod.uid.parse().ok()));
        self.services.extend(change.services.iter().filter_map(|s| s.name.parse().ok()));
        for gone in change.gone.iter().filter_map(|uid| uid.parse().ok()) {
            let gone: NodeId = gone;
            self.pods.remove(&gone);
        }
        for gone in change.gone_services.iter().filter_map(|name| name.parse().ok()) {
            let gone: ServiceName = gone;
            self.services.remove(&gone);
        }
    }
}

impl Cluster {
    /// Until a newer session than this one has come.
    async fn is_replaced(&self, number: u64) {
        loop {
            let newer = self.newest.1.notified();
            tokio::pin!(newer);
            newer.as_mut().enable();
            if self.newest.0.load(Ordering::SeqCst) != number {
                return;
            }
            newer.await;
        }
    }
}

/// Health is live.
fn report(view: &View, pod: &Pod) {
    let Ok(node) = pod.uid.parse::<NodeId>() else { return };
    for register in &pod.instances {
        let health = Health::try_from(register.health).unwrap_or(Health::Unspecified);
        view.report_health(&node, &register.instance, health, "");
    }
}

/// The first message is a hello.
async fn hello(inbound: &mut Streaming<ClusterRequest>) -> Result<(), Status> {
    let message = timeout(HELLO_DEADLINE, inbound.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
    let Some(ClusterRequest { request: Some(Asked::Hello(hello)) }) = message else {
        let message = "the first message must be a hello";
        return Err(refuse(Code::InvalidArgument, "malformed", message));
    };
    if !hello.versions.iter().any(|version| VERSIONS.contains(version)) {
        let message = format!("this federation speaks versions {VERSIONS:?}; upgrade");
        return Err(refuse(Code::FailedPrecondition, "unsupported_version", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
