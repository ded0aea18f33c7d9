//! Identities of pods (gRPC `WorkloadIdentity`, at the door for those who have
//! no certificate yet): a pod shows the token of its service account that the
//! kubelet has projected for us, and the cluster's controller says whose it is.
//!
//! The pod is asked for anew at every call; what is issued to it names its UID,
//! as certificates of machines name theirs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_api::v1::{
    self, Description, Pod, ReviewRequest, ReviewedPod, authority_record::Event,
    pod_reviewer_client::PodReviewerClient, workload_identity_server::WorkloadIdentity,
};
use mesh_core::{NodeId, SpiffeId};
use mesh_tunnel::{Net, unix};
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Code, Request, Response, Status};

use crate::{
    authority::State,
    ca::{IssueError, KeyRequest},
    node_identity::replaced,
    refusal::{Refusal, commit_status},
    registration::{
        RegisterError,
        pod::{GatewayAccount, decide_known, identity_of},
    },
    site::{Site, bundles, gateways},
    tenure::check_issuable,
};

/// The longest token, in bytes: Kubernetes' are about one KiB.
const MAX_TOKEN: usize = 8 * 1024;
/// Reviews that run at once; who comes meanwhile waits for its turn.
const MAX_REVIEWS: usize = 32;
/// For the controller's answer, waiting included.
const REVIEW_DEADLINE: Duration = Duration::from_secs(8);

