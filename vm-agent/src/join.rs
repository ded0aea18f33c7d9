//! Becoming a member of a site, and ceasing to be one.

use std::{sync::Arc, time::Duration};

use mesh_api::v1::{self, join_client::JoinClient};
use mesh_core::{
    VerifyError,
    token::{Purpose, Token},
};
use mesh_runtime::clock;
use mesh_tunnel::{
    Credentials, Trust, control,
    tls::{self, new_key_and_csr},
};
use rand::seq::SliceRandom;
use rustls_pki_types::PrivateKeyDer;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Code, Status};

use crate::{
    agent::{Agent, Member, Membership},
    api::{REASON, refuse},
    ledger::Registration,
    node::{Node, gateway_of_token},
    uplink::{node_identity, shown},
};

/// The whole of joining, as `meshctl join` promises.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// For one gateway's door: TCP, outer and inner TLS.
const DOOR: Duration = Duration::from_secs(8);
/// For federation's answer.
const ANSWER: Duration = Duration::from_secs(8);
/// How long a member that is not connected may take to be, before a token
/// for its own site is used.
const RECONNECT: Duration = Duration::from_secs(3);
/// How long a new member waits to tell how its services do.
const SETTLE: Duration = Duration::from_secs(10);
/// For telling federation that this node leaves, and for seeing that it knows.
const LEAVE: Duration = Duration::from_secs(5);

/// Tells whoever waits for it; one who went away misses it.
pub struct Progress(pub mpsc::Sender<Result<v1::JoinProgress, Status>>);

impl Progress {
    fn say(&self, step: impl Into<String>) {
        let step = step.into();
        log::info!("join: {step}");
        let _ = self.0.try_send(Ok(v1::JoinProgress { step, result: None }));
    }
}

/// Joins the site of a token. Nothing is kept unless all of it worked.
pub async fn join(agent: &Arc<Agent>, token: &str, progress: &Progress) -> Result<(), Status> {
    let token = Token::decode(token, Purpose::Node)
        .map_err(|error| refuse(Code::InvalidArgument, error.code(), error))?;
    if check_not_member(agent, &token).await? {
        progress.say(format!("already joined to {}; the token was not used", token.site));
        return Ok(());
    }
    check_writable(agent)?;
    progress.say(format!("token for site {} (trust domain {})", token.site, token.trust_domain));
    let (key, csr) = new_key_and_csr().map_err(|error| refuse(Code::Internal, "key", error))?;
    let joined = ask_gateways(agent, &token, csr, progress).await?;
    let node = accept(agent, &token, key, joined)?;
    let (id, workload) = (node.id.clone(), node.workload.clone());
    agent.state.save(&node).map_err(|error| refuse(Code::FailedPrecondition, "state", error))?;
    let member = Member::new(node).map_err(|error| refuse(Code::Internal, "answer", error))?;
    let seen = agent.services.borrow().reads;
    agent.look.ask();
    agent.set_membership(Membership::Member(member));
    progress.say(format!("joined as node {id}; workloads here are {workload}"));
    let _ = timeout(SETTLE, settled(agent, seen)).await;
    say_services(agent, progress);
    Ok(())
}

/// Before the site is asked for something that could not be kept.
fn check_writable(agent: &Agent) -> Result<(), Status> {
    let writable = agent.state.check_writable();
    writable.map_err(|error| refuse(Code::FailedPrecondition, "state", error))
}

/// Whether this machine is a member of the token's site and reaches it. A
/// member that does not reach it joins anew: it may have been removed there.
async fn check_not_member(agent: &Agent, token: &Token) -> Result<bool, Status> {
    let Some(member) = agent.member() else { return Ok(false) };
    let node = member.node();
    if node.site != token.site || node.trust_domain != token.trust_domain {
        let message = format!(
            "this machine has joined site {}; `meshctl leave` first, then join {}",
            node.site, token.site
        );
        return Err(refuse(Code::FailedPrecondition, "already_joined", message));
    }
    let mut uplink = agent.uplink.subscribe();
    let connected = uplink.wait_for(|uplink| uplink.channel.is_some());
    Ok(timeout(RECONNECT, connected).await.is_ok())
}

