//! Certificates held, peers verified, and TLS configurations made of both.
//!
//! TLS 1.3 only, aws-lc-rs, X25519MLKEM768 first, no resumption, no early
//! data. Peers are verified by `mesh_core::verify_peer` and nothing else.

mod proved;
mod retiring;
mod standing;
mod verifier;

use std::{
    fmt, io,
    sync::{Arc, LazyLock},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use mesh_core::{
    Allowed, PeerIdentity, SpiffeId, TrustBundles, VerifyError,
    identity::{Revocations, Side},
    verify_peer,
};
use rustls::{
    CommonState, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};
use verifier::{ClientVerifier, ServerVerifier, Source};

use crate::ahead::ReadAhead;

pub use proved::{Proved, disproved};
pub(crate) use proved::{expired, left};
pub use standing::{Before, Binding, ProofError, Standing};
pub(crate) use verifier::Witness;

/// A certificate with its key.
#[derive(Debug)]
pub struct Svid {
    /// Whom it names.
    pub id: SpiffeId,
    /// Leaf first, then the issuing CA. For the join door the root follows.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: PrivateKeyDer<'static>,
    /// End of the leaf.
    pub not_after: UnixTime,
}

impl Svid {
    /// Reads identity and end from the leaf, which comes first in `chain`.
    /// Checks its form, not its signatures.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, VerifyError> {
        let leaf = chain.first().ok_or(VerifyError::NoCertificate)?;
        let (id, not_after) = verifier::read_leaf(leaf)?;
        Ok(Self { id, chain, key, not_after })
    }

    /// Serial number of the leaf, as [`PeerIdentity::serial`] writes it.
    pub fn serial(&self) -> String {
        serial_of(&self.chain)
    }
}

/// Serial number of the leaf of a chain, as [`PeerIdentity::serial`] writes it;
/// empty if there is none that parses.
pub fn serial_of(chain: &[CertificateDer<'_>]) -> String {
    chain.first().and_then(verifier::serial_of).unwrap_or_default()
}

/// Whom it believes.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Roots per trust domain.
    pub bundles: Arc<TrustBundles>,
    /// What is no longer accepted.
    pub revocations: Arc<Revocations>,
}

/// What this process can prove and whom it believes; both are replaced while
/// sessions run, and every new handshake sees the newest.
pub struct Credentials {
    held: ArcSwapOption<Held>,
    trust: ArcSwap<Trust>,
    changed: watch::Sender<u64>,
}

/// An SVID with its key made ready for signing.
struct Held {
    svid: Arc<Svid>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.held.load().as_ref().map(|held| held.svid.id.clone());
        f.debug_struct("Credentials").field("id", &id).finish_non_exhaustive()
    }
}

impl Credentials {
    /// Starts with an SVID (if there is one already) and a trust.
    pub fn new(svid: Option<Svid>, trust: Trust) -> Arc<Self> {
        let credentials = Arc::new(Self {
            held: ArcSwapOption::empty(),
            trust: ArcSwap::from_pointee(trust),
            changed: watch::Sender::new(0),
        });
        if let Some(svid) = svid {
            credentials.replace_svid(svid);
        }
        credentials
    }

    /// Replaces the SVID. One whose key cannot sign for its leaf is logged and
    /// not taken; use [`Credentials::try_replace_svid`] to know.
    pub fn replace_svid(&self, svid: Svid) {
        let id = svid.id.clone();
        if let Err(error) = self.try_replace_svid(svid) {
            log::error!(id = id.as_str(), error:% = error; "certificate not usable, keeping the old one");
        }
    }

