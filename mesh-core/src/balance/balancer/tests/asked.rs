//! Who is asked how it is, and what follows from the answer.

use super::*;

/// Who is chosen, and who is asked, as of now.
fn chosen_and_asked(world: &mut World) -> (String, String) {
    let chosen = world.chosen(&[]).concat();
    let asked = world.balancer.probed();
    (chosen, asked.iter().map(|endpoint| endpoint.id.as_str()).collect())
}

#[test]
fn who_fails_is_not_chosen_and_still_asked() {
    let mut world = World::with(no_slow_start(), ["a", "b", "c", "d"].map(local).into());
    let both = |chosen: &str, asked: &str| (chosen.to_owned(), asked.to_owned());
    assert_eq!(chosen_and_asked(&mut world), both("abcd", "abcd"));
    let a = world.slot("a");
    for failing in [true, false, true] {
        world.balancer.examined(a, failing);
        assert!(world.balancer.is_stale(world.now, world.paths.version()));
        let chosen = if failing { "bcd" } else { "abcd" };
        assert_eq!(chosen_and_asked(&mut world), both(chosen, "abcd"));
    }
    let elsewhere = Endpoint { address: "10.9.9.9:1".parse().ok(), ..local("a") };
    world.update(vec![elsewhere, local("b"), local("c"), local("d")]);
    assert_eq!(chosen_and_asked(&mut world), both("abcd", "abcd"), "nobody has asked there");
}

#[test]
fn who_is_not_wanted_is_not_asked() {
    type Change = fn(&mut World);
    let changes: [(&str, Change); 5] = [
        ("leaves", |world| world.report(Health::Draining, |e| e.id.as_str() == "a")),
        ("has no weight", |world| {
            world.update(vec![weighted("a", 0), local("b"), local("c"), local("d")]);
        }),
        ("cannot be reached", |world| {
            world.unreachable.push("a".into());
            world.report(Health::Healthy, |_| true);
        }),
        ("is held", |world| assert!(world.balancer.hold(world.slot("a")))),
        ("is reported ill", |world| world.report(Health::Unhealthy, |e| e.id.as_str() == "a")),
    ];
    for (what, change) in changes {
        for failing in [false, true] {
            let mut world = World::with(no_slow_start(), ["a", "b", "c", "d"].map(local).into());
            world.balancer.examined(world.slot("a"), failing);
            change(&mut world);
            // One who is ill as well as failing comes back by an answer.
            let asked = if failing && what == "is reported ill" { "abcd" } else { "bcd" };
            let wanted = ("bcd".to_owned(), asked.to_owned());
            assert_eq!(chosen_and_asked(&mut world), wanted, "{what}, {failing}");
        }
    }
}
