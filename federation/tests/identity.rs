//! Machines come in, renew, get certificates, are copied, and leave: over
//! real sockets, with every refusal by its stable reason.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::atomic::Ordering, time::Duration};

use common::{Machine, TestSite, copy, reason, run, svid};
use mesh_api::v1::{
    self, discovery_client::DiscoveryClient, node_identity_client::NodeIdentityClient,
    registry_client::RegistryClient, workload_identity_client::WorkloadIdentityClient,
};
use mesh_core::{
    SpiffeId,
    token::{Purpose, Token},
};
use mesh_runtime::clock::unix_millis;
use mesh_tunnel::{Svid, tls, unix};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const MINUTE: Duration = Duration::from_secs(60);

fn identity_client(site: &TestSite, svid: &Svid) -> NodeIdentityClient<Channel> {
    NodeIdentityClient::new(site.channel(copy(svid)))
}

async fn renew(site: &TestSite, with: &Svid, boot: &str) -> Result<Svid, Status> {
    let (key, csr) = tls::new_key_and_csr().unwrap();
    let request = v1::RenewNodeRequest { csr, boot_id: boot.into(), machine_id: "m1".into() };
    let issued = identity_client(site, with).renew_node(request).await?.into_inner();
    Ok(svid(&issued.chain, &key))
}

async fn issue(site: &TestSite, with: &Svid, ns: &str, account: &str) -> Result<Svid, Status> {
    let (key, csr) = tls::new_key_and_csr().unwrap();
    let (namespace, account) = (ns.to_owned(), account.to_owned());
    let request = v1::IssueWorkloadRequest { csr, namespace, account, ..Default::default() };
    let issued = identity_client(site, with).issue_workload(request).await?.into_inner();
    Ok(svid(&issued.chain, &key))
}

async fn joined(site: &TestSite) -> Machine {
    let token = site.token(1, MINUTE, false).await;
    site.join(&token).await.unwrap()
}

#[test]
fn a_machine_joins_renews_gets_certificates_and_leaves() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let answer = &machine.answer;
        assert_eq!(answer.version, 1);
        assert_eq!(
            machine.svid.id.as_str(),
            format!("spiffe://west.example/node/{}", machine.node)
        );
        assert_eq!(answer.grants.as_ref().unwrap().services, ["orders.shop"]);
        assert_eq!(answer.bundles.len(), 1);
        assert_eq!(answer.gateways[0].id, "gw1");
        let described = answer.site.as_ref().unwrap();
        assert_eq!(described.name, "west");
        assert_eq!(described.federation_address, "", "only gateways are told");

        let renewed = renew(&site, &machine.svid, "boot-1").await.unwrap();
        assert_eq!(renewed.id, machine.svid.id);
        let workload = issue(&site, &renewed, "shop", "orders").await.unwrap();
        assert_eq!(workload.id.as_str(), "spiffe://west.example/ns/shop/sa/orders");
        check_leaf(&workload, &machine.node, 86_400);
        check_leaf(&renewed, &machine.node, 30 * 86_400);
        for (ns, account) in [("shop", "other"), ("other", "orders"), ("isthmus-system", "gateway")]
        {
            let refused = issue(&site, &renewed, ns, account).await.unwrap_err();
            assert_eq!(reason(&refused), "not_granted", "{ns}/{account}");
        }

        identity_client(&site, &renewed).leave_node(v1::LeaveNodeRequest {}).await.unwrap();
        let state = site.site().authority.state();
        assert!(state.nodes.is_empty());
        assert!(state.revocations.contains_key(&format!("node:{}", machine.node)));
        // Its certificate is of no use any more, not even to connect.
        assert!(renew(&site, &renewed, "boot-1").await.is_err());
    });
}

