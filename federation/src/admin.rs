//! What an operator may ask and do (gRPC `Admin` on the Unix socket). Every
//! change is logged and recorded with the uid that made it.

use std::time::Duration;

use mesh_api::v1;
use mesh_core::{NodeId, SpiffeId};
use mesh_tunnel::unix;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use v1::{admin_server::Admin, authority_record::Event};

use crate::{
    authority::{State, state::NodeState},
    discovery::Discovery,
    links::Links,
    node_identity::removal,
    refusal::{Refusal, commit_status},
    registry::Registry,
    site::Site,
    status,
    tokens::{self, CreateError, NewToken},
    view::View,
};

/// Steps of a link that its operator has not read yet.
const PROGRESS: usize = 16;

/// Serves operators on this host.
#[derive(Clone)]
pub struct AdminService {
    /// The durable truth.
    pub site: Site,
    /// What is published.
    pub view: View,
    /// Agents.
    pub registry: Registry,
    /// Proxies.
    pub discovery: Discovery,
    /// Linked sites.
    pub links: Links,
}

/// Why an operator's wish is not granted.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl Refusal for AdminError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(_) => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "not_found",
            Self::Invalid(_) => "invalid_argument",
        }
    }
}

/// How the log names the caller.
fn actor<T>(request: &Request<T>) -> Result<String, Status> {
    Ok(format!("local:{}", unix::peer(request)?.uid))
}

impl AdminService {
    async fn commit<T>(
        &self,
        actor: &str,
        decide: impl FnOnce(&State) -> Result<(Vec<Event>, T), AdminError>,
    ) -> Result<T, Status> {
        self.site.authority.commit(actor, decide).await.map_err(commit_status)
    }

    fn now(&self) -> i64 {
        self.site.authority.clock().unix_s()
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let actor = actor(&request)?;
        let asked = request.into_inner();
        let grants = v1::Grants {
            namespace: asked.namespace,
            account: asked.account,
            services: asked.services,
        };
        let ttl = Duration::from_secs(asked.ttl_s);
        let new = NewToken::join(grants, asked.uses, ttl, asked.gateway);
        let new = new.map_err(|error: CreateError| error.status())?;
        let (token, expires_unix_s) =
            tokens::create(&self.site, &actor, new).await.map_err(commit_status)?;
        log::info!(id:% = token.id, actor = actor.as_str(); "token made");
        let (id, token) = (token.id.to_string(), token.encode());
        Ok(Response::new(v1::CreateTokenResponse { id, token, expires_unix_s }))
    }

