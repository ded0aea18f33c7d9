//! Linkerd 1.x: its configuration, its names, and what it does with a request.
//!
//! - [`name`], [`dtab`]: names and delegation tables of Finagle.
//! - [`config`]: the file (`linkerd.yaml`, `/config.json`); [`policy`] what applies to
//!   a name.
//! - [`world`]: what discovery knows, [`discovery`] a file of it; [`namerd`] tables that are kept elsewhere;
//!   [`namers`] who asks for endpoints.
//! - [`listing`]: files of `io.l5d.fs` as names.
//! - [`reach`]: which names of namers there can be, for who asks a registry.
//! - [`delegate`]: a name through table, namers and transformers, step by step.
//! - [`explain`]: one request, from its identifier to its endpoints.
//! - [`convert`]: the same as our own rules, and what has become of every line.
//!
//! Rules are those of Linkerd 1.7.5 and its Finagle, which its manual does not always
//! tell: the last entry of a table is asked first, whatever the length of its prefix;
//! namers are asked only where no entry matches; `!` and `$` end a search, `~` goes on.

pub mod config;
pub mod convert;
pub mod delegate;
pub mod discovery;
pub mod dtab;
pub mod explain;
mod identify;
pub mod listing;
pub mod name;
pub mod namerd;
pub mod namers;
mod places;
pub mod policy;
pub mod reach;
mod transform;
pub mod world;

#[cfg(test)]
mod tests;
