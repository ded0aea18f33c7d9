//! What happens while requests run: the nearer endpoint is stopped, comes
//! back, and is killed. Requests must move each time, and none may fail.

use std::time::Duration;

use rustix::process::Signal;
use serde::Serialize;

use super::{
    child::Child,
    load::{Flow, Meters},
    stage::Stage,
    world::{EAST, VM2, WEST, World},
};
use crate::failure::Failure;

/// The flow that has an endpoint in both sites.
pub(crate) const FLOW: &str = "failover";
/// Shorter runs have no time for it.
pub(crate) const SHORTEST: Duration = Duration::from_secs(8);
/// One round where no duration is given.
const ROUND: Duration = Duration::from_secs(24);

/// What is done to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// SIGTERM to application, proxy and agent.
    Terminate,
    /// All three again, on the same state.
    Restart,
    /// SIGKILL to all three.
    Kill,
}

impl Action {
    /// Where requests go afterwards.
    fn destination(self) -> &'static str {
        match self {
            Action::Terminate | Action::Kill => EAST.name,
            Action::Restart => WEST.name,
        }
    }
}

/// One thing that was done, and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Phase {
    /// Seconds since the first counted request.
    pub(crate) at_s: f64,
    pub(crate) action: Action,
    /// For people.
    pub(crate) what: String,
    /// Which site answers afterwards.
    pub(crate) moved_to: &'static str,
    /// Until the first answer from there; unset if none came.
    pub(crate) moved_after_ms: Option<u64>,
    /// Requests of the flow that failed from here to the next phase.
    pub(crate) failed: u64,
    #[serde(skip)]
    began: Duration,
    #[serde(skip)]
    failed_before: u64,
}

/// The plan and how far it got.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// When, and what.
    plan: Vec<(Duration, Action)>,
    /// After which the plan begins again; `None` if it does not.
    round: Option<Duration>,
    next: usize,
    flow: usize,
    /// Ending, on their own.
    leaving: Vec<Child>,
    pub(crate) phases: Vec<Phase>,
}

impl Scenario {
    /// The plan for a run of this length.
    pub(crate) fn new(duration: Option<Duration>, flows: &[Flow]) -> Self {
        let length = duration.unwrap_or(ROUND);
        let mut plan = vec![
            (length.mul_f64(0.20), Action::Terminate),
            (length.mul_f64(0.40), Action::Restart),
            (length.mul_f64(0.70), Action::Kill),
        ];
        let round = duration.is_none().then_some(ROUND);
        if round.is_some() {
            plan.push((length.mul_f64(0.90), Action::Restart));
        }
        if length < SHORTEST {
            plan.clear();
        }
        let flow = flows.iter().position(|flow| flow.name == FLOW).unwrap_or_default();
        Self { plan, round, next: 0, flow, leaving: Vec::new(), phases: Vec::new() }
    }

    /// The last round of phases.
    pub(crate) fn recent(&self) -> &[Phase] {
        let shown = self.plan.len().min(self.phases.len());
        &self.phases[self.phases.len() - shown..]
    }

    /// How many phases a finite run must show.
    pub(crate) fn planned(&self) -> usize {
        self.plan.len()
    }

    /// Does what is due at `now`, and notes what has come of it so far.
    pub(crate) fn step(
        &mut self,
        now: Duration,
        stage: &mut Stage,
        world: &World,
        meters: &Meters,
    ) -> Result<Option<String>, Failure> {
        self.observe(now, meters);
        self.leaving.retain_mut(|child| child.ended().is_none());
        let Some(&(at, action)) = self.plan.get(self.next % self.plan.len().max(1)) else {
            return Ok(None);
        };
        let rounds = u32::try_from(self.next / self.plan.len()).unwrap_or(u32::MAX);
        let due = match self.round {
            Some(round) => at + round * rounds,
            None if rounds > 0 => return Ok(None),
            None => at,
        };
        if now < due {
            return Ok(None);
        }
        self.next += 1;
        let what = self.act(action, stage, world)?;
        let failed_before = failures(meters, self.flow);
        self.phases.push(Phase {
            at_s: now.as_secs_f64(),
            action,
            what: what.clone(),
            moved_to: action.destination(),
            moved_after_ms: None,
            failed: 0,
            began: now,
            failed_before,
        });
        Ok(Some(what))
    }

    fn act(&mut self, action: Action, stage: &mut Stage, world: &World) -> Result<String, Failure> {
        let signal = match action {
            Action::Terminate => Signal::TERM,
            Action::Kill => Signal::KILL,
            Action::Restart => {
                // Whoever still drains makes room first.
                for child in self.leaving.drain(..) {
                    child.signal(Signal::KILL);
                }
                for spec in world.machine(VM2) {
                    stage.start(&spec)?;
                }
                return Ok("vm2 starts again: application, proxy, agent".to_owned());
            }
        };
        let children = stage.release(&format!("{}-", VM2.name));
        for child in &children {
            child.signal(signal);
        }
        self.leaving.extend(children);
        let how = if signal == Signal::TERM { "SIGTERM" } else { "kill -9" };
        Ok(format!("vm2: {how} to application, proxy and agent"))
    }

    fn observe(&mut self, now: Duration, meters: &Meters) {
        let failed = failures(meters, self.flow);
        let Some(phase) = self.phases.last_mut() else { return };
        phase.failed = failed - phase.failed_before;
        if phase.moved_after_ms.is_none() {
            let meters = meters.borrow();
            let answered = meters[self.flow].last_answer.get(phase.moved_to);
            // Before a restart nothing came from there; before a stop it may
            // only have come in the very moment.
            if let Some(after) = answered.filter(|at| **at > phase.began) {
                let took = after.saturating_sub(phase.began).min(now);
                phase.moved_after_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
            }
        }
    }

    /// Ends what still ends.
    pub(crate) async fn finish(&mut self) {
        for child in &mut self.leaving {
            child.end_within(Duration::ZERO).await;
        }
    }
}

fn failures(meters: &Meters, flow: usize) -> u64 {
    let meters = meters.borrow();
    meters[flow].requests - meters[flow].successes
}
