//! Keeps one tunnel to a gateway of the site, and gRPC to federation in it.

use std::{sync::Arc, time::Duration};

use mesh_api::v1::{self, Hello, Role, TunnelLimits};
use mesh_core::{Allowed, Gateway, SpiffeId, path::RefusedReason, service::LinkTransport};
use mesh_runtime::{clock, drain::Drain};
use mesh_tunnel::{Dialer, GatewayAddresses, Session, control};
use rand::seq::SliceRandom;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::{
    agent::{Agent, Member, Membership, Uplink},
    node::Node,
    renew, session,
};

/// For one gateway: both transports, all addresses.
const DIAL: Duration = Duration::from_secs(5);
/// For TLS to federation inside the tunnel.
const CONTROL: Duration = Duration::from_secs(10);
/// The first pause between two attempts; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A machine that lost its site is back soon after the site is.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A session that lived this long was a good one: pauses begin anew.
const GOOD: Duration = Duration::from_secs(10);

/// Follows the membership: connected while there is one. Ends with the drain,
/// after goodbye has been said.
pub async fn run(agent: Arc<Agent>, drain: Drain) {
    let mut membership = agent.membership.subscribe();
    loop {
        let member = match &*membership.borrow_and_update() {
            Membership::Member(member) => Some(member.clone()),
            Membership::None | Membership::Unusable { .. } => None,
        };
        let follow = async {
            match &member {
                Some(member) => keep_connected(&agent, member, &drain).await,
                None => drain.draining().await,
            }
        };
        tokio::select! {
            () = follow => return,
            // Cannot fail: the agent holds the sender.
            _ = membership.changed() => {}
        }
    }
}

async fn keep_connected(agent: &Arc<Agent>, member: &Arc<Member>, drain: &Drain) {
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = tokio::select! {
            attempt = connect(agent, member) => attempt,
            () = drain.draining() => return,
        };
        let problem = match attempt {
            Ok(link) => {
                let began = clock::monotonic();
                let why = hold(agent, member, link, drain).await;
                if drain.is_draining() {
                    return;
                }
                if began.elapsed() >= GOOD {
                    pause = FIRST_PAUSE;
                }
                why
            }
            Err(problem) => problem,
        };
        say_lost(agent, member, problem);
        let jittered = pause.mul_f64(rand::random_range(0.5..1.5));
        pause = (pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = drain.draining() => return,
        }
    }
}

fn say_lost(agent: &Agent, member: &Member, mut problem: String) {
    let rejected = is_rejection(&problem);
    if rejected {
        problem.push_str(
            "; the site does not accept the certificate of this node: it was removed or revoked \
             there, or a clock is wrong; `meshctl join <token>` makes it a new node",
        );
    }
    agent.uplink.send_modify(|uplink| {
        // Said once, not at every attempt.
        if uplink.problem != problem {
            let site = member.node().site.clone();
            log::warn!(site = site.as_str(); "not connected: {problem}");
        }
        let was_connected = uplink.was_connected || uplink.channel.is_some();
        *uplink = Uplink { channel: None, was_connected, rejected, problem };
    });
}

/// Whether a peer has refused our certificate. It says so by a TLS alert,
/// which is all that reaches us through a handshake (RFC 8446 section 6.2).
fn is_rejection(problem: &str) -> bool {
    problem.contains("fatal alert: Certificate")
}

struct Link {
    session: Session,
    channel: Channel,
}

/// One tunnel to any gateway; the error tells each failure.
async fn connect(agent: &Agent, member: &Member) -> Result<Link, String> {
    let node = member.node();
    if node.remaining(clock::now_unix()).is_none() {
        return Err(
            "the certificate of this node has ended (it was off for too long, or its clock is \
             wrong); if the clock is right: `meshctl join <token>`, token from `meshctl token \
             create` on the site"
                .to_owned(),
        );
    }
    let dialer = Dialer {
        net: agent.net.clone(),
        credentials: member.credentials.clone(),
        hello: hello(agent, &node),
    };
    let mut gateways = node.gateways.clone();
    gateways.shuffle(&mut rand::rng());
    let mut problems = Vec::new();
    for gateway in &gateways {
        match connect_to(&dialer, gateway, &node).await {
            Ok(link) => return Ok(link),
            Err(problem) => problems.push(format!("gateway {}: {problem}", gateway.id)),
        }
    }
    Err(problems.join("; "))
}

fn hello(agent: &Agent, node: &Node) -> Hello {
    Hello {
        versions: mesh_api::VERSIONS.to_vec(),
        role: Role::Node.into(),
        site: node.site.to_string(),
        // Nothing is opened towards an agent.
        limits: Some(TunnelLimits { streams: 1 }),
        time_unix_ms: clock::unix_millis(),
        boot_id: agent.process_id.clone(),
        ..Hello::default()
    }
}

async fn connect_to(dialer: &Dialer, gateway: &Gateway, node: &Node) -> Result<Link, String> {
    let addresses = GatewayAddresses {
        quic: gateway.quic_addresses.clone(),
        tls: gateway.tls_addresses.clone(),
    };
    let allowed = Allowed::Exactly(SpiffeId::gateway(&node.trust_domain));
    let session = dialer
        .dial(&addresses, allowed, LinkTransport::Raced, DIAL)
        .await
        .map_err(|error| error.to_string())?;
    let route = control::Route::Through(session.clone());
    let channel = control::channel(route, &dialer.credentials, &node.site, &node.trust_domain);
    match timeout(CONTROL, channel).await {
        Ok(Ok(channel)) => Ok(Link { session, channel }),
        Ok(Err(error)) => Err(format!("federation behind it: {error}")),
        Err(_) => Err(format!("federation behind it: no answer within {CONTROL:?}")),
    }
}

/// Uses a tunnel until it ends; says why it did.
async fn hold(agent: &Arc<Agent>, member: &Arc<Member>, link: Link, drain: &Drain) -> String {
    let Link { session, channel } = link;
    let gateway = session.hello().gateway.clone();
    let node = member.node();
    log::info!(
        site = node.site.as_str(), gateway = gateway.as_str(),
        transport:? = session.transport(); "connected"
    );
    agent.uplink.send_replace(Uplink {
        channel: Some(channel.clone()),
        was_connected: true,
        ..Uplink::default()
    });
    let why = tokio::select! {
        why = session.closed() => format!("gateway {gateway}: tunnel ended: {why}"),
        () = refuse_streams(&session, &node) => format!("gateway {gateway}: tunnel ended"),
        why = session::run(agent, channel.clone(), drain) => why,
        never = renew::run(agent, member, channel) => match never {},
    };
    session.close("the agent is done with it");
    why
}

/// An agent carries no payload: whatever is opened towards it is a mistake.
async fn refuse_streams(session: &Session, node: &Node) {
    let hop = format!("{}/{}", node.site, node.id);
    while let Some(stream) = session.accept().await {
        stream.refuse(RefusedReason::Role, &hop, "an agent carries no payload").await;
    }
}

/// What a refusal of federation says to people: its own text, which names the
/// remedy, or what happened to the connection.
pub fn shown(status: &tonic::Status) -> String {
    let mut text = match status.message() {
        "" => status.code().description().to_owned(),
        message => message.to_owned(),
    };
    // A failed connection says only "transport error"; its causes say why.
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

/// The client for identities, with a bound on answers: bundles and gateways
/// of a site and its links are far below.
pub fn node_identity(channel: Channel) -> v1::node_identity_client::NodeIdentityClient<Channel> {
    const MAX_ANSWER: usize = 4 * 1024 * 1024;
    v1::node_identity_client::NodeIdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}
