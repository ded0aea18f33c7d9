//! Peers that break rules or ask for too much.

use std::task::{Context, Poll};

use proptest::prelude::*;

use super::{
    super::{
        MAX_HEAD, OpenError, ResetCode, WINDOW, frame,
        out::{RESERVE, TOO_MUCH},
        receive::Verdict,
        state::{Role, State},
    },
    *,
};

fn data(stream: u32, length: usize, end: bool) -> Frame {
    Frame::Data { stream, data: vec![0; length].into(), end }
}

fn head(stream: u32, informational: bool) -> Frame {
    Frame::Head { stream, head: Bytes::from_static(b"h"), informational, end: false }
}

fn reset_frame(stream: u32, code: ResetCode) -> Frame {
    Frame::Reset { stream, code, reason: Bytes::new() }
}

/// What a destination cannot accept from a source that has said hello and
/// opened stream 1.
#[tokio::test]
async fn a_source_that_breaks_a_rule_is_told_which() {
    let full = data(1, WINDOW as usize / 2, false);
    let cases: [(Vec<Frame>, &str); 14] = [
        (vec![hello()], "second hello"),
        (vec![open_frame(1)], "opened before"),
        (vec![open_frame(u32::MAX)], "used up"),
        (vec![Frame::Open { stream: 3, target: 9, head: Bytes::new(), end: true }], "not named"),
        (vec![Frame::Target(300, Bytes::new())], "beyond the table"),
        (vec![Frame::Target(0, Bytes::from_static(b"\xff"))], "decode"),
        (vec![data(2, 1, false)], "not opened"),
        (vec![Frame::Window { stream: 9, more: 1 }], "not opened"),
        (vec![data(1, 1, true), data(1, 1, false)], "after a stream's end"),
        (vec![data(1, 0, true), data(1, 0, true)], "after a stream's end"),
        (vec![full.clone(), full, data(1, 1, false)], "window allows"),
        (vec![Frame::Window { stream: 1, more: u32::MAX }], "beyond all measure"),
        (vec![head(1, false)], "head after the head"),
        (vec![reset_frame(1, ResetCode::Refused)], "refusal"),
    ];
    for (frames, expected) in cases {
        let (mut peer, far, _drain) = Peer::of_destination(Limits::default());
        peer.say(&[hello(), target_frame(), open_frame(1)]).await;
        peer.say(&frames).await;
        let why = peer.last_words().await;
        assert!(why.contains(expected), "{expected}: {why}");
        timeout(PATIENCE, far.guardian.ended()).await.unwrap();
    }
    let (mut peer, _far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[Frame::Ping(1)]).await;
    assert!(peer.last_words().await.contains("before the hello"));
}

/// What a source cannot accept from a destination that has said hello and
/// received stream 1.
#[tokio::test]
async fn a_destination_that_breaks_a_rule_is_told_which() {
    let many = (0..9).map(|_| head(1, true)).collect();
    let unseen = Frame::GoAway { last: 0, code: frame::GOING, reason: Bytes::new() };
    let cases: [(Vec<Frame>, &str); 10] = [
        (vec![open_frame(2)], "opened by the destination"),
        (vec![target_frame()], "target from the destination"),
        (vec![data(1, 1, false)], "bytes before the head"),
        (vec![data(1, 0, true)], "bytes before the head"),
        (vec![head(1, false), head(1, false)], "head after the head"),
        (vec![head(1, false), head(1, true)], "head after the head"),
        (vec![head(2, false)], "not opened"),
        (vec![head(1, false), reset_frame(1, ResetCode::Refused)], "after the answer"),
        (many, "too many informational"),
        (vec![head(1, false), unseen], "answered stream"),
    ];
    for (frames, expected) in cases {
        let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 16);
        let mut near = session.open(&target("http"), b"head", false).unwrap();
        peer.say(&[hello()]).await;
        peer.say(&frames).await;
        let why = peer.last_words().await;
        assert!(why.contains(expected), "{expected}: {why}");
        while let Ok(Some(_)) = recv(&mut near).await {}
        assert!(!session.is_usable());
    }
}

#[tokio::test]
async fn bytes_that_are_no_frames_end_the_session() {
    let cases: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", "protocol violation"),
        (&[0, 0, 0, 99, 0, 0, 0, 0, 0], "unknown kind"),
        (&[0xff, 0xff, 0xff, 5, 0, 0, 0, 0, 1], "impossible length"),
        (&[0, 0, 0, 5, 2, 0, 0, 0, 1], "impossible flags"),
    ];
    for (bytes, expected) in cases {
        let (mut peer, _far, _drain) = Peer::of_destination(Limits::default());
        peer.io.write_all(bytes).await.unwrap();
        let why = peer.last_words().await;
        assert!(why.contains(expected), "{expected}: {why}");
    }
}

