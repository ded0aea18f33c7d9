//! `kill -9` of every kind of process, at random points, while an operator
//! writes and a machine is served. `ISTHMUS_CRASH_POINTS` sets how often.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle, sleep},
    time::Duration,
};

use crate::{
    programs::{program, said},
    site::{FEDERATION, GATEWAY, Machine, Site},
};

const M1: Machine = Machine("m1", 21);

/// Creates tokens until it is told to stop; gives the ids of those that were
/// acknowledged.
fn write(run: PathBuf, stop: Arc<AtomicBool>) -> JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut acknowledged = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let created = Command::new(program("meshctl"))
                .arg("--run")
                .arg(&run)
                .args(["-o", "json", "token", "create"])
                .args(["--namespace", "shop", "--account", "orders"])
                .stdin(Stdio::null())
                .output()
                .unwrap();
            if created.status.success() {
                let token: serde_json::Value = serde_json::from_slice(&created.stdout).unwrap();
                acknowledged.push(token["id"].as_str().unwrap().to_owned());
            } else {
                sleep(Duration::from_millis(20));
            }
        }
        acknowledged
    })
}

fn kill_and_start(site: &mut Site, victim: usize) {
    match victim {
        0 => {
            site.kill(FEDERATION);
            site.start_federation();
        }
        1 => {
            site.kill(GATEWAY);
            site.start_gateway();
        }
        2 => {
            site.kill(&M1.agent());
            site.start_agent(M1);
        }
        _ => {
            site.kill(&M1.proxy());
            site.start_proxy(M1);
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_whoever_is_killed() {
    let points: usize =
        std::env::var("ISTHMUS_CRASH_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let mut site = Site::start();
    site.add(M1);
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write(site.dir().to_owned(), stop.clone());
    for point in 0..points {
        sleep(Duration::from_millis(rand::random_range(20..400)));
        kill_and_start(&mut site, point % 4);
    }
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.join().unwrap();
    assert!(acknowledged.len() > points, "only {} tokens were written", acknowledged.len());

    // Everything that was promised is there, and the machine needs no token.
    site.kill(FEDERATION);
    site.start_federation();
    let listed = said(&site.meshctl(site.dir(), &["token", "list"]).output().unwrap());
    for id in &acknowledged {
        assert!(listed.contains(id), "token {id} is lost; {} of them", acknowledged.len());
    }
    site.wait_ready(site.addr(M1.1, 4190), "the agent is connected");
    site.wait_served(M1);
    site.check_alive();
    println!("{} tokens acknowledged, none lost, {points} kills", acknowledged.len());
}
