//! One document as it is written, and streams of them.

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    access::{
        AuthorizationPolicySpec, MeshTlsAuthenticationSpec, NetworkAuthenticationSpec, ServerSpec,
    },
    connection::{TcpRouteSpec, TlsRouteSpec},
    profile::ServiceProfileSpec,
    rule::{GrpcRouteSpec, HttpRouteSpec, ParentRef},
    traffic::TrafficPolicySpec,
};

/// Documents of one stream at most.
pub const MAX_DOCUMENTS: usize = 1000;
/// Bytes of one stream at most.
pub const MAX_BYTES: usize = 4 << 20;

/// Which kind of document.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
pub enum Kind {
    /// `gateway.networking.k8s.io/v1` (or `v1beta1`).
    HTTPRoute,
    /// `gateway.networking.k8s.io/v1`.
    GRPCRoute,
    /// `gateway.networking.k8s.io/v1` (or `v1alpha3`, `v1alpha2`).
    TLSRoute,
    /// `gateway.networking.k8s.io/v1` (or `v1alpha2`).
    TCPRoute,
    /// `linkerd.io/v1alpha2` (or `v1alpha1`).
    ServiceProfile,
    /// `isthmus.io/v1`.
    TrafficPolicy,
    /// `policy.linkerd.io/v1beta3` (or `v1beta2`).
    Server,
    /// `policy.linkerd.io/v1alpha1`.
    AuthorizationPolicy,
    /// `policy.linkerd.io/v1alpha1`.
    MeshTLSAuthentication,
    /// `policy.linkerd.io/v1alpha1`.
    NetworkAuthentication,
}

impl Kind {
    /// All, in the order they are listed to people.
    pub const ALL: [Kind; 10] = [
        Kind::HTTPRoute,
        Kind::GRPCRoute,
        Kind::TLSRoute,
        Kind::TCPRoute,
        Kind::ServiceProfile,
        Kind::TrafficPolicy,
        Kind::Server,
        Kind::AuthorizationPolicy,
        Kind::MeshTLSAuthentication,
        Kind::NetworkAuthentication,
    ];

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HTTPRoute => "HTTPRoute",
            Self::GRPCRoute => "GRPCRoute",
            Self::TLSRoute => "TLSRoute",
            Self::TCPRoute => "TCPRoute",
            Self::ServiceProfile => "ServiceProfile",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::Server => "Server",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::MeshTLSAuthentication => "MeshTLSAuthentication",
            Self::NetworkAuthentication => "NetworkAuthentication",
        }
    }

    /// API group and versions, the one to write first.
    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::HTTPRoute => {
                &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]
            }
            Self::GRPCRoute => &["gateway.networking.k8s.io/v1"],
            Self::TLSRoute => &[
                "gateway.networking.k8s.io/v1",
                "gateway.networking.k8s.io/v1alpha3",
                "gateway.networking.k8s.io/v1alpha2",
            ],
            Self::TCPRoute => {
                &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"]
            }
            Self::ServiceProfile => &["linkerd.io/v1alpha2", "linkerd.io/v1alpha1"],
            Self::TrafficPolicy => &["isthmus.io/v1"],
            Self::Server => &["policy.linkerd.io/v1beta3", "policy.linkerd.io/v1beta2"],
            Self::AuthorizationPolicy
            | Self::MeshTLSAuthentication
            | Self::NetworkAuthentication => &["policy.linkerd.io/v1alpha1"],
        }
    }

    /// From what a person types: `httproute`, `HTTPRoutes`, `sp`.
    pub fn from_typed(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let text = text.strip_suffix('s').filter(|_| text.len() > 2).unwrap_or(&text);
        match text {
            "sp" => Some(Self::ServiceProfile),
            "trafficpolicie" => Some(Self::TrafficPolicy),
            "srv" => Some(Self::Server),
            "authorizationpolicie" | "authzpolicy" => Some(Self::AuthorizationPolicy),
            "meshtlsauthn" => Some(Self::MeshTLSAuthentication),
            "netauthn" | "networkauthn" => Some(Self::NetworkAuthentication),
            text => Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text)),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What tells one document from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Which kind.
    pub kind: Kind,
    /// Which namespace.
    pub namespace: String,
    /// Unique among them.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// One document that is well formed.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// What it is called.
    pub name: ObjectName,
    /// Linkerd's retries and timeouts are written here.
    pub annotations: BTreeMap<String, String>,
    /// Seconds since 1970 when it was first stored; 0 before. The older of
    /// two equally specific rules wins.
    pub created: u64,
    /// What it says.
    pub spec: Spec,
    /// The document itself, without status and what a cluster adds.
    pub document: serde_json::Value,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq)]
