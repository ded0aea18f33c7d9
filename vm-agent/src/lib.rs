//! The agent of one machine: its identity, its registrations and health
//! checks. It carries no payload, and restarts without one connection
//! noticing: its proxy keeps the certificates and the last snapshot.
//!
//! In reading order:
//! - [`app`]: the process, top to bottom; [`config`]: what it is told.
//! - [`agent`]: what the parts share.
//! - [`machine`], [`node`], [`state`]: which machine this is, who it is to the
//!   site, and what of that outlives the process.
//! - [`join`]: becoming a member of a site, and ceasing to be one.
//! - [`uplink`]: the tunnel to a gateway and gRPC to federation in it;
//!   [`renew`] and [`session`] run in it.
//! - [`services`]: the files that describe this machine's services, and their
//!   health; [`ledger`]: what the site knows of them.
//! - [`workload`]: the certificate for programs that speak the Workload API, and
//!   [`attest`]: which programs those are.
//! - [`jwt`]: tokens for the same programs.
//! - [`capture`]: the process beside it that tells the kernel what goes to the
//!   proxy; [`dns`]: the one that says where names lead.
//! - [`migrate`]: the one that moves what a legacy proxy does to ours, and back.
//! - [`exec`]: the process beside it that has commands of health checks run.
//! - [`api`]: what is served on the Unix sockets; [`metrics`]: what is told
//!   to Prometheus.
//!
//! It never knows routes, policies or payloads.

pub mod agent;
pub mod api;
pub mod app;
pub mod attest;
pub mod capture;
pub mod config;
pub mod dns;
pub mod exec;
pub mod join;
pub mod jwt;
pub mod ledger;
pub mod machine;
pub mod metrics;
pub mod migrate;
pub mod node;
pub mod renew;
pub mod services;
pub mod session;
pub mod state;
pub mod uplink;
pub mod workload;
