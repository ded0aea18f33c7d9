//! A Consul of one server, with its own directory and ports.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

/// A loaded machine takes this long for what takes seconds.
pub(crate) const LONG: Duration = Duration::from_secs(120);
/// Whose it is may do everything.
const ROOT_TOKEN: &str = "3f9e1f3c-0000-4000-8000-000000000001";

/// Whoever nothing is said of may do nothing.
pub(crate) fn access_control() -> Value {
    json!({ "enabled": true, "default_policy": "deny", "down_policy": "deny",
        "tokens": { "initial_management": ROOT_TOKEN, "agent": ROOT_TOKEN } })
}

pub(crate) struct Consul {
    pub http: u16,
    #[allow(dead_code, reason = "asked by tests of a site beside it")]
    pub dns: u16,
    config: Value,
    dir: TempDir,
    child: Option<Child>,
}

impl Consul {
    /// Started, and with a leader.
    pub(crate) async fn start(more: Value) -> Self {
        // Kept until all are chosen, so that they differ.
        let free: Vec<_> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = free.iter().map(|l| l.local_addr().unwrap().port()).collect();
        let mut config = json!({
            "server": true,
            "bootstrap_expect": 1,
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "node_name": "real",
            "log_level": "warn",
            "disable_update_check": true,
            "performance": { "raft_multiplier": 1 },
            "ports": { "http": ports[0], "server": ports[1], "serf_lan": ports[2], "serf_wan": -1,
                "dns": ports[3], "grpc": -1, "grpc_tls": -1 },
        });
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        drop(free);
        let dir = TempDir::new().unwrap();
        let mut consul = Self { http: ports[0], dns: ports[3], config, dir, child: None };
        consul.run(1);
        consul.has_leader().await;
        consul
    }

    /// As before, or with nothing of what it knew; `expect` servers have a leader.
    pub(crate) fn run(&mut self, expect: u32) {
        let consul = std::env::var("CONSUL").expect("CONSUL is set by tests/consul/run");
        self.config["bootstrap_expect"] = expect.into();
        let file = self.write_config();
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(consul)
            .args(["agent", "-config-file"])
            .arg(&file)
            .arg("-data-dir")
            .arg(self.data())
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .spawn()
            .expect("CONSUL names a program");
        self.child = Some(child);
    }

    fn write_config(&self) -> PathBuf {
        let file = self.dir.path().join("config.json");
        fs::write(&file, self.config.to_string()).unwrap();
        file
    }

    /// With another value of a key that it reads anew while it runs.
    pub(crate) fn reload(&mut self, key: &str, value: Value) {
        self.config[key] = value;
        self.write_config();
        self.signal("HUP");
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn forget_everything(&self) {
        fs::remove_dir_all(self.data()).unwrap();
    }

    /// `STOP`, `CONT`, `HUP`.
    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    pub(crate) async fn has_leader(&self) {
        let ready = async {
            loop {
                // With its own node in the catalogue, too.
                let nodes = self.try_call("GET", "/v1/catalog/nodes", "").await;
                if nodes.is_some_and(|(status, body)| status == 200 && body.contains("\"real\"")) {
                    return;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        if timeout(LONG, ready).await.is_err() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            panic!("consul has no leader: {log}");
        }
    }

    /// Asks as who may do everything; the answer is 200.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.try_call(method, path, &body).await.expect("it answers");
        assert_eq!(status, 200, "{method} {path}: {text}");
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    async fn try_call(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await.ok()?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.0\r\nx-consul-token: {}\r\ncontent-length: {length}\r\n\r\n{body}",
            if self.config["acl"].is_null() { "" } else { ROOT_TOKEN },
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    /// A new token that may do what `rules` say.
    pub(crate) async fn token(&self, rules: &str) -> String {
        let name = format!("p-{}", rules.bytes().map(u32::from).sum::<u32>());
        let policy = json!({ "Name": name, "Rules": rules });
        self.call("PUT", "/v1/acl/policy", &policy).await;
        let token = json!({ "Policies": [{ "Name": name }] });
        let token = self.call("PUT", "/v1/acl/token", &token).await;
        token["SecretID"].as_str().unwrap().to_owned()
    }

    /// Registers an instance of somebody else's.
    pub(crate) async fn register(&self, service: &str, id: &str, port: u16) {
        let check = json!({ "CheckID": format!("{id}-check"), "TTL": "600s", "Status": "passing" });
        let registration = json!({
            "Name": service, "ID": id, "Address": "127.0.0.9", "Port": port, "Tags": ["v1"],
            "Meta": { "version": "2" }, "Weights": { "Passing": 7, "Warning": 3 }, "Check": check,
        });
        self.call("PUT", "/v1/agent/service/register", &registration).await;
    }

    /// `pass`, `warn`, `fail`.
    pub(crate) async fn check(&self, id: &str, how: &str) {
        self.call("PUT", &format!("/v1/agent/check/{how}/{id}-check"), &Value::Null).await;
    }

    pub(crate) async fn deregister(&self, id: &str) {
        self.call("PUT", &format!("/v1/agent/service/deregister/{id}"), &Value::Null).await;
    }
}

impl Drop for Consul {
    fn drop(&mut self) {
        self.kill();
    }
}
