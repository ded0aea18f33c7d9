//! Who may call: Linkerd's Server, AuthorizationPolicy, MeshTLSAuthentication
//! and NetworkAuthentication (`policy.linkerd.io`).
//!
//! - [`identity`]: identities as they are written.
//! - [`index`]: what all of them together mean for one service.

pub mod identity;
pub mod index;

use mesh_api::v1;
use mesh_core::Cidr;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::traffic::TargetRef;

/// `spec` of an AuthorizationPolicy: allows whom all of its authentications
/// hold for, and closes its target to whoever none allows.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationPolicySpec {
    /// A Server, HTTPRoute, GRPCRoute or Service of its own namespace, or that
    /// Namespace.
    pub target_ref: TargetRef,
    /// All must hold: at most one about identities (MeshTLSAuthentication or
    /// ServiceAccount) and one NetworkAuthentication. Without one about
    /// identities clients need none.
    pub required_authentication_refs: Vec<AuthenticationRef>,
}

/// An authentication, or an identity.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthenticationRef {
    /// `policy.linkerd.io`; of a ServiceAccount or Namespace empty or `core`.
    pub group: Option<String>,
    /// Of an authentication `MeshTLSAuthentication`, `NetworkAuthentication`
    /// or `ServiceAccount`; of an identity `ServiceAccount` or `Namespace`.
    pub kind: String,
    /// Of an identity, everybody of the namespace where absent.
    pub name: String,
    /// The document's own where absent.
    pub namespace: Option<String>,
}

/// `spec` of a MeshTLSAuthentication: callers with any of these identities.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshTlsAuthenticationSpec {
    /// `*` is everybody with an identity;
    /// `spiffe://<trust domain>/ns/<namespace>/sa/<account>` with `*` for any
    /// part, `spiffe://<trust domain>/ns/<namespace>/*` and
    /// `spiffe://<trust domain>/*`, all without `spiffe://<trust domain>/` for
    /// the own domain; or as Linkerd names them.
    pub identities: Vec<String>,
    /// Accounts and namespaces of the own trust domain.
    pub identity_refs: Vec<AuthenticationRef>,
}

/// `spec` of a NetworkAuthentication: clients at any of these addresses. Where
/// gateways are between nobody knows the client's.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkAuthenticationSpec {
    /// At least one.
    pub networks: Vec<NetworkBlock>,
}

/// A block of addresses.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkBlock {
    /// An address or a CIDR block.
    pub cidr: String,
    /// Not these of it.
    pub except: Vec<String>,
}

/// `spec` of a Server: what holds for one port of a service.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ServerSpec {
    /// Instances by the service they are registered for.
    pub external_workload_selector: Selector,
    /// Name or number of the service's port; every one where absent.
    pub port: Option<PortRef>,
    /// What is spoken there.
    pub proxy_protocol: ProxyProtocol,
    /// Whom it lets in besides those whom AuthorizationPolicies do.
    pub access_policy: AccessPolicy,
}

/// Which instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Selector {
    /// What every instance is labelled with.
    pub match_labels: MatchLabels,
}

/// What every instance is labelled with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MatchLabels {
    /// Name of the service, of the document's namespace.
    #[serde(rename = "isthmus.io/service")]
    pub service: String,
}

/// Name or number of a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PortRef {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(String),
}

/// What is spoken on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum ProxyProtocol {
    /// As it is declared where the service is registered.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
    /// HTTP/1, and HTTP/2 with prior knowledge.
    #[serde(rename = "HTTP/1")]
    Http1,
    /// The same.
    #[serde(rename = "HTTP/2")]
    Http2,
    /// HTTP/2 with prior knowledge.
    #[serde(rename = "gRPC")]
    Grpc,
    /// Bytes, not looked at.
    #[serde(rename = "opaque")]
    Opaque,
    /// The same, of TLS.
    #[serde(rename = "TLS")]
    Tls,
}

/// Whom a port lets in where no AuthorizationPolicy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AccessPolicy {
    /// Nobody.
    #[default]
    Deny,
    /// Everybody, and whom no policy allows is told.
    Audit,
    /// Everybody with an identity of the own trust domain or of a site to which
    /// the service is exported.
    AllAuthenticated,
    /// Everybody.
    AllUnauthenticated,
    /// Everybody with an identity of the own trust domain.
    ClusterAuthenticated,
    /// The same, and clients without an identity at private addresses.
    ClusterUnauthenticated,
}

/// Where clients of `cluster-unauthenticated` are: private networks (RFC 1918,
/// RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

impl AccessPolicy {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Audit => "audit",
            Self::AllAuthenticated => "all-authenticated",
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
        }
    }

    /// What it allows, as rules.
    fn rules(self) -> Vec<v1::AccessRule> {
        let domain = |domain: &str| {
            vec![v1::PrincipalMatch { trust_domain: domain.into(), ..Default::default() }]
        };
        let callers = |callers| v1::AccessRule { callers, ..Default::default() };
        match self {
            Self::Deny | Self::Audit => Vec::new(),
            Self::AllAuthenticated => vec![callers(domain("*"))],
            Self::AllUnauthenticated => {
                vec![v1::AccessRule { anyone: true, ..Default::default() }]
            }
            Self::ClusterAuthenticated => vec![callers(domain(""))],
            Self::ClusterUnauthenticated => {
                let block = |cidr: &str| v1::Network { cidr: cidr.into(), except: Vec::new() };
                let networks = PRIVATE.map(block).into();
                let anyone = v1::AccessRule { anyone: true, networks, ..Default::default() };
                vec![callers(domain("")), anyone]
            }
        }
    }
}

