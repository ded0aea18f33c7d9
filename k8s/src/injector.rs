//! `isthmus-k8s injector`: the mutating webhook that puts the proxy into pods.
//!
//! It allows what it does not understand and refuses only pods that ask for the
//! proxy in a way that cannot be meant. What it makes of a pod is
//! [`mesh_inject`]'s; the same certificate is served by all replicas.

mod certificate;
mod cluster;
mod keep;
mod metrics;
mod review;
mod server;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use clap::Args;
use kube::Client;
use mesh_inject::Settings;
use mesh_runtime::{
    admin::{self, Admin, Readiness},
    config::{self, ConfigError},
    drain::Drain,
    process,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use self::{
    cluster::Cluster,
    keep::{Keeper, Names},
    metrics::{Admissions, Certificates, File},
    server::Webhook,
};
use crate::lease;

/// How long reviews may take to end after SIGTERM, the time included in which
/// API servers still send new ones.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// How often the settings are looked at: a ConfigMap changes in place.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(10);

/// Arguments of `injector`.
#[derive(Debug, Args)]
#[command(
    after_help = "Reads the cluster's address and its own token as every pod has them, or KUBECONFIG.

Examples:
  isthmus-k8s injector --config /etc/isthmus/inject.yaml
  isthmus-k8s injector --config inject.yaml --listen 127.0.0.1:9443 --admin 127.0.0.1:9448"
)]
pub struct Injector {
    /// What holds for all pods; looked at again when it changes
    #[arg(
        long,
        value_name = "FILE",
        env = "ISTHMUS_INJECT_CONFIG",
        default_value = "/etc/isthmus/inject.yaml"
    )]
    config: PathBuf,
    /// Where API servers call
    #[arg(
        long,
        value_name = "IP:PORT",
        env = "ISTHMUS_INJECT_LISTEN",
        default_value = "[::]:8443"
    )]
    listen: SocketAddr,
    /// Where /metrics, /live and /ready are
    #[arg(long, value_name = "IP:PORT", env = "ISTHMUS_INJECT_ADMIN", default_value = "[::]:8448")]
    admin: SocketAddr,
    /// Namespace of Service, Secret and Lease
    #[arg(long, env = "ISTHMUS_NAMESPACE", default_value = "isthmus-system")]
    namespace: String,
    /// Service by which API servers call
    #[arg(long, value_name = "NAME", default_value = "isthmus-injector")]
    service: String,
    /// Secret that holds certificate and CA
    #[arg(long, value_name = "NAME", default_value = "isthmus-injector-tls")]
    secret: String,
    /// MutatingWebhookConfiguration whose caBundle is kept
    #[arg(long, value_name = "NAME", default_value = "isthmus-injector")]
    webhook: String,
    /// What tells this replica from others; its pod's name
    #[arg(long, value_name = "NAME", env = "ISTHMUS_POD_NAME")]
    identity: Option<String>,
}

impl Injector {
    /// Runs until SIGTERM, then drains.
    ///
    /// # Errors
    ///
    /// The settings make no sense, a port is taken, or there is no cluster.
    pub async fn run(self) -> anyhow::Result<()> {
        let (settings, text) = load(&self.config)?;
        let drain = Drain::new();
        let client = Client::try_default().await.context("no cluster")?;
        let listener = bind(self.listen).await.with_context(|| taken("listen", self.listen))?;
        let admin = bind(self.admin).await.with_context(|| taken("admin", self.admin))?;
        let (readiness, mut registry) = (Readiness::new(), Registry::default());
        let cluster = Cluster::watch(&client, settings, readiness.condition("namespaces"), &drain);
        let (admissions, certificates) = (Admissions::new(), Certificates::default());
        let file = File::default();
        metrics::register(&mut registry, &admissions, &certificates, &file);
        drain.spawn_beside(follow(self.config.clone(), text, cluster.clone(), file));
        let keeper = self.keeper(client, &readiness, certificates, &drain)?;
        let tls = server::tls(keeper.served());
        drain.spawn(keeper.run(drain.clone()));
        drain.spawn(server::serve(listener, tls, Webhook { cluster, admissions }, drain.clone()));
        let shown = Admin { registry: Arc::new(registry), readiness };
        drain.spawn_beside(admin::serve(admin, shown, drain.clone()));
        log::info!(listen:% = self.listen, admin:% = self.admin; "the injector is up");
        process::until_terminated(&drain).await?;
        let cut = drain.finish(DRAIN_DEADLINE).await;
        log::info!(cut; "the injector ends");
        Ok(())
    }

    fn keeper(
        &self,
        client: Client,
        readiness: &Readiness,
        figures: Certificates,
        drain: &Drain,
    ) -> anyhow::Result<Keeper> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => rustix::system::uname().nodename().to_str()?.to_owned(),
        };
        let names = Names {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            secret: self.secret.clone(),
            webhook: self.webhook.clone(),
        };
        let terms = lease::Terms::default();
        let leadership =
            lease::hold(client.clone(), &self.namespace, &self.service, &identity, terms, drain);
        let conditions = (readiness.condition("certificate"), readiness.condition("webhook"));
        Ok(Keeper::new(client, names, leadership, conditions, figures))
    }
}

fn taken(key: &str, addr: SocketAddr) -> String {
    format!("{key}: cannot listen on {addr}; is it in use?")
}

/// Where a node has no IPv6 at all, `[::]` is all that it has.
async fn bind(addr: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(addr).await {
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
                && addr.ip().is_unspecified() =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await
        }
        bound => bound,
    }
}

fn load(path: &Path) -> Result<(Settings, String), ConfigError> {
    let text = config::read(path)?;
    Ok((Settings::parse(&text, &path.display().to_string())?, text))
}

/// Takes settings anew when their file changes; those of before stay where it
/// makes no sense.
async fn follow(path: PathBuf, mut text: String, cluster: Cluster, file: File) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(SETTINGS_INTERVAL).await;
        let read = load(&path);
        file.counts(read.is_ok());
        match read {
            Ok((_, same)) if same == text => told.clear(),
            Ok((settings, new)) => {
                log::info!(file:% = path.display(); "other settings from now on");
                cluster.set(settings);
                text = new;
                told.clear();
            }
            Err(error) => {
                let problem = error.to_string();
                if problem != told {
                    log::error!(error:%; "the settings stay as they were");
                    told = problem;
                }
            }
        }
    }
}
