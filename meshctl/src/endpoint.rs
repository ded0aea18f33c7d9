//! Where to talk: the run directory with the Unix sockets of federation and of
//! the agent, and gRPC over them. Where there is no federation but an agent,
//! its identity leads to federation.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use mesh_api::v1::{
    admin_client::AdminClient, agent_client::AgentClient, capture_client::CaptureClient,
    migration_client::MigrationClient, proxy_client::ProxyClient,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    cluster::Cluster,
    failure::{Exit, Failure},
    remote,
};

/// Where the daemons keep their sockets unless told otherwise.
pub const DEFAULT_RUN: &str = "/run/isthmus";
/// A Unix socket answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// `join` and `link cluster` give up after 30 s themselves; nothing takes longer.
const CALL_TIMEOUT: Duration = Duration::from_secs(45);
/// A snapshot of a large site is bigger than tonic's 4 MiB.
const MAX_ANSWER: usize = 256 << 20;

/// The directory that holds `federation.sock` and `agent.sock`, or a cluster that
/// is federation's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run(PathBuf, Option<Cluster>);

impl Run {
    /// Where kubectl leads to.
    pub fn cluster(context: &str) -> Self {
        Self(DEFAULT_RUN.into(), Some(Cluster::new(context)))
    }

    /// A directory that is named.
    pub fn of(dir: &Path) -> Self {
        Self::in_dir(dir)
    }

    fn in_dir(dir: impl Into<PathBuf>) -> Self {
        Self(dir.into(), None)
    }

    /// From `--run`, `--site` with the directory of `ISTHMUS_SITES`, or the
    /// default, in this order.
    pub fn choose(
        run: Option<&Path>,
        site: Option<&str>,
        sites: Option<&Path>,
    ) -> Result<Self, Failure> {
        match (run, site, sites) {
            (Some(_), Some(_), _) => Err(Failure::usage("--run and --site exclude each other")),
            (Some(run), None, _) => Ok(Self::in_dir(run)),
            (None, Some(site), Some(sites)) => Self::in_sites(site, sites),
            (None, Some(site), None) => Err(Failure::usage(format!(
                "--site {site}: ISTHMUS_SITES is not set"
            ))
            .remedy(format!(
                "export ISTHMUS_SITES=<directory that holds {site}/> (the demo prints the line), or use --run DIR"
            ))),
            (None, None, _) => Ok(Self::in_dir(DEFAULT_RUN)),
        }
    }

