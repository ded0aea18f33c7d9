//! The root of the site's CA in a Secret, which outlives what installed it.
//!
//! Whoever installs makes a root first (`federation init-root`); it counts only
//! where there was none, and the API server lets nobody change it then.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::names::{MANAGED_BY, US};

/// What is in the directory, and in the Secret.
const FILES: [&str; 2] = ["root.key", CERTIFICATE];
const CERTIFICATE: &str = "root.crt";

/// Which root, and where it is kept.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Prints the fingerprint of the root that is kept: the one that is there already, if there is one.

Examples:
  federation init-root --trust-domain east.example --out /keys
  isthmus-k8s keep-root --from /keys --secret isthmus-root"
)]
pub struct Options {
    /// Directory with root.key and root.crt
    #[arg(long, value_name = "DIR")]
    pub from: PathBuf,
    /// Name of the Secret
    #[arg(long, default_value = "isthmus-root", value_name = "NAME")]
    pub secret: String,
    /// Namespace of the control plane
    #[arg(long, env = "POD_NAMESPACE", default_value = "isthmus-system")]
    pub namespace: String,
}

/// Keeps a root where none is kept; prints the fingerprint of the one that is.
pub async fn keep(options: Options) -> anyhow::Result<()> {
    let mut data = BTreeMap::new();
    for file in FILES {
        let path = options.from.join(file);
        let text = std::fs::read(&path).with_context(|| format!("--from: {}", path.display()))?;
        data.insert(file.to_owned(), ByteString(text));
    }
    let new = fingerprint(&data).map_err(|problem| anyhow!("--from: {problem}"))?;
    let Options { secret: name, namespace, .. } = options;
    let client = Client::try_default().await.context("no API server is known here")?;
    let api: Api<Secret> = Api::namespaced(client, &namespace);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some([(MANAGED_BY.to_owned(), US.to_owned())].into()),
            ..ObjectMeta::default()
        },
        immutable: Some(true),
        type_: Some("Opaque".to_owned()),
        data: Some(data),
        ..Secret::default()
    };
    let kept = match api.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            log::info!(secret = name.as_str(), root = new.as_str(); "a new root is kept");
            new
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let known = api.get(&name).await?.data.unwrap_or_default();
            let known = fingerprint(&known).map_err(|problem| {
                anyhow!(
                    "Secret {namespace}/{name}: {problem}; restore it from a backup, or remove it \
                     if no site hangs on it"
                )
            })?;
            log::info!(secret = name.as_str(), root = known.as_str(); "the root that is kept stays");
            known
        }
        Err(error) => return Err(error).with_context(|| format!("Secret {namespace}/{name}")),
    };
    println!("{kept}");
    Ok(())
}

/// `SHA256:<hex>` of the root's SubjectPublicKeyInfo, as `meshctl status` shows
/// it.
fn fingerprint(data: &BTreeMap<String, ByteString>) -> Result<String, String> {
    for file in FILES {
        if data.get(file).is_none_or(|text| text.0.is_empty()) {
            return Err(format!("{file} is missing"));
        }
    }
    let wrong = |problem: &dyn std::fmt::Display| format!("{CERTIFICATE}: {problem}");
    let root =
        CertificateDer::from_pem_slice(&data[CERTIFICATE].0).map_err(|error| wrong(&error))?;
    let (_, root) = X509Certificate::from_der(&root).map_err(|error| wrong(&error))?;
    let hash = Sha256::digest(root.public_key().raw);
    Ok(format!("SHA256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUODsxBFFdt5YQYNKywBUQ40lumvYwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEcm9vdDAgFw0yNjExMjkyMDM3MDVaGA8yMTI2MTEwNTIwMzcw
NVowDzENMAsGA1UEAwwEcm9vdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABNl3
jcW2xxfovTdbaylco6mrR0bXPtAbZLe2NKjYD8pIQDIqBrni2hWVgvTNoFpru5Mx
HipHAGeIggHi1OnnYoijUzBRMB0GA1UdDgQWBBRGvR5GyVpccRYcmXsbg+lboWAH
qDAfBgNVHSMEGDAWgBRGvR5GyVpccRYcmXsbg+lboWAHqDAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQDzQlyLJNVREIjAVYtfVJsuB7hYP0Vukcmg
ekJ09CbW1gIgGcSddNTAJYGDaPuQYMWwYWkEos1aFS5fRkCTm7KJ4Yc=
-----END CERTIFICATE-----
";

    fn fingerprint_of(key: &str, certificate: &str) -> Result<String, String> {
        let data = [(FILES[0], key), (CERTIFICATE, certificate)];
        let data = data.map(|(name, text)| (name.to_owned(), ByteString(text.into())));
        fingerprint(&data.into())
    }

    #[test]
    fn a_root_is_known_by_its_public_key() {
        // openssl x509 -pubkey | openssl pkey -pubin -outform DER | sha256sum
        let known = "SHA256:dfd576cc72a67b948fa1346ca97d293f9d8809dec2c936564b3716e7609c73b1";
        assert_eq!(fingerprint_of("key", PEM).as_deref(), Ok(known));
    }

    #[test]
    fn what_lacks_something_is_no_root() {
        for (key, certificate, says) in [
            ("", PEM, "root.key is missing"),
            ("key", "", "root.crt is missing"),
            ("key", "certificate", "root.crt: "),
        ] {
            let problem = fingerprint_of(key, certificate).unwrap_err();
            assert!(problem.contains(says), "{says}: {problem}");
        }
        assert!(fingerprint(&BTreeMap::new()).is_err());
    }
}
