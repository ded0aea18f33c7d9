//! Rules of HTTPRoute and GRPCRoute (Gateway API v1), as they are written.

use mesh_api::v1;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::{ManifestDuration, millis};

/// `spec` of an HTTPRoute. Host names are of gateways and ignored for services
/// (GEP-1294).
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRouteSpec {
    /// The services it is for.
    pub parent_refs: Vec<ParentRef>,
    /// Not read.
    pub hostnames: Vec<String>,
    /// In order of precedence between equals.
    pub rules: Vec<HttpRule>,
}

/// `spec` of a GRPCRoute.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRouteSpec {
    /// The services it is for.
    pub parent_refs: Vec<ParentRef>,
    /// Not read.
    pub hostnames: Vec<String>,
    /// In order of precedence between equals.
    pub rules: Vec<GrpcRule>,
}

/// A service that a route is for, or a Server, for policies about callers only;
/// other kinds are other controllers' work.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ParentRef {
    /// Empty or `core`; of a Server `policy.linkerd.io`.
    pub group: Option<String>,
    /// `Service` or `Server`.
    pub kind: Option<String>,
    /// Name of the service, or the Server.
    pub name: String,
    /// The route's own where absent.
    pub namespace: Option<String>,
    /// Every port where absent.
    pub port: Option<u16>,
    /// Name of the port.
    pub section_name: Option<String>,
}

impl ParentRef {
    /// Whether it is a service.
    pub fn is_service(&self) -> bool {
        self.kind.as_deref() == Some("Service")
            && matches!(self.group.as_deref(), None | Some("" | "core"))
    }

    /// Whether it is one of Linkerd's Servers.
    pub fn is_server(&self) -> bool {
        self.kind.as_deref() == Some("Server") && self.group.as_deref() == Some("policy.linkerd.io")
    }
}

/// One rule of an HTTPRoute.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpRule {
    /// For logs, metrics and policies that are attached to it.
    pub name: Option<String>,
    /// Any may match; none matches everything.
    pub matches: Vec<HttpMatch>,
    /// What it changes.
    pub filters: Vec<Filter>,
    /// What takes the requests, by weight.
    pub backend_refs: Vec<BackendRef>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// GEP-1731.
    pub retry: Option<Retry>,
}

/// One rule of a GRPCRoute.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcRule {
    /// For logs, metrics and policies that are attached to it.
    pub name: Option<String>,
    /// Any may match; none matches everything.
    pub matches: Vec<GrpcMatch>,
    /// What it changes.
    pub filters: Vec<Filter>,
    /// What takes the requests, by weight.
    pub backend_refs: Vec<BackendRef>,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpMatch {
    /// A prefix of `/` where absent.
    pub path: Option<PathMatch>,
    /// Of any value; the first entry of a name counts.
    pub headers: Vec<ValueMatch>,
    /// The first entry of a name counts.
    pub query_params: Vec<ValueMatch>,
    /// Any where absent.
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathMatch {
    /// `PathPrefix` where absent.
    #[serde(default)]
    pub r#type: PathType,
    /// Begins with `/`.
    #[serde(default = "slash")]
    pub value: String,
}

fn slash() -> String {
    "/".into()
}

/// How a path is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum PathType {
    /// As a whole.
    Exact,
    /// By whole elements.
    #[default]
    PathPrefix,
    /// As a whole, with a pattern.
    RegularExpression,
}

/// What a header or query parameter must be.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ValueMatch {
    /// `Exact` where absent.
    #[serde(default)]
    pub r#type: ValueType,
    /// Of the header (any case) or parameter.
    pub name: String,
    /// The value, or the pattern that all of it matches.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum ValueType {
    /// As it is.
    #[default]
    Exact,
    /// As a whole, with a pattern.
    RegularExpression,
}

/// All given parts must hold.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcMatch {
    /// Every one where absent.
    pub method: Option<GrpcMethod>,
    /// Metadata.
    pub headers: Vec<ValueMatch>,
}

/// `/<service>/<method>`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcMethod {
    /// `Exact` where absent.
    pub r#type: ValueType,
    /// With its package; any where absent.
    pub service: Option<String>,
    /// Any where absent.
    pub method: Option<String>,
}

/// One change; the field of its type is given.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields, rename_all_fields = "camelCase")]
pub enum Filter {
    /// Of the request's headers.
    RequestHeaderModifier {
        /// What changes.
        request_header_modifier: HeaderModifier,
    },
    /// Of the answer's headers.
    ResponseHeaderModifier {
        /// What changes.
        response_header_modifier: HeaderModifier,
    },
    /// An answer instead of forwarding.
    RequestRedirect {
        /// Where to.
        request_redirect: Redirect,
    },
    /// Of host and path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite {
        /// What changes.
        url_rewrite: Rewrite,
    },
    /// A copy whose answer is ignored.
    RequestMirror {
        /// Where to.
        request_mirror: Mirror,
    },
}

