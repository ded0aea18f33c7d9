//! What one proxy sees of the view.

use std::collections::BTreeSet;

use mesh_api::v1::{Endpoint, Resource, Site, resource::Resource as R};

use crate::feed::Lens;

/// What one proxy sees: names, routes, policies, bundles, links and
/// revocations of the whole site; gateways of its own site; endpoints of what
/// it wants, and those on its own node, which it serves.
#[derive(Debug, Default)]
pub(crate) struct ProxyLens {
    /// The site it belongs to.
    pub(crate) site: String,
    /// The gateway identity: knows where federation is.
    pub(crate) is_gateway: bool,
    /// Every endpoint and gateway.
    pub(crate) everything: bool,
    /// UUID of the machine it runs on, empty for none.
    pub(crate) node: String,
    /// Services whose endpoints it wants.
    pub(crate) wanted: BTreeSet<String>,
    /// It began with a state of an earlier stream, of whose wants we do not
    /// know: it is told of every endpoint that goes.
    pub(crate) resumed: bool,
}

impl ProxyLens {
    fn sees_endpoint(&self, endpoint: &Endpoint) -> bool {
        self.everything
            || (!self.node.is_empty() && endpoint.node == self.node)
            || self.wanted.contains(&endpoint.service)
    }
}

impl Lens for ProxyLens {
    fn see(&self, resource: &Resource) -> Option<Resource> {
        let visible = match resource.resource.as_ref()? {
            R::Site(site) if !self.is_gateway => {
                let site = Site { federation_address: String::new(), ..site.clone() };
                return Some(Resource { resource: Some(R::Site(site)) });
            }
            R::Endpoint(endpoint) => self.sees_endpoint(endpoint),
            R::Gateway(gateway) => self.everything || gateway.site == self.site,
            R::Site(_) | R::Service(_) | R::Bundle(_) | R::Link(_) | R::Revocation(_) => true,
        };
        visible.then(|| resource.clone())
    }

    fn remembers(&self, resource: &Resource) -> bool {
        self.resumed && matches!(resource.resource, Some(R::Endpoint(_)))
    }
}

/// Only the endpoints of these services, as the lens sees them.
pub(crate) fn endpoints_of<'a>(
    resources: impl Iterator<Item = &'a Resource>,
    services: &BTreeSet<String>,
) -> Vec<Resource> {
    resources
        .filter(|resource| match &resource.resource {
            Some(R::Endpoint(endpoint)) => services.contains(&endpoint.service),
            _ => false,
        })
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use mesh_api::v1::{Gateway, Service};

    use super::*;

    fn seen(lens: &ProxyLens, resource: R) -> bool {
        lens.see(&Resource { resource: Some(resource) }).is_some()
    }

    fn endpoint(service: &str, node: &str) -> R {
        R::Endpoint(Endpoint { service: service.into(), node: node.into(), ..Endpoint::default() })
    }

    #[test]
    fn a_proxy_sees_names_and_the_endpoints_it_needs() {
        let lens = ProxyLens {
            site: "west".into(),
            node: "n1".into(),
            wanted: ["orders.shop".to_owned()].into(),
            ..ProxyLens::default()
        };
        let gateway = |site: &str| R::Gateway(Gateway { site: site.into(), ..Gateway::default() });
        let table = [
            (R::Service(Service::default()), true),
            (endpoint("orders.shop", "n2"), true),
            (endpoint("other.shop", "n1"), true),
            (endpoint("other.shop", "n2"), false),
            (endpoint("other.shop", ""), false),
            (gateway("west"), true),
            (gateway("east"), false),
        ];
        for (resource, expected) in table {
            assert_eq!(seen(&lens, resource.clone()), expected, "{resource:?}");
        }
        // Without a node, endpoints without one are not its own.
        let nowhere = ProxyLens { node: String::new(), ..lens };
        assert!(!seen(&nowhere, endpoint("other.shop", "")));
    }

    #[test]
    fn only_gateways_know_where_federation_is() {
        let site = Site { federation_address: "10.0.0.1:8446".into(), ..Site::default() };
        for is_gateway in [false, true] {
            let lens = ProxyLens { is_gateway, ..ProxyLens::default() };
            let seen = lens.see(&Resource { resource: Some(R::Site(site.clone())) });
            let Some(R::Site(seen)) = seen.and_then(|seen| seen.resource) else { panic!("a site") };
            assert_eq!(!seen.federation_address.is_empty(), is_gateway);
        }
    }

    #[test]
    fn who_resumed_is_told_of_all_endpoints_that_go() {
        let gone = Resource { resource: Some(endpoint("other.shop", "n2")) };
        for resumed in [false, true] {
            let lens = ProxyLens { resumed, ..ProxyLens::default() };
            assert_eq!(lens.remembers(&gone), resumed);
        }
    }
}
