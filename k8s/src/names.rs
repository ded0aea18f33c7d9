//! Names that people and other programs write: labels, annotations, objects.
//! Those that injection writes are its own.

use kube::api::ApiResource;
pub use mesh_inject::{
    annotation::{OPAQUE_PORTS, WEIGHT},
    own::{INJECT, INJECTED, TRUST_CONFIG_MAP as TRUST, TRUST_FILE as TRUST_KEY},
};

/// On pods that are a proxy of ours, a label: `gateway` or `node`.
pub const PROXY: &str = "isthmus.dev/proxy";
/// On Services, a label or an annotation: `true`, `false`, or names of sites.
pub const EXPORT: &str = "isthmus.dev/export";
/// On our Services, an annotation: sites that they come from.
pub const IMPORTED_FROM: &str = "isthmus.dev/imported-from";
/// On every object that we make.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Whose those are.
pub const US: &str = "isthmus";
/// On workloads, a label: the service that they back, without its namespace.
pub const SERVICE: &str = "isthmus.dev/service";
/// On workloads, a label: where they are.
pub const SITE: &str = "isthmus.dev/site";

/// The kind of what is on machines (`chart/crds/workloads.yaml`).
pub fn workload_resource() -> ApiResource {
    ApiResource {
        group: "isthmus.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "isthmus.dev/v1alpha1".to_owned(),
        kind: "Workload".to_owned(),
        plural: "workloads".to_owned(),
    }
}
