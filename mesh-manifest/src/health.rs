//! The part of a TrafficPolicy about asking endpoints whether they are well.

use mesh_api::v1;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::duration::{ManifestDuration, millis};

/// What the proxies of callers ask the endpoints that they use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Asks over HTTP; either this or `tcp`.
    pub http: Option<HttpCheck>,
    /// Opens a connection.
    pub tcp: Option<TcpCheck>,
    /// `10s` where absent, at least `100ms`.
    pub interval: Option<ManifestDuration>,
    /// `1s` where absent.
    pub timeout: Option<ManifestDuration>,
    /// Failures in a row; 3 where absent.
    pub unhealthy_threshold: u32,
    /// Successes in a row; 2 where absent.
    pub healthy_threshold: u32,
}

/// A GET.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// Begins with `/`.
    pub path: String,
    /// 200 to 399 where absent.
    #[serde(default)]
    pub expected_statuses: Vec<u16>,
}

/// Nothing else to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpCheck {}

impl HealthCheck {
    /// As it travels.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self) -> Result<v1::HealthCheck, String> {
        let http = match (&self.http, &self.tcp) {
            (Some(http), None) => Some(http),
            (None, Some(_)) => None,
            _ => return Err("traffic.healthCheck: needs either http or tcp".into()),
        };
        let status =
            |status: &u16| v1::StatusRange { from: (*status).into(), to: (*status).into() };
        Ok(v1::HealthCheck {
            http_path: http.map(|http| http.path.clone()).unwrap_or_default(),
            http_statuses: http
                .map(|http| http.expected_statuses.iter().map(status).collect())
                .unwrap_or_default(),
            interval_ms: millis(self.interval),
            timeout_ms: millis(self.timeout),
            unhealthy_threshold: self.unhealthy_threshold,
            healthy_threshold: self.healthy_threshold,
        })
    }
}
