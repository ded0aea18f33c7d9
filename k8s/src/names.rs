//! Names that people and other programs write: labels, annotations, objects.

/// On namespaces and pods: `enabled` or `disabled`.
pub const INJECT: &str = "isthmus.dev/inject";
/// On pods that have a proxy of ours, an annotation: the version that put it in.
pub const INJECTED: &str = "isthmus.dev/injected";
/// On pods that are a proxy of ours, a label: `gateway` or `node`.
pub const PROXY: &str = "isthmus.dev/proxy";
/// On Services, a label or an annotation: `true`, `false`, or names of sites.
pub const EXPORT: &str = "isthmus.dev/export";
/// On pods and Services, an annotation: ports whose bytes are not looked into.
pub const OPAQUE_PORTS: &str = "isthmus.dev/opaque-ports";
/// On pods, an annotation: share of traffic, 1 where absent.
pub const WEIGHT: &str = "isthmus.dev/weight";
/// On our Services, an annotation: sites that they come from.
pub const IMPORTED_FROM: &str = "isthmus.dev/imported-from";
/// On every object that we make.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Whose those are.
pub const US: &str = "isthmus";
/// ConfigMap of the roots that pods of a namespace believe.
pub const TRUST: &str = "isthmus-trust";
/// Its key.
pub const TRUST_KEY: &str = "roots.pem";
