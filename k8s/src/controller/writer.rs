//! What the controller writes: whom pods believe, and Services for what comes
//! from elsewhere. One controller at a time does, by its Lease.
//!
//! A Service that somebody else has made is never changed, nor is a namespace
//! made for one. A pod that is not of the mesh finds a Service of ours without
//! endpoints: its connections are refused by the cluster, not sent elsewhere in
//! plaintext.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams},
};
use mesh_api::v1::{ClusterNews, Port, Protocol, Service as Import};
use mesh_runtime::drain::Drain;
use tokio::{sync::watch, time::sleep};

use super::{
    complaints::Complaints,
    model::Name,
    watch::{Namespaces, Seen},
};
use crate::{
    lease::Leadership,
    names::{IMPORTED_FROM, MANAGED_BY, TRUST, TRUST_KEY, US},
};

/// Who wrote a field (server-side apply).
const MANAGER: &str = "isthmus-controller";
/// How often what was written is looked at again: others may have changed it.
const LOOK: Duration = Duration::from_secs(60);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(2);
/// How long changes wait for others.
const COALESCE: Duration = Duration::from_millis(200);

pub(super) struct Writer {
    pub(super) client: Client,
    pub(super) own_namespace: String,
    pub(super) seen: Seen,
    pub(super) news: watch::Receiver<Option<ClusterNews>>,
    pub(super) leader: Leadership,
    pub(super) complaints: Complaints,
}

impl Writer {
    pub(super) async fn run(self, drain: Drain) {
        tokio::select! {
            () = self.keep() => {}
            () = drain.draining() => {}
        }
    }

    async fn keep(mut self) {
        let mut namespaces = self.seen.namespaces.subscribe();
        let mut pods = self.seen.with_pods.subscribe();
        self.seen.complete().await;
        loop {
            self.leader.gained().await;
            let news = self.news.borrow_and_update().clone();
            let known = namespaces.borrow_and_update().clone();
            let with_pods = pods.borrow_and_update().clone();
            let written = match &news {
                Some(news) => self.write(news, &known, &with_pods).await,
                None => Ok(()),
            };
            let pause = match written {
                Ok(()) => LOOK,
                Err(error) => {
                    log::warn!(error:%; "the cluster cannot be written to, trying again");
                    PAUSE
                }
            };
            tokio::select! {
                () = sleep(pause) => continue,
                changed = self.news.changed() => if changed.is_err() { return },
                changed = namespaces.changed() => if changed.is_err() { return },
                changed = pods.changed() => if changed.is_err() { return },
                () = self.seen.imports.1.notified() => {}
            }
            sleep(COALESCE).await;
        }
    }

    async fn write(
        &self,
        news: &ClusterNews,
        namespaces: &Namespaces,
        with_pods: &BTreeSet<String>,
    ) -> kube::Result<()> {
        self.trust(news, namespaces, with_pods).await?;
        self.imports(&news.imports, namespaces).await
    }

    /// Where pods are injected, the roots that they believe.
    async fn trust(
        &self,
        news: &ClusterNews,
        namespaces: &Namespaces,
        with_pods: &BTreeSet<String>,
    ) -> kube::Result<()> {
        let Some(bundle) = &news.bundle else { return Ok(()) };
        let pem: String = bundle.roots.iter().map(|root| pem(root)).collect();
        let own = std::iter::once(&self.own_namespace);
        let wanted = namespaces.injected.iter().chain(with_pods).chain(own);
        let wanted: BTreeSet<_> = wanted.filter(|name| namespaces.all.contains(*name)).collect();
        for namespace in wanted {
            let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
            let known = api.get_opt(TRUST).await?;
            let same = |map: ConfigMap| map.data?.remove(TRUST_KEY).filter(|known| *known == pem);
            if known.and_then(same).is_some() {
                continue;
            }
            let map = ConfigMap {
                metadata: ours(TRUST, BTreeMap::new()),
                data: Some([(TRUST_KEY.to_owned(), pem.clone())].into()),
                ..ConfigMap::default()
            };
            apply(&api, TRUST, &map).await?;
            log::info!(namespace = namespace.as_str(); "roots written");
        }
        Ok(())
    }

