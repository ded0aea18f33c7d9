//! One module per command: its arguments, the call, what it shows.

pub mod backup;
pub mod check;
pub mod edges;
pub mod endpoints;
pub mod identity;
pub mod inject;
pub mod install;
pub mod join;
pub mod link;
pub mod manifest;
pub mod migrate;
pub mod node;
pub mod rotate;
pub mod routes;
pub mod service;
pub mod site;
pub mod stat;
pub mod status;
pub mod tap;
pub mod token;
pub mod top;
pub(crate) mod transition;
pub mod view;
pub mod vm;
pub mod why;