/// Everything that a leaf must be.
fn check_leaf(svid: &Svid, node: &str, life_s: i64) {
    let (_, leaf) = X509Certificate::from_der(&svid.chain[0]).unwrap();
    let (_, issuing) = X509Certificate::from_der(&svid.chain[1]).unwrap();
    leaf.verify_signature(Some(issuing.public_key())).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(san.value.general_names, [GeneralName::URI(svid.id.as_str())]);
    assert_eq!(leaf.subject().iter_common_name().next().unwrap().as_str().unwrap(), node);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && extended.other.is_empty());
    assert!(!leaf.is_ca() && leaf.name_constraints().unwrap().is_none());
    assert_eq!(leaf.raw_serial().len(), 16);
    assert!(leaf.raw_serial()[0] < 0x80, "a positive number");
    let now = i64::try_from(mesh_runtime::clock::now_unix().as_secs()).unwrap();
    let (begin, end) =
        (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    assert!((now - begin - 600).abs() < 60, "backdated ten minutes");
    assert!((end - now - life_s).abs() < 60, "lives as long as it should");
    let constraints = issuing.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca && constraints.path_len_constraint == Some(0));
}

#[test]
fn each_token_that_does_not_hold_is_refused_for_its_own_reason() {
    run(async {
        let site = TestSite::new("west").await;
        let csr = || tls::new_key_and_csr().unwrap().1;

        let once = site.token(1, MINUTE, false).await;
        site.join(&once).await.unwrap();
        let refused = site.ask_to_join(&once, csr()).await.unwrap_err();
        assert_eq!(reason(&refused), "token_used_up", "{refused}");

        let mut guessed = site.token(1, MINUTE, false).await;
        guessed.secret[0] ^= 1;
        let unknown = Token { id: "no-such-id".into(), ..guessed.clone() };
        for wrong in [guessed, unknown] {
            let refused = site.ask_to_join(&wrong, csr()).await.unwrap_err();
            assert_eq!(reason(&refused), "token_unknown");
        }

        let short = site.token(1, Duration::from_secs(20), false).await;
        site.skew.store(30, Ordering::SeqCst);
        let refused = site.ask_to_join(&short, csr()).await.unwrap_err();
        assert_eq!(reason(&refused), "token_expired", "{refused}");
        site.skew.store(0, Ordering::SeqCst);

        let revoked = site.token(1, MINUTE, false).await;
        admin(&site)
            .await
            .revoke_token(v1::RevokeTokenRequest { id: revoked.id.to_string() })
            .await
            .unwrap();
        let refused = site.ask_to_join(&revoked, csr()).await.unwrap_err();
        assert_eq!(reason(&refused), "token_revoked");

        let request = v1::CreateLinkTokenRequest { site: "east".into(), ttl_s: 60 };
        let link = admin(&site).await.create_link_token(request).await.unwrap().into_inner().token;
        let link = Token::decode(&link, Purpose::Link).unwrap();
        let refused = site.ask_to_join(&link, csr()).await.unwrap_err();
        assert_eq!(reason(&refused), "token_wrong_purpose");

        assert_eq!(site.site().authority.state().nodes.len(), 1, "nobody else came in");
    });
}

#[test]
fn a_token_of_another_site_opens_nothing() {
    run(async {
        let (west, east) = (TestSite::new("west").await, TestSite::new("east").await);
        let foreign = east.token(1, MINUTE, false).await;
        let csr = || tls::new_key_and_csr().unwrap().1;
        // As its bearer would use it: its secret is not sent to another root.
        assert!(is_cut(&west.ask_to_join(&foreign, csr()).await.unwrap_err()));
        // As a thief would.
        let pin = west.token(1, MINUTE, false).await.root_spki_sha256;
        let stolen = Token { root_spki_sha256: pin, ..foreign.clone() };
        let refused = west.ask_to_join(&stolen, csr()).await.unwrap_err();
        assert_eq!(reason(&refused), "token_unknown", "{refused}");
        assert!(west.site().authority.state().nodes.is_empty());
        east.join(&foreign).await.expect("it is still good where it is from");
    });
}

