//! A federation on a real port, and clients of it.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use federation::{
    app::{self, Parts, Running},
    authority::LogStore,
    clock::Clock,
    config::{Config, ConfigFile, GatewayFile},
    init::init_site,
    refusal::REASON,
    site::Site,
    tokens::{self, NewToken},
};
use hyper_util::rt::TokioIo;
use mesh_api::{ALPN_CONTROL, ALPN_JOIN, v1};
use mesh_core::{Allowed, SpiffeId, TrustBundle, token::Token};
use mesh_runtime::drain::Drain;
use mesh_tunnel::{Credentials, RealNet, Svid, Trust, tls};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;
use tonic::{
    Status,
    codegen::{Service, http::Uri},
    transport::{Channel, Endpoint},
};

/// Runs a test on the runtime that federation itself runs on.
pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    mesh_runtime::process::current_thread().unwrap().block_on(test)
}

/// A site that runs; ends with it.
pub(crate) struct TestSite {
    pub(crate) running: Running,
    pub(crate) config: Config,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) drain: Drain,
    /// Seconds that the site's clock is ahead.
    pub(crate) skew: Arc<AtomicI64>,
}

impl TestSite {
    pub(crate) async fn new(name: &str) -> Self {
        Self::with(name, |_| {}).await
    }

    /// One whose configuration says something else, too.
    pub(crate) async fn with(name: &str, write: impl FnOnce(&mut ConfigFile)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut written = ConfigFile {
            state: directory.path().join("state"),
            run: directory.path().join("run"),
            listen: "127.0.0.1:0".parse().unwrap(),
            admin: "127.0.0.1:0".parse().unwrap(),
            gateways: vec![GatewayFile {
                id: "gw1".into(),
                quic: vec!["127.0.0.1:1".into()],
                tls: vec!["127.0.0.1:1".into()],
            }],
            ..ConfigFile::new(name.into(), format!("{name}.example"))
        };
        write(&mut written);
        init_site(&written, None, None, &Clock::system()).unwrap();
        let config = Config::check(written, "test").unwrap();
        Self::start(config, directory).await
    }

    async fn start(config: Config, directory: tempfile::TempDir) -> Self {
        let (drain, skew) = (Drain::new(), Arc::new(AtomicI64::new(0)));
        let ahead = skew.clone();
        let clock = Clock::from_fn(move || {
            let s = ahead.load(Ordering::SeqCst);
            let now = mesh_runtime::clock::now_unix();
            let by = Duration::from_secs(s.unsigned_abs());
            if s < 0 { now - by } else { now + by }
        });
        let parts = Parts {
            store: LogStore::open(&config.state).unwrap(),
            keys: config.state.join("keys"),
            net: Arc::new(RealNet),
            clock,
        };
        let running = app::start(&config, parts, &drain).await.unwrap();
        app::local_doors(&running.admin, &config, &RealNet, &drain).await.unwrap();
        Self { running, config, directory, drain, skew }
    }

    /// Stops it and starts it again on the same state.
    pub(crate) async fn restart(self) -> Self {
        self.replaced(|| {}).await
    }

    /// Stops it, does something to its files, and starts it again.
    pub(crate) async fn replaced(self, meanwhile: impl FnOnce()) -> Self {
        let Self { running, config, directory, drain, .. } = self;
        let cut = drain.finish(Duration::from_secs(60)).await;
        assert_eq!(cut, 0, "something does not end when it is asked to");
        drop((running, drain));
        meanwhile();
        Self::start(config, directory).await
    }

    pub(crate) fn site(&self) -> &Site {
        &self.running.admin.site
    }

    pub(crate) fn run_dir(&self) -> &Path {
        &self.config.run
    }

    /// A token for `orders` in namespace `shop`.
    pub(crate) async fn token(&self, uses: u32, ttl: Duration, gateway: bool) -> Token {
        let grants = v1::Grants {
            namespace: "shop".into(),
            account: "orders".into(),
            services: vec!["orders.shop".into()],
        };
        let new = NewToken::join(grants, uses, ttl, gateway).unwrap();
        tokens::create(self.site(), "test", new).await.unwrap().0
    }

    pub(crate) fn federation_id(&self) -> SpiffeId {
        SpiffeId::federation(&self.config.trust_domain)
    }

    /// What a token pins.
    pub(crate) fn root_pin(&self) -> [u8; 32] {
        federation::ca::spki_sha256(&self.site().ca.root()).unwrap()
    }