/// Asks federation through any of the token's gateways.
async fn ask_gateways(
    agent: &Agent,
    token: &Token,
    csr: Vec<u8>,
    progress: &Progress,
) -> Result<v1::JoinNodeResponse, Status> {
    let mut gateways = token.gateways.clone();
    gateways.shuffle(&mut rand::rng());
    let mut problems = Vec::new();
    for gateway in gateways {
        progress.say(format!("trying gateway {gateway}"));
        let request = request(agent, token, csr.clone());
        match ask(agent, token, gateway.clone(), request).await {
            Ok(joined) => return Ok(joined),
            Err(Asked::Refused(status)) => return Err(relayed(&status)),
            Err(Asked::Unreached(problem)) => {
                progress.say(format!("gateway {gateway}: {problem}"));
                problems.push(format!("{gateway}: {problem}"));
            }
        }
    }
    let message = format!(
        "no gateway of {} answers ({}); is its TCP port open from here, and is the token fresh?",
        token.site,
        problems.join("; ")
    );
    Err(refuse(Code::Unavailable, "no_gateway", message))
}

/// Why federation did not let us in.
enum Asked {
    /// It could not be asked; another gateway may do better. Asking twice with
    /// one key uses the token once.
    Unreached(String),
    /// It said no.
    Refused(Status),
}

async fn ask(
    agent: &Agent,
    token: &Token,
    gateway: Arc<str>,
    request: v1::JoinNodeRequest,
) -> Result<v1::JoinNodeResponse, Asked> {
    let route = control::Route::JoinDoor {
        net: agent.net.clone(),
        gateway,
        root_spki_sha256: token.root_spki_sha256,
    };
    // Nothing is believed yet but the root that the token names.
    let nobody = Credentials::new(None, Trust::default());
    let door = control::channel(route, &nobody, &token.trust_domain);
    let channel = match timeout(DOOR, door).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(error)) => return Err(not_let_in(&error)),
        Err(_) => return Err(Asked::Unreached(format!("no answer within {DOOR:?}"))),
    };
    match timeout(ANSWER, JoinClient::new(channel).join_node(request)).await {
        Ok(Ok(joined)) => Ok(joined.into_inner()),
        Ok(Err(status)) if is_transport(&status) => Err(Asked::Unreached(shown(&status))),
        Ok(Err(status)) => Err(Asked::Refused(status)),
        Err(_) => Err(Asked::Unreached(format!("no answer within {ANSWER:?}"))),
    }
}

/// Certificates are made minutes before they are shown: one that is not valid
/// yet tells that this machine's clock is behind, at every gateway.
fn not_let_in(error: &std::io::Error) -> Asked {
    match tls::verify_error(error) {
        Some(VerifyError::OutsideValidity { now, limit, .. }) if now < limit => {
            let message = format!(
                "this machine's clock is behind: {} here, and what the site presents is valid \
                 from {}; set it (e.g. with chrony) and try again",
                clock::utc(now.as_secs()),
                clock::utc(limit.as_secs()),
            );
            Asked::Refused(refuse(Code::FailedPrecondition, "clock_skew", message))
        }
        Some(_) | None => Asked::Unreached(error.to_string()),
    }
}

