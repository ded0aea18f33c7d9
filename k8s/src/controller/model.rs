//! What of a cluster is the mesh's: from its objects to what federation is
//! told. Pure.
//!
//! Only what a change touches is made anew: a pod whose object, node, Service
//! or EndpointSlice is another, and a Service with its pods.

mod objects;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use mesh_api::v1::{ClusterChange, ClusterService, Health, Locality, Pod, Port, Register};

pub(crate) use self::objects::{
    Name, NodeSeen, PodSeen, Problem, ServiceSeen, SliceSeen, invalid_label,
};
use self::objects::{Ready, ServicePort, at};

/// Where a pod's proxy takes what comes from the mesh.
const INBOUND: u16 = 4143;
/// Pods and services of one message to federation.
const CHUNK: usize = 1000;

/// The cluster as seen, and what federation was told of it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// By UID: only pods of the mesh.
    pods: BTreeMap<String, PodSeen>,
    uids: BTreeMap<Name, String>,
    services: BTreeMap<Name, ServiceSeen>,
    slices: BTreeMap<Name, SliceSeen>,
    nodes: BTreeMap<String, Locality>,
    slices_of_service: BTreeMap<Name, BTreeSet<Name>>,
    slices_of_pod: BTreeMap<String, BTreeSet<Name>>,
    dirty_pods: BTreeSet<String>,
    dirty_services: BTreeSet<Name>,
    told_pods: BTreeMap<String, Pod>,
    told_services: BTreeMap<Name, ClusterService>,
}

impl Model {
    /// A pod of the mesh is there, as it is now.
    pub(crate) fn pod(&mut self, name: Name, pod: PodSeen) {
        let uid = pod.uid.clone();
        if let Some(before) = self.uids.insert(name.clone(), uid.clone())
            && before != uid
        {
            self.forget_pod(&before);
        }
        if self.pods.get(&uid) != Some(&pod) {
            self.pods.insert(uid.clone(), pod);
            self.touch_pod(&uid);
        }
    }

    pub(crate) fn pod_gone(&mut self, name: &Name) {
        if let Some(uid) = self.uids.remove(name) {
            self.forget_pod(&uid);
        }
    }

    fn forget_pod(&mut self, uid: &str) {
        if self.pods.remove(uid).is_some() {
            self.touch_pod(uid);
        }
    }

    pub(crate) fn service(&mut self, name: Name, service: ServiceSeen) {
        if self.services.get(&name) != Some(&service) {
            self.services.insert(name.clone(), service);
            self.touch_service(&name);
        }
    }

    pub(crate) fn service_gone(&mut self, name: &Name) {
        if self.services.remove(name).is_some() {
            self.touch_service(name);
        }
    }

    pub(crate) fn slice(&mut self, name: Name, slice: SliceSeen) {
        if self.slices.get(&name) == Some(&slice) {
            return;
        }
        self.slice_gone(&name);
        for uid in slice.endpoints.keys() {
            self.slices_of_pod.entry(uid.clone()).or_default().insert(name.clone());
        }
        let of_service = self.slices_of_service.entry(slice.service.clone()).or_default();
        of_service.insert(name.clone());
        let service = slice.service.clone();
        self.slices.insert(name, slice);
        self.touch_service(&service);
    }

    /// Endpoints of a slice that are not where their pods are.
    pub(crate) fn misplaced(&self, slice: &SliceSeen) -> Vec<Problem> {
        let pods = slice.endpoints.iter().filter_map(|(uid, at)| Some((self.pods.get(uid)?, at)));
        let wrong = pods.filter(|(pod, endpoint)| !pod.is_at(endpoint.address));
        wrong
            .map(|(pod, endpoint)| Problem {
                field: at(endpoint.number),
                problem: format!(
                    "{} is not where pod {} is ({}); the endpoint does not count",
                    endpoint.address, pod.name, pod.address
                ),
            })
            .collect()
    }

    pub(crate) fn slice_gone(&mut self, name: &Name) {
        let Some(slice) = self.slices.remove(name) else { return };
        self.touch_service(&slice.service);
        for uid in slice.endpoints.keys() {
            self.dirty_pods.insert(uid.clone());
            remove(&mut self.slices_of_pod, uid, name);
        }
        remove(&mut self.slices_of_service, &slice.service, name);
    }