#[test]
fn requests_that_are_not_in_order_use_nothing_up() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(1, MINUTE, false).await;
        let good = || v1::JoinNodeRequest {
            versions: vec![1],
            token_id: token.id.to_string(),
            token_secret: token.secret.to_vec(),
            csr: tls::new_key_and_csr().unwrap().1,
            time_unix_ms: unix_millis(),
            ..Default::default()
        };
        let hour = 3_600_000;
        let mut flipped = good().csr;
        *flipped.last_mut().unwrap() ^= 1;
        let cases: [(&str, v1::JoinNodeRequest); 6] = [
            ("unsupported_version", v1::JoinNodeRequest { versions: vec![2, 3], ..good() }),
            ("clock_skew", v1::JoinNodeRequest { time_unix_ms: unix_millis() - hour, ..good() }),
            ("clock_skew", v1::JoinNodeRequest { time_unix_ms: unix_millis() + hour, ..good() }),
            ("bad_request", v1::JoinNodeRequest { csr: vec![0; 10], ..good() }),
            ("bad_request", v1::JoinNodeRequest { csr: flipped, ..good() }),
            (
                "bad_key",
                v1::JoinNodeRequest { csr: csr_of(&rcgen::PKCS_ECDSA_P521_SHA512), ..good() },
            ),
        ];
        for (expected, request) in cases {
            let refused = site.send_join(token.root_spki_sha256, request).await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{refused}");
            if expected == "clock_skew" {
                let shown = refused.message();
                assert_eq!(shown.matches("T").count(), 2, "both times: {shown}");
            }
        }
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let token = site.token(1, MINUTE, false).await;
            site.ask_to_join(&token, csr_of(algorithm)).await.unwrap();
        }
        site.join(&token).await.expect("the token was not used up");
    });
}

/// A request with a key of some kind, and with names that must not matter.
fn csr_of(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let mut params = rcgen::CertificateParams::default();
    let uri = "spiffe://west.example/ns/isthmus-system/sa/gateway".try_into().unwrap();
    params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn an_answer_that_got_lost_can_be_asked_for_again() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(1, MINUTE, false).await;
        let (key, csr) = tls::new_key_and_csr().unwrap();
        let first = site.ask_to_join(&token, csr.clone()).await.unwrap();
        let again = site.ask_to_join(&token, csr).await.unwrap();
        assert_eq!(first.node, again.node);
        assert_ne!(first.chain[0], again.chain[0]);
        assert_eq!(site.site().authority.state().tokens[&*token.id].used_by.len(), 1);
        renew(&site, &svid(&again.chain, &key), "boot-1").await.unwrap();
    });
}

#[test]
fn names_in_a_request_are_ignored() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(1, MINUTE, false).await;
        let answer =
            site.ask_to_join(&token, csr_of(&rcgen::PKCS_ECDSA_P256_SHA256)).await.unwrap();
        let (_, leaf) = X509Certificate::from_der(&answer.chain[0]).unwrap();
        let san = leaf.subject_alternative_name().unwrap().unwrap();
        let own = format!("spiffe://west.example/node/{}", answer.node);
        assert_eq!(san.value.general_names, [GeneralName::URI(&own)]);
    });
}

#[test]
fn a_token_lets_in_no_more_than_it_says_when_all_come_at_once() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(3, MINUTE, false).await;
        let all = futures_util::future::join_all((0..12).map(|_| site.join(&token))).await;
        let refused = all.iter().filter_map(|result| result.as_ref().err());
        assert!(refused.clone().all(|status| reason(status) == "token_used_up"));
        assert_eq!(refused.count(), 9);
        assert_eq!(site.site().authority.state().nodes.len(), 3);
    });
}

#[test]
fn a_copied_state_directory_is_noticed_and_resolved() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let stolen = copy(&machine.svid);
        let second = renew(&site, &machine.svid, "boot-1").await.unwrap();
        let third = renew(&site, &second, "boot-1").await.unwrap();
        // The copy comes with what was replaced twice.
        let refused = renew(&site, &stolen, "boot-2").await.unwrap_err();
        assert_eq!(reason(&refused), "node_duplicated", "{refused}");
        assert!(refused.message().contains("meshctl node resolve"), "{refused}");
        for svid in [&third, &stolen] {
            let refused = issue(&site, svid, "shop", "orders").await.unwrap_err();
            assert_eq!(reason(&refused), "node_duplicated");
        }
        let status =
            admin(&site).await.site_status(v1::SiteStatusRequest {}).await.unwrap().into_inner();
        assert!(status.warnings[0].contains("exists twice"), "{:?}", status.warnings);
        assert_eq!(status.nodes[0].state, "duplicated");

        let wrong = v1::ResolveNodeRequest { id: machine.node.clone(), keep_serial: "ff".into() };
        let refused = admin(&site).await.resolve_node(wrong).await.unwrap_err();
        assert_eq!(reason(&refused), "invalid_argument");
        let keep = v1::ResolveNodeRequest { id: machine.node.clone(), keep_serial: String::new() };
        admin(&site).await.resolve_node(keep).await.unwrap();
        issue(&site, &third, "shop", "orders").await.unwrap();
        let refused = issue(&site, &stolen, "shop", "orders").await.unwrap_err();
        assert!(is_cut(&refused), "not even a connection: {refused}");
    });
}

