//! What several test rings share: a simulated network, certificates, and two sites, without a
//! control plane ([`mesh`]) and with one ([`federated`]).

pub mod apps;
pub mod federated;
pub mod mesh;
pub mod pki;
pub mod ports;
pub mod sim;
