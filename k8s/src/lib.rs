//! The only part of Isthmus that knows Kubernetes.
//!
//! - [`controller`]: tells federation what the cluster has, and the cluster
//!   what comes from elsewhere.
//! - [`lease`]: who of several writes.
//! - [`names`]: labels and annotations.
//! - [`cli`]: the command line.

pub mod cli;
pub mod controller;
pub mod lease;
pub mod names;
