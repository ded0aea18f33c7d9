//! What configurations of legacy proxies mean.
//!
//! - [`source`]: files, places in them, and what is wrong there.
//! - [`yaml`]: YAML and JSON as a tree that knows its lines.
//! - [`ledger`]: what has become of every line.
//! - [`nginx`]: that format.
//! - [`request`]: a request to ask about, and the answer of a proxy with its reasons.
//! - [`program`]: what a proxy does, in words of none of them.
//!
//! A format is a module of its own with three parts that share nothing but what it
//! has parsed: its parser, `explain` (what the legacy proxy would do with one
//! request, by its own rules), and the conversion to a [`program::Program`].
//! [`decide`] is what a program does with a request. Nothing here opens a socket.

pub mod decide;
pub mod ledger;
pub mod nginx;
pub mod program;
pub mod request;
pub mod source;
pub mod yaml;
