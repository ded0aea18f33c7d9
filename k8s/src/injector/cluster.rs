//! What the injector knows of the cluster: namespaces, the oldest kubelet, the
//! API server's version, and its own settings.

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, watcher},
    },
};
use mesh_inject::{Native, Settings, Version, settings};
use mesh_runtime::{admin::Condition, drain::Drain};
use tokio::{sync::watch, time::timeout};

/// Labels of a namespace that the watch does not show.
const ASK: Duration = Duration::from_secs(1);
/// How often the API server is asked for its version: it is upgraded rarely.
const VERSION_INTERVAL: Duration = Duration::from_secs(300);
/// Nodes that run something else have no sidecars of ours.
const OS_LABEL: &str = "kubernetes.io/os";

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Cluster {
    namespaces: Store<PartialObjectMeta<Namespace>>,
    api: Option<Api<Namespace>>,
    settings: Arc<RwLock<Settings>>,
    server: watch::Receiver<Option<Version>>,
    oldest_kubelet: watch::Receiver<Option<Version>>,
}

impl Cluster {
    /// Watches until the process drains. `ready` holds when it is known which
    /// namespaces there are.
    pub(super) fn watch(
        client: &Client,
        settings: Settings,
        ready: Condition,
        drain: &Drain,
    ) -> Self {
        let (namespaces, writer) = reflector::store();
        let all: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
        let events = watcher(all, watcher::Config::default())
            .default_backoff()
            // Nothing else of it is read.
            .modify(|namespace| {
                namespace.metadata.managed_fields = None;
                namespace.metadata.annotations = None;
            })
            .reflect(writer)
            .for_each(async |event| {
                if let Err(error) = event {
                    log::warn!(error:%; "namespaces are not seen");
                }
            });
        drain.spawn_beside(events);
        let first = namespaces.clone();
        drain.spawn_beside(async move {
            if first.wait_until_ready().await.is_ok() {
                ready.holds();
            }
        });
        Self {
            namespaces,
            api: Some(Api::all(client.clone())),
            settings: Arc::new(RwLock::new(settings)),
            server: server_version(client.clone(), drain),
            oldest_kubelet: oldest_kubelet(client.clone(), drain),
        }
    }

    /// Other settings from now on.
    pub(super) fn set(&self, settings: Settings) {
        *self.settings.write().unwrap_or_else(std::sync::PoisonError::into_inner) = settings;
    }

    /// What holds for pods of a namespace.
    pub(super) async fn settings(&self, namespace: &str) -> Settings {
        let here = self.namespace(namespace).await;
        let settings = self.settings.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut settings = settings.clone();
        settings.namespace = here;
        if let Native::Auto { server, oldest_kubelet } = &mut settings.native {
            *server = *self.server.borrow();
            *oldest_kubelet = *self.oldest_kubelet.borrow();
        }
        settings
    }

    /// Its label may be seconds old and the watch behind: nobody is left without a
    /// proxy for that. Where the API server does not answer, its own selector has
    /// decided before it has called.
    async fn namespace(&self, name: &str) -> settings::Namespace {
        let known = self.namespaces.get(&ObjectRef::new(name));
        let known = known.map(|namespace| of(&namespace));
        if let Some(known) = known.filter(|known| known.enabled) {
            return known;
        }
        let Some(api) = &self.api else { return known.unwrap_or_default() };
        match timeout(ASK, api.get_metadata_opt(name)).await {
            Ok(Ok(Some(namespace))) => of(&namespace),
            Ok(Ok(None)) => settings::Namespace::default(),
            Ok(Err(error)) => {
                log::warn!(namespace = name, error:%; "labels of a namespace cannot be read");
                settings::Namespace::default()
            }
            Err(_) => settings::Namespace::default(),
        }
    }
}

fn of(namespace: &PartialObjectMeta<Namespace>) -> settings::Namespace {
    settings::Namespace::of(&namespace.metadata.labels.clone().unwrap_or_default())
}

fn server_version(client: Client, drain: &Drain) -> watch::Receiver<Option<Version>> {
    let (version, receiver) = watch::channel(None);
    drain.spawn_beside(async move {
        loop {
            match client.apiserver_version().await {
                Ok(info) => {
                    let read = info.git_version.parse::<Version>();
                    if let Err(error) = &read {
                        log::warn!(error:%; "the API server's version");
                    }
                    version.send_replace(read.ok());
                }
                Err(error) => log::warn!(error:%; "the API server's version is not known"),
            }
            tokio::time::sleep(VERSION_INTERVAL).await;
        }
    });
    receiver
}

