//! Endpoints.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use mesh_api::v1;

use super::{MAX_VIA, WireError, list, optional_address, parse, wrong};
use crate::{
    name::{GatewayId, NodeId, SpiffeId, Subject},
    service::{Endpoint, Health, Locality},
};

impl TryFrom<&v1::Endpoint> for Endpoint {
    type Error = WireError;

    fn try_from(message: &v1::Endpoint) -> Result<Self, WireError> {
        let identity: SpiffeId = parse("spiffe_id", &message.spiffe_id)?;
        if !matches!(identity.subject(), Subject::Workload { .. }) {
            return Err(wrong("spiffe_id", "a node identity answers for no service"));
        }
        let node: Option<NodeId> = match message.node.as_str() {
            "" => None,
            node => Some(parse("node", node)?),
        };
        let via: BTreeSet<GatewayId> = list("via", &message.via, MAX_VIA, parse)?;
        let locality = message.locality.as_ref().map(Locality::try_from).transpose()?;
        Ok(Self {
            id: parse("id", &message.id)?,
            service: parse("service", &message.service)?,
            port: parse("port", &message.port)?,
            site: parse("site", &message.site)?,
            identity: Some(identity),
            address: optional_address("address", &message.address)?,
            target: target(message)?,
            locality: locality.unwrap_or_default(),
            weight: message.weight,
            capacity: message.capacity,
            priority: message.priority,
            health: message.health().into(),
            node,
            via,
        })
    }
}

/// Port 0 passes here: other sites are not told where an application listens.
fn target(message: &v1::Endpoint) -> Result<SocketAddr, WireError> {
    let port = u16::try_from(message.target_port)
        .map_err(|_| wrong("target_port", "must be at most 65535"))?;
    let ip: IpAddr = match message.target_address.as_str() {
        "" => Ipv4Addr::LOCALHOST.into(),
        ip => ip.parse().map_err(|_| wrong("target_address", "must be an IP address"))?,
    };
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(wrong("target_address", "is not an address that can be dialled"));
    }
    Ok(SocketAddr::new(ip, port))
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id.to_string(),
            service: endpoint.service.to_string(),
            port: endpoint.port.to_string(),
            site: endpoint.site.to_string(),
            // Empty is refused by whoever reads it.
            spiffe_id: endpoint.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            address: endpoint.address.map(|a| a.to_string()).unwrap_or_default(),
            target_port: endpoint.target.port().into(),
            locality: (endpoint.locality != Locality::default())
                .then(|| (&endpoint.locality).into()),
            weight: endpoint.weight,
            capacity: endpoint.capacity,
            priority: endpoint.priority,
            // For people.
            workload: String::new(),
            health: v1::Health::from(endpoint.health).into(),
            node: endpoint.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            via: endpoint.via.iter().map(ToString::to_string).collect(),
            target_address: endpoint.target.ip().to_string(),
        }
    }
}

impl From<v1::Health> for Health {
    fn from(message: v1::Health) -> Self {
        match message {
            v1::Health::Healthy => Self::Healthy,
            v1::Health::Unhealthy => Self::Unhealthy,
            v1::Health::Unspecified | v1::Health::Unknown => Self::Unknown,
            v1::Health::Draining => Self::Draining,
        }
    }
}

impl From<Health> for v1::Health {
    fn from(health: Health) -> Self {
        match health {
            Health::Healthy => Self::Healthy,
            Health::Unhealthy => Self::Unhealthy,
            Health::Unknown => Self::Unknown,
            Health::Draining => Self::Draining,
        }
    }
}
