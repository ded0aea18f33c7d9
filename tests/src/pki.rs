//! Certificate authorities of made-up sites.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use mesh_core::{
    NodeId, SpiffeId, TrustBundle, TrustDomain,
    jwt::{self, JwtKey},
};
use mesh_tunnel::Svid;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use sha2::{Digest, Sha256};

const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);

/// The name of a CA's key for tokens.
const KID: &str = "k1";

/// A root, an issuing CA and a key for tokens, as federation makes them.
pub struct Ca {
    /// Whose CA it is.
    pub trust_domain: TrustDomain,
    /// The root, DER.
    pub root: CertificateDer<'static>,
    /// SHA-256 of the root's SubjectPublicKeyInfo, as tokens pin it.
    pub root_spki_sha256: [u8; 32],
    /// The issuing CA, DER.
    pub issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    jwt: EcdsaKeyPair,
}

impl Ca {
    /// A fresh CA.
    pub fn new(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().expect("a trust domain");
        let root_key = KeyPair::generate().expect("a key");
        let root_params = ca_params(&format!("{trust_domain} root"), 1);
        let root = root_params.self_signed(&root_key).expect("a root");
        let root_spki_sha256 = Sha256::digest(root_key.subject_public_key_info()).into();
        let root_issuer = Issuer::new(root_params, root_key);
        let key = KeyPair::generate().expect("a key");
        let params = ca_params(&format!("{trust_domain} issuing"), 0);
        let issuing = params.signed_by(&key, &root_issuer).expect("an issuing CA");
        Self {
            trust_domain,
            root: root.der().clone(),
            root_spki_sha256,
            issuing: issuing.der().clone(),
            issuer: Issuer::new(params, key),
            jwt: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
        }
    }

    /// Its bundle.
    pub fn bundle(&self) -> TrustBundle {
        TrustBundle {
            trust_domain: self.trust_domain.clone(),
            sequence: 1,
            roots: vec![self.root.clone()],
            retiring: None,
            jwt_keys: JwtKey::new(KID, self.jwt.public_key().as_ref()).into_iter().collect(),
        }
    }

    /// A JWT-SVID for this identity, also one of another domain.
    pub fn token(
        &self,
        id: &SpiffeId,
        audience: &[String],
        lifetime: std::time::Duration,
    ) -> String {
        let seconds = |time: std::time::Duration| i64::try_from(time.as_secs()).expect("a time");
        let now = seconds(std::time::Duration::from_secs(UnixTime::now().as_secs()));
        let to_sign = jwt::to_sign(KID, id, audience, now, now + seconds(lifetime));
        let signature = self.jwt.sign(&SystemRandom::new(), to_sign.as_bytes());
        jwt::with_signature(&to_sign, signature.expect("a signature").as_ref())
    }

    /// `spiffe://<this>/ns/<namespace>/sa/<account>`, valid for a day.
    pub fn workload(&self, namespace: &str, account: &str, node: Option<&NodeId>) -> Svid {
        let id = SpiffeId::workload(&self.trust_domain, namespace, account).expect("an id");
        self.sign(&id, node)
    }

    /// The gateway of this domain.
    pub fn gateway(&self) -> Svid {
        self.sign(&SpiffeId::gateway(&self.trust_domain), None)
    }

    /// Signs any identity, also one of another domain: what a hostile CA does.
    pub fn sign(&self, id: &SpiffeId, node: Option<&NodeId>) -> Svid {
        let key = KeyPair::generate().expect("a key");
        let now = UnixTime::now();
        let params = leaf_params(id, node, now);
        let leaf = params.signed_by(&key, &self.issuer).expect("a leaf");
        Svid {
            id: id.clone(),
            chain: vec![leaf.der().clone(), self.issuing.clone()],
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after: UnixTime::since_unix_epoch(
                std::time::Duration::from_secs(now.as_secs()) + DAY,
            ),
        }
    }

    /// Certifies the key of a PKCS#10 request: leaf and issuing CA, DER.
    pub fn certify(&self, csr: &[u8], id: &SpiffeId, node: Option<&NodeId>) -> Vec<Vec<u8>> {
        self.certify_for(csr, id, node, DAY)
    }

    /// The same for another lifetime.
    pub fn certify_for(
        &self,
        csr: &[u8],
        id: &SpiffeId,
        node: Option<&NodeId>,
        lifetime: std::time::Duration,
    ) -> Vec<Vec<u8>> {
        let csr = CertificateSigningRequestParams::from_der(&csr.into()).expect("a request");
        let now = UnixTime::now();
        let mut params = leaf_params(id, node, now);
        params.not_after = validity(now).1 - DAY + lifetime;
        let leaf = params.signed_by(&csr.public_key, &self.issuer).expect("a leaf");
        vec![leaf.der().to_vec(), self.issuing.to_vec()]
    }
}

fn leaf_params(id: &SpiffeId, node: Option<&NodeId>, now: UnixTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(node) = node {
        params.distinguished_name.push(DnType::CommonName, node.as_str());
    }
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().expect("ASCII"))];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let (from, until) = validity(now);
    (params.not_before, params.not_after) = (from, until);
    params
}

fn validity(now: UnixTime) -> (time::OffsetDateTime, time::OffsetDateTime) {
    let now = time::OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
    (now - std::time::Duration::from_secs(600), now + DAY)
}

fn ca_params(name: &str, path_len: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
