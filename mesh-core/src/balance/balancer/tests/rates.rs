//! Who fails more often than the others, to the number.

use super::*;
use crate::balance::policy::SuccessRate;

/// `n` endpoints, judged from 20 requests on by `deviations`.
fn judged(n: usize, min_hosts: u32, deviations: u32) -> World {
    let mut policy = no_slow_start();
    policy.outlier.consecutive_failures = 0;
    let deviations = Percent(deviations);
    let rate = SuccessRate { min_requests: 20, min_hosts, deviations, ..SuccessRate::default() };
    policy.outlier.success_rate = Some(rate);
    World::with(policy, (0..n).map(|i| local(&format!("e{i}"))).collect())
}

/// So many requests, of which every `nth` fails.
fn requests(world: &mut World, id: &str, n: u32, nth: u32) {
    for i in 0..n {
        let fails = i.is_multiple_of(nth);
        world.once(id, if fails { End::Failed(ms(1)) } else { End::Served(ms(1)) });
    }
}

/// Who is out after the next look.
fn out(world: &mut World) -> Vec<String> {
    world.sleep(SECOND);
    let ids: Vec<String> = world.endpoints.iter().map(|e| e.id.to_string()).collect();
    ids.into_iter().filter(|id| world.load_mut(id).out.is_some()).collect()
}

#[test]
fn rates_are_compared_and_not_counts() {
    for (odd, others) in [(20, 200), (1000, 20)] {
        let mut world = judged(10, 5, 190);
        requests(&mut world, "e0", odd, 10);
        (1..10).for_each(|i| requests(&mut world, &format!("e{i}"), others, 10));
        assert_eq!(out(&mut world), [""; 0], "{odd} among {others}");
    }
}

#[test]
fn so_many_are_needed_to_compare() {
    let with = |n: usize| {
        let mut world = judged(n, 5, 100);
        requests(&mut world, "e0", 20, 2);
        (1..n).for_each(|i| requests(&mut world, &format!("e{i}"), 20, 100));
        out(&mut world)
    };
    assert_eq!(with(4), [""; 0]);
    assert_eq!(with(5), ["e0"]);
    assert_eq!(with(6), ["e0"]);
}

/// Of two, each is exactly one deviation from the mean.
#[test]
fn on_the_line_is_not_below_it() {
    for (deviations, wanted) in [(100, &[][..]), (99, &["e0"][..])] {
        let mut world = judged(2, 2, deviations);
        requests(&mut world, "e0", 32, 1);
        (0..32).for_each(|_| world.once("e1", End::Served(ms(1))));
        assert_eq!(out(&mut world), wanted, "{deviations}");
    }
}

#[test]
fn the_worst_goes_where_there_is_room_for_one() {
    let mut world = judged(10, 5, 100);
    world.policy.outlier.max_ejected = Percent(10);
    world.update(world.endpoints.iter().map(|e| (**e).clone()).collect());
    requests(&mut world, "e3", 30, 3);
    requests(&mut world, "e4", 30, 2);
    for i in [0, 1, 2, 5, 6, 7, 8, 9] {
        requests(&mut world, &format!("e{i}"), 30, 100);
    }
    assert_eq!(out(&mut world), ["e4"]);
}
