//! With the federations of both sites: what their absence, and the network's,
//! does to traffic and to what the sites know of each other.

use std::{collections::BTreeSet, time::Duration};

use isthmus_tests::{
    apps::request,
    federated::{Disks, Failure, add_sites, bring_up, door},
    sim,
};
use mesh_api::v1::ExportServiceRequest;
use tokio::time::{Instant, sleep};

use crate::{Script, Step, net, play, seeds, until_ok};

const PAYMENTS: &str = "http://payments.prod/";
const ORDERS: &str = "http://orders.shop/";
const WARM_UP: Duration = Duration::from_secs(20);
/// The resolution of a simulation, and the least that a message takes.
const FINE: Duration = Duration::from_millis(10);
/// For hours.
const COARSE: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);

fn two_sites(seed: u64, tick: Duration) -> (turmoil::Sim<'static>, Disks) {
    println!("seed {seed}");
    // Only the first call counts.
    let _again = mesh_runtime::logs::init("off");
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .epoch(sim::epoch())
        .simulation_duration(Duration::from_secs(48 * 3600))
        .tick_duration(tick)
        .min_message_latency(tick)
        .max_message_latency(tick)
        .tcp_capacity(4096)
        .udp_capacity(4096)
        // A connection to a host that is down keeps its port for ever.
        .ephemeral_ports(16384..=65535)
        .build();
    let disks = add_sites(&mut sim);
    (sim, disks)
}

/// Runs `test` with the hosts of two new sites.
fn simulate<F>(seed: u64, tick: Duration, test: impl FnOnce(Disks, Script) -> F)
where
    F: Future<Output = Result<(), Failure>> + 'static,
{
    let (mut sim, disks) = two_sites(seed, tick);
    let script = Script::default();
    sim.client("test", test(disks, script.clone()));
    play(sim, &script, seed);
}

/// One request that must succeed; the machine that answered it.
async fn ask(from: &str, url: &str) -> Result<String, Failure> {
    let answer = request(&net(), door(from), "GET", url, "").await?;
    if answer.status != 200 {
        return Err(format!("{url} from {from}: {answer:?}").into());
    }
    Ok(answer.body.split(' ').next().unwrap_or_default().to_owned())
}

/// Traffic in both directions for so long, without one failure.
async fn traffic(time: Duration, every: Duration) -> Result<(), Failure> {
    let start = Instant::now();
    while start.elapsed() < time {
        ask("vm", PAYMENTS).await?;
        ask("node", ORDERS).await?;
        sleep(every).await;
    }
    Ok(())
}

/// The endpoints of a service in a site, by their ids in their own site.
async fn ids(disks: &Disks, site: &str, service: &str) -> Result<BTreeSet<String>, Failure> {
    let endpoints = disks.endpoints(site, service).await?;
    Ok(endpoints.into_iter().map(|endpoint| endpoint.id).collect())
}

