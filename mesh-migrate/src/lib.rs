//! What configurations of legacy proxies mean.
//!
//! - [`source`]: files, places in them, and what is wrong there.
//! - [`yaml`]: YAML and JSON as a tree that knows its lines.
//! - [`ledger`]: what has become of every line.
//! - [`request`]: a request to ask about, and the answer of a proxy with its reasons.
//! - [`program`]: what a proxy does, in words of none of them.
//! - [`objects`]: a program as objects of ours.
//! - [`report`]: what has become of every line, for people.
//! - [`shadow`]: whether the legacy proxy and ours answer alike.
//! - [`haproxy`], [`nginx`], [`envoy`], [`linkerd1`]: the formats.
//!
//! A format is a module of its own with three parts that share nothing but what it
//! has parsed: its parser, `explain` (what the legacy proxy would do with one
//! request, by its own rules), and the conversion to a [`program::Program`].
//! [`decide`] is what a program does with a request. Nothing here opens a socket.

pub mod decide;
pub mod envoy;
pub mod haproxy;
pub mod ledger;
pub mod legacy;
pub mod linkerd1;
pub mod nginx;
pub mod objects;
mod paths;
pub mod program;
pub mod report;
pub mod request;
pub mod shadow;
pub mod source;
pub mod yaml;

#[cfg(test)]
mod testing;
