//! The injector's serving certificate and the CA behind it: what a Secret holds
//! of them, and which step comes next. No clock, no cluster.
//!
//! A CA is replaced in an order in which no API server ever meets a certificate
//! that it does not trust: the next CA is made; the webhook's `caBundle` holds
//! it, too; some time later leaves hang on it; when no replica can have an older
//! leaf the last CA goes.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

const DAY: i64 = 86_400;
/// Certificates begin earlier, for clocks that are behind.
const BACKDATED_S: i64 = 600;

/// Keys of the Secret; those of the leaf as `kubernetes.io/tls` has them.
const LEAF: &str = "tls.crt";
const LEAF_KEY: &str = "tls.key";
const CA: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT: &str = "next-ca.crt";
const NEXT_KEY: &str = "next-ca.key";
/// Since when the webhook's bundle has the next one, in Unix seconds.
const NEXT_SINCE: &str = "next-ca.since";
const LAST: &str = "last-ca.crt";
/// Until when it is trusted, in Unix seconds.
const LAST_UNTIL: &str = "last-ca.until";

/// How long things last, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lives {
    /// A CA is replaced at two thirds.
    pub(super) ca: i64,
    /// So is a leaf.
    pub(super) leaf: i64,
    /// API servers may take so long to see a new bundle.
    pub(super) settle: i64,
    /// Replicas may take so long to see a new leaf.
    pub(super) overlap: i64,
}

impl Default for Lives {
    fn default() -> Self {
        Self { ca: 365 * DAY, leaf: 30 * DAY, settle: 120, overlap: 3600 }
    }
}

/// What the Secret holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Material {
    ca: Pair,
    leaf: Pair,
    next: Option<(Pair, Option<i64>)>,
    last: Option<(String, i64)>,
}

/// Certificate and key, both PEM.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why a Secret is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum MaterialError {
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} cannot be read")]
    Broken(&'static str),
    #[error("cryptography failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

/// What is read of a certificate.
struct Read {
    not_before: i64,
    not_after: i64,
    names: Vec<String>,
}

impl Material {
    /// Made anew, for a service with these names.
    pub(super) fn new(names: &[String], now: i64, lives: Lives) -> Result<Self, MaterialError> {
        let ca = new_ca(now, lives.ca)?;
        let leaf = new_leaf(&ca, names, now, lives)?;
        Ok(Self { ca, leaf, next: None, last: None })
    }

    /// From the data of a Secret.
    pub(super) fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, MaterialError> {
        let text = |key: &'static str| -> Result<Option<String>, MaterialError> {
            let Some(ByteString(bytes)) = data.get(key) else { return Ok(None) };
            let text = String::from_utf8(bytes.clone());
            text.map(Some).map_err(|_| MaterialError::Broken(key))
        };
        let pair = |certificate: &'static str, key: &'static str| {
            let both = (text(certificate)?, text(key)?);
            let (Some(pem), Some(secret)) = both else {
                return Err(MaterialError::Missing(certificate));
            };
            read(&pem).ok_or(MaterialError::Broken(certificate))?;
            KeyPair::from_pem(&secret).map_err(|_| MaterialError::Broken(key))?;
            Ok(Pair { certificate: pem, key: secret })
        };
        let number = |key: &'static str| {
            let parsed = text(key)?.map(|text| text.trim().parse::<i64>());
            parsed.transpose().map_err(|_| MaterialError::Broken(key))
        };
        let next = match text(NEXT)? {
            Some(_) => Some((pair(NEXT, NEXT_KEY)?, number(NEXT_SINCE)?)),
            None => None,
        };
        let last = match (text(LAST)?, number(LAST_UNTIL)?) {
            (Some(pem), Some(until)) => Some((pem, until)),
            _ => None,
        };
        Ok(Self { ca: pair(CA, CA_KEY)?, leaf: pair(LEAF, LEAF_KEY)?, next, last })
    }

    /// For the data of a Secret.
    pub(super) fn write(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: &str| {
            data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        };
        for (pair, certificate, key) in [(&self.ca, CA, CA_KEY), (&self.leaf, LEAF, LEAF_KEY)] {
            put(certificate, &pair.certificate);
            put(key, &pair.key);
        }
        if let Some((pair, since)) = &self.next {
            put(NEXT, &pair.certificate);
            put(NEXT_KEY, &pair.key);
            if let Some(since) = since {
                put(NEXT_SINCE, &since.to_string());
            }
        }
        if let Some((certificate, until)) = &self.last {
            put(LAST, certificate);
            put(LAST_UNTIL, &until.to_string());
        }
        data
    }

    /// Whom API servers have to trust: PEM.
    pub(super) fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|(pair, _)| pair.certificate.as_str());
        let last = self.last.as_ref().map(|(certificate, _)| certificate.as_str());
        [Some(self.ca.certificate.as_str()), next, last].into_iter().flatten().collect()
    }

    /// Chain and key to serve with.
    pub(super) fn leaf(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), MaterialError> {
        let chain = CertificateDer::pem_slice_iter(self.leaf.certificate.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>();
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key.as_bytes());
        match (chain, key) {
            (Ok(chain), Ok(key)) => Ok((chain, key)),
            _ => Err(MaterialError::Broken(LEAF)),
        }
    }

    /// Seconds that the leaf and the CA have left.
    pub(super) fn left(&self, now: i64) -> (i64, i64) {
        let left = |pair: &Pair| read(&pair.certificate).map_or(0, |read| read.not_after - now);
        (left(&self.leaf), left(&self.ca))
    }

    /// The next step, if one is due. `bundle` is what the webhook's
    /// configuration holds.
    pub(super) fn step(
        &self,
        names: &[String],
        bundle: &str,
        now: i64,
        lives: Lives,
    ) -> Result<Option<Self>, MaterialError> {
        if self.last.as_ref().is_some_and(|(_, until)| now >= *until) {
            return Ok(Some(Self { last: None, ..self.clone() }));
        }
        match &self.next {
            Some((next, Some(since))) if now >= since + lives.settle => {
                let last = Some((self.ca.certificate.clone(), now + lives.overlap));
                let leaf = new_leaf(next, names, now, lives)?;
                return Ok(Some(Self { ca: next.clone(), leaf, next: None, last }));
            }
            Some((next, None)) if bundle.contains(next.certificate.trim()) => {
                return Ok(Some(Self { next: Some((next.clone(), Some(now))), ..self.clone() }));
            }
            Some(_) => {}
            None if is_due(&self.ca, now) => {
                return Ok(Some(Self {
                    next: Some((new_ca(now, lives.ca)?, None)),
                    ..self.clone()
                }));
            }
            None => {}
        }
        let has = read(&self.leaf.certificate).map(|read| read.names).unwrap_or_default();
        if is_due(&self.leaf, now) || names.iter().any(|name| !has.contains(name)) {
            let leaf = new_leaf(&self.ca, names, now, lives)?;
            return Ok(Some(Self { leaf, ..self.clone() }));
        }
        Ok(None)
    }
}

