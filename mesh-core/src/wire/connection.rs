//! Rules for connections.

use mesh_api::v1;

use super::{
    MAX_BACKENDS, MAX_HOSTNAMES, MAX_TEXT, WireError, at_most, parse,
    rule::{optional_label, optional_port},
    text, wrong,
};
use crate::rule::{
    RouteBackend,
    connection::{ConnectionRoute, Connections, HostPattern},
};

impl TryFrom<&v1::ConnectionRoute> for ConnectionRoute {
    type Error = WireError;

    fn try_from(message: &v1::ConnectionRoute) -> Result<Self, WireError> {
        const HOSTNAMES: &str = "connection_routes.hostnames";
        at_most(HOSTNAMES, &message.hostnames, MAX_HOSTNAMES)?;
        at_most("connection_routes.backends", &message.backends, MAX_BACKENDS)?;
        let of = match message.tls {
            true => {
                let names = message.hostnames.iter().map(|name| parse(HOSTNAMES, name));
                Connections::Tls(names.collect::<Result<_, _>>()?)
            }
            false if message.hostnames.is_empty() => Connections::Any,
            false => return Err(wrong(HOSTNAMES, "are known of TLS only")),
        };
        let backends: Vec<RouteBackend> =
            message.backends.iter().map(RouteBackend::try_from).collect::<Result<_, _>>()?;
        if backends.iter().any(|one| !one.request.is_empty() || !one.response.is_empty()) {
            return Err(wrong("connection_routes.backends.filters", "connections have no headers"));
        }
        let namespace = &message.client_namespace;
        Ok(Self {
            name: text("connection_routes.name", &message.name, MAX_TEXT)?,
            port: optional_port("connection_routes.port", &message.port)?,
            client_namespace: optional_label("connection_routes.client_namespace", namespace)?,
            of,
            backends,
        })
    }
}

impl From<&ConnectionRoute> for v1::ConnectionRoute {
    fn from(route: &ConnectionRoute) -> Self {
        let (tls, names): (bool, &[HostPattern]) = match &route.of {
            Connections::Any => (false, &[]),
            Connections::Tls(names) => (true, names),
        };
        Self {
            name: route.name.to_string(),
            port: route.port.as_ref().map(ToString::to_string).unwrap_or_default(),
            client_namespace: route.client_namespace.as_deref().unwrap_or_default().to_owned(),
            tls,
            hostnames: names.iter().map(ToString::to_string).collect(),
            backends: route.backends.iter().map(Into::into).collect(),
        }
    }
}
