//! The snapshot from federation and its copy on disk.

use crate::{app::Shared, tunnels::Tunnels};

/// Starts the tasks that fill `shared.snapshot`; none if it comes from a file.
pub fn start(_shared: &Shared, _tunnels: &Tunnels) {}
