//! Headers of the mesh itself.

use http::HeaderName;

/// The stable code of a refusal.
pub const ERROR: HeaderName = HeaderName::from_static("isthmus-error");
/// The same with its line for people, as Linkerd has it.
pub const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
/// `close`: this proxy takes no more on this connection.
pub const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");
/// The verified caller, towards the application.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("x-isthmus-client-id");
