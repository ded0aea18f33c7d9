//! Who is left alone, and how it comes back.

use super::*;
use crate::balance::policy::{OutlierPolicy, Percent, SuccessRate};

#[test]
fn a_new_or_readmitted_endpoint_ramps_up() {
    let mut world = World::new(["a", "b"].map(local).into());
    close(world.expected()["b"], 0.5);
    world.update(["a", "b", "c"].map(local).into());
    close(world.expected()["c"], 0.1 / 2.1);
    world.sleep(5 * SECOND);
    close(world.expected()["c"], 0.5 / 2.5);
    world.sleep(5 * SECOND);
    close(world.expected()["c"], 1.0 / 3.0);
    world.report(Health::Unhealthy, |e| e.id.as_str() == "a");
    world.sleep(SECOND);
    world.report(Health::Healthy, |_| true);
    close(world.expected()["a"], 0.1 / 2.1);
    // What comes when nobody was there does not.
    let mut world = World::new(vec![]);
    world.sleep(SECOND);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 1.0);
    // A tier that ramps up is short, and spills.
    let mut world = World::new(vec![at("west", "eu-1", "w")]);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 0.14);
    world.sleep(8 * SECOND);
    close(world.expected()["a"], 1.0);
    let mut world = World::with(no_slow_start(), vec![at("west", "eu-1", "w")]);
    world.update(vec![local("a"), at("west", "eu-1", "w")]);
    close(world.expected()["a"], 1.0);
}

#[test]
fn failures_in_a_row_eject_with_doubling_and_probation() {
    let mut world = World::with(no_slow_start(), ["a", "b", "c", "d"].map(local).into());
    let (base, longest) = (world.policy.outlier.base_ejection, world.policy.outlier.max_ejection);
    world.fail("a", 4);
    world.once("a", End::Served(ms(1)));
    world.fail("a", 4);
    assert_eq!(world.chosen(&[]).len(), 4, "a success begins the count anew");
    world.fail("a", 1);
    let mut expected = base;
    for _ in 0..7 {
        assert_eq!(world.chosen(&[]), ["b", "c", "d"]);
        world.sleep(expected - INTERVAL);
        assert_eq!(world.chosen(&[]), ["b", "c", "d"]);
        world.sleep(INTERVAL);
        assert_eq!(world.chosen(&[]).len(), 4);
        // On probation one failure is enough.
        world.fail("a", 1);
        expected = (expected * 2).min(longest);
    }
    assert_eq!(expected, longest);
    world.once("a", End::Served(ms(1)));
    assert_eq!(world.chosen(&[]).len(), 4, "an answer ends it");
    // It is forgotten as slowly as it was learned.
    world.fail("a", 5);
    assert_eq!(world.load_mut("a").ejection, longest);
    world.once("a", End::Served(ms(1)));
    world.sleep(longest);
    world.once("a", End::Served(ms(1)));
    assert_eq!(world.load_mut("a").ejection, longest / 2);
    world.policy.outlier.consecutive_failures = 0;
    world.update(["a", "b", "c", "d"].map(local).into());
    world.fail("a", 100);
    assert_eq!(world.chosen(&[]).len(), 4, "0 is never");
}

#[test]
fn no_more_than_half_are_ejected_unless_all_fail() {
    let names = ["a", "b", "c", "d", "e"];
    let mut world = World::with(no_slow_start(), names.map(local).into());
    for id in ["a", "b", "c"] {
        world.fail(id, 5);
    }
    assert_eq!(world.chosen(&[]), ["c", "d", "e"]);
    world.fail("d", 5);
    world.fail("e", 5);
    world.sleep(INTERVAL);
    assert_eq!(world.chosen(&[]).len(), 5, "all fail: nobody is better than anybody");
    world.once("e", End::Served(ms(1)));
    world.sleep(INTERVAL);
    assert_eq!(world.chosen(&[]), ["c", "d", "e"]);
    // One may always be.
    let mut world = World::new(["a", "b"].map(local).into());
    world.policy.outlier.max_ejected = Percent(0);
    world.update(["a", "b"].map(local).into());
    world.fail("a", 5);
    assert_eq!(world.chosen(&[]), ["b"]);
    // Who serves nothing takes no place from those who do.
    let mut world = World::new(vec![local("a"), local("b"), weighted("none", 0)]);
    world.fail("none", 5);
    world.fail("a", 5);
    assert_eq!(world.chosen(&[]), ["b"]);
    // Where nobody is does not count.
    let mut world = World::new(names.map(local).into());
    for id in ["a", "b", "c", "d"] {
        world.once(id, End::Unreachable);
    }
    assert_eq!(world.chosen(&[]), ["e"]);
}

