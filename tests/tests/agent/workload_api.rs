//! The SPIFFE Workload API: who gets what, and when again.

use std::{os::unix::fs::MetadataExt, sync::Arc, time::Duration};

use isthmus_tests::pki::Ca;
use mesh_api::{
    spiffe::{
        JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest,
        X509svidRequest, X509svidResponse, spiffe_workload_api_client::SpiffeWorkloadApiClient,
    },
    v1,
};
use mesh_core::{Allowed, TrustBundle, TrustBundles, identity::Side, verify_peer};
use mesh_tunnel::{Svid, unix};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tonic::{Code, Request, Streaming, transport::Channel};
use vm_agent::{
    agent::Uplink,
    app::App,
    attest::{Account, Selector},
    config::Config,
};

use super::{config, joined, node, operator, played::serve_identities, run, start};

pub(crate) fn of_uid(uid: u32) -> Selector {
    Selector { user: Some(Account::Id(uid)), ..Selector::default() }
}

pub(crate) fn own_uid() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

pub(crate) async fn client(config: &Config) -> SpiffeWorkloadApiClient<Channel> {
    SpiffeWorkloadApiClient::new(unix::channel(&config.workload_socket()).await.unwrap())
}

pub(crate) fn asked<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn follow(config: &Config) -> Streaming<X509svidResponse> {
    let fetched = client(config).await.fetch_x509svid(asked(X509svidRequest {})).await;
    fetched.unwrap().into_inner()
}

/// Asks until there is an answer, as clients do.
async fn begin(config: &Config) -> (Streaming<X509svidResponse>, Svid) {
    loop {
        let mut answers = follow(config).await;
        match answers.message().await {
            Ok(answer) => return (answers, parsed(answer.unwrap())),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn next(answers: &mut Streaming<X509svidResponse>) -> Svid {
    parsed(answers.message().await.unwrap().unwrap())
}

fn parsed(answer: X509svidResponse) -> Svid {
    let [svid] = &answer.svids[..] else { panic!("one: {answer:?}") };
    // DER says itself where the next certificate begins.
    let mut chain = Vec::new();
    let mut rest = &svid.x509_svid[..];
    while !rest.is_empty() {
        let length = 4 + usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        assert_eq!(rest[..2], [0x30, 0x82], "a long SEQUENCE");
        chain.push(CertificateDer::from(rest[..length].to_vec()));
        rest = &rest[length..];
    }
    let key = PrivateKeyDer::Pkcs8(svid.x509_svid_key.clone().into());
    let parsed = Svid::from_der(chain, key).unwrap();
    assert_eq!(parsed.id.as_str(), svid.spiffe_id);
    believed(&parsed, &svid.bundle);
    parsed
}

/// Whoever has nothing but the answer can verify a peer with the same identity.
fn believed(svid: &Svid, root: &[u8]) {
    let domain = svid.id.trust_domain().clone();
    let roots = vec![CertificateDer::from(root.to_vec())];
    let bundle = TrustBundle::of_roots(domain.clone(), roots);
    let bundles = TrustBundles::from([(domain, Arc::new(bundle))]);
    let allowed = Allowed::Exactly(svid.id.clone());
    let now = UnixTime::now();
    verify_peer(&svid.chain, Side::Server, &bundles, &Default::default(), &allowed, now).unwrap();
}

pub(crate) fn connect(app: &App, channel: &Channel) {
    let connected = Uplink { channel: Some(channel.clone()), ..Uplink::default() };
    app.agent.uplink.send_replace(connected);
}

#[test]
fn who_is_attested_gets_certificates_and_new_ones_when_the_site_changes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![of_uid(own_uid())];
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let early = follow(&config).await.message().await.unwrap_err();
        assert!(early.message().contains("not connected to west"), "{early}");
        let (_identities, channel) = serve_identities(dir.path(), ca).await;
        connect(&app, &channel);
        let (mut answers, first) = begin(&config).await;
        assert_eq!(first.id.as_str(), "spiffe://west.example/ns/shop/sa/orders");
        let same = next(&mut follow(&config).await).await;
        assert_eq!(same.serial(), first.serial(), "one for all programs");

        // A linked site comes: whoever follows is told, with the certificate it has.
        let east = Ca::new("east.example").bundle();
        let member = app.agent.member().unwrap();
        let mut bundles = member.node().joined.bundles.clone();
        bundles.push(v1::Bundle::from(&east));
        assert!(member.refreshed(&app.agent.state, &bundles, &[]));
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.federated_bundles["spiffe://east.example"], east.roots[0].to_vec());
        let fetched = client(&config).await.fetch_x509_bundles(asked(X509BundlesRequest {})).await;
        let told = fetched.unwrap().into_inner().message().await.unwrap().unwrap();
        let mut domains: Vec<_> = told.bundles.keys().map(String::as_str).collect();
        domains.sort_unstable();
        assert_eq!(domains, ["spiffe://east.example", "spiffe://west.example"]);

        connect(&app, &channel);
        operator(&config).await.leave_site(v1::LeaveSiteRequest { force: true }).await.unwrap();
        let ended = answers.message().await.unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        app.stop().await;
    });
}

