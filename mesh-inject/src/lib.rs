//! What injection makes of a pod of Kubernetes, and how that is taken back.
//!
//! Objects are JSON as the API server sends it: fields that nobody here knows
//! are kept. `isthmus-k8s injector` and `meshctl inject` decide with this crate,
//! so that a pod is the same whoever has injected it. Nothing here talks to a
//! cluster; what is known of one is in [`Settings`].
//!
//! [`inject`] depends on the pod without our parts alone, and so it is
//! idempotent: parts of another version or of other settings are replaced, those
//! of the same are left, with whatever others have added to them since.
//!
//! In reading order:
//! - [`mod@inject`]: one pod; [`workload`]: documents that hold pods; [`text`]:
//!   streams of YAML.
//! - [`outcome`]: injected, skipped or refused, and why.
//! - [`settings`]: what holds for all pods; [`annotation`]: what one says itself.
//! - [`own`]: names and ports that are ours.
//! - `decide`, `parts`, `probes`: the three steps of one injection.
//! - [`ports`], [`quantity`], [`version`]: values as people write them.
//! - [`field`]: where something is in an object.

pub mod annotation;
mod decide;
pub mod field;
pub mod inject;
pub mod outcome;
pub mod own;
mod parts;
pub mod ports;
mod probes;
pub mod quantity;
pub mod settings;
pub mod text;
pub mod version;
pub mod workload;

pub use field::Field;
pub use inject::{inject, uninject};
pub use outcome::{Outcome, Refusal, Skip, Warning};
pub use ports::Ports;
pub use settings::{Namespace, Native, Settings, SettingsFile};
pub use version::Version;
pub use workload::{inject_document, uninject_document};
