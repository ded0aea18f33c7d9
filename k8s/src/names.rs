//! Names that people and other programs write: labels, annotations, objects.
//! Those that injection writes are its own.

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
