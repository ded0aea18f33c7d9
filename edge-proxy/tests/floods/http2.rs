//! HTTP/2 at the door for applications: frames that cost their sender nothing.

use std::{sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, task::JoinSet};

use super::{
    attack::{Attack, Pace},
    frames::{self, CONTINUATION, DATA, HEADERS, PING, RST_STREAM, frame, request, window},
    world::{World, is_cut},
};

/// What one connection may send at most before it is cut.
const ENOUGH: usize = 8 << 20;
/// What is sent at a time.
const PIECE: usize = 16 << 10;

const CUT: &str = "isthmus_proxy_connections_cut_total";

/// Connections, one after the other on each of four tasks, that begin with
/// `begin`, then send what `next` gives for the numbers from 0. Each must be
/// cut. A unit is one piece of `next`.
async fn flood(
    world: &World,
    pace: Arc<Pace>,
    begin: Vec<u8>,
    next: impl Fn(u32) -> Vec<u8> + Copy + Send + 'static,
) {
    let door = world.outbound();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        let (pace, begin) = (pace.clone(), begin.clone());
        tasks.spawn(async move {
            while pace.goes_on() {
                let mut stream = frames::connect(door, &[]).await;
                // It may be cut at once.
                let _cut = stream.write_all(&begin).await;
                let (mut number, mut sent) = (0, 0);
                loop {
                    let mut piece = Vec::new();
                    let first = number;
                    while piece.len() < PIECE {
                        piece.extend(next(number));
                        number += 1;
                    }
                    let length = piece.len();
                    let cut = is_cut(&mut stream, &piece, length, Duration::ZERO).await;
                    sent += length;
                    pace.units(u64::from(number - first));
                    if cut {
                        break;
                    }
                    assert!(sent < ENOUGH, "{sent} bytes were taken");
                }
            }
        });
    }
    tasks.join_all().await;
}

fn attack(name: &'static str, unit: &'static str, units: u64) -> Attack {
    Attack { name, unit, units, memory: 16, counted: Some(CUT), saturated: None }
}

#[tokio::test]
async fn a_header_block_without_end_is_cut() {
    let world = World::start().await;
    let begin = frame(HEADERS, 0, 1, &frames::block("GET", "/"));
    let next = |number: u32| {
        let mut field = vec![0, 6];
        field.extend(format!("x{number:05}").bytes());
        field.extend([1, b'y']);
        frame(CONTINUATION, 0, 1, &field)
    };
    let attack = attack("CONTINUATION flood", "frames", 100_000);
    world.at_source(attack, |pace| flood(&world, pace, begin, next)).await;
}

#[tokio::test]
async fn continuations_of_nothing_are_cut() {
    let world = World::start().await;
    let begin = frame(HEADERS, 0, 1, &frames::block("GET", "/"));
    let attack = attack("empty CONTINUATION flood", "frames", 100_000);
    let next = |_| frame(CONTINUATION, 0, 1, &[]);
    world.at_source(attack, |pace| flood(&world, pace, begin, next)).await;
}

#[tokio::test]
async fn streams_that_are_reset_at_once_are_cut() {
    let world = World::start().await;
    let next = |number: u32| {
        let stream = 2 * number + 1;
        let mut both = request(stream, "GET", "/", true);
        both.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
        both
    };
    let attack = attack("rapid reset", "streams", 20_000);
    world.at_source(attack, |pace| flood(&world, pace, Vec::new(), next)).await;
}

/// What makes us reset them: a window that grows by nothing.
#[tokio::test]
async fn streams_that_we_must_reset_are_cut() {
    let world = World::start().await;
    let next = |number: u32| {
        let stream = 2 * number + 1;
        [request(stream, "GET", "/", true), window(stream, 0)].concat()
    };
    let attack = attack("made you reset", "streams", 20_000);
    world.at_source(attack, |pace| flood(&world, pace, Vec::new(), next)).await;
}

#[tokio::test]
async fn settings_without_end_are_cut() {
    let world = World::start().await;
    let attack = attack("SETTINGS flood", "frames", 200_000);
    let next = |number| frames::settings(&[(frames::INITIAL_WINDOW, 65_535 + number % 2)]);
    world.at_source(attack, |pace| flood(&world, pace, Vec::new(), next)).await;
}

#[tokio::test]
async fn pings_without_end_are_cut() {
    let world = World::start().await;
    let attack = attack("PING flood", "frames", 200_000);
    let next = |number: u32| frame(PING, 0, 0, &u64::from(number).to_be_bytes());
    world.at_source(attack, |pace| flood(&world, pace, Vec::new(), next)).await;
}

#[tokio::test]
async fn windows_without_end_are_cut() {
    let world = World::start().await;
    let attack = attack("WINDOW_UPDATE flood", "frames", 200_000);
    let begin = request(1, "GET", "/deaf", true);
    let next = |number| window(number % 2, 1);
    world.at_source(attack, |pace| flood(&world, pace, begin, next)).await;
}

/// They take no window, and wait for whoever reads the body.
#[tokio::test]
async fn empty_pieces_of_a_body_are_cut() {
    let world = World::start().await;
    let attack = attack("empty DATA flood", "frames", 400_000);
    let begin = request(1, "POST", "/deaf", false);
    let next = |_| frame(DATA, 0, 1, &[]);
    world.at_source(attack, |pace| flood(&world, pace, begin, next)).await;
}