    /// Takes an identity, or a node, back.
    pub(crate) async fn revoke(&self, subject: &str) {
        let subject = subject.to_owned();
        let revoked = v1::Revocation { subject, revoked_at_unix_s: 1 };
        let decide = |_: &_| {
            let revoked = v1::authority_record::Event::Revoked(revoked.clone());
            Ok::<_, std::convert::Infallible>((vec![revoked], ()))
        };
        self.site().authority.commit("test", decide).await.unwrap();
    }

    /// A connection without a certificate.
    pub(crate) fn join_channel(&self, root_spki_sha256: [u8; 32]) -> Channel {
        let allowed = Allowed::Exactly(self.federation_id());
        channel(self.running.grpc, tls::pinned_client(ALPN_JOIN, root_spki_sha256, allowed))
    }

    /// A connection with a certificate.
    pub(crate) fn channel(&self, svid: Svid) -> Channel {
        let credentials = Credentials::new(Some(svid), self.trust());
        let allowed = Allowed::Exactly(self.federation_id());
        channel(self.running.grpc, credentials.client(ALPN_CONTROL, allowed))
    }

    fn trust(&self) -> Trust {
        let trust_domain = self.config.trust_domain.clone();
        let roots = vec![self.site().ca.root()];
        let bundle = TrustBundle::of_roots(trust_domain.clone(), roots);
        let bundles = [(trust_domain, Arc::new(bundle))].into_iter().collect();
        Trust { bundles: Arc::new(bundles), ..Trust::default() }
    }

    /// Joins a new machine.
    pub(crate) async fn join(&self, token: &Token) -> Result<Machine, Status> {
        let (key, csr) = tls::new_key_and_csr().unwrap();
        let answer = self.ask_to_join(token, csr).await?;
        Ok(Machine { node: answer.node.clone(), svid: svid(&answer.chain, &key), key, answer })
    }

    pub(crate) async fn ask_to_join(
        &self,
        token: &Token,
        csr: Vec<u8>,
    ) -> Result<v1::JoinNodeResponse, Status> {
        let request = v1::JoinNodeRequest {
            versions: vec![1],
            token_id: token.id.to_string(),
            token_secret: token.secret.to_vec(),
            csr,
            hostname: "vm-1".into(),
            machine_id: "m1".into(),
            boot_id: "boot-1".into(),
            time_unix_ms: mesh_runtime::clock::unix_millis(),
        };
        self.send_join(token.root_spki_sha256, request).await
    }

    pub(crate) async fn send_join(
        &self,
        root_spki_sha256: [u8; 32],
        request: v1::JoinNodeRequest,
    ) -> Result<v1::JoinNodeResponse, Status> {
        let channel = self.join_channel(root_spki_sha256);
        let mut client = v1::join_client::JoinClient::new(channel);
        Ok(client.join_node(request).await?.into_inner())
    }
}

/// A machine that has joined.
pub(crate) struct Machine {
    pub(crate) node: String,
    pub(crate) svid: Svid,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) answer: v1::JoinNodeResponse,
}

/// What a chain and its key make.
pub(crate) fn svid(chain: &[Vec<u8>], key: &PrivateKeyDer<'static>) -> Svid {
    let chain = chain.iter().cloned().map(CertificateDer::from).collect();
    Svid::from_der(chain, key.clone_key()).unwrap()
}

pub(crate) fn copy(svid: &Svid) -> Svid {
    Svid {
        id: svid.id.clone(),
        chain: svid.chain.clone(),
        key: svid.key.clone_key(),
        not_after: svid.not_after,
    }
}

/// The stable reason of a refusal.
pub(crate) fn reason(status: &Status) -> String {
    let reason = status.metadata().get(REASON).and_then(|reason| reason.to_str().ok());
    reason.map_or_else(|| format!("none: {status}"), str::to_owned)
}

fn channel(addr: SocketAddr, config: Arc<rustls::ClientConfig>) -> Channel {
    let endpoint = Endpoint::from_static("http://federation.test");
    endpoint.connect_with_connector_lazy(Connector { addr, config })
}

#[derive(Clone)]
struct Connector {
    addr: SocketAddr,
    config: Arc<rustls::ClientConfig>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<tls::ClientStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { addr, config } = self.clone();
        Box::pin(async move {
            let stream = TcpStream::connect(addr).await?;
            Ok(TokioIo::new(tls::connect(config, stream).await?))
        })
    }
}
