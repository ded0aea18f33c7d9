//! A CA that is not of the mesh, as old proxies have one, and peers with its
//! certificates.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::apps::full;

/// A root that signs leaves itself.
pub struct Legacy(CertifiedIssuer<'static, KeyPair>);

/// A leaf.
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    pub key_pem: String,
    serial: u64,
}

impl Leaf {
    /// Its key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        use rustls::pki_types::pem::PemObject;
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).unwrap()
    }
}

impl Legacy {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "old proxies");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// The root.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// For these names, or of a client.
    pub fn leaf(&self, names: &[&str]) -> Leaf {
        self.leaf_of(names, &[])
    }

    /// The same with URIs, too.
    pub fn leaf_of(&self, names: &[&str], uris: &[&str]) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        static SERIALS: AtomicU64 = AtomicU64::new(1);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed);
        let mut params = CertificateParams::new(names).unwrap();
        params.serial_number = Some(serial.into());
        let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        let leaf = params.signed_by(&key, &self.0).unwrap();
        Leaf {
            certificate: leaf.der().clone(),
            certificate_pem: leaf.pem(),
            key_pem: key.serialize_pem(),
            serial,
        }
    }

    /// Those that are not good any more; what says so ends at this time
    /// after the Unix epoch.
    pub fn crl(&self, revoked: &[&Leaf], end: Duration) -> String {
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        let of = |leaf: &&Leaf| RevokedCertParams {
            serial_number: leaf.serial.into(),
            revocation_time: epoch,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: epoch,
            next_update: epoch + end,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(of).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }

    /// A client that believes it.
    pub fn client(&self, alpn: &[&str], shows: Option<&Leaf>) -> ClientConfig {
        self.client_of(rustls::ALL_VERSIONS, alpn, shows)
    }

    /// The same that speaks these versions.
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
        shows: Option<&Leaf>,
    ) -> ClientConfig {
        let shows = shows.map(|leaf| (vec![leaf.certificate.clone()], leaf.key()));
        self.client_with(versions, alpn, shows)
    }

    /// One that believes whoever answers.
    pub fn blind(&self) -> ClientConfig {
        let mut config = self.client(&[], None);
        config.dangerous().set_certificate_verifier(Arc::new(Blind));
        config
    }

    /// The same that shows a chain.
    pub fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
        shows: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

#[derive(Debug)]
struct Blind;

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}

/// A handshake as `name`.
pub async fn handshake(
    addr: SocketAddr,
    name: &str,
    config: ClientConfig,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// An application that speaks TLS: to HTTP it says what it was told, bytes it
/// says back.
pub struct TlsApp {
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for TlsApp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsApp {
    /// Which has this certificate, chooses among `alpn`, and lets in clients of
    /// `clients` alone.
    pub async fn start(leaf: &Leaf, alpn: &[&str], clients: Option<&Legacy>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca.0.der().clone()).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![leaf.certificate.clone()];
        let mut config = builder.with_single_cert(chain, leaf.key()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(super::any()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                serving.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream).await;
                    }
                });
            }
        });
        Self { addr, task }
    }
}

async fn serve(mut stream: tokio_rustls::server::TlsStream<TcpStream>) {
    let told = stream.get_ref().1;
    let alpn = told.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap());
    let name = told.server_name().unwrap_or("-").to_owned();
    let Some(alpn) = alpn else {
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let _ended = tokio::io::copy(&mut read, &mut write).await;
        let _ended = write.shutdown().await;
        return;
    };
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let text = format!("{:?} {alpn} {name}", request.version());
        async move { Ok::<_, std::convert::Infallible>(http::Response::new(full(text))) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// PEM files of one test.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Others may not read it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        set_mode(&path, 0o640);
        path
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
