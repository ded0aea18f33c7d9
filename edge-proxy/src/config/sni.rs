//! Listeners whose clients name the service over TLS.

use std::net::SocketAddr;

use mesh_runtime::config::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

/// Of one proxy.
const MAX_LISTENERS: usize = 16;

/// Takes TLS for any service; the client names it (SNI).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SniListener {
    /// `<ip>:<port>`.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
    /// Number of the service's port that is meant; where absent 443, or the
    /// only one that it has.
    #[serde(default)]
    pub port: Option<u16>,
}

/// # Errors
///
/// There are too many, or two at the same place.
pub(super) fn check(written: &[SniListener], name: &str) -> Result<(), ConfigError> {
    if written.len() > MAX_LISTENERS {
        let problem = format!("there are more than {MAX_LISTENERS}");
        return Err(ConfigError::meaning(name, "sni_listeners", problem));
    }
    for (i, SniListener { listen, .. }) in written.iter().enumerate() {
        if listen.port() != 0 && written[..i].iter().any(|other| other.listen == *listen) {
            let problem = format!("{listen} is there twice");
            return Err(ConfigError::meaning(name, format!("sni_listeners[{i}].listen"), problem));
        }
    }
    Ok(())
}
