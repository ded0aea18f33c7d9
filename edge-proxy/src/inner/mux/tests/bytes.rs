//! Every byte arrives once and in order, whatever else happens.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::{MAX_HEAD, WINDOW, out::ROOM, state::GROWTH};
use super::*;

/// What one direction of one stream does.
#[derive(Debug, Clone)]
struct Plan {
    length: usize,
    chunk: usize,
    end: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Finish,
    Trailers,
    Reset,
    Drop,
}

fn plan() -> impl Strategy<Value = Plan> {
    let length = prop_oneof![0..10usize, 0..5_000usize, 0..300_000usize];
    let end = prop_oneof![
        6 => Just(Ending::Finish),
        2 => Just(Ending::Trailers),
        1 => Just(Ending::Reset),
        1 => Just(Ending::Drop),
    ];
    (length, 1..70_000usize, end).prop_map(|(length, chunk, end)| Plan { length, chunk, end })
}

fn bytes(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|n| seed.wrapping_add((n % 253).to_be_bytes()[7])).collect()
}

impl Plan {
    fn is_orderly(&self) -> bool {
        matches!(self.end, Ending::Finish | Ending::Trailers)
    }
}

/// Runs one side of a stream; panics unless the other side's plan arrives.
async fn side(mut exchange: Exchange, seeds: (u8, u8), own: Plan, other: Plan) {
    let (to_send, expected) = (bytes(seeds.0, own.length), bytes(seeds.1, other.length));
    let mut sent = 0;
    let mut ended = false;
    let mut got = Vec::new();
    let mut trailers = None;
    let mut failed = None;
    let mut done = false;
    std::future::poll_fn(|cx| {
        use std::task::Poll;
        while !ended && failed.is_none() {
            let piece = &to_send[sent..to_send.len().min(sent + own.chunk)];
            let polled = match (piece.is_empty(), own.end) {
                (false, _) => exchange.poll_send(cx, piece, false),
                (true, Ending::Finish) => exchange.poll_send(cx, b"", true),
                (true, Ending::Trailers) => {
                    exchange.poll_send_trailers(cx, &[seeds.0]).map_ok(|()| 0)
                }
                (true, Ending::Reset) => {
                    exchange.reset(crate::inner::mux::ResetCode::Failed, "as planned");
                    return Poll::Ready(());
                }
                (true, Ending::Drop) => return Poll::Ready(()),
            };
            match polled {
                Poll::Ready(Ok(n)) => sent += n,
                Poll::Ready(Err(error)) => failed = Some(error),
                Poll::Pending => break,
            }
            ended = piece.is_empty();
        }
        while !done {
            match exchange.poll_recv(cx) {
                Poll::Ready(Ok(Some(Received::Data(data)))) => got.extend_from_slice(&data),
                Poll::Ready(Ok(Some(Received::Trailers(block)))) => trailers = Some(block),
                Poll::Ready(Ok(Some(other))) => panic!("{other:?}"),
                Poll::Ready(Ok(None)) => done = true,
                Poll::Ready(Err(error)) => {
                    failed.get_or_insert(error);
                    done = true;
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if ended || failed.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    assert!(expected.starts_with(&got), "other bytes than were sent");
    if !own.is_orderly() {
        return;
    }
    if other.is_orderly() {
        assert_eq!(failed, None);
        assert_eq!(got.len(), expected.len());
        let told = (other.end == Ending::Trailers).then(|| Bytes::copy_from_slice(&[seeds.1]));
        assert_eq!(trailers, told);
    } else {
        assert!(matches!(failed, Some(StreamError::Reset { .. })), "{failed:?}");
    }
}

async fn many(plans: Vec<(Plan, Plan)>, pipe: usize) {
    let mut pair = Pair::new(pipe);
    let mut tasks = tokio::task::JoinSet::new();
    for (n, (source, destination)) in plans.into_iter().enumerate() {
        let (near, far) = pair.open().await;
        let seed = n.to_be_bytes()[7];
        let seeds = (seed, seed.wrapping_add(100));
        tasks.spawn(side(near, seeds, source.clone(), destination.clone()));
        tasks.spawn(side(far, (seeds.1, seeds.0), destination, source));
    }
    while let Some(done) = timeout(PATIENCE, tasks.join_next()).await.expect("in time") {
        done.unwrap();
    }
    pair.until_clean().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn interleaved_streams_deliver_exactly_their_bytes(
        plans in proptest::collection::vec((plan(), plan()), 1..16),
        pipe in prop_oneof![100..400usize, 1000..200_000usize],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(many(plans, pipe));
    }
}

#[tokio::test]
async fn a_request_with_everything() {
    let mut pair = Pair::new(1 << 16);
    let mut near = pair.near.open(&target("http"), b"GET /", false).unwrap();
    let Opened { target: asked, target_id, head, exchange: mut far } = pair.far.accept().await;
    assert_eq!((&*asked, target_id, &head[..]), (&*target("http"), 0, &b"GET /"[..]));
    far.send_informational(b"103").await.unwrap();
    far.send_informational(b"102").await.unwrap();
    assert_eq!(recv(&mut near).await, Ok(Some(Received::Informational(b"103"[..].into()))));
    near.send(b"body", false).await.unwrap();
    near.send_trailers(b"sum").await.unwrap();
    assert!(near.is_send_end());
    assert_eq!(read_all(&mut far).await, Ok((b"body".to_vec(), Some(b"sum"[..].into()))));
    assert!(far.is_recv_end() && !far.is_send_end());
    far.send_head(b"200", false).await.unwrap();
    far.send(b"an answer", true).await.unwrap();
    assert_eq!(recv(&mut near).await, Ok(Some(Received::Informational(b"102"[..].into()))));
    assert_eq!(recv(&mut near).await, Ok(Some(Received::Head(b"200"[..].into()))));
    assert_eq!(read_all(&mut near).await, Ok((b"an answer".to_vec(), None)));
    assert_eq!(recv(&mut near).await, Ok(None));
    drop((near, far));
    pair.until_clean().await;
}

#[tokio::test]
async fn heads_may_end_it_and_be_large() {
    let mut pair = Pair::new(3000);
    let large = bytes(3, MAX_HEAD);
    let mut near = pair.near.open(&target("http"), &large, true).unwrap();
    let mut opened = pair.far.accept().await;
    assert_eq!(opened.head, large);
    assert!(opened.exchange.is_recv_end());
    assert_eq!(recv(&mut opened.exchange).await, Ok(None));
    opened.exchange.send_head(&large, true).await.unwrap();
    assert_eq!(recv(&mut near).await, Ok(Some(Received::Head(large.into()))));
    assert!(near.is_recv_end());
    drop((near, opened));
    pair.until_clean().await;
    let too_long = vec![0; MAX_HEAD + 1];
    let refused = pair.near.open(&target("http"), &too_long, true).unwrap_err();
    assert_eq!(refused, crate::inner::mux::OpenError::TooLong);
}

#[tokio::test]
async fn a_pipe_half_closes_and_resets() {
    let mut pair = Pair::new(500);
    let (near, far) = pair.open().await;
    let (mut near, mut far) = (near.into_pipe(), far.into_pipe());
    let question = bytes(1, 200_000);
    let sent = question.clone();
    let writer = tokio::spawn(async move {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut asked = Vec::new();
    timeout(PATIENCE, far.read_to_end(&mut asked)).await.unwrap().unwrap();
    assert!(asked == question);
    let mut near = writer.await.unwrap();
    far.write_all(b"after the end").await.unwrap();
    let mut answer = [0; 13];
    near.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"after the end");
    far.reset();
    let error = near.read(&mut answer).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    drop((near, far));
    pair.until_clean().await;
}

/// Sends until there is no room; how much it was.
async fn fill(exchange: &mut Exchange) -> usize {
    let mut sent = 0;
    let piece = vec![0; 10_000];
    loop {
        let send = std::future::poll_fn(|cx| exchange.poll_send(cx, &piece, false));
        match timeout(Duration::from_millis(20), send).await {
            Ok(n) => sent += n.unwrap(),
            Err(_) => return sent,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_stalls_alone() {
    let mut pair = Pair::new(1 << 14);
    let mut stalled = Vec::new();
    for _ in 0..20 {
        let (mut near, far) = pair.open().await;
        assert_eq!(fill(&mut near).await, WINDOW as usize);
        stalled.push((near, far));
    }
    let (mut near, mut far) = pair.open().await;
    let data = bytes(9, 5 << 20);
    let (sent, got) = tokio::join!(near.send(&data, true), read_all(&mut far));
    sent.unwrap();
    assert!(got.unwrap().0 == data);
    // And whoever reads at last gets everything.
    for (mut near, mut far) in stalled {
        near.finish();
        assert_eq!(read_all(&mut far).await.unwrap().0.len(), WINDOW as usize);
    }
    drop((near, far));
    pair.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn windows_grow_for_readers_within_the_budget() {
    let mut pair = Pair::new(1 << 20);
    let mut streams = Vec::new();
    for _ in 0..40 {
        let (mut near, mut far) = pair.open().await;
        let data = bytes(1, 2 << 20);
        let read = async {
            let mut got = 0;
            while got < data.len() {
                match recv(&mut far).await {
                    Ok(Some(Received::Data(data))) => got += data.len(),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::join!(async { near.send(&data, false).await.unwrap() }, read);
        streams.push((near, far));
    }
    let grown = pair.far.shared.state().grown();
    assert!(grown > GROWTH / 2 && grown <= GROWTH, "{grown}");
    // Nobody reads any more: what is held is what was granted.
    let mut held = 0;
    for (near, _) in &mut streams {
        held += fill(near).await;
    }
    let most = (GROWTH + 40 * WINDOW) as usize;
    assert!(held > most / 2 && held <= most, "{held}");
    drop(streams);
    pair.until_clean().await;
    assert_eq!(pair.far.shared.state().grown(), 0);
}

#[tokio::test]
async fn small_messages_need_no_windows() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 20);
    peer.say(&[hello()]).await;
    for stream in 1..=50 {
        let mut near = session.open(&target("http"), b"head", true).unwrap();
        let Some(Frame::Open { .. }) = peer.hear_of_stream().await else { panic!("no stream") };
        let data = Bytes::from(vec![0; 30_000]);
        let head = Bytes::from_static(b"200");
        peer.say(&[
            Frame::Head { stream, head, informational: false, end: false },
            Frame::Data { stream, data, end: false },
            Frame::Data { stream, data: Bytes::from_static(b"x"), end: true },
        ])
        .await;
        recv(&mut near).await.unwrap();
        assert_eq!(read_all(&mut near).await.unwrap().0.len(), 30_001);
    }
    session.retire();
    while let Some(frame) = peer.hear().await {
        assert!(!matches!(frame, Frame::Window { .. }), "a window for nothing");
        if session.shared().ended.is_cancelled() {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn small_messages_overtake_bulk_that_waits() {
    let mut pair = Pair::new(1000);
    let mut bulk = Vec::new();
    for _ in 0..50 {
        let (mut near, mut far) = pair.open().await;
        bulk.push(tokio::spawn(async move { near.send(&vec![0; 300_000], true).await }));
        bulk.push(tokio::spawn(async move { read_all(&mut far).await.map(|_| ()) }));
    }
    while pair.near.shared().state().out.len() < ROOM {
        tokio::task::yield_now().await;
    }
    // There is no room, and still a whole request is taken at once.
    let mut near = pair.near.open(&target("http"), b"small", false).unwrap();
    let now =
        std::future::poll_fn(|cx| std::task::Poll::Ready(near.poll_send(cx, &[1; 5000], true)));
    assert_eq!(now.await, std::task::Poll::Ready(Ok(5000)));
    for task in bulk {
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }
}
