//! A `WorkloadIdentity` socket that answers as a test wants.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use mesh_api::v1::{
    self,
    workload_identity_server::{WorkloadIdentity, WorkloadIdentityServer},
};
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use super::*;

/// What the source answers.
pub(super) struct Script {
    ca: Ca,
    described: SpiffeId,
    issued: Mutex<SpiffeId>,
    lifetime: Mutex<Duration>,
    refuses: AtomicBool,
    /// What it says of the machine, instead of describing it.
    pub(super) described_as_gone: Mutex<Option<Status>>,
    /// What it says instead of issuing.
    pub(super) no: Mutex<Option<Status>>,
    /// The machine it speaks of.
    pub(super) node: Mutex<&'static str>,
    issues: AtomicUsize,
}

impl Script {
    pub(super) fn new() -> Arc<Self> {
        let ca = Ca::new("east.example");
        let id = SpiffeId::workload(&ca.trust_domain, "shop", "web").unwrap();
        Arc::new(Self {
            ca,
            described: id.clone(),
            issued: Mutex::new(id),
            lifetime: Mutex::new(Duration::from_secs(3600)),
            refuses: AtomicBool::new(false),
            described_as_gone: Mutex::default(),
            no: Mutex::default(),
            node: Mutex::new(NODE),
            issues: AtomicUsize::new(0),
        })
    }
}

const NODE: &str = "6f0c2a52-8d0b-4d5f-9d42-0a4a5f4c1e11";

struct Source(Arc<Script>);

#[tonic::async_trait]
impl WorkloadIdentity for Source {
    async fn describe(
        &self,
        _request: Request<v1::DescribeRequest>,
    ) -> Result<Response<v1::Description>, Status> {
        if self.0.refuses.load(Ordering::Relaxed) {
            return Err(Status::unavailable("this machine has not joined a site yet"));
        }
        if let Some(gone) = self.0.described_as_gone.lock().unwrap().clone() {
            return Err(gone);
        }
        Ok(Response::new(v1::Description {
            site: Some(v1::Site {
                name: "east".into(),
                trust_domain: "east.example".into(),
                federation_address: "127.0.0.1:8446".into(),
            }),
            spiffe_id: self.0.described.to_string(),
            node: (*self.0.node.lock().unwrap()).into(),
            gateways: vec![v1::Gateway {
                id: "gw-1".into(),
                site: "east".into(),
                tls_addresses: vec!["127.0.0.1:8443".into()],
                ..v1::Gateway::default()
            }],
            bundles: vec![(&self.0.ca.bundle()).into()],
            ..v1::Description::default()
        }))
    }

    async fn issue(
        &self,
        request: Request<v1::IssueRequest>,
    ) -> Result<Response<v1::IssuedCertificate>, Status> {
        self.0.issues.fetch_add(1, Ordering::Relaxed);
        if let Some(no) = self.0.no.lock().unwrap().clone() {
            return Err(no);
        }
        let (id, lifetime) =
            (self.0.issued.lock().unwrap().clone(), *self.0.lifetime.lock().unwrap());
        let node = self.0.node.lock().unwrap().parse().unwrap();
        let chain = self.0.ca.certify_for(&request.into_inner().csr, &id, Some(&node), lifetime);
        Ok(Response::new(v1::IssuedCertificate { chain, ..v1::IssuedCertificate::default() }))
    }
}

pub(super) fn serve(script: &Arc<Script>, socket: &Path) -> tokio::task::JoinHandle<()> {
    let incoming = mesh_tunnel::unix::incoming(UnixListener::bind(socket).unwrap());
    let server = WorkloadIdentityServer::new(Source(script.clone()));
    tokio::spawn(async move {
        tonic::transport::Server::builder().serve_with_incoming(server, incoming).await.unwrap();
    })
}

/// A proxy that has nothing but the path of the socket.
fn proxy(socket: &Path) -> App {
    proxy_with(socket, None)
}

/// And, perhaps, a state directory.
pub(super) fn proxy_with(socket: &Path, state: Option<PathBuf>) -> App {
    let identity = IdentitySource::Socket(socket.to_owned());
    let config = Config { identity, state, ..Config::given(Role::Node) };
    App::new(shared(config, Credentials::new(None, Trust::default()), Own::default()))
}

#[tokio::test]
async fn a_proxy_waits_for_its_identity_says_so_and_takes_it_when_it_comes() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("identity.sock");
    let app = proxy(&socket);
    app.run_in_place().await.unwrap();
    let shared = &app.shared;
    let says = |text: &str| shared.readiness.check().is_err_and(|why| why.contains(text));
    until("nobody listens there", || says("is vm-agent running?")).await;
    let script = Script::new();
    script.refuses.store(true, Ordering::Relaxed);
    let server = serve(&script, &socket);
    until("not joined", || says("has not joined a site yet")).await;
    assert!(shared.credentials.svid().is_none());
    script.refuses.store(false, Ordering::Relaxed);
    until("an identity", || shared.credentials.svid().is_some()).await;
    assert_eq!(shared.credentials.svid().unwrap().id, script.described);
    let own = shared.own.load();
    assert_eq!(own.site.as_ref().unwrap().as_str(), "east");
    assert_eq!(own.node.as_ref().unwrap().as_str(), NODE);
    assert_eq!(own.gateways[0].id.as_str(), "gw-1");
    assert_eq!(own.federation, Some("127.0.0.1:8446".parse().unwrap()));
    assert!(shared.credentials.trust().bundles.contains_key("east.example"));
    until("ready", || shared.readiness.check().is_ok()).await;
    shared.drain.finish(STEP).await;
    server.abort();
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_ends_and_stays_while_that_fails() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("identity.sock");
    let script = Script::new();
    *script.lifetime.lock().unwrap() = Duration::from_secs(3);
    let server = serve(&script, &socket);
    let app = proxy(&socket);
    app.run_in_place().await.unwrap();
    let credentials = &app.shared.credentials;
    until("an identity", || credentials.svid().is_some()).await;
    let first = credentials.svid().unwrap();
    until("a renewal", || credentials.svid().unwrap().chain[0] != first.chain[0]).await;
    assert_eq!(credentials.svid().unwrap().id, script.described);
    // From now on nothing is issued any more.
    script.refuses.store(true, Ordering::Relaxed);
    let last = credentials.svid().unwrap();
    let tried = script.issues.load(Ordering::Relaxed);
    until("told that it has ended", || app.shared.readiness.check().is_err()).await;
    assert_eq!(credentials.svid().unwrap().chain, last.chain);
    script.refuses.store(false, Ordering::Relaxed);
    until("issued again", || script.issues.load(Ordering::Relaxed) > tried).await;
    until("ready again", || app.shared.readiness.check().is_ok()).await;
    app.shared.drain.finish(STEP).await;
    server.abort();
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("identity.sock");
    let script = Script::new();
    let other = SpiffeId::workload(&script.ca.trust_domain, "shop", "other").unwrap();
    *script.issued.lock().unwrap() = other;
    let server = serve(&script, &socket);
    let app = proxy(&socket);
    app.run_in_place().await.unwrap();
    until("asked twice", || script.issues.load(Ordering::Relaxed) > 1).await;
    assert!(app.shared.credentials.svid().is_none());
    let why = app.shared.readiness.check().unwrap_err();
    assert!(why.contains("not accepted here"), "{why}");
    *script.issued.lock().unwrap() = script.described.clone();
    until("an identity", || app.shared.credentials.svid().is_some()).await;
    app.shared.drain.finish(STEP).await;
    server.abort();
}