/// Refusals of ours carry a reason; failures of the connection do not.
fn is_transport(status: &Status) -> bool {
    status.metadata().get(REASON).is_none()
        && matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

fn request(agent: &Agent, token: &Token, csr: Vec<u8>) -> v1::JoinNodeRequest {
    v1::JoinNodeRequest {
        versions: mesh_api::VERSIONS.to_vec(),
        token_id: token.id.to_string(),
        token_secret: token.secret.to_vec(),
        csr,
        hostname: agent.machine.hostname.clone(),
        machine_id: agent.machine.id.clone(),
        boot_id: agent.machine.boot.clone(),
        time_unix_ms: clock::unix_millis(),
    }
}

/// Checks federation's answer against the token and makes a node of it.
fn accept(
    agent: &Agent,
    token: &Token,
    key: PrivateKeyDer<'static>,
    mut joined: v1::JoinNodeResponse,
) -> Result<Node, Status> {
    // Federation may not have met its own gateways yet; we have.
    if joined.gateways.is_empty() {
        joined.gateways = vec![gateway_of_token(&token.site, &token.gateways)];
    }
    let invalid = |problem: String| {
        let message = format!("federation of {} gave an answer of no use: {problem}", token.site);
        refuse(Code::Internal, "answer", message)
    };
    let node = Node::new(agent.machine.id.clone(), clock::unix_seconds(), key, joined)
        .map_err(|error| invalid(error.to_string()))?;
    if node.site != token.site || node.trust_domain != token.trust_domain {
        let problem = format!("it is site {} ({})", node.site, node.trust_domain);
        return Err(invalid(problem));
    }
    if node.remaining(clock::now_unix()).is_none() {
        return Err(invalid("its certificate has ended already; check both clocks".to_owned()));
    }
    Ok(node)
}

/// Waits until the site has answered about every service of a look at the
/// files that is newer than `seen`.
async fn settled(agent: &Agent, seen: u64) {
    let mut uplink = agent.uplink.subscribe();
    let _ = uplink.wait_for(|uplink| uplink.channel.is_some()).await;
    let mut services = agent.services.subscribe();
    let _ = services.wait_for(|services| services.reads > seen && services.settled()).await;
    let mut registrations = agent.registrations.subscribe();
    let _ = registrations
        .wait_for(|answers| {
            let services = agent.services.borrow();
            let answered =
                |instance| !matches!(answers.get(instance), None | Some(Registration::Pending));
            services.local.keys().all(answered)
        })
        .await;
}

fn say_services(agent: &Agent, progress: &Progress) {
    let status = agent.status();
    if status.state != "connected" {
        progress.say(format!("not connected yet: {}", status.problem));
    }
    let mut backed = 0;
    for service in &status.services {
        let (name, health) = (&service.service, service.health());
        if service.registered {
            backed += 1;
            let health = if health == v1::Health::Healthy { "healthy" } else { "NOT HEALTHY" };
            let detail = &service.detail;
            let colon = if detail.is_empty() { "" } else { ": " };
            progress.say(format!("backs {name} ({health}{colon}{detail})"));
        } else {
            let name = if name.is_empty() { &service.instance } else { name };
            progress.say(format!("DOES NOT BACK {name}: {}", service.detail));
        }
    }
    if backed == 0 {
        progress.say(format!(
            "THIS MACHINE BACKS NO SERVICE: describe one in {}/<name>.yaml",
            agent.config.services.display()
        ));
    }
}

/// Gives the identity up, at the site and here.
pub async fn leave(agent: &Agent, force: bool) -> Result<(), Status> {
    let membership = agent.membership.borrow().clone();
    let told = match membership {
        Membership::None => {
            return Err(refuse(
                Code::FailedPrecondition,
                "not_joined",
                "this machine has not joined a site",
            ));
        }
        // It may belong to another machine: then it is not ours to give up.
        Membership::Unusable { problem, .. } => Err(problem),
        Membership::Member(member) => {
            // Gone from the site and still on disk would be neither.
            check_writable(agent)?;
            tell(agent, &member).await
        }
    };
    match told {
        Ok(()) => {}
        Err(problem) if force => log::warn!("leaving without telling the site: {problem}"),
        Err(problem) => {
            let message = format!(
                "the site was not told: {problem}. `meshctl leave --force` forgets it anyway; then \
                 revoke the node there"
            );
            return Err(refuse(Code::Unavailable, "not_told", message));
        }
    }
    agent.state.forget().map_err(|error| refuse(Code::Internal, "state", error))?;
    agent.set_membership(Membership::None);
    log::info!("left the site");
    Ok(())
}

/// Tells the site that this node leaves. Its certificate is revoked by that,
/// and every connection cut: the answer may be lost on its way. Then a site
/// that does not accept the certificate any more has been told.
async fn tell(agent: &Agent, member: &Member) -> Result<(), String> {
    let mut uplink = agent.uplink.subscribe();
    let now = uplink.borrow_and_update().clone();
    if now.rejected {
        return Ok(());
    }
    let Some(channel) = now.channel else {
        return Err(format!("not connected to {}: {}", member.node().site, now.problem));
    };
    let mut client = node_identity(channel);
    let problem = match timeout(LEAVE, client.leave_node(v1::LeaveNodeRequest {})).await {
        Ok(Ok(_)) => return Ok(()),
        // It has forgotten us already.
        Ok(Err(status)) if reason(&status) == "node_unknown" => return Ok(()),
        Ok(Err(status)) if !is_transport(&status) => return Err(shown(&status)),
        Ok(Err(status)) => shown(&status),
        Err(_) => format!("no answer within {LEAVE:?}"),
    };
    let rejected = uplink.wait_for(|uplink| uplink.rejected);
    timeout(LEAVE, rejected).await.map(drop).map_err(|_| problem)
}

fn reason(status: &Status) -> &str {
    status.metadata().get(REASON).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A refusal of federation, as our own caller sees it.
pub fn relayed(status: &Status) -> Status {
    let mut relayed = Status::new(status.code(), shown(status));
    if let Some(reason) = status.metadata().get(REASON) {
        relayed.metadata_mut().insert(REASON, reason.clone());
    }
    relayed
}
