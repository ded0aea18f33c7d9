//! An endpoint that could not be reached is tried again by the proxy itself,
//! not by a request: while it is away no request waits for it, and once it is
//! back it takes traffic within a second or two.

use std::{sync::Arc, time::Duration};

use mesh_core::Endpoint;

use super::pool;
use crate::worker::Worker;

/// Before the first trial.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between two trials, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Leaves the endpoint alone until a session to it comes up, it is gone from
/// the snapshot, or this process drains. One probation per endpoint and worker.
pub fn start(worker: &Arc<Worker>, endpoint: &Arc<Endpoint>) {
    let Some(snapshot) = worker.shared.snapshot.load() else { return };
    let balanced = worker.view(&snapshot).balanced(&endpoint.service, &endpoint.port);
    if !balanced.hold(endpoint) {
        return;
    }
    let (worker, endpoint) = (worker.clone(), endpoint.clone());
    worker.shared.drain.clone().spawn_beside(async move {
        tokio::select! {
            () = until_over(&worker, &endpoint) => {}
            () = worker.shared.drain.draining() => {}
        }
        balanced.readmit(&endpoint);
    });
}

async fn until_over(worker: &Arc<Worker>, endpoint: &Endpoint) {
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::time::sleep(pause).await;
        let Some(snapshot) = worker.shared.snapshot.load() else { return };
        let (service, id) = (endpoint.service.as_str(), endpoint.id.as_str());
        let Some(now) = snapshot.endpoint(service, &endpoint.site, id) else { return };
        let there = match now.identity {
            _ if !now.health.is_usable() => false,
            Some(_) => pool::place(worker, &snapshot, now).await.is_ok(),
            None => worker.apps.connect(now.target).await.is_ok(),
        };
        if there {
            return;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
