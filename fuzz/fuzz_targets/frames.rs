//! Frames of every framing that a peer speaks to us, in pieces of any size:
//! the inner session, a tunnel over TLS, HTTP/2 as it is watched, and what a
//! connection begins with. Nothing panics, nothing is lost, nothing waits for
//! ever once the peer has gone.
#![no_main]

use std::time::Duration;

use bytes::{Buf, BytesMut};
use edge_proxy::{
    http2::watched::Watched,
    inner::mux::{
        Limits, Probing, ServerSession,
        frame::{Decoder, Frame, Step},
    },
    outbound::sniff,
};
use libfuzzer_sys::fuzz_target;
use mesh_runtime::drain::Drain;
use mesh_tunnel::{
    datagrams::{self, Generation},
    session::mux::Mux,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A peer that says `data` and goes, and our end of it.
fn peer(data: &[u8]) -> DuplexStream {
    let (mut near, far) = duplex(data.len().max(1));
    let data = data.to_vec();
    tokio::spawn(async move {
        let said = near.write_all(&data).await;
        let gone = near.shutdown().await;
        // What it is told is read, so that nobody waits for room.
        let _ = (said, gone, tokio::io::copy(&mut near, &mut tokio::io::sink()).await);
    });
    far
}

/// Whatever the cut, the same frames; what is written again is read again.
fn inner_frames(data: &[u8], size: usize) {
    let (mut decoder, mut buf, mut again) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in data.chunks(size) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.next(&mut buf) {
                Ok(Step::Frame(frame)) => {
                    again.clear();
                    frame.encode(&mut again);
                    let mut bytes = BytesMut::from(&again[..]);
                    let read = Decoder::default().next(&mut bytes);
                    let is_data = matches!(frame, Frame::Data { .. });
                    assert!(is_data || read == Ok(Step::Frame(frame)) && !bytes.has_remaining());
                }
                Ok(Step::Missing(more)) => {
                    assert!(more > 0 && more < 1 << 17);
                    break;
                }
                Err(_) => return,
            }
        }
    }
}

async fn inner_session(data: &[u8]) {
    let drain = Drain::new();
    let io = Box::new(peer(data));
    let (mut session, _guardian) =
        ServerSession::start(io, Probing::DESTINATION, Limits::default(), &drain);
    while let Some(opened) = session.accept().await {
        drop(opened);
    }
}

async fn tunnel(data: &[u8]) {
    let mux = Mux::start(tokio::io::BufReader::new(peer(data)), false);
    while let Some(mut stream) = mux.accept().await {
        let mut some = [0; 64];
        let read = tokio::time::timeout(Duration::from_millis(1), stream.read(&mut some)).await;
        let _ended_or_waiting = read;
    }
}

async fn http2(data: &[u8]) {
    let mut read = Vec::new();
    let whole = Watched::new(peer(data)).read_to_end(&mut read).await.is_ok();
    assert!(data.starts_with(&read) && (!whole || read.len() == data.len()));
}

async fn first_bytes(data: &[u8]) {
    let patience = sniff::PATIENCE;
    let Ok((_, mut stream)) = sniff::detect(Box::new(peer(data)), patience).await else { return };
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.expect("a pipe does not break");
    assert!(read == data, "a byte is lost");
}

fuzz_target!(|data: &[u8]| {
    let [which, how, data @ ..] = data else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    match which % 6 {
        0 => inner_frames(data, usize::from(*how).max(1)),
        1 => runtime.block_on(inner_session(data)),
        2 => runtime.block_on(tunnel(data)),
        3 => runtime.block_on(http2(data)),
        4 => runtime.block_on(first_bytes(data)),
        _ => {
            // What begins a connection is everybody's, so somebody's at least.
            let owners = (0..=u8::MAX).filter(|n| datagrams::is_of(Generation(*n), data)).count();
            assert!(owners == 1 || owners == 256);
        }
    }
});