#[tokio::test]
async fn frames_of_the_future_are_passed_over() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello(), target_frame()]).await;
    let mut future = vec![1, 0, 0, 0x81, 0xff, 0, 0, 0, 9];
    future.extend(vec![0xaa; 1 << 16]);
    peer.io.write_all(&future).await.unwrap();
    peer.say(&[open_frame(1)]).await;
    assert_eq!(far.accept().await.head, b"head"[..]);
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_with_little() {
    let (mut peer, far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello()]).await;
    let pings: Vec<_> = (0..10_000).map(Frame::Ping).collect();
    peer.say(&pings[..4000]).await;
    settle().await;
    assert!(far.shared.state().out.len() < 1000);
    assert!(!far.shared.ended.is_cancelled());
    peer.say(&pings[4000..]).await;
    assert!(peer.last_words().await.contains("carry nothing"));
    timeout(PATIENCE, far.guardian.ended()).await.unwrap();
}

#[tokio::test]
async fn streams_that_are_opened_and_given_up_at_once_end_the_session() {
    let (mut peer, far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello(), target_frame()]).await;
    let both = |stream| [open_frame(stream), reset_frame(stream, ResetCode::Cancelled)];
    peer.say(&(1..2000).flat_map(both).collect::<Vec<_>>()).await;
    assert!(peer.last_words().await.contains("given up at once"));
    timeout(PATIENCE, far.guardian.ended()).await.unwrap();
}

#[tokio::test]
async fn who_asks_for_more_than_it_reads_is_given_up() {
    let limits = Limits { max_streams: 1, ..Limits::default() };
    let (mut peer, far, _drain) = Peer::of_destination(limits);
    peer.say(&[hello(), target_frame()]).await;
    let mut stream = 0;
    while !far.shared.ended.is_cancelled() {
        assert!(stream < 2_000_000, "nothing stops it");
        let opens: Vec<_> = (0..1000).map(|n| open_frame(stream + n + 1)).collect();
        stream += 1000;
        peer.say(&opens).await;
        assert!(far.shared.state().out.len() <= TOO_MUCH + 1000);
    }
}

#[tokio::test]
async fn opening_and_giving_up_in_haste_takes_no_more_places_than_there_are() {
    let limits = Limits { max_streams: 10, ..Limits::default() };
    let (mut peer, mut far, _drain) = Peer::of_destination(limits);
    peer.say(&[hello(), target_frame()]).await;
    let mut held = Vec::new();
    for stream in 1..500 {
        peer.say(&[open_frame(stream)]).await;
        settle().await;
        while let Ok(opened) = far.opened.try_recv() {
            held.push(opened);
        }
        peer.say(&[reset_frame(stream, ResetCode::Cancelled)]).await;
    }
    settle().await;
    assert_eq!((held.len(), far.shared.state().held()), (20, 20));
    drop(held);
    peer.say(&[open_frame(500)]).await;
    far.accept().await;
}

#[tokio::test]
async fn answers_wait_while_the_peer_does_not_read() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello(), target_frame()]).await;
    let large = vec![0; MAX_HEAD];
    let mut waiting = Vec::new();
    for stream in 1..=100 {
        peer.say(&[open_frame(stream)]).await;
        let mut exchange = far.accept().await.exchange;
        let large = large.clone();
        waiting.push(tokio::spawn(async move { exchange.send_head(&large, true).await }));
        settle().await;
        assert!(far.shared.state().out.len() <= RESERVE + MAX_HEAD + 1000);
    }
    assert!(waiting.iter().any(|task| !task.is_finished()));
    let mut heads = 0;
    while heads < 100 {
        heads += usize::from(matches!(peer.hear().await, Some(Frame::Head { .. })));
    }
    for task in waiting {
        task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn nothing_is_opened_while_the_peer_does_not_read() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 10);
    let mut opened = Vec::new();
    let error = loop {
        match session.open(&target("http"), &[0; MAX_HEAD], true) {
            Ok(exchange) => opened.push(exchange),
            Err(error) => break error,
        }
        settle().await;
        assert!(opened.len() < 100);
    };
    assert_eq!(error, OpenError::Busy);
    assert!(session.is_usable() && !session.has_room());
    for _ in 0..opened.len() {
        assert!(matches!(peer.hear_of_stream().await, Some(Frame::Open { .. })));
    }
    assert!(session.has_room());
}

