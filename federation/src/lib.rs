//! The control plane of one site: who is whom, what exists, what is exported.
//!
//! In reading order:
//! - [`authority`]: the durable truth; every change is a commit to it.
//! - [`ca`]: keys and certificates.
//! - [`site`]: what every service shares.
//! - [`refusal`]: how a call is refused, and who may call what.
//! - [`tokens`], [`join`]: how machines come in.
//! - [`node_identity`], [`local_identity`]: who gets certificates.
//! - [`clock`]: the wall clock as an argument.

pub mod authority;
pub mod ca;
pub mod clock;
pub mod join;
pub mod local_identity;
pub mod node_identity;
pub mod refusal;
pub mod site;
pub mod tokens;
