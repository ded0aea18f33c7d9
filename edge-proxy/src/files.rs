//! Identity and snapshot from files, without a control plane.

mod origins;
mod rules;
mod site;
pub mod snapshot;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_core::{TrustBundle, TrustDomain, identity::Revocations};
use mesh_runtime::{
    config::{self, ConfigError},
    files,
};
use mesh_tunnel::{Credentials, Svid, Trust};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// How often the files are looked at again: whoever renews certificates has
/// hours for it.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// PEM files that hold an identity and whom it believes.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// Leaf first, then the issuing CA.
    pub certificate: PathBuf,
    /// PKCS#8, readable by its owner alone.
    pub key: PathBuf,
    /// Roots by trust domain.
    pub bundles: Vec<(TrustDomain, PathBuf)>,
}

/// The bytes of all files, to see whether they have changed.
type Contents = Vec<Vec<u8>>;

impl IdentityFiles {
    /// Reads everything.
    ///
    /// # Errors
    ///
    /// A file cannot be read, or does not hold what it must.
    pub fn load(&self) -> Result<(Svid, Trust), ConfigError> {
        self.parse(&self.read()?)
    }

    fn read(&self) -> Result<Contents, ConfigError> {
        let key = files::read_private(&self.key)
            .map_err(|error| ConfigError::meaning("identity", "key", error))?;
        let mut contents = vec![config::read(&self.certificate)?.into_bytes(), key];
        for (_, path) in &self.bundles {
            contents.push(config::read(path)?.into_bytes());
        }
        Ok(contents)
    }

    fn parse(&self, contents: &Contents) -> Result<(Svid, Trust), ConfigError> {
        let [certificate, key, bundles @ ..] = contents.as_slice() else {
            return Err(ConfigError::meaning("identity", "files", "nothing was read"));
        };
        let chain = certificates(&self.certificate, certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            wrong(&self.key, "key", format_args!("no PEM private key: {error}"))
        })?;
        let svid = Svid::from_der(chain, key)
            .map_err(|error| wrong(&self.certificate, "certificate", error))?;
        let mut trust = Trust { revocations: Arc::new(Revocations::default()), ..Trust::default() };
        for ((domain, path), pem) in self.bundles.iter().zip(bundles) {
            let roots = certificates(path, pem)?;
            let bundle = TrustBundle::of_roots(domain.clone(), roots);
            Arc::make_mut(&mut trust.bundles).insert(domain.clone(), Arc::new(bundle));
        }
        if !trust.bundles.contains_key(svid.id.trust_domain()) {
            let problem = format!("there are no roots for its own trust domain: {}", svid.id);
            return Err(wrong(&self.certificate, "certificate", problem));
        }
        Ok((svid, trust))
    }

    /// Replaces the credentials whenever the files change; what cannot be used
    /// is logged and the old stays.
    pub async fn watch(self, credentials: Arc<Credentials>) {
        let mut seen = self.read().ok();
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            let read = match self.read() {
                Ok(read) if seen.as_ref() == Some(&read) => continue,
                Ok(read) => read,
                Err(error) => {
                    log::error!(error:% = error; "identity files cannot be read");
                    continue;
                }
            };
            let taken = self.parse(&read).map_err(anyhow::Error::from).and_then(|(svid, trust)| {
                credentials.try_replace_svid(svid)?;
                credentials.replace_trust(trust);
                Ok(())
            });
            match taken {
                Ok(()) => log::info!("identity files have changed and are used"),
                // Half-written: certificate and key do not fit yet.
                Err(error) => log::error!(error:% = error; "identity files are not usable"),
            }
            seen = Some(read);
        }
    }
}

fn wrong(path: &Path, key: &str, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError::meaning(&path.display().to_string(), key, problem)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let problem = |text: String| wrong(path, "certificates", text);
    let found = read.map_err(|error| problem(format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(problem("holds no PEM certificate".into()));
    }
    Ok(found)
}
