//! The process, top to bottom.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use mesh_runtime::{
    admin::{self, Admin, Condition, Readiness},
    changes::Changes,
    drain::Drain,
    files::FileError,
};
use mesh_tunnel::{
    Net,
    unix::{self, LocalListener},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, watch},
};
use tonic::transport::Server;

use crate::{
    agent::{Agent, Farewell, Membership, Uplink},
    api::{identity::Identity, operator::Operator, workload::WorkloadApi},
    config::Config,
    machine::{self, Machine},
    metrics,
    services::{self, Services, check::Asker, exec::Door},
    state::{StateDir, StateError},
    uplink,
    workload::{self, Workload},
};

/// How long an agent that stops may take to say goodbye.
pub const GOODBYE: Duration = Duration::from_secs(1);
/// An agent that is restarted is back within this time.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// Calls of one connection at once.
const CALLS: usize = 16;

/// Why the agent cannot start; each names the resource.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The id that a machine without one is given.
    #[error(transparent)]
    File(#[from] FileError),
    /// A Unix socket.
    #[error("{0}; is another vm-agent running?")]
    Socket(io::Error),
    /// The admin port.
    #[error("admin {addr}: {source}; choose another address")]
    Admin {
        /// As configured.
        addr: std::net::SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A running agent.
pub struct App {
    /// What its parts share.
    pub agent: Arc<Agent>,
    /// Where `/metrics` is, if anywhere.
    pub admin: Option<std::net::SocketAddr>,
    drain: Drain,
}

impl App {
    /// Binds what there is to bind and starts every part.
    pub async fn start(
        config: Config,
        net: Arc<dyn Net>,
        drain: Drain,
    ) -> Result<Self, StartError> {
        let state = StateDir::open(&config.state)?;
        let machine = Machine::read(&config.machine_id_file, &config.state)?;
        let membership = Membership::load(&state, &machine);
        // The kernel says who calls, and calls are checked: others may connect.
        let operator = net.bind_unix(&config.agent_socket(), 0o600).await;
        let operator = operator.map_err(StartError::Socket)?;
        let identity = net.bind_unix(&config.identity_socket(), 0o666).await;
        let identity = identity.map_err(StartError::Socket)?;
        let workload = net.bind_unix(&config.workload_socket(), 0o666).await;
        let workload = workload.map_err(StartError::Socket)?;
        let admin = bind_admin(&config).await?;
        let agent = Arc::new(Agent {
            config,
            machine,
            net,
            state,
            process_id: uuid::Uuid::new_v4().to_string(),
            services: watch::Sender::new(Services::default()),
            look: Changes::default(),
            registrations: watch::Sender::default(),
            membership: watch::Sender::new(membership),
            uplink: watch::Sender::new(Uplink::default()),
            workload: Workload::default(),
            changing: Mutex::new(()),
            farewell: OnceLock::new(),
        });
        let admin_addr = admin.as_ref().and_then(|listener| listener.local_addr().ok());
        let app = Self { agent, admin: admin_addr, drain };
        app.spawn([operator, identity, workload], admin);
        Ok(app)
    }

    fn spawn(
        &self,
        [operator, identity, workload]: [Box<dyn LocalListener>; 3],
        admin: Option<TcpListener>,
    ) {
        let (agent, drain) = (&self.agent, &self.drain);
        let operator_server = Operator::server(agent.clone(), drain.clone());
        drain.spawn(serve(operator, operator_server, drain.clone()));
        drain.spawn(serve(identity, Identity::server(agent.clone()), drain.clone()));
        drain.spawn(serve(workload, WorkloadApi::server(agent.clone()), drain.clone()));
        self.spawn_vital("workload", renew_workload(agent.clone(), drain.clone()));
        self.spawn_vital("uplink", uplink::run(agent.clone(), drain.clone()));
        self.spawn_vital("services", follow_services(agent.clone(), drain.clone()));
        let readiness = Readiness::new();
        drain.spawn_beside(tell_readiness(agent.clone(), readiness.condition("site")));
        if let Some(listener) = admin {
            let registry = Arc::new(metrics::registry(agent.clone()));
            let admin = Admin { registry, readiness };
            drain.spawn_beside(admin::serve(listener, admin, drain.clone()));
        }
    }

    /// A part without which the agent is of no use: if it ends by itself (by a
    /// panic, which is logged), the process does, and is started again.
    fn spawn_vital(&self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        let drain = self.drain.clone();
        self.drain.spawn(async move {
            let ended = tokio::spawn(part).await;
            if ended.is_err() || !drain.is_draining() {
                log::error!(part = name; "a part of the agent has ended; stopping");
                drain.start();
            }
        });
    }

    /// Says goodbye and ends. Returns how many tasks were cut.
    pub async fn stop(&self) -> usize {
        let farewell = match machine::is_stopping().await {
            true => Farewell::Deregister,
            false => Farewell::Leaving(BACK_WITHIN),
        };
        // Set once: a second call stops an agent that is stopping.
        let _ = self.agent.farewell.set(farewell);
        self.drain.finish(GOODBYE).await
    }
}

async fn bind_admin(config: &Config) -> Result<Option<TcpListener>, StartError> {
    let Some(addr) = config.admin else { return Ok(None) };
    match TcpListener::bind(addr).await {
        Ok(listener) => Ok(Some(listener)),
        Err(source) => Err(StartError::Admin { addr, source }),
    }
}

async fn follow_services(agent: Arc<Agent>, drain: Drain) {
    let dir = &agent.config.services;
    let door = Door::new(agent.config.check_socket());
    let asker = Arc::new(Asker { net: agent.net.clone(), door });
    tokio::select! {
        () = services::watch::run(dir, &asker, &agent.services, &agent.look) => {}
        () = drain.draining() => {}
    }
}

async fn renew_workload(agent: Arc<Agent>, drain: Drain) {
    tokio::select! {
        () = workload::run(&agent) => {}
        () = drain.draining() => {}
    }
}

/// One gRPC service on one Unix socket.
pub(crate) async fn serve<S>(listener: Box<dyn LocalListener>, service: S, drain: Drain)
where
    S: tonic::codegen::Service<
            http::Request<tonic::body::Body>,
            Response = http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + 'static,
{
    let served = Server::builder()
        .concurrency_limit_per_connection(CALLS)
        .serve_with_incoming_shutdown(service, unix::incoming(listener), drain.draining())
        .await;
    if let Err(error) = served {
        log::error!(error:% = error; "a Unix socket is no longer served");
    }
}

/// `/ready`: a member that reaches its site.
async fn tell_readiness(agent: Arc<Agent>, condition: Condition) {
    let mut uplink = agent.uplink.subscribe();
    let mut membership = agent.membership.subscribe();
    loop {
        let status = agent.status();
        match status.state.as_str() {
            "connected" => condition.holds(),
            state => {
                condition.fails(format!("{state} {}", status.problem).trim());
            }
        }
        // Cannot fail: the agent holds the senders.
        tokio::select! {
            _ = uplink.changed() => {}
            _ = membership.changed() => {}
        }
    }
}