#[test]
fn who_is_not_attested_learns_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![
        of_uid(own_uid() + 1),
        Selector {
            user: Some(Account::Id(own_uid())),
            unit: Some("no-such-unit.service".into()),
            ..Selector::default()
        },
    ];
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let mut client = client(&config).await;
        let refused = client.fetch_x509svid(asked(X509svidRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = client.fetch_x509_bundles(asked(X509BundlesRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = client.fetch_jwtsvid(asked(JwtsvidRequest::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = client.fetch_jwt_bundles(asked(JwtBundlesRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let token = ValidateJwtsvidRequest { audience: "bank".into(), svid: "a.b.c".into() };
        let refused = client.validate_jwtsvid(asked(token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        let refused = client.fetch_x509svid(X509svidRequest {}).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "without the header");
        assert!(app.agent.workload.credentials.svid().is_none(), "and nothing was obtained");
        app.stop().await;
    });
}

#[test]
fn a_certificate_is_replaced_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![of_uid(own_uid())];
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        *identities.lifetime.lock().await = Duration::from_secs(4);
        connect(&app, &channel);
        let (mut answers, first) = begin(&config).await;
        connect(&app, &channel);
        let second = next(&mut answers).await;
        assert_ne!(first.serial(), second.serial());
        assert!(UnixTime::now().as_secs() <= first.not_after.as_secs(), "in time");
        app.stop().await;
    });
}

#[test]
fn a_certificate_that_has_ended_is_not_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![of_uid(own_uid())];
    let ca = Ca::new("west.example");
    joined(&config, &ca);
    run(async {
        let (app, _drain) = start(&config).await;
        let (identities, channel) = serve_identities(dir.path(), ca).await;
        *identities.lifetime.lock().await = Duration::from_secs(3);
        connect(&app, &channel);
        let (mut answers, only) = begin(&config).await;
        *identities.refusal.lock().await = Some("revoked");
        let refused = async {
            loop {
                connect(&app, &channel);
                match follow(&config).await.message().await {
                    Ok(answer) => assert_eq!(parsed(answer.unwrap()).serial(), only.serial()),
                    Err(status) if status.message().contains("revoked") => return status,
                    Err(_) => {}
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let refused = tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let told = tokio::time::timeout(Duration::from_secs(30), answers.message()).await.unwrap();
        assert_eq!(told.unwrap_err().code(), Code::Unavailable, "who has it is told");
        app.stop().await;
    });
}

/// What gRPC's C core 58 sends (PyPI's grpcio 1.85.3), as it was recorded.
const C_CORE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \x00\x00\x24\x04\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x03\x00\x00\x00\x00\x00\x04\x00@\x00\x00\
    \x00\x05\x00@\x00\x00\x00\x06\x00\x00@\x00\xfe\x03\x00\x00\x00\x01\
    \x00\x01\x0f\x01\x04\x00\x00\x00\x01@\x05:path\"/SpiffeWorkloadAPI/FetchJWTBundles\
    @\n:authority\x15run%2Fspiffe%2Fw.sock\x83\x86@\x0ccontent-type\x10application/grpc@\x02te\x08trailers\
    @\x14grpc-accept-encoding\x17identity, deflate, gzip@\x0cgrpc-timeout\x025S\
    @\nuser-agent0grpc-python/1.85.3 grpc-c/58.0.0 (linux; chttp2)\x00\x12workload.spiffe.io\x04true\
    \x00\x00\x05\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00";

/// Clients on gRPC's C core name the socket's path as `:authority`.
#[test]
fn a_path_for_an_authority_is_no_error() {
    const HEADERS: u8 = 1;
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![of_uid(own_uid())];
    joined(&config, &Ca::new("west.example"));
    run(async {
        let (app, _drain) = start(&config).await;
        let mut stream = UnixStream::connect(config.workload_socket()).await.unwrap();
        stream.write_all(C_CORE).await.unwrap();
        // The first frame of the stream is an answer, not a reset.
        let kind = loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            let [_, high, low, kind, _, _, _, _, on] = head;
            let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
            stream.read_exact(&mut payload).await.unwrap();
            if on == 1 {
                break kind;
            }
        };
        assert_eq!(kind, HEADERS);
        app.stop().await;
    });
}

#[test]
fn nobody_gets_the_identity_of_a_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.workload_api = vec![of_uid(own_uid())];
    let ca = Ca::new("west.example");
    let mut gateway = node(&ca, super::MACHINE, mesh_runtime::clock::unix_seconds());
    gateway.joined.site.as_mut().unwrap().federation_address = "127.0.0.1:1".into();
    vm_agent::state::StateDir::open(&config.state).unwrap().save(&gateway).unwrap();
    run(async {
        let (app, _drain) = start(&config).await;
        assert!(app.agent.member().unwrap().node().workload.is_gateway());
        let mut client = client(&config).await;
        let refused = client.fetch_x509svid(asked(X509svidRequest {})).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        let token = JwtsvidRequest { audience: vec!["bank".into()], ..Default::default() };
        let refused = client.fetch_jwtsvid(asked(token)).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        app.stop().await;
    });
}
