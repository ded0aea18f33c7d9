//! Hostile peers, bad starts and deaths, against the real programs: what is
//! sent, broken or killed must end in a clear error or a closed connection.
//!
//! Build the programs first: `cargo build --workspace --bins`.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "real processes in real time")]

mod clock;
mod cold;
mod demo;
mod disk;
mod garbage;
mod handover;
mod kills;
mod machine;
mod programs;
mod roots;
mod site;
mod starts;
mod transition;
