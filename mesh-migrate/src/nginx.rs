//! nginx: `http` and `stream`, as version 1.22 of the open-source build understands them.
//!
//! - [`tree`]: any file of nginx as statements with their places, `include`s and the
//!   output of `nginx -T` resolved.
//! - [`model`]: which servers, locations, upstreams and maps they make.
//! - [`explain()`]: what nginx does with one request.
//! - [`convert()`]: the same as a [`Program`](crate::program::Program), with a ledger.
//!
//! Names are those of the manual (nginx.org/en/docs).

mod ahead;
mod convert;
mod derivative;
mod explain;
mod model;
mod pattern;
mod template;
mod tokens;
mod tree;
pub(crate) mod uri;

pub use convert::convert;
pub use explain::explain;
pub use tree::{Config, Directive, Reader, disk, is_blank, parse};

#[cfg(test)]
mod tests;
