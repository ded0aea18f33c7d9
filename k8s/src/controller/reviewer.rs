//! gRPC `PodReviewer`: whose a token is, by the API server's TokenReview.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::{Api, Client, api::PostParams};
use mesh_api::v1::{ReviewRequest, ReviewedPod, pod_reviewer_server};
use tonic::{Request, Response, Status};

use super::model::Model;

/// `system:serviceaccount:<namespace>:<account>`.
const ACCOUNT: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Serves federation.
#[derive(Clone)]
pub(super) struct Reviewer {
    client: Client,
    audience: String,
    model: Arc<Mutex<Model>>,
}

impl Reviewer {
    /// Accepts tokens for this audience alone.
    pub(super) fn new(client: Client, audience: String, model: Arc<Mutex<Model>>) -> Self {
        Self { client, audience, model }
    }

    fn placed(&self, pod: ReviewedPod, node: Option<String>) -> ReviewedPod {
        let model = self.model.lock().unwrap_or_else(PoisonError::into_inner);
        let locality = node.and_then(|node| model.locality(&node).cloned());
        let address = model.address(&pod.uid).unwrap_or_default().to_owned();
        ReviewedPod { locality, address, ..pod }
    }
}

#[tonic::async_trait]
impl pod_reviewer_server::PodReviewer for Reviewer {
    async fn review(
        &self,
        request: Request<ReviewRequest>,
    ) -> Result<Response<ReviewedPod>, Status> {
        let spec = TokenReviewSpec {
            token: Some(request.into_inner().token),
            audiences: Some(vec![self.audience.clone()]),
        };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = api.create(&PostParams::default(), &review).await;
        let reviewed =
            reviewed.map_err(|error| Status::unavailable(format!("API server: {error}")))?;
        let (pod, node) = decide(&reviewed, &self.audience).map_err(Status::unauthenticated)?;
        Ok(Response::new(self.placed(pod, node)))
    }
}

/// Whose token it is, and on which node. An API server that knows nothing of
/// audiences would accept every token: without ours in its answer it is none.
fn decide(reviewed: &TokenReview, audience: &str) -> Result<(ReviewedPod, Option<String>), String> {
    let status = reviewed.status.clone().unwrap_or_default();
    if status.authenticated != Some(true) {
        let why = status.error.unwrap_or_else(|| "it is not valid".to_owned());
        return Err(format!("the API server does not accept it: {why}"));
    }
    if !status.audiences.iter().flatten().any(|accepted| accepted == audience) {
        return Err(format!("it is not for audience {audience:?}"));
    }
    let user = status.user.unwrap_or_default();
    let account = user.username.as_deref().and_then(|name| name.strip_prefix(ACCOUNT));
    let (namespace, account) =
        account.and_then(|of| of.split_once(':')).ok_or("it is no service account's")?;
    let (Some(uid), Some(name)) = (extra(&user, POD_UID), extra(&user, POD_NAME)) else {
        return Err("it is not bound to a pod: only projected tokens are".to_owned());
    };
    let pod = ReviewedPod {
        uid,
        name,
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        ..ReviewedPod::default()
    };
    Ok((pod, extra(&user, NODE_NAME)))
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    user.extra.as_ref()?.get(key)?.first().cloned()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::TokenReviewStatus;

    use super::*;

    fn good() -> TokenReviewStatus {
        let extra = [(POD_UID, "u1"), (POD_NAME, "orders-1"), (NODE_NAME, "n1")];
        let extra = extra.map(|(key, value)| (key.to_owned(), vec![value.to_owned()]));
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["isthmus".into()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:orders".into()),
                extra: Some(extra.into_iter().collect()),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    fn decided(status: TokenReviewStatus) -> Result<(ReviewedPod, Option<String>), String> {
        decide(&TokenReview { status: Some(status), ..TokenReview::default() }, "isthmus")
    }

    #[test]
    fn a_projected_token_names_its_pod() {
        let (pod, node) = decided(good()).unwrap();
        assert_eq!((pod.namespace.as_str(), pod.account.as_str()), ("shop", "orders"));
        assert_eq!((pod.uid.as_str(), pod.name.as_str()), ("u1", "orders-1"));
        assert_eq!(node.as_deref(), Some("n1"));
    }

    #[test]
    fn anything_else_is_refused() {
        let user = |change: fn(&mut UserInfo)| {
            let mut status = good();
            change(status.user.as_mut().unwrap());
            status
        };
        let table = [
            (TokenReviewStatus { authenticated: Some(false), ..good() }, "does not accept"),
            (TokenReviewStatus { authenticated: None, ..good() }, "does not accept"),
            (TokenReviewStatus { audiences: None, ..good() }, "not for audience"),
            (
                TokenReviewStatus { audiences: Some(vec!["api".into()]), ..good() },
                "not for audience",
            ),
            (user(|user| user.username = Some("jane".into())), "no service account"),
            (user(|user| user.username = Some("system:serviceaccount:shop".into())), "no service"),
            (user(|user| user.username = None), "no service account"),
            (user(|user| user.extra = None), "not bound to a pod"),
            (
                user(|user| {
                    user.extra.as_mut().unwrap().remove(POD_UID);
                }),
                "not bound to a pod",
            ),
        ];
        for (status, says) in table {
            let error = decided(status.clone()).unwrap_err();
            assert!(error.contains(says), "{says}: {error} ({status:?})");
        }
        assert!(decide(&TokenReview::default(), "isthmus").is_err());
    }
}
