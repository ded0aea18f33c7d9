//! The one verifier.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, anchor_from_trusted_cert, aws_lc_rs};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, x509::X509Name,
};

use super::{
    Allowed, PeerIdentity, Revocations, Side, TrustBundle, TrustBundles, VerifyError, serial_hex,
};
use crate::name::{NodeId, SpiffeId, Subject};

/// Intermediates that a peer may present.
const MAX_INTERMEDIATES: usize = 4;

/// Ours are ECDSA P-256; other domains may be SPIRE with any of these.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    aws_lc_rs::ECDSA_P256_SHA256,
    aws_lc_rs::ECDSA_P256_SHA384,
    aws_lc_rs::ECDSA_P384_SHA256,
    aws_lc_rs::ECDSA_P384_SHA384,
    aws_lc_rs::ED25519,
    aws_lc_rs::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    aws_lc_rs::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA256,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA384,
    aws_lc_rs::RSA_PKCS1_2048_8192_SHA512,
];

/// Verifies a certificate chain (leaf first) that a peer has presented and
/// proved possession of.
///
/// The trust domain is taken from the leaf's only URI SAN, the chain is built
/// with that domain's bundle alone, and the identity must be `allowed`. Of
/// several faults the first in this order is told: not an SVID, unknown
/// domain, untrusted chain or outside its validity, revoked, not allowed.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    side: Side,
    bundles: &TrustBundles,
    revocations: &Revocations,
    allowed: &Allowed,
    now: UnixTime,
) -> Result<PeerIdentity, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    let peer = read_leaf(leaf)?;
    let domain = peer.id.trust_domain();
    let bundle =
        bundles.get(domain).ok_or_else(|| VerifyError::UnknownTrustDomain(domain.clone()))?;
    verify_chain(&peer, leaf, intermediates, bundle, side, now)?;
    if revocations.contains(&peer) {
        return Err(VerifyError::Revoked { id: peer.id });
    }
    if !allowed.accepts(&peer.id) {
        return Err(VerifyError::NotAllowed { id: peer.id, expected: allowed.to_string() });
    }
    Ok(peer)
}

/// What the leaf claims; nothing of it is proved yet.
fn read_leaf(der: &CertificateDer<'_>) -> Result<PeerIdentity, VerifyError> {
    let not_an_svid = |problem: &str| VerifyError::NotAnSvid(problem.to_owned());
    let (rest, leaf) = X509Certificate::from_der(der)
        .map_err(|_| not_an_svid("the certificate cannot be read"))?;
    if !rest.is_empty() {
        return Err(not_an_svid("bytes follow the certificate"));
    }
    refuse_ca(&leaf)?;
    let id: SpiffeId =
        only_uri(&leaf)?.parse().map_err(|error| VerifyError::NotAnSvid(format!("{error}")))?;
    let node = match id.subject() {
        Subject::Node(node) => Some(node.clone()),
        Subject::Workload { .. } => node_of(leaf.subject()),
    };
    let not_after = u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0);
    Ok(PeerIdentity {
        id,
        node,
        serial: serial_hex(leaf.raw_serial()),
        not_after: UnixTime::since_unix_epoch(Duration::from_secs(not_after)),
    })
}

/// X509-SVID sections 4.1 and 4.3: a leaf signs no certificates.
fn refuse_ca(leaf: &X509Certificate<'_>) -> Result<(), VerifyError> {
    let unreadable = |_| VerifyError::NotAnSvid("an extension cannot be read".to_owned());
    let not_an_svid = |problem: &str| Err(VerifyError::NotAnSvid(problem.to_owned()));
    if leaf.basic_constraints().map_err(unreadable)?.is_some_and(|basic| basic.value.ca) {
        return not_an_svid("it is a CA");
    }
    let Some(usage) = leaf.key_usage().map_err(unreadable)? else { return Ok(()) };
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return not_an_svid("its key usage lets it sign certificates");
    }
    if !usage.value.digital_signature() {
        return not_an_svid("its key usage lacks digitalSignature");
    }
    Ok(())
}

/// X509-SVID section 2: exactly one URI SAN; other names mean nothing here.
fn only_uri<'c>(leaf: &'c X509Certificate<'_>) -> Result<&'c str, VerifyError> {
    let not_an_svid = |problem: &str| VerifyError::NotAnSvid(problem.to_owned());
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| not_an_svid("its alternative names cannot be read"))?
        .ok_or_else(|| not_an_svid("it has no URI"))?;
    let mut uri = None;
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(_) if uri.is_some() => {
                return Err(not_an_svid("it has more than one URI"));
            }
            GeneralName::URI(value) => uri = Some(*value),
            // It may be a second URI in disguise.
            GeneralName::Invalid(..) => return Err(not_an_svid("a name of it cannot be read")),
            _ => {}
        }
    }
    uri.ok_or_else(|| not_an_svid("it has no URI"))
}

/// The only common name, if it is a UUID.
fn node_of(subject: &X509Name<'_>) -> Option<NodeId> {
    let mut names = subject.iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return None };
    name.as_str().ok()?.parse().ok()
}

fn verify_chain(
    peer: &PeerIdentity,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    side: Side,
    now: UnixTime,
) -> Result<(), VerifyError> {
    let untrusted = |detail: String| VerifyError::UntrustedChain { id: peer.id.clone(), detail };
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(untrusted(format!("more than {MAX_INTERMEDIATES} intermediates")));
    }
    // A root that cannot be read vouches for nobody.
    let anchors: Vec<TrustAnchor<'_>> =
        bundle.roots.iter().filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let usage = match side {
        Side::Server => KeyUsage::server_auth(),
        Side::Client => KeyUsage::client_auth(),
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(|error| untrusted(error.to_string()))?;
    leaf.verify_for_usage(ALGORITHMS, &anchors, intermediates, now, usage, None, None)
        .map(drop)
        .map_err(|error| match error {
            Error::CertExpired { not_after: limit, .. }
            | Error::CertNotValidYet { not_before: limit, .. } => {
                VerifyError::OutsideValidity { id: peer.id.clone(), now, limit }
            }
            other => untrusted(other.to_string()),
        })
}
