//! What a tier sends on: over its capacity, or slower than the next; and who
//! stands by.

use super::*;

fn near(e: &Endpoint) -> bool {
    e.site.as_str() == "east"
}

fn of_ten(site: &str, id: &str) -> Endpoint {
    Endpoint { capacity: 10, ..at(site, "eu-1", id) }
}

/// Two near ones, each good for ten at once, that have had so many each in
/// flight for long.
fn busy(each: u32, workers: u32, far: &[&str]) -> World {
    let far = far.iter().map(|id| of_ten("west", id));
    let mut world = World::with(no_slow_start(), vec![]);
    world.workers = workers;
    world.update(["a", "b"].map(|id| of_ten("east", id)).into_iter().chain(far).collect());
    for slot in ["a", "b"].map(|id| world.slot(id)) {
        (0..each).for_each(|_| world.balancer.begin(slot));
    }
    (0..60).for_each(|_| world.sleep(INTERVAL));
    world
}

#[test]
fn a_tier_over_its_capacity_sends_on() {
    let kept = |each, workers| busy(each, workers, &["c", "d"]).share(near);
    close(kept(0, 1), 1.0);
    close(kept(10, 1), 1.0);
    // What is in flight does not fall here, however little is sent.
    close(kept(20, 1), 0.05);
    // Two workers have five each of the ten.
    close(kept(5, 2), 1.0);
    close(kept(10, 2), 0.05);
}

/// Nothing is held against a tier that had nobody to send to.
#[test]
fn the_only_tier_keeps_everything() {
    let mut world = busy(20, 1, &[]);
    close(world.share(near), 1.0);
    world.update([("east", "a"), ("east", "b"), ("west", "c")].map(|(s, i)| of_ten(s, i)).into());
    close(world.share(near), 1.0);
}

/// The next tier is the next that has anybody.
#[test]
fn a_tier_slower_than_the_next_sends_on() {
    let mut world = World::with(no_slow_start(), vec![local("a"), at("west", "eu-1", "w")]);
    for _ in 0..40 {
        for _ in 0..30 {
            world.once("a", End::Served(ms(100)));
            world.once("w", End::Served(ms(10)));
        }
        world.sleep(INTERVAL);
    }
    // Twice the latency of the next and a millisecond are borne.
    assert!((world.share(near) - 0.21).abs() < 1e-6, "{}", world.share(near));
}

/// The order of those who stand by is that of their numbers, whatever is near.
#[test]
fn standbys_serve_while_nobody_before_them_can() {
    let of = |id: &str, priority| Endpoint { priority, ..local(id) };
    let second = Endpoint { priority: 1, ..at("west", "eu-1", "second") };
    let mut world =
        World::with(no_slow_start(), vec![of("a", 0), of("b", 0), second, of("third", 7)]);
    assert_eq!(world.chosen(&[]), ["a", "b"]);
    assert_eq!(world.chosen(&["a"]), ["b"]);
    assert!(world.chosen(&["a", "b"]).is_empty(), "who answered is there");
    // One of two is enough, however little that is.
    world.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    assert_eq!(world.chosen(&[]), ["b"]);
    world.once("b", End::Unreachable);
    assert_eq!(world.chosen(&[]), ["second"]);
    assert_eq!(world.chosen(&["b"]), ["second"], "of the same request, too");
    world.once("second", End::Unreachable);
    assert_eq!(world.chosen(&[]), ["third"]);
    // Unwell ones come before those who are not there, and after all who are well.
    world.report(Health::Unhealthy, |e| e.id.as_str() == "third");
    assert_eq!(world.chosen(&[]), ["a"]);
    world.report(Health::Healthy, |e| e.id.as_str() == "a");
    assert_eq!(world.chosen(&[]), ["a"]);
}