fn oldest_kubelet(client: Client, drain: &Drain) -> watch::Receiver<Option<Version>> {
    let (oldest, receiver) = watch::channel(None);
    let (nodes, writer) = reflector::store::<Node>();
    let events = watcher(Api::all(client), watcher::Config::default())
        .default_backoff()
        .modify(strip)
        .reflect(writer);
    drain.spawn_beside(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Ok(_) => {
                    let now = nodes.state().iter().filter_map(|node| kubelet(node)).min();
                    oldest.send_if_modified(|before| std::mem::replace(before, now) != now);
                }
                Err(error) => log::warn!(error:%; "nodes are not seen"),
            }
        }
    });
    receiver
}

/// All that is read of a node; it holds every image that it has.
fn strip(node: &mut Node) {
    node.metadata.managed_fields = None;
    node.metadata.annotations = None;
    node.spec = None;
    if let Some(status) = &mut node.status {
        let info = status.node_info.take();
        *status = Default::default();
        status.node_info = info;
    }
}

fn kubelet(node: &Node) -> Option<Version> {
    let labels = node.metadata.labels.as_ref();
    if labels.and_then(|labels| labels.get(OS_LABEL)).is_some_and(|os| os == "windows") {
        return None;
    }
    node.status.as_ref()?.node_info.as_ref()?.kubelet_version.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, paused};

    /// One that knows nothing but what it can ask for.
    pub(in crate::injector) fn cluster(api: Option<&FakeApi>, settings: Settings) -> Cluster {
        let (namespaces, _) = reflector::store();
        let version = |text: &str| watch::channel(text.parse().ok()).1;
        Cluster {
            namespaces,
            api: api.map(|api| Api::all(api.client())),
            settings: Arc::new(RwLock::new(settings)),
            server: version("v1.33.1"),
            oldest_kubelet: version("v1.28.0"),
        }
    }

    fn settings() -> Settings {
        Settings::new("east.example".parse().unwrap())
    }

    #[test]
    fn a_namespace_that_is_not_seen_yet_is_asked_for() {
        paused(async {
            let api = FakeApi::new();
            let labels = json!({"isthmus.dev/inject": "enabled", "pod-security.kubernetes.io/enforce": "baseline"});
            let namespace = |labels| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "shop", "labels": labels}});
            api.put("/api/v1/namespaces/shop", namespace(labels));
            let cluster = cluster(Some(&api), settings());
            let shop = cluster.settings("shop").await;
            assert!(shop.namespace.enabled);
            assert_eq!(shop.namespace.pod_security, settings::PodSecurity::Baseline);
            api.put("/api/v1/namespaces/shop", namespace(json!({})));
            assert!(!cluster.settings("shop").await.namespace.enabled);
            // Whom nobody knows, the selector of the webhook has chosen.
            assert!(cluster.settings("other").await.namespace.enabled);
        });
    }

    #[test]
    fn the_oldest_kubelet_decides_unless_somebody_has() {
        paused(async {
            let mut written = settings();
            let api = FakeApi::new();
            let auto = cluster(Some(&api), written.clone()).settings("x").await;
            assert!(!auto.native.is_native());
            written.native = Native::Always;
            let cluster = cluster(Some(&api), settings());
            cluster.set(written);
            assert!(cluster.settings("x").await.native.is_native());
        });
    }

    #[test]
    fn of_a_node_only_its_kubelet_is_kept() {
        let node = |os: &str, version: &str| -> Node {
            let info = json!({
                "kubeletVersion": version, "architecture": "", "bootID": "", "containerRuntimeVersion": "",
                "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": "",
            });
            serde_json::from_value(json!({
                "metadata": {"name": "n", "labels": {OS_LABEL: os}},
                "status": {"nodeInfo": info, "images": [{"names": ["a"]}]},
            }))
            .unwrap()
        };
        let mut linux = node("linux", "v1.30.2+k3s1");
        strip(&mut linux);
        assert_eq!(kubelet(&linux).map(|version| version.to_string()).as_deref(), Some("1.30"));
        assert!(linux.status.unwrap().images.is_none());
        assert_eq!(kubelet(&node("windows", "v1.27.0")), None);
    }
}
