//! TLS with certificates that are not of the mesh, as it is written. What it is
//! for says [`crate::transition`].

use std::path::{Path, PathBuf};

use mesh_runtime::config::ConfigError;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{Config, IdentitySource, written::parsed};
use crate::transition::Until;

/// Entries of `certificates`, at most.
const MAX_CERTIFICATES: usize = 1000;

/// TLS of a listener with a certificate that is not of the mesh, for clients
/// that have not left their old proxies yet. It has an end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file: the listener's certificate, then those that issued it; who
    /// asks for no name that is known gets it. Or a directory of such files:
    /// each for the names in it, the first one for all others. They, and the
    /// other files, are looked at every 10 s and taken anew when they change.
    pub certificate: PathBuf,
    /// PEM file: its key, which not everybody may read; where absent, in the
    /// file of the certificate, or in `<certificate>.key`.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Names that `certificate` is for, as those of `certificates`; where
    /// absent, those in it.
    #[serde(default)]
    pub names: Vec<ServerNamePattern>,
    /// More of them, for clients that ask for their names (SNI).
    #[serde(default)]
    pub certificates: Vec<ListenerCertificate>,
    /// Who asks for a name that no certificate is for, or for none, is refused;
    /// where false he gets the first certificate.
    #[serde(default)]
    pub only_known_names: bool,
    /// Versions that are spoken; both where absent.
    #[serde(default)]
    pub versions: Option<Vec<TlsVersion>>,
    /// Protocols that clients are offered (ALPN, RFC 7301) where requests are
    /// understood; both where absent. Who wants others only is refused; where
    /// empty, whatever a client wants is taken for none.
    #[serde(default)]
    pub alpn: Option<Vec<AlpnProtocol>>,
    /// PEM file: clients must show a certificate that one of these has issued;
    /// they show none where absent.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Clients of `client_ca` must have one of these names in their
    /// subjectAltName; all may come that it has issued where absent.
    #[serde(default)]
    pub client_names: Vec<ClientName>,
    /// PEM file of revocation lists (RFC 5280), at most 1 MiB, with one that
    /// has not expired of each issuer of a client's chain: whom they name, and
    /// whom none is about, is refused. Needs `client_ca`.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Clients may also show a certificate of the mesh: of the own trust domain
    /// or one that is linked, not revoked. Without `client_ca` they must. It
    /// makes nobody a caller with an identity.
    #[serde(default)]
    pub mesh_clients: bool,
    /// Clients may also come without TLS, and then show nothing, whatever
    /// `client_ca` says. Who says nothing at first is refused after 10 s.
    #[serde(default)]
    pub plaintext: bool,
    /// From then on no client is accepted: a date (00:00 UTC) or a time
    /// (RFC 3339). Warnings begin 14 days before.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub until: Until,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum TlsVersion {
    /// RFC 5246.
    #[serde(rename = "TLSv1.2")]
    Tls12,
    /// RFC 8446.
    #[serde(rename = "TLSv1.3")]
    Tls13,
}

/// A protocol inside TLS, as ALPN calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum AlpnProtocol {
    /// HTTP/2 (RFC 9113).
    #[serde(rename = "h2")]
    H2,
    /// HTTP/1.1 (RFC 9112).
    #[serde(rename = "http/1.1")]
    Http1,
}

/// One more certificate of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerCertificate {
    /// PEM file, or a directory of them.
    pub certificate: PathBuf,
    /// PEM file: its key; where absent, as above.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// Names that it is for: `<name>`, or `*.<name>` for all below, however
    /// deep; of those that fit the longest decides. Where absent, those of its
    /// subjectAltName, whose `*` is one label, and which come after all names
    /// that are written.
    #[serde(default)]
    pub names: Vec<ServerNamePattern>,
}

/// Names of clients: exactly one of `exact`, `prefix` and `suffix`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientName {
    /// Of which kind.
    pub kind: ClientNameKind,
    /// This one. Of DNS it is compared without case, and `*` stands for itself.
    #[serde(default)]
    pub exact: Option<String>,
    /// All that begin so.
    #[serde(default)]
    pub prefix: Option<String>,
    /// All that end so.
    #[serde(default)]
    pub suffix: Option<String>,
}

/// Kinds of names of a subjectAltName (RFC 5280 section 4.2.1.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientNameKind {
    /// dNSName.
    Dns,
    /// uniformResourceIdentifier, as SPIFFE IDs are.
    Uri,
}

