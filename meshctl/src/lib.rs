//! `meshctl`: explains and changes the mesh for a person.
//!
//! It uses what others could use: gRPC `Admin` on federation's Unix socket or
//! over mTLS, `Agent` on the machine's, and the pure decisions of `mesh-core`.
//!
//! - [`cli`]: the command line.
//! - [`command`]: one module per command.
//! - [`endpoint`]: where to talk; [`remote`]: from a joined machine;
//!   [`binary`]: the other programs.
//! - [`output`], [`time`]: what is printed.
//! - [`failure`]: exit codes and remedies.
//! - [`demo`]: a whole mesh on this machine.

pub mod binary;
pub mod cli;
mod cluster;
pub mod command;
pub mod demo;
pub mod endpoint;
pub mod failure;
pub mod output;
pub mod remote;
pub mod time;
