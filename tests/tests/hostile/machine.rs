//! The life of a machine: killed, rebooted, copied. None of it needs a token.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::{
    programs::{eventually, program, said},
    site::{FEDERATION, GATEWAY, Machine, Site, get},
};

const M1: Machine = Machine("m1", 21);
const COPY: Machine = Machine("copy", 22);

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

/// Workload certificates live in memory alone, so a machine that boots while
/// federation is down has its snapshot and no certificate: it says so, and
/// serves as soon as federation is back, without a token.
#[test]
fn a_reboot_while_federation_is_down_waits_for_it() {
    let mut site = Site::start();
    site.add(M1);
    let snapshot = site.run_dir(M1).join("proxy/snapshot.bin");
    eventually("the snapshot is on disk", || {
        fs::metadata(&snapshot).map(drop).map_err(|error| error.to_string())
    });
    for name in [FEDERATION, &M1.proxy(), &M1.agent()] {
        site.kill(name);
    }
    site.start_agent(M1);
    site.start_proxy(M1);
    let admin = site.addr(M1.1, 4191);
    eventually("the proxy says what it lacks", || match get(admin, "/ready", "admin") {
        Ok(answer) if answer.starts_with("HTTP/1.1 503") && answer.contains("identity: ") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let refused = site.request(M1).unwrap_err();
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    site.check_alive();
    site.start_federation();
    site.wait_served(M1);
    agent_is_ready(&site, M1);
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
    let (from, to) = (site.run_dir(M1).join("agent"), site.run_dir(COPY).join("agent"));
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
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
    // The original is none the worse, and the copy can join as itself.
    site.request(M1).unwrap();
    site.start_proxy(COPY);
    let token = site.token();
    said(&site.join(COPY, &token));
    site.wait_served(COPY);
    site.check_alive();
}
