//! Pods get identities by tokens of their service accounts, which somebody else
//! reviews: over real sockets, with every refusal by its stable reason.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use common::{TestSite, reason, run, svid};
use federation::config::ClusterFile;
use mesh_api::v1::{
    self, Description, ReviewRequest, ReviewedPod,
    discovery_client::DiscoveryClient,
    pod_reviewer_server::{PodReviewer, PodReviewerServer},
    workload_identity_client::WorkloadIdentityClient,
};
use mesh_core::SpiffeId;
use mesh_tunnel::{Net, RealNet, Svid, tls, unix};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, transport::Server};

const POD: &str = "00000000-0000-4000-8000-0000000000aa";

/// Knows tokens of the form `<namespace>/<account>/<uid>`.
struct Cluster;

#[tonic::async_trait]
impl PodReviewer for Cluster {
    async fn review(
        &self,
        request: Request<ReviewRequest>,
    ) -> Result<Response<ReviewedPod>, Status> {
        let token = request.into_inner().token;
        let parts: Vec<&str> = token.split('/').collect();
        let [namespace, account, uid] = parts.as_slice() else {
            return Err(Status::unauthenticated("token has expired"));
        };
        Ok(Response::new(ReviewedPod {
            uid: (*uid).to_owned(),
            name: "orders-1".into(),
            namespace: (*namespace).to_owned(),
            account: (*account).to_owned(),
            ..ReviewedPod::default()
        }))
    }
}

async fn site(with_cluster: bool) -> TestSite {
    let cluster = ClusterFile { gateway_account: "isthmus-gateway".into() };
    TestSite::with("west", |file| file.cluster = with_cluster.then_some(cluster)).await
}

async fn review(site: &TestSite) {
    let socket = RealNet.bind_unix(&site.run_dir().join("reviewer.sock"), 0o600).await.unwrap();
    let server = Server::builder()
        .serve_with_incoming(PodReviewerServer::new(Cluster), unix::incoming(socket));
    tokio::spawn(server);
}

fn bearing<T>(token: Option<&str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

async fn describe(site: &TestSite, token: Option<&str>) -> Result<Description, Status> {
    let channel = site.join_channel(site.root_pin());
    let mut client = WorkloadIdentityClient::new(channel);
    Ok(client.describe(bearing(token, v1::DescribeRequest {})).await?.into_inner())
}

async fn issue(site: &TestSite, token: Option<&str>) -> Result<Svid, Status> {
    let (key, csr) = tls::new_key_and_csr().unwrap();
    let mut client = WorkloadIdentityClient::new(site.join_channel(site.root_pin()));
    let request = v1::IssueRequest { csr, ..v1::IssueRequest::default() };
    let issued = client.issue(bearing(token, request)).await?.into_inner();
    Ok(svid(&issued.chain, &key))
}

#[test]
fn a_pod_gets_the_identity_of_its_service_account() {
    run(async {
        let site = site(true).await;
        review(&site).await;
        let token = format!("shop/orders/{POD}");
        let described = describe(&site, Some(&token)).await.unwrap();
        assert_eq!(described.spiffe_id, "spiffe://west.example/ns/shop/sa/orders");
        assert_eq!(described.node, POD);
        assert_eq!(described.site.unwrap().federation_address, "", "only gateways are told");
        assert_eq!(described.gateways.len(), 1);
        let issued = issue(&site, Some(&token)).await.unwrap();
        assert_eq!(issued.id.as_str(), "spiffe://west.example/ns/shop/sa/orders");
        // What it got opens the door for those who have an identity.
        let mut discovery = DiscoveryClient::new(site.channel(issued));
        let (_tx, rx) = tokio::sync::mpsc::channel(1);
        discovery.stream(ReceiverStream::new(rx)).await.unwrap();

        let token = format!("isthmus-system/isthmus-gateway/{}", POD.replace("aa", "bb"));
        let described = describe(&site, Some(&token)).await.unwrap();
        assert!(described.spiffe_id.parse::<SpiffeId>().unwrap().is_gateway());
        assert_ne!(described.site.unwrap().federation_address, "");
        assert!(issue(&site, Some(&token)).await.unwrap().id.is_gateway());
    });
}

#[test]
fn nobody_else_gets_one() {
    run(async {
        let site = site(true).await;
        let good = format!("shop/orders/{POD}");
        let away = issue(&site, Some(&good)).await.unwrap_err();
        assert_eq!(reason(&away), "not_reviewed", "no reviewer");
        review(&site).await;
        let machine =
            site.join(&site.token(1, Duration::from_secs(60), false).await).await.unwrap();
        let long = "x".repeat(9 * 1024);
        let of_machine = format!("shop/orders/{}", machine.node);
        let table = [
            (None, "no_token"),
            (Some(""), "no_token"),
            (Some(long.as_str()), "no_token"),
            (Some("who knows"), "token_refused"),
            (Some("shop/orders/not-a-uid"), "not_reviewed"),
            (Some("isthmus-system/other/00000000-0000-4000-8000-0000000000cc"), "pod_denied"),
            (Some("kube-system/orders/00000000-0000-4000-8000-0000000000cc"), "pod_denied"),
            (Some("Shop/orders/00000000-0000-4000-8000-0000000000cc"), "pod_denied"),
            (Some(of_machine.as_str()), "pod_denied"),
        ];
        for (token, why) in table {
            let short = token.map(|token| &token[..token.len().min(40)]);
            let described = describe(&site, token).await.unwrap_err();
            assert_eq!(reason(&described), why, "{short:?}");
            assert_eq!(reason(&issue(&site, token).await.unwrap_err()), why, "{short:?}");
        }
        issue(&site, Some(&good)).await.unwrap();
        // A pod of another account under the same UID is not the same pod.
        let other = format!("shop/carts/{POD}");
        assert_eq!(reason(&issue(&site, Some(&other)).await.unwrap_err()), "pod_denied");
        // Revoked: the pod, and everybody of its identity.
        site.revoke(&format!("node:{POD}")).await;
        assert_eq!(reason(&issue(&site, Some(&good)).await.unwrap_err()), "peer_revoked");
        let second = format!("shop/orders/{}", POD.replace("aa", "bb"));
        issue(&site, Some(&second)).await.unwrap();
        site.revoke("spiffe://west.example/ns/shop/sa/orders").await;
        assert_eq!(reason(&issue(&site, Some(&second)).await.unwrap_err()), "identity_revoked");
    });
}

#[test]
fn a_site_without_a_cluster_asks_nobody() {
    run(async {
        let site = site(false).await;
        review(&site).await;
        let token = format!("shop/orders/{POD}");
        assert_eq!(reason(&issue(&site, Some(&token)).await.unwrap_err()), "no_cluster");
    });
}