#[test]
fn who_fails_more_often_than_the_others_is_ejected() {
    let rate = SuccessRate { min_requests: 20, ..SuccessRate::default() };
    let mut policy = no_slow_start();
    policy.outlier.success_rate = Some(rate);
    let names: Vec<String> = (0..10).map(|i| format!("e{i}")).collect();
    let ten = || names.iter().map(|id| local(id)).collect::<Vec<_>>();
    let traffic = |world: &mut World, bad: &[&str], n: u32| {
        for i in 0..n {
            for id in &names {
                // Never five in a row.
                let fails = bad.contains(&&**id) && i % 2 == 0;
                let end = if fails { End::Failed(ms(1)) } else { End::Served(ms(1)) };
                world.once(id, end);
            }
        }
    };
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &["e3"], 19);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10, "too few to say");
    traffic(&mut world, &["e3"], 1);
    world.sleep(SECOND);
    assert!(!world.chosen(&[]).contains(&"e3".to_owned()));
    world.once("e3", End::Served(ms(1)));
    assert!(!world.chosen(&[]).contains(&"e3".to_owned()), "no matter of one answer");
    world.sleep(world.policy.outlier.base_ejection);
    assert_eq!(world.chosen(&[]).len(), 10, "on probation, with nothing held against it");
    // All fail alike: nobody is an outlier.
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &all, 40);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
    // What is long past does not count.
    let mut world = World::with(policy.clone(), ten());
    traffic(&mut world, &["e3"], 40);
    world.now += 31 * SECOND;
    traffic(&mut world, &[], 20);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
    policy.outlier.success_rate = None;
    let mut world = World::with(policy, ten());
    traffic(&mut world, &["e3"], 40);
    world.sleep(SECOND);
    assert_eq!(world.chosen(&[]).len(), 10);
}

#[test]
fn who_is_held_stays_away_until_it_is_back() {
    let mut world = World::with(no_slow_start(), ["a", "b"].map(local).into());
    let a = world.slot("a");
    assert!(world.balancer.hold(a) && !world.balancer.hold(a));
    world.sleep(100 * SECOND);
    assert_eq!(world.chosen(&[]), ["b"]);
    world.balancer.readmit(a, world.now);
    assert_eq!(world.chosen(&[]), ["a", "b"]);
    assert!(world.balancer.hold(a));
}

/// As long in service as it was out: then half of it is forgotten.
#[test]
fn ejections_are_forgotten_by_halves() {
    let policy = OutlierPolicy::default();
    let mut load = Load::default();
    load.eject(ms(10_000), Why::Failures, &policy);
    let mut after = |at: u64| {
        load.start();
        load.succeed(ms(at), ms(1), None);
        (load.out.is_some(), load.ejection.as_millis())
    };
    assert_eq!(after(11_000), (false, 3000), "an answer ends it");
    assert_eq!(after(11_000), (false, 3000));
    assert_eq!(after(13_999), (false, 3000));
    assert_eq!(after(14_000), (false, 1500));
    assert_eq!(after(14_000), (false, 1500));
    assert_eq!(after(15_499), (false, 1500));
    assert_eq!(after(15_500), (false, 750));
    load.eject(ms(20_000), Why::SuccessRate, &policy);
    load.start();
    load.succeed(ms(22_999), ms(1), None);
    assert_eq!((load.out.is_some(), load.ejection), (true, policy.base_ejection));
}

/// What comes back from requests that were under way changes nothing.
#[test]
fn who_is_out_is_not_ejected_again() {
    let policy = OutlierPolicy::default();
    let mut load = Load::default();
    assert!(!load.is_out(Duration::ZERO));
    let vanished = |load: &mut Load, at: u64| {
        load.start();
        load.vanish(ms(at), &policy);
        load.out.map(|out| out.until.as_millis())
    };
    assert_eq!(vanished(&mut load, 10_000), Some(13_000));
    assert!(load.is_out(ms(12_999)) && !load.is_out(ms(13_000)));
    assert_eq!(vanished(&mut load, 12_999), Some(13_000));
    assert_eq!(vanished(&mut load, 13_000), Some(19_000), "twice as long");
    assert_eq!(load.failures, 3);
}

#[test]
fn outcomes_are_those_of_the_window() {
    let (window, mut load) = (ms(10_000), Load::default());
    for second in [0, 2, 4, 6, 8] {
        load.succeed(SECOND * second, ms(1), Some(window));
    }
    load.fail(9 * SECOND, ms(1), Some(window));
    let sums = [9_000, 9_999, 10_000, 13_999, 16_000, 17_999, 18_000]
        .map(|at| (at, load.outcomes.sums(ms(at), window)));
    let wanted = [
        (9_000, [1, 5]),
        (9_999, [1, 5]),
        (10_000, [1, 4]),
        (13_999, [1, 3]),
        (16_000, [1, 1]),
        (17_999, [1, 1]),
        (18_000, [0, 0]),
    ];
    assert_eq!(sums, wanted);
    // All are forgotten at once after a long time, and none of what is new.
    load.succeed(500 * SECOND, ms(1), Some(window));
    assert_eq!(load.outcomes.sums(500 * SECOND, window), [0, 1]);
}

/// When nobody is out, reports are believed, whatever has failed before.
#[test]
fn probation_of_all_is_no_panic() {
    let mut world = World::with(no_slow_start(), ["a", "b"].map(local).into());
    world.report(Health::Unhealthy, |e| e.id.as_str() == "b");
    world.fail("a", 5);
    assert_eq!(world.chosen(&[]), ["a", "b"], "nobody is usable: all alike");
    world.sleep(world.policy.outlier.base_ejection);
    world.sleep(INTERVAL);
    assert_eq!(world.chosen(&[]), ["a"]);
}
