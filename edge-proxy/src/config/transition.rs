//! TLS with certificates that are not of the mesh, as it is written. What it is
//! for says [`crate::transition`].

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::written::parsed;
use crate::transition::Until;

/// TLS of a listener with a certificate that is not of the mesh, for clients
/// that have not left their old proxies yet. It has an end.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// PEM file: the listener's certificate, then those that issued it. It, and
    /// the other files, are looked at every 10 s and taken anew when they
    /// change.
    pub certificate: PathBuf,
    /// PEM file: its key, which not everybody may read; where absent, in the
    /// file of the certificate.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// PEM file: clients must show a certificate that one of these has issued;
    /// they show none where absent.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// From then on no handshake is accepted: a date (00:00 UTC) or a time
    /// (RFC 3339). Warnings begin 14 days before.
    #[serde(deserialize_with = "parsed")]
    #[schemars(with = "String")]
    pub until: Until,
}
