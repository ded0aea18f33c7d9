//! The door for those who have no certificate yet (gRPC `Join`).

use std::time::Duration;

use mesh_api::{VERSIONS, v1};
use mesh_core::{NodeId, SpiffeId, token::Purpose};
use mesh_runtime::clock;
use tonic::{Code, Request, Response, Status};
use v1::{authority_record::Event, join_server::Join};

use crate::{
    authority::{State, state::NodeState},
    ca::{IssueError, Issued, KeyRequest},
    links::Links,
    refusal::{Refusal, commit_status, reason_of, refuse},
    site::{Site, bundles, gateways},
    tokens::{self, TokenRefusal},
};

/// How far the clock of somebody who joins may be off.
pub const MAX_SKEW: Duration = Duration::from_secs(300);
/// The longest text about itself that a machine may send, in bytes.
const MAX_TEXT: usize = 253;

/// Why a machine was not let in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its token.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// Its request.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Refusal for JoinError {
    fn code(&self) -> Code {
        match self {
            Self::Token(token) => token.code(),
            Self::Issue(issue) => issue.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Token(token) => token.reason(),
            Self::Issue(issue) => issue.reason(),
        }
    }
}

/// The first version that both sides speak.
pub fn negotiate(offered: &[u32]) -> Result<u32, Status> {
    let common = VERSIONS.iter().find(|version| offered.contains(version)).copied();
    common.ok_or_else(|| {
        let message =
            format!("offered protocol versions {offered:?}, spoken here {VERSIONS:?}; upgrade");
        refuse(Code::FailedPrecondition, "unsupported_version", message)
    })
}

/// Refuses a clock that is more than [`MAX_SKEW`] off: its certificates would
/// not work anyway, and nothing would say why.
pub fn check_clock(theirs_unix_ms: u64, ours_unix_ms: i64) -> Result<(), Status> {
    let ours = ours_unix_ms.unsigned_abs();
    let skew = Duration::from_millis(theirs_unix_ms.abs_diff(ours));
    if skew <= MAX_SKEW {
        return Ok(());
    }
    let which = if theirs_unix_ms > ours { "ahead" } else { "behind" };
    let message = format!(
        "your clock is {} s {which}: {} there, {} here; set it (e.g. with chrony) and try again",
        skew.as_secs(),
        clock::utc(theirs_unix_ms / 1000),
        clock::utc(ours / 1000),
    );
    Err(refuse(Code::FailedPrecondition, "clock_skew", message))
}

/// Serves those who have no certificate yet.
#[derive(Clone)]
pub struct JoinService {
    site: Site,
    links: Links,
}

impl JoinService {
    /// Lets machines and `links` into `site`.
    pub fn new(site: Site, links: Links) -> Self {
        Self { site, links }
    }
}

#[tonic::async_trait]
impl Join for JoinService {
    async fn join_node(
        &self,
        request: Request<v1::JoinNodeRequest>,
    ) -> Result<Response<v1::JoinNodeResponse>, Status> {
        let request = request.into_inner();
        let answer = admit(&self.site, &request).await;
        tell(&request, &answer);
        answer
    }

    async fn redeem_link(
        &self,
        request: Request<v1::RedeemLinkRequest>,
    ) -> Result<Response<v1::RedeemLinkResponse>, Status> {
        self.links.redeem(request.into_inner()).await.map(Response::new)
    }
}

fn tell(request: &v1::JoinNodeRequest, answer: &Result<Response<v1::JoinNodeResponse>, Status>) {
    match answer {
        Ok(joined) => log::info!(node = joined.get_ref().node.as_str(),
            token = request.token_id.as_str(), hostname = text(&request.hostname).as_str(); "node joined"),
        Err(status) => log::warn!(token = text(&request.token_id).as_str(),
            hostname = text(&request.hostname).as_str(), reason = reason_of(status),
            error = status.message(); "join refused"),
    }
}