    /// Replaces the SVID; on an error (the key does not belong to the leaf, or
    /// is of a kind we do not use) the old one stays.
    pub fn try_replace_svid(&self, svid: Svid) -> Result<(), rustls::Error> {
        let key = aws_lc_rs::sign::any_ecdsa_type(&svid.key)?;
        let certified = CertifiedKey::new(svid.chain.clone(), key);
        certified.keys_match()?;
        let held = Held { svid: Arc::new(svid), certified: Arc::new(certified) };
        self.held.store(Some(Arc::new(held)));
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Presents nothing any more, until there is another SVID.
    pub fn withdraw_svid(&self) {
        self.held.store(None);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Replaces the trust; sessions whose peer is no longer believed are cut
    /// by their owners, who watch [`Credentials::changed`].
    pub fn replace_trust(&self, trust: Trust) {
        self.trust.store(Arc::new(trust));
        self.changed.send_modify(|n| *n += 1);
    }

    /// The current SVID.
    pub fn svid(&self) -> Option<Arc<Svid>> {
        self.held.load().as_ref().map(|held| held.svid.clone())
    }

    /// The current trust.
    pub fn trust(&self) -> Trust {
        Trust::clone(&self.trust.load())
    }

    /// Wakes on every replacement of SVID or trust.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A TLS client that presents the SVID and accepts only `allowed`.
    ///
    /// Use it with [`connect`], which also insists on the ALPN.
    pub fn client(self: &Arc<Self>, alpn: &[u8], allowed: Allowed) -> Arc<rustls::ClientConfig> {
        self.client_witnessed(alpn, allowed, Witness::default())
    }

    /// As [`Credentials::client`], for one handshake whose failure is wanted.
    pub(crate) fn client_witnessed(
        self: &Arc<Self>,
        alpn: &[u8],
        allowed: Allowed,
        witness: Witness,
    ) -> Arc<rustls::ClientConfig> {
        let verifier = ServerVerifier::new(Source::Current(self.clone()), allowed, witness);
        client_config(alpn, verifier, Some(Arc::new(Presented::new(self, Chain::WithoutRoot))))
    }

    /// A TLS server that requires a client certificate of `allowed`.
    ///
    /// Use it with [`accept`], which also insists on the ALPN.
    pub fn server(self: &Arc<Self>, alpn: &[&[u8]], allowed: Allowed) -> Arc<rustls::ServerConfig> {
        self.server_witnessed(alpn, allowed, Witness::default())
    }

    /// As [`Credentials::server`], for one handshake whose failure is wanted.
    pub(crate) fn server_witnessed(
        self: &Arc<Self>,
        alpn: &[&[u8]],
        allowed: Allowed,
        witness: Witness,
    ) -> Arc<rustls::ServerConfig> {
        let verifier = ClientVerifier::new(Source::Current(self.clone()), allowed, witness);
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has cipher suites of TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(Presented::new(self, Chain::WithoutRoot)));
        server_config(config, alpn)
    }

    /// A TLS server for the join door: no client certificate, root in the
    /// chain.
    pub fn join_server(self: &Arc<Self>) -> Arc<rustls::ServerConfig> {
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has cipher suites of TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Presented::new(self, Chain::WithRoots)));
        server_config(config, &[mesh_api::ALPN_JOIN])
    }

    /// Verifies a chain against the current trust and the current time.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        allowed: &Allowed,
    ) -> Result<PeerIdentity, VerifyError> {
        let trust = self.trust.load();
        verify_peer(chain, side, &trust.bundles, &trust.revocations, allowed, now())
    }

    /// Verifies again what a session's peer once proved: its certificate may
    /// have ended, been revoked, or lost its bundle.
    pub fn recheck(
        &self,
        peer: &PeerIdentity,
        chain: &[CertificateDer<'_>],
    ) -> Result<(), VerifyError> {
        self.verify_any(chain, &Allowed::Exactly(peer.id.clone())).map(drop)
    }

    /// Verifies a chain of a session that is there: which side it was on does
    /// not matter any more, and a certificate may be good for one side only.
    fn verify_any(
        &self,
        chain: &[CertificateDer<'_>],
        allowed: &Allowed,
    ) -> Result<PeerIdentity, VerifyError> {
        let as_client = self.verify(chain, Side::Client, allowed);
        as_client.or_else(|error| self.verify(chain, Side::Server, allowed).map_err(|_| error))
    }
}

/// The verified identity of the peer of a finished handshake.
pub fn peer_of(
    connection: &CommonState,
    credentials: &Credentials,
    side: Side,
    allowed: &Allowed,
) -> Result<PeerIdentity, VerifyError> {
    let chain = connection.peer_certificates().ok_or(VerifyError::NoCertificate)?;
    credentials.verify(chain, side, allowed)
}

/// What the peer of a finished handshake presented.
pub fn chain_of(connection: &CommonState) -> Vec<CertificateDer<'static>> {
    let chain = connection.peer_certificates().unwrap_or_default();
    chain.iter().map(|certificate| certificate.clone().into_owned()).collect()
}

/// Why a handshake or session failed, if it was the peer's certificate. The
/// code of the result is what logs and metrics carry.
pub fn verify_error(error: &io::Error) -> Option<VerifyError> {
    let inner = error.get_ref()?;
    if let Some(error) = inner.downcast_ref::<VerifyError>() {
        return Some(error.clone());
    }
    if let Some(error) = inner.downcast_ref::<io::Error>() {
        return verify_error(error);
    }
    verifier::from_rustls(inner.downcast_ref::<rustls::Error>()?)
}

/// The dialling side of a TLS connection.
pub type ClientStream<T> = tokio_rustls::client::TlsStream<ReadAhead<T>>;
/// The side that was dialled.
pub type ServerStream<T> = tokio_rustls::server::TlsStream<ReadAhead<T>>;

/// A TLS client handshake; fails unless one of the offered protocols was
/// chosen. Names play no part: there is no SNI.
pub async fn connect<T>(config: Arc<rustls::ClientConfig>, io: T) -> io::Result<ClientStream<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let stream = tokio_rustls::TlsConnector::from(config)
        .connect(server_name(), ReadAhead::new(io))
        .await
        .map_err(readable)?;
    require_alpn(stream.get_ref().1)?;
    Ok(stream)
}

