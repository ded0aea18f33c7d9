//! The control plane of one site: who is whom, what exists, what is exported.
//!
//! In reading order:
//! - [`authority`]: the durable truth; every change is a commit to it.
//! - [`ca`]: keys and certificates.
//! - [`refusal`]: how a call is refused, and who may call what.
//! - [`clock`]: the wall clock as an argument.

pub mod authority;
pub mod ca;
pub mod clock;
pub mod refusal;
