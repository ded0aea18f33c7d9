//! Two sites in one process and in virtual time: the real code over a
//! simulated network. A failure prints its seed; run it again with
//! `ISTHMUS_SIM_SEED=<seed>`, and `ISTHMUS_LOG=info` to read what it logged.

mod control_plane;
mod tunnels;

use std::{
    sync::{Arc, Mutex},
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
    Arc::new(SimNet)
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

/// The test's client says what shall happen next; the test does it between
/// two steps of the simulation.
#[derive(Clone, Default)]
pub(crate) struct Script(Arc<Mutex<Option<&'static str>>>);

impl Script {
    pub(crate) fn ask(&self, what: &'static str) {
        *self.0.lock().expect("no panic") = Some(what);
    }

    pub(crate) fn asked(&self) -> Option<&'static str> {
        self.0.lock().expect("no panic").take()
    }
}
