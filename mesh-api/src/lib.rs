//! The wire: every message and service that two processes of the mesh
//! exchange, and every record that survives a restart. Names and numbers only;
//! what they mean lives in `mesh-core`.
//!
//! Compatibility (see `docs/adr/`): fields are only added, numbers are never
//! reused, enum value 0 is unspecified, and a breaking change to a `.proto`
//! fails a test.

/// Version 1 of the wire.
#[allow(
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    missing_docs,
    reason = "generated from proto/isthmus/v1"
)]
pub mod v1 {
    tonic::include_proto!("isthmus.v1");
}

/// The SPIFFE Workload API.
#[allow(
    unreachable_pub,
    clippy::all,
    clippy::too_many_lines,
    missing_docs,
    reason = "generated from proto/spiffe/workload.proto, which has no package"
)]
pub mod spiffe {
    tonic::include_proto!("_");
}

/// ALPN of a tunnel; both sides present certificates.
pub const ALPN_TUNNEL: &[u8] = b"isthmus-tunnel/1";
/// ALPN of the door for those who have no certificate yet.
pub const ALPN_JOIN: &[u8] = b"isthmus-join/1";
/// ALPN of the end-to-end session between two proxies.
pub const ALPN_INNER: &[u8] = b"isthmus-inner/1";
/// ALPN of gRPC to federation.
pub const ALPN_CONTROL: &[u8] = b"h2";

/// The service name under which a site's federation is reached in a tunnel.
pub const FEDERATION_SERVICE: &str = "federation.isthmus-system";
/// Versions of the control protocols that this build speaks.
pub const VERSIONS: &[u32] = &[1];
/// The longest message on stream 0 and the longest `Connect`, in bytes.
pub const MAX_MESSAGE: usize = u16::MAX as usize;
