//! Proof that who redeems a link token holds a key under the bundle that it
//! presents: a signature by its federation over the token's secret.

use mesh_core::TrustDomain;
use mesh_tunnel::Svid;
use rustls::{
    SignatureScheme,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::CertificateDer,
};
use sha2::{Digest, Sha256};

/// What is signed begins with this, so that the signature means nothing else.
const CONTEXT: &[u8] = b"isthmus-link/1\0";
/// Federation's keys are P-256.
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

/// Why there is no proof, or not a good one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProofError(String);

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// SHA-256 over the token's secret and both trust domains.
fn message(secret: &[u8], redeems: &TrustDomain, issued: &TrustDomain) -> [u8; 32] {
    Sha256::new()
        .chain_update(CONTEXT)
        .chain_update(secret)
        .chain_update(redeems.as_str())
        .chain_update([0])
        .chain_update(issued.as_str())
        .finalize()
        .into()
}

/// Signs with federation's key (ECDSA over P-256 with SHA-256, ASN.1 DER).
pub fn prove(
    svid: &Svid,
    secret: &[u8],
    redeems: &TrustDomain,
    issued: &TrustDomain,
) -> Result<Vec<u8>, ProofError> {
    let fail = |error: rustls::Error| ProofError(format!("cannot sign: {error}"));
    let key = provider().key_provider.load_private_key(svid.key.clone_key()).map_err(fail)?;
    let signer = key.choose_scheme(&[SCHEME]);
    let signer = signer.ok_or_else(|| ProofError("federation's key is not P-256".into()))?;
    signer.sign(&message(secret, redeems, issued)).map_err(fail)
}

/// Checks a signature with the public key of a certificate, which the caller
/// has verified.
pub fn verify(
    leaf: &CertificateDer<'_>,
    proof: &[u8],
    secret: &[u8],
    redeems: &TrustDomain,
    issued: &TrustDomain,
) -> Result<(), ProofError> {
    let bad = || ProofError("the signature over the token does not verify".into());
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|_| ProofError("the certificate does not parse".into()))?;
    let key = &certificate.public_key().subject_public_key.data;
    let message = message(secret, redeems, issued);
    let algorithms = provider().signature_verification_algorithms;
    let candidates = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == SCHEME);
    let verified = candidates
        .flat_map(|(_, algorithms)| algorithms.iter())
        .any(|algorithm| algorithm.verify_signature(key, &message, proof).is_ok());
    if verified { Ok(()) } else { Err(bad()) }
}
