//! Whom a listener takes for a client of the old kind, and whom for one of the
//! mesh.

use std::sync::Arc;

use mesh_core::{Allowed, identity::Side};
use mesh_runtime::config::ConfigError;
use mesh_tunnel::Credentials;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{pem, provider};
use crate::config::{
    ListenerTls,
    transition::{ClientName, ClientNameKind},
};

/// Texts of the files that are about clients.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Texts {
    pub(super) client_ca: Option<String>,
    pub(super) crl: Option<String>,
}

/// Asks each client for a certificate, and takes those of the CA and those of
/// the mesh.
#[derive(Debug)]
pub(super) struct Clients {
    legacy: Option<Arc<dyn ClientCertVerifier>>,
    /// Of those of the CA; all where there is none.
    names: Vec<ClientName>,
    /// What it believes is asked for at each handshake: it changes.
    mesh: Option<Arc<Credentials>>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug, thiserror::Error)]
#[error("it has none of the names in `client_names`")]
struct NotNamed;

/// `None`: clients are not asked for a certificate.
///
/// # Errors
///
/// A file does not hold what it must.
pub(super) fn asked_for(
    tls: &ListenerTls,
    texts: &Texts,
    credentials: &Arc<Credentials>,
) -> Result<Option<Clients>, ConfigError> {
    let mesh = tls.mesh_clients.then(|| credentials.clone());
    let legacy = legacy(tls, texts)?;
    let is_any = legacy.is_some() || mesh.is_some();
    let names = tls.client_names.clone();
    Ok(is_any.then(|| Clients { legacy, names, mesh, provider: provider() }))
}

/// With revocation lists as OpenSSL has it with `X509_V_FLAG_CRL_CHECK_ALL`, which
/// HAProxy, nginx and Envoy ask for: one that is current for each issuer.
fn legacy(
    tls: &ListenerTls,
    texts: &Texts,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ConfigError> {
    let Some(path) = &tls.client_ca else { return Ok(None) };
    let unread = || pem::wrong(path, "client_ca", "was not read");
    let roots = pem::roots(path, texts.client_ca.as_deref().ok_or_else(unread)?)?;
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    if let Some(path) = &tls.crl {
        let unread = || pem::wrong(path, "crl", "was not read");
        let lists = pem::revocations(path, texts.crl.as_deref().ok_or_else(unread)?)?;
        builder = builder.with_crls(lists).enforce_revocation_expiration();
    }
    let built = builder.build().map_err(|error| pem::wrong(path, "client_ca and crl", error))?;
    Ok(Some(built))
}

/// Whether this is the certificate of somebody of the mesh: of a trust domain
/// that is known, and not revoked.
pub(super) fn is_of_mesh(credentials: &Credentials, chain: &[CertificateDer<'_>]) -> bool {
    credentials.verify(chain, Side::Client, &Allowed::Known).is_ok()
}

impl Clients {
    /// A chain that the CA vouches for, of somebody who may come.
    fn of_legacy(
        &self,
        legacy: &dyn ClientCertVerifier,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = legacy.verify_client_cert(leaf, rest, now)?;
        if self.names.is_empty() {
            return Ok(verified);
        }
        let read = webpki::EndEntityCert::try_from(leaf);
        let read = read.map_err(|_| CertificateError::BadEncoding)?;
        let is_named = self.names.iter().any(|name| match name.kind {
            ClientNameKind::Dns => read.valid_dns_names().any(|one| name.is(one)),
            ClientNameKind::Uri => read.valid_uri_names().any(|one| name.is(one)),
        });
        match is_named {
            true => Ok(verified),
            false => Err(CertificateError::Other(OtherError(Arc::new(NotNamed))).into()),
        }
    }

    fn of_mesh(
        credentials: &Credentials,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        match credentials.verify(&chain, Side::Client, &Allowed::Known) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(CertificateError::Other(OtherError(Arc::new(error))).into()),
        }
    }
}

impl ClientCertVerifier for Clients {
    /// Where both kinds are taken no CA is named (RFC 8446 section 4.2.4): who
    /// chooses his certificate by it would not show one of the mesh.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        match (&self.legacy, &self.mesh) {
            (Some(legacy), None) => legacy.root_hint_subjects(),
            _ => &[],
        }
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let legacy = self.legacy.as_deref();
        let legacy = legacy.map(|legacy| self.of_legacy(legacy, leaf, rest, now));
        match (legacy, &self.mesh) {
            (Some(Ok(verified)), _) => Ok(verified),
            (Some(Err(error)), None) => Err(error),
            (None, None) => Err(CertificateError::UnknownIssuer.into()),
            (Some(Err(error)), Some(credentials)) => {
                // Who is of neither is told of as one of the old kind.
                Self::of_mesh(credentials, leaf, rest).map_err(|_| error)
            }
            (None, Some(credentials)) => Self::of_mesh(credentials, leaf, rest),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
