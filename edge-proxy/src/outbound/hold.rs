//! Requests that wait for who was there a moment ago. While the only proxy of a
//! service is started again, nobody is; what was not sent can be sent later.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mesh_core::{Endpoint, EndpointId, Reason, ServiceName, SiteName, Snapshot};
use mesh_runtime::clock;
use rustc_hash::FxHashMap;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::dispatch::Dispatch;
use crate::{refusal::Refusal, worker::Worker};

/// How long after an endpoint has gone it is waited for, and how long a request
/// waits in all.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Requests and connections of one worker that wait; more are refused.
pub const MAX_WAITING: usize = 4096;
/// What of a request's time may pass: who has called hears why nobody was there.
const SHARE: f64 = 0.9;

/// Endpoints that this process has reached, and since when it does not any
/// more. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Reached(Arc<Mutex<Endpoints>>);

type Endpoints = FxHashMap<(ServiceName, SiteName, EndpointId), Option<Instant>>;

impl Reached {
    fn lock(&self) -> MutexGuard<'_, Endpoints> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is there.
    pub fn came_up(&self, endpoint: &Endpoint) {
        self.lock().insert(key(endpoint), None);
    }

    /// It is not (any more).
    pub fn has_gone(&self, endpoint: &Endpoint) {
        if let Some(gone) = self.lock().get_mut(&key(endpoint)) {
            gone.get_or_insert_with(clock::monotonic);
        }
    }

    /// When the last one of them has gone that was there.
    fn last_gone<'a>(&self, of: impl Iterator<Item = &'a Arc<Endpoint>>) -> Option<Instant> {
        let reached = self.lock();
        of.filter_map(|endpoint| *reached.get(&key(endpoint))?).max()
    }

    /// Forgets endpoints that are not known any more.
    pub fn sweep(&self, snapshot: &Snapshot) {
        self.lock().retain(|(service, site, id), _| {
            snapshot.endpoint(service.as_str(), site, id.as_str()).is_some()
        });
    }
}

fn key(of: &Endpoint) -> (ServiceName, SiteName, EndpointId) {
    (of.service.clone(), of.site.clone(), of.id.clone())
}

/// Places of those who wait, of one worker.
#[derive(Debug)]
pub struct Waiting(Semaphore);

impl Default for Waiting {
    fn default() -> Self {
        Self(Semaphore::new(MAX_WAITING))
    }
}

/// Waits until somebody is there again whom `dispatch` may choose, which then
/// begins anew. At most [`PATIENCE`], and for less than what is left until
/// `deadline`.
///
/// # Errors
///
/// Too many wait; or, without a refusal, nobody comes, or nobody was there.
pub async fn wait(
    worker: &Arc<Worker>,
    dispatch: &mut Dispatch,
    deadline: Option<Instant>,
) -> Result<(), Option<Refusal>> {
    let now = clock::monotonic();
    let gone = worker.shared.reached.last_gone(dispatch.endpoints()).ok_or(None)?;
    let until = (gone + PATIENCE).min(dispatch.waits_until(now + PATIENCE));
    let until = match deadline {
        None => until,
        Some(deadline) => until.min(now + deadline.saturating_duration_since(now).mul_f64(SHARE)),
    };
    if until <= now {
        return Err(None);
    }
    let Ok(_place) = worker.waiting.0.try_acquire() else {
        worker.shared.metrics.held("refused");
        let text = format!(
            "service {}: nobody is there, and {MAX_WAITING} requests wait",
            dispatch.service
        );
        return Err(Some(Refusal::new(Reason::Overloaded, text)));
    };
    let back = timeout_at(until, somebody(worker, dispatch)).await.is_ok();
    worker.shared.metrics.held(if back { "resumed" } else { "late" });
    if back { Ok(()) } else { Err(None) }
}

