//! What a joined machine may ask for (gRPC `NodeIdentity`): renewing its own
//! identity, certificates and tokens for its workloads, and leaving.
//!
//! A node's state directory must exist once. The CA knows the current and the
//! previous certificate of every node; whoever comes with an older one has a
//! copy of a state that has moved on. Then nobody under that node gets
//! certificates until an operator has looked (`meshctl node resolve`).

use mesh_api::v1;
use mesh_core::{
    NodeId, PeerIdentity, SpiffeId,
    jwt::{MAX_AUDIENCE, MAX_AUDIENCES, are_audiences},
    name::{SYSTEM_NAMESPACE, Subject},
};
use tonic::{Code, Request, Response, Status};
use v1::{authority_record::Event, node_identity_server::NodeIdentity};

use crate::{
    authority::{Authority, State, rotation::Leaf, state::NodeState},
    ca::{IssueError, KeyRequest},
    join::text,
    jwt,
    refusal::{Refusal, Role, caller, commit_status, reason_of, refuse},
    site::{Site, bundles, gateways},
    tenure::{check_issuable, is_revoked},
};

/// Why a node gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It has left, was removed, or belongs to a state from before a restore.
    #[error("node {0} is not joined to this site any more; join again: meshctl join <token>")]
    Unknown(NodeId),
    /// There are two of it.
    #[error(
        "node {id} is duplicated ({reason}): its state directory was copied. Stop the copy, then \
         `meshctl node resolve {id}`"
    )]
    Duplicated {
        /// Which node.
        id: NodeId,
        /// How it was noticed.
        reason: String,
    },
    /// Not within its grants.
    #[error(
        "node {id} has no grant for namespace {namespace:?}, account {account:?}; it has {granted}"
    )]
    NotGranted {
        /// Which node.
        id: NodeId,
        /// What it asked for.
        namespace: String,
        /// What it asked for.
        account: String,
        /// What it may have.
        granted: String,
    },
    /// An operator has ended the node, or the certificate that it comes with.
    #[error("{0}: this certificate is revoked")]
    PeerRevoked(SpiffeId),
    /// Nobody to whom a token is shown.
    #[error(
        "a token is for 1 to {MAX_AUDIENCES} audiences of at most {MAX_AUDIENCE} bytes each, \
         without control characters"
    )]
    Audience,
    /// The key that is to sign is not on this disk.
    #[error("no key for JWT-SVIDs is here yet; federation's log says why")]
    NoJwtKey,
    /// The request.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Refusal for NodeError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(_) => Code::NotFound,
            Self::Duplicated { .. } => Code::FailedPrecondition,
            Self::NotGranted { .. } | Self::PeerRevoked(_) => Code::PermissionDenied,
            Self::Audience => Code::InvalidArgument,
            Self::NoJwtKey => Code::Unavailable,
            Self::Issue(issue) => issue.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "node_unknown",
            Self::Duplicated { .. } => "node_duplicated",
            Self::NotGranted { .. } => "not_granted",
            Self::PeerRevoked(_) => "peer_revoked",
            Self::Audience => "bad_audience",
            Self::NoJwtKey => "no_jwt_key",
            Self::Issue(issue) => issue.reason(),
        }
    }
}

/// Serves nodes; everybody else is refused.
#[derive(Clone)]
pub struct NodeIdentityService {
    site: Site,
    boots: LiveBoots,
}

/// The boot id of a node's live registry session, if it has one.
pub type LiveBoots = std::sync::Arc<dyn Fn(&NodeId) -> Option<String> + Send + Sync>;

impl NodeIdentityService {
    /// `boots` tells a renewal in one boot from a session that lives in
    /// another.
    pub fn new(site: Site, boots: LiveBoots) -> Self {
        Self { site, boots }
    }

    fn node_of<T>(&self, request: &Request<T>) -> Result<(NodeId, PeerIdentity), Status> {
        let state = self.site.authority.state();
        let peer = caller(request, Role::Node, &state.site().trust_domain)?;
        match peer.id.subject() {
            Subject::Node(node) => Ok((node.clone(), peer.clone())),
            Subject::Workload { .. } => {
                Err(refuse(Code::PermissionDenied, "role_denied", "not a node"))
            }
        }
    }

