//! How a caller's proxy carries connections to a port.

use crate::service::{Protocol, Service, ServicePort};

/// What has to be known of a connection before it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriage {
    /// Nothing: its bytes go on at once.
    Opaque,
    /// Which name its client asks for over TLS.
    Tls,
    /// It is made of HTTP requests.
    Http,
    /// What it speaks.
    Detect,
}

impl Service {
    /// How callers of namespace `from` are carried to `port`. A port with
    /// rules for TLS speaks TLS, unless it is declared to speak HTTP or has to
    /// be found out.
    pub fn carriage(&self, port: &ServicePort, from: Option<&str>) -> Carriage {
        let tls = self.connection_routes.want_hello(&port.name, from);
        match port.protocol {
            Protocol::Http | Protocol::Grpc => Carriage::Http,
            Protocol::Tcp | Protocol::Tls if tls => Carriage::Tls,
            Protocol::Tcp | Protocol::Tls => Carriage::Opaque,
            Protocol::Detect => Carriage::Detect,
        }
    }
}