    async fn list_tokens(
        &self,
        _request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let (state, now) = (self.site.authority.state(), self.now());
        let mut tokens: Vec<_> = state.tokens.values().collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.expires_unix_s));
        let info = |token: &std::sync::Arc<crate::authority::state::TokenState>| v1::TokenInfo {
            id: token.id.clone(),
            purpose: token.purpose.into(),
            grants: Some(token.grants.clone()),
            uses_left: token.uses_left(),
            expires_unix_s: token.expires_unix_s,
            state: tokens::describe(token, now).to_owned(),
            redeemed_by: token.used_by.clone(),
        };
        let tokens = tokens.into_iter().map(info).collect();
        Ok(Response::new(v1::ListTokensResponse { tokens }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let actor = actor(&request)?;
        let id = request.into_inner().id;
        let decide = |state: &State| match state.tokens.get(&id) {
            None => {
                Err(AdminError::Unknown(format!("no token {id:.64}; see `meshctl token list`")))
            }
            Some(token) if token.revoked => Ok((vec![], ())),
            Some(_) => Ok((vec![Event::TokenRevoked(v1::TokenRevoked { id: id.clone() })], ())),
        };
        self.commit(&actor, decide).await?;
        log::warn!(id = id.as_str(), actor = actor.as_str(); "token revoked");
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn create_link_token(
        &self,
        request: Request<v1::CreateLinkTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let actor = actor(&request)?;
        self.links.create_token(&actor, request.into_inner()).await.map(Response::new)
    }

    type LinkClusterStream = ReceiverStream<Result<v1::LinkProgress, Status>>;

    async fn link_cluster(
        &self,
        request: Request<v1::LinkClusterRequest>,
    ) -> Result<Response<Self::LinkClusterStream>, Status> {
        let actor = actor(&request)?;
        let (tx, rx) = mpsc::channel(PROGRESS);
        self.links.link_cluster(actor, request.into_inner(), tx);
        Ok(Response::new(ReceiverStream::new(rx)))
    }

    async fn unlink(
        &self,
        request: Request<v1::UnlinkRequest>,
    ) -> Result<Response<v1::UnlinkResponse>, Status> {
        let actor = actor(&request)?;
        self.links.unlink(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_links(
        &self,
        _request: Request<v1::ListLinksRequest>,
    ) -> Result<Response<v1::ListLinksResponse>, Status> {
        Ok(Response::new(self.links.list()))
    }

    async fn export_service(
        &self,
        request: Request<v1::ExportServiceRequest>,
    ) -> Result<Response<v1::ExportServiceResponse>, Status> {
        let actor = actor(&request)?;
        self.links.export(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn unexport_service(
        &self,
        request: Request<v1::ExportServiceRequest>,
    ) -> Result<Response<v1::ExportServiceResponse>, Status> {
        let actor = actor(&request)?;
        self.links.unexport(&actor, request.into_inner()).await.map(Response::new)
    }

    async fn list_services(
        &self,
        _request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        Ok(Response::new(self.links.services()))
    }

    async fn list_nodes(
        &self,
        _request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        Ok(Response::new(v1::ListNodesResponse { nodes: status::nodes(self) }))
    }

    async fn resolve_node(
        &self,
        request: Request<v1::ResolveNodeRequest>,
    ) -> Result<Response<v1::ResolveNodeResponse>, Status> {
        let actor = actor(&request)?;
        let asked = request.into_inner();
        let now = self.now();
        let kept = self.commit(&actor, |state| {
            let node = node_named(state, &asked.id)?;
            let kept = serial_to_keep(node, &asked.keep_serial)?;
            Ok((resolution(node, &kept, now), kept))
        });
        let kept = kept.await?;
        log::warn!(node = asked.id.as_str(), kept = kept.as_str(), actor = actor.as_str();
            "duplicated node resolved; workload certificates end within a day");
        Ok(Response::new(v1::ResolveNodeResponse {}))
    }

    async fn revoke(
        &self,
        request: Request<v1::RevokeRequest>,
    ) -> Result<Response<v1::RevokeResponse>, Status> {
        let actor = actor(&request)?;
        let subject = request.into_inner().subject;
        let now = self.now();
        self.commit(&actor, |state| Ok((revocation(state, &subject, now)?, ()))).await?;
        let issued = subject.strip_prefix("serial:").and_then(|serial| {
            status::issued_to(&self.site.authority.store().certificate(serial)?)
        });
        log::warn!(subject = subject.as_str(), actor = actor.as_str(),
            issued_to = issued.unwrap_or_default().as_str(); "revoked");
        Ok(Response::new(v1::RevokeResponse {}))
    }

    async fn site_status(
        &self,
        _request: Request<v1::SiteStatusRequest>,
    ) -> Result<Response<v1::SiteStatusResponse>, Status> {
        Ok(Response::new(status::site(self)))
    }

    async fn stat(
        &self,
        _request: Request<v1::StatRequest>,
    ) -> Result<Response<v1::StatResponse>, Status> {
        Ok(Response::new(self.discovery.stat()))
    }

    async fn read_snapshot(
        &self,
        _request: Request<v1::ReadSnapshotRequest>,
    ) -> Result<Response<v1::Delta>, Status> {
        Ok(Response::new(self.view.snapshot()))
    }
}

fn node_named<'a>(state: &'a State, id: &str) -> Result<&'a NodeState, AdminError> {
    let id: NodeId = id.parse().map_err(|error| AdminError::Invalid(format!("{error}")))?;
    let node = state.nodes.get(&id).map(|node| &**node);
    node.ok_or_else(|| AdminError::Unknown(format!("no node {id}; see `meshctl status`")))
}

/// The current certificate when none is named; else one that the node has had.
fn serial_to_keep(node: &NodeState, named: &str) -> Result<String, AdminError> {
    if named.is_empty() {
        return Ok(node.current.serial.clone());
    }
    let known: Vec<&str> =
        node.certificates().map(|certificate| certificate.serial.as_str()).collect();
    if known.contains(&named) {
        return Ok(named.to_owned());
    }
    let known = known.join(", ");
    Err(AdminError::Invalid(format!(
        "node {} has no certificate {named:.64}; it has {known}",
        node.id
    )))
}

/// One certificate stays; all others of the node are revoked.
fn resolution(node: &NodeState, kept: &str, now: i64) -> Vec<Event> {
    let others = node.certificates().filter(|certificate| certificate.serial != kept);
    let revoked = others.map(|certificate| {
        let subject = format!("serial:{}", certificate.serial);
        Event::Revoked(v1::Revocation { subject, revoked_at_unix_s: now })
    });
    let resolved = v1::NodeResolved { id: node.id.to_string(), keep_serial: kept.to_owned() };
    revoked.chain([Event::NodeResolved(resolved)]).collect()
}

fn revocation(state: &State, subject: &str, now: i64) -> Result<Vec<Event>, AdminError> {
    let revoked =
        || Event::Revoked(v1::Revocation { subject: subject.into(), revoked_at_unix_s: now });
    if let Some(node) = subject.strip_prefix("node:") {
        return Ok(removal(&node_named(state, node)?.id, now));
    }
    if let Some(serial) = subject.strip_prefix("serial:") {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if serial.is_empty() || serial.len() > 40 || !serial.bytes().all(hex) {
            let problem = "a serial number is 1 to 40 lower-case hex digits".to_owned();
            return Err(AdminError::Invalid(problem));
        }
        return Ok(vec![revoked()]);
    }
    let id: SpiffeId = subject.parse().map_err(|error| {
        AdminError::Invalid(format!(
            "{error}; a subject is a SPIFFE ID, node:<uuid> or serial:<hex>"
        ))
    })?;
    if id == SpiffeId::federation(&state.site().trust_domain) {
        return Err(AdminError::Invalid(format!(
            "{id} is this very federation; it cannot be revoked"
        )));
    }
    Ok(vec![revoked()])
}