    /// One decision about a node that is joined, presents a certificate that
    /// is neither revoked nor retired, and is not duplicated.
    async fn decide<T>(
        &self,
        node: &NodeId,
        peer: &PeerIdentity,
        live_boot: Option<String>,
        decide: impl FnOnce(&State, &NodeState) -> Result<(Vec<Event>, T), NodeError>,
    ) -> Result<T, Status> {
        let outcome = self.site.authority.commit(peer.id.as_str(), |state| {
            if is_revoked(state, peer) {
                return Err(NodeError::PeerRevoked(peer.id.clone()));
            }
            let known = state.nodes.get(node).ok_or_else(|| NodeError::Unknown(node.clone()))?;
            if let Some(reason) = known.duplicated.clone() {
                return Err(NodeError::Duplicated { id: node.clone(), reason });
            }
            if let Some(reason) = seen_twice(known, &peer.serial, live_boot) {
                return Ok((vec![duplicated(node, &reason)], Err(reason)));
            }
            let (events, answer) = decide(state, known)?;
            Ok((events, Ok(answer)))
        });
        let status = match outcome.await.map_err(commit_status) {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(reason)) => {
                log::error!(node = node.as_str(), detail = reason.as_str(); "a node exists twice");
                NodeError::Duplicated { id: node.clone(), reason }.status()
            }
            Err(status) => status,
        };
        log::warn!(node = node.as_str(), reason = reason_of(&status), detail = status.message();
            "node refused");
        Err(status)
    }
}

/// How it is noticed that a node's state was copied.
fn seen_twice(node: &NodeState, serial: &str, other_boot: Option<String>) -> Option<String> {
    let previous = node.previous.as_ref().map(|certificate| certificate.serial.as_str());
    let since_backup = node.restored && !node.knows(serial);
    if serial != node.current.serial && Some(serial) != previous && !since_backup {
        return Some(format!("certificate {serial} was used after it had been replaced twice"));
    }
    other_boot.map(|boot| format!("it has a live session in boot {boot} and renews in another"))
}

fn duplicated(node: &NodeId, reason: &str) -> Event {
    Event::NodeDuplicated(v1::NodeDuplicated { id: node.to_string(), reason: reason.to_owned() })
}

/// Marks a node as duplicated, unless it is already: for whoever sees two
/// sessions of it at once.
pub async fn mark_duplicated(
    authority: &Authority,
    node: &NodeId,
    reason: &str,
) -> Result<(), Status> {
    let decide = |state: &State| {
        let known = state.nodes.get(node).ok_or_else(|| NodeError::Unknown(node.clone()))?;
        let events =
            if known.duplicated.is_some() { vec![] } else { vec![duplicated(node, reason)] };
        Ok((events, ()))
    };
    authority.commit("federation", decide).await.map_err(commit_status::<NodeError>)
}

#[tonic::async_trait]
impl NodeIdentity for NodeIdentityService {
    async fn renew_node(
        &self,
        request: Request<v1::RenewNodeRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        let (node, peer) = self.node_of(&request)?;
        let request = request.into_inner();
        let key = KeyRequest::parse(&request.csr).map_err(|error| error.status())?;
        let boot = text(&request.boot_id);
        let other_boot = (self.boots)(&node).filter(|live| !boot.is_empty() && *live != boot);
        let ca = &self.site.ca;
        let issue = |state: &State, _: &NodeState| {
            let id = SpiffeId::node(&state.site().trust_domain, &node);
            let issued = ca.issue(&key, &id, Some(&node))?;
            let renewed = v1::NodeRenewed {
                id: node.to_string(),
                serial: issued.serial.clone(),
                not_after_unix_s: issued.not_after_unix_s,
                boot_id: boot.clone(),
                with_serial: peer.serial.clone(),
                root: issued.root_sha256.to_vec(),
                restored: false,
            };
            Ok((vec![Event::NodeRenewed(renewed)], issued))
        };
        let issued = self.decide(&node, &peer, other_boot, issue).await?;
        log::info!(node = node.as_str(), serial = issued.serial.as_str(); "node renewed");
        Ok(Response::new(self.site.answer(issued)))
    }

    async fn issue_workload(
        &self,
        request: Request<v1::IssueWorkloadRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        let (node, peer) = self.node_of(&request)?;
        let request = request.into_inner();
        let key = KeyRequest::parse(&request.csr).map_err(|error| error.status())?;
        let ca = &self.site.ca;
        let issue = |state: &State, known: &NodeState| {
            let id = granted_identity(state, known, &request.namespace, &request.account)?;
            check_issuable(state, &id)?;
            let issued = ca.issue_for(&key, &id, Some(&node), request.brief)?;
            let event = v1::WorkloadIssued {
                spiffe_id: id.to_string(),
                node: node.to_string(),
                serial: issued.serial.clone(),
                not_after_unix_s: issued.not_after_unix_s,
                node_serial: peer.serial.clone(),
                root: issued.root_sha256.to_vec(),
                replaces: replaced(state, &request.replaces, &id, Some(&node)),
                ..Default::default()
            };
            Ok((vec![Event::WorkloadIssued(event)], (id, issued)))
        };
        let (id, issued) = self.decide(&node, &peer, None, issue).await?;
        log::info!(node = node.as_str(), id = id.as_str(), serial = issued.serial.as_str();
            "workload certificate issued");
        Ok(Response::new(self.site.answer(issued)))
    }

