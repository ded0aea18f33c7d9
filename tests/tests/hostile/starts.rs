//! What cannot start says what, where and what to do; what can, does.

use std::{
    fs,
    io::Write,
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    programs::{eventually, outcome, program, said},
    site::{FEDERATION, Machine, Site},
};

const M1: Machine = Machine("m1", 21);
/// `EX_CONFIG` of `sysexits.h`.
const CONFIG: i32 = 78;

/// Program and configuration of each daemon of a site.
fn daemons(site: &Site) -> [(&'static str, PathBuf); 4] {
    let run = site.run_dir(M1);
    [
        ("federation", site.config("federation.yaml")),
        ("edge-proxy", site.config("gateway.yaml")),
        ("edge-proxy", run.join("proxy.yaml")),
        ("vm-agent", run.join("agent.yaml")),
    ]
}

fn start(name: &str, config: &Path) -> (i32, String) {
    outcome(Command::new(program(name)).arg("--config").arg(config))
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_right_one() {
    let site = Site::init();
    site.prepare(M1);
    let wrong = ["trust_domian", "gatway", "http_listner", "advertize"];
    let right = ["trust_domain", "gateway", "http_listener", "advertise"];
    for (i, (name, config)) in daemons(&site).iter().enumerate() {
        let lines = fs::read_to_string(config).unwrap().lines().count();
        writeln!(fs::File::options().append(true).open(config).unwrap(), "{}: x", wrong[i])
            .unwrap();
        let (code, told) = start(name, config);
        assert_eq!(code, CONFIG, "{told}");
        let place = format!("{}:{}:1: ", config.display(), lines + 1);
        assert!(told.contains(&place), "{place}: {told}");
        assert!(told.contains(&format!("did you mean `{}`?", right[i])), "{told}");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let site = Site::init();
    site.prepare(M1);
    let [federation, gateway, proxy, agent] = daemons(&site);
    let tcp = [
        (&federation, site.addr(11, 8446)),
        (&federation, site.addr(11, 8448)),
        (&gateway, site.addr(12, 8443)),
        (&gateway, site.addr(12, 4191)),
        (&proxy, site.addr(M1.1, 4140)),
        (&proxy, site.addr(M1.1, 4143)),
        (&proxy, site.addr(M1.1, 4191)),
        (&proxy, site.addr(M1.1, 7000)),
        (&agent, site.addr(M1.1, 4190)),
    ];
    for ((name, config), addr) in tcp {
        let held = TcpListener::bind(addr).unwrap();
        let (code, told) = start(name, config);
        assert_eq!(code, 1, "{told}");
        assert!(told.contains(&addr.to_string()), "{addr}: {told}");
        drop(held);
    }
    let addr = site.addr(12, 8443);
    let held = UdpSocket::bind(addr).unwrap();
    let (code, told) = start(gateway.0, &gateway.1);
    assert!(code == 1 && told.contains(&addr.to_string()), "{told}");
    drop(held);

    let run = site.run_dir(M1);
    let sockets = [
        (&federation, site.dir().join("federation.sock")),
        (&federation, site.dir().join("gateway-identity.sock")),
        (&agent, run.join("agent.sock")),
        (&agent, run.join("identity.sock")),
    ];
    for ((name, config), path) in sockets {
        // A start that failed late has left its own.
        let _ = fs::remove_file(&path);
        let held = UnixListener::bind(&path).unwrap();
        let (code, told) = start(name, config);
        assert!(code == 1 && told.contains(&path.display().to_string()), "{told}");
        drop(held);
    }
}

/// The same program twice: the second must not share ports with the first.
#[test]
fn a_second_of_the_same_is_refused() {
    let mut site = Site::start();
    site.prepare(M1);
    site.start_agent(M1);
    site.start_proxy(M1);
    for (name, config) in daemons(&site) {
        // Other admin ports, so that it is the working ones that collide.
        let text = fs::read_to_string(&config).unwrap();
        let other: Vec<_> = text.lines().filter(|line| !line.starts_with("admin:")).collect();
        let second = config.with_extension("second.yaml");
        fs::write(&second, format!("{}\nadmin: {}\n", other.join("\n"), site.addr(99, 0))).unwrap();
        let (code, told) = start(name, &second);
        assert_eq!(code, 1, "{name}: {told}");
        assert!(told.contains("in use") || told.contains("another"), "{name}: {told}");
    }
    site.check_alive();
}

#[test]
fn a_damaged_authority_log_is_refused_with_its_offset() {
    let mut site = Site::init();
    site.start_federation();
    for _ in 0..5 {
        site.token();
    }
    site.kill(FEDERATION);
    let log = site.dir().join("state/authority.log");
    let whole = fs::read(&log).unwrap();
    let mut damaged = whole.clone();
    let middle = whole.len() / 2;
    damaged[middle] ^= 0x01;
    fs::write(&log, &damaged).unwrap();
    let (code, told) = start("federation", &site.config("federation.yaml"));
    assert_eq!(code, 1, "{told}");
    let line = told.lines().last().unwrap();
    assert!(line.contains("authority.log") && line.contains("byte"), "{told}");
    // Not any number of the line: the path has digits too.
    let (_, rest) = line.split_once("damaged at byte ").expect(&told);
    let offset: usize = rest.split(':').next().unwrap().parse().unwrap();
    assert!(offset <= middle, "{told}");
    assert!(line.contains("backup"), "{told}");
    assert_eq!(fs::read(&log).unwrap(), damaged, "nothing was changed");
    // A write that the power cut short was never acknowledged: the rest counts.
    fs::write(&log, &whole[..whole.len() - 3]).unwrap();
    site.start_federation();
    site.token();
    site.check_alive();
}

#[test]
fn a_damaged_node_identity_is_told_and_kept() {
    let mut site = Site::start();
    site.add(M1);
    site.kill(&M1.agent());
    let path = site.run_dir(M1).join("agent/identity.json");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    site.start_agent(M1);
    let log = site.daemon(&M1.agent()).log();
    assert!(log.contains("agent/identity.json: not readable"), "{log}");
    assert!(log.contains("meshctl leave --force"), "{log}");
    assert_eq!(fs::read(&path).unwrap().len(), whole.len() / 2, "it is kept as it was");
    // The remedy that it names.
    said(&site.meshctl(&site.run_dir(M1), &["leave", "--force"]).output().unwrap());
    let token = site.token();
    said(&site.join(M1, &token));
    site.wait_served(M1);
    site.check_alive();
}

#[test]
fn a_damaged_snapshot_is_ignored_loudly() {
    let mut site = Site::start();
    site.add(M1);
    let path = site.run_dir(M1).join("proxy/snapshot.bin");
    eventually("the snapshot is on disk", || {
        fs::metadata(&path).map(drop).map_err(|error| error.to_string())
    });
    site.kill(&M1.proxy());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, bytes).unwrap();
    site.start_proxy(M1);
    site.wait_served(M1);
    let log = site.daemon(&M1.proxy()).log();
    assert!(log.contains("beginning without") && log.contains("snapshot.bin"), "{log}");
    site.check_alive();
}

/// Nobody, not even root, makes files below a file.
#[test]
fn a_state_directory_that_is_none_is_named() {
    let mut site = Site::init();
    let state = site.dir().join("state");
    let kept = site.dir().join("kept");
    fs::rename(&state, &kept).unwrap();
    fs::write(&state, "in the way").unwrap();
    let (code, told) = start("federation", &site.config("federation.yaml"));
    assert!(code == 1 && told.contains(&state.display().to_string()), "{told}");
    fs::remove_file(&state).unwrap();
    fs::rename(&kept, &state).unwrap();

    site.start_federation();
    site.start_gateway();
    site.prepare(M1);
    let agent = site.run_dir(M1).join("agent");
    fs::write(&agent, "in the way").unwrap();
    let (code, told) = start("vm-agent", &site.run_dir(M1).join("agent.yaml"));
    assert!(code == 1 && told.contains(&agent.display().to_string()), "{told}");
    fs::remove_file(&agent).unwrap();

    // A proxy goes without: its snapshot is for boots alone.
    let proxy = site.run_dir(M1).join("proxy");
    fs::remove_dir(&proxy).unwrap();
    fs::write(&proxy, "in the way").unwrap();
    site.start_agent(M1);
    site.start_proxy(M1);
    let token = site.token();
    said(&site.join(M1, &token));
    site.wait_served(M1);
    eventually("the proxy says so", || {
        let log = site.daemon(&M1.proxy()).log();
        let told = log.contains("cannot be kept on disk") && log.contains("snapshot.bin");
        told.then_some(()).ok_or(log)
    });
    site.check_alive();
}

#[test]
fn truncated_identity_files_are_named() {
    let site = Site::init();
    site.prepare(M1);
    let dir = site.dir();
    for name in ["cert.pem", "key.pem", "roots.pem"] {
        fs::write(dir.join(name), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    }
    let config = dir.join("files.yaml");
    let text = format!(
        "role: node\nadmin: off\nidentity:\n  files:\n    certificate: {0}/cert.pem\n    \
         key: {0}/key.pem\n    bundles: {{ west.example: {0}/roots.pem }}\n",
        dir.display()
    );
    fs::write(&config, text).unwrap();
    let (code, told) = start("edge-proxy", &config);
    assert!(code == 1 || code == CONFIG, "{told}");
    assert!(told.contains(".pem"), "{told}");
}
