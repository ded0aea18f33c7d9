//! Peers that ask for much and take nothing.

use std::{sync::Arc, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use super::{
    attack::{Attack, Pace},
    frames::{self, DATA, frame, request, window},
    world::World,
};

const OPEN: &str = "tcp_open_total";

/// Opens a connection, says all of `what` and takes nothing.
async fn say(world: &World, pace: Arc<Pace>, settings: &[(u16, u32)], what: Vec<u8>, many: u64) {
    let _open = said(world, settings, &what).await;
    pace.units(many);
    pace.hold().await;
}

/// The connection, which has been told as much of it as it takes: what waits
/// in the kernel is not ours.
async fn said(world: &World, settings: &[(u16, u32)], what: &[u8]) -> TcpStream {
    let mut stream = frames::connect(world.outbound(), settings).await;
    let _cut_or_late = timeout(Duration::from_secs(3), stream.write_all(what)).await;
    stream
}

/// Answers of a mebibyte each that nobody may be sent.
#[tokio::test]
async fn windows_of_nothing_hold_little() {
    let world = World::start().await;
    let attack = Attack {
        name: "zero window, 500 answers of 1 MiB",
        unit: "streams",
        units: 500,
        memory: 64,
        counted: Some(OPEN),
        saturated: None,
    };
    let asks: Vec<u8> =
        (0..500).flat_map(|number| request(2 * number + 1, "GET", "/big", true)).collect();
    let closed = [(frames::INITIAL_WINDOW, 0)];
    world.at_source(attack, |pace| say(&world, pace, &closed, asks, 500)).await;
}

/// Answers of a mebibyte each that may be sent and are not read.
#[tokio::test]
async fn who_does_not_read_answers_holds_little() {
    let world = World::start().await;
    let attack = Attack {
        name: "stalled reader, 500 answers of 1 MiB",
        unit: "streams",
        units: 500,
        memory: 64,
        counted: Some(OPEN),
        saturated: None,
    };
    let mut asks = window(0, (1 << 31) - 1 - 65_535);
    asks.extend((0..500).flat_map(|number| request(2 * number + 1, "GET", "/big", true)));
    let wide = [(frames::INITIAL_WINDOW, (1 << 31) - 1)];
    world.at_source(attack, |pace| say(&world, pace, &wide, asks, 500)).await;
}

/// Bodies for an application that reads none of them: as much as is allowed.
#[tokio::test]
async fn bodies_that_nobody_reads_hold_little() {
    let world = World::start().await;
    let attack = Attack {
        name: "31 bodies of 256 KiB that nobody reads",
        unit: "streams",
        units: 31,
        memory: 24,
        counted: Some(OPEN),
        saturated: None,
    };
    let bodies = |count: u32, pieces: usize| {
        let mut says = Vec::new();
        for number in 0..count {
            says.extend(request(2 * number + 1, "POST", "/deaf", false));
            says.extend(frame(DATA, 0, 2 * number + 1, &[7; 16 << 10]).repeat(pieces));
        }
        says
    };
    let run = async |pace: Arc<Pace>| {
        // More than that is a fault, and ends the connection.
        let _cut = said(&world, &[], &bodies(100, 64)).await;
        say(&world, pace, &[], bodies(31, 16), 31).await;
    };
    world.at_source(attack, run).await;
}
