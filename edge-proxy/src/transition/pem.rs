//! PEM files of somebody else's certificates, and what is made of them.

use std::{
    fmt,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use mesh_runtime::config::{self, ConfigError};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
};

/// One file.
#[derive(Debug, Clone)]
pub(super) struct PemFile {
    pub(super) path: PathBuf,
    /// It holds a key.
    pub(super) private: bool,
}

impl PemFile {
    pub(super) fn read(&self) -> Result<String, ConfigError> {
        if self.private {
            let read = |source| ConfigError::Read { path: self.path.clone(), source };
            let mode = std::fs::metadata(&self.path).map_err(read)?.mode();
            // Old proxies read their keys as root, and often share them with a
            // group: that is theirs to decide, and everybody is not.
            if mode & 0o007 != 0 {
                let path = self.path.display();
                let problem = format!("everybody may read it; chmod o-rwx {path}");
                return Err(wrong(&self.path, "key", problem));
            }
        }
        config::read(&self.path)
    }
}

/// What is made of files; made anew when they change.
pub(super) struct Fresh<S, T> {
    read: Box<dyn Fn() -> Result<S, ConfigError> + Send + Sync>,
    make: Box<dyn Fn(&S) -> Result<T, ConfigError> + Send + Sync>,
    made: ArcSwap<T>,
    seen: Mutex<S>,
}

impl<S, T> fmt::Debug for Fresh<S, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fresh").finish_non_exhaustive()
    }
}

impl<S: PartialEq, T> Fresh<S, T> {
    /// `make` gets what `read` has read.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub(super) fn load(
        read: impl Fn() -> Result<S, ConfigError> + Send + Sync + 'static,
        make: impl Fn(&S) -> Result<T, ConfigError> + Send + Sync + 'static,
    ) -> Result<Self, ConfigError> {
        let seen = read()?;
        let made = ArcSwap::from_pointee(make(&seen)?);
        Ok(Self { read: Box::new(read), make: Box::new(make), made, seen: Mutex::new(seen) })
    }

    /// What the newest usable files say.
    pub(super) fn current(&self) -> Arc<T> {
        self.made.load_full()
    }

    /// Reads the files again. Those that cannot be used are told of once, and
    /// what they said before stays.
    pub(super) fn look_again(&self, what: &str) {
        let read = match (self.read)() {
            Ok(read) => read,
            Err(error) => {
                log::error!(what = what, error:% = error; "transition TLS: files cannot be read");
                return;
            }
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen == read {
            return;
        }
        match (self.make)(&read) {
            Ok(made) => {
                self.made.store(Arc::new(made));
                log::info!(what = what; "transition TLS: files have changed and are used");
            }
            // Half-written: certificate and key do not fit yet.
            Err(error) => {
                log::error!(what = what, error:% = error; "transition TLS: files are not usable");
            }
        }
        *seen = read;
    }
}

/// All of them, in their order.
pub(super) fn read_all(files: &[PemFile]) -> Result<Vec<String>, ConfigError> {
    files.iter().map(PemFile::read).collect()
}

pub(super) fn wrong(path: &Path, key: &str, problem: impl fmt::Display) -> ConfigError {
    ConfigError::meaning(&path.display().to_string(), key, problem)
}

/// All certificates of a file, of which there is at least one; what else is in
/// it is left alone.
pub(super) fn certificates(
    path: &Path,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let problem = |text: String| wrong(path, "certificates", text);
    let found = read.map_err(|error| problem(format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(problem("holds no PEM certificate".into()));
    }
    Ok(found)
}

/// The first key of a file.
pub(super) fn key(path: &Path, pem: &str) -> Result<PrivateKeyDer<'static>, ConfigError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| wrong(path, "key", format_args!("no PEM private key: {error}")))
}

/// All certificates of a file, as those that issue others.
pub(super) fn roots(path: &Path, pem: &str) -> Result<Arc<RootCertStore>, ConfigError> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path, pem)? {
        roots.add(root).map_err(|error| wrong(path, "certificates", error))?;
    }
    Ok(Arc::new(roots))
}

/// All revocation lists of a file, of which there is at least one.
pub(super) fn revocations(
    path: &Path,
    pem: &str,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ConfigError> {
    let read: Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = read.map_err(|error| wrong(path, "crl", format_args!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong(path, "crl", "holds no PEM list of revoked certificates (X509 CRL)"));
    }
    for list in &found {
        if let Err(error) = webpki::BorrowedCertRevocationList::from_der(list) {
            let problem = format_args!(
                "{error:?}: lists are read of version 2 (RFC 5280 section 5.1.2.1), which openssl \
                 makes where `crl_extensions` stands in the section of its CA"
            );
            return Err(wrong(path, "crl", problem));
        }
    }
    Ok(found)
}
