//! The only part of Isthmus that knows Kubernetes: one binary, `isthmus-k8s`,
//! with a role per process.
//!
//! - [`cli`]: the command line.
//! - [`injector`]: mutating webhook; puts the proxy into pods.
//! - [`redirect`]: init container of a pod; tells the kernel which connections
//!   the proxy takes.
//! - [`controller`]: tells federation what the cluster has, and the cluster
//!   what comes from elsewhere.
//! - [`lease`]: which one of several processes does what only one should.
//! - [`root`]: the key of the site's CA, kept in the cluster.
//! - [`sweep`]: what is taken away when Isthmus goes.
//! - [`check`]: whether it answers.
//! - [`names`]: labels and annotations.
//!
//! Nothing else in the workspace links a Kubernetes client.

pub mod check;
pub mod cli;
pub mod controller;
pub mod injector;
pub mod lease;
pub mod names;
pub mod redirect;
pub mod root;
pub mod sweep;
#[cfg(test)]
pub(crate) mod testing;
