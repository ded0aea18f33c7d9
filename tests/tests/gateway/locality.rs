//! Three sites with two zones each, on real sockets: every endpoint has the
//! share that the formula says (docs/balancing.md), and no request fails while
//! anybody is there. `mesh_core::balance` shows the same in virtual time, with
//! more requests.

mod world;

use std::time::Duration;

use tokio::time::Instant;

use self::world::{EACH, World, ZONES};

/// Requests of one measurement.
const N: usize = 1200;
/// Of the zone where the caller is, and the other one of its site.
const NEAR: usize = 0;
const NEXT: usize = 1;
/// The share of every endpoint of a zone that can serve, with so many left in
/// each zone: written out here, since what the proxies decide by may be wrong.
fn share(left: &[usize; ZONES.len()], zone: usize) -> f64 {
    // A tier keeps so much of what reaches it: its zone, then its region.
    let keeps = |zone: usize| (1.4 * left[zone] as f64 / EACH as f64).min(1.0);
    let near = keeps(NEAR);
    let next = (1.0 - near) * keeps(NEXT);
    let (of_tier, healthy) = match zone {
        NEAR => (near, left[NEAR]),
        NEXT => (next, left[NEXT]),
        // No more than all of one site is ever lost here.
        _ => (1.0 - near - next, left[2..].iter().sum()),
    };
    of_tier / healthy.max(1) as f64
}

/// Within four standard deviations of a binomial distribution, and `slack` of
/// what is expected.
fn check(
    what: &str,
    served: &[[usize; EACH]; ZONES.len()],
    left: &[usize; ZONES.len()],
    slack: f64,
) {
    let n = served.iter().flatten().sum::<usize>() as f64;
    for (zone, served) in served.iter().enumerate() {
        let close = |count: usize, p: f64, slack: f64, name: &str| {
            let bound = 4.0 * (n * p * (1.0 - p)).sqrt() + slack * n * p;
            let off = (count as f64 - n * p).abs();
            assert!(off <= bound, "{what}: {name}: {count} of {n}, not {:.0}", n * p);
        };
        let p = share(left, zone);
        let (site, name) = ZONES[zone];
        close(served.iter().sum(), p * left[zone] as f64, 0.0, &format!("{site}/{name}"));
        for (i, count) in served.iter().enumerate() {
            // The first ones are those that are lost.
            let p = if i < EACH - left[zone] { 0.0 } else { p };
            close(*count, p, slack, &format!("{site}/{name}-{i}"));
        }
    }
}

/// How long an answer takes: long beside what a handshake costs, so that a
/// first request is no sign of slowness.
const USUAL: Duration = Duration::from_millis(60);
/// Requests at once.
const AT_ONCE: usize = 48;
/// Until a first impression has faded.
const FADED: Duration = Duration::from_secs(12);

#[tokio::test]
async fn a_zone_loses_a_third_two_thirds_all_and_then_the_site_does() {
    let mut world = World::start(USUAL).await;
    let met = Instant::now();
    for well in [[0, 0, 6, 6, 6, 6], [0, 6, 6, 6, 6, 6], [EACH; ZONES.len()]] {
        world.tell(&well, 0);
        world.run(100, 6).await;
    }
    let mut left = [EACH; ZONES.len()];
    let steps = [
        (NEAR, 6, "all is well"),
        (NEAR, 4, "a third is lost"),
        (NEAR, 2, "two thirds are lost"),
        (NEAR, 0, "the zone is lost"),
        (NEXT, 0, "the site is lost"),
    ];
    for (zone, remain, what) in steps {
        left[zone] = remain;
        // They die, and nobody has said so: no request fails meanwhile.
        world.lose(zone, EACH - remain).await;
        world.run(300, AT_ONCE).await;
        // Now federation has heard of it.
        world.tell(&left, 0);
        while remain == 0 && met.elapsed() < FADED {
            world.run(50, AT_ONCE).await;
        }
        let (served, _) = world.run(N, AT_ONCE).await;
        check(what, &served, &left, 0.1);
    }
    world.stop().await;
}

#[tokio::test]
async fn a_worker_uses_a_part_of_what_is_far() {
    let mut world = World::start(Duration::from_millis(20)).await;
    let far = [0, 0, EACH, EACH, EACH, EACH];
    let mut used = Vec::new();
    for subset in [4, 0] {
        world.balance.subset = Some(subset);
        world.tell(&far, 0);
        let (served, _) = world.run(N / 2, 12).await;
        used.push(served.iter().flatten().filter(|count| **count > 0).count());
    }
    assert_eq!(used[0], 4);
    assert!(used[1] > 12, "most of all 24: {}", used[1]);
    world.stop().await;
}

#[tokio::test]
async fn a_slow_zone_keeps_its_part() {
    let world = World::start(Duration::from_millis(20)).await;
    world.run(200, 12).await;
    world.slow(NEAR, Duration::from_millis(120));
    // Latencies of the last ten seconds count.
    let began = Instant::now();
    while began.elapsed() < FADED {
        world.run(50, 12).await;
    }
    let (served, latency) = world.run(N / 2, 12).await;
    // As slow as twice the next and a millisecond more.
    let wanted = ((2.0 * latency[NEXT] + 0.001) / latency[NEAR]).min(1.0);
    let near = share_of(NEAR, &served);
    let n = served.iter().flatten().sum::<usize>() as f64;
    let bound = 4.0 * (wanted * (1.0 - wanted) / n).sqrt() + 0.05;
    assert!(wanted < 0.7, "the zone is slow: {latency:?}");
    assert!((near - wanted).abs() < bound, "{near}, not {wanted}: {latency:?}");
    assert!((near + share_of(NEXT, &served) - 1.0).abs() < 1e-9, "the next zone takes the rest");
    world.stop().await;
}

#[tokio::test]
async fn an_overloaded_zone_keeps_what_it_can_carry() {
    // What waits anywhere but at the applications is no load of theirs: few
    // requests a second, so that a busy machine is no reason for that.
    let world = World::start(Duration::from_millis(200)).await;
    let all = [EACH; ZONES.len()];
    // Six times four requests at once, of 48.
    world.tell(&all, 4);
    let (served, _) = world.run_after(N, N / 2, AT_ONCE).await;
    let near = share_of(NEAR, &served);
    assert!((near - 0.5).abs() < 0.1, "{near} of all, not a half");
    assert!((near + share_of(NEXT, &served) - 1.0).abs() < 1e-9, "the next zone takes the rest");
    world.tell(&all, 100);
    let (served, _) = world.run_after(N, N / 2, AT_ONCE).await;
    check("no longer overloaded", &served, &all, 0.1);
    world.stop().await;
}

fn share_of(zone: usize, served: &[[usize; EACH]; ZONES.len()]) -> f64 {
    let all = served.iter().flatten().sum::<usize>();
    served[zone].iter().sum::<usize>() as f64 / all as f64
}
