//! gRPC `Registry`: nodes say what runs on them.
//!
//! One stream per agent. What it registers is durable before it is answered;
//! heartbeats and health never touch the disk.

mod sessions;

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use mesh_api::{
    VERSIONS,
    v1::{
        Deregister, Health, HealthReport, Leaving, Register, RegistryError, RegistryHello,
        RegistryReply, RegistryRequest, SiteTrust, registry_request::Request as Asked,
        registry_server,
    },
};
use mesh_core::{NodeId, PeerIdentity, Revision, name::Subject};
use mesh_runtime::drain::Drain;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::{
    authority::{Authority, CommitError, State},
    metrics::Refused,
    refusal::{Role, caller, refuse},
    registration::{OwnPorts, RegisterError, decide_deregister, decide_register, is_same},
    site::{bundles, gateways},
    tenure::{self, check_local, check_not_duplicated},
    view::View,
};

/// An agent that has connected says hello within this time.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// An agent that is silent for this long has gone, whatever TCP thinks. Longer
/// than a lease: the lease has lapsed before.
const SILENCE: Duration = Duration::from_secs(30);
/// An agent that does not read its answers for this long has gone.
const SEND_DEADLINE: Duration = Duration::from_secs(10);
/// Answers on their way to an agent that is slow to read them.
const REPLIES: usize = 64;
pub use sessions::AgentInfo;
use sessions::Known;

/// Serves `Registry`. Clones share it.
#[derive(Clone)]
pub struct Registry {
    view: View,
    own_ports: OwnPorts,
    drain: Drain,
    refused: Refused,
    sessions: Arc<Mutex<BTreeMap<NodeId, Vec<Known>>>>,
    next: Arc<AtomicU64>,
}

impl Registry {
    /// Publishes into `view`; its sessions end with `drain`.
    pub fn new(view: View, own_ports: OwnPorts, drain: Drain) -> Self {
        let (sessions, next, refused) = Default::default();
        Self { view, own_ports, drain, refused, sessions, next }
    }

    /// Registrations refused so far.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<RegistryReply, Status>> + Send>>;

#[tonic::async_trait]
impl registry_server::Registry for Registry {
    type SessionStream = Replies;

