//! The cluster's objects, followed into the model: through restarts of the API
//! server, lost watches and objects that do not parse.

use std::{
    collections::BTreeSet,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::DeserializeGuard,
    runtime::{WatchStreamExt, watcher, watcher::Event},
};
use mesh_runtime::drain::Drain;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};

use super::{
    complaints::Complaints,
    model::{Model, Name, NodeSeen, PodSeen, ServiceSeen, SliceSeen, invalid_label},
};
use crate::names::INJECT;

/// What is followed, shared by who reads it.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) model: Arc<Mutex<Model>>,
    /// Namespaces where pods are injected, and all that there are.
    pub(super) namespaces: watch::Sender<Namespaces>,
    /// Namespaces that have had pods of the mesh.
    pub(super) with_pods: watch::Sender<BTreeSet<String>>,
    /// Services that stand for what comes from elsewhere, or are in their way; and
    /// wakes who makes them when one is gone.
    pub(super) imports: Arc<(Mutex<BTreeSet<Name>>, Notify)>,
    /// Wakes who tells federation.
    pub(super) changed: Arc<Notify>,
    /// Kinds whose first list is here.
    listed: watch::Sender<BTreeSet<&'static str>>,
    complaints: Complaints,
}

/// Namespaces of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Namespaces {
    pub(super) all: BTreeSet<String>,
    pub(super) injected: BTreeSet<String>,
}

/// On EndpointSlices, who writes them.
const SLICES_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// For Services with a selector, Kubernetes itself.
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";
/// Without these nobody may say that it is all.
const NEEDED: [&str; 4] = ["Pod", "Service", "EndpointSlice", "Node"];

impl Seen {
    pub(super) fn new(complaints: Complaints) -> Self {
        let (model, changed) = Default::default();
        let (namespaces, with_pods, imports, listed) = Default::default();
        Self { model, namespaces, with_pods, imports, changed, listed, complaints }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until every kind has been listed once.
    pub(super) async fn complete(&self) {
        let all = |listed: &BTreeSet<_>| NEEDED.iter().all(|kind| listed.contains(kind));
        let _ = self.listed.subscribe().wait_for(all).await;
    }

    /// Follows everything until the process drains.
    pub(super) fn follow(&self, client: &Client, drain: &Drain) {
        let pods =
            watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
        drain.spawn(self.clone().kind(client.clone(), pods, drain.clone(), Pods));
        let all = watcher::Config::default;
        drain.spawn(self.clone().kind(client.clone(), all(), drain.clone(), Services));
        drain.spawn(self.clone().kind(client.clone(), all(), drain.clone(), Slices));
        drain.spawn(self.clone().kind(client.clone(), all(), drain.clone(), Nodes));
        drain.spawn(self.clone().kind(client.clone(), all(), drain.clone(), InNamespaces));
    }

    async fn kind<F: Follow>(self, client: Client, config: watcher::Config, drain: Drain, of: F) {
        let api: Api<DeserializeGuard<F::Object>> = Api::all(client);
        let events = watcher(api, config).default_backoff();
        pin_mut!(events);
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = drain.draining() => return,
            };
            match event {
                Some(Ok(event)) => self.take(event, &mut listed, &of),
                Some(Err(error)) => {
                    self.complaints.watch_failed(F::KIND);
                    log::warn!(kind = F::KIND, error:%; "a watch has failed, trying again");
                }
                None => return,
            }
        }
    }

    fn take<F: Follow>(
        &self,
        event: Event<DeserializeGuard<F::Object>>,
        listed: &mut BTreeSet<Name>,
        of: &F,
    ) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(Name::of(&object));
                self.apply(object, of);
            }
            Event::Apply(object) => self.apply(object, of),
            Event::Delete(object) => of.gone(self, &Name::of(&object)),
            Event::InitDone => {
                of.keep(self, listed);
                self.listed.send_if_modified(|kinds| kinds.insert(F::KIND));
            }
        }
        self.changed.notify_one();
    }

    /// What does not parse is as it was before: one bad object takes nobody's
    /// endpoints away.
    fn apply<F: Follow>(&self, object: DeserializeGuard<F::Object>, of: &F) {
        match object.0 {
            Ok(object) => of.apply(self, &object),
            Err(invalid) => {
                let name = invalid.metadata.name.clone().unwrap_or_default();
                self.complaints.invalid_object(F::KIND);
                log::warn!(kind = F::KIND, name = name.as_str(), error:% = invalid.error;
                    "an object makes no sense, and is left as it was");
            }
        }
    }
}

/// One kind of object.
trait Follow: Send + Sync + 'static {
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static;
    const KIND: &'static str;
    fn apply(&self, seen: &Seen, object: &Self::Object);
    fn gone(&self, seen: &Seen, name: &Name);
    fn keep(&self, seen: &Seen, listed: &BTreeSet<Name>);
}

