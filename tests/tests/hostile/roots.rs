//! The root of a site is replaced while requests cross the mesh, federation is
//! killed again and again, the linked site is away, and a machine sleeps.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use crate::{
    programs::{eventually, said},
    site::{FEDERATION, Machine, Site, get, link},
};

const AWAKE: Machine = Machine("awake", 21);
const ASLEEP: Machine = Machine("asleep", 22);
const EAST: Machine = Machine("east", 23);
/// How often federation is killed while it rotates.
const KILLS: usize = 8;

/// Requests one after the other, until it is dropped.
struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Traffic {
    fn start(to: std::net::SocketAddr, services: [&'static str; 2]) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let thread = std::thread::spawn(move || {
            let mut failed = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                for service in services {
                    match get(to, "/", service) {
                        Ok(answer) if answer.starts_with("HTTP/1.1 200") => {
                            counted.fetch_add(1, Ordering::Relaxed);
                        }
                        other => failed.push(format!("{service}: {other:?}")),
                    }
                }
                sleep(Duration::from_millis(20));
            }
            failed
        });
        Self { stop, done, thread: Some(thread) }
    }

    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.thread.take().unwrap().join().unwrap();
        let done = self.done.load(Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of {done} failed: {failed:#?}", failed.len());
        done
    }
}

fn status(site: &Site) -> Result<serde_json::Value, String> {
    let words = ["rotate", "root", "status", "--json"];
    let output = site.meshctl(site.dir(), &words).output().unwrap();
    // Federation may just have been killed.
    serde_json::from_slice(&output.stdout)
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn waits_for(status: &serde_json::Value) -> Vec<String> {
    let blockers = status["blockers"].as_array().unwrap().iter();
    blockers.map(|blocker| blocker["who"].as_str().unwrap().to_owned()).collect()
}

fn until(site: &Site, what: &str, holds: impl Fn(&serde_json::Value) -> bool) {
    eventually(what, || match status(site) {
        Ok(status) if holds(&status) => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(error),
    });
}

#[test]
fn a_root_is_replaced_through_kills_an_absent_site_and_a_sleeping_machine() {
    let (mut west, mut east) = (Site::start(), Site::start_as("east"));
    west.add(AWAKE);
    west.add(ASLEEP);
    east.add_backing(EAST, "stock");
    link(&west, &east);
    eventually("east answers", || west.request_to(AWAKE, "stock.shop"));
    let before = status(&west).unwrap()["signing_root"].clone();
    let old_token = west.token();
    // It sleeps, and what it has is copied.
    west.kill(&ASLEEP.proxy());
    west.kill(&ASLEEP.agent());
    let traffic = Traffic::start(west.addr(AWAKE.1, 4140), ["orders.shop", "stock.shop"]);

    east.kill(FEDERATION);
    west.said(&["rotate", "root", "--no-wait"]);
    until(&west, "both who are away are named", |status| {
        let names = waits_for(status);
        names.len() == 2 && names[0].contains("node ") && names[1] == "linked site east"
    });
    assert_eq!(status(&west).unwrap()["phase"], "publish");
    east.start_federation();
    until(&west, "the linked site has come along", |status| waits_for(status).len() == 1);
    for _ in 0..KILLS / 2 {
        sleep(Duration::from_millis(rand::random_range(100..1500)));
        west.kill(FEDERATION);
        west.start_federation();
    }
    until(&west, "what was said is remembered", |status| waits_for(status).len() == 1);
    let forced = west.meshctl(west.dir(), &["rotate", "root", "--force", "--no-wait"]);
    let forced = { forced }.output().unwrap();
    let told = String::from_utf8_lossy(&forced.stderr).into_owned();
    assert!(told.contains("must join again"), "{told}");
    for _ in 0..KILLS / 2 {
        sleep(Duration::from_millis(rand::random_range(100..2500)));
        west.kill(FEDERATION);
        west.start_federation();
    }
    until(&west, "it is over", |status| status["phase"] == "none");
    assert_ne!(status(&west).unwrap()["signing_root"], before);
    let keys = std::fs::read_dir(west.dir().join("state/keys")).unwrap().flatten();
    let mut keys: Vec<_> = keys.map(|entry| entry.file_name().into_string().unwrap()).collect();
    // Those of tokens hang on no root.
    keys.retain(|name| !name.starts_with("jwt-"));
    assert!(keys.len() == 1 && keys[0].starts_with("root-"), "{keys:?}");
    let done = traffic.end();
    println!("{done} requests");
    assert!(done > 100, "{done} requests");

    // A certificate under the root that is no more is good for nothing.
    west.start_agent(ASLEEP);
    eventually("the sleeper is told what to do", || {
        let said = west.meshctl(&west.run_dir(ASLEEP), &["status"]).output().unwrap();
        let text = [said.stdout, said.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.contains("meshctl join <token>") { Ok(()) } else { Err(text) }
    });
    let late = west.join(ASLEEP, &old_token);
    let late = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(late.contains("ask for a new token"), "{late}");
    let token = west.token();
    said(&west.join(ASLEEP, &token));
    west.start_proxy(ASLEEP);
    west.wait_served(ASLEEP);
    eventually("east still answers", || west.request_to(AWAKE, "stock.shop"));
    west.check_alive();
    east.check_alive();
}
