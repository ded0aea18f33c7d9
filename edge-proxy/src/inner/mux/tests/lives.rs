//! How sessions live and end: drained, retired, cut, lost, silent, idle.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep},
};

use super::{
    super::{OpenError, ResetCode, frame, target::MAX_TARGETS},
    *,
};

async fn ended(guardian: &Guardian) {
    timeout(PATIENCE, guardian.ended()).await.expect("in time");
}

fn goaway(last: u32, code: u8) -> Frame {
    Frame::GoAway { last, code, reason: Bytes::new() }
}

fn answer(stream: u32) -> Frame {
    let head = Bytes::from_static(b"200");
    Frame::Head { stream, head, informational: false, end: true }
}

#[tokio::test]
async fn a_destination_that_retires_finishes_what_is_open() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    pair.far.guardian.retire();
    settle().await;
    assert!(!pair.near.is_usable() && !pair.near.has_room());
    let refused = pair.near.open(&target("http"), b"head", true).unwrap_err();
    assert_eq!(refused, OpenError::Retired);
    near.send(b"question", true).await.unwrap();
    assert_eq!(read_all(&mut far).await.unwrap().0, b"question");
    far.send(b"answer", true).await.unwrap();
    assert_eq!(read_all(&mut near).await.unwrap().0, b"answer");
    ended(&pair.far.guardian).await;
    ended(&pair.near_guardian).await;
    timeout(PATIENCE, pair.far.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_source_that_retires_finishes_what_is_open() {
    for by_guardian in [true, false] {
        let mut pair = Pair::new(1 << 16);
        let (mut near, mut far) = pair.open().await;
        if by_guardian {
            pair.near_guardian.retire()
        } else {
            pair.near.retire()
        }
        assert!(pair.near.open(&target("http"), b"head", true).is_err());
        far.send(b"answer", true).await.unwrap();
        assert_eq!(read_all(&mut near).await.unwrap().0, b"answer");
        near.finish();
        assert_eq!(recv(&mut far).await, Ok(None));
        ended(&pair.near_guardian).await;
        ended(&pair.far.guardian).await;
    }
}

#[tokio::test]
async fn a_session_ends_when_nobody_holds_it() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    drop(pair.near);
    settle().await;
    assert!(!pair.near_guardian.0.ended.is_cancelled());
    far.send(b"answer", true).await.unwrap();
    assert_eq!(read_all(&mut near).await.unwrap().0, b"answer");
    drop(near);
    ended(&pair.near_guardian).await;
    ended(&pair.far.guardian).await;
}

#[tokio::test]
async fn streams_that_cross_a_goaway_were_not_processed() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 16);
    let mut seen = session.open(&target("http"), b"head", true).unwrap();
    let mut unseen = session.open(&target("http"), b"head", false).unwrap();
    peer.say(&[hello(), goaway(1, frame::GOING)]).await;
    let error = recv(&mut unseen).await.unwrap_err();
    assert!(error.is_not_processed(), "{error}");
    assert!(unseen.send(b"more", false).await.unwrap_err().is_not_processed());
    peer.say(&[answer(1)]).await;
    assert!(matches!(recv(&mut seen).await, Ok(Some(Received::Head(_)))));
}

#[tokio::test]
async fn a_retired_destination_looks_at_no_stream_that_crosses() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello(), target_frame(), open_frame(1)]).await;
    let mut first = far.accept().await.exchange;
    far.guardian.retire();
    let data = Bytes::from_static(b"x");
    peer.say(&[open_frame(2), Frame::Data { stream: 2, data, end: true }]).await;
    settle().await;
    assert!(far.opened.try_recv().is_err());
    first.send_head(b"200", false).await.unwrap();
    assert_eq!(peer.hear_of_stream().await, Some(goaway(1, frame::GOING)));
    assert!(matches!(peer.hear_of_stream().await, Some(Frame::Head { stream: 1, .. })));
}

