//! The role at a site's border.

use std::{io, sync::Arc};

use crate::worker::Worker;

/// Opens the doors of one worker and starts its tasks.
pub async fn start(_worker: &Arc<Worker>) -> io::Result<()> {
    Ok(())
}