/// Set, then add, then remove.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderModifier {
    /// Replace.
    pub set: Vec<HeaderField>,
    /// Append.
    pub add: Vec<HeaderField>,
    /// Remove.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HeaderField {
    /// In any case.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// HTTPRequestRedirectFilter.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Kept where absent.
    pub hostname: Option<String>,
    /// Kept where absent.
    pub path: Option<PathModifier>,
    /// Kept, or the scheme's own, where absent.
    pub port: Option<u16>,
    /// 301, 302 (where absent), 303, 307 or 308.
    pub status_code: Option<u16>,
}

/// HTTPURLRewriteFilter.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rewrite {
    /// Kept where absent.
    pub hostname: Option<String>,
    /// Kept where absent.
    pub path: Option<PathModifier>,
}

/// HTTPPathModifier.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields, rename_all_fields = "camelCase")]
pub enum PathModifier {
    /// The whole path.
    ReplaceFullPath {
        /// With this.
        replace_full_path: String,
    },
    /// The prefix that matched.
    ReplacePrefixMatch {
        /// With this; may be empty.
        replace_prefix_match: String,
    },
}

/// HTTPRequestMirrorFilter.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// Where the copies go.
    pub backend_ref: BackendRef,
    /// Of 100 requests so many; all where absent.
    #[serde(default)]
    pub percent: Option<u32>,
    /// The same, finer.
    #[serde(default)]
    pub fraction: Option<Fraction>,
}

/// A part of all requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// 100 where absent.
    #[serde(default)]
    pub denominator: Option<u32>,
}

impl Fraction {
    pub(crate) fn wire(self) -> v1::Fraction {
        v1::Fraction { numerator: self.numerator, denominator: self.denominator.unwrap_or(100) }
    }
}

/// A weighted target.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BackendRef {
    /// Empty or `core`.
    pub group: Option<String>,
    /// `Service` where absent.
    pub kind: Option<String>,
    /// Name of the service.
    pub name: String,
    /// The route's own where absent.
    pub namespace: Option<String>,
    /// The one that was called where absent.
    pub port: Option<u16>,
    /// 1 where absent, up to 1000000.
    pub weight: Option<u32>,
    /// Header changes for this target.
    pub filters: Vec<Filter>,
}

/// Deadlines; `0s` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timeouts {
    /// The whole request, repetitions included.
    pub request: Option<ManifestDuration>,
    /// One attempt.
    pub backend_request: Option<ManifestDuration>,
}

impl Timeouts {
    pub(crate) fn check(&self) -> Result<(), String> {
        match (millis(self.request), millis(self.backend_request)) {
            (whole, one) if whole != 0 && one > whole => {
                Err("timeouts.backendRequest: is longer than timeouts.request".into())
            }
            _ => Ok(()),
        }
    }
}

/// HTTPRouteRetry.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Statuses to repeat, 400 to 599.
    pub codes: Vec<u16>,
    /// `grpc-status` values to repeat (ours).
    pub grpc_codes: Vec<u32>,
    /// Repetitions; 1 where absent.
    pub attempts: Option<u32>,
    /// Before the first, doubling; 25ms where absent.
    pub backoff: Option<ManifestDuration>,
    /// Whatever the method (ours); only idempotent ones where absent.
    pub any_method: bool,
    /// Also what got no answer, broken off or too late, and may have been
    /// processed (ours); so where absent. What never was is repeated anyway.
    pub unanswered: Option<bool>,
}

impl Retry {
    pub(crate) fn wire(&self) -> Result<v1::RetryPolicy, String> {
        if let Some(code) = self.codes.iter().find(|code| !(400..=599).contains(*code)) {
            return Err(format!("retry.codes: {code} is not 400 to 599"));
        }
        Ok(v1::RetryPolicy {
            attempts: self.attempts.unwrap_or(1),
            statuses: ranges(&self.codes),
            grpc_codes: self.grpc_codes.clone(),
            any_method: self.any_method,
            answers_only: self.unanswered == Some(false),
            backoff_ms: millis(self.backoff),
            max_backoff_ms: 0,
        })
    }
}

/// Neighbours together: all of 5xx is one range.
fn ranges(codes: &[u16]) -> Vec<v1::StatusRange> {
    let mut codes: Vec<u32> = codes.iter().map(|code| u32::from(*code)).collect();
    codes.sort_unstable();
    let mut ranges: Vec<v1::StatusRange> = Vec::new();
    for code in codes {
        match ranges.last_mut() {
            Some(last) if code <= last.to + 1 => last.to = code,
            _ => ranges.push(v1::StatusRange { from: code, to: code }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_codes_are_one_range() {
        let range = |from, to| v1::StatusRange { from, to };
        assert_eq!(ranges(&[503, 500, 501, 502, 503, 429]), [range(429, 429), range(500, 503)]);
        assert_eq!(ranges(&(500..600).collect::<Vec<u16>>()), [range(500, 599)]);
        assert_eq!(ranges(&[]), []);
    }
}
