//! Where spans go.

use http::Uri;
use mesh_runtime::config::ConfigError;
use schemars::JsonSchema;
use serde::Deserialize;

/// Where spans of requests go.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "Tracing")]
#[serde(deny_unknown_fields)]
pub struct TracingFile {
    /// `http://<host>:<port>`, with a path where the collector has another than
    /// the usual one. For a collector elsewhere: a listener of this proxy, which
    /// carries it over mTLS.
    endpoint: String,
    /// How the collector is spoken to.
    #[serde(default)]
    #[schemars(extend("default" = "otlp-grpc"))]
    protocol: TracingProtocol,
    /// Share of requests without a trace that begin one, 0 to 1.
    #[serde(default)]
    sample: f64,
    /// What spans are told to be of; the account of the workload where absent.
    #[serde(default)]
    service_name: Option<String>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TracingProtocol {
    /// OTLP over gRPC, usually on port 4317.
    #[default]
    OtlpGrpc,
    /// OTLP as protobuf over HTTP, usually on port 4318.
    OtlpHttp,
    /// Zipkin's JSON, version 2, usually on port 9411.
    Zipkin,
}

/// Where spans go; checked.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Scheme, host and port, path.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: TracingProtocol,
    /// Share of requests without a trace that begin one.
    pub sample: f64,
    /// What spans are told to be of.
    pub service_name: Option<String>,
}

impl TracingFile {
    /// # Errors
    ///
    /// The endpoint is no `http://` URL, or the share none.
    pub(super) fn checked(self, name: &str) -> Result<Tracing, ConfigError> {
        let wrong = |key: &str, problem: String| {
            ConfigError::meaning(name, format!("tracing.{key}"), problem)
        };
        let endpoint = self.endpoint;
        let problem = format!("{endpoint:?}: write http://<host>:<port>");
        let endpoint: Uri = endpoint.parse().map_err(|_| wrong("endpoint", problem.clone()))?;
        if endpoint.scheme_str() != Some("http") || endpoint.port().is_none() {
            return Err(wrong("endpoint", problem));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            return Err(wrong("sample", format!("{}: write 0 to 1", self.sample)));
        }
        let (protocol, sample) = (self.protocol, self.sample);
        Ok(Tracing { endpoint, protocol, sample, service_name: self.service_name })
    }
}
