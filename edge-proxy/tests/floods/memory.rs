//! Many connections, each within its own bounds, and together more than the
//! process may hold.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    attack::{counted, peak_mib},
    frames::{self, request, window},
    support::apps::{get, http1, read},
    world::World,
};

/// What the process may hold, in MiB, and by how much it may be more: what
/// comes in until that is seen, and what is under way, a connection each. All
/// of them would be four times as much.
const LIMIT: u64 = 96;
const BEYOND: u64 = 128;
/// Connections of some 50 MiB each.
const GREEDY: usize = 8;

const REFUSED: &str = "isthmus_proxy_memory_refused_total{what=";

#[tokio::test]
async fn a_process_that_holds_as_much_as_it_may_takes_in_nobody_new() {
    let world = World::limited(&format!("memory_limit_mib: {LIMIT}\n")).await;
    let mut ordinary = http1(world.outbound()).await;
    let response = ordinary.send_request(get("http://orders.shop/")).await.unwrap();
    assert_eq!(response.status(), 200);
    read(response).await;

    // Answers of a mebibyte that may be sent and are not read.
    let wide = [(frames::INITIAL_WINDOW, (1 << 31) - 1)];
    let mut asks = window(0, (1 << 31) - 1 - 65_535);
    asks.extend((0..500).flat_map(|number| request(2 * number + 1, "GET", "/big", true)));
    let mut greedy = Vec::new();
    for _ in 0..GREEDY {
        greedy.push(frames::connect(world.outbound(), &wide).await);
    }
    for stream in &mut greedy {
        ask_for_all(stream, &asks).await;
    }
    let refused = |what: &str| {
        let begins = format!("{REFUSED}\"{what}\"");
        let source = &world.source;
        async move { counted(source, &begins).await }
    };
    assert!(refused("request").await >= 1.0, "it takes in everybody");

    ordinary.ready().await.unwrap();
    let mut response = ordinary.send_request(get("http://orders.shop/")).await.unwrap();
    for _ in 0..GREEDY {
        if response.status() == 503 {
            break;
        }
        // Some were cut, and gave back what they held.
        read(response).await;
        let mut stream = frames::connect(world.outbound(), &wide).await;
        ask_for_all(&mut stream, &asks).await;
        greedy.push(stream);
        ordinary.ready().await.unwrap();
        response = ordinary.send_request(get("http://orders.shop/")).await.unwrap();
    }
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["isthmus-error"], "overloaded");
    let turned_away = timeout(Duration::from_secs(5), is_turned_away(&world)).await;
    assert!(turned_away.expect("it waits"), "it was answered");
    assert!(refused("connection").await >= 1.0);
    let peak = peak_mib(&world.source);
    assert!(peak <= LIMIT + BEYOND, "{peak} MiB, allowed are {LIMIT}");

    // What was held is given back, and it serves again.
    drop(greedy);
    let served = async {
        while !is_served(&world).await {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(20), served).await.expect("it stays short of memory");
}

/// It may be cut for so many refusals.
async fn ask_for_all(stream: &mut TcpStream, asks: &[u8]) {
    let _cut = timeout(Duration::from_secs(3), stream.write_all(asks)).await;
    sleep(Duration::from_millis(500)).await;
}

/// Whether a stranger has no answer.
async fn is_turned_away(world: &World) -> bool {
    // It may be reset before it knows that it is connected, or says anything.
    let Ok(mut stream) = TcpStream::connect(world.outbound()).await else { return true };
    let _closed = stream.write_all(b"GET http://orders.shop/ HTTP/1.1\r\n\r\n").await;
    !matches!(stream.read(&mut [0; 64]).await, Ok(1..))
}

/// Whether somebody new is answered.
async fn is_served(world: &World) -> bool {
    let Ok(mut stream) = TcpStream::connect(world.outbound()).await else { return false };
    let ask = b"GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let _closed = stream.write_all(ask).await;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.is_ok() && &head == b"HTTP/1.1 200"
}
