use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::testing::{Authority, credentials, trust};

type Client = io::Result<ClientStream<DuplexStream>>;
type Server = io::Result<ServerStream<DuplexStream>>;

/// Both ends of one handshake, and one byte each way: a client learns with
/// the first read that its certificate was refused.
async fn handshake(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> (Client, Server) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    tokio::join!(
        async {
            let mut stream = connect(client, near).await?;
            stream.write_u8(1).await?;
            stream.read_u8().await?;
            Ok(stream)
        },
        async {
            let mut stream = accept(server, far).await?;
            stream.read_u8().await?;
            stream.write_u8(1).await?;
            Ok(stream)
        }
    )
}

fn code<T>(result: &io::Result<T>) -> Option<&'static str> {
    verify_error(result.as_ref().err()?).map(|error| error.code())
}

#[tokio::test]
async fn a_handshake_proves_both_sides() {
    let east = Authority::new("east.example");
    let server = credentials(&east, &east.gateway(), &[&east]);
    let client = credentials(&east, &east.workload("checkout"), &[&east]);
    let allowed = Allowed::Neighbour(east.domain.clone());
    let gateway = Allowed::Exactly(east.gateway());
    let (near, far) = handshake(
        client.client(b"x/1", gateway.clone()),
        server.server(&[b"y/1", b"x/1"], allowed.clone()),
    )
    .await;
    let (near, far) = (near.unwrap(), far.unwrap());
    let (near, far) = (near.get_ref().1, far.get_ref().1);
    assert_eq!(near.alpn_protocol(), Some(&b"x/1"[..]));
    assert_eq!(near.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = near.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(near.tls13_tickets_received(), 0);
    assert_eq!(peer_of(near, &client, Side::Server, &gateway).unwrap().id, east.gateway());
    let peer = peer_of(far, &server, Side::Client, &allowed).unwrap();
    assert_eq!(peer.id, east.workload("checkout"));
    // The leaf and the issuing CA, not the root.
    assert_eq!(chain_of(far).len(), 2);
}

#[tokio::test]
async fn each_refusal_has_its_code_on_the_side_that_refuses() {
    let east = Authority::new("east.example");
    let west = Authority::new("west.example");
    let forged = Authority::new("east.example");
    let near = credentials(&east, &east.workload("checkout"), &[&east]);
    let neighbour = Allowed::Neighbour(east.domain.clone());
    let gateway = |authority: &Authority| Allowed::Exactly(authority.gateway());

    // What the client refuses in a server.
    let expired = east.svid_for(&east.gateway(), Duration::ZERO);
    let servers = [
        (
            credentials(&west, &west.gateway(), &[&east]),
            gateway(&west),
            "peer_unknown_trust_domain",
        ),
        (credentials(&forged, &east.gateway(), &[&east]), gateway(&east), "peer_untrusted_chain"),
        (credentials(&west, &east.gateway(), &[&east]), gateway(&east), "peer_untrusted_chain"),
        (credentials(&east, &east.workload("a"), &[&east]), gateway(&east), "peer_not_allowed"),
        (Credentials::new(Some(expired), trust(&[&east])), gateway(&east), "peer_outside_validity"),
    ];
    for (server, allowed, expected) in servers {
        let (client, _) =
            handshake(near.client(b"x", allowed), server.server(&[b"x"], neighbour.clone())).await;
        assert_eq!(code(&client), Some(expected), "{client:?}");
    }

    // What the server refuses in a client.
    let server = credentials(&east, &east.gateway(), &[&east, &west]);
    let clients = [
        (credentials(&west, &west.workload("a"), &[&east]), "peer_not_allowed"),
        (credentials(&west, &east.workload("a"), &[&east]), "peer_untrusted_chain"),
        (Credentials::new(None, trust(&[&east])), "peer_no_certificate"),
    ];
    for (client, expected) in clients {
        let config = client.client(b"x", gateway(&east));
        let (client, refused) = handshake(config, server.server(&[b"x"], neighbour.clone())).await;
        assert_eq!(code(&refused), Some(expected), "{refused:?}");
        assert!(client.is_err());
    }
}

#[tokio::test]
async fn no_common_protocol_is_no_session() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let allowed = Allowed::TrustDomain(east.domain.clone());
    let mut silent = (*held.client(b"x", allowed.clone())).clone();
    silent.alpn_protocols.clear();
    let clients = [held.client(b"other", allowed.clone()), Arc::new(silent)];
    for client in clients {
        let (client, server) = handshake(client, held.server(&[b"x"], allowed.clone())).await;
        assert!(client.is_err());
        assert!(server.is_err());
    }
}

