//! What audited ports would have refused: counted, and logged at a bounded
//! rate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use mesh_core::{Client, DenyReason, PortName, ServiceName};
use mesh_runtime::clock;
use tokio::time::Instant;

use crate::metrics::{Direction, Metrics, ReasonLabel};

/// Lines per second; callers choose how much there would be.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// Of one process; clones share it.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Mutex<Told>>);

#[derive(Debug)]
struct Told {
    since: Instant,
    lines: u32,
    /// Not logged since the last line.
    left_out: u64,
}

impl Default for Audit {
    fn default() -> Self {
        let told = Told { since: clock::monotonic(), lines: 0, left_out: 0 };
        Self(Arc::new(Mutex::new(told)))
    }
}

impl Audit {
    /// Tells of one call that passed.
    pub fn tell(
        &self,
        metrics: &Metrics,
        client: Client<'_>,
        (service, port): (&ServiceName, &PortName),
        reason: DenyReason,
    ) {
        let code = reason.reason().code();
        let label = ReasonLabel { direction: Direction::Inbound, reason: code };
        metrics.would_deny.get_or_create(&label).inc();
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner).line();
        let Some(left_out) = told else { return };
        let peer = client.peer.map_or("", |peer| peer.id.as_str());
        let from = client.address.map(|address| address.to_string()).unwrap_or_default();
        log::warn!(peer = peer, from = from.as_str(), service = service.as_str(),
            port = port.as_str(), reason = code, left_out = left_out; "would_deny");
    }
}

impl Told {
    /// How many were left out before this line; `None` leaves it out, too.
    fn line(&mut self) -> Option<u64> {
        if self.since.elapsed() >= SECOND {
            (self.since, self.lines) = (clock::monotonic(), 0);
        }
        if self.lines >= LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_are_bounded_and_what_is_left_out_is_told() {
        let audit = Audit::default();
        let line = || audit.0.lock().unwrap().line();
        let written = (0..100).filter(|_| line().is_some()).count();
        assert_eq!(written, LINES as usize);
        tokio::time::advance(SECOND).await;
        assert_eq!(line(), Some(90));
        assert_eq!(line(), Some(0));
    }
}
