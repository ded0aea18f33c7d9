//! Word of traced requests, beside the streams that carry them.

use mesh_api::v1;
use mesh_core::path::Traced;
use tokio::sync::mpsc;

use super::Session;

/// What a gateway may be behind.
const QUEUE: usize = 256;

impl Session {
    /// Tells a gateway of a traced request in a stream. What it is in the way
    /// of messages that matter is left out.
    pub fn trace(&self, traced: &Traced) {
        let control = &self.shared().control;
        if 2 * control.capacity() > control.max_capacity() {
            self.shared().tell(v1::control::Message::Traced(traced.into()));
        }
    }

    /// What the peer tells of traced requests; `None` if somebody listens
    /// already.
    pub fn traced(&self) -> Option<mpsc::Receiver<Traced>> {
        let (give, traced) = mpsc::channel(QUEUE);
        self.shared().traced.set(give).ok().map(|()| traced)
    }
}
