//! The wall clock as an argument, so that a test can set it an hour off.

use std::{fmt, sync::Arc, time::Duration};

/// Reads the wall clock.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self(Arc::new(mesh_runtime::clock::now_unix))
    }

    /// Any other; answers with the time since the Unix epoch.
    pub fn from_fn(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Time since the Unix epoch.
    pub fn since_epoch(&self) -> Duration {
        (self.0)()
    }

    /// Milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> i64 {
        i64::try_from(self.since_epoch().as_millis()).unwrap_or(i64::MAX)
    }

    /// How far a clock that shows this is ahead of ours, in milliseconds; what
    /// is under way for a second is behind by as much. 0 says nothing.
    pub fn ahead_ms(&self, theirs_unix_ms: u64) -> Option<i64> {
        let theirs = i64::try_from(theirs_unix_ms).unwrap_or(i64::MAX);
        (theirs != 0).then(|| theirs.saturating_sub(self.unix_ms()))
    }

    /// Seconds since the Unix epoch.
    pub fn unix_s(&self) -> i64 {
        self.unix_ms() / 1000
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({} ms)", self.unix_ms())
    }
}
