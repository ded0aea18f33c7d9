//! The command line.

use clap::{Parser, Subcommand};

use crate::{check, controller, injector::Injector, redirect::Redirect, root, sweep};

/// What Isthmus runs in a Kubernetes cluster, besides its proxies and its control
/// plane.
#[derive(Debug, Parser)]
#[command(
    name = "isthmus-k8s",
    version,
    about,
    after_help = "Exit codes: 0 ended as asked, 1 failed, 2 the command line makes no sense, 78 the configuration is wrong \
(it says where)."
)]
pub struct Cli {
    /// Which part to be.
    #[command(subcommand)]
    pub role: Role,
}

/// One per process.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// Tell federation what the cluster has, and write what it lacks
    Controller(controller::Options),
    /// Put the proxy into pods: the cluster's mutating webhook
    Injector(Injector),
    /// Have the kernel send a pod's connections to its proxy, and end
    Redirect(Redirect),
    /// Keep the root of the site's CA in a Secret, once
    KeepRoot(root::Options),
    /// Remove what the other parts have written in the cluster
    Sweep(sweep::Options),
    /// Ask whether what was installed answers
    Check(check::Options),
}
