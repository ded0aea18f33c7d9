//! The certificate authority of a site.
//!
//! Root (10 years, only signs issuing CAs) → issuing CA (pathlen 0) → leaves.
//! Of a request only the public key counts: whom a certificate names is the
//! caller's decision, and how long it lives is decided here. While a root is
//! rotated there are two ([`places`]); one of them signs. JWT-SVIDs have keys of
//! their own ([`jwt`]).

pub mod jwt;
mod places;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use mesh_core::{NodeId, SpiffeId, TrustDomain, name::Subject};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

use crate::{clock::Clock, refusal::Refusal};

const DAY: Duration = Duration::from_secs(86_400);
/// How long a root lives.
pub const ROOT_LIFE: Duration = Duration::from_secs(3650 * 86_400);
/// How long an issuing CA lives. It is replaced at two thirds, and what is left
/// then is no less than [`NODE_LIFE`]: no leaf is cut short by its issuer, so a
/// node may really sleep that long.
pub const ISSUING_LIFE: Duration = Duration::from_secs(93 * 86_400);
/// How long a node may be asleep.
pub const NODE_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How long workloads, gateways and federation keep a certificate, unless
/// federation.yaml says otherwise.
pub const WORKLOAD_LIFE: Duration = DAY;
/// How long a program keeps one that says that it ends soon.
pub const BRIEF_LIFE: Duration = Duration::from_secs(3600);
/// Leaves begin earlier, for clocks that are behind.
pub const BACKDATED: Duration = Duration::from_secs(600);
/// The longest request that is read, in bytes.
pub const MAX_CSR: usize = 16 * 1024;

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is not one, or not signed by its own key.
    #[error("the certificate request is not valid: {0}")]
    BadRequest(String),
    /// The key is of a kind we do not certify.
    #[error("the key of the request is neither P-256, P-384 nor Ed25519")]
    BadKey,
    /// An operator has taken the identity back.
    #[error("{0} is revoked; `meshctl identity reinstate {0}` takes that back")]
    Revoked(SpiffeId),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
}

