//! Six hosts, half of them moved: each calls the service of each other, by the way
//! of its own kind, before, while and after hosts move and go back.
//!
//! Allowed is no failed call at all. A host moves by having its service in both
//! places first, and leaving the old one only when the new one is shown everywhere;
//! whoever has resolved the old place still finds the application, or the proxy,
//! there. What a proxy repeats by rule (a request that its own endpoint no longer
//! knows, of which the application has seen nothing) is no failed call; clients here
//! repeat nothing.

mod hosts;
mod world;

use std::sync::atomic::Ordering::Relaxed;

use serde_json::json;

use crate::programs::eventually;
use hosts::{BOTH, Way};
use world::World;

impl World {
    /// Each host is answered by each other one.
    fn all_are_answered(&self) {
        eventually("all of the thirty directions", || self.each_asks_each().map(drop));
        let answered = self.each_asks_each().unwrap();
        assert_eq!(answered, 30, "and once more, at the first go");
    }

    /// What each has at the moment, in Consul and in the mesh: nothing is there twice,
    /// and nothing is there that nobody has written.
    fn has_settled(&self) {
        eventually("one instance of each on both sides", || {
            for host in self.hosts() {
                self.counts(&host.service(), 1, 1)?;
            }
            Ok(())
        });
        let mut names: Vec<String> = self.hosts().iter().map(|host| host.service()).collect();
        names.push("consul".into());
        assert_eq!(self.names_in_consul(), names);
        let legacy = self.hosts().iter().filter(|host| host.way() == Way::Legacy).count();
        let moved = self.hosts().len() - legacy;
        eventually("the bridge counts the same", || self.bridge_counts(legacy, moved));
    }

    /// Its service is in our registry as well, and then in Consul no longer.
    fn moves(&mut self, name: &str) {
        self.joins(name);
        let host = self.host(name).clone();
        eventually("it is in both", || self.counts(&host.service(), 2, 2));
        host.takes(Way::Moved);
        self.consul_says("PUT", &format!("/v1/agent/service/deregister/{}-1", host.service()));
        eventually("it is in the mesh alone", || {
            self.counts(&host.service(), 1, 1)?;
            self.is_imported(&host, false)
        });
    }

    /// The same the other way round; its proxy ends when nobody calls it any more.
    fn goes_back(&mut self, name: &str) {
        let host = self.host(name).clone();
        self.register_in_consul(&host);
        eventually("it is in both", || self.counts(&host.service(), 2, 2));
        host.takes(Way::Legacy);
        self.withdraws(&host);
        eventually("it is in Consul alone", || {
            self.counts(&host.service(), 1, 1)?;
            self.is_imported(&host, true)
        });
        self.callers_went_round();
        self.leaves(&host);
    }

    /// An instance that fails its check is nobody's any more, and comes back.
    fn fails_and_recovers(&self, name: &str) {
        let (host, service) = (self.host(name), self.host(name).service());
        host.is_well.store(false, Relaxed);
        eventually("it passes nowhere, not by DNS either", || self.well(&service, 0));
        // It is not gone, and nothing has come in its place.
        self.counts(&service, 1, 1).unwrap();
        host.is_well.store(true, Relaxed);
        eventually("it passes again", || self.well(&service, 1));
    }

    /// A service of which one instance is in Consul and one in the mesh: who asks is
    /// answered by both, and by the other one alone while one fails its check.
    fn one_of_both_fails(&self, legacy: &str, moved: &str) {
        let (legacy, moved) = (self.host(legacy), self.host(moved));
        self.have_both(legacy, moved);
        eventually("one of each, on both sides", || self.counts(BOTH, 2, 2));
        let both = [legacy, moved];
        eventually("both answer", || self.both_is_answered_by(&both));
        for (fails, other) in [(legacy, moved), (moved, legacy)] {
            fails.is_well.store(false, Relaxed);
            eventually("one is well", || self.well(BOTH, 1));
            eventually("the other one answers all", || self.both_is_answered_by(&[other]));
            self.counts(BOTH, 2, 2).unwrap();
            fails.is_well.store(true, Relaxed);
            eventually("both are well", || self.well(BOTH, 2));
            eventually("both answer", || self.both_is_answered_by(&both));
        }
    }
}

#[test]
fn six_hosts_half_moved_call_each_other_while_one_moves_and_one_goes_back() {
    let mut world = World::start();
    world.all_are_answered();
    world.has_settled();

    let calls = world.everybody_calls();
    world.callers_went_round();
    world.moves("d");
    world.has_settled();
    world.callers_went_round();
    world.goes_back("b");
    world.has_settled();
    world.callers_went_round();
    let (made, failed) = calls.end();
    println!("{made} calls while hosts moved, {} failed", failed.len());
    assert!(failed.is_empty(), "of {made}: {failed:#?}");
    assert!(made >= 30 * 6, "only {made} calls");

    world.all_are_answered();
    for host in ["f", "c", "d", "b"] {
        world.fails_and_recovers(host);
    }
    world.all_are_answered();
    world.has_settled();
    world.one_of_both_fails("e", "c");
    let status = world.status();
    assert_eq!(status["consuls"][0]["state"], json!("fresh"), "{status}");
    world.ends();
}
