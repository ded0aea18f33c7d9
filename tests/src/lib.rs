//! What several test rings share: a simulated network, certificates, and two sites without a
//! control plane.

pub mod apps;
pub mod mesh;
pub mod pki;
pub mod sim;
