//! `io.l5d.marathon`: applications with their tasks.

use mesh_migrate::{
    linkerd1::{config::Namer, name::Name, reach::Reach},
    request::Endpoint,
};
use serde::Deserialize;

use super::{
    Names,
    ask::{Asker, Wrong, flag, place, text},
};

#[derive(Debug, Deserialize)]
struct Apps {
    apps: Vec<App>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct App {
    id: String,
    tasks: Vec<Task>,
    health_checks: Option<Vec<serde_json::Value>>,
    /// Where each task has an address of its own.
    ip_address: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Task {
    host: Option<String>,
    ports: Option<Vec<u64>>,
    ip_addresses: Option<Vec<IpAddress>>,
    health_check_results: Option<Vec<HealthCheckResult>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct IpAddress {
    ip_address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HealthCheckResult {
    alive: bool,
}

pub(super) async fn read(namer: &Namer, reach: &Reach, names: &mut Names) -> Result<(), Wrong> {
    let node = &namer.node;
    let asker = Asker::of(node, "marathon.mesos", 80)?;
    let prefix = text(node, "uriPrefix")?.unwrap_or_default();
    let asks_health = flag(node, "useHealthCheck", false)?;
    let Apps { apps } = asker.json(&format!("{prefix}/v2/apps?embed=apps.tasks")).await?;
    for app in &apps {
        let labels = app.id.split('/').filter(|label| !label.is_empty());
        let name = namer.prefix.join(&Name::of(labels.map(str::to_lowercase)));
        if reach.leads(&name) {
            names.add(name, app.endpoints(asks_health));
        }
    }
    Ok(())
}

impl App {
    fn endpoints(&self, asks_health: bool) -> Vec<(Endpoint, f64)> {
        let checks = self.health_checks.as_ref().map_or(0, Vec::len);
        let own = self.ip_address.as_ref();
        let own_port = own.and_then(|own| own["discovery"]["ports"][0]["number"].as_u64());
        let good = self.tasks.iter().filter(|task| !asks_health || task.is_healthy(checks));
        good.filter_map(|task| task.place(own_port)).map(|at| (at, 1.0)).collect()
    }
}

impl Task {
    fn is_healthy(&self, checks: usize) -> bool {
        let results = self.health_check_results.as_deref().unwrap_or_default();
        results.iter().filter(|result| result.alive).count() == checks
    }

    /// Its first port on its host, or on its own address.
    fn place(&self, own_port: Option<u64>) -> Option<Endpoint> {
        if let (Some(port), Some([own, ..])) = (own_port, self.ip_addresses.as_deref()) {
            return place(&own.ip_address, port);
        }
        place(self.host.as_deref()?, *self.ports.as_ref()?.first()?)
    }
}