    /// Services of the mesh that the cluster does not have itself.
    async fn imports(&self, imports: &[Import], namespaces: &Namespaces) -> kube::Result<()> {
        let mut wanted = BTreeMap::new();
        for import in imports {
            let Some((name, namespace)) = import.name.split_once('.') else { continue };
            if namespaces.all.contains(namespace) {
                wanted.insert(Name::new(namespace, name), import);
            }
        }
        let names = wanted.keys().cloned().collect();
        *self.seen.imports.0.lock().unwrap_or_else(PoisonError::into_inner) = names;
        let all: Api<Service> = Api::all(self.client.clone());
        let ours = ListParams::default().labels(&format!("{MANAGED_BY}={US}"));
        let ours = all.list(&ours).await?.items;
        for service in &ours {
            // The chart's own are managed by Helm.
            let imported = service.annotations().contains_key(IMPORTED_FROM);
            if imported && !wanted.contains_key(&Name::of(service)) {
                let api = self.services(&Name::of(service));
                let only = DeleteParams::default().preconditions(kube::api::Preconditions {
                    uid: service.uid(),
                    resource_version: None,
                });
                match api.delete(&service.name_any(), &only).await {
                    Ok(_) => log::info!(service = service.name_any().as_str(),
                        namespace = service.namespace().unwrap_or_default().as_str();
                        "an import has ended"),
                    Err(kube::Error::Api(status)) if status.is_not_found() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        for (name, import) in wanted {
            self.import(&name, import).await?;
        }
        Ok(())
    }

    async fn import(&self, name: &Name, import: &Import) -> kube::Result<()> {
        let api = self.services(name);
        let known = api.get_opt(&name.name).await?;
        if let Some(known) = &known
            && !is_import(known)
        {
            let from = import.imported_from.join(", ");
            let from = if from.is_empty() { "this site's machines" } else { &from };
            let note = format!(
                "{} is not imported from {from}: this Service is not ours, and no pod of the mesh \
                 backs it; inject its pods to make both one service, or rename one",
                name.of_mesh()
            );
            self.complaints.say(known, "NotImported", note);
            return Ok(());
        }
        let service = service(name, import);
        if known.is_some_and(|known| is_same(&known, &service)) {
            return Ok(());
        }
        apply(&api, &name.name, &service).await?;
        log::info!(service = name.of_mesh().as_str(); "imported");
        Ok(())
    }

    fn services(&self, name: &Name) -> Api<Service> {
        Api::namespaced(self.client.clone(), &name.namespace)
    }
}

fn is_import(service: &Service) -> bool {
    service.labels().get(MANAGED_BY).is_some_and(|by| by == US)
        && service.annotations().contains_key(IMPORTED_FROM)
}

fn ours(name: &str, annotations: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some([(MANAGED_BY.to_owned(), US.to_owned())].into()),
        annotations: Some(annotations).filter(|all| !all.is_empty()),
        ..ObjectMeta::default()
    }
}

/// Without a selector and without endpoints.
fn service(name: &Name, import: &Import) -> Service {
    let port = |port: &Port| ServicePort {
        name: Some(port.name.clone()),
        port: i32::try_from(port.number).unwrap_or_default(),
        protocol: Some("TCP".to_owned()),
        app_protocol: match port.protocol() {
            Protocol::Http => Some("http".to_owned()),
            Protocol::Grpc => Some("grpc".to_owned()),
            Protocol::Tcp => Some("tcp".to_owned()),
            Protocol::Tls => Some("tls".to_owned()),
            Protocol::Unspecified => None,
        },
        ..ServicePort::default()
    };
    let from = import.imported_from.join(",");
    Service {
        metadata: ours(&name.name, [(IMPORTED_FROM.to_owned(), from)].into()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(import.ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether what we say is so already.
fn is_same(known: &Service, wanted: &Service) -> bool {
    let ports = |service: &Service| -> Vec<_> {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        ports.map(|p| (p.name.clone(), p.port, p.app_protocol.clone())).collect()
    };
    let from = |service: &Service| service.annotations().get(IMPORTED_FROM).cloned();
    ports(known) == ports(wanted) && from(known) == from(wanted)
}

async fn apply<K>(api: &Api<K>, name: &str, object: &K) -> kube::Result<()>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let mut value = serde_json::to_value(object).map_err(kube::Error::SerdeError)?;
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(&value)).await.map(drop)
}

/// RFC 7468.
fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|l| std::str::from_utf8(l).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
