//! What the cluster has of us besides what was installed, which whoever uninstalls
//! knows nothing of: controller and injector have written it.

use anyhow::Context;
use clap::Args;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Preconditions},
};
use serde::de::DeserializeOwned;

use crate::names::{IMPORTED_FROM, MANAGED_BY, TRUST, US, workload_resource};

/// In the namespace of the control plane.
const LEASES: [&str; 2] = ["isthmus-controller", "isthmus-injector"];
/// There, too: the injector's CA. That of the site stays.
const SECRET: &str = "isthmus-injector-tls";
/// There, too: what `helm test` has left for its log.
const TEST: &str = "isthmus-test";

/// Where the control plane was.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "For a cluster whose controller and injector are gone: they would write it anew. The root \
of the site and its state stay.

Examples:
  isthmus-k8s sweep"
)]
pub struct Options {
    /// Namespace of the control plane
    #[arg(long, env = "POD_NAMESPACE", default_value = "isthmus-system")]
    pub namespace: String,
}

/// Removes it.
pub async fn sweep(options: Options) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("no API server is known here")?;
    let ours = ListParams::default().labels(&format!("{MANAGED_BY}={US}"));
    let services = all::<Service>(&client, &ours).await?;
    let imports = services.into_iter().filter(|s| s.annotations().contains_key(IMPORTED_FROM));
    let mut swept = 0;
    for import in imports {
        swept += remove(&client, &import).await?;
    }
    swept += workloads(&client, &ours).await?;
    // Named, so that nobody needs to let us read others.
    let trust = ours.fields(&format!("metadata.name={TRUST}"));
    for map in all::<ConfigMap>(&client, &trust).await? {
        swept += remove(&client, &map).await?;
    }
    let own = &options.namespace;
    for name in LEASES {
        swept += remove_named(&Api::<Lease>::namespaced(client.clone(), own), name).await?;
    }
    swept += remove_named(&Api::<Secret>::namespaced(client.clone(), own), SECRET).await?;
    swept += remove_named(&Api::<Pod>::namespaced(client, own), TEST).await?;
    log::info!(swept; "what was written is gone");
    Ok(())
}

/// The kind stays: whoever installs again finds it.
async fn workloads(client: &Client, ours: &ListParams) -> anyhow::Result<usize> {
    let kind = workload_resource();
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let known = match api.list(ours).await {
        Ok(known) => known.items,
        // The kind was never there.
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(0),
        Err(error) => return Err(error).context("cannot list workloads"),
    };
    let mut swept = 0;
    for object in known {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind);
        match api.delete(&object.name_any(), &DeleteParams::default()).await {
            Ok(_) => swept += 1,
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => {
                let name = object.name_any();
                return Err(error)
                    .with_context(|| format!("cannot delete workload {namespace}/{name}"));
            }
        }
    }
    Ok(swept)
}

async fn all<K>(client: &Client, which: &ListParams) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let listed = Api::<K>::all(client.clone()).list(which).await;
    Ok(listed.with_context(|| format!("cannot list {}", K::plural(&())))?.items)
}

/// How many: nothing where it is gone, or another has taken its place.
async fn remove<K>(client: &Client, object: &K) -> anyhow::Result<usize>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let only = Preconditions { uid: object.uid(), resource_version: None };
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    match api.delete(&name, &DeleteParams::default().preconditions(only)).await {
        Ok(_) => Ok(1),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(0),
        Err(error) => {
            Err(error).with_context(|| format!("cannot delete {} {namespace}/{name}", K::kind(&())))
        }
    }
}

async fn remove_named<K>(api: &Api<K>, name: &str) -> anyhow::Result<usize>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(1),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot delete {} {name}", K::kind(&()))),
    }
}
