//! The controller: tells federation what the cluster has, says whose a token
//! is, and writes what the cluster lacks.
//!
//! It runs in federation's pod: whoever can open a socket there is the site's
//! control plane. What it knows it has from the API server alone; started anew
//! it tells everything again, and federation forgets what is no more.

mod complaints;
mod figures;
mod model;
mod reviewer;
mod session;
mod watch;
mod workloads;
mod writer;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Args;
use kube::Client;
use mesh_api::v1::pod_reviewer_server::PodReviewerServer;
use mesh_runtime::{
    admin::{self, Admin, Readiness},
    drain::Drain,
    process,
};
use mesh_tunnel::{Net, RealNet, unix};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch as channel, time::interval};
use tonic::transport::Server;

use self::{
    complaints::Complaints, figures::Figures, reviewer::Reviewer, session::Session, watch::Seen,
    workloads::Workloads, writer::Writer,
};
use crate::lease;

/// How long what runs may take to end after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How often figures of what is followed are taken.
const COUNT: Duration = Duration::from_secs(1);
/// The longest token and more, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// How the controller is told what to do.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Runs in the pod of federation, with `cluster` in federation.yaml.

Examples:
  isthmus-k8s controller
  isthmus-k8s controller --run /tmp/run --admin 127.0.0.1:8449")]
pub struct Options {
    /// Directory of the sockets that are shared with federation
    #[arg(long, default_value = "/run/isthmus", value_name = "DIR")]
    pub run: PathBuf,
    /// Namespace of the control plane
    #[arg(long, env = "POD_NAMESPACE", default_value = "isthmus-system")]
    pub namespace: String,
    /// Audience of the tokens that pods show
    #[arg(long, default_value = "isthmus")]
    pub audience: String,
    /// Where /metrics, /live and /ready are
    #[arg(long, default_value = "0.0.0.0:8449", value_name = "IP:PORT")]
    pub admin: SocketAddr,
}

/// Runs until SIGTERM.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let client = Client::try_default().await.context(
        "no API server: neither a service account of a pod nor a kubeconfig (KUBECONFIG) is here",
    )?;
    let drain = Drain::new();
    let (readiness, mut registry) = (Readiness::new(), Registry::default());
    let complaints = Complaints::new(client.clone());
    let figures = Figures::new();
    {
        let registry = registry.sub_registry_with_prefix("isthmus_controller");
        complaints.register(registry);
        figures.register(registry);
    }
    let seen = Seen::new(complaints.clone());
    review(&options, &client, &seen, &drain).await?;
    seen.follow(&client, &drain);
    drain.spawn(count(seen.clone(), figures.clone(), drain.clone()));
    let (news, told) = channel::channel(None);
    let (workloads, of_machines) = channel::channel(None);
    let session = Session {
        socket: options.run.join("cluster.sock"),
        seen: seen.clone(),
        news,
        workloads,
        figures,
        complaints: complaints.clone(),
        ready: readiness.condition("federation"),
    };
    drain.spawn(session.run(drain.clone()));
    let identity = std::env::var("POD_NAME")
        .unwrap_or_else(|_| format!("isthmus-controller-{:08x}", rand::random::<u32>()));
    let terms = lease::Terms::default();
    let leader = lease::hold(
        client.clone(),
        &options.namespace,
        "isthmus-controller",
        &identity,
        terms,
        &drain,
    );
    let workloads = Workloads {
        client: client.clone(),
        known: of_machines,
        namespaces: seen.namespaces.subscribe(),
        leader: leader.clone(),
    };
    drain.spawn(workloads.run(drain.clone()));
    let writer =
        Writer { client, own_namespace: options.namespace, seen, news: told, leader, complaints };
    drain.spawn(writer.run(drain.clone()));
    let listener = TcpListener::bind(options.admin)
        .await
        .with_context(|| format!("--admin: cannot listen on {}; is it in use?", options.admin))?;
    let admin = Admin { registry: Arc::new(registry), readiness };
    drain.spawn_beside(admin::serve(listener, admin, drain.clone()));
    process::until_terminated(&drain).await?;
    let cut = drain.finish(DRAIN_DEADLINE).await;
    log::info!(cut; "controller ends");
    Ok(())
}

/// Answers federation.
async fn review(
    options: &Options,
    client: &Client,
    seen: &Seen,
    drain: &Drain,
) -> anyhow::Result<()> {
    let socket = RealNet.bind_unix(&options.run.join("reviewer.sock"), 0o600).await?;
    let reviewer = Reviewer::new(client.clone(), options.audience.clone(), seen.model.clone());
    let service = PodReviewerServer::new(reviewer).max_decoding_message_size(MAX_MESSAGE);
    let stopping = drain.clone();
    let server = Server::builder().serve_with_incoming_shutdown(
        service,
        unix::incoming(socket),
        async move { stopping.draining().await },
    );
    drain.spawn(async move {
        if let Err(error) = server.await {
            log::error!(error:%; "reviews have ended");
        }
    });
    Ok(())
}

async fn count(seen: Seen, figures: Figures, drain: Drain) {
    let mut tick = interval(COUNT);
    loop {
        tokio::select! {
            _ = tick.tick() => figures.counts(seen.lock().counts()),
            () = drain.draining() => return,
        }
    }
}
