//! Headers of the mesh itself.

use http::HeaderName;

/// The stable code of a refusal.
pub const ERROR: HeaderName = HeaderName::from_static("isthmus-error");
/// The verified caller, towards the application.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("x-isthmus-client-id");
