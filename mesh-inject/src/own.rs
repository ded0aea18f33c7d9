//! Names, ports and paths that are ours.

/// What all our labels and annotations begin with.
pub const PREFIX: &str = "isthmus.dev/";
/// Label of a namespace or pod: [`ENABLED`] or [`DISABLED`].
pub const INJECT: &str = "isthmus.dev/inject";
/// The proxy goes in.
pub const ENABLED: &str = "enabled";
/// It does not.
pub const DISABLED: &str = "disabled";
/// Annotation of a pod that has our parts: the version that made them.
pub const INJECTED: &str = "isthmus.dev/injected";
/// Annotation beside it: of what they were made.
pub const DIGEST: &str = "isthmus.dev/injected-digest";
/// Annotation beside it: which foreign annotation is ours.
pub const ADDED: &str = "isthmus.dev/added-annotation";
/// Annotation of a pod that asked for the proxy and has none: why.
pub const SKIP_REASON: &str = "isthmus.dev/skip-reason";
/// Which container `kubectl logs` and `kubectl exec` mean.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Annotations that we set.
pub const SET_BY_US: [&str; 4] = [INJECTED, DIGEST, ADDED, SKIP_REASON];

/// Init container that redirects connections.
pub const REDIRECT: &str = "isthmus-redirect";
/// Container that takes them.
pub const PROXY: &str = "isthmus-proxy";
/// Volume of the token with which the proxy proves who it is.
pub const TOKEN_VOLUME: &str = "isthmus-token";
/// Volume of the roots that it believes.
pub const TRUST_VOLUME: &str = "isthmus-trust";
/// Volume of what it keeps over a restart of its container.
pub const STATE_VOLUME: &str = "isthmus-state";
/// Our containers.
pub const CONTAINERS: [&str; 2] = [REDIRECT, PROXY];
/// Our volumes.
pub const VOLUMES: [&str; 3] = [TOKEN_VOLUME, TRUST_VOLUME, STATE_VOLUME];

/// For whom that token is.
pub const AUDIENCE: &str = "isthmus";
/// How long it lasts; the kubelet renews it at four fifths.
pub const TOKEN_SECONDS: u32 = 3600;
/// Where it is.
pub const TOKEN_DIR: &str = "/var/run/secrets/isthmus";
/// ConfigMap of the roots, in every namespace with injected pods.
pub const TRUST_CONFIG_MAP: &str = "isthmus-trust";
/// Where they are.
pub const TRUST_DIR: &str = "/var/run/isthmus-trust";
/// The only file there.
pub const TRUST_FILE: &str = "roots.pem";
/// Where the proxy keeps its state.
pub const STATE_DIR: &str = "/var/lib/isthmus/proxy";

/// The proxy's user and group; its connections are redirected nowhere.
pub const PROXY_UID: u32 = 2102;
/// HTTP for any service, on loopback.
pub const HTTP_PORT: u16 = 4140;
/// Redirected outbound connections, on loopback.
pub const OUTBOUND_PORT: u16 = 4141;
/// The mesh.
pub const INBOUND_PORT: u16 = 4143;
/// Redirected inbound connections in plaintext.
pub const PLAINTEXT_PORT: u16 = 4144;
/// `/metrics`, `/live`, `/ready`.
pub const ADMIN_PORT: u16 = 4191;
/// Ports on which no application of a pod can listen.
pub const PORTS: [u16; 5] = [HTTP_PORT, OUTBOUND_PORT, INBOUND_PORT, PLAINTEXT_PORT, ADMIN_PORT];
