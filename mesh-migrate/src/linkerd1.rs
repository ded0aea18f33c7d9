//! Linkerd 1.x: its configuration, its names, and what it does with a request.
//!
//! - [`name`], [`dtab`]: names and delegation tables of Finagle.
//! - [`config`]: the file (`linkerd.yaml`, `/config.json`); [`policy`] what applies to
//!   a name.
//! - [`namerd`]: tables that are kept elsewhere.
//! - [`world`]: what discovery knows; [`namers`] who asks it.
//! - [`explain`]: one request through identifier, table, namers and transformers.

pub mod config;
pub mod convert;
pub mod delegate;
pub mod dtab;
pub mod explain;
mod identify;
pub mod name;
pub mod namerd;
pub mod namers;
mod places;
pub mod policy;
mod transform;
pub mod world;

#[cfg(test)]
mod tests;
