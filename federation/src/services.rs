//! The gRPC services on one port, told apart by the first part of the path.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use mesh_api::v1::{
    admin_server::AdminServer, discovery_server::DiscoveryServer, join_server::JoinServer,
    node_identity_server::NodeIdentityServer, peering_server::PeeringServer,
    registry_server::RegistryServer, workload_identity_server::WorkloadIdentityServer,
};
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

use crate::{
    admin::AdminService, discovery::Discovery, join::JoinService,
    node_identity::NodeIdentityService, peering::Peering, pod_identity::PodIdentityService,
    registry::Registry,
};

/// What is served to callers who have proved who they are.
#[derive(Clone)]
pub struct Services {
    /// For nodes.
    pub node_identity: NodeIdentityServer<NodeIdentityService>,
    /// For nodes.
    pub registry: RegistryServer<Registry>,
    /// For proxies and gateways.
    pub discovery: DiscoveryServer<Discovery>,
    /// For the federations of linked sites.
    pub peering: PeeringServer<Peering>,
    /// For holders of a role.
    pub admin: AdminServer<AdminService>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match service_of(request.uri().path()) {
            NodeIdentityServer::<NodeIdentityService>::NAME => self.node_identity.call(request),
            RegistryServer::<Registry>::NAME => self.registry.call(request),
            DiscoveryServer::<Discovery>::NAME => self.discovery.call(request),
            PeeringServer::<Peering>::NAME => self.peering.call(request),
            AdminServer::<AdminService>::NAME => self.admin.call(request),
            other => none(other),
        }
    }
}

/// What is served to callers who have no certificate yet.
#[derive(Clone)]
pub struct JoinServices {
    /// For machines and linked sites, by token.
    pub join: JoinServer<JoinService>,
    /// For pods, by the token of their service account.
    pub pods: WorkloadIdentityServer<PodIdentityService>,
}

impl Service<http::Request<Body>> for JoinServices {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match service_of(request.uri().path()) {
            JoinServer::<JoinService>::NAME => self.join.call(request),
            WorkloadIdentityServer::<PodIdentityService>::NAME => self.pods.call(request),
            other => none(other),
        }
    }
}

fn none(service: &str) -> BoxFuture<http::Response<Body>, Infallible> {
    let status = Status::unimplemented(format!("there is no service {service:?} here"));
    Box::pin(async move { Ok(status.into_http()) })
}

/// `package.Service` of `/package.Service/Method`.
fn service_of(path: &str) -> &str {
    let path = path.strip_prefix('/').unwrap_or(path);
    path.split_once('/').map_or(path, |(service, _)| service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_the_first_part_of_the_path() {
        let cases = [
            ("/isthmus.v1.Registry/Session", "isthmus.v1.Registry"),
            ("/isthmus.v1.Registry", "isthmus.v1.Registry"),
            ("//x", ""),
            ("", ""),
            ("*", "*"),
        ];
        for (path, service) in cases {
            assert_eq!(service_of(path), service, "{path}");
        }
    }
}
