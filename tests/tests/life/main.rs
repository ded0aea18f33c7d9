//! What outlives what: a thousand connections across two sites, and everything
//! that happens to proxies, gateways, certificates and control planes in the
//! meantime. It is a program of its own, for it has a machine's worth of load.
//!
//! Build the programs first: `cargo build --workspace --bins`.
//! `ISTHMUS_LIFE_OUTAGE_S` shortens the minute without a control plane.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "real processes in real time")]

mod apps;
mod connections;
#[allow(dead_code, reason = "shared with the hostile ring")]
#[path = "../hostile/programs.rs"]
mod programs;
#[allow(dead_code, reason = "shared with the hostile ring")]
#[path = "../hostile/site.rs"]
mod site;
mod world;

use std::{sync::atomic::Ordering, thread::sleep, time::Duration};

use connections::KINDS;
use world::World;

/// Of each kind.
const EACH: usize = 250;
/// Clients that open a connection for every request, all the time.
const CLIENTS: usize = 3;
/// How long there is no control plane.
const OUTAGE: Duration = Duration::from_secs(60);

fn outage() -> Duration {
    let asked = std::env::var("ISTHMUS_LIFE_OUTAGE_S");
    asked.map_or(OUTAGE, |asked| Duration::from_secs(asked.parse().expect("seconds")))
}

#[test]
fn a_thousand_connections_outlive_all_that_happens_to_the_mesh() {
    let mut world = World::start();
    world.open(EACH, CLIENTS);
    world.all_carry("before anything happens");

    world.change_policies();
    world.all_carry("after a change of policy");

    world.rotate_certificates();
    world.all_carry("after every certificate and issuer was replaced and has ended");

    world.rotate_roots();
    world.all_carry("after the roots of both sites were replaced");

    world.stop_federations();
    let end = std::time::Instant::now() + outage();
    while std::time::Instant::now() < end {
        world.all_carry("without a control plane");
        sleep(Duration::from_secs(2));
    }
    world.start_federations();
    world.all_carry("with the control plane back");

    world.replace_gateways();
    world.all_carry("after both gateways were replaced");

    world.upgrade_proxies();
    world.all_carry("after both proxies were upgraded");
    world.new_connections_are_the_successors();

    let exchanges = world.shared().exchanges.load(Ordering::Relaxed);
    let requests = world.close();
    println!("{exchanges} exchanges on {} connections, {requests} requests", EACH * KINDS.len());
    world.all_predecessors_end();
}
