//! The load: every flow goes on at its own rate until told to stop.

use std::{cell::RefCell, rc::Rc, time::Duration};

use mesh_runtime::drain::Drain;
use tokio::{task::JoinSet, time::Instant};

use super::{
    client::{Call, Client},
    meter::Meter,
    world::Machine,
};

/// One kind of request, from one caller to one service.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    /// Stable, for programs.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    /// Which machine calls.
    pub(crate) caller: Machine,
    /// `<name>.<namespace>`.
    pub(crate) service: &'static str,
    /// Which port of it.
    pub(crate) port: &'static str,
    pub(crate) call: Call,
    /// Requests per second.
    pub(crate) rate: u32,
}

/// Callers per flow: one slow request does not stop the others.
const CALLERS: u32 = 2;

/// What is counted, shared by the callers and by whoever shows it. All live on
/// one thread.
pub(crate) type Meters = Rc<RefCell<Vec<Meter>>>;

/// Runs until `drain` starts, then lets every open request end.
pub(crate) async fn run(flows: &[Flow], meters: &Meters, started: Instant, drain: &Drain) {
    let mut callers = JoinSet::new();
    for (index, flow) in flows.iter().enumerate() {
        for caller in 0..CALLERS {
            let meters = meters.clone();
            let drain = drain.clone();
            let client = Client::new(flow.call.clone());
            let period = Duration::from_secs(1) * CALLERS / flow.rate.max(1);
            let offset = period * caller / CALLERS;
            callers.spawn_local(async move {
                tokio::time::sleep(offset).await;
                call(client, period, started, &drain, |now, latency, result| {
                    meters.borrow_mut()[index].record(now, latency, result);
                })
                .await;
            });
        }
    }
    while callers.join_next().await.is_some() {}
}

async fn call(
    mut client: Client,
    period: Duration,
    started: Instant,
    drain: &Drain,
    record: impl Fn(Duration, Duration, Result<super::meter::Outcome, String>),
) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = drain.draining() => return,
            _ = ticks.tick() => {}
        }
        let begin = Instant::now();
        let result = client.request().await;
        record(started.elapsed(), begin.elapsed(), result);
    }
}

/// Repeats each flow's request until it succeeds once. What is still failing
/// at the deadline is returned with its last error.
pub(crate) async fn until_ready(flows: &[Flow], deadline: Duration) -> Vec<(&'static str, String)> {
    const PAUSE: Duration = Duration::from_millis(50);
    let end = Instant::now() + deadline;
    let mut waiting = JoinSet::new();
    for flow in flows {
        let mut client = Client::new(flow.call.clone());
        let name = flow.name;
        waiting.spawn_local(async move {
            loop {
                match client.request().await {
                    Ok(_) => return None,
                    Err(error) if Instant::now() >= end => return Some((name, error)),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
        });
    }
    let mut failing = Vec::new();
    while let Some(result) = waiting.join_next().await {
        match result {
            Ok(Some(failed)) => failing.push(failed),
            Ok(None) => {}
            Err(error) => failing.push(("load", error.to_string())),
        }
    }
    failing
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::{net::TcpListener, task::LocalSet};

    use super::*;
    use crate::demo::apps::{self, Answer, Kind};

    async fn app(kind: Kind, drain: &Drain) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let me = Answer { app: "payments".into(), site: "east".into(), caller: String::new() };
        let drain = drain.clone();
        tokio::spawn(async move { apps::accept(&listener, kind, &me, &drain).await });
        addr
    }

    fn flow(name: &'static str, call: Call) -> Flow {
        Flow {
            name,
            title: "",
            caller: crate::demo::world::VM1,
            service: "payments.prod",
            port: "x",
            call,
            rate: 200,
        }
    }

    #[tokio::test]
    async fn every_kind_of_request_reaches_its_application() {
        let drain = Drain::new();
        let service = || "payments.prod".to_owned();
        let http = app(Kind::Http, &drain).await;
        let grpc = app(Kind::Grpc, &drain).await;
        let tcp = app(Kind::Echo, &drain).await;
        let flows = [
            flow("http", Call::Http { proxy: http, service: service() }),
            flow("grpc", Call::Grpc { proxy: grpc, service: service(), port: 50051 }),
            flow("tcp", Call::Tcp { listener: tcp }),
        ];
        let meters: Meters = Rc::new(RefCell::new(vec![Meter::default(); flows.len()]));
        let stop = Drain::new();
        let work = async {
            let failing = until_ready(&flows, Duration::from_secs(5)).await;
            assert!(failing.is_empty(), "{failing:?}");
            let enough = async {
                while meters.borrow().iter().any(|meter| meter.requests < 5) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                stop.start();
            };
            tokio::join!(run(&flows, &meters, Instant::now(), &stop), enough);
        };
        LocalSet::new().run_until(work).await;
        for (flow, meter) in flows.iter().zip(meters.borrow().iter()) {
            assert!(meter.errors.is_empty(), "{}: {:?}", flow.name, meter.errors);
            assert_eq!(meter.requests, meter.successes);
            let answered = meter.sites.get("east").copied().unwrap_or_default();
            assert_eq!(answered, if flow.name == "tcp" { 0 } else { meter.requests });
        }
    }

    #[tokio::test]
    async fn what_does_not_answer_is_named_with_its_error() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        drop(listener);
        let flows = [flow("http", Call::Http { proxy: addr, service: "a.b".into() })];
        let failing = LocalSet::new().run_until(until_ready(&flows, Duration::ZERO)).await;
        assert_eq!(failing.len(), 1);
        assert!(failing[0].1.contains(&addr.to_string()), "{failing:?}");
    }
}
