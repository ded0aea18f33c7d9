//! What a snapshot is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    address::virtual_ipv6,
    authorize::ServerPolicy,
    balance::BalancePolicy,
    name::{EndpointId, GatewayId, NodeId, PortName, ServiceName, SiteName, SpiffeId, TrustDomain},
    rule::{ConnectionRoutes, Routes, TrafficPolicy},
};

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// Not declared; the first bytes of a connection decide.
    #[default]
    Detect,
    /// HTTP/1.x or HTTP/2.
    Http,
    /// HTTP/2 only.
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The same, of TLS: the client speaks first and names whom it wants.
    Tls,
}

/// What is known of an endpoint's ability to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// Its checks pass.
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// Nobody has reported lately; it is used like a healthy one and judged by
    /// outcomes.
    #[default]
    Unknown,
    /// Goes away: serves what it has, and who has nowhere else to go.
    Draining,
}

impl Health {
    /// Whether new traffic may go there while anything better is in reach.
    pub fn is_usable(self) -> bool {
        matches!(self, Health::Healthy | Health::Unknown)
    }
}

/// Where a workload runs; empty parts are unknown and equal nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Locality {
    /// E.g. `eu-west`.
    pub region: Arc<str>,
    /// E.g. `eu-west-1a`.
    pub zone: Arc<str>,
    /// E.g. the host name.
    pub host: Arc<str>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Unique in the service.
    pub name: PortName,
    /// What clients dial.
    pub number: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

/// A name with ports, backed by endpoints of one or more sites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `<name>.<namespace>`.
    pub name: ServiceName,
    /// At least one.
    pub ports: Vec<ServicePort>,
    /// All endpoints that are known, of every site and health, sorted by
    /// (site, id).
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Linked sites that may call it.
    pub exported_to: BTreeSet<SiteName>,
    /// Linked sites whose endpoints are merged in.
    pub imported_from: BTreeSet<SiteName>,
    /// The address that it was given, see [`Service::virtual_addresses`].
    pub virtual_address: Option<IpAddr>,
    /// Another of the other family, where a cluster gives one.
    pub second_address: Option<IpAddr>,
    /// None sends everything to the service itself.
    pub routes: Routes,
    /// The same for connections of opaque bytes.
    pub connection_routes: ConnectionRoutes,
    /// How its callers and its own proxies protect it.
    pub traffic: TrafficPolicy,
    /// Who may call it; used by the proxies of its endpoints.
    pub policy: ServerPolicy,
    /// How callers spread requests over its endpoints.
    pub balance: BalancePolicy,
}

impl Service {
    /// The port with this name.
    pub fn port(&self, name: &str) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.name.as_str() == name)
    }

    /// What its name resolves to for captured traffic: the addresses it was given,
    /// or with a single one of IPv4 that of IPv6 which stands for it.
    pub fn virtual_addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let second = self.second_address.or(match self.virtual_address {
            Some(IpAddr::V4(ip)) => Some(virtual_ipv6(ip).into()),
            Some(IpAddr::V6(_)) | None => None,
        });
        self.virtual_address.into_iter().chain(second)
    }

    /// The port with this number.
    pub fn port_number(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }
}

/// One place to send bytes for one port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Unique in its site.
    pub id: EndpointId,
    /// The service it backs.
    pub service: ServiceName,
    /// The port it backs.
    pub port: PortName,
    /// Where it runs.
    pub site: SiteName,
    /// Who answers there. `None`: an application without a proxy, dialled at
    /// `target` in plaintext; only a proxy's own static snapshot says so, no
    /// message can.
    pub identity: Option<SpiffeId>,
    /// Its proxy's inbound listener; `None` if only a session that the node
    /// dialled leads there.
    pub address: Option<SocketAddr>,
    /// Where the application listens, for its own proxy.
    pub target: SocketAddr,
    /// Region, zone, host.
    pub locality: Locality,
    /// Relative share of new traffic; 0 is none.
    pub weight: u32,
    /// Requests at once that it is good for; 0 is unknown. Its share grows
    /// with it, and a tier with more in flight than that sends the rest on.
    pub capacity: u32,
    /// 0 first: one of a higher number takes requests only while nobody of a
    /// lower one can.
    pub priority: u32,
    /// As last reported.
    pub health: Health,
    /// The machine it runs on.
    pub node: Option<NodeId>,
    /// Gateways of its site that hold a session of the node.
    pub via: BTreeSet<GatewayId>,
}

impl Endpoint {
    /// Who answers there, for people.
    pub fn answers_as(&self) -> &str {
        self.identity.as_ref().map_or("plaintext", SpiffeId::as_str)
    }
}

/// Weighted targets of a request. The weights' sum fits in a `u64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backends(pub Vec<Backend>);

/// One weighted target of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Which service.
    pub service: ServiceName,
    /// Which of its ports.
    pub port: PortName,
    /// Relative share; 0 is none.
    pub weight: u32,
}

/// A proxy at a site's border.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Unique in its site.
    pub id: GatewayId,
    /// Whose border it is.
    pub site: SiteName,
    /// `host:port` of QUIC listeners.
    pub quic_addresses: Vec<Arc<str>>,
    /// `host:port` of TLS/TCP listeners.
    pub tls_addresses: Vec<Arc<str>>,
}

impl Gateway {
    /// Where it listens, whatever the transport: `host:port`.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        self.quic_addresses.iter().chain(&self.tls_addresses).map(|address| &**address)
    }
}

/// Which transports a link may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkTransport {
    /// QUIC where it works, TLS/TCP elsewhere.
    #[default]
    Raced,
    /// QUIC or nothing.
    Quic,
    /// TLS/TCP or nothing.
    Tls,
}

/// The relation to one other site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The other site.
    pub site: SiteName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Whether this side opens the tunnels.
    pub dial: bool,
    /// Which transports it may use.
    pub transport: LinkTransport,
}

/// The parts of a snapshot that are shared by id.
pub type Map<K, V> = BTreeMap<K, Arc<V>>;

#[cfg(test)]
mod tests {
    use super::Health;
    use crate::example::{self, mesh};

    #[test]
    fn ports_by_name_and_number() {
        let mesh = mesh();
        let service = &mesh.services["orders.shop"];
        let name = |port: Option<&super::ServicePort>| port.map(|port| port.name.to_string());
        assert_eq!(name(service.port("http")).as_deref(), Some("http"));
        assert_eq!(name(service.port("grpc")), None);
        assert_eq!(name(service.port_number(80)).as_deref(), Some("http"));
        assert_eq!(name(service.port_number(81)), None);
    }

    #[test]
    fn health_that_takes_new_traffic() {
        let all = [Health::Healthy, Health::Unknown, Health::Unhealthy, Health::Draining];
        assert_eq!(all.map(Health::is_usable), [true, true, false, false]);
    }

    #[test]
    fn who_answers() {
        let endpoint = |identity| super::Endpoint {
            identity,
            ..(&example::endpoint("orders.shop", "east", "o-1")).try_into().unwrap()
        };
        let id = "spiffe://east.example/ns/shop/sa/orders";
        assert_eq!(endpoint(Some(id.parse().unwrap())).answers_as(), id);
        assert_eq!(endpoint(None).answers_as(), "plaintext");
    }
}
