//! The SVID from the `WorkloadIdentity` socket, and its renewal.

use crate::app::Shared;

/// Starts the task that fills `shared.credentials` and `shared.own`; none if
/// identity comes from files.
pub fn start(_shared: &Shared) {}
