//! Keeps gRPC to federation: in a tunnel to a gateway of the site, or from a
//! gateway's own machine directly.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

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
/// For answers that are on their way when a session ends.
const LAST_ANSWERS: Duration = Duration::from_millis(300);
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
    // Proved by a certificate that has a successor: used until there is a link
    // that is proved by that.
    let mut old: Option<Link> = None;
    loop {
        let attempt = tokio::select! {
            attempt = connect(agent, member) => attempt,
            () = drain.draining() => return,
        };
        let problem = match attempt {
            Ok(link) => {
                publish(agent, member, &link);
                if let Some(old) = old.take() {
                    old.end().await;
                }
                let began = clock::monotonic();
                let end = hold(agent, member, &link, drain).await;
                if drain.is_draining() {
                    return;
                }
                if began.elapsed() >= GOOD {
                    pause = FIRST_PAUSE;
                }
                match end {
                    End::Renewed => {
                        old = Some(link);
                        continue;
                    }
                    End::Lost(why) => {
                        link.end().await;
                        why
                    }
                }
            }
            Err(problem) => problem,
        };
        old = None;
        say_lost(agent, member, problem);
        let jittered = pause.mul_f64(rand::random_range(0.5..1.5));
        pause = (pause * 2).min(LONGEST_PAUSE);
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            () = drain.draining() => return,
        }
    }
}

/// Why a link is used no longer.
enum End {
    /// It broke, or federation ended it.
    Lost(String),
    /// The node has a new certificate. The site keeps the one that a renewal
    /// was asked with as the previous one, and takes older ones for copies: the
    /// next renewal must be asked with the new one.
    Renewed,
}

fn publish(agent: &Agent, member: &Member, link: &Link) {
    log::info!(
        site = member.node().site.as_str(), way:% = link.way; "connected"
    );
    agent.uplink.send_replace(Uplink {
        channel: Some(link.channel.clone()),
        was_connected: true,
        ..Uplink::default()
    });
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

/// Whether a gateway or federation has refused our certificate: the tunnel
/// says so in words, a handshake inside it by an alert (RFC 8446 section 6.2).
fn is_rejection(problem: &str) -> bool {
    problem.contains("refused our certificate") || problem.contains("fatal alert: Certificate")
}

struct Link {
    way: Way,
    channel: Channel,
}

/// How it gets to federation.
enum Way {
    /// Its own listener.
    Direct(SocketAddr),
    /// A stream in this tunnel.
    Tunnel(Session),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(addr) => write!(f, "federation at {addr}"),
            Self::Tunnel(session) => {
                write!(f, "gateway {} over {}", session.hello().gateway, session.transport())
            }
        }
    }
}

impl Link {
    /// Answers of other calls may be on their way, e.g. the one to leaving.
    async fn end(self) {
        match self.way {
            Way::Direct(_) => tokio::time::sleep(LAST_ANSWERS).await,
            Way::Tunnel(session) => {
                let _ = timeout(LAST_ANSWERS, session.closed()).await;
                session.close("the agent is done with it");
            }
        }
    }
}

/// From a gateway's machine directly if that works: it must not need its own
/// gateway to get the gateway's certificate. From others, and otherwise, one
/// tunnel to any gateway. The error tells each failure.
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
    if let Some(addr) = node.federation() {
        match connect_directly(&dialer, addr, &node).await {
            Ok(link) => return Ok(link),
            Err(problem) => problems.push(format!("federation at {addr}: {problem}")),
        }
    }
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

async fn connect_directly(dialer: &Dialer, addr: SocketAddr, node: &Node) -> Result<Link, String> {
    let route = control::Route::Direct(dialer.net.clone(), addr);
    let channel = control::channel(route, &dialer.credentials, &node.trust_domain);
    match timeout(DIAL, channel).await {
        Ok(Ok(channel)) => Ok(Link { way: Way::Direct(addr), channel }),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {DIAL:?}")),
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
    let route = control::Route::Through(session.clone(), node.site.clone());
    let channel = control::channel(route, &dialer.credentials, &node.trust_domain);
    match timeout(CONTROL, channel).await {
        Ok(Ok(channel)) => Ok(Link { way: Way::Tunnel(session), channel }),
        Ok(Err(error)) => Err(format!("federation behind it: {error}")),
        Err(_) => Err(format!("federation behind it: no answer within {CONTROL:?}")),
    }
}

/// Uses a link until it ends; says why it did.
async fn hold(agent: &Arc<Agent>, member: &Arc<Member>, link: &Link, drain: &Drain) -> End {
    let node = member.node();
    let why = tokio::select! {
        why = broken(&link.way, &node) => why,
        why = session::run(agent, link.channel.clone(), drain) => return End::Lost(why),
        () = renew::run(agent, member, link.channel.clone()) => return End::Renewed,
    };
    End::Lost(format!("{}: {why}", link.way))
}

/// Until a tunnel has ended. A direct connection is watched by what uses it.
async fn broken(way: &Way, node: &Node) -> String {
    match way {
        Way::Direct(_) => std::future::pending().await,
        Way::Tunnel(session) => tokio::select! {
            why = session.closed() => format!("tunnel ended: {why}"),
            () = refuse_streams(session, node) => "tunnel ended".to_owned(),
        },
    }
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

/// The way to federation, or why there is none.
pub fn channel(agent: &Agent, node: &Node) -> Result<Channel, String> {
    let uplink = agent.uplink.borrow();
    let why = if uplink.problem.is_empty() { "still connecting" } else { &uplink.problem };
    let none = || format!("not connected to {}: {why}", node.site);
    uplink.channel.clone().ok_or_else(none)
}

/// The client for identities, with a bound on answers: bundles and gateways
/// of a site and its links are far below.
pub fn node_identity(channel: Channel) -> v1::node_identity_client::NodeIdentityClient<Channel> {
    const MAX_ANSWER: usize = 4 * 1024 * 1024;
    v1::node_identity_client::NodeIdentityClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refused_certificate_is_a_rejection() {
        let cases = [
            ("quic 10.0.0.1:8443: the peer refused our certificate: peer_revoked", true),
            ("transport error: received fatal alert: CertificateUnknown", true),
            ("gateway gw1: no tunnel: connection refused", false),
            ("received fatal alert: HandshakeFailure", false),
            ("", false),
        ];
        for (problem, expected) in cases {
            assert_eq!(is_rejection(problem), expected, "{problem}");
        }
    }

    #[test]
    fn a_failed_connection_is_told_with_its_causes() {
        let refused = std::io::Error::other("received fatal alert: CertificateUnknown");
        let status = tonic::Status::from_error(Box::new(refused));
        assert!(shown(&status).contains("CertificateUnknown"));
        assert_eq!(shown(&tonic::Status::aborted("do this")), "do this");
        assert!(!shown(&tonic::Status::unknown("")).is_empty());
    }
}