    fn in_sites(site: &str, sites: &Path) -> Result<Self, Failure> {
        if site.contains('/') || site.starts_with('.') {
            return Err(Failure::usage(format!("--site {site}: a site is one plain name")));
        }
        let dir = sites.join(site);
        if dir.is_dir() {
            return Ok(Self::in_dir(dir));
        }
        Err(Failure::config(format!("site {site}: no directory {}", dir.display()))
            .remedy("`ls $ISTHMUS_SITES` shows the names; is the demo still running?"))
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Federation's socket.
    pub fn federation_socket(&self) -> PathBuf {
        self.0.join("federation.sock")
    }

    /// The agent's socket.
    pub fn agent_socket(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// The agent's socket for identities.
    pub fn identity_socket(&self) -> PathBuf {
        self.0.join("identity.sock")
    }

    /// Whether federation is to be reached through a gateway: it has no socket
    /// here, the agent of a joined machine has. A directory that cannot be
    /// looked into is taken for federation's, which says what to do.
    fn is_remote(&self) -> bool {
        let is_missing = matches!(self.federation_socket().try_exists(), Ok(false));
        is_missing && matches!(self.identity_socket().try_exists(), Ok(true))
    }

    /// Speaks `Admin` to federation.
    pub async fn admin(&self) -> Result<AdminClient<Channel>, Failure> {
        if let Some(cluster) = &self.1 {
            let channel = cluster.channel().await?;
            return Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER));
        }
        if self.is_remote() {
            let channel = remote::channel(&self.identity_socket()).await?;
            return Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER));
        }
        let remedy = "start it (systemctl start isthmus-federation), or name its run directory with --run DIR or --site NAME";
        let channel = connect(&self.federation_socket(), "federation", remedy).await?;
        Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    fn of_machine(&self) -> Result<(), Failure> {
        let problem =
            "--context leads to a control plane; this asks the agent or the proxy of a machine";
        let run_there =
            || Failure::usage(problem).remedy("run it on the machine, without --context");
        if self.1.is_some() { Err(run_there()) } else { Ok(()) }
    }

    /// Speaks `Agent` to the machine's agent.
    pub async fn agent(&self) -> Result<AgentClient<Channel>, Failure> {
        self.of_machine()?;
        let remedy =
            "start it (systemctl start isthmus-vm-agent), or name its run directory with --run DIR";
        let channel = connect(&self.agent_socket(), "vm-agent", remedy).await?;
        Ok(AgentClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// Speaks `Capture` to the process that captures this machine's traffic.
    pub async fn capture(&self) -> Result<CaptureClient<Channel>, Failure> {
        self.of_machine()?;
        let remedy =
            "start it (systemctl start isthmus-capture), or name its run directory with --run DIR";
        let channel = connect(&self.0.join("capture.sock"), "vm-agent capture", remedy).await?;
        Ok(CaptureClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// Speaks `Migration` to the process that moves legacy proxies.
    pub async fn migration(&self) -> Result<MigrationClient<Channel>, Failure> {
        self.of_machine()?;
        let remedy =
            "start it (systemctl start isthmus-migrate), or name its run directory with --run DIR";
        let channel = connect(&self.0.join("migrate.sock"), "vm-agent migrate", remedy).await?;
        Ok(MigrationClient::new(channel).max_decoding_message_size(MAX_ANSWER))
    }

    /// Whether a proxy of this machine shows its requests here.
    pub fn has_proxy(&self) -> bool {
        self.1.is_none() && self.0.join("proxy.sock").exists()
    }

    /// Speaks `Proxy` to the proxy at `socket`, or to the one of this directory.
    pub async fn proxy(&self, socket: Option<&Path>) -> Result<ProxyClient<Channel>, Failure> {
        self.of_machine()?;
        let remedy = "set `control_socket` in proxy.yaml to this path, or name the socket with --socket PATH";
        let default = self.0.join("proxy.sock");
        let channel = connect(socket.unwrap_or(&default), "edge-proxy", remedy).await?;
        Ok(ProxyClient::new(channel))
    }
}

async fn connect(socket: &Path, who: &str, remedy: &str) -> Result<Channel, Failure> {
    // tonic wraps the cause deeply; one plain connect tells it apart.
    if let Err(error) = tokio::net::UnixStream::connect(socket).await {
        let problem = format!("{who} at {}: {error}", socket.display());
        let failure = Failure::new(problem);
        return Err(match error.kind() {
            ErrorKind::PermissionDenied => failure
                .exit(Exit::NotPermitted)
                .remedy("use sudo, or run as a member of the group that owns the socket"),
            _ => failure.exit(Exit::Unreachable).remedy(remedy),
        });
    }
    let uri = format!("unix://{}", socket.display());
    let endpoint = Endpoint::from_shared(uri).map_err(Failure::new)?;
    endpoint.connect_timeout(CONNECT_TIMEOUT).timeout(CALL_TIMEOUT).connect().await.map_err(
        |error| {
            Failure::new(format!("{who} at {}: {error}", socket.display()))
                .exit(Exit::Unreachable)
                .remedy(remedy)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_directory_is_chosen_in_order() {
        let sites = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(sites.path().join("west")).expect("a site");
        let some = Some(sites.path());
        let explicit = Path::new("/x");
        assert_eq!(Run::choose(None, None, some), Ok(Run::in_dir(DEFAULT_RUN)));
        assert_eq!(Run::choose(Some(explicit), None, some), Ok(Run::in_dir("/x")));
        assert_eq!(
            Run::choose(None, Some("west"), some),
            Ok(Run::in_dir(sites.path().join("west")))
        );
        let exit = |run: Result<Run, Failure>| run.expect_err("refused").exit;
        assert_eq!(exit(Run::choose(None, Some("west"), None)), Exit::Usage);
        assert_eq!(exit(Run::choose(None, Some("east"), some)), Exit::Config);
        assert_eq!(exit(Run::choose(None, Some("../etc"), some)), Exit::Usage);
        assert_eq!(exit(Run::choose(Some(explicit), Some("west"), some)), Exit::Usage);
    }

    #[tokio::test]
    async fn an_agent_leads_to_federation_only_where_it_has_no_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::in_dir(dir.path());
        assert!(!run.is_remote());
        std::fs::write(run.identity_socket(), "").expect("a file");
        assert!(run.is_remote());
        let failure = run.admin().await.expect_err("nobody listens");
        assert!(failure.problem.contains("identity.sock"), "{}", failure.problem);
        std::fs::write(run.federation_socket(), "").expect("a file");
        assert!(!run.is_remote());
    }

    #[tokio::test]
    async fn a_proxy_that_shows_nothing_says_what_to_set() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::in_dir(dir.path());
        let failure = run.proxy(None).await.expect_err("nobody listens");
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.problem.contains("proxy.sock"), "{}", failure.problem);
        assert!(failure.remedy.contains("control_socket"), "{}", failure.remedy);
        let failure = run.proxy(Some(Path::new("/no/such"))).await.expect_err("nobody listens");
        assert!(failure.problem.contains("/no/such"), "{}", failure.problem);
    }

    #[tokio::test]
    async fn nobody_there_is_exit_69() {
        let dir = tempfile::tempdir().expect("a directory");
        let run = Run::in_dir(dir.path());
        let failure = run.admin().await.expect_err("nobody listens");
        assert_eq!(failure.exit, Exit::Unreachable);
        assert!(failure.problem.contains("federation.sock"), "{}", failure.problem);
        assert!(failure.remedy.contains("systemctl start"), "{}", failure.remedy);
    }
}
