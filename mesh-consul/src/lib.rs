//! A bridge to Consul, through its HTTP API.
//!
//! - [`config`]: what is written about it, and what that means.
//! - [`client`]: one agent, its calls, and what went wrong.
//! - [`wire`]: the JSON of those calls.
//! - [`watch`]: blocking queries; what was known last stays known while Consul
//!   does not answer.
//! - [`import`]: services of Consul as names of a mesh.
//! - [`export`]: services of a mesh as services of Consul.
//!
//! What is imported is told as [`import::Import`]; this crate knows no registry
//! of ours. What it registers in Consul carries `managed-by: isthmus` and is never
//! imported, by this site or another. An empty answer removes nothing before it is
//! confirmed, and nothing at all where access control may have emptied it.

pub mod client;
pub mod config;
pub mod export;
pub mod import;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod testing;

pub use self::{
    client::{Client, Error},
    config::{Config, ConfigFile},
};