    pub(crate) fn node(&mut self, node: NodeSeen) {
        if self.nodes.get(&node.name) == Some(&node.locality) {
            return;
        }
        let on_it = self.pods.iter().filter(|(_, pod)| pod.node == node.name);
        self.dirty_pods.extend(on_it.map(|(uid, _)| uid.clone()));
        self.nodes.insert(node.name, node.locality);
    }

    pub(crate) fn node_gone(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// After a list: what was not in it is gone.
    pub(crate) fn keep_pods(&mut self, listed: &BTreeSet<Name>) {
        for gone in not_in(&self.uids, listed) {
            self.pod_gone(&gone);
        }
    }

    pub(crate) fn keep_services(&mut self, listed: &BTreeSet<Name>) {
        for gone in not_in(&self.services, listed) {
            self.service_gone(&gone);
        }
    }

    pub(crate) fn keep_slices(&mut self, listed: &BTreeSet<Name>) {
        for gone in not_in(&self.slices, listed) {
            self.slice_gone(&gone);
        }
    }

    fn touch_pod(&mut self, uid: &str) {
        self.dirty_pods.insert(uid.to_owned());
        let slices = self.slices_of_pod.get(uid).into_iter().flatten();
        let services = slices.filter_map(|slice| self.slices.get(slice));
        self.dirty_services.extend(services.map(|slice| slice.service.clone()));
    }

    fn touch_service(&mut self, name: &Name) {
        self.dirty_services.insert(name.clone());
        for slice in self.slices_of_service.get(name).into_iter().flatten() {
            let endpoints = self.slices.get(slice).into_iter().flat_map(|s| s.endpoints.keys());
            self.dirty_pods.extend(endpoints.cloned());
        }
    }

    /// Namespace and name of a pod of the mesh.
    pub(crate) fn pod_named(&self, uid: &str) -> Option<Name> {
        self.pods.get(uid).map(|pod| Name::new(&pod.namespace, &pod.name))
    }

    /// Where a pod is, as its node says.
    pub(crate) fn locality(&self, node: &str) -> Option<&Locality> {
        self.nodes.get(node)
    }

    /// The IP address of a pod of the mesh, once it has one.
    pub(crate) fn address(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid).map(|pod| pod.address.as_str()).filter(|address| !address.is_empty())
    }

