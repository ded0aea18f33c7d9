//! Whether two proxies answer alike: what to ask, what came back, and what that says.
//!
//! The same request goes to the legacy proxy and to ours, and the answers are compared.
//!
//! - [`log`]: access logs as requests to ask again.
//! - [`frame`] and [`heads`]: frames seen on a wire as requests.
//! - [`compare`]: in what two answers differ.
//! - [`verdict`]: what many comparisons say together, with a [`histogram`] of each
//!   proxy's latencies.
//!
//! Nothing here waits, reads a clock or opens a socket.

pub mod compare;
pub mod frame;
pub mod heads;
pub mod histogram;
pub mod log;
pub mod verdict;