struct Pods;

impl Follow for Pods {
    type Object = Pod;
    const KIND: &'static str = "Pod";

    fn apply(&self, seen: &Seen, pod: &Pod) {
        let mut problems = Vec::new();
        let name = Name::of(pod);
        match PodSeen::read(pod, &mut problems) {
            Some(read) => {
                let namespace = read.namespace.clone();
                seen.with_pods.send_if_modified(|known| known.insert(namespace));
                seen.lock().pod(name, read);
            }
            None => seen.lock().pod_gone(&name),
        }
        seen.complaints.about(pod, &problems);
    }

    fn gone(&self, seen: &Seen, name: &Name) {
        seen.lock().pod_gone(name);
    }

    fn keep(&self, seen: &Seen, listed: &BTreeSet<Name>) {
        seen.lock().keep_pods(listed);
    }
}

struct Services;

impl Follow for Services {
    type Object = Service;
    const KIND: &'static str = "Service";

    fn apply(&self, seen: &Seen, service: &Service) {
        let mut problems = Vec::new();
        let read = ServiceSeen::read(service, &mut problems);
        seen.lock().service(Name::of(service), read);
        seen.complaints.about(service, &problems);
    }

    fn gone(&self, seen: &Seen, name: &Name) {
        seen.lock().service_gone(name);
        let (imports, gone) = &*seen.imports;
        if imports.lock().unwrap_or_else(PoisonError::into_inner).contains(name) {
            gone.notify_one();
        }
    }

    fn keep(&self, seen: &Seen, listed: &BTreeSet<Name>) {
        seen.lock().keep_services(listed);
    }
}

struct Slices;

impl Follow for Slices {
    type Object = EndpointSlice;
    const KIND: &'static str = "EndpointSlice";

    fn apply(&self, seen: &Seen, slice: &EndpointSlice) {
        let (name, mut problems) = (Name::of(slice), Vec::new());
        match SliceSeen::read(slice, &mut problems) {
            Some(read) => {
                let mut model = seen.lock();
                // The cluster's own are right as soon as everything has been seen.
                if slice.labels().get(SLICES_BY).is_none_or(|by| by != SLICE_CONTROLLER) {
                    problems.extend(model.misplaced(&read));
                }
                model.slice(name, read);
            }
            None => seen.lock().slice_gone(&name),
        }
        seen.complaints.about(slice, &problems);
    }

    fn gone(&self, seen: &Seen, name: &Name) {
        seen.lock().slice_gone(name);
    }

    fn keep(&self, seen: &Seen, listed: &BTreeSet<Name>) {
        seen.lock().keep_slices(listed);
    }
}

struct Nodes;

impl Follow for Nodes {
    type Object = Node;
    const KIND: &'static str = "Node";

    fn apply(&self, seen: &Seen, node: &Node) {
        seen.lock().node(NodeSeen::read(node));
    }

    fn gone(&self, seen: &Seen, name: &Name) {
        seen.lock().node_gone(&name.name);
    }

    /// Pods of a node that is gone go themselves.
    fn keep(&self, _: &Seen, _: &BTreeSet<Name>) {}
}

struct InNamespaces;

impl Follow for InNamespaces {
    type Object = Namespace;
    const KIND: &'static str = "Namespace";

    fn apply(&self, seen: &Seen, namespace: &Namespace) {
        let name = namespace.name_any();
        let injected = namespace.labels().get(INJECT).is_some_and(|value| value == "enabled");
        let ends = namespace.metadata.deletion_timestamp.is_some();
        let problems: Vec<_> = invalid_label(namespace).into_iter().collect();
        seen.complaints.about(namespace, &problems);
        seen.namespaces.send_if_modified(|known| {
            let before = known.clone();
            set(&mut known.all, &name, !ends);
            set(&mut known.injected, &name, injected && !ends);
            *known != before
        });
    }

    fn gone(&self, seen: &Seen, name: &Name) {
        seen.namespaces.send_if_modified(|known| {
            known.injected.remove(&name.name);
            known.all.remove(&name.name)
        });
    }

    fn keep(&self, seen: &Seen, listed: &BTreeSet<Name>) {
        let listed: BTreeSet<&str> = listed.iter().map(|name| name.name.as_str()).collect();
        seen.namespaces.send_if_modified(|known| {
            let before = known.clone();
            known.all.retain(|name| listed.contains(name.as_str()));
            known.injected.retain(|name| listed.contains(name.as_str()));
            *known != before
        });
    }
}

fn set(names: &mut BTreeSet<String>, name: &str, there: bool) {
    if there {
        names.insert(name.to_owned());
    } else {
        names.remove(name);
    }
}
