//! `meshctl endpoints`: where a service's requests may go.

use std::{fmt::Display, sync::Arc, time::Duration};

use clap::Args;
use mesh_core::{
    Endpoint, Health, Locality, PortName, Service, ServiceName, Snapshot,
    balance::{Backing, BalancePolicy, Balancer, Paths, Slot, Tier, Vantage, tier},
    path::{is_reachable, path_to},
    snapshot::apply,
};
use serde::Serialize;

use super::view;
use crate::{
    endpoint::Run,
    failure::Failure,
    output::{self, Format, Paint, Show, Table},
};

/// Arguments of `endpoints`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  meshctl endpoints orders.shop\n  meshctl endpoints payments.prod -o wide\n  meshctl endpoints orders.shop --json | jq '.endpoints[].health'"
)]
pub struct Endpoints {
    /// <name>.<namespace>
    service: ServiceName,
}

/// Downloads the state of the site and reads it as a proxy would.
pub(crate) async fn snapshot(run: &Run) -> Result<Snapshot, Failure> {
    let delta = run.admin().await?.read_snapshot(mesh_api::v1::ReadSnapshotRequest {}).await?;
    apply(None, &delta.into_inner()).map_err(|rejected| {
        Failure::new(format!("the snapshot of this site does not apply: {rejected}"))
            .remedy("proxies refuse it too: `meshctl status` shows since when; compare versions")
    })
}

/// The service, or which ones there are.
pub(crate) fn service<'a>(
    snapshot: &'a Snapshot,
    name: &ServiceName,
) -> Result<&'a mesh_core::Service, Failure> {
    snapshot.services.get(name).map(|service| &**service).ok_or_else(|| {
        Failure::new(format!("service {name}: not known in site {}", snapshot.site))
            .remedy("`meshctl service list` shows what is; a linked site must export it")
    })
}

impl Endpoints {
    /// Shows them from the vantage of this site.
    pub async fn run(self, run: &Run, format: Format) -> Result<(), Failure> {
        let snapshot = snapshot(run).await?;
        let service = service(&snapshot, &self.service)?;
        let vantage = Vantage { site: snapshot.site.clone(), locality: Locality::default() };
        let ports = service.ports.iter().map(|port| &port.name);
        let view = EndpointsView {
            service: service.name.to_string(),
            seen_from: snapshot.site.to_string(),
            endpoints: ports.flat_map(|port| views(&snapshot, &vantage, service, port)).collect(),
        };
        output::print(format, &view)
    }
}

#[derive(Debug, Serialize)]
struct EndpointsView {
    service: String,
    seen_from: String,
    endpoints: Vec<EndpointView>,
}

/// The endpoints of a port as a proxy would choose from them that has seen
/// nothing yet. Of other sites a worker uses a subset; here are all, with the
/// share that they have on average.
pub(crate) fn balancer(
    snapshot: &Snapshot,
    from: &Vantage,
    service: &Service,
    port: &PortName,
) -> Balancer {
    let of_port = service.endpoints.iter().filter(|endpoint| endpoint.port == *port);
    let endpoints: Vec<Arc<Endpoint>> = of_port.cloned().collect();
    let mut balancer = Balancer::new(rand::random());
    let policy = BalancePolicy { subset: 0, ..service.balance.clone() };
    let backing = Backing {
        from,
        policy: &policy,
        endpoints: &endpoints,
        reachable: &|endpoint| is_reachable(snapshot, endpoint),
        workers: 1,
    };
    balancer.update(&backing, Duration::ZERO);
    balancer.refresh(&Paths::default(), Duration::ZERO);
    balancer
}

/// The endpoints of a port, as they look from one vantage.
pub(crate) fn views(
    snapshot: &Snapshot,
    from: &Vantage,
    service: &Service,
    port: &PortName,
) -> Vec<EndpointView> {
    let balancer = balancer(snapshot, from, service, port);
    let view = |(slot, share): (Slot, f64)| {
        EndpointView::new(snapshot, from, balancer.endpoint(slot), share)
    };
    balancer.expected().into_iter().map(view).collect()
}

