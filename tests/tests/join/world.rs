//! One site and its machines, each in a directory of its own.

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use isthmus_tests::ports::free;
use mesh_api::v1::{
    self, admin_client::AdminClient, agent_client::AgentClient, resource::Resource,
    workload_identity_client::WorkloadIdentityClient,
};
use mesh_runtime::process;
use mesh_tunnel::unix;
use tonic::{Status, transport::Channel};

/// Longer than everything that a test waits for, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) fn run<T>(test: impl Future<Output = T>) -> T {
    process::current_thread().unwrap().block_on(async {
        tokio::time::timeout(DEADLINE, test).await.expect("the test ends in time")
    })
}

/// Waits for a condition; the test's deadline bounds it.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let slow = tokio::time::sleep(Duration::from_secs(60));
    tokio::pin!(slow);
    while !holds().await {
        tokio::select! {
            () = &mut slow => panic!("{what}: not within 60 s"),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
    }
}

pub(crate) fn reason(status: &Status) -> &str {
    status.metadata().get("isthmus-error").map_or("", |value| value.to_str().unwrap())
}

/// The programs lie beside the directory of the test executables.
pub(crate) fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    /// Its log lies in `log`, and is shown if the test fails.
    fn start(name: &str, args: &[String], log: &Path) -> Self {
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let child = Command::new(program(name))
            .args(args)
            .env("ISTHMUS_LOG", "info")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self(child)
    }

    fn signal(&mut self, signal: &str) {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shows what the processes said when a test fails.
struct Logs(Vec<PathBuf>);

impl Drop for Logs {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for log in &self.0 {
            let text = fs::read_to_string(log).unwrap_or_default();
            eprintln!("--- {}\n{text}", log.display());
        }
    }
}

/// A site: federation and a gateway.
pub(crate) struct World {
    federation: Option<Process>,
    gateway: Option<Process>,
    _logs: Logs,
    dir: tempfile::TempDir,
}

impl World {
    /// Makes the site as an operator does, and waits until it serves.
    pub(crate) async fn start() -> Self {
        Self::start_with("").await
    }

    /// With more lines in federation.yaml.
    pub(crate) async fn start_with(more: &str) -> Self {
        Self::start_site("west", more).await
    }

    /// The same of another name.
    pub(crate) async fn start_site(site: &str, more: &str) -> Self {
        let (dir, gateway_at) = Self::init(site, more);
        let path = |name: &str| dir.path().join(name);
        let logs = ["federation", "gateway"].map(|name| path("log").join(name));
        let federation = Self::federation(dir.path());
        let config = path("etc/gateway.yaml").display().to_string();
        let gateway = Process::start("edge-proxy", &["--config".into(), config], &logs[1]);
        let (federation, gateway) = (Some(federation), Some(gateway));
        let world = Self { federation, gateway, _logs: Logs(logs.into()), dir };
        world.served().await;
        until("the gateway serves", || async {
            tokio::net::TcpStream::connect(gateway_at).await.is_ok()
        })
        .await;
        world
    }

    /// What a federation says that cannot start with these lines.
    pub(crate) fn refuses_to_start_with(more: &str) -> Output {
        let (dir, _) = Self::init("west", more);
        let config = dir.path().join("etc/federation.yaml");
        // One that starts after all is ended.
        let mut federation = Command::new("timeout");
        federation.arg("60").arg(program("federation")).arg("--config").arg(config);
        federation.output().unwrap()
    }

