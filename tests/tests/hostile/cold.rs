//! Machines that boot while no control plane is there: into the mesh by what
//! is on their disks, unless they were told to stay out.

use std::{fs, path::Path};

use crate::{
    programs::{eventually, holds, said},
    site::{FEDERATION, GATEWAY, Machine, Site, get, link},
};

const CLIENT: Machine = Machine("client", 21);
const NEAR: Machine = Machine("near", 22);
const FAR: Machine = Machine("far", 23);

fn gone(path: &Path) {
    eventually(&format!("{} is gone", path.display()), || {
        if path.exists() { Err("it is there".to_owned()) } else { Ok(()) }
    });
}

/// Power is lost.
fn fail(site: &mut Site, machines: &[Machine]) {
    site.kill(GATEWAY);
    for machine in machines {
        site.kill(&machine.proxy());
        site.kill(&machine.agent());
    }
}

/// It is back.
fn boot(site: &mut Site, machines: &[Machine]) {
    site.start_gateway();
    for machine in machines {
        site.start_agent(*machine);
        site.start_proxy(*machine);
    }
}

fn answers(site: &Site, machine: Machine, services: &[&str]) {
    for service in services {
        eventually(&format!("{} reaches {service}", machine.0), || {
            site.request_to(machine, service)
        });
    }
}

#[test]
fn everything_that_reboots_while_federation_is_down_serves_and_renews_later() {
    let (mut west, mut east) = (Site::start_as("west"), Site::start_as("east"));
    west.add(CLIENT);
    west.add_backing(NEAR, "basket");
    east.add_backing(FAR, "stock");
    link(&west, &east);
    // Direct within the site, by both gateways to the other one.
    let from_west = ["orders.shop", "basket.shop", "stock.shop"];
    answers(&west, CLIENT, &from_west);
    answers(&east, FAR, &["stock.shop", "orders.shop"]);
    // All of it lies on every disk.
    let near = west.addr(NEAR.1, 4143).to_string();
    holds(&west.run_dir(CLIENT).join("proxy/snapshot.bin"), &near);
    for (site, proxy, exported, imported) in [
        (&west, "client/proxy", "\x1a\x04east", "east.example/ns/shop/sa/orders"),
        (&west, "gateway", "\x1a\x04east", "east.example/ns/shop/sa/orders"),
        (&east, "far/proxy", "\x1a\x04west", "west.example/ns/shop/sa/orders"),
        (&east, "gateway", "\x1a\x04west", "west.example/ns/shop/sa/orders"),
    ] {
        let snapshot = site.dir().join(proxy).join("snapshot.bin");
        holds(&snapshot, imported);
        // `Service.exported_to`, as protobuf writes it.
        holds(&snapshot, exported);
    }

    // Power is lost everywhere, and comes back everywhere but at the control
    // planes.
    for (site, machines) in [(&mut west, &[CLIENT, NEAR][..]), (&mut east, &[FAR])] {
        site.kill(FEDERATION);
        fail(site, machines);
    }
    boot(&mut west, &[CLIENT, NEAR]);
    boot(&mut east, &[FAR]);
    answers(&west, CLIENT, &from_west);
    answers(&west, NEAR, &["basket.shop"]);
    answers(&east, FAR, &["stock.shop", "orders.shop"]);
    let log = west.daemon(&CLIENT.proxy()).log();
    assert!(log.contains("beginning with the identity on disk"), "{log}");
    west.wait_ready(west.addr(CLIENT.1, 4191), "the proxy is ready");

    // The control planes are back: everybody gets a new certificate.
    let kept = [
        west.run_dir(CLIENT).join("proxy/identity.bin"),
        west.run_dir(NEAR).join("proxy/identity.bin"),
        west.dir().join("gateway/identity.bin"),
        east.run_dir(FAR).join("proxy/identity.bin"),
    ];
    let before: Vec<_> = kept.iter().map(|path| fs::read(path).unwrap()).collect();
    west.start_federation();
    east.start_federation();
    for (path, before) in kept.iter().zip(&before) {
        eventually(&format!("{} is renewed", path.display()), || {
            let renewed = fs::read(path).unwrap() != *before;
            renewed.then_some(()).ok_or_else(|| "not yet".to_owned())
        });
    }
    west.wait_ready(west.addr(CLIENT.1, 4190), "the agent is connected");
    answers(&west, CLIENT, &from_west);
    answers(&east, FAR, &["stock.shop", "orders.shop"]);
    west.check_alive();
    east.check_alive();
}

