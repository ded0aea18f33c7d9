//! Certificate authorities made on the spot.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{SpiffeId, TrustBundle, TrustBundles, TrustDomain};
use mesh_runtime::clock;
use mesh_tunnel::Svid;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Root and issuing CA of one trust domain.
pub struct Authority {
    domain: TrustDomain,
    root: CertifiedIssuer<'static, KeyPair>,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Authority {
    pub fn new(domain: &str) -> Self {
        let root = CertifiedIssuer::self_signed(ca_params("root"), key()).unwrap();
        let issuer = CertifiedIssuer::signed_by(ca_params("issuer"), key(), &root).unwrap();
        Self { domain: domain.parse().unwrap(), root, issuer }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    /// Its own bundle and no other.
    pub fn bundles(&self) -> Arc<TrustBundles> {
        let roots = vec![self.root()];
        let bundle = TrustBundle::of_roots(self.domain.clone(), roots);
        Arc::new(BTreeMap::from([(self.domain.clone(), Arc::new(bundle))]))
    }

    /// `spiffe://<domain>/ns/shop/sa/<account>`.
    pub fn workload(&self, account: &str) -> Svid {
        self.sign(&SpiffeId::workload(&self.domain, "shop", account).unwrap())
    }

    /// The same for so long.
    pub fn workload_for(&self, account: &str, life: Duration) -> Svid {
        self.sign_for(&SpiffeId::workload(&self.domain, "shop", account).unwrap(), life)
    }

    /// Signs anything.
    pub fn sign(&self, id: &SpiffeId) -> Svid {
        self.sign_for(id, Duration::from_secs(3600))
    }

    fn sign_for(&self, id: &SpiffeId, life: Duration) -> Svid {
        let key = key();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + clock::now_unix().saturating_sub(Duration::from_secs(600));
        params.not_after = epoch + clock::now_unix() + life;
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        Svid::from_der(chain, PrivateKeyDer::Pkcs8(key.serialize_der().into())).unwrap()
    }
}