    /// The directory of a site, and where its gateway listens.
    fn init(site: &str, more: &str) -> (tempfile::TempDir, SocketAddr) {
        // Paths of Unix sockets are short.
        let dir = tempfile::Builder::new().prefix("j").tempdir_in("/tmp").unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("log")).unwrap();
        let gateway_at = free();
        let gateway = gateway_at.to_string();
        let domain = format!("{site}.example");
        let words = ["--run", "RUN", "site", "init", site, "--trust-domain", &domain];
        let mut init: Vec<String> = words.map(String::from).into();
        init[1] = path("run").display().to_string();
        for (flag, value) in [
            ("--state", path("federation").display().to_string()),
            ("--config", path("etc").display().to_string()),
            ("--listen", free().to_string()),
            ("--admin", free().to_string()),
            ("--gateway-listen", gateway.clone()),
            ("--gateway-address", gateway),
            ("--gateway-admin", free().to_string()),
            ("--gateway-state", path("gateway").display().to_string()),
        ] {
            init.extend([flag.to_owned(), value]);
        }
        let made = Command::new(program("meshctl")).args(&init).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let config = path("etc/federation.yaml");
        fs::write(&config, fs::read_to_string(&config).unwrap() + more).unwrap();
        (dir, gateway_at)
    }

    fn federation(dir: &Path) -> Process {
        let config = dir.join("etc/federation.yaml").display().to_string();
        Process::start("federation", &["--config".into(), config], &dir.join("log/federation"))
    }

    async fn served(&self) {
        let socket = self.dir.path().join("run/federation.sock");
        until("federation serves", || async { unix::channel(&socket).await.is_ok() }).await;
    }

    pub(crate) fn kill_federation(&mut self) {
        self.federation.take().unwrap().signal("-KILL");
    }

    pub(crate) async fn start_federation(&mut self) {
        self.federation = Some(Self::federation(self.dir.path()));
        self.served().await;
    }

    pub(crate) fn kill_gateway(&mut self) {
        self.gateway.take().unwrap().signal("-KILL");
    }

    /// Where its sockets are.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// What `meshctl` says on federation's host.
    pub(crate) fn meshctl(&self, words: &[&str]) -> String {
        let output = self.meshctl_output(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The same, whether it succeeds or not.
    pub(crate) fn meshctl_output(&self, words: &[&str]) -> Output {
        meshctl_at(&self.run_dir(), words)
    }

    /// A line of federation.yaml.
    pub(crate) fn written(&self, key: &str) -> String {
        let text = fs::read_to_string(self.dir.path().join("etc/federation.yaml")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}: ")));
        line.unwrap().to_owned()
    }

    pub(crate) async fn admin(&self) -> AdminClient<Channel> {
        let socket = self.dir.path().join("run/federation.sock");
        AdminClient::new(unix::channel(&socket).await.unwrap())
    }

    /// What federation has logged so far.
    pub(crate) fn federation_said(&self) -> String {
        fs::read_to_string(self.dir.path().join("log/federation")).unwrap()
    }

    /// Whether federation has logged a line with all of this.
    pub(crate) fn logged(&self, parts: &[&str]) -> bool {
        self.federation_said().lines().any(|line| parts.iter().all(|part| line.contains(part)))
    }

    async fn create_token(&self, services: &[&str], uses: u32) -> v1::CreateTokenResponse {
        self.create_token_of("orders", services, uses).await
    }

    async fn create_token_of(
        &self,
        account: &str,
        services: &[&str],
        uses: u32,
    ) -> v1::CreateTokenResponse {
        let request = v1::CreateTokenRequest {
            namespace: "shop".into(),
            account: account.into(),
            services: services.iter().map(ToString::to_string).collect(),
            uses,
            ttl_s: 900,
            gateway: false,
        };
        self.admin().await.create_token(request).await.unwrap().into_inner()
    }

    pub(crate) async fn token(&self, services: &[&str], uses: u32) -> String {
        self.create_token(services, uses).await.token
    }

    /// For one machine with the identity `shop/<account>`.
    pub(crate) async fn token_of(&self, account: &str) -> String {
        self.create_token_of(account, &["*.shop"], 1).await.token
    }

    pub(crate) async fn revoked_token(&self) -> String {
        let created = self.create_token(&["*.shop"], 1).await;
        let request = v1::RevokeTokenRequest { id: created.id };
        self.admin().await.revoke_token(request).await.unwrap();
        created.token
    }

    pub(crate) async fn nodes(&self) -> Vec<v1::NodeInfo> {
        let nodes = self.admin().await.list_nodes(v1::ListNodesRequest {}).await;
        nodes.unwrap().into_inner().nodes
    }

    /// Waits until every proxy of the site sees one endpoint.
    pub(crate) async fn published(&self, service: &str) {
        until("it is published", || async { self.endpoints(service).await.len() == 1 }).await;
    }

    /// As every proxy of the site sees them.
    pub(crate) async fn endpoints(&self, service: &str) -> Vec<v1::Endpoint> {
        let snapshot = self.admin().await.read_snapshot(v1::ReadSnapshotRequest {}).await;
        let resources = snapshot.unwrap().into_inner().upsert.into_iter();
        let endpoint = |resource: v1::Resource| match resource.resource {
            Some(Resource::Endpoint(endpoint)) if endpoint.service == service => Some(endpoint),
            _ => None,
        };
        resources.filter_map(endpoint).collect()
    }
}

/// What `meshctl` does on a machine.
pub(crate) fn meshctl(on: &Agent, words: &[&str]) -> Output {
    meshctl_at(&on.dir.join("run"), words)
}

fn meshctl_at(run: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program("meshctl"));
    command.arg("--run").arg(run).args(words);
    command.env_remove("ISTHMUS_RUN").env_remove("ISTHMUS_SITES").output().unwrap()
}

