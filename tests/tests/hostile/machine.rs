//! The life of a machine: killed, rebooted, copied. None of it needs a token.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::{
    programs::{eventually, holds, program, said},
    site::{FEDERATION, GATEWAY, Machine, Site, get},
};

const M1: Machine = Machine("m1", 21);
const COPY: Machine = Machine("copy", 22);

/// In a machine's directory: what its proxy may begin with.
const KEPT: &str = "proxy/identity.bin";

fn agent_is_ready(site: &Site, machine: Machine) {
    site.wait_ready(site.addr(machine.1, 4190), "the agent is connected");
}

#[test]
fn an_agent_that_was_killed_is_connected_again() {
    let mut site = Site::start();
    site.add(M1);
    for _ in 0..3 {
        site.kill(&M1.agent());
        // Traffic does not need the agent.
        site.request(M1).unwrap();
        site.start_agent(M1);
        agent_is_ready(&site, M1);
        site.request(M1).unwrap();
    }
    site.check_alive();
}

#[test]
fn a_machine_that_rebooted_serves_again() {
    let mut site = Site::start();
    site.add(M1);
    site.kill(&M1.proxy());
    site.kill(&M1.agent());
    site.start_agent(M1);
    site.start_proxy(M1);
    site.wait_served(M1);
    agent_is_ready(&site, M1);

    // The control side of the site, one after the other and all at once.
    for names in [&[FEDERATION][..], &[GATEWAY], &[FEDERATION, GATEWAY]] {
        for name in names {
            site.kill(name);
        }
        site.request(M1).unwrap();
        if names.contains(&FEDERATION) {
            site.start_federation();
        }
        if names.contains(&GATEWAY) {
            site.start_gateway();
        }
        agent_is_ready(&site, M1);
        site.request(M1).unwrap();
    }
    site.check_alive();
}

/// A vm-agent for whom `systemctl is-system-running` answers with this word
/// and, as the real one does for all but "running", with exit code 1.
fn agent_under_systemd(site: &Site, answer: &str) -> Command {
    let dir = site.dir().join("fake");
    fs::create_dir_all(&dir).unwrap();
    let systemctl = dir.join("systemctl");
    let code = i32::from(answer != "running");
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = is-system-running ] || exit 2\necho {answer}\nexit {code}\n"
    );
    fs::write(&systemctl, script).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(program("vm-agent"));
    command.env("PATH", format!("{}:{}", dir.display(), std::env::var("PATH").unwrap()));
    command
}

/// SIGTERM; what the agent says until it has ended.
fn stop_agent(site: &mut Site) -> String {
    let agent = site.daemon_mut(&M1.agent());
    agent.signal("TERM");
    assert_eq!(agent.wait().code(), Some(0));
    let log = agent.log();
    site.kill(&M1.agent());
    log
}

/// By the instances that federation has on record.
fn endpoints(site: &Site) -> usize {
    let words = ["-o", "json", "endpoints", "orders.shop"];
    let output = site.meshctl(site.dir(), &words).output().unwrap();
    let Ok(shown) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        // No instance, no service.
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains("orders.shop: not known"), "{told}");
        return 0;
    };
    shown["endpoints"].as_array().unwrap().len()
}

#[test]
fn a_machine_that_stops_is_gone_at_once_and_a_restart_is_not() {
    let mut site = Site::start();
    site.add(M1);
    for answer in ["running", "degraded", "starting", "offline", "unknown", "stopping"] {
        site.kill(&M1.agent());
        let mut command = agent_under_systemd(&site, answer);
        site.start_agent_as(M1, &mut command);
        agent_is_ready(&site, M1);
        eventually("both ports are registered", || match endpoints(&site) {
            2 => Ok(()),
            n => Err(format!("{n} endpoints")),
        });
        let log = stop_agent(&mut site);
        let last: Vec<_> = log.lines().rev().take(2).collect();
        if answer == "stopping" {
            // The agent ends when the answer is there, and that is durable.
            assert!(last[1].contains("every service is deregistered"), "{log}");
            assert_eq!(endpoints(&site), 0, "{log}");
        } else {
            assert!(last[1].contains("expected back within=5s"), "{answer}: {log}");
        }
        site.start_agent(M1);
    }
    // The machine is on again.
    site.wait_served(M1);
    site.check_alive();
}

#[test]
fn a_copied_state_directory_is_not_a_second_machine() {
    let mut site = Site::start();
    site.add(M1);
    site.prepare(COPY);
    holds(&site.run_dir(M1).join(KEPT), "west.example/ns/shop/sa/orders");
    holds(&site.run_dir(M1).join("proxy/snapshot.bin"), "west.example/ns/shop/sa/orders");
    for part in ["agent", "proxy"] {
        let (from, to) = (site.run_dir(M1).join(part), site.run_dir(COPY).join(part));
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    site.start_agent(COPY);
    let admin = site.addr(COPY.1, 4190);
    let told = eventually("the copy is not ready", || match get(admin, "/ready", "admin") {
        Ok(answer) if answer.contains("another machine") => Ok(answer),
        other => Err(format!("{other:?}")),
    });
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    let log = site.daemon(&COPY.agent()).log();
    assert!(log.contains("was the image cloned? `meshctl join <token>`"), "{log}");
    // Nor does its proxy begin with the identity that was copied.
    let kept = site.run_dir(COPY).join(KEPT);
    assert!(kept.exists());
    site.start_proxy(COPY);
    eventually(
        "it is forgotten",
        || if kept.exists() { Err("it is there".into()) } else { Ok(()) },
    );
    let refused = site.request(COPY).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("no_identity"), "{refused}");
    let log = site.daemon(&COPY.proxy()).log();
    assert!(!log.contains("beginning with the identity on disk"), "{log}");
    // The original is none the worse, and the copy can join as itself.
    site.request(M1).unwrap();
    let token = site.token();
    said(&site.join(COPY, &token));
    site.wait_served(COPY);
    site.check_alive();
}
