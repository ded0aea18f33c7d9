//! Certificates of one listener, and which of them a client gets.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_runtime::config::{self, ConfigError};
use rustc_hash::FxBuildHasher;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{
    pem::{self, PemFile},
    provider,
};
use crate::config::{ListenerTls, transition::ServerNamePattern};

/// Certificates of one listener, at most.
const MAX_CERTIFICATES: usize = 1000;
/// What else HAProxy's directories of certificates have in them (configuration
/// manual, `crt`).
const NO_CERTIFICATES: &[&str] = &["key", "issuer", "ocsp", "sctl"];
/// How PEM (RFC 7468) begins a key of any kind.
const KEY: &str = "PRIVATE KEY-----";

/// A certificate and its key as they stand in files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pair {
    path: PathBuf,
    certificate: String,
    key_path: PathBuf,
    key: String,
    names: Vec<ServerNamePattern>,
}

/// All of a listener, the first one first.
///
/// # Errors
///
/// A file cannot be read, everybody may read a key, or there are too many.
pub(super) fn read(tls: &ListenerTls) -> Result<Vec<Pair>, ConfigError> {
    let mut pairs = Vec::new();
    for (path, key, names) in tls.all() {
        if !path.is_dir() {
            pairs.push(Pair::read(path, key, names)?);
        } else if let Some(key) = key {
            return Err(pem::wrong(key, "key", "keys of a directory stand in it: remove `key`"));
        } else {
            for path in directory(path)? {
                pairs.push(Pair::read(&path, None, names)?);
            }
        }
        if pairs.len() > MAX_CERTIFICATES {
            let problem = format!("there are more than {MAX_CERTIFICATES}");
            return Err(pem::wrong(path, "certificates", problem));
        }
    }
    Ok(pairs)
}

/// Files of certificates in the order of their names.
fn directory(path: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let file = entry.map_err(read)?.path();
        let extension = file.extension().unwrap_or_default();
        let is_other = NO_CERTIFICATES.iter().any(|other| extension == *other);
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        if !is_other && !name.starts_with(b".") && file.is_file() {
            found.push(file);
        }
        if found.len() > MAX_CERTIFICATES {
            let problem = format!("more than {MAX_CERTIFICATES} files are in it");
            return Err(pem::wrong(path, "certificates", problem));
        }
    }
    if found.is_empty() {
        return Err(pem::wrong(path, "certificates", "no file is in it"));
    }
    found.sort();
    Ok(found)
}

impl Pair {
    fn read(
        path: &Path,
        key: Option<&Path>,
        names: &[ServerNamePattern],
    ) -> Result<Self, ConfigError> {
        let private = |path: &Path| PemFile { path: path.to_owned(), private: true }.read();
        let certificate = config::read(path)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".key");
        let beside = PathBuf::from(beside);
        let key_path = match key {
            Some(key) => key.to_owned(),
            None if !certificate.contains(KEY) && beside.exists() => beside,
            None => path.to_owned(),
        };
        let key = private(&key_path)?;
        Ok(Self { path: path.to_owned(), certificate, key_path, key, names: names.to_vec() })
    }

    fn made(&self) -> Result<CertifiedKey, ConfigError> {
        let chain = pem::certificates(&self.path, &self.certificate)?;
        let key = pem::key(&self.key_path, &self.key)?;
        CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| pem::wrong(&self.path, "certificate and key", error))
    }
}

/// Which certificates are for names.
#[derive(Debug, Default)]
struct Names {
    exact: Map,
    /// All that end in `.` and this.
    below: Map,
    /// Those that have one label more.
    one_below: Map,
}

/// Several for one name are of different kinds of keys.
type Map = HashMap<String, Vec<Arc<CertifiedKey>>, FxBuildHasher>;

impl Names {
    fn find(&self, asked: &str) -> Option<&[Arc<CertifiedKey>]> {
        if let Some(found) = self.exact.get(asked) {
            return Some(found);
        }
        let mut rest = asked;
        while let Some((_, shorter)) = rest.split_once('.') {
            let one = || self.one_below.get(shorter).filter(|_| rest.len() == asked.len());
            if let Some(found) = self.below.get(shorter).or_else(one) {
                return Some(found);
            }
            rest = shorter;
        }
        None
    }
}

/// The certificate of each client.
#[derive(Debug)]
pub(super) struct Chosen {
    first: Arc<CertifiedKey>,
    only_known_names: bool,
    written: Names,
    /// What certificates say themselves.
    own: Names,
}

impl Chosen {
    /// # Errors
    ///
    /// A file does not hold what it must.
    pub(super) fn of(pairs: &[Pair], tls: &ListenerTls) -> Result<Self, ConfigError> {
        let (mut first, mut written, mut own) = (None, Names::default(), Names::default());
        for pair in pairs {
            let made = Arc::new(pair.made()?);
            let put = |map: &mut Map, name: &str| {
                map.entry(name.to_ascii_lowercase()).or_default().push(made.clone());
            };
            for name in &pair.names {
                match name.parts() {
                    (name, true) => put(&mut written.below, name),
                    (name, false) => put(&mut written.exact, name),
                }
            }
            if pair.names.is_empty() {
                for name in names_of(pair, &made)? {
                    match name.strip_prefix("*.") {
                        Some(name) => put(&mut own.one_below, name),
                        None => put(&mut own.exact, &name),
                    }
                }
            }
            first.get_or_insert(made);
        }
        let first = first.ok_or_else(|| pem::wrong(&tls.certificate, "certificate", "is none"))?;
        Ok(Self { first, only_known_names: tls.only_known_names, written, own })
    }

    fn find(&self, asked: &str) -> Option<&[Arc<CertifiedKey>]> {
        let asked = asked.to_ascii_lowercase();
        self.written.find(&asked).or_else(|| self.own.find(&asked))
    }
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(found) = hello.server_name().and_then(|asked| self.find(asked)) else {
            return (!self.only_known_names).then(|| self.first.clone());
        };
        let fits =
            |one: &&Arc<CertifiedKey>| one.key.choose_scheme(hello.signature_schemes()).is_some();
        found.iter().find(fits).or(found.first()).cloned()
    }
}

/// Names of DNS in the subjectAltName (RFC 5280 section 4.2.1.6).
fn names_of(pair: &Pair, made: &CertifiedKey) -> Result<Vec<String>, ConfigError> {
    let wrong = |error: &dyn std::fmt::Display| pem::wrong(&pair.path, "certificate", error);
    let leaf = made.end_entity_cert().map_err(|error| wrong(&error))?;
    let read = webpki::EndEntityCert::try_from(leaf).map_err(|error| wrong(&error))?;
    Ok(read.valid_dns_names().map(str::to_owned).collect())
}
