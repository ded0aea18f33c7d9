//! Hostile peers against real processes: whatever they send, the process lives,
//! its memory stays within a stated bound, ordinary traffic beside them goes on
//! without one failure, and a metric tells of them.
//!
//! With `ISTHMUS_FLOOD_SECONDS` each attack lasts that long, and a table says
//! what it costs (docs/performance.md); that needs two cores, and root for a
//! quota of one ([`machine`]).

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

#[path = "../support/mod.rs"]
mod support;

mod attack;
mod frames;
mod gateway;
mod handshakes;
mod http1;
mod http2;
mod inner;
mod machine;
mod memory;
mod stalls;
mod tunnel;
mod world;
