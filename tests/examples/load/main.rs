//! Connections of four kinds, for rings whose proxies run elsewhere:
//!
//! - `load serve IP`: the applications, at ports 8090 (HTTP/1), 8091 (HTTP/2) and
//!   8092 (bytes).
//! - `load keep HTTP OPAQUE KINDS EACH CLIENTS`: connections to the two doors of a
//!   proxy, so many of each kind (`all`, `http`: requests only, or `http1`: no
//!   answer that lasts), and clients that keep none. Each line of standard
//!   input is a name, answered once all of them have carried bytes both ways
//!   since; `move` allows the proxy to ask for new ones from there on. The end of
//!   input ends it.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "real processes in real time")]

#[allow(dead_code, reason = "shared with the ring of a thousand connections")]
#[path = "../../tests/life/apps.rs"]
mod apps;
#[allow(dead_code, reason = "shared with the ring of a thousand connections")]
#[path = "../../tests/life/connections.rs"]
mod connections;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use connections::{Doors, KINDS, Kind, Shared};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::{Instant, sleep},
};

/// How long all of them may take.
const LAP: Duration = Duration::from_secs(60);

fn usage() -> ExitCode {
    println!("usage: load serve IP | load keep HTTP OPAQUE all|http|http1 EACH CLIENTS");
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    mesh_runtime::process::raise_descriptors();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = mesh_runtime::process::current_thread().unwrap();
    let ended = match args[..] {
        ["serve", ip] => runtime.block_on(serve(ip.parse().unwrap())),
        ["keep", http, opaque, kinds, each, clients] => {
            let doors = Doors { http: http.parse().unwrap(), opaque: opaque.parse().unwrap() };
            let kinds = match kinds {
                "all" => &KINDS[..],
                "http" => &[Kind::Http1, Kind::Http2],
                "http1" => &[Kind::Http1],
                _ => return usage(),
            };
            runtime.block_on(keep(doors, kinds, each.parse().unwrap(), clients.parse().unwrap()))
        }
        _ => return usage(),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(ip: IpAddr) -> Result<(), String> {
    apps::serve(SocketAddr::new(ip, 8090), apps::http1).await;
    apps::serve(SocketAddr::new(ip, 8091), apps::http2).await;
    apps::serve(SocketAddr::new(ip, 8092), apps::echo).await;
    std::future::pending().await
}

async fn keep(doors: Doors, kinds: &[Kind], each: usize, clients: usize) -> Result<(), String> {
    let shared = Shared::new(doors);
    for number in 0..each {
        for (at, kind) in kinds.iter().enumerate() {
            connections::keep(shared.clone(), number * kinds.len() + at, *kind).await;
        }
    }
    let requests = Arc::new(AtomicUsize::new(0));
    for _ in 0..clients {
        tokio::spawn(ask(shared.clone(), requests.clone()));
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await.map_err(|error| error.to_string())? {
        if line == "move" {
            shared.may_move.store(true, Ordering::Relaxed);
        }
        lap(&shared, each * kinds.len(), &requests).await?;
        let (moved, exchanges) = (shared.moved().len(), shared.exchanges.load(Ordering::Relaxed));
        let requests = requests.load(Ordering::Relaxed);
        println!(
            "{line}: all carry; {moved} came anew, {exchanges} exchanges, {requests} requests"
        );
    }
    failures(&shared)
}

/// One connection for each request, all the time.
async fn ask(shared: Arc<Shared>, requests: Arc<AtomicUsize>) {
    loop {
        match connections::once(shared.doors).await {
            Ok(()) => drop(requests.fetch_add(1, Ordering::Relaxed)),
            Err(error) => return shared.failed(format!("a new one: {error}")),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn lap(shared: &Shared, all: usize, requests: &AtomicUsize) -> Result<(), String> {
    shared.next_lap();
    let (asked, end) = (requests.load(Ordering::Relaxed), Instant::now() + LAP);
    loop {
        failures(shared)?;
        let (carried, asked) = (shared.carried(), requests.load(Ordering::Relaxed) - asked);
        if carried == all && asked > 0 {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("{carried} of {all} carry, {asked} requests"));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn failures(shared: &Shared) -> Result<(), String> {
    let failures = shared.failures();
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}