#[tokio::test]
async fn the_last_words_tell_what_was_not_processed() {
    let (mut peer, session, guardian, _drain) = Peer::of_source(1 << 16);
    let mut seen = session.open(&target("http"), b"head", true).unwrap();
    let mut unseen = session.open(&target("http"), b"head", true).unwrap();
    settle().await;
    peer.say(&[hello(), goaway(1, frame::CLOSING)]).await;
    let error = recv(&mut seen).await.unwrap_err();
    assert!(error.is_connection_lost() && !error.is_not_processed(), "{error}");
    assert!(recv(&mut unseen).await.unwrap_err().is_not_processed());
    ended(&guardian).await;
}

#[tokio::test]
async fn a_cut_fails_everything_at_both_ends() {
    for by_source in [true, false] {
        let mut pair = Pair::new(1 << 16);
        let (mut near, mut far) = pair.open().await;
        let guardian = if by_source { &pair.near_guardian } else { &pair.far.guardian };
        guardian.cut();
        for exchange in [&mut near, &mut far] {
            let error = recv(exchange).await.unwrap_err();
            assert!(error.is_connection_lost(), "{error}");
        }
        ended(&pair.near_guardian).await;
        ended(&pair.far.guardian).await;
        assert!(pair.near.open(&target("http"), b"head", true).is_err());
        drop((near, far));
        pair.until_clean().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_drains_finishes_what_is_open() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    pair.drain.start();
    settle().await;
    near.send(b"question", true).await.unwrap();
    assert_eq!(read_all(&mut far).await.unwrap().0, b"question");
    far.send(b"answer", true).await.unwrap();
    assert_eq!(read_all(&mut near).await.unwrap().0, b"answer");
    ended(&pair.far.guardian).await;
    ended(&pair.near_guardian).await;
    assert_eq!(pair.drain.finish(Duration::from_secs(60)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_drains_takes_streams_until_it_refuses() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    pair.drain.start();
    settle().await;
    let (mut late, mut late_far) = pair.open().await;
    pair.drain.refuse();
    settle().await;
    assert_eq!(pair.near.open(&target("http"), b"head", true).unwrap_err(), OpenError::Retired);
    for (near, far) in [(&mut near, &mut far), (&mut late, &mut late_far)] {
        near.send(b"question", true).await.unwrap();
        assert_eq!(read_all(far).await.unwrap().0, b"question");
        far.send(b"answer", true).await.unwrap();
        assert_eq!(read_all(near).await.unwrap().0, b"answer");
    }
    ended(&pair.far.guardian).await;
    ended(&pair.near_guardian).await;
}

#[tokio::test]
async fn streams_that_had_their_time_are_broken_off_alone() {
    let mut pair = Pair::new(1 << 16);
    assert_eq!(pair.far.guardian.newest(), 0);
    let (mut near, mut far) = pair.open().await;
    let (mut over, mut over_far) = pair.open().await;
    over.send(b"", true).await.unwrap();
    over_far.send(b"", true).await.unwrap();
    assert_eq!(read_all(&mut over).await.unwrap().0, b"");
    let newest = pair.far.guardian.newest();
    let (mut late, mut late_far) = pair.open().await;
    let told = tokio::spawn(async move { (recv(&mut far).await, far) });
    settle().await;
    assert_eq!(pair.far.guardian.reset_up_to(newest, "late"), 1);
    assert_eq!(pair.far.guardian.reset_up_to(newest, "late"), 0);
    assert_eq!(timeout(PATIENCE, told).await.unwrap().unwrap().0, Err(StreamError::Ended));
    let reset = StreamError::Reset { code: ResetCode::Failed, reason: "late".into() };
    assert_eq!(recv(&mut near).await, Err(reset));
    late.send(b"question", true).await.unwrap();
    assert_eq!(read_all(&mut late_far).await.unwrap().0, b"question");
    late_far.send(b"answer", true).await.unwrap();
    assert_eq!(read_all(&mut late).await.unwrap().0, b"answer");
    drop((near, over, over_far, late, late_far));
    pair.until_clean().await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_waits_for_nobody() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, _far) = pair.open().await;
    assert_eq!(pair.drain.finish(Duration::from_secs(5)).await, 1);
    assert!(recv(&mut near).await.unwrap_err().is_connection_lost());
    ended(&pair.near_guardian).await;
    ended(&pair.far.guardian).await;
}

#[tokio::test]
async fn what_was_not_even_written_was_not_processed() {
    // The first stream's opening fills the pipe, the second one's waits.
    let (peer, session, _guardian, _drain) = Peer::of_source(64);
    let mut first = session.open(&target("http"), &[1; 1000], true).unwrap();
    settle().await;
    let mut second = session.open(&target("http"), b"head", true).unwrap();
    settle().await;
    drop(peer);
    assert!(recv(&mut first).await.unwrap_err().is_connection_lost());
    assert!(recv(&mut second).await.unwrap_err().is_not_processed());
}

#[tokio::test]
async fn an_answered_stream_was_processed_whatever_else_is_lost() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 16);
    let mut near = session.open(&target("http"), b"head", false).unwrap();
    let head = Bytes::from_static(b"200");
    peer.say(&[hello(), Frame::Head { stream: 1, head, informational: false, end: false }]).await;
    recv(&mut near).await.unwrap();
    peer.say(&[goaway(0, frame::CLOSING)]).await;
    assert!(recv(&mut near).await.unwrap_err().is_connection_lost());
}

