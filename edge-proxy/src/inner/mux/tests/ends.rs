//! How single streams end.

use std::{
    future::poll_fn,
    task::Poll::{Pending, Ready},
};

use super::{
    super::{ResetCode, WINDOW},
    *,
};

fn reset(code: ResetCode, reason: &str) -> StreamError {
    StreamError::Reset { code, reason: reason.into() }
}

#[tokio::test]
async fn a_reset_by_the_source_reaches_the_destination() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    near.send(b"half of it", false).await.unwrap();
    settle().await;
    near.reset(ResetCode::Failed, "the client went away");
    let gone = reset(ResetCode::Failed, "the client went away");
    assert_eq!(poll_fn(|cx| far.poll_reset(cx)).await, gone);
    // What came before it can still be taken.
    assert_eq!(recv(&mut far).await, Ok(Some(Received::Data(b"half of it"[..].into()))));
    assert_eq!(recv(&mut far).await, Err(gone.clone()));
    assert_eq!(far.send(b"late", false).await, Err(gone));
    assert_eq!(recv(&mut near).await, Err(StreamError::Ended));
    assert_eq!(near.send(b"late", false).await, Err(StreamError::Ended));
    drop((near, far));
    pair.until_clean().await;
}

#[tokio::test]
async fn a_reset_by_the_destination_reaches_the_source() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    far.send(b"some", false).await.unwrap();
    far.reset(ResetCode::Failed, "the application broke");
    let broken = reset(ResetCode::Failed, "the application broke");
    assert_eq!(recv(&mut near).await, Ok(Some(Received::Data(b"some"[..].into()))));
    assert_eq!(recv(&mut near).await, Err(broken.clone()));
    assert_eq!(near.send(b"late", false).await, Err(broken));
    drop((near, far));
    pair.until_clean().await;
}

#[tokio::test]
async fn a_refusal_says_that_nothing_was_processed() {
    let mut pair = Pair::new(1 << 16);
    let mut near = pair.near.open(&target("http"), b"head", true).unwrap();
    let mut far = pair.far.accept().await.exchange;
    far.reset(ResetCode::Refused, "draining");
    let error = recv(&mut near).await.unwrap_err();
    assert_eq!(error, StreamError::NotProcessed("draining".into()));
    assert!(error.is_not_processed() && !error.is_connection_lost());
}

#[tokio::test]
async fn whoever_drops_a_stream_gives_it_up() {
    let mut pair = Pair::new(1 << 16);
    let near = pair.near.open(&target("http"), b"head", true).unwrap();
    let mut far = pair.far.accept().await.exchange;
    assert_eq!(recv(&mut far).await, Ok(None));
    drop(near);
    let cancelled = reset(ResetCode::Cancelled, "");
    assert_eq!(poll_fn(|cx| far.poll_reset(cx)).await, cancelled);
    assert_eq!(far.send_head(b"200", true).await, Err(cancelled.clone()));
    drop(far);

    let (mut near, far) = pair.open().await;
    drop(far);
    assert_eq!(recv(&mut near).await, Err(cancelled));
    drop(near);
    pair.until_clean().await;
}

#[tokio::test]
async fn an_early_answer_is_whole_and_stops_the_sender() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    let data = vec![1; WINDOW as usize * 2];
    let sender = async {
        let enough = reset(ResetCode::Enough, "");
        assert_eq!(near.send(&data, true).await, Err(enough));
        assert_eq!(read_all(&mut near).await, Ok((b"too large".to_vec(), None)));
    };
    let answerer = async {
        recv(&mut far).await.unwrap();
        far.send(b"too large", true).await.unwrap();
        drop(far);
    };
    timeout(PATIENCE, async { tokio::join!(sender, answerer) }).await.unwrap();
    drop(near);
    pair.until_clean().await;
}

