//! What several test rings share: a simulated network and certificates.

pub mod pki;
pub mod sim;