pub enum Spec {
    /// Gateway API.
    Http(HttpRouteSpec),
    /// Gateway API.
    Grpc(GrpcRouteSpec),
    /// Gateway API.
    Tls(TlsRouteSpec),
    /// Gateway API.
    Tcp(TcpRouteSpec),
    /// Linkerd.
    Profile(ServiceProfileSpec),
    /// Ours.
    Traffic(Box<TrafficPolicySpec>),
    /// Linkerd.
    Server(ServerSpec),
    /// Linkerd.
    Authorization(AuthorizationPolicySpec),
    /// Linkerd.
    MeshTls(MeshTlsAuthenticationSpec),
    /// Linkerd.
    Network(NetworkAuthenticationSpec),
}

/// A document that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is no YAML.
    #[error("{file}:{line}:{column}: {problem}")]
    Text {
        /// How the stream is named.
        file: String,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// It is no document of ours, or one of its fields is wrong.
    #[error("{place}: {problem}")]
    Field {
        /// The file and number of the document, or its name.
        place: String,
        /// What is wrong, with the field.
        problem: String,
    },
}

/// The parts that every document has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: serde_json::Value,
    /// What a cluster reports; not read.
    #[serde(default, rename = "status")]
    _status: serde_json::Value,
}

/// What a document is called. What a cluster adds to it is not read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique among the documents of its kind and namespace; a DNS name.
    pub name: String,
    /// Of the service, or of the callers that it is for.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Linkerd's retries and timeouts of routes are written here.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Kept, and not read.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".into()
}

/// All documents of a YAML or JSON stream; `file` is how errors name it. A
/// `List` counts as its items, an empty document as none.
///
/// # Errors
///
/// The first document that cannot be taken; none is taken then.
pub fn read(text: &str, file: &str) -> Result<Vec<Manifest>, ManifestError> {
    let too_much = |problem: String| ManifestError::Field { place: file.into(), problem };
    if text.len() > MAX_BYTES {
        return Err(too_much(format!("longer than {MAX_BYTES} bytes; split it")));
    }
    let mut manifests = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let value =
            serde_json::Value::deserialize(document).map_err(|error| text_error(file, &error))?;
        if manifests.len() >= MAX_DOCUMENTS {
            return Err(too_much(format!("more than {MAX_DOCUMENTS} documents; split it")));
        }
        let place = format!("{file}, document {}", index + 1);
        read_value(value, &place, &mut manifests)?;
    }
    Ok(manifests)
}

fn read_value(
    value: serde_json::Value,
    place: &str,
    manifests: &mut Vec<Manifest>,
) -> Result<(), ManifestError> {
    if value.is_null() {
        return Ok(());
    }
    let items = (value["kind"] == "List").then(|| value["items"].as_array()).flatten();
    match items {
        None => manifests.push(Manifest::from_value(value, place)?),
        Some(items) => {
            for (index, item) in items.iter().enumerate() {
                let place = format!("{place}, item {}", index + 1);
                manifests.push(Manifest::from_value(item.clone(), &place)?);
            }
        }
    }
    Ok(())
}

fn text_error(file: &str, error: &serde_yaml_ng::Error) -> ManifestError {
    let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
    ManifestError::Text { file: file.into(), line, column, problem: error.to_string() }
}