impl ProxyProtocol {
    fn wire(self) -> Option<v1::Protocol> {
        match self {
            Self::Unknown => None,
            Self::Http1 | Self::Http2 => Some(v1::Protocol::Http),
            Self::Grpc => Some(v1::Protocol::Grpc),
            Self::Opaque => Some(v1::Protocol::Tcp),
            Self::Tls => Some(v1::Protocol::Tls),
        }
    }
}

impl ServerSpec {
    /// Name of the service that it is for.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn service(&self) -> Result<&str, String> {
        match self.external_workload_selector.match_labels.service.as_str() {
            "" => {
                Err("spec.externalWorkloadSelector.matchLabels: write isthmus.io/service: <name>"
                    .into())
            }
            service => Ok(service),
        }
    }
}

impl NetworkAuthenticationSpec {
    /// As they travel.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self) -> Result<Vec<v1::Network>, String> {
        if self.networks.is_empty() {
            return Err("spec.networks: needs at least one".into());
        }
        let one = |(index, network): (usize, &NetworkBlock)| {
            let block = |field: &str, text: &str| {
                let block: Result<Cidr, _> = text.parse();
                block.map_err(|error| format!("spec.networks[{index}].{field}: {error}"))
            };
            let except = network.except.iter().map(|one| block("except", one));
            Ok(v1::Network {
                cidr: block("cidr", &network.cidr)?.to_string(),
                except: except.map(|one| Ok(one?.to_string())).collect::<Result<_, String>>()?,
            })
        };
        self.networks.iter().enumerate().map(one).collect()
    }
}

impl MeshTlsAuthenticationSpec {
    /// As they travel, of a document of `namespace`.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn wire(&self, namespace: &str) -> Result<Vec<v1::PrincipalMatch>, String> {
        if self.identities.is_empty() == self.identity_refs.is_empty() {
            return Err("spec: needs either identities or identityRefs".into());
        }
        let place =
            |list: &str, index: usize, problem: String| format!("spec.{list}[{index}]: {problem}");
        let written = self.identities.iter().enumerate().map(|(index, text)| {
            identity::principal(text).map_err(|problem| place("identities", index, problem))
        });
        let named = self.identity_refs.iter().enumerate().map(|(index, one)| {
            one.principal(namespace).map_err(|problem| place("identityRefs", index, problem))
        });
        written.chain(named).collect()
    }
}

impl AuthenticationRef {
    fn is_core(&self) -> bool {
        matches!(self.group.as_deref(), None | Some("" | "core"))
    }

    /// An account or a namespace of the own trust domain.
    fn principal(&self, own: &str) -> Result<v1::PrincipalMatch, String> {
        let of = self.namespace.as_deref().unwrap_or(own);
        let name = match self.name.as_str() {
            "" => of,
            name => name,
        };
        let (namespace, account) = match self.kind.as_str() {
            "ServiceAccount" if self.is_core() => (of, self.name.as_str()),
            "Namespace" if self.is_core() => (name, ""),
            _ => return Err("needs kind ServiceAccount or Namespace".into()),
        };
        identity::checked(v1::PrincipalMatch {
            trust_domain: String::new(),
            namespace: namespace.into(),
            account: account.into(),
        })
    }
}

impl AuthorizationPolicySpec {
    /// Whether it can be in force at all.
    ///
    /// # Errors
    ///
    /// The field that is wrong.
    pub fn check(&self, namespace: &str) -> Result<(), String> {
        let TargetRef { group, kind, name } = &self.target_ref;
        let group = group.as_deref().unwrap_or_default();
        let fits = match kind.as_str() {
            "Server" => group == "policy.linkerd.io",
            "HTTPRoute" | "GRPCRoute" => group == "gateway.networking.k8s.io",
            "Service" | "Namespace" => matches!(group, "" | "core"),
            _ => false,
        };
        if !fits || name.is_empty() {
            return Err("spec.targetRef: needs a name and kind Server (policy.linkerd.io), \
                        HTTPRoute or GRPCRoute (gateway.networking.k8s.io), Service or Namespace"
                .into());
        }
        if kind == "Namespace" && name != namespace {
            return Err(format!("spec.targetRef: can only be its own namespace, {namespace}"));
        }
        let refs = &self.required_authentication_refs;
        if refs.is_empty() {
            return Err("spec.requiredAuthenticationRefs: needs at least one; a Server with \
                        accessPolicy all-unauthenticated lets everybody in"
                .into());
        }
        let (mut identities, mut networks) = (0, 0);
        for (index, one) in refs.iter().enumerate() {
            let linkerd = one.group.as_deref() == Some("policy.linkerd.io");
            match one.kind.as_str() {
                "MeshTLSAuthentication" if linkerd => identities += 1,
                "ServiceAccount" if one.is_core() => identities += 1,
                "NetworkAuthentication" if linkerd => networks += 1,
                _ => {
                    return Err(format!(
                        "spec.requiredAuthenticationRefs[{index}]: needs kind \
                         MeshTLSAuthentication or NetworkAuthentication (policy.linkerd.io) or \
                         ServiceAccount"
                    ));
                }
            }
            if one.name.is_empty() {
                return Err(format!("spec.requiredAuthenticationRefs[{index}].name: is missing"));
            }
        }
        if identities > 1 || networks > 1 {
            return Err("spec.requiredAuthenticationRefs: all must hold; at most one is about \
                        identities and one about networks"
                .into());
        }
        Ok(())
    }
}