#[tokio::test]
async fn nothing_is_sent_after_the_end() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    near.finish();
    near.finish();
    assert_eq!(near.send(b"more", false).await, Err(StreamError::Ended));
    assert_eq!(near.send_trailers(b"more").await, Err(StreamError::Ended));
    // Only the destination answers, and once.
    assert_eq!(near.send_head(b"?", false).await, Err(StreamError::Ended));
    assert_eq!(far.send_head(b"200", false).await, Err(StreamError::Ended));
    assert_eq!(recv(&mut far).await, Ok(None));
    far.finish();
    assert_eq!(recv(&mut near).await, Ok(None));
    // An end is no reset.
    assert!(poll_fn(|cx| Ready(near.poll_reset(cx))).await.is_pending());
    assert!(poll_fn(|cx| Ready(far.poll_reset(cx))).await.is_pending());
    drop((near, far));
    pair.until_clean().await;
}

#[tokio::test]
async fn an_end_without_an_answer_is_a_failure() {
    let mut pair = Pair::new(1 << 16);
    let mut near = pair.near.open(&target("http"), b"head", true).unwrap();
    let mut far = pair.far.accept().await.exchange;
    assert_eq!(far.send(b"bytes before the head", false).await, Err(StreamError::Ended));
    far.finish();
    assert_eq!(recv(&mut near).await, Err(reset(ResetCode::Failed, "no answer")));
}

#[tokio::test]
async fn what_has_ended_is_not_reset() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    let end = Bytes::from_static(b"x");
    peer.say(&[hello(), target_frame(), open_frame(1)]).await;
    peer.say(&[Frame::Data { stream: 1, data: end, end: true }]).await;
    let mut exchange = far.accept().await.exchange;
    read_all(&mut exchange).await.unwrap();
    exchange.send_head(b"200", true).await.unwrap();
    drop(exchange);
    peer.say(&[Frame::Ping(7)]).await;
    let head = Bytes::from_static(b"200");
    let answer = Frame::Head { stream: 1, head, informational: false, end: true };
    assert_eq!(peer.hear_of_stream().await, Some(answer));
    assert_eq!(peer.hear_of_stream().await, Some(Frame::Pong(7)));
}

#[tokio::test]
async fn streams_that_were_given_up_unseen_are_not_handed_out() {
    let (mut peer, mut far, _drain) = Peer::of_destination(Limits::default());
    let given_up = Frame::Reset { stream: 1, code: ResetCode::Cancelled, reason: Bytes::new() };
    peer.say(&[hello(), target_frame(), open_frame(1), given_up, open_frame(2)]).await;
    let second = far.accept().await;
    let data = Bytes::from_static(b"of the second");
    peer.say(&[Frame::Data { stream: 2, data, end: true }]).await;
    let mut exchange = second.exchange;
    assert_eq!(read_all(&mut exchange).await.unwrap().0, b"of the second");
    assert_eq!(far.shared.state().held(), 1);
}

#[tokio::test]
async fn waiting_is_woken_by_what_it_waits_for() {
    let mut pair = Pair::new(1 << 16);
    let (mut near, mut far) = pair.open().await;
    // Bytes do not wake who waits for a reset only.
    let wakes = counting::Counter::default();
    assert!(wakes.poll(|cx| near.poll_reset(cx).map(|_| ())) == Pending);
    far.send(b"bytes", false).await.unwrap();
    settle().await;
    assert_eq!(wakes.count(), 0);
    far.reset(ResetCode::Failed, "");
    settle().await;
    assert_eq!(wakes.count(), 1);
}

/// Counts how often a task would have been woken.
mod counting {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Wake},
    };

    #[derive(Default)]
    pub(super) struct Counter(Arc<Count>);

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Counter {
        pub(super) fn poll(&self, poll: impl FnOnce(&mut Context<'_>) -> Poll<()>) -> Poll<()> {
            poll(&mut Context::from_waker(&self.0.clone().into()))
        }

        pub(super) fn count(&self) -> usize {
            self.0.0.load(Ordering::Relaxed)
        }
    }
}
