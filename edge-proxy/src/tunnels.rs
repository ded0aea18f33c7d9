//! This proxy's tunnels to the gateways of its site.

use std::sync::Arc;

use mesh_core::path::{Connect, Path};
use mesh_tunnel::{OpenError, TunnelStream};

use crate::{app::Shared, worker::Worker};

/// Shared by all workers; clones are the same tunnels.
#[derive(Debug, Clone)]
pub struct Tunnels {
    _shared: Shared,
}

impl Tunnels {
    /// Dials nothing yet.
    pub fn new(shared: &Shared) -> Self {
        Self { _shared: shared.clone() }
    }

    /// Called once by each worker, inside its runtime. Streams that arrive in
    /// reverse are handed to `inbound::serve_stream` of that worker.
    pub fn start(&self, _worker: &Arc<Worker>) {}

    /// A stream along `path`, which is never [`Path::Direct`].
    pub async fn open(&self, _path: &Path, _connect: &Connect) -> Result<TunnelStream, OpenError> {
        Err(OpenError::Closed)
    }
}