#[test]
fn a_lost_renewal_is_repeated_with_the_previous_certificate() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let lost = renew(&site, &machine.svid, "boot-1").await.unwrap();
        let again = renew(&site, &machine.svid, "boot-1").await.unwrap();
        renew(&site, &again, "boot-1").await.unwrap();
        assert!(renew(&site, &lost, "boot-1").await.is_err());
    });
}

#[test]
fn every_door_is_for_its_own_visitors() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(1, MINUTE, false).await;
        let machine = site.join(&token).await.unwrap();

        // Without a certificate there is only the join service.
        let anonymous = site.join_channel(token.root_spki_sha256);
        let request = v1::RenewNodeRequest::default();
        let refused = NodeIdentityClient::new(anonymous).renew_node(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        // With one there is none.
        let known = site.channel(copy(&machine.svid));
        let mut join = v1::join_client::JoinClient::new(known);
        let refused = join.join_node(v1::JoinNodeRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");

        // A workload is not a node.
        let workload = issue(&site, &machine.svid, "shop", "orders").await.unwrap();
        let refused = renew(&site, &workload, "boot-1").await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused)),
            (Code::PermissionDenied, "role_denied".into())
        );
        let mut registry = RegistryClient::new(site.channel(workload));
        let refused = registry.session(tokio_stream::empty()).await.unwrap_err();
        assert_eq!(reason(&refused), "role_denied");
    });
}

#[test]
fn a_foreign_certificate_does_not_even_connect() {
    run(async {
        let (west, east) = (TestSite::new("west").await, TestSite::new("east").await);
        let machine = joined(&east).await;
        let refused = renew(&west, &machine.svid, "boot-1").await.unwrap_err();
        assert!(is_cut(&refused), "{refused}");
        // And a client does not send its secret to a root that it does not pin.
        let token = west.token(1, MINUTE, false).await;
        let wrong = Token { root_spki_sha256: [1; 32], ..token.clone() };
        let csr = tls::new_key_and_csr().unwrap().1;
        assert!(is_cut(&west.ask_to_join(&wrong, csr).await.unwrap_err()));
        west.join(&token).await.unwrap();
    });
}

#[test]
fn garbage_on_the_port_is_answered_by_closing_it() {
    run(async {
        let site = TestSite::new("west").await;
        let garbage: [&[u8]; 4] =
            [b"GET / HTTP/1.1\r\n\r\n", &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 2000], &[0xff; 70_000]];
        for bytes in garbage {
            let mut stream = TcpStream::connect(site.running.grpc).await.unwrap();
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let closed = tokio::time::timeout(MINUTE, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "the connection stays open");
        }
        joined(&site).await;
    });
}

#[test]
fn what_was_decided_is_known_after_a_restart() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(1, MINUTE, false).await;
        let machine = site.join(&token).await.unwrap();
        let renewed = renew(&site, &machine.svid, "boot-1").await.unwrap();
        let site = site.restart().await;
        let csr = tls::new_key_and_csr().unwrap().1;
        let refused = site.ask_to_join(&token, csr).await.unwrap_err();
        assert_eq!(reason(&refused), "token_used_up");
        issue(&site, &renewed, "shop", "orders").await.unwrap();
        let serial =
            site.site().authority.state().nodes.values().next().unwrap().current.serial.clone();
        let record = site.site().authority.store().certificate(&serial).unwrap();
        assert!(record.actor.ends_with(&machine.node), "who asked for it: {}", record.actor);
    });
}

