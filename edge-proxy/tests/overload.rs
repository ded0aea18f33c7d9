//! A worker that has more to do than it can: what waits has its turn or is
//! refused, and nothing is forgotten.

#![allow(clippy::unwrap_used, reason = "tests: a panic is the message")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http::{Response, StatusCode};
use hyper::client::conn::http2::SendRequest;
use support::{
    Pair, Targets,
    apps::{AnyBody, App, full, get, http1, http2, read},
};

/// Other things that a core is busy with, each for a moment: the run queue
/// takes longer to go round than a worker may be late.
const BUSY: usize = 100;
const MOMENT: Duration = Duration::from_millis(1);
/// Streams that each connection asks for at once.
const STREAMS: usize = 400;
/// Nothing may hang; far beyond what anything may wait.
const HANGS: Duration = Duration::from_secs(100);

fn keep_busy(busy: &Arc<AtomicBool>) {
    for _ in 0..BUSY {
        let busy = busy.clone();
        tokio::spawn(async move {
            while busy.load(Ordering::Relaxed) {
                std::thread::sleep(MOMENT);
                tokio::task::yield_now().await;
            }
        });
    }
}

/// Whether it was answered; if not, it was refused as it should be.
async fn is_good(mut client: SendRequest<AnyBody>) -> bool {
    let asked = client.send_request(get("http://orders.shop/x"));
    let response = tokio::time::timeout(HANGS, asked).await.expect("it hangs").unwrap();
    if response.status() == StatusCode::OK {
        assert_eq!(read(response).await, "hello");
        return true;
    }
    let (status, reason) = (response.status(), response.headers()["isthmus-error"].clone());
    let text = read(response).await;
    assert_eq!(
        (status, reason.as_bytes()),
        (StatusCode::SERVICE_UNAVAILABLE, b"overloaded".as_slice()),
        "{text:?}"
    );
    false
}

#[tokio::test]
async fn what_waits_has_its_turn_or_is_refused_and_connections_go_on() {
    let app = App::start(|_| async { Response::new(full("hello")) }).await;
    let pair = Pair::start(Targets::all(app.addr)).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(http2(pair.source.http()).await);
    }
    // Warm: the gate is not what is slow.
    assert!(is_good(clients[0].clone()).await);
    let busy = Arc::new(AtomicBool::new(true));
    keep_busy(&busy);
    // It is noticed while there are requests, which wait from then on.
    assert!(is_good(clients[0].clone()).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let crowd = clients.iter().flat_map(|client| (0..STREAMS).map(|_| is_good(client.clone())));
    // Whoever asks for little has it beside those who ask for much.
    let modest = async {
        let mut client = http1(pair.source.http()).await;
        for _ in 0..5 {
            let response = client.send_request(get("http://orders.shop/x")).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(read(response).await, "hello");
        }
    };
    let (crowd, ()) = futures_util::join!(join_all(crowd), modest);
    busy.store(false, Ordering::Relaxed);
    let good = crowd.iter().filter(|good| **good).count();
    assert!((1..crowd.len()).contains(&good), "{good} of {}", crowd.len());
    for one in crowd.chunks(STREAMS) {
        assert!(one.contains(&true), "a connection starved");
    }
    let metrics = pair.source.metrics();
    let refused =
        "isthmus_proxy_request_total{direction=\"outbound\",service=\"orders.shop\",port=\"http\"";
    let told = |line: &&str| line.starts_with(refused) && line.contains("reason=\"overloaded\"");
    assert!(metrics.lines().any(|line| told(&line)), "{metrics}");
    // Everything is as before.
    for client in clients {
        let again = join_all((0..20).map(|_| is_good(client.clone()))).await;
        assert!(again.iter().all(|good| *good));
    }
}
