//! The only part of Isthmus that knows Kubernetes: one binary, `isthmus-k8s`,
//! with a role per process.
//!
//! - [`cli`]: the command line.
//! - [`redirect`]: init container of a pod; tells the kernel which connections
//!   the proxy takes.
//!
//! Nothing else in the workspace links a Kubernetes client.

pub mod cli;
pub mod redirect;