#[test]
fn a_gateway_gets_its_identity_beside_federation_or_under_a_grant() {
    run(async {
        let site = TestSite::new("west").await;
        let socket = site.run_dir().join("gateway-identity.sock");
        let mut beside = WorkloadIdentityClient::new(unix::channel(&socket).await.unwrap());
        let described = beside.describe(v1::DescribeRequest {}).await.unwrap().into_inner();
        let gateway = SpiffeId::gateway(&site.config.trust_domain);
        assert_eq!(
            (described.spiffe_id.as_str(), described.gateway.as_str()),
            (gateway.as_str(), "gw1")
        );
        assert!(!described.site.unwrap().federation_address.is_empty());
        let (key, csr) = tls::new_key_and_csr().unwrap();
        let issued = beside
            .issue(v1::IssueRequest { csr, ..Default::default() })
            .await
            .unwrap()
            .into_inner();
        let beside = svid(&issued.chain, &key);
        assert_eq!(beside.id, gateway);
        // It is no node, and cannot become one.
        let refused = renew(&site, &beside, "boot-1").await.unwrap_err();
        assert_eq!(reason(&refused), "role_denied");

        let token = site.token(1, MINUTE, true).await;
        let machine = site.join(&token).await.unwrap();
        assert!(!machine.answer.site.unwrap().federation_address.is_empty());
        let elsewhere = issue(&site, &machine.svid, "isthmus-system", "gateway").await.unwrap();
        assert_eq!(elsewhere.id, gateway);
        for account in ["federation", "other"] {
            let refused = issue(&site, &machine.svid, "isthmus-system", account).await.unwrap_err();
            assert_eq!(reason(&refused), "not_granted");
        }
    });
}

/// The connection failed: no answer of federation.
fn is_cut(status: &Status) -> bool {
    status.message().contains("transport error") || status.code() == Code::Unavailable
}

async fn admin(site: &TestSite) -> v1::admin_client::AdminClient<Channel> {
    let socket = site.run_dir().join("federation.sock");
    v1::admin_client::AdminClient::new(unix::channel(&socket).await.unwrap())
}

#[test]
fn an_operator_makes_lists_and_revokes() {
    run(async {
        let site = TestSite::new("west").await;
        let mut admin = admin(&site).await;
        let asked = v1::CreateTokenRequest {
            namespace: "shop".into(),
            account: "orders".into(),
            uses: 2,
            ttl_s: 60,
            ..Default::default()
        };
        let made = admin.create_token(asked.clone()).await.unwrap().into_inner();
        let token = Token::decode(&made.token, Purpose::Node).unwrap();
        let machine = site.join(&token).await.unwrap();
        let listed = admin.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
        assert_eq!((listed[0].uses_left, listed[0].state.as_str()), (1, "open"));
        assert_eq!(listed[0].redeemed_by, [format!("node:{}", machine.node)]);
        assert_eq!(listed[0].grants.as_ref().unwrap().services, ["*.shop"]);

        let cases = [
            (
                "reserved_namespace",
                v1::CreateTokenRequest { namespace: "isthmus-system".into(), ..asked.clone() },
            ),
            (
                "reserved_namespace",
                v1::CreateTokenRequest { services: vec!["a.kube-system".into()], ..asked.clone() },
            ),
            (
                "invalid_argument",
                v1::CreateTokenRequest { namespace: "No".into(), ..asked.clone() },
            ),
            ("invalid_argument", v1::CreateTokenRequest { uses: 1_000_000, ..asked.clone() }),
            ("invalid_argument", v1::CreateTokenRequest { ttl_s: u64::MAX, ..asked.clone() }),
            ("invalid_argument", v1::CreateTokenRequest { services: vec!["*".into()], ..asked }),
        ];
        for (expected, request) in cases {
            let refused = admin.create_token(request).await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{refused}");
        }

        let revoke = |subject: &str| v1::RevokeRequest { subject: subject.into(), force: false };
        for (expected, subject) in [
            ("invalid_argument", "orders"),
            ("invalid_argument", "serial:XYZ"),
            ("invalid_argument", "spiffe://west.example/ns/isthmus-system/sa/federation"),
            ("invalid_argument", "spiffe://west.example/ns/isthmus-system/sa/gateway"),
            ("not_found", "node:00000000-0000-4000-8000-000000000000"),
        ] {
            let refused = admin.revoke(revoke(subject)).await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{subject}: {refused}");
        }
        let gateway = "spiffe://west.example/ns/isthmus-system/sa/gateway";
        let force = v1::RevokeRequest { subject: gateway.into(), force: true };
        admin.revoke(force).await.unwrap();
        let reinstate = |subject: &str| v1::ReinstateRequest { subject: subject.into() };
        admin.reinstate(reinstate(gateway)).await.unwrap();
        for (expected, subject) in [
            ("not_found", gateway),
            ("invalid_argument", "node:00000000-0000-4000-8000-000000000000"),
        ] {
            let refused = admin.reinstate(reinstate(subject)).await.unwrap_err();
            assert_eq!(reason(&refused), expected, "{subject}: {refused}");
        }
        admin.revoke(revoke(&format!("node:{}", machine.node))).await.unwrap();
        assert!(
            admin.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner().nodes.is_empty()
        );
        assert!(renew(&site, &machine.svid, "boot-1").await.is_err());
        admin.read_snapshot(v1::ReadSnapshotRequest {}).await.unwrap();
        admin.stat(v1::StatRequest::default()).await.unwrap();
    });
}

