//! How a caller's proxy carries connections to a port.

use crate::service::{Protocol, Service, ServicePort};

/// Ports on which servers usually speak first, or what is spoken is no HTTP:
/// SMTP (25, 587), MySQL and Galera (3306, 4444), PostgreSQL, Redis,
/// Elasticsearch's own, memcached. The same as Linkerd's.
pub const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

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
    /// be found out. What is not declared is not looked at on [`OPAQUE_PORTS`].
    pub fn carriage(&self, port: &ServicePort, from: Option<&str>) -> Carriage {
        let tls = self.connection_routes.want_hello(&port.name, from);
        match port.protocol {
            Protocol::Http | Protocol::Grpc => Carriage::Http,
            Protocol::Detect if !OPAQUE_PORTS.contains(&port.number) => Carriage::Detect,
            Protocol::Tcp | Protocol::Tls | Protocol::Detect if tls => Carriage::Tls,
            Protocol::Tcp | Protocol::Tls | Protocol::Detect => Carriage::Opaque,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{example::mesh, rule::connection::*};

    #[test]
    fn declared_protocols_come_before_numbers() {
        use Carriage::{Detect, Http, Opaque, Tls};
        let mut service = (*mesh().services["orders.shop"]).clone();
        let wanted = |service: &Service, protocol, number| {
            let port = ServicePort { name: "x".parse().unwrap(), number, protocol };
            service.carriage(&port, None)
        };
        let all = [Protocol::Http, Protocol::Grpc, Protocol::Tcp, Protocol::Tls, Protocol::Detect];
        let carried = |service: &Service, number| all.map(|p| wanted(service, p, number));
        assert_eq!(carried(&service, 80), [Http, Http, Opaque, Opaque, Detect]);
        for number in OPAQUE_PORTS {
            assert_eq!(carried(&service, number), [Http, Http, Opaque, Opaque, Opaque]);
        }
        service.connection_routes.0.push(ConnectionRoute {
            name: "r".into(),
            port: None,
            client_namespace: None,
            of: Connections::Tls(Vec::new()),
            backends: Vec::new(),
        });
        assert_eq!(carried(&service, 80), [Http, Http, Tls, Tls, Detect]);
        assert_eq!(carried(&service, 5432), [Http, Http, Tls, Tls, Tls]);
    }
}
