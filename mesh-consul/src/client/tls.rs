//! TLS to an agent: its CA from a file, and a certificate of our own where it asks
//! for one. The files are read once.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_runtime::files::read_private;
use reqwest::Url;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::BuildError;

/// Files of PEM for an agent that is asked by https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// CAs, one of which has issued the agent's certificate.
    pub ca: PathBuf,
    /// Our certificate with its chain, and its key, if the agent asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Without files nobody is trusted, which plain HTTP does not need.
pub(super) fn client_config(
    base: &Url,
    files: Option<&TlsFiles>,
) -> Result<ClientConfig, BuildError> {
    let mut roots = RootCertStore::empty();
    if let Some(files) = files {
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|error| content(&files.ca, error))?;
        }
    } else if base.scheme() == "https" {
        return Err(BuildError::NoCa);
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites of TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let Some((chain, key)) = files.and_then(|files| files.client.as_ref()) else {
        return Ok(config.with_no_client_auth());
    };
    let pem = read_private(key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| content(key, error))?;
    config
        .with_client_auth_cert(certificates(chain)?, private)
        .map_err(|error| content(chain, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BuildError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| content(path, error))?;
    let found: Vec<_> = read.collect::<Result<_, _>>().map_err(|error| content(path, error))?;
    if found.is_empty() {
        return Err(content(path, "holds no certificate in PEM"));
    }
    Ok(found)
}

fn content(path: &Path, problem: impl ToString) -> BuildError {
    BuildError::Content { path: path.to_owned(), problem: problem.to_string() }
}