/// Takes everything and then fails as TLS does when the peer says no.
struct Refusing {
    said: Vec<u8>,
    taken: bool,
    reader: Option<std::task::Waker>,
}

impl mesh_tunnel::net::Io for Refusing {}

impl AsyncRead for Refusing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.taken {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if !self.said.is_empty() {
            buf.put_slice(&std::mem::take(&mut self.said));
            return Poll::Ready(Ok(()));
        }
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRevoked);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert)))
    }
}

impl AsyncWrite for Refusing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.taken = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_peer_that_refuses_our_certificate_has_processed_nothing() {
    for greeted in [false, true] {
        let mut said = Vec::new();
        if greeted {
            hello().encode(&mut said);
        }
        let io = Refusing { said, taken: false, reader: None };
        let (session, _guardian) = Session::start(Box::new(io), Probing::SOURCE, &Drain::new());
        let mut near = session.open(&target("http"), b"head", true).unwrap();
        let error = recv(&mut near).await.unwrap_err();
        assert_eq!(error.is_not_processed(), !greeted, "{error}");
        assert!(error.to_string().contains("CertificateRevoked"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_notices_a_silent_peer() {
    let (mut peer, session, guardian, _drain) = Peer::of_source(1 << 16);
    peer.say(&[hello()]).await;
    settle().await;
    let before = Instant::now();
    let mut near = session.open(&target("http"), b"head", true).unwrap();
    let error = recv(&mut near).await.unwrap_err();
    assert!(error.is_connection_lost() && error.to_string().contains("silent"), "{error}");
    let Probing { interval, timeout, .. } = Probing::SOURCE;
    assert!(before.elapsed() <= interval * 2 + timeout, "{:?}", before.elapsed());
    ended(&guardian).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_is_not_silent() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 16);
    peer.say(&[hello()]).await;
    let mut near = session.open(&target("http"), b"head", true).unwrap();
    let mut pings = 0;
    while pings < 100 {
        if let Some(Frame::Ping(token)) = peer.hear().await {
            pings += 1;
            sleep(Duration::from_millis(1900)).await;
            peer.say(&[Frame::Pong(token)]).await;
        }
    }
    peer.say(&[answer(1)]).await;
    assert!(matches!(recv(&mut near).await, Ok(Some(Received::Head(_)))));
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_says_nothing_and_a_busy_one_probes() {
    let (mut peer, session, _guardian, _drain) = Peer::of_source(1 << 16);
    peer.say(&[hello()]).await;
    assert_eq!(peer.hear().await.map(|frame| matches!(frame, Frame::Hello(_))), Some(true));
    for stream in 1..4 {
        let silence = timeout(PATIENCE / 2, peer.hear()).await;
        assert!(silence.is_err(), "{silence:?}");
        assert!(session.idle_for() >= PATIENCE / 2);
        let mut near = session.open(&target("http"), b"head", true).unwrap();
        assert_eq!(session.idle_for(), Duration::ZERO);
        while !matches!(peer.hear().await, Some(Frame::Ping(_))) {}
        peer.say(&[answer(stream)]).await;
        recv(&mut near).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_gives_up_a_silent_source() {
    let (mut peer, far, _drain) = Peer::of_destination(Limits::default());
    peer.say(&[hello()]).await;
    assert!(matches!(peer.hear().await, Some(Frame::Hello(_))));
    for _ in 0..5 {
        let Some(Frame::Ping(token)) = peer.hear().await else { panic!("no ping") };
        peer.say(&[Frame::Pong(token)]).await;
    }
    assert!(matches!(peer.hear().await, Some(Frame::Ping(_))));
    assert!(peer.last_words().await.contains("silent"));
    ended(&far.guardian).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_session_gives_its_memory_back() {
    let mut pair = Pair::new(1 << 20);
    let mut streams = Vec::new();
    for _ in 0..100 {
        let (mut near, far) = pair.open().await;
        near.send(&[0; 10_000], false).await.unwrap();
        streams.push((near, far));
    }
    settle().await;
    drop(streams);
    pair.until_clean().await;
    for end in [pair.near.shared(), &pair.far.shared] {
        assert!(end.state().memory() > 1000);
    }
    sleep(Duration::from_secs(60)).await;
    for end in [pair.near.shared(), &pair.far.shared] {
        let memory = end.state().memory();
        assert!(memory < 200, "{memory}");
    }
    // And it still works.
    let (mut near, mut far) = pair.open().await;
    near.send(b"again", true).await.unwrap();
    assert_eq!(read_all(&mut far).await.unwrap().0, b"again");
}

#[tokio::test]
async fn more_streams_than_the_peer_allows_are_not_opened() {
    let limits = Limits { max_streams: 2, ..Limits::default() };
    let mut pair = Pair::with(1 << 16, limits);
    // Before the hello has come, one too many is refused.
    let open = |pair: &Pair| pair.near.open(&target("http"), b"head", true);
    let mut opened: Vec<_> = (0..3).map(|_| open(&pair).unwrap()).collect();
    let error = recv(&mut opened[2]).await.unwrap_err();
    assert!(error.is_not_processed(), "{error}");
    // Afterwards it is not even sent.
    assert_eq!(pair.near.streams(), 2);
    assert!(!pair.near.has_room() && pair.near.is_usable());
    assert_eq!(open(&pair).unwrap_err(), OpenError::Full);
    pair.far.accept().await.exchange.reset(ResetCode::Failed, "");
    recv(&mut opened[0]).await.unwrap_err();
    assert!(open(&pair).is_ok());
}

#[tokio::test]
async fn a_wider_window_counts_for_streams_that_were_opened_before_the_hello() {
    let limits = Limits { stream_window: 200_000, ..Limits::default() };
    let mut pair = Pair::with(1 << 20, limits);
    let mut near = pair.near.open(&target("http"), b"head", false).unwrap();
    timeout(PATIENCE, near.send(&[0; 200_000], true)).await.unwrap().unwrap();
    let mut far = pair.far.accept().await.exchange;
    assert_eq!(read_all(&mut far).await.unwrap().0.len(), 200_000);
}

#[tokio::test]
async fn every_stream_is_for_its_own_target_however_many_there_are() {
    let mut pair = Pair::new(1 << 16);
    let targets: Vec<_> = (0..MAX_TARGETS * 2).map(|n| target(&format!("p{n}"))).collect();
    for _ in 0..2 {
        for target in &targets {
            let near = pair.near.open(target, b"head", true).unwrap();
            let opened = pair.far.accept().await;
            assert_eq!(opened.target, *target);
            assert!(usize::from(opened.target_id) < MAX_TARGETS);
            drop((near, opened));
        }
    }
    pair.until_clean().await;
}
