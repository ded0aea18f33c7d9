//! Who may call whom, and who is who.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use mesh_api::v1;
use mesh_core::SpiffeId;
use mesh_tunnel::Svid;
use support::{
    DOMAIN, Proxy, Targets,
    apps::{AnyBody, App, fetch, full, get, http1},
    inbound_config, orders, orders_endpoints, outbound_config,
    pki::Authority,
    snapshot,
};

async fn hello(_request: Request<Incoming>) -> Response<AnyBody> {
    Response::new(full("hello"))
}

/// A pair where the destination presents `svid`, with this policy.
async fn pair(
    authority: &Authority,
    svid: Svid,
    policy: Option<v1::AuthorizationPolicy>,
) -> (Proxy, Proxy, App) {
    let app = App::start(hello).await;
    let destination = Proxy::start(authority, svid, inbound_config()).await;
    let source = Proxy::start(authority, authority.workload("checkout"), outbound_config()).await;
    let endpoints = orders_endpoints("one", destination.inbound(), Targets::all(app.addr));
    let service = v1::Service { policy, ..orders() };
    let snapshot = snapshot(authority, vec![service], endpoints);
    source.tell(&snapshot);
    destination.tell(&snapshot);
    (source, destination, app)
}

fn only(account: &str) -> Option<v1::AuthorizationPolicy> {
    let principal = v1::PrincipalMatch { account: account.into(), ..v1::PrincipalMatch::default() };
    Some(v1::AuthorizationPolicy { allow: vec![principal], ..Default::default() })
}

#[tokio::test]
async fn another_workload_of_the_same_domain_is_not_the_endpoint() {
    let authority = Authority::new(DOMAIN);
    let (source, _destination, _app) = pair(&authority, authority.workload("thief"), None).await;
    let (head, body) = fetch(source.http(), "http://orders.shop/").await;
    assert_eq!(head.status, 503);
    assert_eq!(head.headers["isthmus-error"], "peer_identity");
    assert!(!body.windows(5).any(|window| window == b"hello"));
    let metrics = source.metrics();
    let counted = "handshake_failure_total{direction=\"outbound\",reason=\"peer_not_allowed\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn a_certificate_of_ones_own_making_is_not_the_endpoint() {
    let authority = Authority::new(DOMAIN);
    let forger = Authority::new(DOMAIN);
    let (source, destination, _app) = pair(&authority, forger.workload("orders"), None).await;
    let (head, _) = fetch(source.http(), "http://orders.shop/").await;
    assert_eq!(head.headers["isthmus-error"], "peer_identity");
    let metrics = source.metrics();
    assert!(metrics.contains("reason=\"peer_untrusted_chain\"} 1"), "{metrics}");
    drop(destination);
}

#[tokio::test]
async fn a_caller_nobody_vouches_for_gets_nothing() {
    let authority = Authority::new(DOMAIN);
    let forger = Authority::new(DOMAIN);
    let (_, destination, app) = pair(&authority, authority.workload("orders"), None).await;
    let source = Proxy::start(&authority, forger.workload("checkout"), outbound_config()).await;
    let endpoints = orders_endpoints("one", destination.inbound(), Targets::all(app.addr));
    source.tell(&snapshot(&authority, vec![orders()], endpoints));
    let (head, _) = fetch(source.http(), "http://orders.shop/").await;
    assert!(head.status.is_server_error());
    let metrics = destination.metrics();
    assert!(metrics.contains("direction=\"inbound\",reason=\"peer_untrusted_chain\""), "{metrics}");
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn whom_no_rule_allows_is_told_so() {
    let authority = Authority::new(DOMAIN);
    for (policy, status) in [(only("checkout"), 200), (only("billing"), 403), (None, 200)] {
        let svid = authority.workload("orders");
        let (source, destination, app) = pair(&authority, svid, policy).await;
        let (head, body) = fetch(source.http(), "http://orders.shop/").await;
        assert_eq!(head.status, status);
        if status == 403 {
            assert_eq!(head.headers["isthmus-error"], "denied_no_rule");
            assert!(
                String::from_utf8_lossy(&body).contains("sa/checkout may not call orders.shop")
            );
            assert_eq!(app.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
            let metrics = destination.metrics();
            assert!(metrics.contains("reason=\"denied_no_rule\"} 1"), "{metrics}");
        }
    }
}

#[tokio::test]
async fn a_changed_policy_holds_for_sessions_that_are_open() {
    let authority = Authority::new(DOMAIN);
    let (source, destination, app) = pair(&authority, authority.workload("orders"), None).await;
    let mut client = http1(source.http()).await;
    let response = client.send_request(get("http://orders.shop/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(support::apps::read(response).await, "hello");
    let endpoints = orders_endpoints("one", destination.inbound(), Targets::all(app.addr));
    let service = v1::Service { policy: only("billing"), ..orders() };
    destination.tell(&snapshot(&authority, vec![service], endpoints));
    client.ready().await.unwrap();
    let response = client.send_request(get("http://orders.shop/")).await.unwrap();
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_caller_that_is_no_longer_believed_is_cut() {
    let authority = Authority::new(DOMAIN);
    let (source, destination, _app) = pair(&authority, authority.workload("orders"), None).await;
    let (head, _) = fetch(source.http(), "http://orders.shop/").await;
    assert_eq!(head.status, 200);
    let credentials = &destination.app.shared.credentials;
    let mut trust = credentials.trust();
    let revoked: SpiffeId = format!("spiffe://{DOMAIN}/ns/shop/sa/checkout").parse().unwrap();
    std::sync::Arc::make_mut(&mut trust.revocations).identities.insert(revoked);
    credentials.replace_trust(trust);
    let (head, body) = fetch(source.http(), "http://orders.shop/").await;
    assert!(head.status.is_server_error(), "{body:?}");
    assert_ne!(body, Bytes::from("hello"));
}

#[tokio::test]
async fn services_of_others_are_not_served() {
    let authority = Authority::new(DOMAIN);
    let (source, destination, app) = pair(&authority, authority.workload("orders"), None).await;
    // The source believes in an endpoint there that the destination does not have.
    let other = support::service("billing.shop", &[("http", 80, v1::Protocol::Http)]);
    let endpoint =
        support::endpoint("b", "billing.shop", "http", "orders", destination.inbound(), app.addr);
    source.tell(&snapshot(&authority, vec![other], vec![endpoint]));
    let (head, _) = fetch(source.http(), "http://billing.shop/").await;
    assert_eq!(head.headers["isthmus-error"], "no_endpoint");
    assert_eq!(app.connections.load(std::sync::atomic::Ordering::Relaxed), 0);
}
