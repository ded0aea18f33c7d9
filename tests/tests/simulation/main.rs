//! Two sites in one process and in virtual time: the real code over a
//! simulated network. A failure prints its seed; run it again with
//! `ISTHMUS_SIM_SEED=<seed>`, and `ISTHMUS_LOG=info` to read what it logged.

mod control_plane;
mod tunnels;
mod wide_area;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use isthmus_tests::{
    apps::request,
    federated::{Failure, door},
    sim::SimNet,
};
use mesh_tunnel::Net;
use tokio::time::sleep;

pub(crate) fn net() -> Arc<dyn Net> {
    Arc::new(SimNet::default())
}

pub(crate) fn seeds() -> Vec<u64> {
    match std::env::var("ISTHMUS_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => vec![1, 2, 3],
    }
}

/// Asks until the answer is 200 or `within` has passed.
pub(crate) async fn until_ok(host: &str, url: &str, within: Duration) -> Result<String, Failure> {
    let start = tokio::time::Instant::now();
    loop {
        let problem = match request(&net(), door(host), "GET", url, "").await {
            Ok(answer) if answer.status == 200 => return Ok(answer.body),
            Ok(answer) => format!("{answer:?}"),
            Err(problem) => problem,
        };
        if start.elapsed() > within {
            return Err(format!("{url} from {host}: {problem}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What shall happen to a host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step {
    /// It is off.
    Crash(&'static str),
    /// It starts (again).
    Start(&'static str),
}

/// The test's client says what shall happen next; [`play`] does it between two
/// steps of the simulation.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<VecDeque<Step>>>);

impl Script {
    fn steps(&self) -> MutexGuard<'_, VecDeque<Step>> {
        self.0.lock().expect("no panic")
    }

    pub(crate) fn ask(&self, step: Step) {
        self.steps().push_back(step);
    }
}

/// Runs a simulation whose client asks for steps.
pub(crate) fn play(mut sim: turmoil::Sim<'_>, script: &Script, seed: u64) {
    while !sim.step().unwrap_or_else(|error| panic!("seed {seed}: {error}")) {
        while let Some(step) = script.steps().pop_front() {
            match step {
                Step::Crash(host) => sim.crash(host),
                Step::Start(host) => sim.bounce(host),
            }
        }
    }
}