    /// Not in the log: a token ends by itself before anybody could look it up.
    async fn issue_jwt(
        &self,
        request: Request<v1::IssueJwtRequest>,
    ) -> Result<Response<v1::IssuedJwt>, Status> {
        let (node, peer) = self.node_of(&request)?;
        let v1::IssueJwtRequest { namespace, account, audience } = request.into_inner();
        if !are_audiences(&audience) {
            return Err(NodeError::Audience.status());
        }
        let (keys, now) = (self.site.ca.jwt_keys(), self.site.authority.clock().unix_s());
        let issue = |state: &State, known: &NodeState| {
            let id = granted_workload(state, known, &namespace, &account)?;
            check_issuable(state, &id)?;
            let issued = jwt::issue(state, keys, &id, &audience, now);
            Ok((vec![], (id, issued.ok_or(NodeError::NoJwtKey)?)))
        };
        let (id, issued) = self.decide(&node, &peer, None, issue).await?;
        log::info!(node = node.as_str(), id = id.as_str(), kid = issued.kid.as_str(),
            audience:? = audience; "JWT-SVID issued");
        let state = self.site.authority.state();
        Ok(Response::new(v1::IssuedJwt {
            token: issued.token,
            not_after_unix_s: issued.not_after_unix_s,
            bundles: bundles(&state),
            gateways: gateways(&state),
        }))
    }

    async fn leave_node(
        &self,
        request: Request<v1::LeaveNodeRequest>,
    ) -> Result<Response<v1::LeaveNodeResponse>, Status> {
        let (node, peer) = self.node_of(&request)?;
        let now = self.site.authority.clock().unix_s();
        let leave = |_: &State, _: &NodeState| Ok((removal(&node, now), ()));
        self.decide(&node, &peer, None, leave).await?;
        log::info!(node = node.as_str(); "node left");
        Ok(Response::new(v1::LeaveNodeResponse {}))
    }
}

/// What ends a node: its records go, and no certificate of it is accepted any
/// more.
pub fn removal(node: &NodeId, now_unix_s: i64) -> Vec<Event> {
    let subject = format!("node:{node}");
    vec![
        Event::NodeLeft(v1::NodeLeft { id: node.to_string() }),
        Event::Revoked(v1::Revocation { subject, revoked_at_unix_s: now_unix_s }),
    ]
}

/// The certificate that the caller says it has used so far, if it was issued to
/// the same identity on the same machine; else nothing.
pub fn replaced(state: &State, serial: &str, id: &SpiffeId, node: Option<&NodeId>) -> String {
    let same = |leaf: &&std::sync::Arc<Leaf>| leaf.id == *id && leaf.node.as_ref() == node;
    state.leaves.get(serial).filter(same).map(|_| serial.to_owned()).unwrap_or_default()
}

/// The identity that a node asks for, if its grants hold it.
fn granted_identity(
    state: &State,
    node: &NodeState,
    namespace: &str,
    account: &str,
) -> Result<SpiffeId, NodeError> {
    let domain = &state.site().trust_domain;
    if node.gateway && namespace == SYSTEM_NAMESPACE && account == "gateway" {
        return Ok(SpiffeId::gateway(domain));
    }
    granted_workload(state, node, namespace, account)
}

/// The same without that of a gateway, which is for mTLS alone.
fn granted_workload(
    state: &State,
    node: &NodeState,
    namespace: &str,
    account: &str,
) -> Result<SpiffeId, NodeError> {
    let (domain, grants) = (&state.site().trust_domain, &node.grants);
    let granted = namespace == grants.namespace && account == grants.account;
    let id = SpiffeId::workload(domain, namespace, account);
    id.ok().filter(|_| granted && namespace != SYSTEM_NAMESPACE).ok_or_else(|| {
        NodeError::NotGranted {
            id: node.id.clone(),
            namespace: text(namespace),
            account: text(account),
            granted: format!("namespace {:?}, account {:?}", grants.namespace, grants.account),
        }
    })
}
