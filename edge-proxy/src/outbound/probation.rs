//! An endpoint that could not be reached is tried again by the proxy itself,
//! not by a request: while it is away no request waits for it, and once it is
//! back it takes traffic within a second or two.

use std::{sync::Arc, time::Duration};

use mesh_core::{Endpoint, Health, Snapshot, path::is_reachable};
use mesh_runtime::clock;

use super::{hold, pool};
use crate::{inner::mux::Spoken, worker::Worker};

/// Before the first trial.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Between two trials, at most; no longer than the first one while requests may
/// wait ([`hold::PATIENCE`]).
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Leaves the endpoint alone until a session to it comes up, it is gone from
/// the snapshot, or this process ends. One probation per endpoint and worker.
pub fn start(worker: &Arc<Worker>, endpoint: &Arc<Endpoint>) {
    let Some(snapshot) = worker.shared.snapshot.load() else { return };
    let balanced = worker.view(&snapshot).balanced(&endpoint.service, &endpoint.port);
    if !balanced.hold(endpoint) {
        return;
    }
    worker.shared.reached.has_gone(endpoint);
    let (worker, endpoint) = (worker.clone(), endpoint.clone());
    worker.shared.drain.clone().spawn_beside(async move {
        tokio::select! {
            () = until_over(&worker, &endpoint) => balanced.readmit(&endpoint),
            // Nobody tries it any more, and no request may begin anew.
            () = worker.shared.drain.refusing() => {}
        }
    });
}

async fn until_over(worker: &Arc<Worker>, endpoint: &Endpoint) {
    let (began, mut pause) = (clock::monotonic(), FIRST_PAUSE);
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = until_led_to(worker, endpoint) => {}
        }
        let Some(snapshot) = worker.shared.snapshot.load() else { return };
        let Some(now) = find(&snapshot, endpoint) else { return };
        let there = match now.identity {
            _ if now.health == Health::Unhealthy => false,
            Some(_) => pool::place(worker, &snapshot, now).await.is_ok(),
            None => worker.apps.connect(now.target, Spoken::Tcp).await.is_ok(),
        };
        if there {
            return worker.shared.reached.came_up(endpoint);
        }
        if began.elapsed() >= hold::PATIENCE {
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Something leads there again.
async fn until_led_to(worker: &Worker, endpoint: &Endpoint) {
    let mut changed = worker.shared.snapshot.changed();
    let is_reachable = || {
        let snapshot = worker.shared.snapshot.load();
        snapshot.is_some_and(|now| find(&now, endpoint).is_some_and(|one| is_reachable(&now, one)))
    };
    if is_reachable() {
        return std::future::pending().await;
    }
    while !is_reachable() && changed.changed().await.is_ok() {}
}

fn find<'s>(snapshot: &'s Snapshot, endpoint: &Endpoint) -> Option<&'s Arc<Endpoint>> {
    snapshot.endpoint(endpoint.service.as_str(), &endpoint.site, endpoint.id.as_str())
}