    /// How much is known: pods of the mesh, Services, EndpointSlices.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.pods.len(), self.services.len(), self.slices.len())
    }

    /// Somebody asks who has heard nothing yet.
    pub(crate) fn begin(&mut self) {
        self.told_pods.clear();
        self.told_services.clear();
        self.dirty_pods = self.pods.keys().cloned().collect();
        self.dirty_services = self.services.keys().cloned().collect();
    }

    /// What is different from what was told before; with `first`, the last of
    /// these says that it is all.
    pub(crate) fn changes(&mut self, first: bool) -> Vec<ClusterChange> {
        let mut changes = vec![ClusterChange::default()];
        for uid in std::mem::take(&mut self.dirty_pods) {
            let now = self.pods.get(&uid).map(|pod| self.told(pod));
            if now.as_ref() == self.told_pods.get(&uid) {
                continue;
            }
            let change = room(&mut changes);
            match now {
                Some(now) => {
                    change.pods.push(now.clone());
                    self.told_pods.insert(uid, now);
                }
                None => {
                    self.told_pods.remove(&uid);
                    change.gone.push(uid);
                }
            }
        }
        for name in std::mem::take(&mut self.dirty_services) {
            let now = self.services.get(&name).and_then(|seen| self.told_service(&name, seen));
            if now.as_ref() == self.told_services.get(&name) {
                continue;
            }
            let change = room(&mut changes);
            match now {
                Some(now) => {
                    change.services.push(now.clone());
                    self.told_services.insert(name, now);
                }
                None => {
                    self.told_services.remove(&name);
                    change.gone_services.push(name.of_mesh());
                }
            }
        }
        if first && let Some(last) = changes.last_mut() {
            last.complete = true;
        }
        changes.retain(|change| *change != ClusterChange::default());
        changes
    }

    fn told(&self, pod: &PodSeen) -> Pod {
        let mut instances: BTreeMap<&Name, Register> = BTreeMap::new();
        for slice in self.slices_of_pod.get(&pod.uid).into_iter().flatten() {
            let Some(slice) = self.slices.get(slice) else { continue };
            let Some(service) = self.services.get(&slice.service) else { continue };
            if slice.endpoints.get(&pod.uid).is_none_or(|endpoint| !pod.is_at(endpoint.address)) {
                continue;
            }
            let other = slice.service.namespace != pod.namespace;
            if other || slice.service.is_reserved() || instances.contains_key(&slice.service) {
                continue;
            }
            if let Some(register) = self.register(pod, slice, service) {
                instances.insert(&slice.service, register);
            }
        }
        Pod {
            uid: pod.uid.clone(),
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            account: pod.account.clone(),
            instances: instances.into_values().collect(),
        }
    }

    /// `None` where the slice has no port of the Service, or no address.
    fn register(
        &self,
        pod: &PodSeen,
        slice: &SliceSeen,
        service: &ServiceSeen,
    ) -> Option<Register> {
        let endpoint = slice.endpoints.get(&pod.uid)?;
        let backed: Vec<(&ServicePort, u16)> = service
            .ports
            .iter()
            .filter_map(|port| Some((port, *slice.ports.get(&port.name)?)))
            .collect();
        if backed.is_empty() {
            return None;
        }
        let health = match endpoint.ready {
            // A pod that ends still serves what has no other place to go.
            Ready::Serving | Ready::Yes if pod.ends => Health::Draining,
            Ready::Yes => Health::Healthy,
            Ready::Serving => Health::Draining,
            Ready::No => Health::Unhealthy,
        };
        let port = |(port, _): &(&ServicePort, u16)| Port {
            name: port.mesh_name(),
            number: port.number.into(),
            protocol: port.protocol(&pod.opaque_ports).into(),
        };
        Some(Register {
            instance: slice.service.name.clone(),
            service: slice.service.of_mesh(),
            ports: backed.iter().map(port).collect(),
            target_ports: backed.iter().map(|(_, target)| (*target).into()).collect(),
            target_address: endpoint.address.to_string(),
            address: std::net::SocketAddr::new(endpoint.address, INBOUND).to_string(),
            locality: self.nodes.get(&pod.node).cloned(),
            weight: pod.weight,
            health: health.into(),
            capacity: 0,
        })
    }

    /// Services that pods of the mesh back, those that are exported while nobody
    /// backs them (who does so elsewhere is reached by their address), and our own.
    fn told_service(&self, name: &Name, seen: &ServiceSeen) -> Option<ClusterService> {
        let slices = self.slices_of_service.get(name).into_iter().flatten();
        let endpoints =
            slices.filter_map(|slice| self.slices.get(slice)).flat_map(|s| s.endpoints.keys());
        if name.is_reserved() {
            return None;
        }
        let is_exported = seen.exported_to_all || !seen.exported_to.is_empty();
        let (mut nobody, mut of_mesh) = (true, false);
        for uid in endpoints {
            (nobody, of_mesh) = (false, of_mesh || self.pods.contains_key(uid));
        }
        if !(seen.is_ours || of_mesh || is_exported && nobody) {
            return None;
        }
        Some(ClusterService {
            name: name.of_mesh(),
            address: seen.address.clone(),
            second_address: seen.second_address.clone(),
            exported_to: seen.exported_to.clone(),
            exported_to_all: seen.exported_to_all,
        })
    }
}

/// The last change, if there is room in it, or a new one.
fn room(changes: &mut Vec<ClusterChange>) -> &mut ClusterChange {
    let full = |change: &ClusterChange| {
        let gone = change.gone.len() + change.gone_services.len();
        change.pods.len() + change.services.len() + gone >= CHUNK
    };
    if changes.last().is_none_or(full) {
        changes.push(ClusterChange::default());
    }
    changes.last_mut().expect("one has just been pushed")
}

fn remove<K: Ord + Clone>(index: &mut BTreeMap<K, BTreeSet<Name>>, key: &K, name: &Name) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}

fn not_in<T>(known: &BTreeMap<Name, T>, listed: &BTreeSet<Name>) -> Vec<Name> {
    known.keys().filter(|name| !listed.contains(*name)).cloned().collect()
}