#[test]
fn nothing_is_issued_to_an_identity_that_was_taken_back() {
    run(async {
        let site = TestSite::new("west").await;
        let mut admin = admin(&site).await;
        let machine = joined(&site).await;
        let gateway = site.join(&site.token(1, MINUTE, true).await).await.unwrap();
        let socket = site.run_dir().join("gateway-identity.sock");
        let beside = WorkloadIdentityClient::new(unix::channel(&socket).await.unwrap());
        let issue_beside = async || {
            let (_, csr) = tls::new_key_and_csr().unwrap();
            beside.clone().issue(v1::IssueRequest { csr, ..Default::default() }).await.map(drop)
        };
        let orders = "spiffe://west.example/ns/shop/sa/orders";
        let gateways = "spiffe://west.example/ns/isthmus-system/sa/gateway";
        for subject in [orders, gateways] {
            let revoke = v1::RevokeRequest { subject: subject.into(), force: true };
            admin.revoke(revoke).await.unwrap();
        }
        for refused in [
            issue(&site, &machine.svid, "shop", "orders").await.map(drop),
            issue(&site, &gateway.svid, "isthmus-system", "gateway").await.map(drop),
            issue_beside().await,
        ] {
            assert_eq!(reason(&refused.unwrap_err()), "identity_revoked");
        }
        renew(&site, &machine.svid, "boot-1").await.expect("the machine is not revoked");
        for subject in [orders, gateways] {
            let reinstate = v1::ReinstateRequest { subject: subject.into() };
            admin.reinstate(reinstate).await.unwrap();
        }
        issue(&site, &machine.svid, "shop", "orders").await.unwrap();
        issue(&site, &gateway.svid, "isthmus-system", "gateway").await.unwrap();
        issue_beside().await.unwrap();
    });
}

/// An agent's session, kept open by the sender that is returned.
async fn session(
    site: &TestSite,
    svid: &Svid,
    boot: &str,
) -> (mpsc::Sender<v1::RegistryRequest>, tonic::Streaming<v1::RegistryReply>) {
    let (tx, rx) = mpsc::channel(4);
    let hello = v1::RegistryHello {
        versions: vec![1],
        boot_id: boot.into(),
        machine_id: "m1".into(),
        agent_version: "test".into(),
        ..Default::default()
    };
    let request = Some(v1::registry_request::Request::Hello(hello));
    tx.send(v1::RegistryRequest { sequence: 1, request }).await.unwrap();
    let mut client = RegistryClient::new(site.channel(copy(svid)));
    let mut replies = client.session(ReceiverStream::new(rx)).await.unwrap().into_inner();
    replies.message().await.unwrap().expect("hello is answered");
    (tx, replies)
}

#[test]
fn a_renewal_in_another_boot_than_the_live_session_is_a_copy() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let _session = session(&site, &machine.svid, "boot-1").await;
        renew(&site, &machine.svid, "boot-1").await.unwrap();
        let refused = renew(&site, &machine.svid, "boot-2").await.unwrap_err();
        assert_eq!(reason(&refused), "node_duplicated", "{refused}");
        assert!(refused.message().contains("boot-1"), "{refused}");
    });
}

