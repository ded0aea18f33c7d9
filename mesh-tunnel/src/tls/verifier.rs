//! What rustls asks during a handshake, answered by `mesh_core::verify_peer`.

use std::{
    fmt, io,
    sync::{Arc, OnceLock},
};

use mesh_core::{
    Allowed, PeerIdentity, SpiffeId, TrustBundle, TrustBundles, TrustDomain, VerifyError,
    identity::{Revocations, Side, serial_hex},
    verify_peer,
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{Credentials, now, provider};

/// Remembers why the verification of one handshake failed: QUIC reports only
/// a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness(Arc<OnceLock<VerifyError>>);

impl Witness {
    /// The reason in place of `error` if the peer's certificate was it.
    pub(crate) fn explain(&self, error: io::Error) -> io::Error {
        match self.0.get() {
            Some(reason) => io::Error::new(io::ErrorKind::InvalidData, reason.clone()),
            None => error,
        }
    }
}

/// What a chain must lead to.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// The bundles of the moment.
    Current(Arc<Credentials>),
    /// The one presented root whose SubjectPublicKeyInfo hashes to this.
    Pinned([u8; 32]),
}

impl Source {
    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        side: Side,
        allowed: &Allowed,
    ) -> Result<PeerIdentity, VerifyError> {
        match self {
            Source::Current(credentials) => credentials.verify(chain, side, allowed),
            Source::Pinned(pin) => {
                let bundles = pinned_bundle(chain, pin, allowed)?;
                verify_peer(chain, side, &bundles, &Revocations::default(), allowed, now())
            }
        }
    }
}

/// The bundle of the domain that `allowed` names, holding only the presented
/// certificate that has the pinned key.
fn pinned_bundle(
    chain: &[CertificateDer<'_>],
    pin: &[u8; 32],
    allowed: &Allowed,
) -> Result<TrustBundles, VerifyError> {
    let trust_domain = named_domain(allowed)
        .ok_or_else(|| VerifyError::NotAnSvid("joining names one trust domain".into()))?;
    let is_pinned =
        |certificate: &&CertificateDer<'_>| spki_sha256(certificate).as_ref() == Some(pin);
    let root = chain.iter().skip(1).find(is_pinned).ok_or_else(|| pin_missing(chain))?;
    let roots = vec![root.clone().into_owned()];
    let bundle = TrustBundle {
        trust_domain: trust_domain.clone(),
        sequence: 0,
        roots,
        retiring: None,
        jwt_keys: Vec::new(),
    };
    Ok(TrustBundles::from([(trust_domain, Arc::new(bundle))]))
}

fn pin_missing(chain: &[CertificateDer<'_>]) -> VerifyError {
    match chain.first().map(read_leaf) {
        Some(Ok((id, _))) => VerifyError::UntrustedChain {
            id,
            detail: "the root that the token names is not in the presented chain: it is of \
                     another site, or has been rotated away; ask for a new token"
                .into(),
        },
        Some(Err(error)) => error,
        None => VerifyError::NoCertificate,
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo; `None` if it does not parse.
pub(super) fn spki_sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// A certificate's serial number; `None` if it does not parse.
pub(super) fn serial_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(serial_hex(parsed.raw_serial()))
}

fn named_domain(allowed: &Allowed) -> Option<TrustDomain> {
    match allowed {
        Allowed::Exactly(id) => Some(id.trust_domain().clone()),
        Allowed::TrustDomain(domain) | Allowed::Neighbour(domain) | Allowed::Controlled(domain) => {
            Some(domain.clone())
        }
        Allowed::Known => None,
    }
}

/// Identity and end of a leaf, without any judgement of its signatures.
pub(super) fn read_leaf(leaf: &CertificateDer<'_>) -> Result<(SpiffeId, UnixTime), VerifyError> {
    let bad = |problem: &str| VerifyError::NotAnSvid(problem.into());
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| bad("it does not parse"))?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| bad("its subject alternative name does not parse"))?
        .ok_or_else(|| bad("it has no subject alternative name"))?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (Some(uri), None) = (uris.next(), uris.next()) else {
        return Err(bad("it must have exactly one URI"));
    };
    let id = uri.parse().map_err(|error| VerifyError::NotAnSvid(format!("{error}")))?;
    let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok((id, UnixTime::since_unix_epoch(std::time::Duration::from_secs(end))))
}

/// What both verifiers hold.
#[derive(Debug)]
struct Judge {
    source: Source,
    allowed: Allowed,
    witness: Witness,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Judge {
    fn new(source: Source, allowed: Allowed, witness: Witness) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { source, allowed, witness, algorithms }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        side: Side,
    ) -> Result<(), rustls::Error> {
        let borrowed = |certificate: &CertificateDer<'_>| certificate.clone().into_owned();
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).map(borrowed).collect();
        match self.source.verify(&chain, side, &self.allowed) {
            Ok(_) => Ok(()),
            Err(error) => {
                // Set twice only if a configuration serves many handshakes,
                // and then nobody reads it.
                let _ = self.witness.0.set(error.clone());
                Err(CertificateError::Other(OtherError(Arc::new(Refused(error)))).into())
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signed, &self.algorithms)
    }
}

/// QUIC tells the peer what this prints: the code, and nothing of what we
/// know or expect.
#[derive(Clone, thiserror::Error)]
#[error("{}", .0.code())]
struct Refused(VerifyError);

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.code())
    }
}

/// The verification error inside an error of rustls.
pub(super) fn from_rustls(error: &rustls::Error) -> Option<VerifyError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref().map(|Refused(error)| error.clone())
        }
        rustls::Error::NoCertificatesPresented => Some(VerifyError::NoCertificate),
        _ => None,
    }
}

fn tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".into())
}

/// Verifies servers.
#[derive(Debug)]
pub(super) struct ServerVerifier(Judge);

impl ServerVerifier {
    pub(super) fn new(source: Source, allowed: Allowed, witness: Witness) -> Self {
        Self(Judge::new(source, allowed, witness))
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.judge(leaf, rest, Side::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// Verifies clients.
#[derive(Debug)]
pub(super) struct ClientVerifier(Judge);

impl ClientVerifier {
    pub(super) fn new(source: Source, allowed: Allowed, witness: Witness) -> Self {
        Self(Judge::new(source, allowed, witness))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.judge(leaf, rest, Side::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}