/// How long it takes until a site knows so many endpoints of a service.
async fn until_known(
    disks: &Disks,
    site: &str,
    service: &str,
    count: usize,
    within: Duration,
) -> Result<Duration, Failure> {
    let start = Instant::now();
    loop {
        let found = ids(disks, site, service).await;
        if found.as_ref().is_ok_and(|found| found.len() == count) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > within {
            return Err(format!("{service} in {site} after {within:?}: {found:?}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn sites_come_up_from_nothing() {
    for seed in seeds() {
        simulate(seed, FINE, |disks, _| async move {
            bring_up(&disks).await?;
            let body = until_ok("vm", PAYMENTS, WARM_UP).await?;
            assert_eq!(body, "node heard spiffe://west.example/ns/shop/sa/orders: ");
            let body = until_ok("node", ORDERS, WARM_UP).await?;
            assert_eq!(body, "vm heard spiffe://east.example/ns/prod/sa/payments: ");
            Ok(())
        });
    }
}

/// Breaks every tunnel of both sites: nothing of what comes afterwards was
/// there before.
async fn break_tunnels() {
    let pairs = [("vm", "west-gw"), ("node", "east-gw"), ("west-gw", "east-gw")];
    for (a, b) in pairs {
        turmoil::partition(a, b);
    }
    // The longest that a silent tunnel is kept is 30 s.
    sleep(Duration::from_secs(45)).await;
    for (a, b) in pairs {
        turmoil::repair(a, b);
    }
}

#[test]
fn traffic_goes_on_without_any_control_plane() {
    simulate(seeds()[0], COARSE, |disks, script| async move {
        bring_up(&disks).await?;
        until_ok("vm", PAYMENTS, WARM_UP).await?;
        until_ok("node", ORDERS, WARM_UP).await?;
        script.ask(Step::Crash("west-fed"));
        traffic(MINUTE, Duration::from_secs(1)).await?;
        // Longer than an idle inner session lives, each time.
        traffic(20 * MINUTE, 2 * MINUTE).await?;
        // Meanwhile the other site has one that west cannot hear of.
        disks.describe("spare", "payments", "prod");
        until_known(&disks, "east", "payments.prod", 4, WARM_UP).await?;
        assert_eq!(ask("vm", PAYMENTS).await?, "node");

        script.ask(Step::Crash("east-fed"));
        traffic(MINUTE, Duration::from_secs(1)).await?;
        break_tunnels().await;
        until_ok("vm", PAYMENTS, MINUTE).await?;
        until_ok("node", ORDERS, MINUTE).await?;
        traffic(60 * MINUTE, 2 * MINUTE).await?;

        // One comes back, knows nothing of the other, and takes nothing away.
        script.ask(Step::Start("west-fed"));
        traffic(2 * MINUTE, Duration::from_secs(1)).await?;
        script.ask(Step::Start("east-fed"));
        traffic(2 * MINUTE, Duration::from_secs(1)).await?;
        until_known(&disks, "west", "payments.prod", 4, MINUTE).await?;
        let mut answered = BTreeSet::new();
        for _ in 0..100 {
            answered.insert(ask("vm", PAYMENTS).await?);
        }
        assert_eq!(answered, ["node", "spare"].map(String::from).into());
        Ok(())
    });
}

#[test]
fn what_changes_during_a_partition_arrives_and_nothing_comes_back() {
    for seed in seeds() {
        simulate(seed, FINE, |disks, _| async move {
            bring_up(&disks).await?;
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            let before = ids(&disks, "west", "payments.prod").await?;
            turmoil::partition("west-gw", "east-gw");
            sleep(Duration::from_secs(5)).await;
            disks.describe("spare", "payments", "prod");
            until_known(&disks, "east", "payments.prod", 4, WARM_UP).await?;
            disks.withdraw("node", "payments");
            until_known(&disks, "east", "payments.prod", 2, WARM_UP).await?;
            disks.describe("spare", "refunds", "prod");
            disks.export("east", "refunds.prod").await?;
            unexport(&disks, "west", "orders.shop").await?;
            sleep(MINUTE).await;
            assert_eq!(ids(&disks, "west", "payments.prod").await?, before, "the last state stays");
            assert_eq!(ids(&disks, "east", "orders.shop").await?.len(), 2, "the last state stays");

            turmoil::repair("west-gw", "east-gw");
            until_known(&disks, "west", "refunds.prod", 2, MINUTE).await?;
            until_known(&disks, "east", "orders.shop", 0, MINUTE).await?;
            let healed = Instant::now();
            while healed.elapsed() < MINUTE {
                let here = ids(&disks, "east", "payments.prod").await?;
                let there = ids(&disks, "west", "payments.prod").await?;
                assert_eq!(here, there, "the sites differ");
                assert!(here.is_disjoint(&before) && here.len() == 2, "{here:?} and {before:?}");
                assert_eq!(ask("vm", PAYMENTS).await?, "spare");
                sleep(Duration::from_secs(1)).await;
            }
            let refused = request(&net(), door("node"), "GET", ORDERS, "").await?;
            assert_eq!(refused.error.as_deref(), Some("no_such_service"), "{refused:?}");
            Ok(())
        });
    }
}

async fn unexport(disks: &Disks, site: &str, service: &str) -> Result<(), Failure> {
    let request = ExportServiceRequest { service: service.into(), sites: Vec::new() };
    disks.admin(site).await?.unexport_service(request).await?;
    Ok(())
}

/// A lease lasts 8 s; the rest is for the way of the delta.
const LAPSED: Duration = Duration::from_secs(10);

#[test]
fn a_lost_machine_is_gone_from_the_other_site_within_ten_seconds() {
    for seed in seeds() {
        simulate(seed, FINE, |disks, script| async move {
            disks.describe("spare", "payments", "prod");
            bring_up(&disks).await?;
            until_known(&disks, "west", "payments.prod", 4, WARM_UP).await?;
            until_known(&disks, "east", "orders.shop", 2, WARM_UP).await?;
            until_ok("vm", PAYMENTS, WARM_UP).await?;

            script.ask(Step::Crash("spare"));
            let lapse = until_known(&disks, "west", "payments.prod", 2, LAPSED).await?;
            println!("gone from west after {lapse:?}");
            for _ in 0..20 {
                assert_eq!(ask("vm", PAYMENTS).await?, "node");
            }
            script.ask(Step::Start("spare"));
            let back = until_known(&disks, "west", "payments.prod", 4, MINUTE).await?;
            println!("back in west after {back:?}");

            // One that cannot be dialled, in the other direction.
            script.ask(Step::Crash("vm"));
            let lapse = until_known(&disks, "east", "orders.shop", 0, LAPSED).await?;
            println!("gone from east after {lapse:?}");
            script.ask(Step::Start("vm"));
            until_known(&disks, "east", "orders.shop", 2, MINUTE).await?;
            until_ok("node", ORDERS, WARM_UP).await?;
            until_ok("vm", PAYMENTS, WARM_UP).await?;
            Ok(())
        });
    }
}

/// Workload SVIDs live 24 h. These are almost old enough to be renewed when the
/// federations go.
#[test]
#[ignore = "a day of virtual time takes minutes: `make soak` runs it"]
fn without_any_control_plane_traffic_ends_with_the_certificates() {
    simulate(seeds()[0], COARSE, |disks, script| async move {
        bring_up(&disks).await?;
        until_ok("vm", PAYMENTS, WARM_UP).await?;
        until_ok("node", ORDERS, WARM_UP).await?;
        sleep(14 * 60 * MINUTE).await;
        script.ask(Step::Crash("west-fed"));
        script.ask(Step::Crash("east-fed"));
        traffic(9 * 60 * MINUTE, 30 * MINUTE).await?;
        sleep(2 * 60 * MINUTE).await;
        for (from, url) in [("vm", PAYMENTS), ("node", ORDERS)] {
            let refused = request(&net(), door(from), "GET", url, "").await;
            assert!(refused.as_ref().is_ok_and(|answer| answer.status >= 500), "{refused:?}");
        }
        script.ask(Step::Start("west-fed"));
        script.ask(Step::Start("east-fed"));
        until_ok("vm", PAYMENTS, 5 * MINUTE).await?;
        until_ok("node", ORDERS, 5 * MINUTE).await?;
        Ok(())
    });
}
