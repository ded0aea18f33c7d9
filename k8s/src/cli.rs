//! The command line.

use clap::{Parser, Subcommand};

use crate::controller;

/// Isthmus in a Kubernetes cluster: one program, several roles.
#[derive(Debug, Parser)]
#[command(
    name = "isthmus-k8s",
    version,
    about,
    after_help = "Exit codes: 0 ended as asked, 1 failed, 78 the configuration is wrong (it says where)."
)]
pub struct Cli {
    /// What to be.
    #[command(subcommand)]
    pub role: Role,
}

/// One of these per container.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Tell federation what the cluster has, and write what it lacks
    Controller(controller::Options),
}
