//! Services with their ports, routes and policy.

use std::collections::BTreeSet;

use mesh_api::v1;

use super::{MAX_PORTS, MAX_ROUTES, MAX_SITES, WireError, at_most, balance, list, parse, wrong};
use crate::{
    authorize::{Access, ServerPolicy},
    balance::BalancePolicy,
    name::{SiteName, TrustDomain},
    rule::{ConnectionRoute, ConnectionRoutes, Route, Routes, TrafficPolicy},
    service::{Link, Map, Protocol, Service, ServicePort},
};

/// A service without endpoints, its policy written for `local`.
/// [`policy_domains`] completes the policy once the links are known.
pub(crate) fn service(message: &v1::Service, local: &TrustDomain) -> Result<Service, WireError> {
    let address = |field: &'static str, text: &str| match text {
        "" => Ok(None),
        ip => ip.parse().map(Some).map_err(|_| wrong(field, "must be an IP address")),
    };
    at_most("routes", &message.routes, MAX_ROUTES)?;
    let routes: Vec<Route> =
        message.routes.iter().map(Route::try_from).collect::<Result<_, _>>()?;
    let names: BTreeSet<&str> = routes.iter().map(|route| &*route.name).collect();
    if names.len() != routes.len() {
        return Err(wrong("routes", "two have the same name"));
    }
    at_most("connection_routes", &message.connection_routes, MAX_ROUTES)?;
    let connections = message.connection_routes.iter().map(ConnectionRoute::try_from);
    let connections = ConnectionRoutes(connections.collect::<Result<_, _>>()?);
    let traffic = message.traffic.as_ref().map(TrafficPolicy::try_from).transpose()?;
    let traffic = traffic.unwrap_or_default();
    Ok(Service {
        name: parse("name", &message.name)?,
        ports: ports(&message.ports)?,
        endpoints: Vec::new(),
        exported_to: list("exported_to", &message.exported_to, MAX_SITES, parse)?,
        imported_from: list("imported_from", &message.imported_from, MAX_SITES, parse)?,
        virtual_address: address("virtual_address", &message.virtual_address)?,
        second_address: address("second_address", &message.second_address)?,
        routes: Routes::ordered(routes, traffic.rule_order),
        connection_routes: connections,
        traffic,
        policy: ServerPolicy {
            local: local.clone(),
            exported_to: BTreeSet::new(),
            access: message.policy.as_ref().map(Access::try_from).transpose()?,
        },
        balance: balance(message.balance.as_ref())?,
    })
}

/// The trust domains behind the names of linked sites; a site whose link has
/// ended has none, so nobody of it may call.
pub(crate) fn policy_domains(
    sites: &BTreeSet<SiteName>,
    links: &Map<SiteName, Link>,
) -> BTreeSet<TrustDomain> {
    let linked = sites.iter().filter_map(|site| links.get(site));
    linked.map(|link| link.trust_domain.clone()).collect()
}

fn ports(messages: &[v1::Port]) -> Result<Vec<ServicePort>, WireError> {
    at_most("ports", messages, MAX_PORTS)?;
    if messages.is_empty() {
        return Err(wrong("ports", "a service has at least one"));
    }
    let ports: Vec<ServicePort> =
        messages.iter().map(ServicePort::try_from).collect::<Result<_, _>>()?;
    for (i, port) in ports.iter().enumerate() {
        if ports[..i].iter().any(|other| other.name == port.name || other.number == port.number) {
            return Err(wrong("ports", format_args!("{} is there twice", port.name)));
        }
    }
    Ok(ports)
}

impl TryFrom<&v1::Port> for ServicePort {
    type Error = WireError;

    fn try_from(message: &v1::Port) -> Result<Self, WireError> {
        let number = u16::try_from(message.number).ok().filter(|number| *number != 0);
        Ok(Self {
            name: parse("ports.name", &message.name)?,
            number: number.ok_or_else(|| wrong("ports.number", "must be 1 to 65535"))?,
            protocol: message.protocol().into(),
        })
    }
}

impl From<&ServicePort> for v1::Port {
    fn from(port: &ServicePort) -> Self {
        Self {
            name: port.name.to_string(),
            number: port.number.into(),
            protocol: v1::Protocol::from(port.protocol).into(),
        }
    }
}

impl From<v1::Protocol> for Protocol {
    fn from(message: v1::Protocol) -> Self {
        match message {
            v1::Protocol::Unspecified => Self::Detect,
            v1::Protocol::Http => Self::Http,
            v1::Protocol::Grpc => Self::Grpc,
            v1::Protocol::Tcp => Self::Tcp,
            v1::Protocol::Tls => Self::Tls,
        }
    }
}

impl From<Protocol> for v1::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Detect => Self::Unspecified,
            Protocol::Http => Self::Http,
            Protocol::Grpc => Self::Grpc,
            Protocol::Tcp => Self::Tcp,
            Protocol::Tls => Self::Tls,
        }
    }
}

/// Without endpoints: those are resources of their own.
impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        Self {
            name: service.name.to_string(),
            ports: service.ports.iter().map(Into::into).collect(),
            exported_to: service.exported_to.iter().map(ToString::to_string).collect(),
            imported_from: service.imported_from.iter().map(ToString::to_string).collect(),
            virtual_address: service.virtual_address.map(|ip| ip.to_string()).unwrap_or_default(),
            second_address: service.second_address.map(|ip| ip.to_string()).unwrap_or_default(),
            routes: service.routes.iter().map(Into::into).collect(),
            connection_routes: service.connection_routes.0.iter().map(Into::into).collect(),
            traffic: (service.traffic != TrafficPolicy::default())
                .then(|| (&service.traffic).into()),
            policy: service.policy.access.as_ref().map(Into::into),
            // What is not said is the default, which may change.
            balance: (service.balance != BalancePolicy::default())
                .then(|| (&service.balance).into()),
        }
    }
}