    async fn session(
        &self,
        request: Request<Streaming<RegistryRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let state = self.view.authority().state();
        let peer = caller(&request, Role::Node, &state.site().trust_domain)?;
        let Subject::Node(node) = peer.id.subject().clone() else {
            return Err(refuse(Code::PermissionDenied, "role_denied", "only nodes register"));
        };
        check_local(&state, &peer)?;
        check_not_duplicated(&state, &peer)?;
        let (tx, rx) = mpsc::channel(REPLIES);
        let session = Session { registry: self.clone(), node, peer, tx };
        self.drain.spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

/// One agent's stream.
struct Session {
    registry: Registry,
    node: NodeId,
    peer: PeerIdentity,
    tx: mpsc::Sender<Result<RegistryReply, Status>>,
}

impl Session {
    async fn run(self, inbound: Streaming<RegistryRequest>) {
        let tx = self.tx.clone();
        let node = self.node.clone();
        let drain = self.registry.drain.clone();
        let status = tokio::select! {
            result = self.serve(inbound) => result.err(),
            () = drain.draining() => {
                Some(refuse(Code::Unavailable, "stopping", "federation is stopping; come back"))
            }
        };
        let Some(status) = status else { return };
        log::info!(node = node.as_str(), why = status.message(); "registry session ended");
        // An agent that is gone does not hear it.
        let _ = timeout(SEND_DEADLINE, tx.send(Err(status))).await;
    }

    /// Until the agent ends its stream (`Ok`) or must go.
    async fn serve(self, mut inbound: Streaming<RegistryRequest>) -> Result<(), Status> {
        let (sequence, hello) = first(&mut inbound).await?;
        if !hello.versions.iter().any(|version| VERSIONS.contains(version)) {
            let message =
                format!("this federation speaks versions {VERSIONS:?}; upgrade the agent");
            return Err(refuse(Code::FailedPrecondition, "unsupported_version", message));
        }
        let cut = Arc::new(Notify::new());
        let listed = self.registry.enlist(&self.node, &hello, &cut);
        self.view().heard_agent(&self.node);
        log::info!(node = self.node.as_str(), version = hello.agent_version.as_str();
            "registry session");
        self.reply(done(sequence)).await?;
        tokio::select! {
            () = listed.alone() => {}
            () = cut.notified() => return Err(self.exists_twice()),
        }
        let authority = self.view().authority().clone();
        let ended = tenure::ended(&authority, &self.peer, |state| {
            check_local(state, &self.peer)?;
            check_not_duplicated(state, &self.peer)
        });
        tokio::pin!(ended);
        let mut trust = Trust::new(&authority, hello.follows_bundles);
        // Kept over what comes in between: dropping it would lose nothing, and
        // begin the silence anew.
        let mut heard_by = Instant::now() + SILENCE;
        loop {
            let message = tokio::select! {
                message = timeout_at(heard_by, inbound.message()) => message,
                status = &mut ended => return Err(status),
                news = trust.changed() => {
                    self.reply(RegistryReply { trust: Some(news), ..RegistryReply::default() }).await?;
                    continue;
                }
                () = cut.notified() => return Err(self.exists_twice()),
            };
            let silent = |_| refuse(Code::DeadlineExceeded, "silent", "no message for 30 s");
            let Some(request) = message.map_err(silent)?? else { return Ok(()) };
            heard_by = Instant::now() + SILENCE;
            if self.registry.is_second_boot(&listed) {
                self.registry.mark_duplicated(&self.node).await;
                continue;
            }
            self.heard(&request);
            if let Some(Asked::Heartbeat(heartbeat)) = &request.request {
                self.registry.compare_clocks(&listed, heartbeat);
            }
            if let Some(Asked::Holds(holds)) = &request.request {
                self.registry.holds(&listed, holds);
            }
            let reply = self.answer(request).await?;
            self.reply(reply).await?;
        }
    }

    fn exists_twice(&self) -> Status {
        let message = format!("node {} exists twice", self.node);
        refuse(Code::PermissionDenied, "node_duplicated", message)
    }

    fn view(&self) -> &View {
        &self.registry.view
    }

    /// Whatever an agent says renews the node's lease; only `Leaving` does not
    /// mean that it is here.
    fn heard(&self, request: &RegistryRequest) {
        if !matches!(request.request, Some(Asked::Leaving(_))) {
            self.view().heard_agent(&self.node);
        }
    }

    async fn reply(&self, reply: RegistryReply) -> Result<(), Status> {
        match timeout(SEND_DEADLINE, self.tx.send(Ok(reply))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the agent is gone")),
            Err(_) => Err(refuse(Code::DeadlineExceeded, "slow", "the agent reads no answers")),
        }
    }

    /// An error ends the stream; a refusal is an answer.
    async fn answer(&self, request: RegistryRequest) -> Result<RegistryReply, Status> {
        let sequence = request.sequence;
        match request.request {
            Some(Asked::Register(register)) => Ok(self.register(sequence, register).await),
            Some(Asked::Deregister(gone)) => Ok(self.deregister(sequence, gone).await),
            Some(Asked::Health(report)) => Ok(self.health(sequence, &report)),
            Some(Asked::Heartbeat(_) | Asked::Holds(_)) => Ok(done(sequence)),
            Some(Asked::Leaving(Leaving { within_ms })) => {
                let within = Duration::from_millis(within_ms);
                log::info!(node = self.node.as_str(), within_ms = within_ms; "agent is leaving");
                self.view().leaving(&self.node, within);
                Ok(done(sequence))
            }
            Some(Asked::Hello(_)) => {
                Err(refuse(Code::InvalidArgument, "malformed", "a second hello on one stream"))
            }
            // A request of a later version: refused, and the stream goes on.
            None => Ok(refused(sequence, RegistryError::Invalid, "unknown request")),
        }
    }

    /// Durable when it returns without an error. What is registered already
    /// costs no write.
    async fn register(&self, sequence: u64, register: Register) -> RegistryReply {
        if let Err(error) = self.registry.own_ports.check(&register) {
            return self.not_registered(sequence, &register, CommitError::Refused(error));
        }
        let authority = self.view().authority();
        let key = (self.node.clone(), register.instance.as_str().into());
        let state = authority.state();
        let known = state.registrations.get(&key).is_some_and(|known| is_same(known, &register));
        if !known {
            let decide = |state: &crate::authority::State| {
                decide_register(state, &self.node, &register).map(|events| (events, ()))
            };
            if let Err(error) = authority.commit(self.peer.id.as_str(), decide).await {
                return self.not_registered(sequence, &register, error);
            }
            log::info!(node = self.node.as_str(), service = register.service.as_str(),
                instance = register.instance.as_str(); "registered");
        }
        self.view().report_health(&self.node, &register.instance, register.health(), "");
        done(sequence)
    }

    fn not_registered(
        &self,
        sequence: u64,
        register: &Register,
        error: CommitError<RegisterError>,
    ) -> RegistryReply {
        let code = match &error {
            CommitError::Refused(error) => error.code(),
            _ => RegistryError::Unavailable,
        };
        let reason = code.as_str_name().trim_start_matches("REGISTRY_ERROR_").to_ascii_lowercase();
        log::warn!(node = self.node.as_str(), service = register.service.as_str(),
            reason = reason.as_str(), detail:% = error; "registration refused");
        self.registry.refused.count(reason);
        refused(sequence, code, &error.to_string())
    }

    async fn deregister(&self, sequence: u64, gone: Deregister) -> RegistryReply {
        let decide = |state: &crate::authority::State| {
            let events = decide_deregister(state, &self.node, &gone.instance, "asked");
            Ok::<_, std::convert::Infallible>((events, ()))
        };
        match self.view().authority().commit(self.peer.id.as_str(), decide).await {
            Ok(()) => {
                log::info!(node = self.node.as_str(), instance = gone.instance.as_str();
                    "deregistered");
                done(sequence)
            }
            Err(error) => refused(sequence, RegistryError::Unavailable, &error.to_string()),
        }
    }

    fn health(&self, sequence: u64, report: &HealthReport) -> RegistryReply {
        let Ok(health) = Health::try_from(report.health) else {
            return refused(sequence, RegistryError::Invalid, "unknown health");
        };
        self.view().report_health(&self.node, &report.instance, health, &report.detail);
        done(sequence)
    }
}

/// What an agent is told of the site's bundles and gateways.
struct Trust {
    authority: Authority,
    changed: watch::Receiver<Revision>,
    /// `None` for an agent that does not follow them.
    told: Option<SiteTrust>,
    /// What that was made of.
    of: Arc<State>,
}

impl Trust {
    fn new(authority: &Authority, follows: bool) -> Self {
        let mut changed = authority.revision();
        changed.mark_changed();
        let told = follows.then(SiteTrust::default);
        Self { authority: authority.clone(), changed, told, of: Arc::default() }
    }

    /// Waits until there is something new.
    async fn changed(&mut self) -> SiteTrust {
        let Some(told) = &mut self.told else { return std::future::pending().await };
        loop {
            if self.changed.changed().await.is_err() {
                return std::future::pending().await;
            }
            let state = self.authority.state();
            // Most changes are about something else, and there are many agents.
            let same = state.site == self.of.site
                && Arc::ptr_eq(&state.links, &self.of.links)
                && Arc::ptr_eq(&state.gateways, &self.of.gateways);
            self.of = state.clone();
            if same {
                continue;
            }
            let now = SiteTrust { bundles: bundles(&state), gateways: gateways(&state) };
            if now != *told {
                told.clone_from(&now);
                return now;
            }
        }
    }
}

/// The first message of an agent is its hello.
async fn first(inbound: &mut Streaming<RegistryRequest>) -> Result<(u64, RegistryHello), Status> {
    let message = timeout(HELLO_DEADLINE, inbound.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no hello within 10 s"))??;
    match message {
        Some(RegistryRequest { sequence, request: Some(Asked::Hello(hello)) }) => {
            Ok((sequence, hello))
        }
        _ => Err(refuse(Code::InvalidArgument, "malformed", "the first message must be a hello")),
    }
}

fn done(sequence: u64) -> RegistryReply {
    refused(sequence, RegistryError::Unspecified, "")
}

fn refused(sequence: u64, error: RegistryError, detail: &str) -> RegistryReply {
    RegistryReply { sequence, error: error.into(), detail: detail.to_owned(), trust: None }
}

#[cfg(test)]
mod tests;
