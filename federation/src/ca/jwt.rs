//! Keys that sign JWT-SVIDs. They lie beside the first root, one file each,
//! `jwt-<kid>.key`: they hang on no root. Which of them signs is said by the
//! bundle ([`crate::jwt`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};
use sha2::{Digest, Sha256};

use super::{CaError, broken, hex, places::sync, read, write_new};

/// Bytes of the hash that names a key.
const KID: usize = 16;

/// The public half of a key that was made here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// Names it: hex of the beginning of the point's SHA-256.
    pub kid: String,
    /// Uncompressed, on P-256.
    pub point: Vec<u8>,
}

/// The private halves that are on this disk, by name.
#[derive(Debug)]
pub struct JwtKeys {
    directory: PathBuf,
    held: Mutex<BTreeMap<String, EcdsaKeyPair>>,
    /// Held from the making of a key until it is published, so that nobody takes
    /// it for one that is left over.
    pub publishing: tokio::sync::Mutex<()>,
}

impl JwtKeys {
    /// Reads every key in the directory.
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        let mut held = BTreeMap::new();
        for entry in fs::read_dir(directory).map_err(|error| broken(directory, &error))? {
            let path = entry.map_err(|error| broken(directory, &error))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let kid = name.strip_prefix("jwt-").and_then(|name| name.strip_suffix(".key"));
            let Some(kid) = kid else { continue };
            let key = load(&path)?;
            if public(&key).kid != kid {
                return Err(broken(&path, &"holds another key than its name says"));
            }
            held.insert(kid.to_owned(), key);
        }
        Ok(Self {
            directory: directory.to_owned(),
            held: Mutex::new(held),
            publishing: tokio::sync::Mutex::default(),
        })
    }

    /// Makes one, on the disk before it is of any use.
    pub fn make(&self) -> Result<PublicKey, CaError> {
        let pem = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem();
        let key = parse(&self.directory, pem.as_bytes())?;
        let public = public(&key);
        // Whole or not at all: what is broken is not started with.
        let (path, new) = (self.path(&public.kid), self.directory.join("jwt.new"));
        let _ = fs::remove_file(&new);
        write_new(&new, &pem)?;
        fs::rename(&new, &path).map_err(|error| broken(&path, &error))?;
        sync(&self.directory)?;
        self.held().insert(public.kid.clone(), key);
        Ok(public)
    }

    /// Removes every key but these.
    pub fn keep_only(&self, kids: &BTreeSet<&str>) -> Result<(), CaError> {
        let mut held = self.held();
        let gone: Vec<_> =
            held.keys().filter(|kid| !kids.contains(kid.as_str())).cloned().collect();
        for kid in gone {
            let path = self.path(&kid);
            fs::remove_file(&path).map_err(|error| broken(&path, &error))?;
            held.remove(&kid);
            log::info!(kid = kid.as_str(); "a key for JWT-SVIDs is removed");
        }
        Ok(())
    }

    /// Whether the private half is here.
    pub fn holds(&self, kid: &str) -> bool {
        self.held().contains_key(kid)
    }

    /// ECDSA over P-256 with SHA-256, `r` and `s` of 32 bytes each. `None` if
    /// the key is not here, or the library fails.
    pub fn sign(&self, kid: &str, message: &[u8]) -> Option<Vec<u8>> {
        let held = self.held();
        let signature = held.get(kid)?.sign(&SystemRandom::new(), message).ok()?;
        Some(signature.as_ref().to_vec())
    }

    fn path(&self, kid: &str) -> PathBuf {
        self.directory.join(format!("jwt-{kid}.key"))
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<String, EcdsaKeyPair>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(path: &Path) -> Result<EcdsaKeyPair, CaError> {
    parse(path, &read(path)?)
}

fn parse(path: &Path, pem: &[u8]) -> Result<EcdsaKeyPair, CaError> {
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|error| broken(path, &error))?;
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
        .map_err(|error| broken(path, &error))
}

fn public(key: &EcdsaKeyPair) -> PublicKey {
    let point = key.public_key().as_ref().to_vec();
    PublicKey { kid: hex(&Sha256::digest(&point)[..KID]), point }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_private_and_survives() {
        let directory = tempfile::tempdir().unwrap();
        let keys = JwtKeys::open(directory.path()).unwrap();
        let made = keys.make().unwrap();
        let path = directory.path().join(format!("jwt-{}.key", made.kid));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = JwtKeys::open(directory.path()).unwrap();
        assert!(again.holds(&made.kid));
        assert_eq!(again.sign(&made.kid, b"x").unwrap().len(), 64);
        assert_eq!(again.sign("other", b"x"), None);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = JwtKeys::open(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("0600"), "{refused}");
    }

    #[test]
    fn what_is_not_kept_leaves_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("root.key"), "not ours").unwrap();
        let keys = JwtKeys::open(directory.path()).unwrap();
        let (old, new) = (keys.make().unwrap(), keys.make().unwrap());
        keys.keep_only(&[new.kid.as_str()].into()).unwrap();
        assert!(!keys.holds(&old.kid) && keys.holds(&new.kid));
        let again = JwtKeys::open(directory.path()).unwrap();
        assert!(!again.holds(&old.kid) && again.holds(&new.kid));
        assert!(directory.path().join("root.key").exists());
    }

    #[test]
    fn what_a_crash_has_left_stands_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("jwt.new"), "half").unwrap();
        let made = JwtKeys::open(directory.path()).unwrap().make().unwrap();
        assert!(JwtKeys::open(directory.path()).unwrap().holds(&made.kid));
        assert!(!directory.path().join("jwt.new").exists());
    }

    #[test]
    fn a_key_under_another_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let made = JwtKeys::open(directory.path()).unwrap().make().unwrap();
        let path = directory.path().join(format!("jwt-{}.key", made.kid));
        fs::rename(&path, directory.path().join("jwt-00.key")).unwrap();
        assert!(JwtKeys::open(directory.path()).is_err());
    }
}