#[test]
fn a_machine_that_has_left_stays_out() {
    let mut site = Site::start();
    site.add(CLIENT);
    let kept = site.run_dir(CLIENT).join("proxy/identity.bin");
    holds(&kept, "spiffe://west.example/ns/shop/sa/orders");
    said(&site.meshctl(&site.run_dir(CLIENT), &["leave"]).output().unwrap());
    gone(&kept);
    site.kill(FEDERATION);
    fail(&mut site, &[CLIENT]);
    boot(&mut site, &[CLIENT]);
    let admin = site.addr(CLIENT.1, 4191);
    eventually("the proxy says what it lacks", || match get(admin, "/ready", "admin") {
        Ok(answer) if answer.contains("meshctl join") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    site.request(CLIENT).unwrap_err();
    assert!(!kept.exists());
    let log = site.daemon(&CLIENT.proxy()).log();
    assert!(!log.contains("beginning with the identity on disk"), "{log}");
    site.check_alive();
}

/// The machine forgets its identity when it hears of it; one whose disk is put
/// back as it was finds that nobody else has forgotten.
#[test]
fn a_machine_that_was_revoked_is_refused_by_everybody_else() {
    let mut site = Site::start();
    site.add(CLIENT);
    let nodes = said(&site.meshctl(site.dir(), &["--json", "node", "list"]).output().unwrap());
    let nodes: serde_json::Value = serde_json::from_str(&nodes).unwrap();
    let node = format!("node:{}", nodes["nodes"][0]["id"].as_str().unwrap());
    site.add_backing(NEAR, "basket");
    answers(&site, CLIENT, &["orders.shop", "basket.shop"]);
    let state = site.run_dir(CLIENT).join("proxy");
    let names = ["identity.bin", "snapshot.bin"];
    holds(&state.join("snapshot.bin"), &site.addr(NEAR.1, 4143).to_string());
    let disk = names.map(|name| fs::read(state.join(name)).unwrap());

    said(&site.meshctl(site.dir(), &["identity", "revoke", &node]).output().unwrap());
    gone(&state.join("identity.bin"));
    holds(&site.run_dir(NEAR).join("proxy/snapshot.bin"), &node);
    holds(&site.dir().join("gateway/snapshot.bin"), &node);
    site.kill(FEDERATION);
    let seen = site.daemon(&NEAR.proxy()).log().len();
    fail(&mut site, &[CLIENT, NEAR]);
    for (name, bytes) in names.iter().zip(disk) {
        mesh_runtime::files::write_private(&state.join(name), &bytes).unwrap();
    }
    boot(&mut site, &[CLIENT, NEAR]);
    let begun = "beginning with the identity on disk";
    eventually("the proxy begins with it", || {
        let log = site.daemon(&CLIENT.proxy()).log();
        log.contains(begun).then_some(()).ok_or(log)
    });
    answers(&site, NEAR, &["basket.shop"]);
    for _ in 0..3 {
        let refused = site.request_to(CLIENT, "basket.shop").unwrap_err();
        assert!(refused.starts_with("HTTP/1.1 50"), "{refused}");
    }
    let log = site.daemon(&NEAR.proxy()).log();
    assert!(log[seen..].contains("peer_revoked"), "{log}");
    site.check_alive();
}
