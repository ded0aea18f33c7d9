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

#[cfg(test)]
mod tests {
    use super::*;

    fn field_of(change: impl Fn(&mut v1::ConnectionRoute)) -> Result<(), &'static str> {
        let backend = v1::Backend { service: "a.b".into(), weight: 1, ..Default::default() };
        let (name, backends) = ("r".into(), vec![backend]);
        let mut message = v1::ConnectionRoute { name, backends, ..Default::default() };
        change(&mut message);
        ConnectionRoute::try_from(&message).map(drop).map_err(|error| error.field)
    }

    fn filtered(filters: v1::Filters) -> impl Fn(&mut v1::ConnectionRoute) {
        move |m| m.backends[0].filters = Some(filters.clone())
    }

    #[test]
    fn names_are_of_tls_and_headers_of_requests() {
        let names = |tls: bool, count: usize| {
            field_of(|m| (m.tls, m.hostnames) = (tls, vec!["a.b".into(); count]))
        };
        assert_eq!((names(false, 0), names(true, 0)), (Ok(()), Ok(())));
        assert_eq!(names(true, MAX_HOSTNAMES), Ok(()));
        for (tls, count) in [(false, 1), (true, MAX_HOSTNAMES + 1)] {
            assert_eq!(names(tls, count), Err("connection_routes.hostnames"), "{tls} {count}");
        }
        let changes = Some(v1::HeaderChanges { remove: vec!["x-a".into()], ..Default::default() });
        for (request, response) in [(changes.clone(), None), (None, changes)] {
            let filters = v1::Filters { request, response, ..Default::default() };
            let refused = field_of(filtered(filters));
            assert_eq!(refused, Err("connection_routes.backends.filters"));
        }
        assert_eq!(field_of(filtered(v1::Filters::default())), Ok(()));
    }
}
