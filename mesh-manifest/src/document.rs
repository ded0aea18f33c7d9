//! What a document looks like, for JSON Schema; [`crate::manifest`] reads it.

use schemars::JsonSchema;

use crate::{
    access::{
        AuthorizationPolicySpec, MeshTlsAuthenticationSpec, NetworkAuthenticationSpec, ServerSpec,
    },
    connection::{TcpRouteSpec, TlsRouteSpec},
    manifest::Metadata,
    profile::ServiceProfileSpec,
    rule::{GrpcRouteSpec, HttpRouteSpec},
    traffic::TrafficPolicySpec,
};

/// A rule about traffic: one document of a kind that a mesh obeys.
#[derive(Debug, JsonSchema)]
#[serde(tag = "kind", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Document {
    /// Gateway API, with parents of kind Service.
    HTTPRoute {
        /// `gateway.networking.k8s.io/v1` or `v1beta1`.
        #[schemars(extend("enum" = ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: HttpRouteSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// The same for gRPC methods.
    GRPCRoute {
        /// `gateway.networking.k8s.io/v1`.
        #[schemars(extend("enum" = ["gateway.networking.k8s.io/v1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: GrpcRouteSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Gateway API: connections of TLS by the name that the client asks for.
    TLSRoute {
        /// `gateway.networking.k8s.io/v1`, `v1alpha3` or `v1alpha2`.
        #[schemars(extend("enum" = [
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha3",
            "gateway.networking.k8s.io/v1alpha2"
        ]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: TlsRouteSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Gateway API: all other connections of opaque bytes.
    TCPRoute {
        /// `gateway.networking.k8s.io/v1` or `v1alpha2`.
        #[schemars(extend("enum" = ["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: TcpRouteSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Linkerd's; replaces the HTTPRoutes of its service.
    ServiceProfile {
        /// `linkerd.io/v1alpha2` or `v1alpha1`.
        #[schemars(extend("enum" = ["linkerd.io/v1alpha2", "linkerd.io/v1alpha1"]))]
        api_version: String,
        /// What it is called: `orders.shop.svc.cluster.local`.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: ServiceProfileSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Ours: limits, budgets, balancing, faults.
    TrafficPolicy {
        /// `isthmus.io/v1`.
        #[schemars(extend("enum" = ["isthmus.io/v1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: Box<TrafficPolicySpec>,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Linkerd's: what holds for one port of a service.
    Server {
        /// `policy.linkerd.io/v1beta3` or `v1beta2`.
        #[schemars(extend("enum" = ["policy.linkerd.io/v1beta3", "policy.linkerd.io/v1beta2"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: ServerSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Linkerd's: who may call what.
    AuthorizationPolicy {
        /// `policy.linkerd.io/v1alpha1`.
        #[schemars(extend("enum" = ["policy.linkerd.io/v1alpha1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: AuthorizationPolicySpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Linkerd's: callers by identity.
    MeshTLSAuthentication {
        /// `policy.linkerd.io/v1alpha1`.
        #[schemars(extend("enum" = ["policy.linkerd.io/v1alpha1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: MeshTlsAuthenticationSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
    /// Linkerd's: clients by address.
    NetworkAuthentication {
        /// `policy.linkerd.io/v1alpha1`.
        #[schemars(extend("enum" = ["policy.linkerd.io/v1alpha1"]))]
        api_version: String,
        /// What it is called.
        metadata: Metadata,
        /// What it says.
        #[serde(default)]
        spec: NetworkAuthenticationSpec,
        /// What a cluster reports; not read.
        #[serde(default)]
        status: serde_json::Value,
    },
}
