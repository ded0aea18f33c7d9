//! A large cluster that changes all the time, and what a gateway must know of it
//! at the end.
//!
//! Pods are objects alone: nothing runs them. `fill` makes Services with one
//! EndpointSlice each and the pods of it, `run` changes them, `verify` compares
//! the API server's objects with the snapshot that a gateway keeps on disk.

use std::{
    collections::BTreeSet,
    future::Future,
    path::PathBuf,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use futures_util::{
    StreamExt, TryStreamExt,
    stream::{self, FuturesUnordered},
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use mesh_api::v1::{Delta, Health, resource::Resource as Published};
use prost::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, interval, sleep};

/// Requests to the API server at once.
const AT_ONCE: usize = 32;
/// Namespaces that Services are in.
const NAMESPACES: u32 = 20;
/// Endpoints of one Service.
const OF_SERVICE: u32 = 10;
/// Objects of one page of a list.
const PAGE: u32 = 500;
/// Where every pod is.
const NODE: &str = "churn-node";
/// An API server that is down this long does not come back.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);

#[derive(Parser)]
struct Options {
    /// Services, each with ten pods
    #[arg(long, default_value_t = 2000)]
    services: u32,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Makes the objects
    Fill,
    /// Changes them
    Run {
        /// Changes a second
        #[arg(long, default_value_t = 50)]
        rate: u32,
        /// Seconds
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Compares what is with what a gateway knows
    Verify {
        /// Its `snapshot.bin`
        snapshot: PathBuf,
        /// Until it knows all
        #[arg(long, default_value_t = 60)]
        within: u64,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let churn = Churn {
        client: Client::try_default().await?,
        services: options.services,
        next_pod: AtomicU32::new(0),
        again: AtomicU64::new(0),
    };
    match options.what {
        What::Fill => churn.fill().await,
        What::Run { rate, seconds, seed } => {
            churn.run(rate, Duration::from_secs(seconds), seed).await
        }
        What::Verify { snapshot, within } => {
            churn.verify(&snapshot, Duration::from_secs(within)).await
        }
    }
}

struct Churn {
    client: Client,
    services: u32,
    next_pod: AtomicU32,
    /// Requests that had to be made again.
    again: AtomicU64,
}

fn namespace(service: u32) -> String {
    format!("churn-{:02}", service % NAMESPACES)
}

fn name(service: u32) -> String {
    format!("service-{service:04}")
}

impl Churn {
    fn api<K>(&self, service: u32) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &namespace(service))
    }

    /// An answer of the API server, however often it has to be asked; 404 and
    /// 409 are answers.
    async fn ask<T, F: Future<Output = kube::Result<T>>>(
        &self,
        mut ask: impl FnMut() -> F,
    ) -> anyhow::Result<Option<T>> {
        let began = Instant::now();
        loop {
            match ask().await {
                Ok(answer) => return Ok(Some(answer)),
                Err(kube::Error::Api(error)) if [404, 409].contains(&error.code) => {
                    return Ok(None);
                }
                Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => {
                    self.again.fetch_add(1, Ordering::Relaxed);
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn create<K>(&self, api: &Api<K>, object: Value) -> anyhow::Result<Option<K>>
    where
        K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object)?;
        let params = PostParams::default();
        self.ask(|| api.create(&params, &object)).await
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let labels =
            json!({ "topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "z1" });
        let node = json!({ "metadata": { "name": NODE, "labels": labels } });
        self.create::<Node>(&Api::all(self.client.clone()), node).await?;
        for n in 0..NAMESPACES {
            let name = namespace(n);
            let object = json!({ "metadata": { "name": name } });
            self.create::<Namespace>(&Api::all(self.client.clone()), object).await?;
            let account = json!({ "metadata": { "name": "default" } });
            self.create::<ServiceAccount>(&self.api(n), account).await?;
        }
        stream::iter(0..self.services)
            .map(|service| self.fill_service(service))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        println!("{} Services, {} pods", self.services, self.next_pod.load(Ordering::Relaxed));
        Ok(())
    }

    async fn fill_service(&self, service: u32) -> anyhow::Result<()> {
        let name = name(service);
        let port = json!({ "name": "http", "port": 80, "targetPort": 8080, "appProtocol": "http" });
        let object = json!({ "metadata": { "name": name }, "spec": { "ports": [port] } });
        self.create::<Service>(&self.api(service), object).await?;
        let mut endpoints = Vec::new();
        for _ in 0..OF_SERVICE {
            endpoints.push(self.new_pod(service).await?);
        }
        let slice = json!({
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080 }],
        });
        self.create::<EndpointSlice>(&self.api(service), slice).await?;
        Ok(())
    }

    /// A pod, and the endpoint that it is.
    async fn new_pod(&self, service: u32) -> anyhow::Result<Value> {
        let n = self.next_pod.fetch_add(1, Ordering::Relaxed);
        let prefix = name(service);
        let object = json!({
            "metadata": {
                "name": format!("{prefix}-{n}-{:08x}", rand::random::<u32>()),
                "annotations": { isthmus_k8s::names::INJECTED: "test" },
            },
            "spec": { "nodeName": NODE, "containers": [{ "name": "app", "image": "none" }] },
        });
        let pod: Pod =
            self.create(&self.api(service), object).await?.context("a pod that exists already")?;
        let [_, b, c, d] = (0x0a40_0000 + n).to_be_bytes();
        Ok(json!({
            "addresses": [format!("10.{b}.{c}.{d}")],
            "conditions": { "ready": true },
            "targetRef": {
                "kind": "Pod", "name": pod.name_any(), "namespace": namespace(service), "uid": pod.uid(),
            },
        }))
    }

    async fn run(&self, rate: u32, time: Duration, seed: u64) -> anyhow::Result<()> {
        // Addresses that `fill` has not given.
        self.next_pod.store(self.services * OF_SERVICE, Ordering::Relaxed);
        let mut random = StdRng::seed_from_u64(seed);
        let mut tick = interval(Duration::from_secs(1) / rate);
        let (began, mut made) = (Instant::now(), 0_u32);
        let mut running = FuturesUnordered::new();
        while began.elapsed() < time || !running.is_empty() {
            tokio::select! {
                _ = tick.tick(), if began.elapsed() < time && running.len() < AT_ONCE => {
                    let service = random.random_range(0..self.services);
                    running.push(self.change(service, random.random()));
                }
                Some(changed) = running.next() => made += u32::from(changed?),
            }
        }
        let took = began.elapsed().as_secs_f64();
        let again = self.again.load(Ordering::Relaxed);
        println!("{made} changes in {took:.0} s, {again} requests made again");
        ensure!(f64::from(made) > f64::from(rate) * took / 2.0, "that is less than half of them");
        Ok(())
    }

    /// One endpoint is ready or not, goes, or comes. False if somebody else was
    /// there first.
    async fn change(&self, service: u32, seed: u64) -> anyhow::Result<bool> {
        let mut random = StdRng::seed_from_u64(seed);
        let slices: Api<EndpointSlice> = self.api(service);
        let name = name(service);
        let Some(mut slice) = self.ask(|| slices.get(&name)).await? else { bail!("no {name}") };
        let endpoints = &mut slice.endpoints;
        let many = endpoints.len();
        let mut gone = None;
        match random.random_range(0..10) {
            0..4 if many > 0 => {
                let conditions = endpoints[random.random_range(0..many)].conditions.as_mut();
                let conditions = conditions.context("conditions")?;
                conditions.ready = Some(conditions.ready != Some(true));
            }
            4..7 if many > 1 => gone = Some(endpoints.swap_remove(random.random_range(0..many))),
            _ if many < 2 * OF_SERVICE as usize => {
                endpoints.push(serde_json::from_value(self.new_pod(service).await?)?);
            }
            _ => return Ok(false),
        }
        let params = PostParams::default();
        let replaced = self.ask(|| slices.replace(&name, &params, &slice)).await?;
        if let Some(pod) = gone.filter(|_| replaced.is_some()) {
            let pod = pod.target_ref.and_then(|pod| pod.name).context("a pod's name")?;
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let pods: Api<Pod> = self.api(service);
            self.ask(|| pods.delete(&pod, &at_once)).await?;
        }
        Ok(replaced.is_some())
    }

    async fn verify(&self, snapshot: &PathBuf, within: Duration) -> anyhow::Result<()> {
        let expected = self.expected().await?;
        let began = Instant::now();
        loop {
            let known = published(snapshot);
            let wrong = known.as_ref().map(|known| {
                (known.difference(&expected).count(), expected.difference(known).count())
            });
            match wrong {
                Ok((0, 0)) => {
                    let took = began.elapsed().as_secs_f64();
                    println!("{} endpoints, none is wrong, after {took:.1} s", expected.len());
                    return Ok(());
                }
                _ if began.elapsed() < within => sleep(AGAIN).await,
                Ok((more, less)) => {
                    let known = known?;
                    let some: Vec<_> = known.symmetric_difference(&expected).take(4).collect();
                    bail!(
                        "{more} endpoints are known that are not, {less} are not known: {some:?}"
                    );
                }
                Err(error) => bail!("{error:#}"),
            }
        }
    }

    /// Service, address, identity and whether it is ready.
    async fn expected(&self) -> anyhow::Result<BTreeSet<Known>> {
        let mut pods = BTreeSet::new();
        for pod in self.list::<Pod>().await? {
            pods.insert(pod.uid().context("a pod without a uid")?);
        }
        let mut expected = BTreeSet::new();
        for slice in self.list::<EndpointSlice>().await? {
            let namespace = slice.namespace().context("a namespace")?;
            if !namespace.starts_with("churn-") {
                continue;
            }
            for endpoint in &slice.endpoints {
                let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.clone());
                if !pod.is_some_and(|pod| pods.contains(&pod)) {
                    continue;
                }
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
                expected.insert(Known {
                    service: format!("{}.{namespace}", slice.name_any()),
                    address: endpoint.addresses[0].clone(),
                    healthy: ready == Some(true),
                    namespace: namespace.clone(),
                });
            }
        }
        Ok(expected)
    }

    async fn list<K>(&self) -> anyhow::Result<Vec<K>>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = Api::all(self.client.clone());
        let (mut all, mut page) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let list = api.list(&page).await?;
            all.extend(list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    service: String,
    address: String,
    healthy: bool,
    /// Of the identity.
    namespace: String,
}

/// Magic and checksum stand before it.
fn published(snapshot: &PathBuf) -> anyhow::Result<BTreeSet<Known>> {
    let bytes = std::fs::read(snapshot).with_context(|| snapshot.display().to_string())?;
    let delta = Delta::decode(bytes.get(12..).context("too short")?)?;
    let endpoints = delta.upsert.into_iter().filter_map(|resource| match resource.resource {
        Some(Published::Endpoint(endpoint)) => Some(endpoint),
        _ => None,
    });
    let known = endpoints.map(|endpoint| {
        let identity = endpoint.spiffe_id.split('/').collect::<Vec<_>>();
        ensure!(endpoint.address == format!("{}:4143", endpoint.target_address), "{endpoint:?}");
        Ok(Known {
            healthy: endpoint.health() == Health::Healthy,
            service: endpoint.service,
            address: endpoint.target_address,
            namespace: identity.get(4).copied().unwrap_or_default().to_owned(),
        })
    });
    known.collect()
}
