//! Certificate authorities made on the spot.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{SpiffeId, TrustBundle, TrustDomain, identity::Revocations};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls::{Credentials, Svid, Trust};

/// Root and issuing CA of one trust domain.
pub(crate) struct Authority {
    pub(crate) domain: TrustDomain,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(domain: &str) -> Self {
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = CertifiedIssuer::self_signed(ca_params(domain, "root"), root_key).unwrap();
        let issuer_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let issuer =
            CertifiedIssuer::signed_by(ca_params(domain, "issuer"), issuer_key, &root).unwrap();
        Self { domain: domain.parse().unwrap(), root, issuer }
    }

    pub(crate) fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub(crate) fn pin(&self) -> [u8; 32] {
        use sha2::Digest;
        use x509_parser::prelude::FromDer;
        let root = self.root();
        let (_, parsed) = x509_parser::prelude::X509Certificate::from_der(&root).unwrap();
        sha2::Sha256::digest(parsed.public_key().raw).into()
    }

    pub(crate) fn bundle(&self) -> (TrustDomain, Arc<TrustBundle>) {
        let roots = vec![self.root()];
        let bundle = TrustBundle::of_roots(self.domain.clone(), roots);
        (self.domain.clone(), Arc::new(bundle))
    }

    pub(crate) fn svid(&self, id: &SpiffeId) -> Svid {
        self.svid_for(id, Duration::from_secs(3600))
    }

    /// Issued under a machine, for an hour.
    pub(crate) fn svid_under(&self, id: &SpiffeId, node: &str) -> Svid {
        self.signed(id, Duration::from_secs(3600), Some(node))
    }

    pub(crate) fn svid_for(&self, id: &SpiffeId, lifetime: Duration) -> Svid {
        self.signed(id, lifetime, None)
    }

    fn signed(&self, id: &SpiffeId, lifetime: Duration, node: Option<&str>) -> Svid {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(node) = node {
            params.distinguished_name.push(DnType::CommonName, node);
        }
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let now = mesh_runtime::clock::now_unix();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(Duration::from_secs(600));
        // Certificates are good to the end of their last second.
        params.not_after = epoch + (now + lifetime).saturating_sub(Duration::from_secs(1));
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        Svid::from_der(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
    }

    pub(crate) fn workload(&self, account: &str) -> SpiffeId {
        SpiffeId::workload(&self.domain, "shop", account).unwrap()
    }

    pub(crate) fn gateway(&self) -> SpiffeId {
        SpiffeId::gateway(&self.domain)
    }
}

fn ca_params(domain: &str, name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{domain} {name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names =
        vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into().unwrap())];
    params
}

/// Believes all `authorities` and revokes nothing.
pub(crate) fn trust(authorities: &[&Authority]) -> Trust {
    let bundles: BTreeMap<_, _> = authorities.iter().map(|authority| authority.bundle()).collect();
    Trust { bundles: Arc::new(bundles), revocations: Arc::new(Revocations::default()) }
}

/// `id` of `authority`, believing all of `believed`.
pub(crate) fn credentials(
    authority: &Authority,
    id: &SpiffeId,
    believed: &[&Authority],
) -> Arc<Credentials> {
    Credentials::new(Some(authority.svid(id)), trust(believed))
}