/// Woken by what could bring somebody: a snapshot, or whoever tries the
/// endpoints meanwhile (`super::probation`).
async fn somebody(worker: &Arc<Worker>, dispatch: &mut Dispatch) {
    loop {
        let mut snapshot = worker.shared.snapshot.changed();
        let mut readmitted = dispatch.renew(worker);
        if !dispatch.is_deserted() {
            return;
        }
        // Neither sender ends before this worker does.
        tokio::select! {
            _ = snapshot.changed() => {}
            _ = readmitted.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::TrustBundles;
    use mesh_tunnel::{Credentials, RealNet, Trust};

    use super::*;
    use crate::{
        app::{App, Shared},
        config::{Config, Role},
        files::snapshot,
        snapshot_cell::Complete,
    };

    /// `orders.shop` with these endpoints.
    fn site(endpoints: &[&str]) -> Arc<Snapshot> {
        let endpoint = |id: &&str| {
            format!(
                "{{ id: {id}, port: http, target: '127.0.0.1:1', proxy: '127.0.0.1:2', identity: \
                 spiffe://west.example/ns/shop/sa/orders }}"
            )
        };
        let endpoints: Vec<String> = endpoints.iter().map(endpoint).collect();
        let text = format!(
            "site: west\ntrust_domain: west.example\nservices:\n  - name: orders.shop\n    ports: \
             [{{ name: http, port: 80 }}]\n    endpoints: [{}]\n",
            endpoints.join(", ")
        );
        Arc::new(snapshot::parse(&text, "site.yaml", &TrustBundles::new()).unwrap())
    }

    fn worker(endpoints: &[&str]) -> Arc<Worker> {
        let credentials = Credentials::new(None, Trust::default());
        let config = Config::given(Role::Node);
        let shared = Shared::new(config, Arc::new(RealNet), credentials).unwrap();
        shared.snapshot.store(site(endpoints), Complete::All);
        Worker::new(&App::new(shared), 0)
    }

    async fn dispatch(worker: &Arc<Worker>) -> Dispatch {
        let (service, port) = ("orders.shop".parse().unwrap(), "http".parse().unwrap());
        Dispatch::alone(worker, &service, &port).await.unwrap()
    }

    /// All that are there go.
    fn go(worker: &Worker, dispatch: &Dispatch) {
        for endpoint in dispatch.endpoints() {
            let view = worker.view(&dispatch.snapshot);
            assert!(view.balanced(&endpoint.service, &endpoint.port).hold(endpoint));
            worker.shared.reached.has_gone(endpoint);
        }
    }

    fn come(worker: &Worker, dispatch: &Dispatch) {
        dispatch.endpoints().for_each(|endpoint| worker.shared.reached.came_up(endpoint));
    }

    async fn seconds<T>(what: impl Future<Output = T>) -> (T, f64) {
        let began = clock::monotonic();
        let done = what.await;
        (done, (began.elapsed().as_secs_f64() * 10.0).round() / 10.0)
    }

    fn failed(waited: Result<(), Option<Refusal>>) -> Option<Reason> {
        waited.unwrap_err().map(|refusal| refusal.reason)
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_there_is_waited_for_and_not_for_long() {
        let worker = worker(&["a", "b"]);
        let mut first = dispatch(&worker).await;
        go(&worker, &first);
        let (never, took) = seconds(wait(&worker, &mut first, None)).await;
        assert_eq!((failed(never), took), (None, 0.0), "nobody was ever there");
        come(&worker, &first);
        go_again(&worker, &first);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let deadline = clock::monotonic() + Duration::from_secs(1);
        let mut hurried = dispatch(&worker).await;
        let (late, took) = seconds(wait(&worker, &mut hurried, Some(deadline))).await;
        assert_eq!((failed(late), took), (None, 0.9), "its caller hears of it in time");
        let (late, took) = seconds(wait(&worker, &mut first, None)).await;
        assert_eq!((failed(late), took), (None, 2.1), "5 s after they have gone");
        let (late, took) = seconds(wait(&worker, &mut hurried, None)).await;
        assert_eq!((failed(late), took), (None, 0.0));
    }

    /// The balancer knows it already.
    fn go_again(worker: &Worker, dispatch: &Dispatch) {
        dispatch.endpoints().for_each(|endpoint| worker.shared.reached.has_gone(endpoint));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_five_seconds_in_all() {
        let worker = worker(&["a"]);
        let mut dispatch = dispatch(&worker).await;
        go(&worker, &dispatch);
        for (wanted, back) in [(3.0, true), (2.0, false), (0.0, false)] {
            come(&worker, &dispatch);
            go_again(&worker, &dispatch);
            let endpoint = dispatch.endpoints().next().unwrap().clone();
            let balanced =
                worker.view(&dispatch.snapshot).balanced(&endpoint.service, &endpoint.port);
            let returning = async {
                tokio::time::sleep(Duration::from_secs(3)).await;
                if back {
                    balanced.readmit(&endpoint);
                }
                std::future::pending().await
            };
            let (waited, took) = seconds(async {
                tokio::select! {
                    waited = wait(&worker, &mut dispatch, None) => waited,
                    never = returning => never,
                }
            })
            .await;
            assert_eq!((waited.is_ok(), took), (back, wanted));
            balanced.hold(&endpoint);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_endpoint_does_as_well() {
        let worker = worker(&["a"]);
        let mut dispatch = dispatch(&worker).await;
        come(&worker, &dispatch);
        go(&worker, &dispatch);
        let cell = worker.shared.snapshot.clone();
        let published = async {
            for endpoints in [&["a"][..], &["a"], &["a", "b"]] {
                tokio::time::sleep(Duration::from_secs(1)).await;
                cell.store(site(endpoints), Complete::All);
            }
            std::future::pending().await
        };
        let (waited, took) = seconds(async {
            tokio::select! {
                waited = wait(&worker, &mut dispatch, None) => waited,
                never = published => never,
            }
        })
        .await;
        assert_eq!((waited.is_ok(), took), (true, 3.0));
        assert_eq!(dispatch.next(false).unwrap().0.id.as_str(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_wait_and_no_more() {
        let worker = worker(&["a"]);
        let mut dispatch = dispatch(&worker).await;
        come(&worker, &dispatch);
        go(&worker, &dispatch);
        let all = worker.waiting.0.try_acquire_many(MAX_WAITING as u32).unwrap();
        let (refused, took) = seconds(wait(&worker, &mut dispatch, None)).await;
        assert_eq!((failed(refused), took), (Some(Reason::Overloaded), 0.0));
        drop(all);
        let (late, took) = seconds(wait(&worker, &mut dispatch, None)).await;
        assert_eq!((failed(late), took), (None, 5.0));
        assert_eq!(worker.waiting.0.available_permits(), MAX_WAITING);
        worker.shared.reached.sweep(&site(&[]));
        assert!(worker.shared.reached.lock().is_empty());
    }
}