impl ClientName {
    /// Whether `name`, of its kind, is one of them.
    pub fn is(&self, name: &str) -> bool {
        let lower = |text: &str| match self.kind {
            ClientNameKind::Dns => text.to_ascii_lowercase(),
            ClientNameKind::Uri => text.to_owned(),
        };
        let name = lower(name);
        match (&self.exact, &self.prefix, &self.suffix) {
            (Some(exact), None, None) => name == lower(exact),
            (None, Some(prefix), None) => name.starts_with(&lower(prefix)),
            (None, None, Some(suffix)) => name.ends_with(&lower(suffix)),
            _ => false,
        }
    }

    fn is_one(&self) -> bool {
        let mut all = [&self.exact, &self.prefix, &self.suffix].into_iter().flatten();
        all.next().is_some_and(|text| !text.is_empty()) && all.next().is_none()
    }
}

/// A name of DNS that clients ask for, in lower case; or `*.` and one.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct ServerNamePattern(String);

impl ServerNamePattern {
    /// The name, and whether it stands for all below.
    pub fn parts(&self) -> (&str, bool) {
        self.0.strip_prefix("*.").map_or((&self.0, false), |name| (name, true))
    }
}

impl std::str::FromStr for ServerNamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim_end_matches('.').to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        match rustls::pki_types::DnsName::try_from(name) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(format!("{text:?} is no name of DNS: write <name> or *.<name>")),
        }
    }
}

impl<'de> Deserialize<'de> for ServerNamePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl ListenerTls {
    /// They are relative to the file that names them.
    pub(super) fn paths(&mut self) -> Vec<&mut PathBuf> {
        let mut paths = vec![&mut self.certificate];
        paths.extend(&mut self.key);
        for one in &mut self.certificates {
            paths.push(&mut one.certificate);
            paths.extend(&mut one.key);
        }
        paths.extend(&mut self.client_ca);
        paths.extend(&mut self.crl);
        paths
    }

    /// Versions that are spoken.
    pub fn versions(&self) -> &[TlsVersion] {
        self.versions.as_deref().unwrap_or(&[TlsVersion::Tls13, TlsVersion::Tls12])
    }

    /// Protocols that are offered.
    pub fn alpn(&self) -> &[AlpnProtocol] {
        self.alpn.as_deref().unwrap_or(&[AlpnProtocol::H2, AlpnProtocol::Http1])
    }

    /// All certificates, the first one first, with their keys and names.
    pub fn all(&self) -> impl Iterator<Item = (&Path, Option<&Path>, &[ServerNamePattern])> {
        let first = (self.certificate.as_path(), self.key.as_deref(), self.names.as_slice());
        let more = self
            .certificates
            .iter()
            .map(|one| (one.certificate.as_path(), one.key.as_deref(), one.names.as_slice()));
        std::iter::once(first).chain(more)
    }
}

/// What is believed of clients is never less than it looks like.
pub(super) fn check(config: &Config, name: &str) -> Result<(), ConfigError> {
    for (i, listener) in config.listeners.iter().enumerate() {
        let Some(tls) = &listener.tls else { continue };
        let wrong = |key: &str, problem: &str| {
            Err(ConfigError::meaning(name, format!("listeners[{i}].tls.{key}"), problem))
        };
        if tls.certificates.len() > MAX_CERTIFICATES {
            return wrong("certificates", "there are more than 1000: put them into a directory");
        }
        if tls.versions.as_ref().is_some_and(Vec::is_empty) {
            return wrong("versions", "write TLSv1.2, TLSv1.3, or both");
        }
        if tls.crl.is_some() && tls.client_ca.is_none() {
            return wrong("crl", "is about certificates of clients: write `client_ca`, too");
        }
        if !tls.client_names.is_empty() && tls.client_ca.is_none() {
            return wrong("client_names", "are of certificates of clients: write `client_ca`, too");
        }
        if tls.client_names.iter().any(|name| !name.is_one()) {
            return wrong("client_names", "write one of exact, prefix and suffix in each");
        }
        if tls.mesh_clients && matches!(config.identity, IdentitySource::None) {
            return wrong("mesh_clients", "nobody of the mesh is known without an `identity`");
        }
    }
    Ok(())
}