/// A proxy on a machine.
pub(crate) struct Proxy {
    _process: Process,
    _logs: Logs,
}

/// Where machines say that their proxies are.
const REACHABLE: &str = "advertise: 127.0.0.1:4143\n";

/// One machine: its agent, its files.
pub(crate) struct Agent {
    process: Option<Process>,
    pub(crate) dir: PathBuf,
    _logs: Logs,
}

impl Agent {
    pub(crate) async fn start(world: &World, name: &str) -> Self {
        Self::start_with(world, name, "").await
    }

    /// With more lines in its configuration.
    pub(crate) async fn start_with(world: &World, name: &str, more: &str) -> Self {
        Self::start_advertising(world, name, &format!("{REACHABLE}{more}")).await
    }

    /// Other machines cannot dial its proxy.
    pub(crate) async fn start_unreachable(world: &World, name: &str) -> Self {
        Self::start_advertising(world, name, "").await
    }

    /// With these lines, and where its proxy is among them, if anywhere.
    pub(crate) async fn start_advertising(world: &World, name: &str, more: &str) -> Self {
        let dir = world.dir.path().join(name);
        fs::create_dir_all(dir.join("services.d")).unwrap();
        // Machines of one host would otherwise share the host's.
        fs::write(dir.join("machine-id"), format!("{:032x}\n", rand::random::<u128>())).unwrap();
        Self::started(dir, more).await
    }

    async fn started(dir: PathBuf, more: &str) -> Self {
        let show = dir.display();
        let config = format!(
            "state: {show}/state\nrun: {show}/run\nservices: {show}/services.d\n\
             machine_id_file: {show}/machine-id\n{more}"
        );
        fs::write(dir.join("agent.yaml"), config).unwrap();
        let logs = Logs(vec![dir.join("agent.log")]);
        let mut agent = Self { process: None, dir, _logs: logs };
        agent.restart().await;
        agent
    }

    pub(crate) async fn restart(&mut self) {
        let config = self.dir.join("agent.yaml").display().to_string();
        let args = ["--config".into(), config];
        self.process = Some(Process::start("vm-agent", &args, &self.dir.join("agent.log")));
        let socket = self.dir.join("run/agent.sock");
        until("the agent serves", || async { unix::channel(&socket).await.is_ok() }).await;
    }

    pub(crate) fn stop(&mut self, signal: &str) {
        self.process.take().unwrap().signal(signal);
    }

    /// A machine with the same disk.
    pub(crate) async fn copied(&self, name: &str) -> Self {
        Self::started(self.copy_disk(name), REACHABLE).await
    }