async fn admit(
    site: &Site,
    request: &v1::JoinNodeRequest,
) -> Result<Response<v1::JoinNodeResponse>, Status> {
    let version = negotiate(&request.versions)?;
    let clock = site.authority.clock();
    check_clock(request.time_unix_ms, clock.unix_ms())?;
    let key = KeyRequest::parse(&request.csr).map_err(|error| error.status())?;
    let now = clock.unix_s();
    let decide = |state: &State| -> Result<_, JoinError> {
        if let Some(node) = same_attempt(state, request, &key, now) {
            return again(site, &node, &key);
        }
        let token =
            tokens::check(state, &request.token_id, &request.token_secret, Purpose::Node, now)?;
        let node: NodeId = uuid::Uuid::new_v4().to_string().parse().expect("a UUID is a node id");
        let id = SpiffeId::node(&state.site().trust_domain, &node);
        let issued = site.ca.issue(&key, &id, Some(&node))?;
        let used = v1::TokenUsed { id: token.id.clone(), by: format!("node:{node}") };
        let joined = v1::NodeJoined {
            id: node.to_string(),
            token: token.id.clone(),
            grants: Some(token.grants.clone()),
            serial: issued.serial.clone(),
            hostname: text(&request.hostname),
            machine_id: text(&request.machine_id),
            not_after_unix_s: issued.not_after_unix_s,
            gateway: token.gateway,
            boot_id: text(&request.boot_id),
            key_sha256: key.spki_sha256().to_vec(),
            root: issued.root_sha256.to_vec(),
            restored: false,
            pod: false,
        };
        let admitted =
            Admitted { node, issued, grants: token.grants.clone(), gateway: token.gateway };
        Ok((vec![Event::TokenUsed(used), Event::NodeJoined(joined)], admitted))
    };
    let actor = format!("token:{}", text(&request.token_id));
    let admitted = site.authority.commit(&actor, decide).await.map_err(commit_status)?;
    Ok(Response::new(welcome(site, version, admitted)))
}

struct Admitted {
    node: NodeId,
    issued: Issued,
    grants: v1::Grants,
    gateway: bool,
}

/// The node that this very key has joined as with this very token, if the
/// answer got lost on its way: then asking again uses nothing up.
fn same_attempt(
    state: &State,
    request: &v1::JoinNodeRequest,
    key: &KeyRequest,
    now: i64,
) -> Option<std::sync::Arc<NodeState>> {
    let token = tokens::known(state, &request.token_id, &request.token_secret)?;
    if token.revoked || token.expires_unix_s <= now || token.used_by.is_empty() {
        return None;
    }
    let hash = key.spki_sha256();
    let same = |node: &&std::sync::Arc<NodeState>| {
        node.token == token.id && node.key_sha256 == hash && node.duplicated.is_none()
    };
    state.nodes.values().find(same).cloned()
}

fn again(
    site: &Site,
    node: &NodeState,
    key: &KeyRequest,
) -> Result<(Vec<Event>, Admitted), JoinError> {
    let id = SpiffeId::node(&site.authority.state().site().trust_domain, &node.id);
    let issued = site.ca.issue(key, &id, Some(&node.id))?;
    let renewed = v1::NodeRenewed {
        id: node.id.to_string(),
        serial: issued.serial.clone(),
        not_after_unix_s: issued.not_after_unix_s,
        boot_id: node.boot_id.clone(),
        with_serial: node.current.serial.clone(),
        root: issued.root_sha256.to_vec(),
        restored: false,
    };
    let grants = node.grants.clone();
    let admitted = Admitted { node: node.id.clone(), issued, grants, gateway: node.gateway };
    Ok((vec![Event::NodeRenewed(renewed)], admitted))
}

fn welcome(site: &Site, version: u32, admitted: Admitted) -> v1::JoinNodeResponse {
    let state = site.authority.state();
    let described = if admitted.gateway { site.describe_to_gateway() } else { site.describe() };
    v1::JoinNodeResponse {
        version,
        site: Some(described),
        node: admitted.node.to_string(),
        chain: admitted.issued.chain,
        bundles: bundles(&state),
        gateways: gateways(&state),
        grants: Some(admitted.grants),
        time_unix_ms: site.authority.clock().unix_ms().unsigned_abs(),
    }
}

/// What a stranger says about itself, short and without control characters.
pub fn text(value: &str) -> String {
    let clean = value.chars().filter(|c| !c.is_control());
    clean.take(MAX_TEXT).collect()
}
