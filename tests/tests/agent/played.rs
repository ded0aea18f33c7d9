//! The federation that the tests play.

use std::{
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use isthmus_tests::pki::Ca;
use mesh_api::v1::{
    self, node_identity_server, registry_request::Request as Asked, registry_server,
};
use mesh_core::{NodeId, SpiffeId};
use mesh_runtime::process;
use mesh_tunnel::unix;
use tokio::sync::{Mutex, mpsc};
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use super::NODE;

const DAY: Duration = Duration::from_secs(86_400);

/// Federation's registry: passes on what is asked, answers yes; after hello it
/// tells this, unasked.
struct Registry(mpsc::Sender<Asked>, Vec<v1::SiteTrust>);

#[tonic::async_trait]
impl registry_server::Registry for Registry {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::RegistryReply, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::RegistryRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let told = self.1.clone();
        let tell = |trust| v1::RegistryReply { trust: Some(trust), ..Default::default() };
        let all = (request.into_inner(), self.0.clone(), told);
        let replies = stream::unfold(all, move |(mut asked, seen, mut told)| async move {
            let request = asked.message().await.ok()??;
            let reply = v1::RegistryReply { sequence: request.sequence, ..Default::default() };
            seen.send(request.request?).await.ok()?;
            let told_now: Vec<_> = told.drain(..).map(tell).collect();
            let replies = stream::iter([reply].into_iter().chain(told_now).map(Ok));
            Some((replies, (asked, seen, told)))
        });
        Ok(Response::new(Box::pin(replies.flatten())))
    }
}

/// What is asked, and how to ask it.
pub(crate) async fn serve_registry(dir: &Path) -> (mpsc::Receiver<Asked>, Channel) {
    serve_registry_that_tells(dir, Vec::new()).await
}

pub(crate) async fn serve_registry_that_tells(
    dir: &Path,
    told: Vec<v1::SiteTrust>,
) -> (mpsc::Receiver<Asked>, Channel) {
    let (tx, seen) = mpsc::channel(64);
    let path = dir.join("federation.sock");
    let listener = process::bind_unix(&path, 0o600).await.unwrap();
    let service = registry_server::RegistryServer::new(Registry(tx, told));
    let server = tonic::transport::Server::builder();
    tokio::spawn(server.serve_with_incoming(service, unix::incoming(listener)));
    (seen, unix::channel(&path).await.unwrap())
}

/// Federation's CA: certifies, or refuses with this text.
pub(crate) struct Identities {
    pub(crate) ca: Ca,
    pub(crate) refusal: Mutex<Option<&'static str>>,
    pub(crate) renewals: AtomicUsize,
    /// Of workloads' certificates.
    pub(crate) lifetime: Mutex<Duration>,
    pub(crate) tokens: AtomicUsize,
    /// Whom tokens name, if not who asks.
    pub(crate) tokens_of: Mutex<Option<SpiffeId>>,
}

impl Identities {
    async fn certify(
        &self,
        csr: &[u8],
        id: SpiffeId,
        lifetime: Duration,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        if let Some(refusal) = *self.refusal.lock().await {
            return Err(Status::failed_precondition(refusal));
        }
        let node: NodeId = NODE.parse().unwrap();
        Ok(Response::new(v1::IssuedCertificate {
            chain: self.ca.certify_for(csr, &id, Some(&node), lifetime),
            bundles: vec![(&self.ca.bundle()).into()],
            not_after_unix_s: 0,
            gateways: vec![v1::Gateway {
                id: "west-2".into(),
                site: "west".into(),
                tls_addresses: vec!["127.0.0.1:2".into()],
                ..Default::default()
            }],
        }))
    }
}

struct Served(Arc<Identities>);

#[tonic::async_trait]
impl node_identity_server::NodeIdentity for Served {
    async fn renew_node(
        &self,
        request: Request<v1::RenewNodeRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        self.0.renewals.fetch_add(1, Ordering::Relaxed);
        let id = SpiffeId::node(&self.0.ca.trust_domain, &NODE.parse().unwrap());
        self.0.certify(&request.into_inner().csr, id, DAY).await
    }

    async fn issue_workload(
        &self,
        request: Request<v1::IssueWorkloadRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        let request = request.into_inner();
        let domain = &self.0.ca.trust_domain;
        let id = SpiffeId::workload(domain, &request.namespace, &request.account).unwrap();
        let lifetime = *self.0.lifetime.lock().await;
        self.0.certify(&request.csr, id, lifetime).await
    }

    async fn issue_jwt(
        &self,
        request: Request<v1::IssueJwtRequest>,
    ) -> Result<Response<v1::IssuedJwt>, Status> {
        if let Some(refusal) = *self.0.refusal.lock().await {
            return Err(Status::permission_denied(refusal));
        }
        self.0.tokens.fetch_add(1, Ordering::Relaxed);
        let request = request.into_inner();
        let domain = &self.0.ca.trust_domain;
        let asked = SpiffeId::workload(domain, &request.namespace, &request.account).unwrap();
        let id = self.0.tokens_of.lock().await.clone().unwrap_or(asked);
        let lifetime = *self.0.lifetime.lock().await;
        Ok(Response::new(v1::IssuedJwt {
            token: self.0.ca.token(&id, &request.audience, lifetime),
            bundles: vec![(&self.0.ca.bundle()).into()],
            ..v1::IssuedJwt::default()
        }))
    }

    async fn leave_node(
        &self,
        _request: Request<v1::LeaveNodeRequest>,
    ) -> Result<Response<v1::LeaveNodeResponse>, Status> {
        Ok(Response::new(v1::LeaveNodeResponse {}))
    }
}

pub(crate) async fn serve_identities(dir: &Path, ca: Ca) -> (Arc<Identities>, Channel) {
    let identities = Arc::new(Identities {
        ca,
        refusal: Mutex::default(),
        renewals: AtomicUsize::new(0),
        lifetime: Mutex::new(DAY),
        tokens: AtomicUsize::new(0),
        tokens_of: Mutex::default(),
    });
    let path = dir.join("federation.sock");
    let listener = process::bind_unix(&path, 0o600).await.unwrap();
    let service = node_identity_server::NodeIdentityServer::new(Served(identities.clone()));
    let server = tonic::transport::Server::builder();
    tokio::spawn(server.serve_with_incoming(service, unix::incoming(listener)));
    (identities, unix::channel(&path).await.unwrap())
}