/// One endpoint, as it looks from one vantage.
#[derive(Debug, Serialize, Clone)]
pub(crate) struct EndpointView {
    pub(crate) id: String,
    pub(crate) site: String,
    pub(crate) port: String,
    pub(crate) identity: String,
    pub(crate) health: &'static str,
    pub(crate) tier: &'static str,
    pub(crate) weight: u32,
    /// Requests at once that it is good for; 0 is unknown.
    pub(crate) capacity: u32,
    /// Of the requests from this vantage while all answer equally fast, 0 to 1.
    pub(crate) share: f64,
    /// `direct`, `via gateway`, `reverse`; what is missing if nothing leads
    /// there.
    pub(crate) path: String,
    /// The address, or the gateways, that begin the path.
    pub(crate) through: String,
    pub(crate) node: String,
    pub(crate) locality: String,
}

impl EndpointView {
    fn new(snapshot: &Snapshot, from: &Vantage, endpoint: &Endpoint, share: f64) -> Self {
        let (path, through) = match path_to(snapshot, endpoint) {
            Ok(path) => (path.describe().to_owned(), through(&path)),
            Err(none) => (format!("none: {}", none.problem), String::new()),
        };
        let locality = &endpoint.locality;
        let parts = [&*locality.region, &*locality.zone, &*locality.host];
        Self {
            id: endpoint.id.to_string(),
            site: endpoint.site.to_string(),
            port: endpoint.port.to_string(),
            identity: endpoint.answers_as().to_owned(),
            health: health(endpoint.health),
            tier: tier_name(tier(from, endpoint)),
            weight: endpoint.weight,
            capacity: endpoint.capacity,
            share,
            path,
            through,
            node: endpoint.node.as_ref().map(ToString::to_string).unwrap_or_default(),
            locality: parts
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/"),
        }
    }
}

fn through(path: &mesh_core::Path) -> String {
    match path {
        mesh_core::Path::Direct(addr) => addr.to_string(),
        mesh_core::Path::ViaGateway(gateways) | mesh_core::Path::Reverse(gateways) => {
            join(gateways)
        }
    }
}

fn join<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// The word for a health.
fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "healthy",
        Health::Unhealthy => "unhealthy",
        Health::Unknown => "unknown",
        Health::Draining => "draining",
    }
}

/// The word for a tier.
pub(crate) fn tier_name(tier: Tier) -> &'static str {
    match tier {
        Tier::Zone => "zone",
        Tier::Region => "region",
        Tier::Site => "site",
        Tier::Remote => "remote",
    }
}

/// Endpoints as a table.
pub(crate) fn endpoint_table(endpoints: &[EndpointView], wide: bool, paint: Paint) -> String {
    let mut header =
        vec!["ENDPOINT", "SITE", "PORT", "HEALTH", "TIER", "WEIGHT", "SHARE", "PATH", "IDENTITY"];
    if wide {
        header.extend(["CAPACITY", "THROUGH", "NODE", "LOCALITY"]);
    }
    let mut table = Table::new(&header);
    for endpoint in endpoints {
        let mut cells = vec![
            endpoint.id.clone(),
            endpoint.site.clone(),
            endpoint.port.clone(),
            view::state(paint, endpoint.health),
            endpoint.tier.to_owned(),
            endpoint.weight.to_string(),
            format!("{:.1}%", 100.0 * endpoint.share),
            endpoint.path.clone(),
            endpoint.identity.clone(),
        ];
        if wide {
            cells.extend([
                capacity(endpoint.capacity),
                endpoint.through.clone(),
                endpoint.node.clone(),
                endpoint.locality.clone(),
            ]);
        }
        table.row(cells);
    }
    table.render(paint)
}

fn capacity(capacity: u32) -> String {
    if capacity == 0 { String::new() } else { capacity.to_string() }
}

impl Show for EndpointsView {
    fn text(&self, wide: bool, paint: Paint) -> String {
        if self.endpoints.is_empty() {
            return format!(
                "{}: no endpoint. `meshctl node list` shows whether its machines are connected\n",
                self.service
            );
        }
        endpoint_table(&self.endpoints, wide, paint)
    }
}