/// Why a pod gets nothing.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// This site has no cluster.
    #[error("no cluster belongs to this site: `cluster` is not in federation.yaml")]
    NoCluster,
    /// Nothing that could be a token.
    #[error("no token: send `authorization: Bearer <token of a service account>`")]
    NoToken,
    /// The cluster's word.
    #[error("the cluster does not know this token: {0}")]
    Refused(String),
    /// Nobody can say whose it is.
    #[error("the cluster's controller cannot be asked: {0}")]
    Unreviewed(String),
    /// The pod cannot be of the mesh.
    #[error(transparent)]
    Pod(#[from] RegisterError),
    /// An operator has ended the pod.
    #[error("pod {0} is revoked")]
    Revoked(NodeId),
    /// The request.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

impl Refusal for PodError {
    fn code(&self) -> Code {
        match self {
            Self::NoCluster => Code::Unimplemented,
            // A token may be too old at the moment: nobody gives up for that.
            Self::NoToken | Self::Refused(_) => Code::Unauthenticated,
            Self::Unreviewed(_) => Code::Unavailable,
            Self::Pod(_) | Self::Revoked(_) => Code::PermissionDenied,
            Self::Issue(issue) => issue.code(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NoCluster => "no_cluster",
            Self::NoToken => "no_token",
            Self::Refused(_) => "token_refused",
            Self::Unreviewed(_) => "not_reviewed",
            Self::Pod(_) => "pod_denied",
            Self::Revoked(_) => "peer_revoked",
            Self::Issue(issue) => issue.reason(),
        }
    }
}

/// Who knows whose token it is.
#[derive(Clone)]
pub struct Reviewer {
    net: Arc<dyn Net>,
    socket: PathBuf,
    places: Arc<Semaphore>,
}

impl Reviewer {
    /// The controller behind this Unix socket.
    pub fn new(net: Arc<dyn Net>, socket: PathBuf) -> Self {
        Self { net, socket, places: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }

    async fn review(&self, token: String) -> Result<ReviewedPod, PodError> {
        let away = |error: &dyn std::fmt::Display| PodError::Unreviewed(error.to_string());
        let asked = async {
            let _place = self.places.acquire().await.map_err(|error| away(&error))?;
            let channel = unix::channel_over(self.net.clone(), &self.socket).await;
            let mut client = PodReviewerClient::new(channel.map_err(|error| away(&error))?);
            match client.review(ReviewRequest { token }).await {
                Ok(pod) => Ok(pod.into_inner()),
                Err(status) if status.code() == Code::Unauthenticated => {
                    Err(PodError::Refused(crate::join::text(status.message())))
                }
                Err(status) => Err(away(&status.message())),
            }
        };
        let answered = timeout(REVIEW_DEADLINE, asked).await;
        answered.unwrap_or_else(|_| Err(away(&format!("no answer within {REVIEW_DEADLINE:?}"))))
    }
}

/// Serves pods, where there is a cluster.
#[derive(Clone)]
pub struct PodIdentityService {
    site: Site,
    reviewer: Option<Reviewer>,
    gateways: GatewayAccount,
}

impl PodIdentityService {
    /// Without a reviewer everybody is refused.
    pub fn new(site: Site, reviewer: Option<Reviewer>, gateways: GatewayAccount) -> Self {
        Self { site, reviewer, gateways }
    }

    /// The pod whose token the caller shows.
    async fn pod<T>(&self, request: &Request<T>) -> Result<(NodeId, ReviewedPod), PodError> {
        let reviewer = self.reviewer.as_ref().ok_or(PodError::NoCluster)?;
        let token = bearer(request).ok_or(PodError::NoToken)?;
        let pod = reviewer.review(token).await?;
        let node = pod.uid.parse().map_err(|error| {
            PodError::Unreviewed(format!("it names a pod without a UID: {error}"))
        })?;
        Ok((node, pod))
    }

    /// One decision about a pod that is known afterwards.
    async fn decide<T>(
        &self,
        node: &NodeId,
        pod: &ReviewedPod,
        decide: impl FnOnce(&State, &SpiffeId) -> Result<(Vec<Event>, T), PodError>,
    ) -> Result<T, Status> {
        let actor = format!("pod:{node}");
        let outcome = self.site.authority.commit(&actor, |state| {
            if state.revocations.contains_key(&format!("node:{node}")) {
                return Err(PodError::Revoked(node.clone()));
            }
            let id = identity_of(state, &pod.namespace, &pod.account, &self.gateways)?;
            let known = decide_known(state, node, &as_told(pod), &self.gateways)?;
            let (events, answer) = decide(state, &id)?;
            Ok((known.into_iter().chain(events).collect(), answer))
        });
        outcome.await.map_err(commit_status)
    }

    async fn described(
        &self,
        request: &Request<v1::DescribeRequest>,
    ) -> Result<Description, Status> {
        let (node, pod) = self.pod(request).await.map_err(|error| error.status())?;
        let id = self.decide(&node, &pod, |_, id| Ok((vec![], id.clone()))).await?;
        let state = self.site.authority.state();
        let site =
            if id.is_gateway() { self.site.describe_to_gateway() } else { self.site.describe() };
        Ok(Description {
            site: Some(site),
            spiffe_id: id.to_string(),
            node: node.to_string(),
            gateway: String::new(),
            gateways: gateways(&state),
            bundles: bundles(&state),
            advertise: pod.address,
            locality: pod.locality,
        })
    }

    async fn issued(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<v1::IssuedCertificate, Status> {
        let (node, pod) = self.pod(&request).await.map_err(|error| error.status())?;
        let request = request.into_inner();
        let key = KeyRequest::parse(&request.csr).map_err(|error| error.status())?;
        let ca = &self.site.ca;
        let issue = |state: &State, id: &SpiffeId| {
            check_issuable(state, id)?;
            let issued = ca.issue_for(&key, id, Some(&node), request.brief)?;
            let event = v1::WorkloadIssued {
                spiffe_id: id.to_string(),
                node: node.to_string(),
                serial: issued.serial.clone(),
                not_after_unix_s: issued.not_after_unix_s,
                root: issued.root_sha256.to_vec(),
                replaces: replaced(state, &request.replaces, id, Some(&node)),
                ..Default::default()
            };
            Ok((vec![Event::WorkloadIssued(event)], (id.clone(), issued)))
        };
        let (id, issued) = self.decide(&node, &pod, issue).await?;
        log::info!(node = node.as_str(), pod = pod.name.as_str(), id = id.as_str(),
            serial = issued.serial.as_str(); "certificate issued to a pod");
        Ok(self.site.answer(issued))
    }
}

#[tonic::async_trait]
impl WorkloadIdentity for PodIdentityService {
    async fn describe(
        &self,
        request: Request<v1::DescribeRequest>,
    ) -> Result<Response<Description>, Status> {
        told(self.described(&request).await)
    }

    async fn issue(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        told(self.issued(request).await)
    }
}

fn told<T>(answer: Result<T, Status>) -> Result<Response<T>, Status> {
    if let Err(status) = &answer {
        log::warn!(reason = crate::refusal::reason_of(status), error = status.message();
            "pod refused");
    }
    answer.map(Response::new)
}

fn bearer<T>(request: &Request<T>) -> Option<String> {
    let value = request.metadata().get("authorization")?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ")?.trim();
    (!token.is_empty() && token.len() <= MAX_TOKEN).then(|| token.to_owned())
}

fn as_told(pod: &ReviewedPod) -> Pod {
    Pod {
        uid: pod.uid.clone(),
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        account: pod.account.clone(),
        instances: Vec::new(),
    }
}
