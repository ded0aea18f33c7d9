//! The time between the first counted request and the last: load, scenario,
//! live table.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use mesh_api::v1;
use mesh_runtime::drain::{Drain, Termination};
use tokio::time::Instant;

use super::{
    load::{self, Flow, Meters},
    meter::Meter,
    report::{FlowReport, LinkReport, Report, flow_report, flow_table, phase_lines},
    scenario::Scenario,
    screen::Screen,
    stage::Stage,
    tell::{SITES_VARIABLE, Teller},
    trail::Trail,
    world::{EAST, MACHINES, WEST, World},
};
use crate::{endpoint::Run, failure::Failure, output::Format};

/// How often the scenario is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often links are asked for.
const LINK_INTERVAL: Duration = Duration::from_secs(1);
/// Access logs are written behind the requests; this late is lost.
const LOG_LATENESS: Duration = Duration::from_secs(3);

/// Everything that is known while it runs.
#[derive(Debug)]
pub(crate) struct Show {
    flows: Vec<Flow>,
    meters: Meters,
    trail: Trail,
    scenario: Scenario,
    screen: Screen,
    links: Vec<LinkReport>,
    duration: Option<Duration>,
    started: Instant,
}

impl Show {
    pub(crate) fn new(world: &World, duration: Option<Duration>, format: Format) -> Self {
        let flows = world.flows();
        let mut trail = Trail::default();
        for machine in MACHINES {
            trail.follow(machine.name, world.access_log(machine));
        }
        Self {
            meters: Rc::new(RefCell::new(vec![Meter::default(); flows.len()])),
            scenario: Scenario::new(duration, &flows),
            flows,
            trail,
            screen: Screen::new(format),
            links: Vec::new(),
            duration,
            started: Instant::now(),
        }
    }

    /// Runs until the duration is over or somebody ends it.
    pub(crate) async fn run(
        &mut self,
        stage: &mut Stage,
        world: &World,
        teller: &Teller,
        ctrl_c: &mut Termination,
    ) -> Result<Report, Failure> {
        self.invite(world, teller);
        self.links = links(world).await;
        self.trail.reset();
        self.started = Instant::now();
        let stop = Drain::new();
        let (flows, meters) = (self.flows.clone(), self.meters.clone());
        let load = load::run(&flows, &meters, self.started, &stop);
        let watch = async {
            let watched = self.watch(stage, world, teller, ctrl_c).await;
            stop.start();
            watched
        };
        let ((), interrupted) = tokio::join!(load, watch);
        let interrupted = interrupted?;
        let took = self.started.elapsed();
        self.scenario.finish().await;
        self.links = links(world).await;
        self.late_lines().await;
        self.screen.clear(teller);
        Ok(self.report(stage, world, took, interrupted))
    }

    /// How to look at it from elsewhere.
    fn invite(&self, world: &World, teller: &Teller) {
        let paint = teller.paint();
        let until = match self.duration {
            Some(duration) => format!("for {} s", duration.as_secs()),
            None => "until Ctrl-C".to_owned(),
        };
        teller.line(&format!("\nRequests run {until}. From another terminal:"));
        teller.line(&format!("  export {SITES_VARIABLE}={}", world.dir().display()));
        for command in ["status", "stat", "endpoints catalog.shop", "why orders.shop payments.prod"]
        {
            teller.line(&format!("  {}", paint.bold(&format!("meshctl --site west {command}"))));
        }
        teller.line("");
    }

    /// Returns whether somebody ended it before its time.
    async fn watch(
        &mut self,
        stage: &mut Stage,
        world: &World,
        teller: &Teller,
        ctrl_c: &mut Termination,
    ) -> Result<bool, Failure> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut asked = Duration::ZERO;
        loop {
            tokio::select! {
                () = ctrl_c.wait() => return Ok(true),
                _ = ticks.tick() => {}
            }
            let now = self.started.elapsed();
            if self.duration.is_some_and(|duration| now >= duration) {
                return Ok(false);
            }
            stage.all_alive()?;
            let done = self.scenario.step(now, stage, world, &self.meters)?;
            if let (Some(what), false) = (done, self.screen.is_in_place()) {
                teller.done(&what);
            }
            if now.saturating_sub(asked) >= LINK_INTERVAL {
                asked = now;
                self.links = links(world).await;
            }
            if self.screen.is_due(now) {
                self.trail.poll();
                let text = self.text(now, teller);
                self.screen.draw(now, &text, teller);
            }
        }
    }

    fn text(&self, now: Duration, teller: &Teller) -> String {
        let paint = teller.paint();
        let mut text = format!("{:.0}s\n", now.as_secs_f64());
        text.push_str(&flow_table(&self.flow_reports(now), paint));
        text.push_str(&phase_lines(self.scenario.recent(), paint));
        text
    }

    fn flow_reports(&self, now: Duration) -> Vec<FlowReport> {
        let meters = self.meters.borrow();
        let both = self.flows.iter().zip(meters.iter());
        both.map(|(flow, meter)| flow_report(flow, meter, &self.trail, &self.links, now)).collect()
    }

    /// Waits for the log lines of the last requests.
    async fn late_lines(&mut self) {
        let end = Instant::now() + LOG_LATENESS;
        loop {
            self.trail.poll();
            let now = self.started.elapsed();
            let complete =
                |flow: &FlowReport| flow.verified >= flow.successes && !flow.path.is_empty();
            if self.flow_reports(now).iter().all(complete) || Instant::now() >= end {
                return;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    fn report(&self, stage: &Stage, world: &World, took: Duration, interrupted: bool) -> Report {
        let swallowed = stage.blackholes.iter().map(super::blackhole::Blackhole::swallowed).sum();
        let mut report = Report {
            ok: false,
            problems: Vec::new(),
            duration_s: took.as_secs_f64(),
            ready_after_s: 0.0,
            block_udp: world.block_udp,
            swallowed_datagrams: swallowed,
            flows: self.flow_reports(took),
            phases: self.scenario.phases.clone(),
            links: self.links.clone(),
            versions: BTreeMap::new(),
        };
        report.judge((!interrupted).then(|| self.scenario.planned()));
        report
    }
}

/// The links of both sites; a site that does not answer has none to show.
async fn links(world: &World) -> Vec<LinkReport> {
    let mut links = Vec::new();
    for site in [WEST, EAST] {
        let Ok(run) = Run::choose(Some(&world.run_dir(site.name)), None, None) else { continue };
        let Ok(mut admin) = run.admin().await else { continue };
        let Ok(answer) = admin.list_links(v1::ListLinksRequest {}).await else { continue };
        let infos = answer.into_inner().links.into_iter();
        links.extend(infos.map(|info| LinkReport { seen_from: site.name, link: info.into() }));
    }
    links
}
