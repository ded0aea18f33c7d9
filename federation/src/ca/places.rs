//! Where keys lie: one directory per root, so that a rotation only ever adds
//! one and removes another. The first root of a site lies in the directory of
//! keys itself, every later one below it.
//!
//! What is in a directory: `root.key`, `root.crt`, `issuing.pem` (key and
//! certificate), and while a root is being replaced by it, `cross.crt`: its
//! public key, signed by the root before it.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use mesh_core::TrustDomain;
use rcgen::{Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};

use super::{
    CaError, ROOT_LIFE, Signing, broken, ca_params, hex, load_issuing, new_issuing, not_after,
    read, spki_sha256, write_new,
};
use crate::clock::Clock;

/// Everything that may lie in a directory of a root.
const FILES: [&str; 5] = ["root.key", "root.crt", "issuing.pem", "issuing.pem.new", "cross.crt"];

/// A root with its key.
pub(super) struct Root {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Root {
    /// A new one.
    pub(super) fn new(name: &str, clock: &Clock) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let root = ca_params(name, clock, ROOT_LIFE, None).self_signed(&key)?;
        Ok(Self { key, certificate: root.der().clone(), pem: root.pem() })
    }

    /// The one that [`Root::write`] has written; whoever gives it to us decides
    /// who else may read it.
    pub(super) fn read(place: &Path) -> Result<Self, CaError> {
        let text = |path: &Path| fs::read_to_string(path).map_err(|error| broken(path, &error));
        let (of_key, of_root) = (place.join("root.key"), place.join("root.crt"));
        let key = KeyPair::from_pem(&text(&of_key)?).map_err(|error| broken(&of_key, &error))?;
        let pem = text(&of_root)?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| broken(&of_root, &error))?;
        let of_certificate = spki_sha256(&certificate);
        if of_certificate != Some(Sha256::digest(key.subject_public_key_info()).into()) {
            return Err(broken(&of_root, &"does not belong to root.key beside it"));
        }
        Ok(Self { key, certificate, pem })
    }

    /// Into a directory that has none; the key first.
    pub(super) fn write(&self, place: &Path) -> Result<(), CaError> {
        write_new(&place.join("root.key"), &self.key.serialize_pem())?;
        write_new(&place.join("root.crt"), &self.pem)
    }

    /// DER.
    pub(super) fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