impl Manifest {
    /// One document; `place` is how errors name it before its name is known.
    ///
    /// # Errors
    ///
    /// It is of no known kind, or a field is unknown or wrong.
    pub fn from_value(value: serde_json::Value, place: &str) -> Result<Self, ManifestError> {
        let wrong = |problem: String| ManifestError::Field { place: place.into(), problem };
        let envelope: Envelope = decode(value).map_err(wrong)?;
        let Envelope { api_version, kind, metadata, spec, .. } = envelope;
        let known = Kind::ALL.into_iter().find(|known| known.as_str() == kind);
        let kind = known.ok_or_else(|| wrong(unknown_kind(&kind)))?;
        if !kind.versions().contains(&api_version.as_str()) {
            let versions = kind.versions().join(" or ");
            return Err(wrong(format!("apiVersion: a {kind} is of {versions}, not {api_version}")));
        }
        let name = ObjectName { kind, namespace: metadata.namespace, name: metadata.name };
        for (field, label) in [("namespace", &name.namespace), ("name", &name.name)] {
            if !is_object_name(label) {
                return Err(wrong(format!("metadata.{field}: {label:?} is no DNS name")));
            }
        }
        let named =
            |problem: String| ManifestError::Field { place: format!("{place}: {name}"), problem };
        let document = serde_json::json!({
            "apiVersion": kind.versions()[0],
            "kind": kind.as_str(),
            "metadata": {
                "name": name.name,
                "namespace": name.namespace,
                "annotations": metadata.annotations,
                "labels": metadata.labels,
            },
            "spec": spec,
        });
        let spec = Spec::read(kind, spec).map_err(|problem| named(format!("spec.{problem}")))?;
        let manifest = Self {
            name: name.clone(),
            annotations: metadata.annotations,
            created: 0,
            spec,
            document,
        };
        crate::compile::check(&manifest).map_err(named)?;
        Ok(manifest)
    }

    /// Whether it is a route that is for no Server: it must name a service.
    pub fn is_route(&self) -> bool {
        let no_server = |parents: &[ParentRef]| !parents.iter().any(ParentRef::is_server);
        match &self.spec {
            Spec::Http(spec) => no_server(&spec.parent_refs),
            Spec::Grpc(spec) => no_server(&spec.parent_refs),
            Spec::Tls(_) | Spec::Tcp(_) => true,
            Spec::Profile(_) | Spec::Traffic(_) | Spec::Server(_) => false,
            Spec::Authorization(_) | Spec::MeshTls(_) | Spec::Network(_) => false,
        }
    }
}

fn unknown_kind(kind: &str) -> String {
    let kinds = Kind::ALL.map(Kind::as_str);
    let nearest = mesh_runtime::config::nearest(kind, kinds.into_iter());
    let hint = nearest.map(|right| format!("; did you mean {right}?")).unwrap_or_default();
    format!("kind: {kind:?} is none of {}{hint}", kinds.join(", "))
}

/// A DNS subdomain (RFC 1123), as Kubernetes names objects.
fn is_object_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let label = |label: &str| {
        let ends = label.bytes().next().zip(label.bytes().last());
        ends.is_some_and(|(first, last)| allowed(first) && allowed(last))
            && label.bytes().all(|byte| allowed(byte) || byte == b'-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

impl Spec {
    fn read(kind: Kind, spec: serde_json::Value) -> Result<Self, String> {
        Ok(match kind {
            Kind::HTTPRoute => Self::Http(decode(spec)?),
            Kind::GRPCRoute => Self::Grpc(decode(spec)?),
            Kind::TLSRoute => Self::Tls(decode(spec)?),
            Kind::TCPRoute => Self::Tcp(decode(spec)?),
            Kind::ServiceProfile => Self::Profile(decode(spec)?),
            Kind::TrafficPolicy => Self::Traffic(decode(spec)?),
            Kind::Server => Self::Server(decode(spec)?),
            Kind::AuthorizationPolicy => Self::Authorization(decode(spec)?),
            Kind::MeshTLSAuthentication => Self::MeshTls(decode(spec)?),
            Kind::NetworkAuthentication => Self::Network(decode(spec)?),
        })
    }
}

/// With the path of the field that is wrong, and the nearest right name.
fn decode<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, String> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let problem = mesh_runtime::config::with_nearest_key(&error.into_inner().to_string());
        if path == "." { problem } else { format!("{path}: {problem}") }
    })
}

#[cfg(test)]
mod tests;