/// Why the CA cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of it.
    #[error("{path}: {problem}")]
    File {
        /// Which.
        path: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
    /// Signing or generating failed.
    #[error("cryptography failed: {0}")]
    Crypto(#[from] rcgen::Error),
}

impl Refusal for IssueError {
    fn code(&self) -> Code {
        match self {
            Self::BadRequest(_) | Self::BadKey => Code::InvalidArgument,
            Self::Revoked(_) => Code::PermissionDenied,
            Self::Signing(_) => Code::Internal,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::BadKey => "bad_key",
            Self::Revoked(_) => "identity_revoked",
            Self::Signing(_) => "signing_failed",
        }
    }
}

/// A PKCS#10 request (RFC 2986), reduced to what counts: a public key of which
/// the requester has proved possession. Names in it are not even looked at.
#[derive(Debug)]
pub struct KeyRequest {
    key: SubjectPublicKeyInfo,
    spki_sha256: [u8; 32],
}

impl KeyRequest {
    /// Reads DER and checks its signature.
    pub fn parse(csr: &[u8]) -> Result<Self, IssueError> {
        let bad = |problem: &str| IssueError::BadRequest(problem.to_owned());
        if csr.len() > MAX_CSR {
            return Err(bad("it is longer than 16 KiB"));
        }
        let (rest, request) = X509CertificationRequest::from_der(csr)
            .map_err(|_| bad("it is not a PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(bad("bytes follow it"));
        }
        let spki = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| IssueError::BadKey)?;
        let accepted = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if !accepted.contains(&key.algorithm()) {
            return Err(IssueError::BadKey);
        }
        request.verify_signature().map_err(|_| bad("it is not signed with its own key"))?;
        Ok(Self { key, spki_sha256: Sha256::digest(spki).into() })
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn spki_sha256(&self) -> [u8; 32] {
        self.spki_sha256
    }
}

/// A leaf with what is said about it in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Leaf, then issuing CA, then what introduces its root; DER.
    pub chain: Vec<Vec<u8>>,
    /// Lower-case hex.
    pub serial: String,
    /// Unix seconds.
    pub not_after_unix_s: i64,
    /// SHA-256 of the root's SubjectPublicKeyInfo.
    pub root_sha256: [u8; 32],
}

/// Signs leaves.
#[derive(Debug)]
pub struct CertificateAuthority {
    keys: PathBuf,
    trust_domain: TrustDomain,
    signing: ArcSwap<Signing>,
    jwt_keys: jwt::JwtKeys,
    workload_life: Duration,
    clock: Clock,
}

/// The root under which leaves are signed.
#[derive(Debug, Clone)]
struct Signing {
    place: PathBuf,
    root: CertificateDer<'static>,
    root_sha256: [u8; 32],
    root_not_after_unix_s: i64,
    issuing: Arc<Issuing>,
    /// The root's key, signed by the root that it replaces.
    cross: Option<CertificateDer<'static>>,
}

#[derive(Debug)]
struct Issuing {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    not_after_unix_s: i64,
}

impl CertificateAuthority {
    /// Makes root and issuing CA in a directory that has none, readable by
    /// their owner only. Returns the root, DER.
    pub fn create(
        keys: &Path,
        trust_domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<Vec<u8>, CaError> {
        let root = places::Root::new(&root_name(trust_domain), clock)?;
        places::make(keys, trust_domain, clock, root, None)
    }

    /// The same under a root that [`CertificateAuthority::create_root`] has
    /// made in another directory.
    pub fn create_under(
        root: &Path,
        keys: &Path,
        trust_domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<Vec<u8>, CaError> {
        places::make(keys, trust_domain, clock, places::Root::read(root)?, None)
    }

    /// A root alone, to be kept elsewhere: `root.key` and `root.crt`. Returns
    /// it, DER.
    pub fn create_root(
        place: &Path,
        trust_domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<Vec<u8>, CaError> {
        let root = places::Root::new(&root_name(trust_domain), clock)?;
        root.write(place)?;
        Ok(root.certificate().to_vec())
    }

    /// Opens what [`CertificateAuthority::create`] made. Where there has been a
    /// rotation, [`CertificateAuthority::sign_under`] says which root counts.
    pub fn open(keys: &Path, trust_domain: &TrustDomain, clock: Clock) -> Result<Self, CaError> {
        let signing = places::load(&places::find(keys, None)?)?;
        Ok(Self {
            keys: keys.to_owned(),
            trust_domain: trust_domain.clone(),
            signing: ArcSwap::from_pointee(signing),
            jwt_keys: jwt::JwtKeys::open(keys)?,
            workload_life: WORKLOAD_LIFE,
            clock,
        })
    }

    /// Makes the root that is to replace the one that signs: key and
    /// certificate, an issuing CA under it, and its key signed by the old root,
    /// with which those believe it who know only that. Nothing is signed with
    /// it yet. `number` tells its name from the others'. Returns it, DER.
    pub fn prepare_root(&self, number: u64) -> Result<Vec<u8>, CaError> {
        let before = places::root_issuer(&self.signing.load())?;
        let name = format!("{} root {number}", self.trust_domain);
        places::make_below(&self.keys, &self.trust_domain, &name, &self.clock, &before)
    }

    /// Signs under this root from now on (DER).
    pub fn sign_under(&self, root: &[u8]) -> Result<(), CaError> {
        if *self.signing.load().root != *root {
            let place = places::find(&self.keys, Some(root))?;
            self.signing.store(Arc::new(places::load(&place)?));
        }
        Ok(())
    }

    /// Removes every key but those of these roots (DER), one of which signs.
    pub fn keep_only(&self, roots: &[Vec<u8>]) -> Result<(), CaError> {
        places::keep_only(&self.keys, roots)?;
        let signing = self.signing.load();
        if roots.len() == 1 && signing.cross.is_some() {
            self.signing.store(Arc::new(Signing { cross: None, ..Signing::clone(&signing) }));
        }
        Ok(())
    }

    /// With another lifetime of certificates of workloads, gateways and
    /// federation.
    #[must_use]
    pub fn with_workload_life(self, workload_life: Duration) -> Self {
        Self { workload_life, ..self }
    }

    /// How long workloads, gateways and federation keep a certificate.
    pub fn workload_life(&self) -> Duration {
        self.workload_life
    }

    /// Replaces the issuing CA once two thirds of its life are over. Returns
    /// whether it did. Fails without the root's key (which may be kept
    /// offline); leaves go on being issued until the issuing CA ends.
    pub fn renew_issuing(&self) -> Result<bool, CaError> {
        let left = self.issuing_not_after_unix_s() - self.clock.unix_s();
        if left > (ISSUING_LIFE / 3).as_secs() as i64 {
            return Ok(false);
        }
        let signing = self.signing.load_full();
        let root = places::root_issuer(&signing)?;
        let issuing = new_issuing(&self.trust_domain, &self.clock, &root)?;
        let (path, new) =
            (signing.place.join("issuing.pem"), signing.place.join("issuing.pem.new"));
        let _ = fs::remove_file(&new);
        write_new(&new, &issuing)?;
        fs::rename(&new, &path).map_err(|error| broken(&path, &error))?;
        self.signing.store(Arc::new(places::load(&signing.place)?));
        Ok(true)
    }

    /// A certificate for a requested key. It names `id` and nothing that the
    /// request says; `node` is the machine it is issued under.
    pub fn issue(
        &self,
        request: &KeyRequest,
        id: &SpiffeId,
        node: Option<&NodeId>,
    ) -> Result<Issued, IssueError> {
        self.issue_for(request, id, node, false)
    }

    /// The same; a `brief` one is for a program that ends soon.
    pub fn issue_for(
        &self,
        request: &KeyRequest,
        id: &SpiffeId,
        node: Option<&NodeId>,
        brief: bool,
    ) -> Result<Issued, IssueError> {
        let is_node = matches!(id.subject(), Subject::Node(_));
        let life = if is_node { NODE_LIFE } else { self.workload_life };
        self.sign(&request.key, id, node, if brief { life.min(BRIEF_LIFE) } else { life })
    }

    /// A key and a certificate of our own.
    pub fn self_issue(&self, id: &SpiffeId) -> Result<mesh_tunnel::Svid, IssueError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issued = self.sign(&key, id, None, self.workload_life)?;
        Ok(mesh_tunnel::Svid {
            id: id.clone(),
            chain: issued.chain.into_iter().map(CertificateDer::from).collect(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            not_after: UnixTime::since_unix_epoch(Duration::from_secs(
                issued.not_after_unix_s.unsigned_abs(),
            )),
        })
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        node: Option<&NodeId>,
        life: Duration,
    ) -> Result<Issued, IssueError> {
        let signing = self.signing.load();
        let issuing = &signing.issuing;
        let now = self.clock.unix_s();
        let not_after_unix_s = (now + life.as_secs() as i64).min(issuing.not_after_unix_s);
        let serial = random_serial();
        let mut params = CertificateParams::default();
        params.not_before = time(now - BACKDATED.as_secs() as i64);
        params.not_after = time(not_after_unix_s);
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.distinguished_name = DistinguishedName::new();
        if let Some(node) = node {
            params.distinguished_name.push(DnType::CommonName, node.as_str());
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(key, &issuing.issuer)?;
        Ok(Issued {
            chain: [leaf.der(), &issuing.certificate]
                .into_iter()
                .chain(&signing.cross)
                .map(|certificate| certificate.to_vec())
                .collect(),
            serial: hex(&serial),
            not_after_unix_s,
            root_sha256: signing.root_sha256,
        })
    }

    /// What signs JWT-SVIDs.
    pub fn jwt_keys(&self) -> &jwt::JwtKeys {
        &self.jwt_keys
    }

    /// The root that signs, DER.
    pub fn root(&self) -> CertificateDer<'static> {
        self.signing.load().root.clone()
    }

    /// End of the root, Unix seconds.
    pub fn root_not_after_unix_s(&self) -> i64 {
        self.signing.load().root_not_after_unix_s
    }

    /// End of the issuing CA, Unix seconds.
    pub fn issuing_not_after_unix_s(&self) -> i64 {
        self.signing.load().issuing.not_after_unix_s
    }
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what tokens pin and what
/// people compare. `None` if it does not parse.
pub fn spki_sha256(certificate: &[u8]) -> Option<[u8; 32]> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// A root's fingerprint as people see it: `SHA256:` and hex of [`spki_sha256`].
pub fn fingerprint(certificate: &[u8]) -> String {
    spki_sha256(certificate).map_or_else(String::new, |hash| format!("SHA256:{}", hex(&hash)))
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Key and certificate in one file, so that they are replaced together.
fn new_issuing(
    trust_domain: &TrustDomain,
    clock: &Clock,
    root: &Issuer<'_, KeyPair>,
) -> Result<String, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let params = ca_params(&format!("{trust_domain} issuing"), clock, ISSUING_LIFE, Some(0));
    let certificate = params.signed_by(&key, root)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

fn load_issuing(place: &Path) -> Result<Arc<Issuing>, CaError> {
    let path = place.join("issuing.pem");
    let pem = read(&path)?;
    let key =
        KeyPair::from_pem(&String::from_utf8_lossy(&pem)).map_err(|error| broken(&path, &error))?;
    let certificate =
        CertificateDer::from_pem_slice(&pem).map_err(|error| broken(&path, &error))?;
    let not_after_unix_s = not_after(&certificate).map_err(|error| broken(&path, &error))?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
    Ok(Arc::new(Issuing { issuer, certificate, not_after_unix_s }))
}

fn root_name(trust_domain: &TrustDomain) -> String {
    format!("{trust_domain} root")
}

fn ca_params(name: &str, clock: &Clock, life: Duration, path_len: Option<u8>) -> CertificateParams {
    let now = clock.unix_s();
    let mut params = CertificateParams::default();
    params.not_before = time(now - BACKDATED.as_secs() as i64);
    params.not_after = time(now + life.as_secs() as i64);
    params.serial_number = Some(SerialNumber::from_slice(&random_serial()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca =
        IsCa::Ca(path_len.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = path_len.is_some();
    params
}

/// 16 random bytes that read as a positive number of full length (RFC 5280
/// section 4.1.2.2).
fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

fn time(unix_s: i64) -> ::time::OffsetDateTime {
    ::time::OffsetDateTime::from_unix_timestamp(unix_s)
        .unwrap_or(::time::OffsetDateTime::UNIX_EPOCH)
}

fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    Ok(parsed.validity().not_after.timestamp())
}

fn read(path: &Path) -> Result<Vec<u8>, CaError> {
    let readable_by_others = |meta: fs::Metadata| meta.permissions().mode() & 0o077 != 0;
    let bytes = fs::read(path).map_err(|error| broken(path, &error))?;
    if path.extension().is_some_and(|e| e != "crt")
        && fs::metadata(path).is_ok_and(readable_by_others)
    {
        let problem = "others than its owner may read this key; make it 0600".to_owned();
        return Err(CaError::File { path: path.display().to_string(), problem });
    }
    Ok(bytes)
}

fn write_new(path: &Path, text: &str) -> Result<(), CaError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    write().map_err(|error| broken(path, &error))
}

fn broken(path: &Path, problem: &impl std::fmt::Display) -> CaError {
    CaError::File { path: path.display().to_string(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests;
