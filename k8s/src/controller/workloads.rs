//! What is on machines, shown in the cluster: an object of kind Workload for each
//! instance that backs a service whose namespace is here, its health in its
//! status. For people and their tools; nobody decides anything by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use mesh_api::v1::{Endpoint, Health};
use mesh_runtime::drain::Drain;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::watch::Namespaces;
use crate::{
    lease::Leadership,
    names::{MANAGED_BY, SERVICE, SITE, US, workload_resource},
};

/// Who wrote a field (server-side apply).
const MANAGER: &str = "isthmus-controller";
/// Between two looks at what has changed: health comes and goes.
const PACE: Duration = Duration::from_secs(2);
/// How often what was written is looked at again: others may have changed it.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure; the kind may not be there yet.
const PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Workloads {
    pub(super) client: Client,
    pub(super) known: watch::Receiver<Option<Vec<Endpoint>>>,
    pub(super) namespaces: watch::Receiver<Namespaces>,
    pub(super) leader: Leadership,
}

impl Workloads {
    pub(super) async fn run(self, drain: Drain) {
        tokio::select! {
            () = self.keep() => {}
            () = drain.draining() => {}
        }
    }

    async fn keep(mut self) {
        let kind = workload_resource();
        let mut failing = false;
        loop {
            self.leader.gained().await;
            let endpoints = self.known.borrow_and_update().clone();
            let namespaces = self.namespaces.borrow_and_update().all.clone();
            let written = match &endpoints {
                Some(endpoints) if !namespaces.is_empty() => {
                    self.write(&kind, objects(endpoints, &namespaces)).await
                }
                _ => Ok(()),
            };
            let at = Instant::now();
            let again = match written {
                Ok(()) => {
                    failing = false;
                    LOOK
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        let hint = "kubectl apply -f the chart's crds/ if the kind is missing";
                        log::warn!(error:%, hint; "workloads are not shown, trying again");
                    }
                    PAUSE
                }
            };
            tokio::select! {
                () = sleep(again) => {}
                changed = self.known.changed() => if changed.is_err() { return },
                changed = self.namespaces.changed() => if changed.is_err() { return },
            }
            // No sooner after a failure than after none.
            sleep_until(at + if failing { PAUSE } else { PACE }).await;
        }
    }

    async fn write(&self, kind: &ApiResource, wanted: Objects) -> kube::Result<()> {
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), kind);
        let ours = ListParams::default().labels(&format!("{MANAGED_BY}={US}"));
        let mut known = BTreeMap::new();
        for object in all.list(&ours).await?.items {
            let name = (object.namespace().unwrap_or_default(), object.name_any());
            known.insert(name, object);
        }
        for (namespace, name) in known.keys().filter(|name| !wanted.contains_key(*name)) {
            match self.api(kind, namespace).delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                gone => drop(gone?),
            }
        }
        for ((namespace, name), mut object) in wanted {
            let api = self.api(kind, &namespace);
            let there = known.get(&(namespace, name.clone())).map(|object| &object.data);
            if there.is_none_or(|there| there["spec"] != object["spec"]) {
                let spec = json!({ "apiVersion": kind.api_version, "kind": kind.kind,
                    "metadata": object["metadata"], "spec": object["spec"] });
                api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&spec))
                    .await?;
            }
            let before = there.map(|there| &there["status"]["conditions"][0]);
            if before.is_some_and(|before| is_same(before, &object["status"]["conditions"][0])) {
                continue;
            }
            if let Some(before) = before
                && before["status"] == object["status"]["conditions"][0]["status"]
            {
                object["status"]["conditions"][0]["lastTransitionTime"] =
                    before["lastTransitionTime"].clone();
            }
            let status = json!({ "status": object["status"] });
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        }
        Ok(())
    }

    fn api(&self, kind: &ApiResource, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, kind)
    }
}

/// By namespace and name.
type Objects = BTreeMap<(String, String), Value>;

/// What there should be, made at this moment.
fn objects(endpoints: &[Endpoint], namespaces: &BTreeSet<String>) -> Objects {
    let mut instances: BTreeMap<(&str, &str, &str), Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in endpoints {
        let instance = (endpoint.service.as_str(), &*endpoint.site, &*endpoint.workload);
        instances.entry(instance).or_default().push(endpoint);
    }
    let mut objects = Objects::new();
    for ((service, site, workload), mut ports) in instances {
        let Some((name, namespace)) = service.split_once('.') else { continue };
        if namespaces.contains(namespace) {
            ports.sort_by(|a, b| a.port.cmp(&b.port));
            let object = format!("{name}-{site}-{workload}");
            let value = object_of(&object, (name, site), &ports);
            objects.insert((namespace.to_owned(), object), value);
        }
    }
    objects
}

fn object_of(object: &str, (service, site): (&str, &str), ports: &[&Endpoint]) -> Value {
    let first = ports[0];
    let mut spec = json!({
        "service": service,
        "site": site,
        "identity": first.spiffe_id,
        "weight": first.weight,
        "ports": ports.iter().map(|endpoint| &endpoint.port).collect::<Vec<_>>(),
    });
    let locality = first.locality.clone().unwrap_or_default();
    for (key, value) in [
        ("host", locality.host),
        ("zone", locality.zone),
        ("region", locality.region),
        ("node", first.node.clone()),
        ("address", first.address.clone()),
    ] {
        if !value.is_empty() {
            spec[key] = value.into();
        }
    }
    json!({
        "metadata": {
            "name": object,
            "labels": { MANAGED_BY: US, SERVICE: service, SITE: site },
        },
        "spec": spec,
        "status": { "conditions": [ready(ports)] },
    })
}

/// Ready is who takes new requests at every port.
fn ready(ports: &[&Endpoint]) -> Value {
    let worst =
        ports.iter().map(|endpoint| (rank(endpoint.health()), *endpoint)).max_by_key(|p| p.0);
    let (rank, endpoint) = worst.expect("an instance has a port");
    let (status, reason) = match rank {
        0 => ("True", "Healthy"),
        1 => ("Unknown", "NotHeard"),
        2 => ("False", "Draining"),
        _ => ("False", "Unhealthy"),
    };
    let message = match rank {
        0 => String::new(),
        1 => "neither its agent nor its proxy has been heard of late".to_owned(),
        2 => "it ends, and takes no new requests".to_owned(),
        _ => format!("its check of port {} fails", endpoint.port),
    };
    json!({ "type": "Ready", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now() })
}

fn rank(health: Health) -> u8 {
    match health {
        Health::Healthy => 0,
        Health::Unspecified | Health::Unknown => 1,
        Health::Draining => 2,
        Health::Unhealthy => 3,
    }
}

/// Whether two conditions differ in nothing but when.
fn is_same(a: &Value, b: &Value) -> bool {
    ["status", "reason", "message"].iter().all(|key| a[key] == b[key])
}

fn now() -> Value {
    json!(Time(Timestamp::now()))
}

#[cfg(test)]
mod tests;