/// Puts a root and a new issuing CA under it into a directory that has none.
/// `before` is the root that it replaces, with its key. Returns the root, DER.
pub(super) fn make(
    place: &Path,
    trust_domain: &TrustDomain,
    clock: &Clock,
    root: Root,
    before: Option<(&str, &Issuer<'_, KeyPair>)>,
) -> Result<Vec<u8>, CaError> {
    let Root { key, certificate, pem } = root;
    write_new(&place.join("root.key"), &key.serialize_pem())?;
    if let Some((name, before)) = before {
        let mut params = ca_params(name, clock, ROOT_LIFE, None);
        params.use_authority_key_identifier_extension = true;
        write_new(&place.join("cross.crt"), &params.signed_by(&key, before)?.pem())?;
    }
    let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
    write_new(&place.join("issuing.pem"), &new_issuing(trust_domain, clock, &issuer)?)?;
    // Last: a directory without it is none.
    write_new(&place.join("root.crt"), &pem)?;
    Ok(certificate.to_vec())
}

/// A directory of its own for the next root, made as [`make`] does.
pub(super) fn make_below(
    keys: &Path,
    trust_domain: &TrustDomain,
    name: &str,
    clock: &Clock,
    before: &Issuer<'_, KeyPair>,
) -> Result<Vec<u8>, CaError> {
    let unfinished = keys.join("root.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|error| broken(&unfinished, &error))?;
    }
    let made = DirBuilder::new().mode(0o700).create(&unfinished);
    made.map_err(|error| broken(&unfinished, &error))?;
    let root = Root::new(name, clock)?;
    let root = make(&unfinished, trust_domain, clock, root, Some((name, before)))?;
    let place = keys.join(directory_of(&root));
    fs::rename(&unfinished, &place).map_err(|error| broken(&place, &error))?;
    sync(keys)?;
    Ok(root)
}

/// Its name is that of the root.
fn directory_of(root: &[u8]) -> String {
    format!("root-{}", hex(&spki_sha256(root).unwrap_or_default()[..8]))
}

/// Where a root lies; without one, any: of a site that has never had another.
pub(super) fn find(keys: &Path, root: Option<&[u8]>) -> Result<PathBuf, CaError> {
    let mut problem = None;
    for place in places(keys)? {
        match read_root(&place) {
            Ok(found) if root.is_none_or(|root| *root == *found) => return Ok(place),
            Ok(_) => {}
            Err(error) => problem = Some(error),
        }
    }
    Err(problem.unwrap_or_else(|| {
        let which = root.map(super::fingerprint).unwrap_or_default();
        broken(keys, &format!("there are no keys of root {which}; restore them from a backup"))
    }))
}

/// Directories that may hold a root.
fn places(keys: &Path) -> Result<Vec<PathBuf>, CaError> {
    let mut all = vec![keys.to_owned()];
    for entry in fs::read_dir(keys).map_err(|error| broken(keys, &error))? {
        let path = entry.map_err(|error| broken(keys, &error))?.path();
        let is_place = |name: &str| name.starts_with("root-") && path.is_dir();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(is_place) {
            all.push(path);
        }
    }
    all.retain(|place| place.join("root.crt").exists());
    all.sort();
    if all.is_empty() { Ok(vec![keys.to_owned()]) } else { Ok(all) }
}

fn read_root(place: &Path) -> Result<CertificateDer<'static>, CaError> {
    read_certificate(&place.join("root.crt"))
}

fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|error| broken(path, &error))
}

/// Everything that signing with this root's issuing CA needs.
pub(super) fn load(place: &Path) -> Result<Signing, CaError> {
    let root = read_root(place)?;
    let path = place.join("root.crt");
    let root_not_after_unix_s = not_after(&root).map_err(|error| broken(&path, &error))?;
    let cross = place.join("cross.crt");
    Ok(Signing {
        issuing: load_issuing(place)?,
        cross: if cross.exists() { Some(read_certificate(&cross)?) } else { None },
        root_sha256: spki_sha256(&root).unwrap_or_default(),
        place: place.to_owned(),
        root_not_after_unix_s,
        root,
    })
}

/// The root with its key, which may be kept offline.
pub(super) fn root_issuer(signing: &Signing) -> Result<Issuer<'static, KeyPair>, CaError> {
    let path = signing.place.join("root.key");
    let pem = String::from_utf8_lossy(&read(&path)?).into_owned();
    let key = KeyPair::from_pem(&pem).map_err(|error| broken(&path, &error))?;
    Ok(Issuer::from_ca_cert_der(&signing.root, key)?)
}

/// Removes the keys of every root but these, and what a root that stays alone
/// was introduced with. Doing it again does nothing.
pub(super) fn keep_only(keys: &Path, roots: &[Vec<u8>]) -> Result<(), CaError> {
    let unfinished = keys.join("root.new");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).map_err(|error| broken(&unfinished, &error))?;
    }
    for place in places(keys)? {
        let stays = read_root(&place).is_ok_and(|found| roots.iter().any(|root| **root == *found));
        if !stays {
            for file in FILES {
                remove(&place.join(file))?;
            }
            if place != keys {
                fs::remove_dir(&place).map_err(|error| broken(&place, &error))?;
            }
            log::warn!(path:% = place.display(); "the keys of a root are removed");
        } else if roots.len() == 1 {
            remove(&place.join("cross.crt"))?;
        }
    }
    sync(keys)
}

fn remove(path: &Path) -> Result<(), CaError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(broken(path, &error)),
        _ => Ok(()),
    }
}

pub(super) fn sync(directory: &Path) -> Result<(), CaError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| broken(directory, &error))
}
