//! HTTP/1 at the door for applications.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::{
    attack::{Attack, Pace},
    world::{World, is_cut},
};

/// What one connection may send at most before it is cut.
const ENOUGH: usize = 4 << 20;

/// Opens connections, one after the other on each of four tasks, and sends
/// `begin`, then `piece` without end. Each must be cut.
async fn endless(world: &World, pace: Arc<Pace>, begin: &'static [u8], piece: &'static [u8]) {
    let door = world.outbound();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let pace = pace.clone();
        tasks.spawn(async move {
            while pace.goes_on() {
                let mut stream = TcpStream::connect(door).await.unwrap();
                stream.write_all(begin).await.unwrap();
                let cut = is_cut(&mut stream, piece, ENOUGH, Duration::from_secs(5)).await;
                assert!(cut, "{ENOUGH} bytes were taken");
                pace.unit();
            }
        });
    }
    tasks.join_all().await;
}

const BAD: &str = "isthmus_proxy_request_total{direction=\"outbound\",service=\"\"";
const BAD_OF_SERVICE: &str =
    "isthmus_proxy_request_total{direction=\"outbound\",service=\"orders.shop\"";

#[tokio::test]
async fn a_header_without_end_is_cut() {
    let world = World::start().await;
    let attack = Attack {
        name: "endless header",
        unit: "connections",
        units: 200,
        memory: 8,
        counted: Some(BAD),
        saturated: None,
    };
    let begin = b"GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\na: ";
    world.at_source(attack, |pace| endless(&world, pace, begin, &[b'x'; 4096])).await;
}

#[tokio::test]
async fn headers_without_end_are_cut() {
    let world = World::start().await;
    let attack = Attack {
        name: "endless headers",
        unit: "connections",
        units: 200,
        memory: 8,
        counted: Some(BAD),
        saturated: None,
    };
    let begin = b"GET http://orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\n";
    world.at_source(attack, |pace| endless(&world, pace, begin, b"a: b\r\n")).await;
}

#[tokio::test]
async fn trailers_without_end_are_cut() {
    let world = World::start().await;
    let attack = Attack {
        name: "endless trailers",
        unit: "connections",
        units: 200,
        memory: 8,
        counted: Some(BAD_OF_SERVICE),
        saturated: None,
    };
    let begin = b"POST http://orders.shop/all HTTP/1.1\r\nhost: orders.shop\r\n\
                  transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n";
    world.at_source(attack, |pace| endless(&world, pace, begin, b"a: b\r\n")).await;
}

#[tokio::test]
async fn a_chunk_extension_without_end_is_cut() {
    let world = World::start().await;
    let attack = Attack {
        name: "endless chunk extension",
        unit: "connections",
        units: 200,
        memory: 8,
        counted: Some(BAD_OF_SERVICE),
        saturated: None,
    };
    let begin = b"POST http://orders.shop/all HTTP/1.1\r\nhost: orders.shop\r\n\
                  transfer-encoding: chunked\r\n\r\n1;a=";
    world.at_source(attack, |pace| endless(&world, pace, begin, &[b'x'; 4096])).await;
}

/// Each chunk is small enough; their extensions together are not.
#[tokio::test]
async fn chunks_that_are_mostly_extension_are_cut() {
    let world = World::start().await;
    let attack = Attack {
        name: "extensions of many chunks",
        unit: "connections",
        units: 50,
        memory: 8,
        counted: Some(BAD_OF_SERVICE),
        saturated: None,
    };
    let begin = b"POST http://orders.shop/all HTTP/1.1\r\nhost: orders.shop\r\n\
                  transfer-encoding: chunked\r\n\r\n";
    let mut chunk = b"1;a=".to_vec();
    chunk.extend([b'x'; 3000]);
    chunk.extend(b"\r\na\r\n");
    let chunk: &'static [u8] = chunk.leak();
    world.at_source(attack, |pace| endless(&world, pace, begin, chunk)).await;
}

/// Slowloris: heads that never end. What each holds is bounded; they are cut
/// after 75 s (`outbound/front/http1/tests.rs`), which the short form does not
/// wait for.
#[tokio::test]
async fn many_who_dawdle_hold_little() {
    let world = World::start().await;
    let attack = Attack {
        name: "slowloris, 2000 connections",
        unit: "lines",
        units: 10_000,
        memory: 24,
        counted: Some("tcp_open_total"),
        saturated: None,
    };
    let door = world.outbound();
    let run = async |pace: Arc<Pace>| {
        let mut held = Vec::new();
        for _ in 0..2000 {
            let mut stream = TcpStream::connect(door).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\n").await.unwrap();
            held.push(stream);
        }
        while pace.goes_on() {
            for stream in &mut held {
                // One that was cut is cut.
                let _cut = stream.write_all(b"a: b\r\n").await;
                pace.unit();
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    world.at_source(attack, run).await;
}

/// Asks, and is gone before anything can be answered.
#[tokio::test]
async fn a_storm_of_resets_leaves_nothing_behind() {
    let world = World::start().await;
    let attack = Attack {
        name: "RST storm",
        unit: "connections",
        units: 3000,
        memory: 24,
        counted: Some("tcp_close_total"),
        saturated: None,
    };
    let door = world.outbound();
    let run = async |pace: Arc<Pace>| {
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let pace = pace.clone();
            tasks.spawn(async move {
                while pace.goes_on() {
                    let socket = TcpSocket::new_v4().unwrap();
                    socket.set_zero_linger().unwrap();
                    let mut stream = socket.connect(door).await.unwrap();
                    let request =
                        b"GET http://orders.shop/big HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
                    stream.write_all(request).await.unwrap();
                    if pace.done().is_multiple_of(2) {
                        // In the midst of an answer.
                        let _some = stream.read(&mut [0; 1024]).await;
                    }
                    drop(stream);
                    pace.unit();
                }
            });
        }
        tasks.join_all().await;
    };
    world.at_source(attack, run).await;
}