#[tokio::test]
async fn new_handshakes_see_the_newest_certificate_and_trust() {
    let east = Authority::new("east.example");
    let renewed = Authority::new("east.example");
    let server = credentials(&east, &east.gateway(), &[&east]);
    let client = credentials(&east, &east.workload("a"), &[&east]);
    let mut changes = client.changed();
    let near = client.client(b"x", Allowed::Exactly(east.gateway()));
    let far = server.server(&[b"x"], Allowed::Neighbour(east.domain.clone()));
    let works = || async {
        let (near, far) = handshake(near.clone(), far.clone()).await;
        near.is_ok() && far.is_ok()
    };
    assert!(works().await);
    server.replace_svid(renewed.svid(&renewed.gateway()));
    assert!(!works().await);
    client.replace_trust(trust(&[&renewed]));
    changes.changed().await.unwrap();
    assert!(works().await, "the server still knows the client's old lineage");
    server.replace_trust(trust(&[&renewed]));
    assert!(!works().await);
    client.replace_svid(renewed.svid(&renewed.workload("a")));
    assert!(works().await);
}

#[tokio::test]
async fn an_svid_with_a_foreign_key_is_not_taken() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let before = held.svid().unwrap();
    let mut wrong = east.svid(&east.gateway());
    wrong.key = east.svid(&east.gateway()).key;
    assert!(held.try_replace_svid(wrong).is_err());
    assert_eq!(held.svid().unwrap().chain, before.chain);
}

#[tokio::test]
async fn the_join_door_is_known_by_its_root_alone() {
    let east = Authority::new("east.example");
    let other = Authority::new("east.example");
    let door = credentials(&east, &east.gateway(), &[&east]).join_server();
    let gateway = Allowed::Exactly(east.gateway());
    let cases = [
        (east.pin(), gateway.clone(), None),
        (other.pin(), gateway, Some("peer_untrusted_chain")),
        (east.pin(), Allowed::Exactly(east.workload("a")), Some("peer_not_allowed")),
        (east.pin(), Allowed::Known, Some("peer_not_an_svid")),
    ];
    for (pin, allowed, expected) in cases {
        let client = pinned_client(mesh_api::ALPN_JOIN, pin, allowed);
        let (client, server) = handshake(client, door.clone()).await;
        assert_eq!(code(&client), expected, "{client:?}");
        assert_eq!(server.is_ok(), expected.is_none());
    }
    // A root that the chain does not lead to convinces nobody: a thief's own
    // chain with the true root appended.
    let mut chain = other.svid(&other.gateway()).chain;
    chain.push(east.root());
    let mut svid = other.svid(&other.gateway());
    let key = svid.key.clone_key();
    chain[0] = svid.chain[0].clone();
    svid = Svid::from_der(chain, key).unwrap();
    let thief = Credentials::new(Some(svid), Trust::default()).join_server();
    let client = pinned_client(mesh_api::ALPN_JOIN, east.pin(), Allowed::Exactly(east.gateway()));
    let (client, _) = handshake(client, thief).await;
    assert_eq!(code(&client), Some("peer_untrusted_chain"), "{client:?}");
}

#[tokio::test]
async fn a_connection_ends_with_what_proved_its_peer() {
    let east = Authority::new("east.example");
    let held = credentials(&east, &east.gateway(), &[&east]);
    let short = east.svid_for(&east.workload("a"), Duration::from_secs(4));
    let long = east.svid(&east.workload("b"));
    for (svid, expected) in [(short, "has ended"), (long, "peer_unknown_trust_domain")] {
        let peer = held.verify(&svid.chain, Side::Client, &Allowed::Known).unwrap();
        let (near, _far) = tokio::io::duplex(64);
        let mut proved = Proved::new(near, held.clone(), peer, svid.chain);
        let credentials = held.clone();
        if expected.starts_with("peer") {
            tokio::spawn(async move { credentials.replace_trust(Trust::default()) });
        }
        let error = proved.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(proved.write_u8(1).await.is_err());
    }
}

#[test]
fn requests_name_nobody() {
    let (key, csr) = new_key_and_csr().unwrap();
    assert!(aws_lc_rs::sign::any_ecdsa_type(&key).is_ok());
    let params = rcgen::CertificateSigningRequestParams::from_der(&csr.into()).unwrap();
    assert!(params.params.subject_alt_names.is_empty());
    assert!(params.params.distinguished_name.iter().next().is_none());
}