    /// What [`Agent::copied`] starts from.
    pub(crate) fn copy_disk(&self, name: &str) -> PathBuf {
        let dir = self.dir.parent().unwrap().join(name);
        for part in ["services.d", "state"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        for file in ["machine-id", "state/identity.json"] {
            // Keeps the permissions.
            fs::copy(self.dir.join(file), dir.join(file)).unwrap();
        }
        dir
    }

    /// Puts the disk back as it was when it was copied.
    pub(crate) fn restore_disk(&self, copy: &Path) {
        let file = "state/identity.json";
        fs::copy(copy.join(file), self.dir.join(file)).unwrap();
    }

    /// An application and the file that describes it.
    pub(crate) async fn serve(&self, name: &str) -> tokio::net::TcpListener {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.describe(name, listener.local_addr().unwrap().port());
        listener
    }

    /// The file that describes an application on this port.
    pub(crate) fn describe(&self, name: &str, target: u16) {
        let text = format!(
            "service: {name}\nnamespace: shop\nport: 80\ntarget: {target}\nprotocol: http\n\
             check: {{ tcp: {target}, interval: 200ms }}\n"
        );
        fs::write(self.dir.join(format!("services.d/{name}.yaml")), text).unwrap();
    }

    /// The same with several ports, each a number and a protocol.
    pub(crate) fn describe_ports(&self, name: &str, target: u16, ports: &[(u16, &str)]) {
        let mut text = format!(
            "service: {name}\nnamespace: shop\ncheck: {{ tcp: {target}, interval: 200ms }}\nports:\n"
        );
        for (port, protocol) in ports {
            text += &format!(
                "- {{ name: {protocol}, port: {port}, target: {target}, protocol: {protocol} }}\n"
            );
        }
        fs::write(self.dir.join(format!("services.d/{name}.yaml")), text).unwrap();
    }

    /// A proxy with the identity that this agent hands out; ends with the test
    /// or when it is dropped.
    pub(crate) fn proxy(&self, config: &str) -> Proxy {
        let (show, log) = (self.dir.display(), self.dir.join("proxy.log"));
        fs::create_dir_all(self.dir.join("proxy")).unwrap();
        let file = self.dir.join("proxy.yaml");
        let config = format!(
            "identity: {{ socket: {show}/run/identity.sock }}\nstate: {show}/proxy\nworkers: 1\n\
             {config}"
        );
        fs::write(&file, config).unwrap();
        let args = ["--config".into(), file.display().to_string()];
        Proxy { _process: Process::start("edge-proxy", &args, &log), _logs: Logs(vec![log]) }
    }

    pub(crate) async fn operator(&self) -> AgentClient<Channel> {
        AgentClient::new(unix::channel(&self.dir.join("run/agent.sock")).await.unwrap())
    }

    pub(crate) async fn identity(&self) -> WorkloadIdentityClient<Channel> {
        let socket = self.dir.join("run/identity.sock");
        WorkloadIdentityClient::new(unix::channel(&socket).await.unwrap())
    }

    /// Joins; every line of progress, or why not.
    pub(crate) async fn join(&mut self, token: &str) -> Result<Vec<String>, Status> {
        let request = v1::JoinSiteRequest { token: token.to_owned() };
        let mut lines = self.operator().await.join_site(request).await?.into_inner();
        let mut steps = Vec::new();
        while let Some(line) = lines.message().await? {
            if line.result.is_some() {
                return Ok(steps);
            }
            steps.push(line.step);
        }
        panic!("the agent ended without a result: {steps:?}");
    }

    pub(crate) async fn status(&self) -> v1::AgentStatusResponse {
        let status = self.operator().await.agent_status(v1::AgentStatusRequest {}).await;
        status.unwrap().into_inner()
    }

    /// The status once it is connected and every service has been answered.
    pub(crate) async fn connected(&self) -> v1::AgentStatusResponse {
        let settled = |status: &v1::AgentStatusResponse| {
            status.state == "connected" && status.services.iter().all(|service| service.registered)
        };
        until("it is connected", || async { settled(&self.status().await) }).await;
        self.status().await
    }
}