/// A TLS server handshake; fails unless the client offered one of the
/// protocols of `config`.
pub async fn accept<T>(config: Arc<rustls::ServerConfig>, io: T) -> io::Result<ServerStream<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let stream = tokio_rustls::TlsAcceptor::from(config)
        .accept(ReadAhead::new(io))
        .await
        .map_err(readable)?;
    require_alpn(stream.get_ref().1)?;
    Ok(stream)
}

/// Whether an alert (RFC 8446 section 6.2) is about our certificate:
/// `bad_certificate` to `certificate_unknown`, `unknown_ca`, `access_denied`,
/// `certificate_required`.
pub(crate) fn is_about_our_certificate(alert: u8) -> bool {
    matches!(alert, 42..=46 | 48 | 49 | 116)
}

/// The verification error itself where rustls wraps it.
pub(crate) fn readable(error: io::Error) -> io::Error {
    match verify_error(&error) {
        Some(refused) => io::Error::new(io::ErrorKind::InvalidData, refused),
        None => error,
    }
}

/// rustls refuses a protocol that was not offered, and lets none at all pass.
fn require_alpn(connection: &CommonState) -> io::Result<()> {
    if connection.alpn_protocol().is_some() {
        return Ok(());
    }
    let text = "the peer negotiated no application protocol (ALPN); it is not a mesh node";
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Fills a field that verification never looks at.
pub(crate) const SERVER_NAME: &str = "isthmus.invalid";

fn server_name() -> ServerName<'static> {
    ServerName::try_from(SERVER_NAME).expect("it is a DNS name")
}

/// A TLS client for joining: no certificate of its own; the server's chain
/// must hold a root whose SubjectPublicKeyInfo has this SHA-256, and lead to
/// an identity in `allowed` under it. The trust domain is the one that
/// `allowed` names; [`Allowed::Known`] names none and accepts nobody.
pub fn pinned_client(
    alpn: &[u8],
    root_spki_sha256: [u8; 32],
    allowed: Allowed,
) -> Arc<rustls::ClientConfig> {
    let source = Source::Pinned(root_spki_sha256);
    client_config(alpn, ServerVerifier::new(source, allowed, Witness::default()), None)
}

/// A new P-256 key and a PKCS#10 request for it (names are the CA's business).
pub fn new_key_and_csr() -> Result<(PrivateKeyDer<'static>, Vec<u8>), rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(&key)?;
    Ok((PrivateKeyDer::Pkcs8(key.serialize_der().into()), request.der().to_vec()))
}

/// Seconds since the Unix epoch, as certificates count.
pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(mesh_runtime::clock::now_unix())
}

fn client_config(
    alpn: &[u8],
    verifier: ServerVerifier,
    presented: Option<Arc<Presented>>,
) -> Arc<rustls::ClientConfig> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites of TLS 1.3")
        .dangerous() // rustls' word for a verifier of one's own
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match presented {
        Some(presented) => config.with_client_cert_resolver(presented),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    // A resumed session skips the verification of certificates.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

fn server_config(mut config: rustls::ServerConfig, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    // A resumed session skips the verification of certificates.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    Arc::new(config)
}

/// aws-lc-rs with the cipher suites of TLS 1.3 and the hybrid key exchange
/// first (draft-ietf-tls-ecdhe-mlkem). Passed explicitly everywhere: nothing
/// depends on a default of the process.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        use aws_lc_rs::{cipher_suite as suite, kx_group};
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                suite::TLS13_AES_128_GCM_SHA256,
                suite::TLS13_AES_256_GCM_SHA384,
                suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    });
    PROVIDER.clone()
}

/// Which certificates a side sends along with its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// The peer has our roots.
    WithoutRoot,
    /// The peer has only the hash of one of them.
    WithRoots,
}

/// Presents the current SVID.
#[derive(Debug)]
struct Presented {
    credentials: Arc<Credentials>,
    chain: Chain,
}

impl Presented {
    fn new(credentials: &Arc<Credentials>, chain: Chain) -> Self {
        Self { credentials: credentials.clone(), chain }
    }

    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        let held = self.credentials.held.load_full()?;
        let trust = self.credentials.trust.load();
        let own = trust.bundles.get(held.svid.id.trust_domain());
        let roots = own.map_or(&[][..], |bundle| &bundle.roots);
        let is_root = |certificate: &CertificateDer<'_>| roots.contains(certificate);
        match self.chain {
            Chain::WithoutRoot if !held.svid.chain.iter().any(is_root) => {
                Some(held.certified.clone())
            }
            Chain::WithoutRoot => {
                let chain = held.svid.chain.iter().filter(|cert| !is_root(cert)).cloned();
                Some(Arc::new(CertifiedKey::new(chain.collect(), held.certified.key.clone())))
            }
            Chain::WithRoots => {
                let mut chain = held.svid.chain.clone();
                let missing = roots.iter().filter(|root| !held.svid.chain.contains(root));
                chain.extend(missing.cloned());
                Some(Arc::new(CertifiedKey::new(chain, held.certified.key.clone())))
            }
        }
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        self.credentials.held.load().is_some()
    }
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

#[cfg(test)]
mod tests;