/// Two thirds of its life are over.
fn is_due(pair: &Pair, now: i64) -> bool {
    read(&pair.certificate)
        .is_none_or(|read| now >= read.not_after - (read.not_after - read.not_before) / 3)
}

fn read(pem: &str) -> Option<Read> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let names = certificate.subject_alternative_name().ok()?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Some(Read {
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        names: names
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            })
            .collect(),
    })
}

fn params(now: i64, life: i64) -> CertificateParams {
    let time = |unix_s: i64| {
        time::OffsetDateTime::from_unix_timestamp(unix_s)
            .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let mut params = CertificateParams::default();
    params.not_before = time(now - BACKDATED_S.min(life));
    params.not_after = time(now + life);
    params.distinguished_name = DistinguishedName::new();
    params
}

fn new_ca(now: i64, life: i64) -> Result<Pair, MaterialError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(now, life);
    // Two that are trusted at once have different names: verifiers look for
    // issuers by name.
    params.distinguished_name.push(DnType::CommonName, format!("isthmus injector CA {now}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

fn new_leaf(ca: &Pair, names: &[String], now: i64, lives: Lives) -> Result<Pair, MaterialError> {
    let issuer_key = KeyPair::from_pem(&ca.key)?;
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, issuer_key)?;
    let ends = read(&ca.certificate).map_or(now, |read| read.not_after);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params(now, lives.leaf.min(ends - now));
    for name in names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.distinguished_name.push(DnType::CommonName, "isthmus injector");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// Seconds as the rest of this module counts them.
pub(super) fn seconds(since_1970: Duration) -> i64 {
    i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::{ServerName, UnixTime},
    };

    use super::*;

    const NOW: i64 = 1_800_000_000;

    pub(in crate::injector) fn names() -> Vec<String> {
        vec!["isthmus-injector.isthmus-system.svc".into()]
    }

    /// Whether an API server that has this bundle takes a leaf.
    fn trusts(bundle: &str, material: &Material, name: &str, now: i64) -> bool {
        let (chain, _) = material.leaf().unwrap();
        trusts_chain(bundle, &chain[0], name, now)
    }

    pub(in crate::injector) fn trusts_chain(
        bundle: &str,
        leaf: &[u8],
        name: &str,
        now: i64,
    ) -> bool {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
        verifier.verify_server_cert(&leaf.into(), &[], &name, &[], now).is_ok()
    }

    #[test]
    fn a_new_one_is_trusted_by_its_bundle_and_name() {
        let material = Material::new(&names(), NOW, Lives::default()).unwrap();
        let bundle = material.bundle();
        assert!(trusts(&bundle, &material, &names()[0], NOW));
        assert!(!trusts(&bundle, &material, "other.isthmus-system.svc", NOW));
        let other = Material::new(&names(), NOW, Lives::default()).unwrap();
        assert!(!trusts(&other.bundle(), &material, &names()[0], NOW));
        assert_eq!(Material::read(&material.write()).unwrap(), material);
        assert!(material.step(&names(), &bundle, NOW + DAY, Lives::default()).unwrap().is_none());
        assert_eq!(material.left(NOW), (30 * DAY, 365 * DAY));
    }

    /// Over three years, a step at a time, API servers that see a bundle late
    /// and replicas that see a leaf late: somebody who serves is never refused.
    #[test]
    fn no_rotation_is_noticed() {
        let lives = Lives::default();
        let mut now = NOW;
        let mut material = Material::new(&names(), now, lives).unwrap();
        // What an API server has had, and a replica serves, a while ago.
        let (mut bundle, mut served) = (material.bundle(), material.clone());
        let (mut leaves, mut cas) = (0, 0);
        while now < NOW + 3 * 365 * DAY {
            let in_force = material.bundle();
            let Some(next) = material.step(&names(), &in_force, now, lives).unwrap() else {
                (bundle, served) = (in_force, material.clone());
                now += DAY / 2;
                continue;
            };
            leaves += usize::from(next.leaf != material.leaf);
            cas += usize::from(next.ca != material.ca);
            if next.leaf != material.leaf {
                // Whoever has a fresh leaf meets API servers that are behind.
                assert!(trusts(&bundle, &next, &names()[0], now), "{now}");
            }
            assert!(trusts(&next.bundle(), &served, &names()[0], now), "{now}");
            material = Material::read(&next.write()).unwrap();
            now += lives.settle;
            // API servers have seen the bundle of before.
            bundle = in_force;
        }
        assert!(cas >= 4 && leaves >= 50, "{cas} {leaves}");
    }

    #[test]
    fn a_ca_that_nobody_has_seen_signs_nothing() {
        let lives = Lives::default();
        let first = Material::new(&names(), NOW, lives).unwrap();
        let due = NOW + 300 * DAY;
        let second = first.step(&names(), "", due, lives).unwrap().unwrap();
        assert!(second.next.is_some() && second.ca == first.ca);
        // The leaf is due, too, and is renewed by the CA that is trusted.
        let third = second.step(&names(), &first.bundle(), due + DAY, lives).unwrap().unwrap();
        assert!(third.ca == first.ca && third.leaf != first.leaf && third.next == second.next);
        assert!(third.step(&names(), &first.bundle(), due + DAY, lives).unwrap().is_none());
        let fourth = third.step(&names(), &third.bundle(), due + DAY, lives).unwrap().unwrap();
        assert!(
            fourth
                .step(&names(), &third.bundle(), due + DAY + lives.settle - 1, lives)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn another_service_gets_another_leaf() {
        let material = Material::new(&names(), NOW, Lives::default()).unwrap();
        let others = vec!["hook.other.svc".to_owned()];
        let next = material.step(&others, "", NOW, Lives::default()).unwrap().unwrap();
        assert!(trusts(&material.bundle(), &next, "hook.other.svc", NOW));
    }

    #[test]
    fn what_is_broken_is_named() {
        let material = Material::new(&names(), NOW, Lives::default()).unwrap();
        let problem = |key: &str, text: &str| {
            let mut data = material.write();
            data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
            Material::read(&data).unwrap_err().to_string()
        };
        assert_eq!(problem(CA, "x"), "ca.crt cannot be read");
        assert_eq!(problem(LEAF_KEY, ""), "tls.key cannot be read");
        assert_eq!(problem(NEXT, "x"), "next-ca.crt is missing");
        assert_eq!(Material::read(&BTreeMap::new()).unwrap_err().to_string(), "ca.crt is missing");
        assert!(!format!("{material:?}").contains("PRIVATE"));
    }
}