#[test]
fn open_sessions_do_not_hold_up_the_end() {
    run(async {
        let site = TestSite::new("west").await;
        let machine = joined(&site).await;
        let workload = issue(&site, &machine.svid, "shop", "orders").await.unwrap();
        let (_agent, mut replies) = session(&site, &machine.svid, "boot-1").await;
        let (proxy, rx) = mpsc::channel(1);
        let subscribe = v1::Subscribe { versions: vec![1], ..Default::default() };
        let request = Some(v1::discovery_request::Request::Subscribe(subscribe));
        proxy.send(v1::DiscoveryRequest { request }).await.unwrap();
        let mut client = DiscoveryClient::new(site.channel(workload));
        let mut deltas = client.stream(ReceiverStream::new(rx)).await.unwrap().into_inner();
        deltas.message().await.unwrap().expect("the subscription is answered");
        let cut = site.drain.finish(MINUTE).await;
        assert_eq!(cut, 0);
        let rest = async {
            while let Ok(Some(_)) = replies.message().await {}
            while let Ok(Some(_)) = deltas.message().await {}
        };
        tokio::time::timeout(MINUTE, rest).await.expect("both streams have ended");
    });
}

/// Over real handshakes: what hangs on the old root is good until it is
/// retired, and for nothing afterwards.
#[test]
fn a_token_and_a_certificate_are_good_until_their_root_is_retired() {
    run(async {
        let site = TestSite::new("west").await;
        let token = site.token(9, MINUTE, false).await;
        let machine = site.join(&token).await.unwrap();
        let rotation = &site.running.admin.rotation;
        let ask = async |action: v1::RotationAction| {
            let request =
                v1::RotateRootRequest { action: action.into(), ..v1::RotateRootRequest::default() };
            rotation.ask("test", request).await.unwrap()
        };
        let until = async |phase: v1::RotationPhase| {
            for _ in 0..600 {
                if rotation.status().phase() == phase {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("never {phase:?}: {:?}", rotation.status());
        };
        let begun = ask(v1::RotationAction::Start).await;
        assert_eq!(begun.blockers.len(), 1, "{begun:?}");
        // It has no agent that could come along.
        ask(v1::RotationAction::Force).await;
        until(v1::RotationPhase::TurnOver).await;
        ask(v1::RotationAction::Pause).await;

        let late = site.join(&token).await.expect("the old root introduces the new one");
        assert_eq!(late.answer.bundles[0].roots.len(), 2);
        assert_eq!(late.svid.chain.len(), 3);
        let renewed = renew(&site, &machine.svid, "boot-1").await.unwrap();
        let status = rotation.status();
        assert_eq!((status.tokens, status.blockers.len()), (1, 0), "{status:?}");
        let trust = |roots: &[Vec<u8>]| {
            let roots = roots.iter().cloned().map(Into::into).collect();
            let domain = site.config.trust_domain.clone();
            let bundle = mesh_core::TrustBundle::of_roots(domain.clone(), roots);
            let bundles = [(domain, std::sync::Arc::new(bundle))].into_iter().collect();
            tls::Trust { bundles: std::sync::Arc::new(bundles), ..Default::default() }
        };
        // Who holds a certificate under it is told to renew; nobody else is.
        let bundle = site.site().authority.state().site().bundle.clone();
        let told = |svid: &Svid| {
            let mut trust = trust(&bundle.roots);
            let bundles = std::sync::Arc::make_mut(&mut trust.bundles);
            for own in bundles.values_mut() {
                *own = std::sync::Arc::new((&bundle).try_into().unwrap());
            }
            mesh_tunnel::Credentials::new(Some(copy(svid)), trust).retires_within()
        };
        assert_eq!(told(&machine.svid), Some(Duration::from_secs(3)));
        assert_eq!((told(&renewed), told(&late.svid)), (None, None));

        ask(v1::RotationAction::Resume).await;
        until(v1::RotationPhase::Unspecified).await;
        let refused = renew(&site, &machine.svid, "boot-1").await.unwrap_err();
        assert_eq!(reason(&refused).split(':').next(), Some("none"), "not even a handshake");
        renew(&site, &renewed, "boot-1").await.unwrap();
        let refused = site.join(&token).await.map(|machine| machine.node).unwrap_err();
        let mut why = String::new();
        let mut cause: Option<&dyn std::error::Error> = Some(&refused);
        while let Some(error) = cause {
            why = format!("{why}: {error}");
            cause = error.source();
        }
        assert!(why.contains("ask for a new token"), "{why}");
        let site = site.restart().await;
        renew(&site, &late.svid, "boot-1").await.unwrap();
    });
}
