//! The control plane of one site: who is whom, what exists, what is exported.
//!
//! In reading order:
//! - [`app`]: how it all hangs together.
//! - [`authority`]: the durable truth; every change is a commit to it.
//! - [`ca`]: keys and certificates.
//! - [`jwt`]: which key signs JWT-SVIDs, and when the next one does.
//! - [`site`]: what every service shares.
//! - [`view`]: what is published, from what is durable and what is [`live`];
//!   [`render`] makes it, a [`feed`] remembers what changed, [`leases`] say who
//!   is alive, [`virtual_address`] gives names their addresses.
//! - [`registry`]: nodes say what runs on them; [`registration`] decides.
//! - [`discovery`]: proxies and gateways follow the view.
//! - [`links`]: made by [`redeem`]ing a token with a [`proof`], listed, ended;
//!   [`exports`] say who may call what.
//! - [`peering`]: linked sites pull from us; [`replication`]: we pull from them,
//!   over [`paths`]; [`imports`]: what they may say; [`kept`]: what they said
//!   last.
//! - [`manifests`]: documents about traffic, kept and compiled.
//! - [`admin`]: what operators may ask and do; [`status`]: what they see.
//! - [`rotation`]: another root takes the place of the one that is there.
//! - [`tenure`]: how long a stream may last.
//! - [`refusal`]: how a call is refused, and who may call what.
//! - [`roles`]: who may do what from another machine.
//! - [`tokens`], [`join`]: how machines come in.
//! - [`node_identity`], [`local_identity`], [`pod_identity`]: who gets
//!   certificates.
//! - [`cluster`]: what a Kubernetes cluster has.
//! - [`consul`]: what Consuls beside the site have, and what they show of it.
//! - [`door`]: who may connect.
//! - [`clock`]: the wall clock as an argument.
//! - [`cli`]: the command line.

pub mod admin;
pub mod app;
pub mod authority;
pub mod backup;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod consul;
pub mod discovery;
pub mod door;
pub mod exports;
pub mod feed;
pub mod imports;
pub mod init;
pub mod join;
pub mod jwt;
pub mod kept;
pub mod leases;
pub mod links;
pub mod live;
pub mod local_identity;
pub mod manifests;
pub mod metrics;
pub mod node_identity;
pub mod own_identity;
pub mod paths;
pub mod peering;
pub mod pod_identity;
pub mod proof;
pub mod redeem;
pub mod refusal;
pub mod registration;
pub mod registry;
pub mod render;
pub mod replication;
pub mod roles;
pub mod rotation;
pub mod services;
pub mod site;
pub mod status;
pub mod tenure;
#[cfg(test)]
mod testing;
pub mod tokens;
pub mod view;
pub mod virtual_address;
