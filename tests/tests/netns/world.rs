//! Two sites in network namespaces of their own.
//!
//! ```text
//!  west-vm ── 10.77.1.0/24 ── west-gw ── 10.77.0.0/24 ── east-gw ── 10.77.2.0/24 ── east-node
//!  .2  nothing inbound        .1    .1      "the WAN"     .2    .1                   .2
//! ```
//!
//! There are no routes beyond each link: whatever crosses, crosses as a
//! stream between the two gateways. Counters of nftables prove it.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

/// The namespaces.
pub(crate) const HOSTS: [&str; 4] = ["west-vm", "west-gw", "east-gw", "east-node"];

/// A running world; everything it started ends with it.
pub(crate) struct World {
    dir: tempfile::TempDir,
    bin: PathBuf,
    processes: Vec<Process>,
}

struct Process {
    name: String,
    child: Child,
}

impl World {
    /// Namespaces, links and guards; no process yet.
    pub(crate) fn new() -> Self {
        assert!(std::env::var_os("ISTHMUS_NETNS").is_some(), "run this ring by `make test-netns`");
        for host in HOSTS {
            let _ = Command::new("ip").args(["netns", "delete", host]).output();
            ip(&["netns", "add", host]);
            ip(&["-n", host, "link", "set", "lo", "up"]);
        }
        link("west-vm", "10.77.1.2", "west-gw", "10.77.1.1", "lan");
        link("west-gw", "10.77.0.1", "east-gw", "10.77.0.2", "wan");
        link("east-gw", "10.77.2.1", "east-node", "10.77.2.2", "lan");
        let world = Self {
            dir: tempfile::tempdir().expect("a directory"),
            bin: binaries(),
            processes: Vec::new(),
        };
        world.guard();
        world
    }

    /// Drops what must not happen, and counts it.
    fn guard(&self) {
        for gateway in ["west-gw", "east-gw"] {
            self.nft(
                gateway,
                "table inet guard {
                    counter tunnel {}
                    counter stray {}
                    counter forwarded {}
                    chain input { type filter hook input priority 0;
                        iifname wan udp dport 8443 counter name tunnel accept
                        iifname wan tcp dport 8443 counter name tunnel accept
                        iifname wan ct state established,related accept
                        iifname wan meta l4proto { tcp, udp } counter name stray drop
                    }
                    chain forward { type filter hook forward priority 0;
                        counter name forwarded drop
                    }
                }",
            );
        }
        self.nft(
            "west-vm",
            "table inet guard {
                counter inbound {}
                chain input { type filter hook input priority 0;
                    iifname lo accept
                    ct state established,related accept
                    meta l4proto { tcp, udp } counter name inbound drop
                }
            }",
        );
    }

    /// Loads rules in a namespace.
    pub(crate) fn nft(&self, host: &str, rules: &str) {
        let file = self.path(&format!("{host}.nft"));
        fs::write(&file, rules).expect("rules");
        let output = self.run(host, "nft", &["-f", &file.display().to_string()]);
        assert!(output.status.success(), "nft: {}", text(&output.stderr));
    }

    /// Packets that a named counter of `inet guard` has seen.
    pub(crate) fn packets(&self, host: &str, counter: &str) -> u64 {
        let output = self.run(host, "nft", &["-j", "list", "counter", "inet", "guard", counter]);
        let json: serde_json::Value =
            serde_json::from_slice(&output.stdout).expect("nft speaks JSON");
        let items = json["nftables"].as_array().expect("items");
        let found = items.iter().find_map(|item| item["counter"]["packets"].as_u64());
        found.expect("the counter")
    }

    /// A path in the world's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, with its folder.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, content).expect("a file");
        path
    }

    /// One of our binaries.
    pub(crate) fn bin(&self, name: &str) -> String {
        self.bin.join(name).display().to_string()
    }

    fn command(&self, host: &str, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{host}")).arg(program).args(args);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in a namespace to its end, for at most a minute.
    pub(crate) fn run(&self, host: &str, program: &str, args: &[&str]) -> Output {
        self.command(host, "timeout", &[&["60", program], args].concat())
            .output()
            .expect("nsenter runs")
    }

    /// Runs a program that must succeed; its standard output.
    pub(crate) fn must(&self, host: &str, program: &str, args: &[&str]) -> String {
        let output = self.run(host, program, args);
        assert!(
            output.status.success(),
            "{host}: {program} {args:?}: {}\n{}{}\n{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr),
            self.logs(),
        );
        text(&output.stdout)
    }

    /// Starts a program that goes on; its output goes to a log file.
    pub(crate) fn start(&mut self, name: &str, host: &str, program: &str, args: &[&str]) {
        let log = File::create(self.path(&format!("{name}.log"))).expect("a log file");
        let child = self
            .command(host, program, args)
            .env("ISTHMUS_LOG", "info")
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("nsenter runs");
        self.processes.push(Process { name: name.to_owned(), child });
    }

    /// Sends a signal to a started program and forgets it once it has ended.
    pub(crate) fn stop(&mut self, name: &str, signal: &str) {
        let index = self.processes.iter().position(|process| process.name == name);
        let mut process = self.processes.remove(index.expect("a started program"));
        let pid = process.child.id().to_string();
        let _ = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        let ended = wait_until(Duration::from_secs(20), || {
            process.child.try_wait().expect("a child").is_some()
        });
        assert!(ended, "{name} did not end on SIG{signal}");
    }

    /// Tries until it succeeds; panics with all logs when it never does.
    pub(crate) fn eventually<T>(
        &self,
        what: &str,
        within: Duration,
        mut attempt: impl FnMut(&Self) -> Result<T, String>,
    ) -> T {
        let start = Instant::now();
        loop {
            match attempt(self) {
                Ok(value) => return value,
                Err(problem) if start.elapsed() > within => {
                    panic!("{what}: not within {within:?}: {problem}\n{}", self.logs())
                }
                Err(_) => sleep(Duration::from_millis(200)),
            }
        }
    }

    /// The end of every log.
    pub(crate) fn logs(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let content = fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<_> = content.lines().rev().take(25).collect();
                all += &format!("--- {}\n", entry.file_name().display());
                all.extend(tail.iter().rev().map(|line| format!("{line}\n")));
            }
        }
        all
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Output for people.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait_until(within: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < within {
        if done() {
            return true;
        }
        sleep(Duration::from_millis(50));
    }
    false
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(output.status.success(), "ip {args:?}: {}", text(&output.stderr));
}

fn link(a: &str, a_addr: &str, b: &str, b_addr: &str, name: &str) {
    ip(&["link", "add", name, "netns", a, "type", "veth", "peer", "name", name, "netns", b]);
    for (host, addr) in [(a, a_addr), (b, b_addr)] {
        ip(&["-n", host, "addr", "add", &format!("{addr}/24"), "dev", name]);
        ip(&["-n", host, "link", "set", name, "up"]);
    }
}

/// The folder of our binaries: two above this test's own executable.
pub(crate) fn binaries() -> PathBuf {
    let own = std::env::current_exe().expect("an executable");
    let folder = own.parent().and_then(Path::parent).expect("target/<profile>").to_owned();
    for name in ["meshctl", "federation", "edge-proxy", "vm-agent", "isthmus-k8s"] {
        assert!(folder.join(name).is_file(), "{name} is not built: cargo build --workspace --bins");
    }
    folder
}
