//! A list of Consul, followed by blocking queries.
//!
//! [`follow`] asks again and again, each (list, parameters) with an index of its
//! own, and tells a [`State`] whenever it is another one. Only an answer that can be
//! believed replaces what is known; see [`track`](self) for what that takes:
//!
//! - An index that goes back (a server that was restored or rebuilt) starts anew.
//! - An empty answer after one that was not is asked for again after
//!   [`Pace::hold`], and after [`Pace::rebuilt`] where the index went back: agents
//!   tell a new server only by and by what they run.
//! - An empty answer from which access control may have left something out, or
//!   from a server that knows no leader, is never believed.
//!
//! Source: Consul's documentation of its HTTP API, "Blocking Queries".

mod pace;
mod track;

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};

pub use self::pace::Pace;
use self::{pace::Bucket, track::Track};
use crate::client::{Block, Client, Query};

/// What is known of a list.
#[derive(Debug)]
pub enum State<T> {
    /// As of the last answer.
    Fresh(Arc<T>),
    /// Consul cannot be believed, or asked, since then.
    Stale {
        /// What was known last; none before the first answer.
        last: Option<Arc<T>>,
        /// When it began.
        since: Instant,
        /// Why.
        why: Why,
    },
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Fresh(data) => Self::Fresh(data.clone()),
            Self::Stale { last, since, why } => {
                Self::Stale { last: last.clone(), since: *since, why: why.clone() }
            }
        }
    }
}

impl<T> State<T> {
    /// What to go by.
    pub fn data(&self) -> Option<&Arc<T>> {
        match self {
            Self::Fresh(data) => Some(data),
            Self::Stale { last, .. } => last.as_ref(),
        }
    }

    /// Since when and why it is not as of the last answer.
    pub fn stale(&self) -> Option<(Instant, &Why)> {
        match self {
            Self::Fresh(_) => None,
            Self::Stale { since, why, .. } => Some((*since, why)),
        }
    }
}

/// Why what was known last is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The answer is empty, and access control may be the reason.
    Filtered,
    /// The answer is empty, and its server knows no leader.
    NoLeader,
    /// The answer is empty for the first time.
    Emptied,
    /// There was no answer.
    Failed(Arc<str>),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filtered => f.write_str(
                "the answer is empty and access control may be why; set `token_file` to a \
                 token with service:read and node:read",
            ),
            Self::NoLeader => f.write_str("the answer is empty and its server knows no leader"),
            Self::Emptied => f.write_str("the answer is empty; asking again before it counts"),
            Self::Failed(error) => f.write_str(error),
        }
    }
}

/// Follows a list for ever; `tell` is called for each new state, on this task.
pub async fn follow<Q: Query>(
    client: &Client,
    query: &Q,
    pace: &Pace,
    mut tell: impl FnMut(State<Q::Data>),
) -> std::convert::Infallible {
    let mut track = Track::new(pace.clone());
    let mut bucket = Bucket::new(pace, Instant::now());
    loop {
        let block = track.index().map(|index| Block { index, wait: pace.wait });
        let state = match client.read(query, block).await {
            Ok(answer) => track.answered(answer, Instant::now()),
            Err(error) => track.failed(&error, Instant::now(), jitter()),
        };
        if let Some(state) = state {
            tell(state);
        }
        // What failed or is doubted has a pause of its own.
        let next = track.not_before().unwrap_or_else(|| bucket.take(Instant::now()));
        sleep_until(next).await;
    }
}

/// Half to one and a half, so that those who failed together do not return
/// together.
fn jitter() -> f64 {
    rand::random_range(0.5..1.5)
}

/// The longest that any wait here is made by a configuration.
pub const LONGEST_WAIT: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests;
