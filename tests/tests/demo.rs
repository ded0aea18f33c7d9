//! The demo is the first thing a stranger runs: it must report what it
//! promises, and leave nothing behind.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// The programs lie beside the directory of the test executables
/// (`<target>/<profile>/deps/demo-…`).
fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a test knows its own path");
    let profile = exe.parent().and_then(Path::parent).expect("<target>/<profile>/deps/<test>");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace --bins` first",
        path.display()
    );
    path
}

fn demo(args: &[&str], temp: &Path) -> Output {
    for name in ["federation", "edge-proxy", "vm-agent"] {
        program(name);
    }
    Command::new(program("meshctl"))
        .arg("demo")
        .args(args)
        .env("TMPDIR", temp)
        .output()
        .expect("meshctl starts")
}

/// The document, after checking that the run was flawless.
fn document(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stderr}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).expect("exactly one JSON document on stdout")
}

fn flow<'a>(document: &'a Value, name: &str) -> &'a Value {
    let flows = document["flows"].as_array().expect("flows");
    flows.iter().find(|flow| flow["name"] == name).unwrap_or_else(|| panic!("no flow {name}"))
}

/// A directory for temporary files whose path is short enough for sockets.
fn temp() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("d").tempdir_in("/tmp").expect("a directory")
}

fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&dir) {
            found.push(line);
        }
    }
    found
}

#[test]
fn every_flow_is_flawless_and_nothing_is_left() {
    let temp = temp();
    let document = document(&demo(&["--duration", "20s", "--json"], temp.path()));
    assert_eq!(document["ok"], true);
    let orders = "spiffe://west.example/ns/shop/sa/orders";
    let payments = "spiffe://east.example/ns/prod/sa/payments";
    let expected = [
        ("http", "via gateway", "quic".into(), orders),
        ("grpc", "via gateway", "quic".into(), orders),
        ("tcp", "via gateway", "quic".into(), orders),
        ("reverse", "reverse", "quic".into(), payments),
        ("local", "direct", Value::Null, payments),
    ];
    for (name, path, transport, caller) in expected {
        let flow = flow(&document, name);
        assert_eq!(flow["path"], path, "{flow:#}");
        assert_eq!(flow["transport"], transport, "{flow:#}");
        assert_eq!(flow["caller"], caller, "{flow:#}");
    }
    for flow in document["flows"].as_array().expect("flows") {
        assert_eq!(flow["requests"], flow["successes"], "{flow:#}");
        assert!(flow["requests"].as_u64() > Some(100), "{flow:#}");
        assert!(flow["p50_ms"].as_f64() <= flow["p99_ms"].as_f64(), "{flow:#}");
    }
    let actions: Vec<&str> = document["phases"]
        .as_array()
        .expect("phases")
        .iter()
        .map(|phase| phase["action"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(actions, ["terminate", "restart", "kill"]);
    let both = flow(&document, "failover");
    assert!(both["answered_by"]["west"].as_u64() > Some(0), "{both:#}");
    assert!(both["answered_by"]["east"].as_u64() > Some(0), "{both:#}");
    assert_eq!(document["versions"].as_object().map(serde_json::Map::len), Some(4));
    assert_eq!(std::fs::read_dir(temp.path()).expect("a directory").count(), 0, "files are left");
    assert_eq!(processes_in(temp.path()), Vec::<String>::new(), "processes are left");
}

#[test]
fn blocked_udp_falls_back_to_tls() {
    let temp = temp();
    let args = ["--duration", "4s", "--json", "--block-udp"];
    let document = document(&demo(&args, temp.path()));
    assert!(document["swallowed_datagrams"].as_u64() > Some(0));
    for name in ["http", "grpc", "tcp", "reverse"] {
        assert_eq!(flow(&document, name)["transport"], "tls");
    }
}

/// Not even `kill -9` of the demo itself leaves a process or a file.
#[test]
fn a_killed_demo_takes_everything_with_it() {
    let temp = temp();
    let mut child = Command::new(program("meshctl"))
        .args(["demo", "--json"])
        .env("TMPDIR", temp.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("meshctl starts");
    let eventually = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..300 {
            if holds() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{what}: not within 30 s; processes: {:?}", processes_in(temp.path()));
    };
    // Daemons of the mesh, beyond the process that guards the directory.
    eventually("started", &|| processes_in(temp.path()).len() > 5);
    child.kill().expect("it runs");
    child.wait().expect("it ended");
    eventually("gone", &|| {
        let files = std::fs::read_dir(temp.path()).expect("a directory").count();
        processes_in(temp.path()).is_empty() && files == 0
    });
}