#[tokio::test]
async fn many_small_pieces_hold_no_large_buffers() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello(), target_frame(), open_frame(1)]).await;
    let mut exchange = far.accept().await.exchange;
    for _ in 0..WINDOW / 16 {
        peer.say(&[data(1, 16, false)]).await;
        settle().await;
    }
    let mut pieces = 0;
    let mut got = 0;
    while got < WINDOW as usize {
        let Ok(Some(Received::Data(data))) = recv(&mut exchange).await else { panic!("no bytes") };
        got += data.len();
        pieces += 1;
    }
    assert_eq!(pieces, 2);
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let stream = 1..6u32;
    let code =
        prop_oneof![Just(ResetCode::Cancelled), Just(ResetCode::Refused), Just(ResetCode::Enough)];
    prop_oneof![
        1 => Just(target_frame()),
        8 => (stream.clone(), any::<bool>()).prop_map(|(stream, end)| {
            Frame::Open { stream, target: 0, head: Bytes::from_static(b"head"), end }
        }),
        8 => (stream.clone(), any::<bool>()).prop_map(|(stream, end)| {
            Frame::Head { stream, head: Bytes::from_static(b"h"), informational: false, end }
        }),
        2 => stream.clone().prop_map(|stream| head(stream, true)),
        8 => (stream.clone(), 0..30_000usize, any::<bool>())
            .prop_map(|(stream, length, end)| data(stream, length, end)),
        2 => stream.clone().prop_map(|stream| {
            Frame::Trailers { stream, block: Bytes::from_static(b"t") }
        }),
        2 => (stream.clone(), code).prop_map(|(stream, code)| reset_frame(stream, code)),
        4 => (stream, any::<u32>()).prop_map(|(stream, more)| Frame::Window { stream, more }),
        1 => any::<u64>().prop_map(Frame::Ping),
        1 => (0..6u32, 0..3u8).prop_map(|(last, code)| {
            Frame::GoAway { last, code, reason: Bytes::new() }
        }),
    ]
}

/// What the holder of a stream does next.
#[derive(Debug, Clone, Copy)]
enum Does {
    Open,
    Recv,
    Send(usize),
    Head,
    Finish,
    Reset,
    Drop,
}

fn does() -> impl Strategy<Value = (usize, Does)> {
    let what = prop_oneof![
        3 => Just(Does::Open),
        4 => Just(Does::Recv),
        4 => (1..100_000usize).prop_map(Does::Send),
        3 => Just(Does::Head),
        2 => Just(Does::Finish),
        1 => Just(Does::Reset),
        1 => Just(Does::Drop),
    ];
    (0..4usize, what)
}

/// Does one thing with one of the streams that are held.
fn act(state: &mut State, held: &mut Vec<usize>, which: usize, does: Does) {
    let cx = &Context::from_waker(std::task::Waker::noop());
    if matches!(does, Does::Open) {
        held.extend(state.open(&target("http"), b"head", false).ok());
        held.extend(state.accept().map(|opening| opening.slot));
        return;
    }
    let Some(&slot) = held.get(which) else { return };
    match does {
        Does::Open => {}
        Does::Recv => while matches!(state.poll_recv(slot, cx), Poll::Ready(Ok(Some(_)))) {},
        Does::Send(length) => {
            let _ = state.poll_send(slot, cx, &vec![0; length], false);
        }
        Does::Head => {
            let kind = crate::inner::mux::HeadKind::Final;
            let _ = state.poll_send_head(slot, cx, b"200", kind);
        }
        Does::Finish => state.finish(slot),
        Does::Reset => state.reset(slot, ResetCode::Failed, "as planned"),
        Does::Drop => {
            state.release(slot);
            held.remove(which);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_order_of_frames_and_deeds_breaks_an_end(
        source in any::<bool>(),
        steps in proptest::collection::vec((any_frame(), does()), 1..80),
    ) {
        let role = match source {
            true => Role::Source(Default::default()),
            false => Role::Destination(Default::default()),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        let mut state = State::new(role, Limits::default());
        state.receive(hello()).unwrap();
        let mut held = Vec::new();
        let mut last = None;
        for (frame, (which, does)) in steps {
            act(&mut state, &mut held, which, does);
            match state.receive(frame) {
                Ok(Verdict::Fine) => {}
                Ok(Verdict::Closed(_, seen)) => {
                    last = Some(seen);
                    break;
                }
                Err(_) => break,
            }
            state.call_waiting();
            if which == 0 {
                state.out.take(&mut Vec::new());
            }
        }
        state.end(&"over".into(), last);
        held.into_iter().for_each(|slot| state.release(slot));
        prop_assert!(state.is_clean(), "{:?}", state);
    }

    #[test]
    fn bytes_of_strangers_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..2000),
        greeted in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut peer, _far, _drain) = Peer::of_destination(Limits::default());
            if greeted {
                peer.say(&[hello(), target_frame(), open_frame(1)]).await;
            }
            let _ = peer.io.write_all(&bytes).await;
            settle().await;
        });
    }
}
